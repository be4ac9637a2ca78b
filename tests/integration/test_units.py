"""The units of docs/systemd, as a systemd of their own runs them: with their sandbox, their user and the folders that they name."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import create, issue
from certs.identity import Identity, Role, Site
from certs.store import save_identity
from tests.lab.processes import wait_until

UNITS = Path(__file__).parents[2] / "docs/systemd"
BIN = Path(sys.executable).parent
SYSTEMD = Path("/lib/systemd/systemd")
PATIENCE = 40.0
# Of the user landbridge, where the gateway's unit finds it.
UID = 64123

CONFIG = {
    "gateway": """\
site = "fra"
name = "gw-1"
[identity]
directory = "/etc/landbridge/identity"
[listen]
operators = "127.0.0.1:7443"
agents = "127.0.0.1:7444"
peers = "127.0.0.1:7446"
tunnel = "127.0.0.1:7445"
""",
    "agent": """\
site = "fra"
name = "host-a"
[identity]
directory = "/etc/landbridge/identity"
[listen]
control = "127.0.0.1:7443"
stream = "127.0.0.1:7444"
[gateway]
stream = ["127.0.0.1:7445"]
""",
}
IDENTITIES = {"gateway": (Role.GATEWAY, "gw-1"), "agent": (Role.HOST, "host-a")}
# As /proc/PID/status has them: none of the gateway's; CAP_CHOWN, CAP_DAC_OVERRIDE and CAP_FOWNER of the agent's.
CAPABILITIES = {"gateway": 0, "agent": 0b1011}

# A systemd that can change nothing of the machine: its folders are covered, and what would clean up others is masked.
BOOT = """\
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
cp -a {here} /run/here
for path in /tmp /var/tmp /var/lib; do mount -t tmpfs tmpfs $path; done
mkdir -p /var/lib/libvirt/qemu/nvram /run/lock /run/etc/above /run/etc/work /run/systemd/system
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/above,workdir=/run/etc/work /etc
cp -r /run/here/landbridge /etc
echo landbridge:x:{uid}:{uid}::/:/usr/sbin/nologin >> /etc/passwd
echo landbridge:x:{uid}: >> /etc/group
chown -R {owner} /etc/landbridge
cp -r /run/here/units/. /run/systemd/system
for unit in systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-tmpfiles-clean; do
    ln -s /dev/null /run/systemd/system/$unit.service
done
ip link set lo up
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=test
exec {systemd} --system --unit=test.target --show-status=0 --log-target=console
"""
# Only where this program stands and where its log goes differ from what a host has.
DROP_IN = """\
[Unit]
DefaultDependencies=no
[Service]
ExecStart=
ExecStart={program} --config /etc/landbridge/{kind}.toml
StandardError=append:/run/here/log
{home}
"""
TARGET = "[Unit]\nDefaultDependencies=no\nWants=landbridge-{kind}.service\n"


def prepare(here: Path, kind: str) -> None:
    """What the systemd finds below /run/here."""
    now = datetime.now(UTC)
    role, name = IDENTITIES[kind]
    etc, units = here / "landbridge", here / "units"
    save_identity(
        etc / "identity",
        issue(create(Site("example.org", "fra"), now), Identity("example.org", "fra", role, name), now),
    )
    (etc / f"{kind}.toml").write_text(CONFIG[kind])
    unit = f"landbridge-{kind}.service"
    (units / f"{unit}.d").mkdir(parents=True)
    shutil.copy(UNITS / unit, units)
    # A checkout may stand in somebody's home.
    home = "ProtectHome=read-only" if BIN.is_relative_to("/root") or BIN.is_relative_to("/home") else ""
    drop_in = DROP_IN.format(program=BIN / f"landbridge-{kind}", kind=kind, home=home)
    (units / f"{unit}.d" / "here.conf").write_text(drop_in)
    (units / "test.target").write_text(TARGET.format(kind=kind))


@contextlib.contextmanager
def booted(here: Path, kind: str) -> Iterator[Path]:
    """Its root, while it runs."""
    owner = "landbridge:landbridge" if kind == "gateway" else "root:root"
    script = BOOT.format(here=here, uid=UID, owner=owner, systemd=SYSTEMD)
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net"]
    with (here / "console").open("wb") as console:
        systemd = subprocess.Popen(
            [*spaces, "sh", "-c", script], stdout=console, stderr=console, stdin=subprocess.DEVNULL
        )
    try:
        children = Path(f"/proc/{systemd.pid}/task/{systemd.pid}/children")
        wait_until(lambda: children.read_text() != "", seconds=PATIENCE, otherwise="unshare did not begin")
        yield Path(f"/proc/{children.read_text().split()[0]}/root")
    finally:
        systemd.kill()  # and with it all that it has started
        systemd.wait()


def processes_of(kind: str, root: Path) -> list[Path]:
    """In /proc, those of the unit's program below this root."""
    space = (root.parent / "ns/pid").stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_inside = (process / "ns/pid").stat().st_ino == space
            if is_inside and f"landbridge-{kind}".encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found


@pytest.mark.parametrize("kind", ["gateway", "agent"])
def test_a_unit_starts_in_its_sandbox_with_no_more_privileges_than_it_names(tmp_path: Path, kind: str) -> None:
    if os.geteuid() != 0 or not SYSTEMD.exists():
        pytest.skip("it needs root, and systemd")
    prepare(tmp_path, kind)

    with booted(tmp_path, kind) as root:
        log = root / "run/here/log"

        def is_ready() -> bool:
            return log.exists() and f'"event": "{kind}.ready"' in log.read_text()

        try:
            wait_until(is_ready, seconds=PATIENCE, otherwise=f"the {kind} did not start")
        except BaseException:
            print((tmp_path / "console").read_text(), log.read_text() if log.exists() else "no log")
            raise
        [process] = processes_of(kind, root)
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == CAPABILITIES[kind]
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["Uid"].split()[0] == (str(UID) if kind == "gateway" else "0")
        state = process / "root/var/lib/landbridge"
        assert state.stat().st_mode & 0o777 == 0o700
        assert any(state.iterdir())
        # All that it may not write to, in its own eyes.
        options = {
            line.split()[1]: line.split()[3].split(",")[0] for line in (process / "mounts").read_text().splitlines()
        }
        assert options["/"] == "ro"
        if kind == "agent":
            assert options["/var/lib/libvirt/qemu/nvram"] == "rw"
