"""Once over all bundles and tiles of a log, from left to right: steps 3, 4, 5 and 8 of the recipe in `verify`. Pure.

Two trees grow side by side: one of the entries, one of the stored hashes. At the end, the signed root says which is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.entry import Recorded
from gateway.audit.findings import Check, Report
from gateway.audit.receipt import Delivery
from gateway.audit.tree import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE,
    TILE_HEIGHT,
    Edge,
    TileName,
    bundle,
    leaf_hash,
    split,
    unbundle,
    whole_root,
)
from landbridge.errors import EvidenceFailed

CHECKPOINT, COSIGNED, KEY = "checkpoint", "cosigned", "log.vkey"
# Of the witness that the same gateway is for other logs.
WITNESS_KEY, WITNESS_KEY_ML_DSA = "witness.vkey", "witness-ml-dsa-44.vkey"
_BESIDE = (CHECKPOINT, COSIGNED, KEY, WITNESS_KEY, WITNESS_KEY_ML_DSA)
# Beside the log: receipts, which prove themselves.
RECEIPTS = "receipts"


class Log(Protocol):
    """The files of a log, wherever they are. Both methods raise errors of the tree when they cannot tell."""

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if there is none of this name."""

    def paths(self) -> Iterable[str]:
        """The names of all files; none where they cannot be listed."""


class _Tree:
    """A tree that is made again, tile after tile; it has no root once a part cannot be told."""

    def __init__(self) -> None:
        self._edge: Edge | None = Edge()
        # Of full tiles: the hashes of level 1.
        self.above: list[bytes] = []
        # At sizes that were asked for.
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}

    def add(self, hashes: Sequence[bytes] | None, width: int, sizes: Iterable[int] = ()) -> None:
        """The hashes of the next tile; `sizes` are those inside it, or at its end, at which the root is wanted."""
        if self._edge is None or hashes is None or len(hashes) != width:
            self._edge = None
            return
        first = self._edge.size
        for size in sizes:
            inner = self._edge.copy()
            for value in hashes[: size - first]:
                inner.append(value)
            self.roots[size] = inner.root()
        if width == TILE:
            self.skip(whole_root(hashes))
        else:
            for value in hashes:
                self._edge.append(value)

    def skip(self, root: bytes) -> None:
        """A full tile of which only the root is known."""
        if self._edge is not None:
            self._edge.append(root, TILE_HEIGHT)
            self.above.append(root)

    def root(self) -> bytes | None:
        """The root of it all."""
        return None if self._edge is None else self._edge.root()


