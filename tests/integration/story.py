"""What an operator does, what goes wrong, and what must hold afterwards.

Move            one `landbridge migrate --json`: begun, awaited state by state, ended
killed, ...     what goes wrong
assert_holds    the guest runs once and whole, the destination is clean, the record names the cause
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.lab import GuestSettings, Lab, LabError, WanSettings, processes
from tests.lab.hosts import IMAGES, HostNode
from tests.lab.judge import BEAT
from tests.lab.network import node

# Small enough that a move takes seconds, and that a test can fill a pool: MiB.
GUEST = GuestSettings(memory=256, disk=16, disk_fill=8, working_set=24, rate=300, disk_rate=3, pass_seconds=1)
POOL_SIZE = 96
HOMES = ("east-1", "west-1")

FAST = WanSettings(rate=400, rtt=10)
# Mbit/s at which the guest's disk (9 MB on the wire) takes about five seconds, its memory (110 MB) about ten.
SLOW_DISK = WanSettings(rate=16, rtt=10)
SLOW_MEMORY = WanSettings(rate=90, rtt=10)

ENDED = frozenset({"completed", "failed", "cancelled", "settled"})
# Seconds after which a service manager starts a killed process again.
RESTART_AFTER = 2.0
# Seconds, where an outage is to be longer than the limit: longer than it takes to notice a dead link, and no more.
SHORT_LIMIT = 15.0
# Seconds for what may take a link's silence limit and the gateways' patience.
LONG = 60.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Guest:
    """A guest of the lab that migrates between its two homes."""

    lab: Lab
    name: str

    @property
    def host(self) -> str:
        """The one host on which it runs. Fails if it is none, or several."""
        where = self.lab.guests.where(self.name)
        running = [host for host, state in where.items() if state.startswith("running")]
        assert len(running) == 1, f"{self.name} runs on {running or 'no host'}: {where}"
        return running[0]

    def node(self, host: str) -> HostNode:
        """A host."""
        return self.lab.hosts[host]


def is_well(guest: Guest) -> bool:
    """Whether it runs at one of its homes, and nowhere else, is heard, and nothing was wrong so far."""
    try:
        verdict = guest.lab.guests.check(guest.name)
        return guest.host in HOMES and not verdict.problems and not verdict.is_silent
    except (AssertionError, LabError):
        return False


class Move:
    """One migration as its operator sees it: each line of `landbridge migrate --json`."""

    def __init__(self, guest: Guest, *options: str) -> None:
        self.guest = guest
        self.lab = guest.lab
        self.source = guest.host
        self.destination = next(home for home in HOMES if home != self.source)
        self.source_site, self.destination_site = node(self.source).site, node(self.destination).site
        self.source_gateway, self.destination_gateway = f"{self.source_site}-gw", f"{self.destination_site}-gw"
        self.lines: list[Json] = []
        self.stderr: list[str] = []
        self._news = threading.Condition()
        command = ["landbridge", "migrate", guest.name, "--to", f"{self.destination_site}/{self.destination}"]
        self._process = subprocess.Popen(
            [*self.lab.enter(self.source_gateway), *command, *options, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.lab.product.operator_environment(self.source_site),
        )
        self._readers = [threading.Thread(target=read) for read in (self._read_lines, self._read_stderr)]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.lines.append(json.loads(line))
                self._news.notify_all()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        self.stderr.extend(self._process.stderr)
        with self._news:
            self._news.notify_all()

    @property
    def id(self) -> str:
        """The migration's id, once it has begun."""
        return str(self.lines[0]["id"])

    @property
    def last(self) -> Json:
        """The newest line."""
        return self.lines[-1] if self.lines else {"state": "", "reason": ""}

    @property
    def states(self) -> list[str]:
        """The states that were seen, in order."""
        return [state for state, _ in itertools.groupby(line["state"] for line in self.lines)]

    def wait_for(self, *states: str, when: Callable[[Json], bool] = lambda _: True, seconds: float = 60.0) -> Json:
        """The first line in one of these states that `when` accepts. Fails if the migration ends or stalls before."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if line["state"] in states and when(line):
                        return line
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left < 0 or self.last["state"] in ENDED or not self._readers[0].is_alive():
                    said = f"{self.states} ({self.last['reason']}) {''.join(self.stderr)}"
                    raise AssertionError(f"waited for {states}, and saw {said}")
                self._news.wait(min(left, 1.0))

    def in_disk_phase(self) -> None:
        """Wait until disk blocks travel."""
        self.wait_for("copying_disks", when=lambda m: _under_way(m, "disk"))

    def in_memory_phase(self) -> None:
        """Wait until pages travel."""
        self.wait_for("copying_memory", when=lambda m: _under_way(m, "memory"))

    def end(self, seconds: float = LONG) -> Json:
        """Wait for the command's end; returns the migration as it ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"after {seconds:.0f} s the migration has not ended: {self.states} ({self.last['reason']})"
            ) from None
        finally:
            self.abandon()
        return self.last

    @property
    def exit_code(self) -> int:
        """The command's exit code, after `end`."""
        return self._process.returncode

    def abandon(self) -> None:
        """Stop watching; the migration goes on."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


def _under_way(migration: Json, what: str) -> bool:
    progress = migration["progress"]
    return bool(progress) and 0 < progress[f"{what}_remaining"] < progress[f"{what}_total"]


@contextlib.contextmanager
def moving(guest: Guest, wan: WanSettings = FAST, *options: str) -> Iterator[Move]:
    """A migration of the guest to its other home, at this WAN; never left running when the test has failed."""
    guest.lab.set_wan(wan)
    move = Move(guest, *options)
    try:
        yield move
    finally:
        move.abandon()
        if move.lines and move.last["state"] not in ENDED:
            guest.lab.wan.heal()
            guest.lab.wan.unblock()
            guest.lab.set_wan(FAST)
            guest.lab.landbridge(move.source_site, "cancel", move.id)
            guest.lab.landbridge(move.source_site, "watch", move.id)


# What goes wrong


def kill_and_restart(lab: Lab, name: str, seconds: float = RESTART_AFTER) -> None:
    """Kill an agent or gateway as the kernel would, and start it again as a service manager would."""
    lab.product.kill(name)
    time.sleep(seconds)
    lab.product.restart(name)


def reconfigure(
    lab: Lab, *, standby: bool = False, outage: float = 0.0, pages: bool = False, lifetime: float = 0.0
) -> None:
    """Start the product anew, as LabSettings says; with certificates that live for so many seconds, if that is said."""
    lab.product.stop()
    lab.product.configure(standby=standby, outage=outage, pages=pages, lifetime=lifetime)
    if lifetime:
        lab.product.renew(lifetime)
    lab.product.start()
    for site in ("east", "west"):
        wait_for_site(lab, site)


@contextlib.contextmanager
def with_short_limit(guest: Guest) -> Iterator[None]:
    """An outage may last SHORT_LIMIT."""
    reconfigure(guest.lab, outage=SHORT_LIMIT)
    try:
        yield
    finally:
        guest.lab.wan.heal()
        reconfigure(guest.lab)


def kill_libvirtd(lab: Lab, host: str) -> None:
    """Kill a host's libvirtd; its QEMUs live on."""
    record = _libvirtd(lab, host)
    processes.send(record, signal.SIGKILL)
    processes.wait_until(lambda: not record.is_alive(), seconds=10, otherwise="libvirtd does not end")


