"""One direction of a page log: a ring of slots, and which serials of which generation are in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

GENERATION = 16
NO_GENERATION = bytes(GENERATION)
# A generation has so many serials: 4 PiB of pages.
SPAN = 1 << 40
# A sender refers to none of the oldest 1/8 of a ring: frames that are still under way may overwrite them.
MARGIN_SHARE = 8


class Kept:
    """What a slot is good for, and all before it; as numpy's numbers, which need no conversion."""

    EMPTY = np.uint8(0)
    # The other gateway may refer to it.
    HELD = np.uint8(1)
    # We may too: the other gateway holds it as well, or did when it last spoke of it.
    COMMON = np.uint8(2)


def first_of(generation: bytes) -> int:
    """The first serial of a generation; at least 1 << 40 and below 1 << 62, so that a reference fits into a u64."""
    return ((int.from_bytes(generation[:8]) >> 42) or 1) * SPAN


class Ring:
    """One direction: which serials are there. `base` is its first slot among those of both rings."""

    def __init__(self, base: int, kept: NDArray[np.uint8], laps: NDArray[np.uint16]) -> None:
        self.base = base
        self.capacity = len(kept)
        self.generation = NO_GENERATION
        # The serial behind the newest.
        self.next = 0
        # For each slot: what it is good for, and serial // capacity, of which the lower 16 bits are enough.
        self.kept = kept
        self.laps = laps

    @property
    def first(self) -> int:
        """The first serial of its generation."""
        return first_of(self.generation) if self.generation != NO_GENERATION else 0

    def oldest(self, window: int) -> int:
        """The first serial that can be in a window of so many pages."""
        return max(self.first, self.next - window)

    def drop_old(self) -> None:
        """Empty the slots of what is older than a round, which nothing newer has overwritten."""
        there = self.window(Kept.HELD)
        kept = self.kept.copy()
        self.kept.fill(Kept.EMPTY)
        for at, part in self.parts(self.oldest(self.capacity), len(there)):
            row = slice(at - self.base, at - self.base + part.stop - part.start)
            self.kept[row] = kept[row] * there[part]

    def begin(self, generation: bytes) -> None:
        """Forget everything, and start a generation."""
        self.generation = generation
        self.next = self.first
        self.kept.fill(Kept.EMPTY)

    def slots(self, serials: Numbers) -> NDArray[np.intp]:
        """The slots of serials, counted from the first of the ring."""
        return (serials % np.uint64(self.capacity)).astype(np.intp)

    def lap(self, serials: Numbers) -> NDArray[np.uint16]:
        """In which round of the ring a serial stands."""
        return (serials // np.uint64(self.capacity)).astype(np.uint16)

    def serials(self, slots: NDArray[np.intp]) -> Numbers:
        """The newest serials that can stand in slots; there must be a generation."""
        last = self.next - 1
        return np.uint64(last) - (np.uint64(last) - slots.astype(np.uint64)) % np.uint64(self.capacity)

    def are(self, least: np.uint8, serials: Numbers) -> NDArray[np.bool_]:
        """Which of these serials are there, and good for `least`."""
        near = (serials >= np.uint64(self.oldest(self.capacity))) & (serials < np.uint64(self.next))
        slots = self.slots(serials)
        there: NDArray[np.bool_] = near & (self.kept[slots] >= least) & (self.laps[slots] == self.lap(serials))
        return there

    def window(self, least: np.uint8) -> NDArray[np.bool_]:
        """The same of all serials from `oldest(capacity)` to the newest."""
        oldest = self.oldest(self.capacity)
        there = np.zeros(self.next - oldest, np.bool_)
        for at, part in self.parts(oldest, len(there)):
            row = slice(at - self.base, at - self.base + part.stop - part.start)
            # Such a row of slots is of one lap.
            lap = np.uint16((oldest + part.start) // self.capacity & 0xFFFF)
            there[part] = (self.kept[row] >= least) & (self.laps[row] == lap)
        return there

    def ranges(self, least: np.uint8) -> list[tuple[int, int]]:
        """The serials that are good for `least`, in order, each range as (first, behind the last)."""
        oldest = self.oldest(self.capacity)
        return [(oldest + start, oldest + end) for start, end in runs(self.window(least))]

    def parts(self, first: int, count: int) -> Iterator[tuple[int, slice]]:
        """Serials in a row, as rows of slots: the first one's number among both rings, and which of the serials those are."""
        at = first % self.capacity
        split = min(count, self.capacity - at)
        if split:
            yield self.base + at, slice(0, split)
        if split < count:
            yield self.base, slice(split, count)


def runs(which: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The stretches that are true, each as (first, behind the last)."""
    if which.all():
        return [(0, len(which))] if len(which) else []
    edges = np.flatnonzero(np.diff(which.view(np.int8), prepend=np.int8(0), append=np.int8(0))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
