"""The page log of two gateways: one file with two rings of pages, what this gateway has sent (OUT) and what the other has (IN).

A page has a serial, which only its sender gives out and which is never given out twice; it stands in slot `serial % capacity` of
its ring, with a record beside it. A ring has a generation, 16 random bytes of its sender. They also say where its serials begin,
so that serials of two generations do not meet, and what belongs to one is never taken for the other's.

    offset of the file             bytes
    0                              HEAD               head, see _HEAD
    HEAD                           capacity * RECORD  records of OUT, then those of IN
    the next multiple of PAGE      capacity * PAGE    pages of OUT, then those of IN

A record is six little-endian u64: serial, digest (xxh3-64 of the page), key, domain, moment (a count of what this gateway wrote) and
seal, which binds the others to each other and to the generation.

What a crash leaves (theory):

A page is written in three steps: its slot's record is cleared, if there is one; the page is written; the record is written. Files are
written with `write`, never through a mapping: on a full disk a `write` says so, and a mapping kills the process (SIGBUS). Then the pages
are not logged, and that is all. Pages are read through a mapping, but only slots that were written.

 - The process is killed: the kernel has all that was written. At most the last slots have no record.
 - The power fails: any part of the file may be old. The head then names another boot and has no mark of a clean close. Each page is
   compared with its digest and forgotten if they differ; a record that is torn does not match its seal. As serials may have been
   given out that the file does not know, the next one lies MARGIN further; and none is given out before the other gateway has said
   what it holds (`History.meet`), because that may be more.
 - The process is killed a second time, with no clean close between: as after a power failure, for a block that the disk cannot read
   kills whoever looks at it through a mapping (SIGBUS). It is forgotten then, instead of killing for ever.
 - The file is shorter than it was, or its head makes no sense: as after a power failure, or anew. Never an error.

Somebody may shorten the file while it is mapped, to have room on the disk. Before the mapping is read, the size of the file is looked
at: if that is less than it was, everything is forgotten, and the file gets its size again.

Pages that change on a disk unnoticed are found by the checksum of each coded frame, not here.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from gateway.stream.ring import MARGIN_SHARE, NO_GENERATION, SPAN, Kept, Numbers, Ring
from landbridge.errors import ConfigError
from landbridge.hints import PAGE

Pages = NDArray[np.uint8]  # of the shape (n, PAGE)

_HEAD = struct.Struct(
    "<8sQQ16s16sQ16sQ"
)  # magic, capacity, marks, boot; then of OUT and of IN: generation, next serial
# Marks: that the file was closed; that a power failure has once taken pages out of it; that the process before was killed.
_CLEAN, _TORN, _KILLED = 1, 2, 4
_MAGIC = b"LBpages2"
HEAD = 4096
FIELDS = 6
RECORD = 8 * FIELDS
SERIAL, DIGEST, KEY, DOMAIN, MOMENT, SEAL = range(FIELDS)
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5], np.uint64
)
# Slots that are read at once when a log is opened: 4 MiB of pages.
_CHUNK = 1024
# After a write has failed, so many are left out before the next is tried: a full disk may take its time to say so.
PAUSE = 1000
# So many mapped pages may become resident before the mapping lets go of them; they stay in the kernel's cache. A page that is read
# makes up to _AROUND resident (the kernel's fault_around_bytes).
_RESIDENT, _AROUND = 8192, 16
# Pages that are not all to be written are copied first, if there are more gaps between them: a write takes as long as to copy 8 pages.
_MOST_GAPS = 16


def digest(page: bytes | bytearray | memoryview) -> int:
    """What pages are found and verified by: xxh3-64."""
    return xxhash.xxh3_64_intdigest(page)


def capacity_of(size: int) -> int:
    """Pages of each ring in a file of at most `size` bytes; at least 8."""
    return max((size - HEAD - PAGE) // (2 * (PAGE + RECORD)), 8)


def pages_at(capacity: int) -> int:
    """Where the pages begin in a file with so many in each ring; the kernel is quicker with whole pages of a file."""
    return HEAD + -(-2 * capacity * RECORD // PAGE) * PAGE


@dataclass(frozen=True, slots=True)
class Found:
    """What was in the file when it was opened: pages, and those that could not be trusted."""

    held: int
    forgotten: int
    # Whether the log is a new one; or one that a power failure, or something worse, has interrupted.
    is_new: bool
    is_torn: bool


class PageLog:
    """The file and its two rings. It has one owner, and one thread at a time.

    In memory: 3 bytes per page, and at most about 32 MiB of the mapped file at a time.
    """

    def __init__(self, file: FileIO, capacity: int, boot: bytes, generation: bytes) -> None:
        """Take over what is in `file`, which is open for reading and writing, and given back by `close`.

        `capacity`: pages of each ring; a file that was made for another one is started anew. `boot`: 16 bytes that are others
        after the machine was started again. `generation`: 16 random bytes, of OUT if it starts anew. Raises OSError.
        """
        self._file = file
        self._boot = boot
        self.capacity = capacity
        kept, laps = np.zeros(2 * capacity, np.uint8), np.zeros(2 * capacity, np.uint16)
        self.kept, self.laps = kept, laps
        self.out = Ring(0, kept[:capacity], laps[:capacity])
        self.incoming = Ring(capacity, kept[capacity:], laps[capacity:])
        # Whether a power failure, or something worse, has ever taken pages out of it. The other gateway has to be told, and nothing says
        # that it was before this process came; to tell it for ever costs no more than what is under way when they meet.
        self.was_torn = False
        # Whether the process before was killed.
        self._was_killed = False
        self._moment = 0
        self._pause = 0
        self._resident = 0
        self._pages_at = pages_at(capacity)
        self._size = self._pages_at + 2 * capacity * PAGE
        self.found = self._take_over(generation)
        # Before anything is written: the mark of a clean close must not outlive the next power failure.
        self._to_disk(HEAD)
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped: Pages = np.frombuffer(self._map, np.uint8, offset=self._pages_at).reshape(-1, PAGE)
        self._mapped_records: Numbers = np.frombuffer(self._map, "<u8", 2 * capacity * FIELDS, HEAD).reshape(-1, FIELDS)

    @classmethod
    def open(cls, path: Path, size: int, boot: bytes, generation: bytes) -> Self:
        """The log in the file at `path`, of at most `size` bytes, and sparse; it may be there or not, but not its directory.

        Raises ConfigError if it cannot be opened, or another process has it open.
        """
        try:
            path.touch(0o600)
            file = FileIO(path, "r+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(file, capacity_of(size), boot, generation)
            except BaseException:
                file.close()
                raise
        except BlockingIOError as error:
            raise ConfigError(f"the page log {path} is in use by another process; give each gateway its own") from error
        except OSError as error:
            raise ConfigError(f"the page log {path} cannot be used: {error.strerror}; name another file") from error

    def close(self) -> None:
        """Write all to the disk and mark it as whole; a failure to do so costs a look at each page after the next power failure."""
        self._is_cut()
        del self._mapped, self._mapped_records
        self._map.close()
        # ValueError: it is cut, and could not be made longer.
        with contextlib.suppress(OSError, ValueError):
            self._to_disk(0)
            self._put_head(is_clean=True)
            self._to_disk(HEAD)
        self._file.close()

    # Pages

    def pages(self, slots: NDArray[np.intp]) -> Pages:
        """A copy of the pages in slots that were written, each counted among those of both rings."""
        if self._is_cut():
            return np.zeros((len(slots), PAGE), np.uint8)
        # One call for all: numpy lets other threads run meanwhile, and a page that is read is not compared or copied twice.
        taken = self._mapped.take(slots, axis=0)
        self._resident += len(slots) * _AROUND
        if self._resident > _RESIDENT:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._resident = 0
        return taken

    def write(
        self, ring: Ring, first: int, pages: Sequence[Pages], digests: Numbers, keys: Numbers, domain: int
    ) -> bool:
        """Write pages from the serial `first` on, at most as many as a ring has. False: they are not there, the disk is full.

        `pages`: in stretches, one behind the other; `digests` and `keys` (n) are of all of them.
        """
        if self._pause:
            self._pause -= 1
            return False
        records = self._sealed(ring, first, digests, keys, domain)
        try:
            for at, part in ring.parts(first, len(digests)):
                count = part.stop - part.start
                # In an empty slot is no record of this generation, or one that is older than a round, and not trusted (`drop_old`).
                if np.count_nonzero(self.kept[at : at + count]):
                    self._put(HEAD + at * RECORD, bytes(count * RECORD))
                    self.kept[at : at + count] = Kept.EMPTY
                self._put_pages(at, pages, part)
                self._put(HEAD + at * RECORD, records[part])
        except OSError:
            self._pause = PAUSE
            return False
        for at, part in ring.parts(first, len(digests)):
            count = part.stop - part.start
            self.kept[at : at + count] = Kept.HELD
            self.laps[at : at + count] = (first + part.start) // self.capacity & 0xFFFF
        return True

    def drop(self, slots: NDArray[np.intp]) -> None:
        """Forget what is in these slots, counted among both rings."""
        self.kept[slots] = Kept.EMPTY
        with contextlib.suppress(OSError):
            self._clear(slots)

    def records(self, ring: Ring, first: int, end: int) -> Numbers:
        """The records of serials in a row, at most as many as a ring has, of the shape (n, FIELDS)."""
        return np.concatenate([self._get_records(at, p.stop - p.start) for at, p in ring.parts(first, end - first)])

    def records_of(self, slots: NDArray[np.intp]) -> Numbers:
        """The records of slots that were written, each counted among those of both rings, of the shape (n, FIELDS)."""
        if self._is_cut():
            return np.zeros((len(slots), FIELDS), np.uint64)
        return self._mapped_records.take(slots, axis=0)

    def _is_cut(self) -> bool:
        """Whether the file is shorter than its mapping; then nothing in it is held any more."""
        if self._map.size() >= self._size:
            return False
        self.kept.fill(Kept.EMPTY)
        with contextlib.suppress(OSError):
            self._file.truncate(self._size)
        return True

    def walk(self, ring: Ring, least: np.uint8) -> Iterator[tuple[NDArray[np.intp], Numbers]]:
        """All slots that are good for `least`, counted among both rings, and their records; the oldest first, in pieces."""
        for start, length in ring.parts(ring.next, self.capacity):
            for at in range(start, start + length.stop - length.start, _CHUNK):
                stop = min(at + _CHUNK, start + length.stop - length.start)
                rows = np.flatnonzero(self.kept[at:stop] >= least)
                if len(rows):
                    yield rows + at, self._get_records(at, stop - at)[rows]

    # Generations

    def begin(self, ring: Ring, generation: bytes) -> None:
        """Forget what is in a ring, and start a generation."""
        ring.begin(generation)
        self._say_head()

    def skip(self, to: int) -> None:
        """Give out no serial below `to` any more."""
        self.out.next = min(max(self.out.next, to), self.out.first + SPAN)
        self._say_head()

    # The file

    def _take_over(self, generation: bytes) -> Found:
        found = self._file.seek(0, 2)
        head = self._get_head()
        if head is None:
            self._file.truncate(0)
            self._file.truncate(self._size)
            self.out.begin(generation)
            self._put_head(is_clean=False)
            return Found(0, 0, is_new=True, is_torn=False)
        marks, boot, self.out.generation, out_next, self.incoming.generation, in_next = head
        is_intact = marks & _CLEAN or (boot == self._boot and not marks & _KILLED)
        is_torn = found != self._size or not is_intact
        self._was_killed = not marks & _CLEAN and not is_torn
        self.was_torn = is_torn or bool(marks & _TORN)
        if is_torn:
            self._file.truncate(self._size)
        forgotten = self._load(self.out, out_next, is_torn=is_torn) + self._load(
            self.incoming, in_next, is_torn=is_torn
        )
        if is_torn:
            self.out.next += self.capacity // MARGIN_SHARE
        if self.out.next - self.out.first > SPAN // 2:
            self.out.begin(generation)
        self._put_head(is_clean=False)
        return Found(int(np.count_nonzero(self.kept)), forgotten, is_new=False, is_torn=is_torn)

    def _load(self, ring: Ring, at_least: int, *, is_torn: bool) -> int:
        """Find out what is in a ring; returns how many of its pages could not be trusted."""
        ring.next = max(at_least, ring.first)
        forgotten = 0
        if ring.generation == NO_GENERATION:
            return 0
        for at in range(0, self.capacity, _CHUNK):
            count = min(_CHUNK, self.capacity - at)
            records = self._get_records(ring.base + at, count)
            serials = records[:, SERIAL]
            good = (ring.slots(serials) == np.arange(at, at + count)) & (records[:, SEAL] == _seal(ring, records))
            ours = (serials >= np.uint64(ring.first)) & (serials < np.uint64(ring.first + SPAN))
            good &= ours
            if is_torn and good.any():
                good &= self._are_whole(ring.base + at, records[:, DIGEST], good)
            forgotten += int(np.count_nonzero(ours)) - int(np.count_nonzero(good))
            ring.kept[at : at + count] = np.where(good, Kept.HELD, Kept.EMPTY)
            # Else the next start, which may find a clean close, would trust them.
            self._clear(np.flatnonzero(ours & ~good) + ring.base + at)
            ring.laps[at : at + count] = ring.lap(serials)
            if good.any():
                ring.next = max(ring.next, int(serials[good].max()) + 1)
                self._moment = max(self._moment, int(records[good, MOMENT].max()))
        if ring.next > ring.first:
            ring.drop_old()
        return forgotten

    def _clear(self, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            self._put(HEAD + slot * RECORD, bytes(RECORD))

    def _are_whole(self, at: int, digests: Numbers, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the pages from slot `at` on match their digests, of those that are asked for."""
        pages = memoryview(self._get(self._pages_at + at * PAGE, len(digests) * PAGE))
        whole = np.zeros(len(digests), np.bool_)
        for row in np.flatnonzero(which).tolist():
            whole[row] = digest(pages[row * PAGE : (row + 1) * PAGE]) == int(digests[row])
        return whole

    def _sealed(self, ring: Ring, first: int, digests: Numbers, keys: Numbers, domain: int) -> Numbers:
        self._moment += 1
        records = np.empty((len(digests), FIELDS), np.uint64)
        serials, digests_of, keys_of, domains, moments, seals = records.T
        serials[:] = np.arange(first, first + len(digests), dtype=np.uint64)
        digests_of[:], keys_of[:] = digests, keys
        domains.fill(domain)
        moments.fill(self._moment)
        seals[:] = _seal(ring, records)
        return records

    def _get_head(self) -> tuple[int, bytes, bytes, int, bytes, int] | None:
        """What the head says; None if it makes no sense, or is that of another capacity."""
        raw = self._get(0, _HEAD.size + 8)
        magic, capacity, marks, boot, out, out_next, incoming, in_next = _HEAD.unpack_from(raw)
        if (
            magic != _MAGIC
            or capacity != self.capacity
            or raw[_HEAD.size :] != digest(raw[: _HEAD.size]).to_bytes(8)
            or out == NO_GENERATION
        ):
            return None
        return marks, boot, out, out_next, incoming, in_next

    def _put_head(self, *, is_clean: bool) -> None:
        out, incoming = self.out, self.incoming
        rings = out.generation, out.next, incoming.generation, incoming.next
        marks = _CLEAN * is_clean | _TORN * self.was_torn | _KILLED * (self._was_killed and not is_clean)
        raw = _HEAD.pack(_MAGIC, self.capacity, marks, self._boot, *rings)
        self._put(0, raw + digest(raw).to_bytes(8))

    def _say_head(self) -> None:
        # If that fails, the next start finds generations that the other gateway no longer has: no harm.
        with contextlib.suppress(OSError):
            self._put_head(is_clean=False)

    def _get_records(self, at: int, count: int) -> Numbers:
        return np.frombuffer(self._get(HEAD + at * RECORD, count * RECORD), "<u8").astype(np.uint64).reshape(-1, FIELDS)

    def _to_disk(self, size: int) -> None:
        """Have what was written to the first bytes of the file, or to all of it (0), on the disk. Raises OSError."""
        with mmap.mmap(self._file.fileno(), size) as mapped:
            mapped.flush()

    def _get(self, offset: int, size: int) -> bytes:
        """Bytes of the file; zeros for what cannot be read."""
        found = b""
        with contextlib.suppress(OSError):
            self._file.seek(offset)
            while len(found) < size and (more := self._file.read(size - len(found))):
                found += more
        return found.ljust(size, b"\0")

    def _put_pages(self, at: int, pages: Sequence[Pages], part: slice) -> None:
        """Write a part of them to the slots from `at` on. Raises OSError."""
        for each in cut(pages, part):
            self._put(self._pages_at + at * PAGE, each)
            at += len(each)

    def _put(self, offset: int, data: bytes | NDArray[np.uint8] | Numbers) -> None:
        """Write to the file. Raises OSError."""
        left = memoryview(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).cast("B")
        self._file.seek(offset)
        while left:
            left = left[self._file.write(left) :]


def stretches(pages: Pages, rows: NDArray[np.intp]) -> list[Pages]:
    """Some of the pages, as `PageLog.write` wants them: without a copy, unless that would be many writes."""
    if len(rows) == len(pages):
        return [pages]
    gaps = (rows[1:] - rows[:-1] != 1).nonzero()[0] + 1
    if len(gaps) > _MOST_GAPS:
        return [pages[rows]]
    firsts, ends = rows[[0, *gaps]].tolist(), rows[[*(gaps - 1), -1]].tolist()
    return [pages[start : end + 1] for start, end in zip(firsts, ends, strict=True)]


def cut(pages: Sequence[Pages], part: slice) -> list[Pages]:
    """A part of the pages that stand in stretches, one behind the other, counted among all of them; without a copy."""
    found, start = list[Pages](), 0
    for each in pages:
        wanted = each[max(part.start - start, 0) : max(part.stop - start, 0)]
        if len(wanted):
            found.append(wanted)
        start += len(each)
    return found


def _seal(ring: Ring, records: Numbers) -> Numbers:
    """What the last field of records must be."""
    tag = np.uint64(int.from_bytes(ring.generation[8:]))
    seals: Numbers = records[:, :SEAL] @ _FACTORS + tag
    return seals
