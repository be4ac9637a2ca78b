"""The Merkle tree over the entries (RFC 6962, section 2.1), cut into tiles (C2SP tlog-tiles). Pure.

        root            a leaf is SHA-256(0x00 || entry), a node SHA-256(0x01 || left || right); n entries split at the largest
       /    \\           power of two below n. A whole subtree of 2**h entries never changes again: appending only needs
      o      o          the roots of the whole subtrees on the right edge, at most one for each bit of n (`Edge`).
     / \\    / \\
    0   1  2   3        Tile n of level l holds up to 256 roots of whole subtrees of 256**l entries, from n * 256 on. All hashes
                        between those levels are made again from them: so any proof can be made of tiles (`Tiles`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple, Self

from landbridge.errors import EvidenceFailed, UsageError

HASH_BYTES = 32
# tlog-tiles: a tile has 256 hashes, of subtrees 8 levels high; a level is at most 63.
TILE = 256
TILE_HEIGHT = 8
MOST_LEVEL = 63
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return sha256(b"\1" + left + right).digest()


def parents(hashes: Sequence[bytes]) -> list[bytes]:
    """The hashes one level up; an odd last one is left out."""
    return [sha256(b"\1" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=False)]


def whole_root(hashes: Sequence[bytes]) -> bytes:
    """The root above hashes of equal subtrees, 2**h of them."""
    level = hashes
    while len(level) > 1:
        level = parents(level)
    return level[0]


# Growing.


class Edge:
    """The right edge of a growing tree: enough to append to it, and to say its root. O(log n) in memory and for each entry."""

    def __init__(self) -> None:
        self.size = 0
        # Roots of whole subtrees, the largest first: one for each bit of `size`.
        self._roots: list[bytes] = []

    @classmethod
    def of(cls, size: int, roots: Iterable[bytes]) -> Self:
        """The edge of a tree of `size` entries, from the roots of its whole subtrees, the largest first."""
        edge = cls()
        edge.size, edge._roots = size, list(roots)
        return edge

    def copy(self) -> Self:
        """Another one, that grows alone."""
        return type(self).of(self.size, self._roots)

    def append(self, root: bytes, height: int = 0) -> None:
        """Add the hash of an entry; or the root of 2**height entries at once, where the tree has a multiple of that many."""
        carry = self.size >> height
        while carry & 1:
            root = node_hash(self._roots.pop(), root)
            carry >>= 1
        self._roots.append(root)
        self.size += 1 << height

    def root(self) -> bytes:
        """The root as it is now."""
        return _fold(self._roots)


def _fold(roots: Sequence[bytes]) -> bytes:
    if not roots:
        return EMPTY_ROOT
    result = roots[-1]
    for left in reversed(roots[:-1]):
        result = node_hash(left, result)
    return result


# Tiles.


class TileName(NamedTuple):
    """A tile of hashes, or with level None a bundle of entries; `width` is TILE if it is full."""

    level: int | None
    number: int
    width: int

    @property
    def path(self) -> str:
        """Its path below the log, such as tile/0/x001/234.p/7."""
        parts = [f"{self.number % 1000:03}"]
        rest = self.number // 1000
        while rest:
            parts.insert(0, f"x{rest % 1000:03}")
            rest //= 1000
        partial = "" if self.width == TILE else f".p/{self.width}"
        return f"tile/{'entries' if self.level is None else self.level}/{'/'.join(parts)}{partial}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """The tile with this path; None if no tile has it."""
        match = _PATH.fullmatch(path)
        if not match:
            return None
        level = None if match["level"] == "entries" else int(match["level"])
        number = int(match["number"].replace("x", "").replace("/", ""))
        name = cls(level, number, int(match["width"] or TILE))
        return name if name.path == path and (level or 0) <= MOST_LEVEL and name.width <= TILE else None


_PATH = re.compile(r"tile/(?P<level>entries|\d{1,2})/(?P<number>(?:x\d{3}/){0,5}\d{3})(?:\.p/(?P<width>[1-9]\d{0,2}))?")


def tiles_of(size: int, *, entries: bool = True) -> Iterator[TileName]:
    """The tiles of a tree of `size` entries, level by level; with the bundles of entries first."""
    for level in [*([None] if entries else []), *range(MOST_LEVEL + 1)]:
        count = size >> (TILE_HEIGHT * (level or 0))
        if not count:
            return
        for number in range(count // TILE):
            yield TileName(level, number, TILE)
        if count % TILE:
            yield TileName(level, count // TILE, count % TILE)


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries as a bundle: each with its length in 16 bits before it."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unbundle(raw: bytes) -> list[bytes]:
    """The entries of a bundle. EvidenceFailed if it ends inside one."""
    entries: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        if end > len(raw):
            raise EvidenceFailed(f"it ends inside its entry {len(entries)}")
        entries.append(raw[at + 2 : end])
        at = end
    return entries


def split(raw: bytes) -> list[bytes]:
    """The hashes of a tile; a rest that is shorter than a hash comes last."""
    return [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]


class Tiles:
    """The hashes of a tree of `size` entries, from its tiles, and the proofs that are made of them.

    `read` gives a tile's bytes, and raises what it likes if it cannot. What a tile says is believed here: whoever makes a proof
    of foreign tiles checks it.
    """

    def __init__(self, size: int, read: Callable[[TileName], bytes]) -> None:
        self.size = size
        self._read = read
        self._kept: dict[TileName, bytes] = {}

    def root(self, size: int | None = None) -> bytes:
        """The root when the tree had `size` entries."""
        end = self.size if size is None else size
        self._within(end)
        return self._span(0, end) if end else EMPTY_ROOT

    def edge(self) -> Edge:
        """The right edge, to append to."""
        return Edge.of(self.size, (self._whole(height, start) for height, start in _subtrees(0, self.size)))

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """RFC 6962, 2.1.1: the proof that the entry `index` is in the tree of `size` entries, from the leaf's sibling up."""
        end = self.size if size is None else size
        self._within(end)
        if not 0 <= index < end:
            raise UsageError(f"entry {index} is not in a log of {end} entries")
        return self._path(index, 0, end)

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """RFC 6962, 2.1.2: the proof that the tree of `size` entries begins with that of `old` entries."""
        end = self.size if size is None else size
        self._within(end)
        if not 0 <= old <= end:
            raise UsageError(f"a log of {end} entries never had {old}")
        return self._proof(old, 0, end, known=True) if 0 < old < end else []

    def _within(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise UsageError(f"the log has {self.size} entries, not {size}")

    def _path(self, index: int, start: int, end: int) -> list[bytes]:
        path: list[bytes] = []
        while end - start > 1:
            middle = start + _below(end - start)
            if index < middle:
                path.append(self._span(middle, end))
                end = middle
            else:
                path.append(self._span(start, middle))
                start = middle
        return path[::-1]

    def _proof(self, old: int, start: int, end: int, *, known: bool) -> list[bytes]:
        if old == end:
            return [] if known else [self._span(start, end)]
        middle = start + _below(end - start)
        if old <= middle:
            return [*self._proof(old, start, middle, known=known), self._span(middle, end)]
        return [*self._proof(old, middle, end, known=False), self._span(start, middle)]

    def _span(self, start: int, end: int) -> bytes:
        return _fold([self._whole(height, at) for height, at in _subtrees(start, end)])

    def _whole(self, height: int, start: int) -> bytes:
        """The root of the whole subtree of 2**height entries from `start` on."""
        level, above = divmod(height, TILE_HEIGHT)
        first = start >> (TILE_HEIGHT * level)
        number, at = divmod(first, TILE)
        width = min(TILE, (self.size >> (TILE_HEIGHT * level)) - number * TILE)
        name = TileName(level, number, width)
        if name not in self._kept:
            raw = self._read(name)
            if len(raw) != width * HASH_BYTES:
                raise EvidenceFailed(f"{name.path} has {len(raw)} bytes, not {width * HASH_BYTES}")
            self._kept[name] = raw
        return whole_root(split(self._kept[name])[at : at + (1 << above)])


def _below(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The whole subtrees of a span that begins at a multiple of their sizes, the largest first: (height, start)."""
    while start < end:
        height = (end - start).bit_length() - 1
        yield height, start
        start += 1 << height


# Checking proofs.


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """RFC 9162, 2.1.3.2: the root that the proof leads to. EvidenceFailed if it cannot be a proof for these numbers."""
    if not 0 <= index < size:
        raise EvidenceFailed(f"entry {index} is not in a tree of {size} entries")
    number, last, result = index, size - 1, leaf
    for sibling in proof:
        if not last:
            raise EvidenceFailed("the proof of inclusion has too many hashes")
        if number & 1 or number == last:
            result = node_hash(sibling, result)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        number, last = number >> 1, last >> 1
    if last:
        raise EvidenceFailed("the proof of inclusion has too few hashes")
    return result


def check_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162, 2.1.4.2: EvidenceFailed unless the tree of `size` begins with that of `old`."""
    if not 0 <= old <= size:
        raise EvidenceFailed(f"a tree of {size} entries cannot go on from one of {old}")
    if 0 < old < size:
        expected = _roots_from_consistency(old, old_root, size, proof)
    elif proof:
        expected = None
    else:
        expected = (old_root if old else EMPTY_ROOT, old_root if old == size else root)
    if expected != (old_root, root):
        raise EvidenceFailed(f"the trees of {old} and {size} entries do not fit together: the log was rewritten")


def _roots_from_consistency(old: int, old_root: bytes, size: int, proof: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    number, last = old - 1, size - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    if not path:
        return None
    before = after = path[0]
    for sibling in path[1:]:
        if not last:
            return None
        if number & 1 or number == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        number, last = number >> 1, last >> 1
    return None if last else (before, after)
