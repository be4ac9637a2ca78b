"""The directory of a log (C2SP tlog-tiles), and what in it is durable when. One process at a time, one thread at a time.

    checkpoint                      the newest head, signed
    cosigned                        the newest head that witnesses have cosigned, with what they signed
    log.vkey, witness.vkey          the public keys, for those who verify; the second is that of `witness_records`
    tile/entries/<N>[.p/<W>]        the entries, 256 to a bundle
    tile/<L>/<N>[.p/<W>]            the hashes
    .state/key.pem, lock, new.*     the private key; held while the log is open; files that are being written

Theory of durability. The checkpoint is the one commit point: what it does not speak of is not in the log. `commit` goes

    1. write the new bundles and tiles beside, under .state, and sync each
       A crash leaves files under .state; `open` removes them.
    2. rename them to their places, and sync the directories
       A crash leaves tiles beyond the checkpoint; `open` removes them, as nobody was told of them.
    3. write the checkpoint beside, sync it, and rename it
       A crash leaves the old checkpoint or the new one, and the tiles of both are durable.
    4. sync the directory
       Only now may anybody be told. A crash before leaves entries that nobody was told of; they stay in the log.
    5. remove partial tiles for which there is a full one now
       A crash leaves them; they are right, and take some room.

If a system call fails before the rename of 3, the log in memory and on disk is as before, and the next commit begins anew with
new files: after a failed sync, what is in a file is not known (fsync(2), EIO). If 4 fails, the tree has grown, though the
caller is told that nothing is certain: a log must never sign two trees of one size.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from gateway.audit import checkpoint as heads
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.keys import ed25519_key
from gateway.audit.note import Signer
from gateway.audit.tree import (
    EMPTY_ROOT,
    TILE,
    TILE_HEIGHT,
    Edge,
    TileName,
    Tiles,
    bundle,
    leaf_hash,
    split,
    unbundle,
    whole_root,
)
from landbridge import durable
from landbridge.errors import ConfigError, Conflict, EvidenceFailed, NotRecorded, UsageError

CHECKPOINT, COSIGNED, KEY, STATE = "checkpoint", "cosigned", "log.vkey", ".state"
_PRIVATE, _LOCK, _NEW = "key.pem", "lock", "new."
# How often, and after how many seconds, the lock of a log is tried for.
_ATTEMPTS, _ATTEMPT_S = 3, 0.05


class Growth:
    """What a log's tree is in memory: its edge, and the tiles on it that are not full. Grows by whole groups of entries."""

    def __init__(self, edge: Edge, entries: list[bytes], levels: list[list[bytes]]) -> None:
        self.edge = edge
        self._entries = entries  # of the partial bundle
        self._levels = levels  # hashes of the partial tile of each level

    def grown(self, entries: Sequence[bytes]) -> tuple[Growth, dict[TileName, bytes]]:
        """The tree with these entries behind, and the tiles that are new: of each level in order. Nothing changes here."""
        new = Growth(self.edge.copy(), list(self._entries), [list(level) for level in self._levels])
        tiles: dict[TileName, bytes] = {}
        for entry in entries:
            leaf = leaf_hash(entry)
            new.edge.append(leaf)
            new._entries.append(entry)
            if len(new._entries) == TILE:
                tiles[TileName(None, (new.edge.size - 1) // TILE, TILE)] = bundle(new._entries)
                new._entries = []
            new._add(0, leaf, tiles)
        if new._entries:
            tiles[TileName(None, new.edge.size // TILE, len(new._entries))] = bundle(new._entries)
        for level, hashes in enumerate(new._levels):
            if hashes and hashes != self._hashes(level):
                tiles[TileName(level, new.edge.size >> (TILE_HEIGHT * (level + 1)), len(hashes))] = b"".join(hashes)
        return new, tiles

    def _hashes(self, level: int) -> list[bytes]:
        return self._levels[level] if level < len(self._levels) else []

    def _add(self, level: int, value: bytes, tiles: dict[TileName, bytes]) -> None:
        if level == len(self._levels):
            self._levels.append([])
        hashes = self._levels[level]
        hashes.append(value)
        if len(hashes) == TILE:
            number = (self.edge.size >> (TILE_HEIGHT * (level + 1))) - 1
            tiles[TileName(level, number, TILE)] = b"".join(hashes)
            self._levels[level] = []
            self._add(level + 1, whole_root(hashes), tiles)


class Storage:
    """An open log. `signed` is its newest checkpoint; `growth` and it change together, in `commit` alone."""

    def __init__(self, directory: Path, signer: Signer, lock: IO[bytes], signed: Signed, growth: Growth) -> None:
        self.directory = directory
        self.signer = signer
        self.signed = signed
        self._lock = lock
        self._growth = growth
        # Tiles of a commit that failed: not in the log, and to be removed or replaced.
        self._stray: set[Path] = set()
        # Directories with new names in them, which may not be durable yet.
        self._unsynced: set[Path] = set()

    # Opening.

    @classmethod
    def open(cls, directory: Path, origin: str) -> Self:
        """Open the log `origin`, or begin it where there is none.

        Conflict if another process has it open, ConfigError if the directory or the key cannot be used, and EvidenceFailed if it
        is not what its checkpoint says: such a log is never written to.
        """
        state = directory / STATE
        try:
            for changed in _make(state):
                durable.sync_directory(changed)
            lock = os.fdopen(os.open(state / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
        except OSError as error:
            raise ConfigError(f"the audit log at {directory} cannot be opened: {error.strerror}") from error
        try:
            _hold(lock)
        except OSError as error:
            lock.close()
            raise Conflict(f"the audit log at {directory} is open in another process") from error
        try:
            return cls._opened(directory, origin, lock)
        except OSError as error:
            lock.close()
            raise ConfigError(f"the audit log at {directory} cannot be opened: {error.strerror}") from error
        except BaseException:
            lock.close()
            raise

    @classmethod
    def _opened(cls, directory: Path, origin: str, lock: IO[bytes]) -> Self:
        for left in (*(directory / STATE).glob(f"{_NEW}*"), *(directory / STATE).glob(".*"), *directory.glob(".*.*")):
            left.unlink()
        private = directory / STATE / _PRIVATE
        missing = f"the key of the audit log, {private}, is missing: restore it, or move {directory} away"
        signer = Signer(origin, ed25519_key(private, missing if (directory / CHECKPOINT).exists() else ""))
        if not (directory / CHECKPOINT).exists():
            if (directory / "tile").exists():
                raise EvidenceFailed(
                    f"the audit log at {directory} has entries and no checkpoint: restore it, or move the directory away"
                )
            # A crash here leaves a key that has signed nothing.
            durable.write(directory / KEY, f"{signer.key()}\n".encode())
            first = heads.sign(Checkpoint(origin, 0, EMPTY_ROOT), signer)
            durable.write(directory / CHECKPOINT, first.encode())
        try:
            signed = Signed.decode((directory / CHECKPOINT).read_bytes())
            signed.check(signer.key())
            growth = _growth(directory, signed.checkpoint)
        except EvidenceFailed as error:
            raise EvidenceFailed(
                f"the audit log at {directory} is not what was written there: {error.message}; "
                f"see `landbridge audit verify {directory}`"
            ) from error
        storage = cls(directory, signer, lock, signed, growth)
        storage._sweep()
        # What a killed process made may be in the kernel's memory only.
        for made in (directory, *(path for path in (directory / "tile").rglob("*") if path.is_dir())):
            durable.sync_directory(made)
        return storage

    def close(self) -> None:
        """Let another process open it."""
        self._lock.close()

    @property
    def size(self) -> int:
        """How many entries it has."""
        return self.signed.checkpoint.size

    # Writing.

    def commit(self, entries: Sequence[bytes]) -> int:
        """Append entries, all or none, and return the index of the first; when it returns, they are durable.

        NotRecorded if the system refuses: the log is as before, and the same may succeed later. (If it was the last step that
        failed, the entries are in the log, but may not be there after a crash.)
        """
        first = self.size
        growth, tiles = self._growth.grown(entries)
        signed = heads.sign(Checkpoint(self.signer.name, growth.edge.size, growth.edge.root()), self.signer)
        try:
            self._publish({self.directory / name.path: data for name, data in tiles.items()})
            with self._staged([signed.encode()]) as [staged]:
                # No crash and no error before this leaves any trace in the log.
                staged.replace(self.directory / CHECKPOINT)
                self._growth, self.signed = growth, signed
                self._stray -= {self.directory / name.path for name in tiles}
            durable.sync_directory(self.directory)
        except OSError as error:
            raise NotRecorded(
                f"the audit log at {self.directory} cannot be written: {error.strerror}; "
                "what should have been recorded does not happen until it can"
            ) from error
        self._tidy(tiles)
        return first

    def certain(self) -> Signed:
        """The newest checkpoint, once no crash can take it back: only such a one is shown to others. NotRecorded if that cannot be had."""
        try:
            durable.sync_directory(self.directory)
        except OSError as error:
            raise NotRecorded(f"the audit log at {self.directory} cannot be synced: {error.strerror}") from error
        return self.signed

    def cosigned(self) -> Signed | None:
        """The newest checkpoint that was kept with cosignatures; None if there is none that can be read."""
        try:
            kept = Signed.decode((self.directory / COSIGNED).read_bytes())
            kept.check(self.signer.key())
        except (OSError, EvidenceFailed):
            return None
        return kept

    def keep(self, cosigned: Signed) -> None:
        """Keep a checkpoint of this log with what witnesses have signed of it, durably. NotRecorded if the system refuses."""
        try:
            durable.write(self.directory / COSIGNED, cosigned.encode())
        except OSError as error:
            raise NotRecorded(f"the cosignatures of {self.directory} cannot be kept: {error.strerror}") from error

    def prune(self, minimum: int, start: int = 0) -> int:
        """Remove the bundles of entries from `start` to below `minimum`, and return how many files that were.

        Whoever calls has recorded it first, in an entry that verifiers read. All hashes stay, 8 KiB for each bundle, and so do all
        proofs: a witness may have recorded a head in the middle of what is removed, and asks how the log went on from there.
        NotRecorded if the system refuses; what is removed stays removed, and the rest can be removed later.
        """
        if not 0 <= minimum <= self.size:
            raise UsageError(f"the log has {self.size} entries, and none of them is number {minimum}")
        removed = 0
        try:
            for number in range(start // TILE, minimum // TILE):
                path = self.directory / TileName(None, number, TILE).path
                removed += path.exists()
                path.unlink(missing_ok=True)
        except OSError as error:
            raise NotRecorded(f"entries of {self.directory} cannot be removed: {error.strerror}") from error
        return removed

    def _publish(self, files: dict[Path, bytes]) -> None:
        with self._staged(files.values()) as staged:
            for path, temporary in zip(files, staged, strict=True):
                self._unsynced |= {*_make(path.parent), path.parent}
                self._stray.add(path)
                temporary.replace(path)
        for directory in sorted(self._unsynced):
            durable.sync_directory(directory)
            self._unsynced.discard(directory)

    @contextlib.contextmanager
    def _staged(self, contents: Iterable[bytes]) -> Iterator[list[Path]]:
        """New files with these contents, durable, under .state; those that have not been renamed are removed again."""
        staged: list[Path] = []
        try:
            for data in contents:
                staged.append(self.directory / STATE / f"{_NEW}{os.urandom(8).hex()}")
                descriptor = os.open(staged[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(descriptor)
            yield staged
        except BaseException:
            for path in staged:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise

    # Clearing up. What stays behind does no harm, so that a failure is no error.

    def _tidy(self, tiles: dict[TileName, bytes]) -> None:
        with contextlib.suppress(OSError):
            for path in self._stray:
                path.unlink(missing_ok=True)
            self._stray.clear()
            for name in tiles:
                if name.width == TILE:
                    _remove_partial(self.directory, name)

    def _sweep(self) -> None:
        """Remove tiles beyond the checkpoint, which a crash may have left."""
        for level in (None, *range(64)):
            if not (self.directory / "tile" / ("entries" if level is None else str(level))).exists():
                continue
            count = self.size >> (TILE_HEIGHT * (level or 0))
            number, width = divmod(count, TILE)
            while _remove_beyond(self.directory, TileName(level, number, width)) or number == count // TILE:
                number, width = number + 1, 0

    # Reading.

    def read(self, name: TileName) -> bytes:
        """A tile's bytes; of a partial one that is gone, the beginning of the full one. NotRecorded if it cannot be read."""
        path = self.directory / name.path
        try:
            if name.width < TILE and not path.exists():
                full = (self.directory / name._replace(width=TILE).path).read_bytes()
                return full[: name.width * 32] if name.level is not None else bundle(unbundle(full)[: name.width])
            return path.read_bytes()
        except OSError as error:
            raise NotRecorded(f"{path} of the audit log cannot be read: {error.strerror}") from error

    def has(self, name: TileName) -> bool:
        """Whether a tile is there: pruned ones are not."""
        return any((self.directory / each.path).exists() for each in (name, name._replace(width=TILE)))

    def tiles(self) -> Tiles:
        """The tree as it is now, to make proofs."""
        return Tiles(self.size, self.read)

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """The entries from `start` to before `end`, as they were written."""
        for number in range(start // TILE, -(-end // TILE)):
            first = number * TILE
            inside = unbundle(self.read(TileName(None, number, min(TILE, self.size - first))))
            yield from inside[max(0, start - first) : end - first]


def is_open(directory: Path) -> bool:
    """Whether a process has the log of this directory open; also if that cannot be looked at, and there is something to hide."""
    try:
        with (directory / STATE / _LOCK).open("rb") as lock:
            # Let go again at once, and shared, so that two who look do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def _hold(lock: IO[bytes]) -> None:
    """Take the lock of a log; whoever looks whether it is taken has it for an instant."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_ATTEMPT_S)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _make(directory: Path) -> set[Path]:
    """Make a directory and those above it; the directories in which there are new names now."""
    if directory.is_dir():
        return set()
    changed = _make(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    return {*changed, directory.parent}


def _remove_partial(directory: Path, name: TileName) -> None:
    partial = (directory / name._replace(width=1).path).parent
    if partial.exists():
        for path in partial.iterdir():
            path.unlink()
        partial.rmdir()


def _remove_beyond(directory: Path, name: TileName) -> bool:
    """Remove a full tile of this number, and partial ones that are wider; whether anything was there."""
    full = directory / name._replace(width=TILE).path
    partial = (directory / name._replace(width=1).path).parent
    wider = [path for path in partial.glob("*") if int(path.name) > name.width] if partial.exists() else []
    found = full.exists() or bool(wider)
    full.unlink(missing_ok=True)
    for path in wider:
        path.unlink()
    return found


def _growth(directory: Path, checkpoint: Checkpoint) -> Growth:
    """The edge of the tree from its tiles; EvidenceFailed if they are not those of the checkpoint."""

    def read(name: TileName) -> bytes:
        try:
            return (directory / name.path).read_bytes()
        except FileNotFoundError as error:
            raise EvidenceFailed(f"{name.path} is missing") from error

    size = checkpoint.size
    edge = Tiles(size, read).edge()
    if edge.root() != checkpoint.root:
        raise EvidenceFailed("its hashes are not those that its checkpoint signs")
    levels = []
    for level in range(64):
        count = size >> (TILE_HEIGHT * level)
        if not count:
            break
        width = count % TILE
        levels.append(split(read(TileName(level, count // TILE, width))) if width else [])
    width = size % TILE
    entries = unbundle(read(TileName(None, size // TILE, width))) if width else []
    if [leaf_hash(entry) for entry in entries] != (levels[0] if levels else []):
        raise EvidenceFailed("its newest entries are not those that its checkpoint signs")
    return Growth(edge, entries, levels)
