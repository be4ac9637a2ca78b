"""The page log's file: what a kill, a power failure, a full disk and foreign contents leave of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from gateway.stream.dedup import History
from gateway.stream.page_log import FIELDS, HEAD, PAUSE, RECORD, SERIAL, PageLog, capacity_of, pages_at, stretches
from gateway.stream.ring import MARGIN_SHARE, SPAN, Kept, Ring, first_of
from landbridge.errors import ConfigError
from landbridge.hints import PAGE
from tests.unit.page_logs import (
    ANOTHER_BOOT,
    BOOT,
    Pair,
    append,
    digests_of,
    find,
    generation,
    numbers,
    open_log,
    size_for,
    some_pages,
    store,
)

CAPACITY = 16
FIRST = first_of(generation(1))


def write(log: PageLog, first: int, *pages: int, ring: Ring | None = None) -> bool:
    """Write pages into OUT, if no ring is named."""
    contents = some_pages(*pages)
    ring = ring or log.out
    if not log.write(ring, first, [contents], digests_of(contents), numbers(*pages), 0):
        return False
    ring.next = max(ring.next, first + len(pages))
    return True


def left_in(path: Path, boot: bytes = BOOT, capacity: int = CAPACITY) -> tuple[list[tuple[int, int]], PageLog]:
    """The serials of OUT that are held when the file is opened again; the log, which is closed; its pages were compared."""
    log = open_log(path, capacity, 9, boot)
    ranges = log.out.ranges(Kept.HELD)
    log.close()
    return ranges, log


def page_offset(slot: int, capacity: int = CAPACITY) -> int:
    return pages_at(capacity) + slot * PAGE


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def an_unclosed_log(path: Path, *pages: int) -> None:
    """A log as a killed process leaves it."""
    log = open_log(path, CAPACITY)
    assert write(log, FIRST, *pages)
    kept = path.read_bytes()
    log.close()
    path.write_bytes(kept)


def test_the_file_is_sparse_and_its_owners_alone(tmp_path: Path) -> None:
    log = PageLog.open(tmp_path / "log", 8 << 30, BOOT, generation(1))
    log.close()
    found = (tmp_path / "log").stat()
    assert found.st_mode & 0o777 == 0o600
    assert (8 << 30) - 2 * (PAGE + RECORD) < found.st_size <= 8 << 30
    assert found.st_blocks * 512 < 1 << 20


def test_pages_and_records_are_there_after_a_clean_close(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", CAPACITY)
    assert log.found.is_new
    assert write(log, FIRST, *range(40, 40 + CAPACITY))
    assert write(log, log.out.next, 1, 2)
    log.close()
    log = open_log(tmp_path / "log", CAPACITY, 9, ANOTHER_BOOT)
    assert (log.found.held, log.found.forgotten, log.found.is_new) == (CAPACITY, 0, False)
    assert log.out.generation == generation(1)
    assert log.out.ranges(Kept.HELD) == [(FIRST + 2, FIRST + CAPACITY + 2)]
    assert (log.pages(np.arange(3)) == some_pages(1, 2, 42)).all()
    assert log.records(log.out, FIRST + CAPACITY, FIRST + CAPACITY + 2)[:, SERIAL].tolist() == [
        FIRST + CAPACITY,
        FIRST + CAPACITY + 1,
    ]
    log.close()


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.unit.page_logs import *
from tests.unit.test_page_log import *
log = open_log(Path(sys.argv[1]), CAPACITY)
write(log, FIRST, 1, 2, 3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=False)
    assert ended.returncode == -9
    ranges, log = left_in(tmp_path / "log")
    assert ranges == [(FIRST, FIRST + 3)]
    assert log.out.next == FIRST + 3


def test_after_a_power_failure_only_pages_that_match_their_digests_are_left(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2, 3, 4)
    change(tmp_path / "log", page_offset(1) + 100, b"torn")
    ranges, log = left_in(tmp_path / "log", ANOTHER_BOOT)
    assert ranges == [(FIRST, FIRST + 1), (FIRST + 2, FIRST + 4)]
    assert log.found.forgotten == 1
    assert log.out.next == FIRST + 4 + CAPACITY // MARGIN_SHARE


def test_the_mark_of_a_clean_close_is_gone_once_the_log_is_open(tmp_path: Path) -> None:
    open_log(tmp_path / "log", CAPACITY).close()
    an_unclosed_log(tmp_path / "log", 1)
    change(tmp_path / "log", page_offset(0), b"torn")
    assert left_in(tmp_path / "log", ANOTHER_BOOT)[0] == []


def test_what_was_forgotten_once_stays_so_after_a_clean_close(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2)
    change(tmp_path / "log", page_offset(1), b"torn")
    assert left_in(tmp_path / "log", ANOTHER_BOOT)[0] == [(FIRST, FIRST + 1)]
    assert left_in(tmp_path / "log", ANOTHER_BOOT)[0] == [(FIRST, FIRST + 1)]


@pytest.mark.parametrize("field", range(FIELDS))
def test_a_record_that_is_torn_is_forgotten(tmp_path: Path, field: int) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2, 3)
    change(tmp_path / "log", HEAD + RECORD + 8 * field, (12345).to_bytes(8, "little"))
    assert left_in(tmp_path / "log")[0] == [(FIRST, FIRST + 1), (FIRST + 2, FIRST + 3)]


def test_the_record_of_one_page_beside_the_bytes_of_another_is_forgotten(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2)
    raw = (tmp_path / "log").read_bytes()
    change(tmp_path / "log", HEAD, raw[HEAD + RECORD : HEAD + 2 * RECORD] + raw[HEAD : HEAD + RECORD])
    assert left_in(tmp_path / "log")[0] == []


def test_a_file_that_was_cut_keeps_what_is_left(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2, 3)
    with (tmp_path / "log").open("r+b") as file:
        file.truncate(page_offset(1) + 10)
    assert left_in(tmp_path / "log")[0] == [(FIRST, FIRST + 1)]


@pytest.mark.parametrize("contents", [b"", b"x", b"# a text file\n" * 10_000, bytes(1 << 20)])
def test_a_file_that_is_no_page_log_is_started_anew(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "log").write_bytes(contents)
    ranges, log = left_in(tmp_path / "log")
    assert ranges == []
    assert log.found.is_new
    assert log.out.generation == generation(9)


def test_a_log_that_was_made_for_another_size_is_started_anew(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1)
    assert left_in(tmp_path / "log", capacity=2 * CAPACITY)[1].found.is_new


def test_whatever_is_in_the_file_is_no_error(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", *range(CAPACITY))
    whole = (tmp_path / "log").read_bytes()
    chance = np.random.default_rng(1)
    for boot in [BOOT, ANOTHER_BOOT] * 60:
        raw = bytearray(whole)
        for _ in range(chance.integers(1, 8)):
            at = int(chance.integers(0, HEAD // 16 if chance.random() < 0.2 else HEAD + 2 * CAPACITY * RECORD))
            raw[at : at + 3] = chance.bytes(3)
        (tmp_path / "log").write_bytes(raw[: int(chance.integers(0, len(raw) * 2))])
        log = open_log(tmp_path / "log", CAPACITY, 9, boot)
        for slots, records in log.walk(log.out, Kept.HELD):
            if boot == ANOTHER_BOOT:
                assert (log.pages(slots) == some_pages(*(records[:, SERIAL] - np.uint64(FIRST)).tolist())).all()
        assert write(log, log.out.next, 1)
        log.close()


def test_a_log_whose_serials_run_out_starts_anew_in_time(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", CAPACITY)
    log.skip(FIRST + SPAN // 2 + 1)
    log.close()
    assert left_in(tmp_path / "log")[1].out.generation == generation(9)


def test_no_serial_is_given_out_behind_the_last(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    log = pair.here._log
    log.skip(FIRST + SPAN - 1)
    assert append(pair.here, 1, 2) is None
    assert append(pair.here, 1) == FIRST + SPAN - 1
    assert append(pair.here, 1) is None
    log.skip(FIRST + 2 * SPAN)
    assert log.out.next == FIRST + SPAN
    pair.close()


def test_a_log_is_one_process_s(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", CAPACITY)
    with pytest.raises(ConfigError, match="in use by another process; give each gateway its own"):
        open_log(tmp_path / "log", CAPACITY)
    log.close()


def test_a_file_that_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone/log cannot be used: No such file or directory; name another file"):
        open_log(tmp_path / "gone" / "log", CAPACITY)


@pytest.mark.parametrize(
    ("rows", "count"),
    [([0, 1, 2, 3], 1), ([1, 2], 1), ([0, 2, 3], 2), ([3], 1), (list(range(0, 40, 2)), 1), (list(range(0, 8, 2)), 4)],
)
def test_pages_are_written_in_stretches_or_copied_if_these_are_many(
    tmp_path: Path, rows: list[int], count: int
) -> None:
    pages = some_pages(*range(4 if max(rows) < 4 else 40))
    found = stretches(pages, np.array(rows))
    assert len(found) == count
    log = open_log(tmp_path / "log", 64)
    # Over the end of the ring.
    first = FIRST + 64 - FIRST % 64 - 2
    assert log.write(log.out, first, found, digests_of(pages[rows]), numbers(*rows), 0)
    slots = (first + np.arange(len(rows))) % 64
    assert (log.pages(slots) == pages[rows]).all()
    log.close()


def test_the_capacity_fills_the_size(tmp_path: Path) -> None:
    assert capacity_of(size_for(100)) == capacity_of(size_for(101) - 1) == 100
    assert capacity_of(0) == 8


class FullDisk(FileIO):
    """A file of which only the first `room` bytes that are written find a place; then it is as with a full disk."""

    room = 1 << 30

    def write(self, data: object, /) -> int:
        left = memoryview(data).cast("B")[: self.room]  # type: ignore[arg-type]
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(left)
        return super().write(left)


def test_on_a_full_disk_pages_are_not_logged_and_all_else_goes_on(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    (tmp_path / "full").touch()
    file = FullDisk(tmp_path / "full", "r+")
    pair.here.close()
    pair.here = History(PageLog(file, CAPACITY, BOOT, generation(5)))
    pair.meet()
    first = pair.send(1, 2)
    for room in (0, 10, PAGE - 1, PAGE, PAGE + RECORD - 1):
        file.room = room
        assert append(pair.here, 3) is None
        assert find(pair.here, 1) == first * 2
        assert pair.here.read(first * 2) == some_pages(1)[0].data
        file.room = 1 << 30
        for _ in range(PAUSE):
            assert append(pair.here, 3) is None
    again = pair.send(3)
    assert again == first + 2
    file.room = 0
    store(pair.here, append(pair.there, 9) or 0, 9)
    assert pair.here.take_received() == []
    file.room = 1 << 30
    pair.close()
    assert left_in(tmp_path / "full")[0] == [(first, first + 3)]


def a_log_after_another_kill(path: Path) -> None:
    log = open_log(path, CAPACITY)
    kept = path.read_bytes()
    log.close()
    path.write_bytes(kept)


def test_a_log_whose_process_is_killed_twice_is_compared_for_a_block_may_kill_whoever_reads_it(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2)
    change(tmp_path / "log", page_offset(1), b"torn")
    a_log_after_another_kill(tmp_path / "log")
    ranges, log = left_in(tmp_path / "log")
    assert ranges == [(FIRST, FIRST + 1)]
    assert log.found.is_torn


def test_a_log_that_was_closed_between_two_kills_is_not_compared(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2)
    assert left_in(tmp_path / "log")[1].found.held == 2
    a_log_after_another_kill(tmp_path / "log")
    ranges, log = left_in(tmp_path / "log")
    assert ranges == [(FIRST, FIRST + 2)]
    assert not log.found.is_torn


class BadBlock(FileIO):
    """A file of which one byte, and with it what is behind, cannot be read."""

    bad = page_offset(1)

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        if size and at <= self.bad < at + size:
            size = self.bad - at
            if not size:
                raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_what_cannot_be_read_is_forgotten_after_the_second_kill(tmp_path: Path) -> None:
    an_unclosed_log(tmp_path / "log", 1, 2, 3)
    a_log_after_another_kill(tmp_path / "log")
    log = PageLog(BadBlock(tmp_path / "log", "r+"), CAPACITY, BOOT, generation(9))
    assert log.out.ranges(Kept.HELD) == [(FIRST, FIRST + 1)]
    log.close()
    assert left_in(tmp_path / "log")[0] == [(FIRST, FIRST + 1)]


@pytest.mark.parametrize("left", [0, HEAD, page_offset(3)])
def test_a_process_whose_log_is_cut_while_it_is_mapped_lives_and_goes_on_without_what_was_there(
    tmp_path: Path, left: int
) -> None:
    script = """
