"""The index of a page log: where the page may be that has a hash, of its contents or of its key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.stream.ring import Kept, Numbers

Slots = NDArray[np.intp]
_Rows = NDArray[np.intp]
_NO_ROWS: _Rows = np.empty(0, np.intp)

# A table's entry: tag of the hash (24 bits, the last of them 1, so that an empty entry is none's), lap of the slot (8), slot + 1 (32).
_WAYS = 8
_TAG, _LAP = np.uint64(40), np.uint64(32)
_IS_THERE = np.uint64(1 << 40)
_SLOT = np.uint64((1 << 32) - 1)
_ONE = np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)
# Hashes that may wait to be entered: of one frame it takes 85 us, of so many frames 20 us each.
_MOST_WAITING = 2048


class Index:
    """Hash -> slot: a set-associative table, which may forget and may err; 3 entries of 8 bytes per slot of the log.

    It has both kinds of hashes, of pages within their domains and of keys: that way all of a frame is looked up at once. What is to be
    entered waits until it is much, or something is looked up: a gateway that only receives hardly ever does.
    """

    def __init__(self, kept: NDArray[np.uint8], laps: NDArray[np.uint16]) -> None:
        """Of the slots of a page log, which go on to change."""
        self._kept, self._laps = kept, laps
        sets = max(len(kept) * 3 // _WAYS, 1)
        self._sets = np.uint64(sets)
        self._entries = _aligned(sets)
        self._waiting: list[tuple[Numbers, Slots]] = []
        self._waits = 0

    def clear(self) -> None:
        """Forget everything."""
        self._entries.fill(0)
        self._waiting.clear()
        self._waits = 0

    def look(self, hashes: Numbers) -> tuple[_Rows, Slots]:
        """Slots of pages that can be referred to, except for their age, and for which of the hashes each is; often there is none."""
        self._enter()
        mixed = hashes * _MIX
        ways = self._entries.take((mixed % self._sets).view(np.int64), axis=0)
        # Where tags are the same, their difference leaves what is below them.
        same = (ways ^ (mixed | _IS_THERE)[:, None]) < _IS_THERE
        if not np.count_nonzero(same):
            return _NO_ROWS, _NO_ROWS
        rows, columns = same.nonzero()
        entries = ways[rows, columns]
        live = self._are_live(entries)
        if not live.all():
            rows, entries = rows[live], entries[live]
        return rows, _slots(entries)

    def put(self, hashes: Numbers, slots: Slots) -> None:
        """Enter slots; of two with one hash, the later stays."""
        self._waiting.append((hashes, slots))
        self._waits += len(hashes)
        if self._waits >= _MOST_WAITING:
            self._enter()

    def _enter(self) -> None:
        if not self._waits:
            return
        hashes, slots = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._waits = 0
        mixed = hashes * _MIX
        sets = (mixed % self._sets).astype(np.intp)
        laps = self._laps[slots].astype(np.uint64) & np.uint64(255)
        entries = (mixed | _IS_THERE) >> _TAG << _TAG | laps << _LAP | (slots.astype(np.uint64) + np.uint64(1))
        # Of entries for one way, the last stays, and the others go on. More than fit into a set would only replace each other.
        for _ in range(_WAYS):
            ways = self._ways_for(sets, entries)
            self._entries[sets, ways] = entries
            lost = (self._entries[sets, ways] ^ entries) >= _IS_THERE
            if not lost.any():
                return
            sets, entries = sets[lost], entries[lost]

    def _ways_for(self, sets: _Rows, entries: Numbers) -> _Rows:
        """Where in its set each entry is to stand: in place of one with its hash, in an empty way, or instead of another."""
        ways = self._entries.take(sets, axis=0)
        same = _as_bytes((ways ^ entries[:, None]) < _IS_THERE)
        fit = np.where(same, same, _as_bytes(ways == 0))
        full = (fit == 0).nonzero()[0]
        if len(full):
            fit[full] = _as_bytes(~self._are_live(ways[full]))
            still = full[fit[full] == 0]
            fit[still] = _ONE << (entries[still] & np.uint64(_WAYS - 1)) * np.uint64(8)
        # How many bits are below its lowest byte.
        found: _Rows = (np.bitwise_count((fit & -fit) - _ONE) >> 3).astype(np.intp)
        return found

    def _are_live(self, entries: Numbers) -> NDArray[np.bool_]:
        slots = _slots(entries)
        laps = (entries >> _LAP).astype(np.uint8)
        live: NDArray[np.bool_] = (self._kept[slots] == Kept.COMMON) & (self._laps[slots].astype(np.uint8) == laps)
        return live


def _aligned(sets: int) -> Numbers:
    """An empty table of the shape (sets, _WAYS), each set in one line of the cache."""
    whole = np.zeros((sets + 1) * _WAYS, np.uint64)
    start = -whole.ctypes.data % (8 * _WAYS) // 8
    return whole[start : start + sets * _WAYS].reshape(sets, _WAYS)


def _as_bytes(which: NDArray[np.bool_]) -> Numbers:
    """For each set, a number with a byte for each of its ways, 1 or 0, the first way's the lowest."""
    return which.view("<u8").reshape(-1)


def _slots(entries: Numbers) -> Slots:
    """The slots of a table's entries; of an empty one, the last."""
    return (entries & _SLOT).astype(np.intp) - 1
