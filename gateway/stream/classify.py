"""What becomes of each page of a frame, by what the frame has already and by what the other gateway has.

Several frames are worked on at once, for numpy takes hardly longer for the pages of four than for those of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import add
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from gateway.stream import delta
from gateway.stream.blob import MOST_PAGES, MOST_TOGETHER, What
from gateway.stream.compress import look_random, planes, steps
from gateway.stream.page_log import Pages
from gateway.stream.ring import Numbers
from landbridge.frame import Payload
from landbridge.hints import PAGE

Rows = NDArray[np.intp]
_T = TypeVar("_T", bound=np.generic)

# By itself, as a function of ours around it takes longer than to look at a page.
_digest = xxhash.xxh3_64_digest
ZERO_DIGEST = int.from_bytes(_digest(bytes(PAGE)))
_FACTOR, _HALF = np.uint64(0xBF58476D1CE4E5B9), np.uint64(32)
_ROWS = np.arange(MOST_TOGETHER * MOST_PAGES)
_PARTS = [slice(at, at + PAGE) for at in range(0, MOST_PAGES * PAGE, PAGE)]
_NO_ROWS, _NO_NUMBERS = _ROWS[:0], np.empty(0, np.uint64)


class History(Protocol):
    """Both gateways' pages, as one of them holds them: what is needed here of `dedup.History`.

    All of a frame's pages at once, in arrays of n; a reference that is 0 means none. `keys`: see `keys_of`. `digests`: xxh3-64.
    """

    # For the encoder; a reference's ring is 0 for what this gateway has sent.

    @property
    def margin(self) -> int:
        """Pages that may be logged without overwriting what is referred to at the same time."""

    def known_many(self, domain: int, digests: Numbers, keys: Numbers, pages: Pages) -> tuple[Numbers, Numbers]:
        """References to what the other gateway has within the domain: equal pages, and the last versions under the keys."""

    def read_many(self, references: Numbers) -> Pages | None:
        """The pages that references of ours mean."""

    def append(self, pages: Pages, rows: Rows, digests: Numbers, keys: Numbers, domain: int) -> int | None:
        """Log some of the pages as new; the first one's serial, and the others follow. None: they are not logged.

        `rows` (n): which, in order; `digests` and `keys` are theirs.
        """

    def remember_many(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under the keys are what references of ours mean."""

    # For the decoder; a reference's ring is 0 for what the other gateway has sent.

    def read_many_from_peer(self, references: Numbers) -> Pages | None:
        """The pages that references of the other gateway mean; None if one is not held."""

    def store(self, first: int, pages: Sequence[Pages], digests: Numbers, keys: Numbers, domain: int) -> None:
        """Log pages that the other gateway has sent, under its serials. Raises ProtocolError if these cannot be.

        `pages`: in stretches, one behind the other; `digests` and `keys` (n) are of all of them.
        """

    def remember_many_from_peer(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under the keys are what references of the other gateway mean."""


def keys_of(vm: int, keys: Numbers) -> Numbers:
    """The keys of a VM's pages among those of all VMs: different ones stay different, and nothing is left of their order."""
    mixed = keys + np.uint64(vm * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed *= _FACTOR
    mixed ^= mixed >> _HALF
    return mixed


def digests_of(pages: Pages) -> Numbers:
    """xxh3-64 of each of the pages of a frame."""
    whole = memoryview(pages.reshape(-1).data)
    digests = b"".join(map(_digest, map(whole.__getitem__, _PARTS[: len(pages)])))
    return np.frombuffer(digests, ">u8").astype(np.uint64)


class Share(NamedTuple):
    """What one frame has of all that was sorted."""

    # A What for each page, and how many there are of each.
    what: bytes
    counts: list[int]
    # Its pages' digests.
    digests: Numbers
    # The serial of its first page that was logged, and how many were.
    first: int
    logged: int
    # DUPLICATES and those that follow.
    columns: list[Payload]


class Sorted:
    """What becomes of the pages of some frames, one behind the other; `what` has a What for each."""

    def __init__(
        self, history: History, pages: Pages, digests: Numbers, keys: Numbers, domain: int, ends: Sequence[int]
    ) -> None:
        """`ends`: for each frame, how many of the pages are in it and in those before."""
        self._history = history
        self._pages = pages
        self._keys = keys
        self._domain = domain
        self._ends = ends
        self._digests = digests
        self.what = np.full(len(pages), What.LITERAL, np.uint8)
        self._references = self._bases = _NO_NUMBERS
        self._repeated = self._slight = _NO_ROWS
        self._differences = pages[:0]
        is_mixed = self._find_repeats()
        equal, last = history.known_many(domain, self._digests, keys, pages)
        if np.count_nonzero(equal):
            self._find_references(equal)
            is_mixed = True
        if np.count_nonzero(last):
            self._find_deltas(last)
            is_mixed = True
        self._find_random(is_mixed=is_mixed)

    def _find_repeats(self) -> bool:
        """Find the pages that are in their frame already, or zero; returns whether there may be any."""
        pages, told = self._pages, self._digests.tolist()
        zeros, again, same_as = list[int](), list[int](), list[int]()
        # A frame is decoded alone: what another one has is none of its business.
        for start, end in itertools.pairwise([0, *self._ends]):
            seen = set(told[start:end])
            if ZERO_DIGEST in seen:
                zeros += [row for row in range(start, end) if told[row] == ZERO_DIGEST and not pages[row].any()]
            if len(seen) < end - start:
                firsts = dict(zip(reversed(told[start:end]), range(end - 1, start - 1, -1), strict=True))
                repeating = [row for row in range(start, end) if firsts[told[row]] != row and told[row] != ZERO_DIGEST]
                again += repeating
                same_as += [firsts[told[row]] for row in repeating]
        if zeros:
            self.what[zeros] = What.ZERO
        if again:
            rows, firsts_of = np.array(again), np.array(same_as)
            are_same = (pages[rows].view(np.uint64) == pages[firsts_of].view(np.uint64)).all(axis=1)
            self.what[rows[are_same]] = What.REPEAT
            self._repeated = firsts_of[are_same]
        return bool(zeros or again)

    def _find_references(self, references: Numbers) -> None:
        """Find the pages that the other gateway has."""
        known = (references * (self.what == What.LITERAL)).nonzero()[0]
        self.what[known] = What.REFERENCE
        self._references = rows_of(references, known)

    def _find_deltas(self, references: Numbers) -> None:
        """Find the pages of which the changes are enough."""
        known = (references * (self.what == What.LITERAL)).nonzero()[0]
        bases = self._history.read_many(rows_of(references, known)) if len(known) else None
        if bases is None:
            return
        differences = delta.difference(rows_of(self._pages, known), bases)
        changed = delta.changed_words(differences)
        small = (changed <= delta.MOST_CHANGED).nonzero()[0]
        self._differences = rows_of(differences, small)
        self._bases = references[known[small]]
        self.what[known[small]] = What.DELTA
        self._slight = known[changed <= delta.SLIGHTLY_CHANGED]

    def _find_random(self, *, is_mixed: bool) -> None:
        """Find the pages that would spoil how well the others compress."""
        rest = (self.what == What.LITERAL).nonzero()[0] if is_mixed else _ROWS[: len(self.what)]
        if len(rest) == len(self.what):
            are_random = look_random(self._pages, None, self._ends)
        else:
            are_random = look_random(self._pages, rest, np.searchsorted(rest, self._ends).tolist())
        if np.count_nonzero(are_random):
            self.what[rest[are_random]] = What.RAW

    def log(self) -> list[Share]:
        """Log what is sent, and remember what need not be; what that leaves for each frame."""
        rows, counts = self._worth_logging()
        first = None
        if len(rows):
            digests, keys = rows_of(self._digests, rows), rows_of(self._keys, rows)
            first = self._history.append(self._pages, rows, digests, keys, self._domain)
        if first is None:
            rows, counts, first = rows[:0], [0] * len(counts), 0
        if len(self._references) or len(self._repeated):
            found = references_of(self.what, self._references, self._repeated, first, rows)
            known = found.nonzero()[0]
            self._history.remember_many(self._keys[known], found[known])
        return self._shares(first, counts)

    def _worth_logging(self) -> tuple[Rows, list[int]]:
        """Which pages are to be logged, and how many of each frame: the first so many of those that are sent.

        Those behind the last that is new, or has changed by more than a few words, are not: a guest that writes the same pages again and
        again would fill the log with versions that hardly differ.
        """
        sent = (self.what >= What.DELTA).nonzero()[0]
        bounds = [0, *np.searchsorted(sent, self._ends).tolist()]
        if not len(self._slight):
            return sent, [end - start for start, end in itertools.pairwise(bounds)]
        is_worth = np.ones(len(self.what), np.bool_)
        is_worth[self._slight] = False
        # One behind the last of each frame, or its beginning.
        behind = np.maximum.accumulate(np.where(is_worth[sent], np.arange(1, len(sent) + 1), 0))
        upto = [max(start, int(behind[end - 1])) if end > start else start for start, end in itertools.pairwise(bounds)]
        parts = [sent[start:end] for start, end in zip(bounds, upto, strict=False)]
        return np.concatenate(parts), list(map(len, parts))

    def _shares(self, first: int, logged: Sequence[int]) -> list[Share]:
        """Divide all by frames; `first`: the first serial, `logged`: how many pages of each frame have one."""
        whole, shares = self.what.tobytes(), []
        start, at = 0, [0] * What.ALL
        for end, count in zip(self._ends, logged, strict=True):
            what = whole[start:end]
            counts = [what.count(kind) for kind in range(What.ALL)]
            upto = list(map(add, at, counts))
            columns = self._columns(start, end, counts, list(map(slice, at, upto)))
            shares.append(Share(what, counts, self._digests[start:end], first if count else 0, count, columns))
            start, at, first = end, upto, first + count
        return shares

    def _columns(self, start: int, end: int, counts: list[int], parts: list[slice]) -> list[Payload]:
        """DUPLICATES and those that follow of the frame that has the pages from `start` to `end`.

        `parts`: which it has of those of each What, counted in all frames.
        """
        duplicates = deltas = b""
        if counts[What.REFERENCE] or counts[What.REPEAT]:
            repeated = self._repeated[parts[What.REPEAT]] - start
            duplicates = planes(steps(self._references[parts[What.REFERENCE]])) + repeated.astype(np.uint8).tobytes()
        if counts[What.DELTA]:
            bases, differences = self._bases[parts[What.DELTA]], self._differences[parts[What.DELTA]]
            deltas = b"".join([planes(steps(bases)), differences.data])
        return [duplicates, deltas, *(self._whole(start, end, kind, counts) for kind in (What.LITERAL, What.RAW))]

    def _whole(self, start: int, end: int, kind: int, counts: list[int]) -> Payload:
        """The pages of one kind that a frame has, of which there are so many."""
        pages = self._pages[start:end]
        if not counts[kind]:
            return b""
        if counts[kind] < len(pages):
            pages = pages[self.what[start:end] == kind]
        return pages.reshape(-1).data


def rows_of(values: NDArray[_T], rows: Rows) -> NDArray[_T]:
    """Some of the pages, or of what belongs to them; no copy if it is all of them, as nearly always."""
    return values if len(rows) == len(values) else values[rows]


def references_of(what: NDArray[np.uint8], references: Numbers, repeated: Rows, first: int, logged: Rows) -> Numbers:
    """References of the frame's sender to its pages that were not sent, as REFERENCE or REPEAT; 0 for others, and for none.

    `references`: of REFERENCE pages. `repeated`: for REPEAT pages, which one they repeat. `logged`: which pages have the serials from
    `first` on.
    """
    found = np.zeros(len(what), np.uint64)
    found[what == What.REFERENCE] = references
    if len(repeated):
        found[logged] = np.arange(first, first + len(logged), dtype=np.uint64) << np.uint64(1)
        found[what == What.REPEAT] = found[repeated]
        found[logged] = 0
    return found