class Walk:
    """One verification of the entries and tiles below a checkpoint. What is wrong is added to `report`."""

    def __init__(
        self,
        log: Log,
        checkpoint: Checkpoint,
        report: Report,
        known: Sequence[Checkpoint],
        claimed: Mapping[int, bytes],
        *,
        part: bool = False,
    ) -> None:
        self._log, self._checkpoint, self._report = log, checkpoint, report
        self._known = known
        # Whether bundles of entries may be missing, as long as their hashes are there.
        self._part = part
        # Entries that receipts prove, and those of them that are in the log.
        self._claimed = claimed
        self.seen: set[int] = set()
        self._made, self._stored = _Tree(), _Tree()
        # Tiles that are not the hashes of the entries, and at which entry.
        self._differing: list[tuple[str, int]] = []
        # What is left of partial tiles, and whether it differs from the entries, and from the stored hashes.
        self._stale: list[tuple[str, bool, bool]] = []
        self._missing: list[int] = []
        self._delivery = Delivery()
        # What entries say of the tree before them: (index, root in hex).
        self._stated: list[tuple[int, str]] = []
        self._partial: dict[tuple[int | None, int], list[TileName]] = defaultdict(list)

    def run(self) -> None:
        """Look at everything."""
        self._list()
        size = self._checkpoint.size
        for number in range(-(-size // TILE)):
            if not self._tile(number, min(TILE, size - number * TILE)):
                break
        self._judge_missing()
        self._judge_tree()
        self._judge_history()

    def _list(self) -> None:
        for path in self._log.paths():
            name = TileName.parse(path)
            if name is not None and name.width < TILE:
                self._partial[name.level, name.number].append(name)
            elif name is None and path not in _BESIDE and not path.startswith(f"{RECEIPTS}/"):
                self._report.add(Check.TREE, f"the file {ascii(path)[:120]} is no part of a log")

    # 3 and 8: the entries.

    def _tile(self, number: int, width: int) -> bool:
        """One bundle, and its tile of hashes. False if nothing is left of them, not even a hash: all that follows is in vain."""
        first = number * TILE
        entries = self._entries(number, width)
        stored = self._hashes(TileName(0, number, width))
        if entries is None:
            self._missing.append(number)
            made = stored
        else:
            made = [leaf_hash(entry) for entry in entries]
            self._compare(0, number, made, stored)
            for level in (None, 0):
                self._compare_partial(level, number, made, stored)
        if made is None:
            root = self._root_above(number) if width == TILE else None
            if root is None:
                self._made.add(None, width)
                return False
            self._made.skip(root)
            self._stored.skip(root)
            return True
        stated = len(self._stated)
        self._look_at(first, entries or ())
        sizes = {each.size for each in self._known} | {index for index, _ in self._stated[stated:]}
        inside = [size for size in sizes if first < size <= first + width]
        self._made.add(made, width, inside)
        self._stored.add(stored, width, inside)
        return True

    def _entries(self, number: int, width: int) -> list[bytes] | None:
        name = TileName(None, number, width)
        raw = read_tile(self._log, name)
        if raw is None:
            return None
        try:
            entries = unbundle(raw)
        except EvidenceFailed as error:
            self._report.add(Check.ENTRIES, f"the bundle {name.path} is damaged: {error.message}", number * TILE)
            return []
        if len(entries) != width:
            self._report.add(
                Check.ENTRIES,
                f"the bundle {name.path} has {len(entries)} entries, and {width} were signed: some were dropped or added",
                number * TILE + min(len(entries), width),
            )
        return entries

    def _look_at(self, first: int, entries: Sequence[bytes]) -> None:
        for index, raw in enumerate(entries, first):
            if index in self._claimed:
                self.seen.add(index)
                if self._claimed[index] != raw:
                    self._report.add(
                        Check.RECEIPTS, f"entry {index} is another one in the log than in a receipt", index
                    )
            try:
                entry = Recorded.decode(raw)
            except EvidenceFailed as error:
                self._report.add(Check.ENTRIES, f"entry {index} cannot be what was recorded: {error.message}", index)
            else:
                self._look_at_one(index, entry)

    def _look_at_one(self, index: int, entry: Recorded) -> None:
        report = self._report
        if entry.origin != self._checkpoint.origin:
            report.add(
                Check.ENTRIES,
                f"entry {index} says that it is of the log {ascii(entry.origin)[:120]}: it was taken from there",
                index,
            )
        if entry.sequence != index:
            report.add(
                Check.ENTRIES,
                f"entry {index} says that it is entry {entry.sequence}: "
                "entries were dropped, inserted or put in another order",
                index,
            )
        report.entries += 1
        report.first_time = report.first_time or entry.text("time")
        report.last_time = entry.text("time")
        for wrong in self._delivery.add(entry):
            report.add(Check.DELIVERY, f"entry {index}: {wrong}", index)
        if entry.event.name == "log.pruned":
            minimum = int(entry.text("seen", "pruned", "minimum") or 0)
            if minimum > report.minimum:
                report.minimum, report.pruned_by = minimum, index
        log = entry.facts("seen").get("log")
        if isinstance(log, Mapping) and log.get("origin") == entry.origin and log.get("size") == index:
            self._stated.append((index, entry.text("seen", "log", "root")))

    # 4: the hashes.

    def _compare(self, level: int, number: int, made: Sequence[bytes], stored: Sequence[bytes] | None) -> None:
        """Whether a tile of hashes is what it should be."""
        name = TileName(level, number, len(made))
        if stored is None:
            self._report.add(Check.TREE, f"the hashes {name.path} are missing, or not whole")
            return
        pairs = zip(made, stored, strict=False)
        self._differing += [(name.path, number * TILE + at) for at, pair in enumerate(pairs) if pair[0] != pair[1]]

    def _compare_partial(
        self, level: int | None, number: int, made: Sequence[bytes], stored: Sequence[bytes] | None
    ) -> None:
        """What is left of a tile or bundle from when it was partial: held against both trees, as one of them may be right."""
        for name in self._partial.pop((level, number), ()):
            if name.width >= len(made):
                continue
            hashes = self._hashes_in(name)
            from_stored = stored is not None and hashes != list(stored[: name.width])
            self._stale.append((name.path, hashes != list(made[: name.width]), from_stored))

    def _hashes_in(self, name: TileName) -> list[bytes]:
        raw = self._log.read(name.path) or b""
        if name.level is not None:
            return split(raw)
        try:
            return [leaf_hash(entry) for entry in unbundle(raw)]
        except EvidenceFailed:
            return []

    def _judge_missing(self) -> None:
        gone = [number for number in self._missing if (number + 1) * TILE > self._report.minimum and not self._part]
        if gone:
            first, last = gone[0] * TILE, min(gone[-1] * TILE + TILE, self._checkpoint.size) - 1
            self._report.add(
                Check.ENTRIES,
                f"entries from {first} to {last} are missing, and no entry says that they were pruned",
                first,
            )

    def _judge_tree(self) -> None:
        root, made, stored = self._checkpoint.root, self._made.root(), self._stored.root()
        if made == root:
            self._judge_above(self._made.above)
            changed = [path for path, _ in self._differing] + [path for path, differs, _ in self._stale if differs]
            for path in dict.fromkeys(changed):
                self._report.add(
                    Check.TREE,
                    f"the file {path} is not what the entries lead to: it was changed, and the entries were not",
                )
        elif stored == root:
            for path, index in self._differing:
                self._report.add(
                    Check.ENTRIES,
                    f"entry {index} is not the one that was recorded: its hash is not that in {path}, which the site signed",
                    index,
                )
            for path in (path for path, _, differs in self._stale if differs):
                self._report.add(Check.TREE, f"the file {path} is not what the site signed: it was changed, too")
        else:
            first = self._differing[0][1] if self._differing else None
            where = "" if first is None else f"; they part at entry {first}"
            self._report.add(
                Check.TREE,
                f"neither the entries nor the hashes lead to the root that the checkpoint signs{where}",
                first,
            )

    def _judge_above(self, hashes: Sequence[bytes]) -> None:
        level = 1
        while hashes:
            above = []
            for start in range(0, len(hashes), TILE):
                made = hashes[start : start + TILE]
                self._compare(level, start // TILE, made, self._hashes(TileName(level, start // TILE, len(made))))
                self._compare_partial(level, start // TILE, made, None)
                if len(made) == TILE:
                    above.append(whole_root(made))
            hashes, level = above, level + 1

    # 5: what was known of it before.

    def _judge_history(self) -> None:
        size = self._checkpoint.size
        # What the site has signed, if the entries or the hashes still lead there: whoever changed the others is found already.
        roots = (self._stored if self._stored.root() == self._checkpoint.root else self._made).roots
        for known in self._known:
            if known.origin != self._checkpoint.origin:
                self._report.add(
                    Check.HISTORY, f"the known checkpoint of {known.size} entries is of another log, {known.origin}"
                )
            elif known.size > size:
                self._report.add(
                    Check.HISTORY,
                    f"the log had {known.size} entries before, and its checkpoint speaks of {size}: "
                    "an old checkpoint is shown again, or entries were cut off",
                    size,
                )
            elif roots.get(known.size, known.root) != known.root:
                self._report.add(
                    Check.HISTORY,
                    f"the first {known.size} entries are not those of a checkpoint that the site has signed: it has two histories",
                )
        for index, root in self._stated:
            if index in roots and roots[index].hex() != root:
                self._report.add(
                    Check.HISTORY,
                    f"entry {index} speaks of another history before it: entries below were rewritten",
                    index,
                )

    # Files.

    def _hashes(self, name: TileName) -> list[bytes] | None:
        raw = read_tile(self._log, name)
        return split(raw) if raw is not None and len(raw) == name.width * HASH_BYTES else None

    def _root_above(self, number: int) -> bytes | None:
        """The root of a full tile that is gone, from the tile above it."""
        above, at = divmod(number, TILE)
        count = (self._checkpoint.size >> TILE_HEIGHT) - above * TILE
        hashes = self._hashes(TileName(1, above, min(TILE, count)))
        return hashes[at] if hashes is not None else None


def read_tile(log: Log, name: TileName) -> bytes | None:
    """A tile; of a partial one that is gone meanwhile, the beginning of the full one. None if there is neither."""
    raw = log.read(name.path)
    if raw is None and name.width < TILE and (full := log.read(name._replace(width=TILE).path)) is not None:
        return full[: name.width * HASH_BYTES] if name.level is not None else _beginning(full, name.width)
    return raw


def _beginning(raw: bytes, width: int) -> bytes:
    try:
        return bundle(unbundle(raw)[:width])
    except EvidenceFailed:
        return raw
