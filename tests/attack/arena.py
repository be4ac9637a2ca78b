"""The lab around the attacks: one of its hosts is attacked, a recorder stands in front of its libvirtd, and nothing may be left there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.attacker import Outcome
from tests.attack.attacks import End
from tests.lab import Lab, processes
from tests.lab.hosts import IMAGES
from tests.lab.network import node
from tests.lab.settings import SOURCE_DIRECTORY

HOST, SITE = "east-1", "east"
LIBVIRTD, RECORDED = "/run/libvirt/libvirt-sock", "/run/libvirt/recorded-sock"
# No kernel is booted, but QEMU reads it when it starts.
DOMAIN = """\
<domain type='qemu'>
  <name>{{name}}</name>
  <uuid>{{uuid}}</uuid>
  <memory unit='KiB'>65536</memory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{kernel}</kernel>
    <cmdline>console=ttyS0</cmdline>
  </os>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{{image}}'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:78:38:8a'/>
      <source network='lan'/>
      <model type='virtio'/>
    </interface>
    <console type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
# Seconds for all attacks.
LONG = 600.0


@dataclass
class Report:
    """What became of all attacks."""

    outcomes: list[Outcome] = field(default_factory=list)
    # What is left on the attacked host, or has gone.
    left: list[str] = field(default_factory=list)
    # Security events in the log of its agent.
    events: int = 0

    @property
    def problems(self) -> list[str]:
        """What is not as it should be; none if all is well."""
        return [f"{o.name}: {o.problem}" for o in self.outcomes if o.problem] + self.left


@contextlib.contextmanager
def recorded(lab: Lab, host: str = HOST) -> Iterator[Path]:
    """The agent of a host, the attacked one, gives a migration's calls to libvirtd through the recorder; where that writes."""
    log, config, label = lab.directory / f"recorded-{host}.log", lab.directory / f"{host}.toml", f"recorder-{host}"
    log.write_text("")
    before = config.read_text()
    recorder = [sys.executable, str(Path(__file__).with_name("recorder.py")), RECORDED, LIBVIRTD, str(log)]
    lab.popen(host, recorder, label=label)
    processes.wait_until(
        lambda: lab.hosts[host].run(["ls", RECORDED], check=False) != "",
        seconds=10,
        otherwise=f"the recorder did not start: see {lab.directory}/{label}.log",
    )
    try:
        config.write_text(f'{before}[libvirt]\nsocket = "{RECORDED}"\n')
        lab.product.kill(host)
        lab.product.restart(host)
        yield log
    finally:
        config.write_text(before)
        lab.product.kill(host)
        lab.product.restart(host)
        if record := processes.find(lab.directory / "processes", label):
            processes.end([record])


def attack(lab: Lab, wanted: Sequence[str] = (), tell: Callable[[Outcome], object] = lambda _: None) -> Report:
    """Run the attacks whose names have one of some words in them, or all; each outcome is told as it comes."""
    report = Report()
    libvirtd = processes.find(lab.directory / "processes", f"libvirtd-{HOST}")
    with recorded(lab) as log, _link(lab) as link:
        arena = lab.directory / "arena.json"
        arena.write_text(json.dumps(_arena(lab, log, link)))
        program = [sys.executable, "-m", "tests.attack.attacker", str(arena), *wanted]
        with subprocess.Popen(
            [*lab.enter(f"{SITE}-gw"), *program], stdout=subprocess.PIPE, text=True, cwd=SOURCE_DIRECTORY.parents[1]
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                report.outcomes.append(Outcome(**json.loads(line)))
                tell(report.outcomes[-1])
            if running.wait(LONG) != 0:
                report.left.append("the attacker has ended with an error")
        events = [json.loads(line) for line in lab.product.said(HOST).splitlines() if line.startswith("{")]
        logged = [e["reason"] for e in events if e["event"] == "firewall.refused" and e["security"]]
        report.events = len(logged)
        refused = [o.told for o in report.outcomes if o.end == End.ANSWERED.value or " does not take " in o.told]
        report.left += [f"the agent has not logged {told!r}" for told in refused if told not in logged]
        report.left += _left(lab)
    if libvirtd is None or not libvirtd.is_alive():
        report.left.append(f"libvirtd of {HOST} has ended")
    return report


@contextlib.contextmanager
def _link(lab: Lab) -> Iterator[Path]:
    link = _kernel(lab).with_name("link")
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/shadow")
    try:
        yield link
    finally:
        link.unlink()


def _kernel(lab: Lab) -> Path:
    return lab.guests.boot_files()[0]


def _arena(lab: Lab, log: Path, link: Path) -> dict[str, str]:
    lan = node(HOST).lan
    return {
        "identity": str(lab.product.identity(SITE, "gateway", "gw-1")),
        "host": HOST,
        "control": f"{lan}:7443",
        "stream": f"{lan}:7444",
        "domain": DOMAIN.format(kernel=_kernel(lab)),
        "images": IMAGES,
        "link": str(link),
        "recorded": str(log),
    }


def _left(lab: Lab) -> list[str]:
    """What attacks have left on the host."""
    host, left = lab.hosts[HOST], []
    left += [
        f"{HOST} has the domain {n}" for n in host.virsh("list", "--all", "--name").split() if n.startswith("attack")
    ]
    left += [f"{HOST} has the image {n}" for n in host.run(["ls", "-A", IMAGES]).split() if n.startswith("attack")]
    left += [f"{HOST} has the sockets of {n}" for n in host.run(["ls", "-A", "/run/landbridge"]).split()]
    left += [f"{HOST} has the process {r.label}" for r in host.running() if "attack-" in _words(r.pid)]
    return left


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""
