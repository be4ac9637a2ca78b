"""What becomes of each page of a frame, by what the frame has already and by what the other gateway has."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from gateway.stream import delta
from gateway.stream.blob import MOST_PAGES, What
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
_MIXED = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))
_LAST_SHIFT = np.uint64(31)
_ROWS = np.arange(MOST_PAGES)
_NO_ROWS, _NO_NUMBERS = _ROWS[:0], np.empty(0, np.uint64)


class History(Protocol):
    """Both gateways' pages, as one of them holds them: what is needed here of `dedup.History`.

    All of a frame's pages at once, in arrays of n; a reference that is 0 means none. `keys`: see `keys_of`. `digests`: xxh3-64.
    """

    # For the encoder; a reference's ring is 0 for what this gateway has sent.

    def known_many(self, domain: int, digests: Numbers, keys: Numbers, pages: Pages) -> tuple[Numbers, Numbers]:
        """References to what the other gateway has within the domain: equal pages, and the last versions under the keys."""

    def read_many(self, references: Numbers) -> Pages | None:
        """The pages that references of ours mean."""

    def append(self, pages: Pages, digests: Numbers, keys: Numbers, domain: int) -> int | None:
        """Log new pages; the first one's serial, and the others follow. None: they are not logged."""

    def remember_many(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under the keys are what references of ours mean."""

    # For the decoder; a reference's ring is 0 for what the other gateway has sent.

    def read_many_from_peer(self, references: Numbers) -> Pages | None:
        """The pages that references of the other gateway mean; None if one is not held."""

    def store(self, first: int, pages: Pages, digests: Numbers, keys: Numbers, domain: int) -> None:
        """Log pages that the other gateway has sent, under its serials. Raises ProtocolError if these cannot be."""

    def remember_many_from_peer(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under the keys are what references of the other gateway mean."""


def keys_of(vm: int, keys: Numbers) -> Numbers:
    """The keys of a VM's pages among those of all VMs: different ones stay different (the finalizer of splitmix64)."""
    mixed = keys + np.uint64(vm * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in _MIXED:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> _LAST_SHIFT
    return mixed


def digests_of(pages: Pages) -> Numbers:
    """xxh3-64 of each page."""
    whole = memoryview(pages.reshape(-1).data)
    digests = b"".join([_digest(whole[at : at + PAGE]) for at in range(0, len(whole), PAGE)])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


class Sorted:
    """What becomes of the pages of one frame; `what` has a What for each."""

    def __init__(self, history: History, pages: Pages, keys: Numbers, domain: int) -> None:
        self._history = history
        self._pages = pages
        self._keys = keys
        self._domain = domain
        self._digests = digests_of(pages)
        self.what = np.full(len(pages), What.LITERAL, np.uint8)
        self._references = self._bases = _NO_NUMBERS
        self._repeated = _NO_ROWS
        self._differences: Pages | None = None
        rest = self._without_repeats()
        left = rows_of(pages, rest)
        if len(rest):
            digests, keys_of_rest = rows_of(self._digests, rest), rows_of(keys, rest)
            equal, last = history.known_many(domain, digests, keys_of_rest, left)
            whole = rest
            if np.count_nonzero(equal):
                rest, last = self._without_references(rest, equal), last[equal == 0]
            rest = self._without_deltas(rest, last)
            if len(rest) < len(whole):
                left = pages[rest]
        self._literals, self._raws = left, left[:0]
        are_random = look_random(left)
        if np.count_nonzero(are_random):
            self._raws, self._literals = left[are_random], left[~are_random]
            self.what[rest[are_random]] = What.RAW

    def _without_repeats(self) -> Rows:
        """Find the pages that are in the frame already, or zero; returns the others."""
        pages, digests, what = self._pages, self._digests, self.what
        everything = _ROWS[: len(pages)]
        seen = set(digests.tolist())
        if len(seen) == len(pages) and ZERO_DIGEST not in seen:
            return everything
        zeros = (digests == ZERO_DIGEST).nonzero()[0]
        what[zeros[~pages[zeros].any(axis=1)]] = What.ZERO
        if len(seen) < len(digests):
            _, firsts, which = np.unique(digests, return_index=True, return_inverse=True)
            same_as = firsts[which]
            again = ((same_as != everything) & (what != What.ZERO)).nonzero()[0]
            again = again[(pages[again].view(np.uint64) == pages[same_as[again]].view(np.uint64)).all(axis=1)]
            what[again] = What.REPEAT
            self._repeated = same_as[again]
        rest: Rows = (what == What.LITERAL).nonzero()[0]
        return rest

    def _without_references(self, rest: Rows, references: Numbers) -> Rows:
        """Take out the pages that the other gateway has; returns the others."""
        known = references != 0
        self.what[rest[known]] = What.REFERENCE
        self._references = references[known]
        left: Rows = rest[~known]
        return left

    def _without_deltas(self, rest: Rows, references: Numbers) -> Rows:
        """Find the pages of which the changes are enough; returns the others."""
        known = references.nonzero()[0]
        bases = self._history.read_many(references[known]) if len(known) else None
        if bases is None:
            return rest
        differences = delta.difference(rows_of(self._pages, rest[known]), bases)
        small = delta.are_small(differences).nonzero()[0]
        self._differences = rows_of(differences, small)
        self._bases = references[known[small]]
        self.what[rest[known[small]]] = What.DELTA
        is_left = np.ones(len(rest), np.bool_)
        is_left[known[small]] = False
        left: Rows = rest[is_left]
        return left

    @property
    def _has_duplicates(self) -> bool:
        return len(self._references) + len(self._repeated) > 0

    def log(self) -> tuple[int, int]:
        """Log what is sent, and remember what need not be; the first serial, and how many pages were logged."""
        sent = (self.what >= What.DELTA).nonzero()[0]
        first = None
        if len(sent):
            digests, keys = rows_of(self._digests, sent), rows_of(self._keys, sent)
            first = self._history.append(rows_of(self._pages, sent), digests, keys, self._domain)
        logged = 0 if first is None else len(sent)
        if self._has_duplicates:
            found = references_of(self.what, self._references, self._repeated, first or 0, logged)
            known = found.nonzero()[0]
            self._history.remember_many(self._keys[known], found[known])
        return first or 0, logged

    def columns(self) -> list[Payload]:
        """DUPLICATES and those that follow."""
        return [
            planes(steps(self._references)) + self._repeated.astype(np.uint8).tobytes()
            if self._has_duplicates
            else b"",
            b"" if self._differences is None else b"".join([planes(steps(self._bases)), self._differences.data]),
            self._literals.reshape(-1).data,
            self._raws.reshape(-1).data,
        ]


def rows_of(values: NDArray[_T], rows: Rows) -> NDArray[_T]:
    """Some of the pages, or of what belongs to them; no copy if it is all of them, as nearly always."""
    return values if len(rows) == len(values) else values[rows]


def references_of(what: NDArray[np.uint8], references: Numbers, repeated: Rows, first: int, logged: int) -> Numbers:
    """References of the frame's sender to its pages that were not sent, as REFERENCE or REPEAT; 0 for others, and for none.

    `references`: of REFERENCE pages. `repeated`: for REPEAT pages, which one they repeat.
    """
    found = np.zeros(len(what), np.uint64)
    found[what == What.REFERENCE] = references
    if len(repeated):
        sent = (what >= What.DELTA).nonzero()[0][:logged]
        found[sent] = np.arange(first, first + logged, dtype=np.uint64) << np.uint64(1)
        found[what == What.REPEAT] = found[repeated]
        found[sent] = 0
    return found
