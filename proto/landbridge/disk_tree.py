"""The Merkle tree over a disk's blocks, as both ends of a migration make it to compare what they have stored. Pure.

    blocks    BLOCK bytes each, the last one filled up with zeros
    leaves    BLAKE3 of a block, keyed with LEAF; of blocks that are left out, OUT in its place; after the last block, PAD
    nodes     BLAKE3 of two children, keyed with NODE; those of one level, at most MOST_NODES of them, are what is sent
    root      of the nodes, filled up with subtrees of PAD to a power of two; whoever has the nodes can make it

A root says what stands where, how many blocks there are, and which were left out: two roots are equal only if all of it is. Two lists
of nodes say besides where two disks differ. Blocks of zeros have one leaf, and a run of the same leaf costs a handful of hashes for
each node: a hole is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from blake3 import blake3

# Bytes. QEMU's dirty bitmaps tell no less than 64 KiB apart in an image as libvirt makes it.
BLOCK = 1 << 16
# Of one disk: 128 KiB of them, which tell where disks differ to a 4096th of their size.
MOST_NODES = 4096
# Runs of blocks that are left out, of all disks of a migration: what would be more is joined. A MiB on the wire, at most.
MOST_RUNS = 100_000

LEAF = blake3(b"landbridge disk tree 1: leaf").digest()
NODE = blake3(b"landbridge disk tree 1: node").digest()
OUT = blake3(b"landbridge disk tree 1: left out").digest()
PAD = blake3(b"landbridge disk tree 1: behind the end").digest()
ZERO = blake3(bytes(BLOCK), key=LEAF).digest()


@dataclass(frozen=True)
class Run:
    """Blocks in a row: the number of the first, and how many."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The number of the block after the last."""
        return self.first + self.count


def blocks_of(size: int) -> int:
    """How many blocks a disk of so many bytes has."""
    return -(-size // BLOCK)


def level_of(blocks: int) -> int:
    """The level of the nodes that are sent of so many blocks: each covers two to that power."""
    level = 0
    while blocks > MOST_NODES << level:
        level += 1
    return level


def leaf(block: bytes | bytearray | memoryview) -> bytes:
    """The leaf of a block; one that is shorter than BLOCK is the disk's last."""
    if len(block) < BLOCK:
        block = bytes(block).ljust(BLOCK, b"\0")
    return blake3(block, key=LEAF).digest()


def _parent(left: bytes, right: bytes) -> bytes:
    return blake3(left + right, key=NODE).digest()


def _subtree(child: bytes, level: int) -> bytes:
    """The node at a level, all of whose leaves are one."""
    for _ in range(level):
        child = _parent(child, child)
    return child


class Builder:
    """Takes leaves in their order, and has the nodes in the end."""

    def __init__(self, blocks: int) -> None:
        self._level = level_of(blocks)
        self._left = blocks
        # What is not complete yet: at each level below that of the nodes, the left child that waits for the right one.
        self._waiting: list[bytes | None] = [None] * self._level
        self._nodes: list[bytes] = []

    def add(self, leaf: bytes, count: int = 1) -> None:
        """So many blocks with this leaf. ValueError if they are more than the disk has."""
        if count > self._left:
            raise ValueError("a disk has no more blocks than were said")
        self._left -= count
        self._fill(leaf, count)

    def _fill(self, leaf: bytes, count: int) -> None:
        """Complete what is begun at the lowest level, go on with twice as large pieces, and leave the odd ones for the end."""
        same, level, odd = leaf, 0, []
        while count and level < self._level:
            if self._waiting[level] is not None:
                self._put(same, level)
                count -= 1
            if count % 2:
                odd.append((same, level))
            same, count, level = _parent(same, same), count // 2, level + 1
        if level == self._level:
            self._nodes.extend([same] * count)
        for piece, at in reversed(odd):
            self._put(piece, at)

    def _put(self, node: bytes, level: int) -> None:
        while level < self._level and (left := self._waiting[level]) is not None:
            self._waiting[level] = None
            node, level = _parent(left, node), level + 1
        if level < self._level:
            self._waiting[level] = node
        else:
            self._nodes.append(node)

    def nodes(self) -> list[bytes]:
        """All of them, once every block was added. ValueError before."""
        if self._left:
            raise ValueError(f"{self._left} blocks of the disk are missing")
        for level in range(self._level):
            if self._waiting[level] is not None:
                self._put(_subtree(PAD, level), level)
        return self._nodes


def root_of(nodes: Sequence[bytes], blocks: int) -> bytes:
    """The root of a disk of so many blocks. ValueError unless these can be its nodes."""
    level = level_of(blocks)
    if len(nodes) != -(-blocks >> level) or any(len(node) != len(PAD) for node in nodes):
        raise ValueError("these are not the nodes of a disk of that size")
    row, pad = list(nodes), _subtree(PAD, level)
    while len(row) > 1:
        if len(row) % 2:
            row.append(pad)
        row = [_parent(row[at], row[at + 1]) for at in range(0, len(row), 2)]
        pad = _parent(pad, pad)
    return row[0] if row else pad


def differing(ours: Sequence[bytes], theirs: Sequence[bytes], blocks: int) -> list[Run]:
    """Where two disks of so many blocks differ, as exactly as their nodes tell, in order."""
    level = level_of(blocks)
    found: list[Run] = []
    for index, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        if here == there:
            continue
        run = Run(index << level, min(1 << level, blocks - (index << level)))
        if found and found[-1].end == run.first:
            run = Run(found[-1].first, found.pop().count + run.count)
        found.append(run)
    return found


def joined(runs: Iterable[Run], most: int) -> list[Run]:
    """Runs in order, without overlaps, at most so many: where they are more, what lies between near ones is joined to them."""
    found: list[Run] = []
    for run in runs:
        if found and run.first <= found[-1].end:
            found[-1] = Run(found[-1].first, max(found[-1].end, run.end) - found[-1].first)
        else:
            found.append(run)
    if len(found) <= most:
        return found
    gaps = sorted(right.first - left.end for left, right in pairwise(found))
    widest = gaps[len(found) - most - 1]
    kept = [found[0]]
    for run in found[1:]:
        if run.first - kept[-1].end <= widest:
            kept[-1] = Run(kept[-1].first, run.end - kept[-1].first)
        else:
            kept.append(run)
    return kept


def packed(runs: Iterable[Run]) -> Iterator[int]:
    """Runs as they are sent: how many blocks to skip, how many are in the run, and so on."""
    at = 0
    for run in runs:
        yield run.first - at
        yield run.count
        at = run.end


def unpacked(numbers: Sequence[int], blocks: int) -> list[Run]:
    """Runs as they were sent, of a disk of so many blocks. ValueError for what are none."""
    if len(numbers) % 2:
        raise ValueError("runs of blocks are pairs of numbers")
    at, found = 0, []
    for skipped, count in zip(numbers[::2], numbers[1::2], strict=True):
        run = Run(at + skipped, count)
        if not count or run.end > blocks:
            raise ValueError("a run of blocks lies beyond the disk, or has none")
        found.append(run)
        at = run.end
    return found
