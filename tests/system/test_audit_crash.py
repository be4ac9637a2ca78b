"""Whatever system call of an append fails or is the last one: the log verifies, and nothing that was acknowledged is missing.

1. an append runs under strace once, and its calls are counted
2. for each call it runs again, and strace lets this one call fail with EIO or ENOSPC, or kills the process at it
3. the log is verified as it was left, opened again, gone on with, and verified again
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.files import Directory
from gateway.audit.journal import commit
from gateway.audit.reading import entries
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from landbridge.errors import NotRecorded
from tests.system.audit_victim import GROUPS, START
from tests.unit.audit_logs import BRU, entry, written

# All that change files.
CALLS = ("openat", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")
FAULTS = ("error=EIO", "error=ENOSPC", "signal=KILL")


def _can_trace() -> bool:
    done = subprocess.run(["strace", "-e", "trace=none", "true"], check=False, capture_output=True)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None or not _can_trace(),
    reason="strace is not there, or may not trace: .ci/debian installs it",
)


@dataclass
class Story:
    """What became of one victim."""

    status: int
    said: list[dict[str, Any]]
    trace: str
    directory: Path

    @property
    def acknowledged(self) -> dict[int, str]:
        """The ids of entries, by the indexes that were told."""
        return {
            each["first"] + at: f"id-{number}"
            for each in self.said
            if "first" in each
            for at, number in enumerate(each["numbers"])
        }


@dataclass
class Victims:
    """One process that forks victims, one after the other."""

    template: Path
    room: Path
    process: subprocess.Popen[str]
    count: int = field(default=0)

    def strike(self, *inject: str) -> Story:
        """Trace a victim, with this fault."""
        assert self.process.stdin is not None
        self.count += 1
        directory, trace = self.room / str(self.count), self.room / f"{self.count}.trace"
        shutil.copytree(self.template, directory)
        self._tell(str(directory))
        pid = self._heard()["pid"]
        argv = ["strace", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", *inject, "-p", str(pid)]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as strace:
            self._wait_until_traced(str(pid))
            self._tell("go")
            said = [self._heard()]
            while "status" not in said[-1]:
                said.append(self._heard())
            strace.wait(30)
        return Story(said.pop()["status"], said, trace.read_text(), directory)

    def _wait_until_traced(self, pid: str) -> None:
        # The kernel says it; strace itself says nothing when it is quiet, and too much when it is not.
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            os.sched_yield()

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the parent of the victims is gone"
        heard: dict[str, Any] = json.loads(line)
        return heard


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    room = tmp_path_factory.mktemp("victims")
    written(room / "template", START)
    argv = [sys.executable, "-m", "tests.system.audit_victim"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        yield Victims(room / "template", room, process)
        assert process.stdin is not None
        process.stdin.close()


def judge(story: Story, fault: str) -> None:
    """The log is whole, has all that was acknowledged, and can be gone on with."""
    acknowledged = story.acknowledged
    for opened in (False, True):
        report = verify(Directory(story.directory))
        assert report.findings == [], fault
        held = {index: each.text("id") for index, each in entries(Directory(story.directory), 0, report.size)}
        assert acknowledged.items() <= held.items(), fault
        assert report.entries == report.size >= START
        if not opened:
            storage = Storage.open(story.directory, BRU)
            assert storage.size == report.size
            commit(storage, [entry(2000)])
            storage.close()
            assert not list((story.directory / ".state").glob("new.*")), fault


def counted(story: Story) -> Counter[str]:
    return Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", story.trace, re.MULTILINE))


@pytest.fixture(scope="module")
def calls(victims: Victims) -> Counter[str]:
    """How many calls of each kind the appends take."""
    story = victims.strike()
    judge(story, "none")
    assert story.status == 0
    assert len(story.acknowledged) == sum(map(len, GROUPS))
    found = counted(story)
    # Three groups: at least a bundle, a tile and a checkpoint each, and the directories that they are in.
    assert found["rename"] >= 9
    assert found["fsync"] >= 2 * found["rename"] - 4
    assert set(found) == set(CALLS)
    return found


def test_what_a_checkpoint_speaks_of_is_synced_before_it(victims: Victims) -> None:
    trace = victims.strike("-y").trace
    synced: set[str] = set()
    renamed: dict[str, set[str]] = {}
    checkpoints = 0
    for line in trace.splitlines():
        if match := re.search(r"fsync\(\d+<(.*?)>\) += 0", line):
            synced.add(match[1])
            renamed.pop(match[1], None)
        elif match := re.search(r'mkdir\("(.*?)"', line):
            renamed.setdefault(str(Path(match[1]).parent), set()).add(match[1])
        elif match := re.search(r'rename\("(.*?)", "(.*?)"\) += 0', line):
            assert match[1] in synced, f"{match[2]} was not on the disk when it got its name"
            if match[2].endswith("/checkpoint"):
                checkpoints += 1
                assert renamed == {}, "names were not on the disk when the checkpoint spoke of them"
            renamed.setdefault(str(Path(match[2]).parent), set()).add(match[2])
    assert checkpoints == len(GROUPS)
    assert renamed == {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_any_call_loses_nothing(victims: Victims, calls: Counter[str], call: str, fault: str) -> None:
    for number in range(1, calls[call] + 1):
        where = f"{call} number {number} with {fault}"
        story = victims.strike("-e", f"inject={call}:{fault}:when={number}")
        if "KILL" in fault:
            assert story.status == -signal.SIGKILL, where
        else:
            assert "(INJECTED)" in story.trace, where
            assert story.status == 0, where
            # Whatever was not recorded was said, tried again, and recorded then.
            assert len(story.acknowledged) == sum(map(len, GROUPS)), where
        judge(story, where)


def fill(storage: Storage) -> tuple[int, str]:
    """Append until it fails: how many were recorded, and what was said then."""
    for number in range(10_000):
        try:
            commit(storage, [entry(number)])
        except NotRecorded as error:
            return number, error.message
    return 10_000, ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_holds_what_is_not_recorded_and_the_log_goes_on_when_there_is_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk], check=True)
    try:
        storage = Storage.open(disk / "log", BRU)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(64 * 1024))
        recorded, said = fill(storage)
        assert recorded > 0
        assert "No space left on device" in said
        assert verify(Directory(disk / "log")).findings == []
        ballast.unlink()
        assert commit(storage, [entry(recorded)]) == recorded
        storage.close()
        report = verify(Directory(disk / "log"))
        assert (report.findings, report.entries) == ([], recorded + 1)
    finally:
        subprocess.run(["umount", disk], check=True)