import os, sys
from pathlib import Path
from tests.unit.page_logs import *
pair = Pair(Path(sys.argv[1]))
first = pair.send(1, 2, 3, 4, 5, 6, 7, 8)
os.truncate(pair.paths[0], int(sys.argv[2]))
os.truncate(pair.paths[1], int(sys.argv[2]))
assert find(pair.here, 2) is None and pair.here.last(DOMAIN, 2) is None
assert pair.there.read_from_peer(first * 2) in (None, memoryview(bytes(4096)))
assert pair.there.read_from_peer(first * 2) is None and pair.here.read(first * 2) is None
second = pair.send(9)
assert find(pair.here, 9) == second * 2
assert pair.there.read_from_peer(second * 2) == some_pages(9)[0].data
pair.close()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(left)], check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("left", [0, 10, HEAD])
def test_a_log_that_was_cut_while_it_was_open_closes_and_opens(tmp_path: Path, left: int) -> None:
    log = open_log(tmp_path / "log", CAPACITY)
    assert write(log, FIRST, 1, 2, 3)
    os.truncate(tmp_path / "log", left)
    log.close()
    assert left_in(tmp_path / "log")[0] == []
    log = open_log(tmp_path / "log", CAPACITY)
    assert write(log, FIRST + 3, 4)
    log.close()
    assert left_in(tmp_path / "log")[0] == [(FIRST + 3, FIRST + 4)]


@pytest.mark.lab
def test_a_process_with_a_log_on_a_full_disk_lives(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tests.unit.page_logs import *
pair = Pair(Path(sys.argv[1]), 4096)
sent = [first for page in range(2000) if (first := append(pair.here, page)) is not None]
pair.here.acknowledged([(sent[0], sent[-1] + 1)])
found = sum(find(pair.here, page) is not None for page in range(2000))
pair.close()
print(len(sent), found)
"""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        logged, found = map(int, ended.stdout.split())
        assert 300 < logged == found < (2 << 20) // PAGE
        ranges, _ = left_in(tmp_path / "here", capacity=4096)
        assert ranges == [(FIRST, FIRST + logged)]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
