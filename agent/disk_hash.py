"""Hashing a disk as one end of a migration has stored it: extents in, the nodes of `landbridge.disk_tree` out. For worker threads.

A hole is never read. Reading is held to a rate, for the guest's own reads and writes go to the same storage.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from agent.hypervisor.base import DiskView, Extent
from landbridge import disk_tree
from landbridge.disk_tree import BLOCK, OUT, ZERO, Builder, Run
from landbridge.v1.agent_pb2 import HashedDisk

# Blocks that are read at once: 4 MiB.
PIECE = 64


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The reading was stopped."""


class Meter:
    """How far a reading is, and how fast it may go. Written by its thread; `stop` may be called by any."""

    def __init__(self, rate: int) -> None:
        """`rate` in bytes per second; 0 is as fast as it goes."""
        self.total = 0
        self.done = 0
        self._rate = rate
        self._read = 0
        self._began = time.monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have the reading end soon."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stopped.is_set()

    def passed(self, count: int, *, read: bool) -> None:
        """So many bytes are done; waits where they were read too fast. Raises Stopped."""
        self.done += count
        if read:
            self._read += count
        ahead = self._read / self._rate - (time.monotonic() - self._began) if self._rate else 0.0
        if self._stopped.wait(ahead) if ahead > 0 else self._stopped.is_set():
            raise Stopped


def written(view: DiskView, most: int) -> list[Run]:
    """The blocks of a disk that the guest has written to, at most so many runs: rather too many blocks than one too few."""
    grown: list[Run] = []
    for extent in view.extents():
        if extent.written:
            first, end = extent.offset // BLOCK, disk_tree.blocks_of(extent.offset + extent.length)
            if grown and first <= grown[-1].end:
                grown[-1] = Run(grown[-1].first, max(end, grown[-1].end) - grown[-1].first)
            else:
                grown.append(Run(first, end - first))
    return disk_tree.joined(grown, most)


def hash_disk(view: DiskView, left_out: Sequence[Run], meter: Meter) -> HashedDisk:
    """Its nodes. Raises HypervisorError, or Stopped."""
    blocks = disk_tree.blocks_of(view.size)
    builder = Builder(blocks)
    for run, leaf in _planned(blocks, left_out, _holes(view.extents(), view.size)):
        if leaf is not None:
            builder.add(leaf, run.count)
            meter.passed(_length(view, run), read=False)
            continue
        for first in range(run.first, run.end, PIECE):
            piece = Run(first, min(PIECE, run.end - first))
            length = _length(view, piece)
            data = memoryview(view.read(first * BLOCK, length))
            for at in range(0, length, BLOCK):
                builder.add(disk_tree.leaf(data[at : at + BLOCK]))
            meter.passed(length, read=True)
    return HashedDisk(target=view.target, size=view.size, nodes=builder.nodes())


def _length(view: DiskView, run: Run) -> int:
    return min(run.end * BLOCK, view.size) - run.first * BLOCK


def _holes(extents: Iterable[Extent], size: int) -> Iterator[Run]:
    """The blocks all of which are zeros, by what is said of them."""
    begin = end = 0
    for extent in chain(extents, [Extent(size, 0)]):
        if extent.zero and extent.offset == end:
            end += extent.length
            continue
        first, behind = disk_tree.blocks_of(begin), disk_tree.blocks_of(end) if end == size else end // BLOCK
        if behind > first:
            yield Run(first, behind - first)
        begin = extent.offset if extent.zero else extent.offset + extent.length
        end = extent.offset + extent.length


def _planned(blocks: int, left_out: Sequence[Run], holes: Iterable[Run]) -> Iterator[tuple[Run, bytes | None]]:
    """Every block once, in order: those that are left out, of the others the holes, and None in the place of a leaf for what is read."""
    waiting, at = deque(holes), 0
    for out in (*left_out, Run(blocks, 0)):
        while at < out.first:
            while waiting and waiting[0].end <= at:
                waiting.popleft()
            hole = waiting[0] if waiting else Run(out.first, 0)
            if hole.first > at:
                end = min(hole.first, out.first)
                yield Run(at, end - at), None
            else:
                end = min(hole.end, out.first)
                yield Run(at, end - at), ZERO
            at = end
        if out.count:
            yield out, OUT
            at = out.end
