"""A frame without the contents of its pages: where its runs are, the headers that follow from them, and the bytes in between.

A run of hints is taken if its bytes are as it says: the headers of its records have addresses that go up by PAGE and the same flags,
and zero records are filled with zero. Then a header is its run's first header + i * PAGE, and need not be sent. Bytes of other runs,
and bytes without a hint, are the rest.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from gateway.stream.compress import from_planes, from_steps, planes, steps
from landbridge.errors import ProtocolError
from landbridge.frame import MAX_HINTS, Payload
from landbridge.hints import HEADERS, MOST_RUNS, NUMBER_BITS, PAGE, RUN, SIZES, Kind

Positions = NDArray[np.int64]
Numbers = NDArray[np.uint64]
_T = TypeVar("_T", bound=np.generic)

# A hint section, see landbridge.hints.
_HINT = np.dtype([("offset", ">u4"), ("count", ">u2"), ("kind", "u1"), ("zero", "u1"), ("key", ">u8")])
# As a run travels. `gap`: bytes between the run before and this one. `key`: of the first record, as a step from the key behind the
# last record of the run before. `header`: that of the first record minus what its key says, which leaves the flags; 0 without headers.
_TOLD = np.dtype([("gap", "<u4"), ("count", "<u2"), ("kind", "u1"), ("key", "<u8"), ("header", "<u8")])
TOLD_SIZE = _TOLD.itemsize

_TOLD_RUN = struct.Struct("<IHBQQ")
# Up to so many runs are worked on one at a time: one takes 20 us instead of 60 to encode; with 5, both ways take as long.
FEW = 4

# By kind as a plain number; an enum's members take longer to look up. In arrays: of what is no kind, 0.
SIZE = {int(kind): size for kind, size in SIZES.items()}
LEAD = {int(kind): size for kind, size in HEADERS.items()}
_SIZES, _LEADS = np.zeros((2, 256), np.int64)
_SIZES[list(SIZE)], _LEADS[list(LEAD)] = list(SIZE.values()), list(LEAD.values())
_PLAIN, _ZERO = int(Kind.PLAIN), int(Kind.ZERO)
_NUMBER = np.uint64((1 << NUMBER_BITS) - 1)
_PAGE = np.uint64(PAGE)
_U64 = (1 << 64) - 1
_NO_KEYS = np.empty(0, np.uint64)
# As many as a run may have records.
_COUNT = np.arange(1 << 16, dtype=np.uint64)
_PAGES = _COUNT * _PAGE
_HEADER = np.dtype(">u8")
_CONTENTS = np.dtype(f"V{PAGE}")


class Skeleton:
    """Runs of a payload of `length` bytes, in order, which lie in it. `keys` are those of their pages."""

    def __init__(self, length: int, runs: int, rest_size: int, zero_records: int, keys: Numbers) -> None:
        """`rest_size`: bytes of the rest. `zero_records`: how many records are of ZERO runs."""
        self.length, self.runs, self.rest_size = length, runs, rest_size
        self.zero_records, self.keys = zero_records, keys

    # The encoder's

    @staticmethod
    def of(payload: memoryview, hints: Payload) -> Skeleton:
        """What a hint section says of a payload, as far as it is true; nothing, if it is not a hint section."""
        if len(hints) <= FEW * RUN.size:
            return _Few.true(payload, hints)
        return _Many.true(payload, hints)

    def copy_pages(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        """Copy the pages to an array of the shape (n, PAGE)."""
        raise NotImplementedError

    def rest(self, payload: memoryview) -> Payload:
        """The rest of the payload."""
        if not self.runs:
            return payload
        return b"".join([payload[start:end] for start, end in self._gaps()]) if self.rest_size else b""

    def encode(self) -> bytes:
        """The runs as they travel, TOLD_SIZE bytes for each."""
        raise NotImplementedError

    # The decoder's

    @staticmethod
    def decode(told: Payload, length: int) -> Skeleton:
        """The runs again, of a payload of `length` bytes; `told` is a whole number of them. Raises ProtocolError."""
        return (_Few if len(told) <= FEW * TOLD_SIZE else _Many).told(told, length)

    def payload(self, pages: NDArray[np.uint8], rest: Payload) -> memoryview:
        """The payload again; `rest` has rest_size bytes."""
        found = memoryview(bytearray(self.length))
        at, left = 0, memoryview(rest)
        for start, end in self._gaps() if self.rest_size else ():
            found[start:end] = left[at : at + end - start]
            at += end - start
        self._fill(found, pages)
        return found

    def _fill(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        """Put headers and pages where they belong."""
        raise NotImplementedError

    def _ends_of_runs(self) -> tuple[list[int], list[int]]:
        """Where each begins, and where it ends."""
        raise NotImplementedError

    def _gaps(self) -> list[tuple[int, int]]:
        """Where the rest is."""
        offsets, ends_of = self._ends_of_runs()
        starts, ends = [0, *ends_of], [*offsets, self.length]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


class _Run(NamedTuple):
    """A run of records; `header` as of the first of them."""

    offset: int
    records: int
    kind: int
    key: int
    header: int

    def headers(self, payload: memoryview) -> NDArray[np.uint64]:
        """A view of the headers in a payload; of a PLAIN run, which has none, an empty one."""
        return np.ndarray(self.records * (self.kind != _PLAIN), _HEADER, payload, self.offset, (SIZE[self.kind],))

    def contents(self, payload: memoryview) -> NDArray[np.uint8]:
        """A view of its pages in a payload."""
        return np.ndarray((self.records, PAGE), np.uint8, payload, self.offset + LEAD[self.kind], (SIZE[self.kind], 1))

    def follow(self) -> Numbers:
        """What its headers are."""
        return _PAGES[: self.records] + np.uint64(self.header)

    def is_true(self, payload: memoryview) -> bool:
        """Whether the bytes of a payload are as it says."""
        if self.kind == _PLAIN:
            return True
        if self.kind == _ZERO and np.ndarray(self.records, np.uint8, payload, self.offset + 8, (SIZE[_ZERO],)).any():
            return False
        firsts = self.headers(payload) - _PAGES[: self.records]
        return firsts.tobytes() == self.header.to_bytes(8, "little") * self.records


class _Few(Skeleton):
    """Runs, one at a time: quicker for so few, and most frames have one or two."""

    def __init__(self, length: int, runs: list[_Run]) -> None:
        self._runs, self._pages = runs, list[_Run]()
        rest, zeros, keys = length, 0, []
        for run in runs:
            rest -= run.records * SIZE[run.kind]
            if run.kind == _ZERO:
                zeros += run.records
            else:
                self._pages.append(run)
                keys.append(_COUNT[: run.records] + np.uint64(run.key))
        super().__init__(
            length, len(runs), rest, zeros, keys[0] if len(keys) == 1 else np.concatenate([_NO_KEYS, *keys])
        )

    @classmethod
    def true(cls, payload: memoryview, hints: Payload) -> Self:
        """See `of`."""
        runs, at = list[_Run](), 0
        if len(hints) % RUN.size:
            return cls(len(payload), [])
        for offset, count, kind, zero, key in RUN.iter_unpack(hints):
            end = offset + count * SIZE.get(kind, 0)
            if zero or not at <= offset < end <= len(payload):
                return cls(len(payload), [])
            runs.append(_Run(offset, count, kind, key, int.from_bytes(payload[offset : offset + 8])))
            at = end
        return cls(len(payload), [run for run in runs if run.is_true(payload)])

    def copy_pages(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        at = 0
        for run in self._pages:
            pages[at : at + run.records] = run.contents(payload)
            at += run.records

    def encode(self) -> bytes:
        parts = []
        end = before = last = 0
        for run in self._runs:
            step = _signed(run.key - before - last)
            last = run.key - before
            header = 0 if run.kind == _PLAIN else run.header - _address(run.key)
            key = (step << 1 ^ step >> 63) & _U64
            parts.append(_TOLD_RUN.pack(run.offset - end, run.records, run.kind, key, header & _U64))
            end = run.offset + run.records * SIZE[run.kind]
            before += run.records
        whole = b"".join(parts)
        return whole if len(parts) < 2 else b"".join([whole[at::TOLD_SIZE] for at in range(TOLD_SIZE)])

    @classmethod
    def told(cls, told: Payload, length: int) -> Self:
        """See `decode`."""
        whole, count = bytes(told), len(told) // TOLD_SIZE
        runs = list[_Run]()
        end = before = last = 0
        for at in range(count):
            gap, records, kind, step, header = _TOLD_RUN.unpack(whole[at::count])
            if kind not in SIZE or not records:
                raise ProtocolError("a coded frame has runs that cannot be")
            last = last + (step >> 1 ^ -(step & 1)) & _U64
            key = last + before & _U64
            runs.append(_Run(end + gap, records, kind, key, header + _address(key) & _U64))
            end += gap + records * SIZE[kind]
            before += records
        if end > length:
            raise ProtocolError("a coded frame has runs that go beyond its end")
        return cls(length, runs)

    def _fill(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        at = 0
        for run in self._runs:
            if run.kind != _PLAIN:
                run.headers(payload)[:] = run.follow()
            if run.kind != _ZERO:
                run.contents(payload)[:] = pages[at : at + run.records]
                at += run.records

    def _ends_of_runs(self) -> tuple[list[int], list[int]]:
        offsets = [run.offset for run in self._runs]
        return offsets, [run.offset + run.records * SIZE[run.kind] for run in self._runs]


class _Many(Skeleton):
    """Runs in arrays, one of each field: everything works on all records at once."""

    def __init__(
        self,
        length: int,
        offsets: Positions,
        counts: Positions,
        kinds: NDArray[np.uint8],
        keys: Numbers,
        headers: Numbers,
    ) -> None:
        self._offsets, self._counts, self._kinds, self._keys, self._headers = offsets, counts, kinds, keys, headers
        sizes = _SIZES[kinds]
        lengths = counts * sizes
        self._starts, self._ends = counts.cumsum() - counts, offsets + lengths
        # For each record: its number within its run, where it begins, and its key.
        within = np.arange(int(counts.sum())) - self._spread(self._starts)
        at = self._spread(offsets) + within * self._spread(sizes)
        steps_of = within.view(np.uint64)
        keys_of = self._spread(keys) + steps_of
        is_headed, is_zero = self._records(kinds != _PLAIN), self._records(kinds == _ZERO)
        is_page = self._records(kinds != _ZERO)
        self._header_at = at[is_headed]
        self._header_of = (self._spread(headers) + steps_of * _PAGE)[is_headed]
        self._zero_at = at[is_zero]
        # Of pages: where their contents begin, and their keys.
        self._page_at = (at + self._spread(_LEADS[kinds]))[is_page]
        super().__init__(length, len(counts), length - int(lengths.sum()), len(self._zero_at), keys_of[is_page])

    def _spread(self, of_runs: NDArray[_T]) -> NDArray[_T]:
        """What belongs to a run, for each of its records; of a single run it is left to numpy, which broadcasts it."""
        return of_runs if len(of_runs) == 1 else of_runs.repeat(self._counts)

    def _records(self, are: NDArray[np.bool_]) -> NDArray[np.bool_] | slice:
        """The records of such runs, as an index; that of all or none, as nearly always, takes no time."""
        count = np.count_nonzero(are)
        if count in {0, len(are)}:
            return slice(None) if count else slice(0)
        return self._spread(are)

    @classmethod
    def true(cls, payload: memoryview, hints: Payload) -> Self:
        """See `of`."""
        runs = _runs_of(hints, len(payload))
        found = cls._over(payload, runs)
        wrong = found.wrong_runs(payload)
        return found if wrong is None else cls._over(payload, runs[~wrong])

    @classmethod
    def _over(cls, payload: memoryview, runs: NDArray[np.void]) -> Self:
        offsets, kinds, keys = runs["offset"].astype(np.int64), runs["kind"], runs["key"].astype(np.uint64)
        # Of runs without headers it is the beginning of a page, and not used.
        headers = _header_view(payload)[offsets].astype(np.uint64)
        return cls(len(payload), offsets, runs["count"].astype(np.int64), kinds, keys, headers)

    def wrong_runs(self, payload: memoryview) -> NDArray[np.bool_] | None:
        """Which of the runs are not as the bytes of the payload; None if all are."""
        differs = _header_view(payload)[self._header_at] != self._header_of
        filled = np.frombuffer(payload, np.uint8)[self._zero_at + 8] != 0
        if not differs.any() and not filled.any():
            return None
        wrong = np.zeros(self.runs, np.bool_)
        run_of = np.arange(self.runs).repeat(self._counts)
        for are, which in ((self._kinds != _PLAIN, differs), (self._kinds == _ZERO, filled)):
            wrong[run_of[are[run_of]][which]] = True
        return wrong

    def copy_pages(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        pages.reshape(-1).view(_CONTENTS)[:] = _contents_view(payload)[self._page_at]

    def encode(self) -> bytes:
        told = np.empty(self.runs, _TOLD)
        told["gap"] = self._offsets
        told["gap"][1:] -= self._ends[:-1].astype("<u4")
        told["count"], told["kind"] = self._counts, self._kinds
        # Without the records, keys of runs go on where the one before has ended.
        told["key"] = steps(self._keys - self._starts.astype(np.uint64))
        told["header"] = (self._headers - _addresses(self._keys)) * (self._kinds != _PLAIN)
        return planes(told)

    @classmethod
    def told(cls, told: Payload, length: int) -> Self:
        """See `decode`."""
        runs = from_planes(told, _TOLD)
        gaps, counts, kinds = runs["gap"].astype(np.int64), runs["count"].astype(np.int64), runs["kind"].copy()
        lengths = counts * _SIZES[kinds]
        if len(runs) > MOST_RUNS or not lengths.all():
            raise ProtocolError("a coded frame has runs that cannot be")
        ends = np.cumsum(gaps + lengths)
        if len(runs) and ends[-1] > length:
            raise ProtocolError("a coded frame has runs that go beyond its end")
        before = np.cumsum(counts) - counts
        keys = from_steps(runs["key"]) + before.astype(np.uint64)
        return cls(length, ends - lengths, counts, kinds, keys, runs["header"] + _addresses(keys))

    def _fill(self, payload: memoryview, pages: NDArray[np.uint8]) -> None:
        _header_view(payload)[self._header_at] = self._header_of
        _contents_view(payload)[self._page_at] = np.ascontiguousarray(pages).reshape(-1).view(_CONTENTS)

    def _ends_of_runs(self) -> tuple[list[int], list[int]]:
        return self._offsets.tolist(), self._ends.tolist()


def _runs_of(hints: Payload, length: int) -> NDArray[np.void]:
    """The runs of a hint section, as `landbridge.hints.decode`, but quicker; none, if that raises."""
    none = np.empty(0, _HINT)
    if len(hints) % _HINT.itemsize or len(hints) > MAX_HINTS:
        return none
    runs = np.frombuffer(hints, _HINT)
    if not len(runs):
        return none
    offsets = runs["offset"].astype(np.int64)
    lengths = runs["count"] * _SIZES[runs["kind"]]
    ends = offsets + lengths
    is_good = lengths.all() and not runs["zero"].any() and ends[-1] <= length and (offsets[1:] >= ends[:-1]).all()
    return runs if is_good else none


# A payload as if at each of its bytes a header began, or a page: numpy then gathers and scatters them by where they are.


def _header_view(payload: memoryview) -> NDArray[np.uint64]:
    return np.ndarray(max(len(payload) - 7, 0), ">u8", payload, strides=(1,))


def _contents_view(payload: memoryview) -> NDArray[np.void]:
    return np.ndarray(max(len(payload) - PAGE + 1, 0), _CONTENTS, payload, strides=(1,))


def _addresses(keys: Numbers) -> Numbers:
    return (keys & _NUMBER) * _PAGE


def _address(key: int) -> int:
    return (key & (1 << NUMBER_BITS) - 1) * PAGE


def _signed(number: int) -> int:
    """A number modulo 1 << 64, from -(1 << 63) on."""
    return (number + (1 << 63) & _U64) - (1 << 63)