def kill_qemu(guest: Guest, host: str) -> None:
    """Kill the QEMU that runs or awaits the guest on a host."""
    processes.send(_qemu(guest, host), signal.SIGKILL)


@contextlib.contextmanager
def hanging(guest: Guest, host: str, program: Literal["QEMU", "libvirtd"]) -> Iterator[None]:
    """Have a host's libvirtd stand still, or the QEMU that awaits the guest there; it may have been killed afterwards."""
    record = _qemu(guest, host) if program == "QEMU" else _libvirtd(guest.lab, host)
    processes.send(record, signal.SIGSTOP)
    try:
        yield
    finally:
        if record.is_alive():
            processes.send(record, signal.SIGCONT)


def _qemu(guest: Guest, host: str) -> processes.Record:
    record = guest.node(host).qemu(guest.name)
    assert record is not None, f"no QEMU for {guest.name} on {host}"
    return record


def _libvirtd(lab: Lab, host: str) -> processes.Record:
    record = processes.find(lab.directory / "processes", f"libvirtd-{host}")
    assert record is not None
    return record


# What must hold afterwards


def assert_ended(move: Move, *states: str, cause: str) -> Json:
    """The record, as `landbridge migrations` lists it, ended in one of `states`, and its one sentence names the cause."""
    listed = migrations(move.lab, move.source_site)
    migration = next(m for m in listed if m["id"] == move.id)
    reason = str(migration["reason"])
    assert migration["state"] in states, f"{migration['state']}: {reason}"
    assert migration["ended_at"]
    assert reason
    assert "\n" not in reason
    assert "Traceback" not in reason
    assert re.search(cause, reason), f"{reason!r} does not name the cause ({cause})"
    return migration


def assert_holds(move: Move, *, at: str | None = None) -> str:
    """Exactly one copy runs (on `at`, if given), whole; the other side is clean. Returns the host on which it runs."""
    guest = move.guest
    host = guest.host
    assert at is None or host == at, f"{guest.name} runs on {host}, not on {at}"
    if host == move.source:
        assert_nothing_left(guest, move.id, move.destination)
    else:
        assert_source_kept(guest, move)
    for end in (move.source, move.destination):
        assert_no_sockets(guest, move.id, end)
    assert_sound(guest)
    return host


