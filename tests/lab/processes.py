"""The lab's processes: started with a record, ended with certainty, and never anybody else's.

A record is {label, pid, start}; start is field 22 of /proc/PID/stat, so a pid that was given to another process is
recognised. What has no record (QEMU, or children of something that was killed) is found by its network namespace:
everything of a lab runs inside one of its namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.settings import LabError

PATIENCE = 3.0
"""Seconds that a process has to end after SIGTERM."""


@dataclass(frozen=True)
class Record:
    """A process of the lab."""

    label: str
    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return start_time(self.pid) == self.start


# By pid. Processes of the lab outlive whoever starts them; a Popen object that is dropped before its process ends complains.
_STARTED: dict[int, subprocess.Popen[bytes]] = {}


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def launch(
    directory: Path,
    label: str,
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process of its own session and record it; its output is appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=None if environment is None else dict(environment),
        )
    _STARTED[process.pid] = process
    keep_record(directory, label, process.pid)
    return process


def keep_record(directory: Path, label: str, pid: int) -> None:
    """Record a process as the lab's own."""
    start = start_time(pid)
    if start is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f".{label}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(Record(label, pid, start))))
    fresh.replace(directory / f"{label}.json")


def recorded(directory: Path) -> list[Record]:
    """All records, also of processes that have ended."""
    found = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):  # removed or half written by a killed `up`
            found.append(Record(**json.loads(path.read_text())))
    return found


def find(directory: Path, label: str) -> Record | None:
    """The live process recorded under a label."""
    return next((r for r in recorded(directory) if r.label == label and r.is_alive()), None)


def inside(namespaces: Iterable[Path]) -> list[Record]:
    """Every process whose network namespace is one of those bound at the given paths."""
    inodes = set()
    for path in namespaces:
        with contextlib.suppress(OSError):
            inodes.add(path.stat().st_ino)
    inodes.discard(Path("/proc/self/ns/net").stat().st_ino)  # an unbound file, or our own: never a target
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inode = (entry / "ns/net").stat().st_ino
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        pid = int(entry.name)
        start = start_time(pid)
        if inode in inodes and start is not None:
            found.append(Record(name, pid, start))
    return found


def end(processes: Iterable[Record], *, patience: float = PATIENCE) -> None:
    """End processes: SIGTERM, then SIGKILL for what is still there; returns when all are gone."""
    held: dict[int, Record] = {}
    try:
        for record in processes:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(record.pid)
                if record.is_alive():  # asked after opening: from here on the pid cannot be reused unseen
                    held[fd] = record
                else:
                    os.close(fd)
        for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            _signal(held, sign)
            _wait(held, seconds)
        if held:
            names = ", ".join(f"{r.label} ({r.pid})" for r in held.values())
            raise LabError(f"the kernel does not end {names}: look for stuck I/O in /proc/PID/stack")
    finally:
        for fd in held:
            os.close(fd)


def send(record: Record, sign: signal.Signals) -> None:
    """Send one signal to exactly this process."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(record.pid)
        try:
            if record.is_alive():
                signal.pidfd_send_signal(fd, sign)
        finally:
            os.close(fd)


def wait_until(condition: Callable[[], bool], *, seconds: float, otherwise: str) -> None:
    """Poll what can only be polled (sockets that appear, processes that are not our children)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(otherwise)
        time.sleep(0.02)


def _signal(held: Mapping[int, Record], sign: signal.Signals) -> None:
    for fd in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, sign)


def _wait(held: dict[int, Record], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while held and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(list(held), [], [], left)  # a pidfd is readable when its process has ended
        for fd in ready:
            record = held.pop(fd)
            os.close(fd)
            if (child := _STARTED.pop(record.pid, None)) is not None:
                child.wait()