def assert_sound(guest: Guest, passes: int = 2) -> None:
    """The guest goes on, has missed or repeated nothing, and finds its memory and disk as it wrote them, from now on."""
    lab, begun = guest.lab, _passes(guest)

    def verified() -> bool:
        now = _passes(guest)
        verdict = lab.guests.check(guest.name)
        assert not verdict.problems, verdict.sentence()
        return all(n >= b + passes for n, b in zip(now, begun, strict=True))

    try:
        processes.wait_until(verified, seconds=30, otherwise=f"{guest.name} does not verify itself")
    except LabError as error:
        raise AssertionError(f"{error}, at {begun} when asked, at {_passes(guest)} now: {_evidence(guest)}") from None


def _evidence(guest: Guest) -> str:
    """Of a guest that runs and is not heard: what its judge, libvirt and QEMU say of it."""
    there = guest.node(guest.host)
    asked = ("info status", "info cpus", "info registers", "info block", "info block-jobs", "info chardev", "info irq")
    told = [guest.lab.guests.check(guest.name).sentence(), there.virsh("domstate", "--reason", guest.name)]
    told += [f"{each}: {there.virsh('qemu-monitor-command', '--hmp', guest.name, each, check=False)}" for each in asked]
    return "\n".join(told)


def _passes(guest: Guest) -> tuple[int, int]:
    beats = [m for line in guest.lab.guests.log(guest.name).read_text().splitlines() if (m := BEAT.search(line))]
    return int(beats[-1][2]), int(beats[-1][3])


def assert_nothing_left(guest: Guest, migration: str, host: str, seconds: float = 0.0) -> None:
    """Within `seconds`, there is no definition, image, socket or process of the guest on a host."""
    deadline = time.monotonic() + seconds
    while left := leftovers(guest, migration, host):
        assert time.monotonic() < deadline, f"{host} has {', '.join(left)}"
        time.sleep(0.2)


def leftovers(guest: Guest, migration: str, host: str) -> list[str]:
    """What there is of a guest and its migration on a host."""
    there = guest.node(host)
    left = []
    if guest.name in there.virsh("list", "--all", "--name").split():
        left.append(f"the domain ({guest.lab.guests.where(guest.name)[host]})")
    left += [f"the image {name}" for name in images(guest, host)]
    if (record := there.qemu(guest.name)) is not None:
        left.append(f"QEMU ({record.pid})")
    if migration in sockets(guest, host):
        left.append("the sockets")
    return left


def images(guest: Guest, host: str) -> list[str]:
    """The guest's images in a host's pool."""
    names = guest.node(host).run(["ls", "-A", IMAGES]).split()
    return [name for name in names if name.startswith(f"{guest.name}.")]


def sockets(guest: Guest, host: str) -> list[str]:
    """Directories of migrations on a host."""
    return guest.node(host).run(["ls", "-A", "/run/landbridge"]).split()


def assert_no_sockets(guest: Guest, migration: str, host: str) -> None:
    """No migration's directory stays behind on a host."""
    assert migration not in sockets(guest, host), f"{host} has the sockets of {migration}"


def assert_source_kept(guest: Guest, move: Move) -> None:
    """What stays at the source after success: definition and disk, marked, not started with the host."""
    there = guest.node(move.source)
    assert guest.lab.guests.where(guest.name)[move.source].startswith("shut off")
    assert images(guest, move.source)
    # libvirt goes on for a moment after it has released the VM, and the mark waits for it.
    processes.wait_until(
        lambda: move.id in there.virsh("dumpxml", "--inactive", guest.name),
        seconds=40,
        otherwise="the kept source is not marked as moved",
    )
    assert not autostart(guest, move.source)


def autostart(guest: Guest, host: str) -> bool:
    """Whether the guest starts with a host."""
    said = guest.node(host).virsh("dominfo", guest.name)
    return bool(re.search(r"^Autostart:\s+enable", said, re.MULTILINE))


def assert_can_move_again(guest: Guest) -> None:
    """Preflight has nothing against moving the guest now."""
    host = guest.host
    destination = next(home for home in HOMES if home != host)
    site = node(destination).site
    done = guest.lab.landbridge(node(host).site, "migrate", guest.name, "--to", f"{site}/{destination}", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr


def assert_moves_again(guest: Guest) -> None:
    """The guest moves to its other home now, and is whole there."""
    with moving(guest) as move:
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)


def wait_for_site(lab: Lab, site: str) -> None:
    """Wait until a site's gateway reaches every other site."""

    def reached() -> bool:
        said = lab.landbridge(site, "sites", "--json").stdout.splitlines()
        return all(not s["unreachable"] and s["tunnel"] != "down" for s in map(json.loads, said)) and len(said) > 1

    processes.wait_until(reached, seconds=LONG, otherwise=f"site {site} does not reach the other one")


def migrations(lab: Lab, site: str) -> list[Json]:
    """What `landbridge migrations --json` lists at a site."""
    done = lab.landbridge(site, "migrations", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
