"""The directory of a log: what is there after each commit, each failure and each crash."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from gateway.audit.checkpoint import Signed
from gateway.audit.journal import commit
from gateway.audit.storage import Storage
from gateway.audit.tree import TILE, Edge, TileName, check_consistency, leaf_hash, root_from_inclusion, tiles_of
from gateway.audit.verify import verify
from landbridge import durable
from landbridge.errors import ConfigError, Conflict, EvidenceFailed, NotRecorded, UsageError
from tests.unit.audit_logs import AMS, BRU, Copy, cosigned, entry, written

SIZES = [1, 2, 255, 256, 257, 511, 512, 513, 1000]


def good(directory: Path, size: int) -> None:
    """The log has this many entries, and verifies."""
    report = verify(Copy.of(directory))
    assert report.findings == []
    assert report.size == report.entries == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("group", [1, 100, 1000])
def test_a_log_of_any_size_written_in_any_groups_has_the_tiles_of_the_specification(
    tmp_path: Path, size: int, group: int
) -> None:
    if size // group > 300:
        group = 7
    storage = Storage.open(tmp_path, BRU)
    for start in range(0, size, group):
        assert commit(storage, [entry(number) for number in range(start, min(start + group, size))]) == start
    storage.close()
    expected = {name.path for name in tiles_of(size)}
    found = {path for path in Copy.of(tmp_path).files if path.startswith("tile/")}
    # Beyond those: partial tiles of earlier checkpoints, as long as there is no full one.
    assert expected <= found
    assert all(TileName.parse(path).width < TILE for path in found - expected)  # type: ignore[union-attr]
    assert not any((tmp_path / name.path).with_suffix(".p").exists() for name in tiles_of(size) if name.width == TILE)
    good(tmp_path, size)


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for first, count in ((0, 3), (3, 252), (255, 1), (256, 300)):
        written(tmp_path, count, first=first)
        good(tmp_path, first + count)
    storage = Storage.open(tmp_path, BRU)
    assert list(storage.entries(250, 260)) == [entry(number).encode(BRU, number) for number in range(250, 260)]
    assert list(storage.entries(556, 556)) == []
    storage.close()


def test_an_empty_log_has_a_signed_checkpoint(tmp_path: Path) -> None:
    Storage.open(tmp_path / "log", BRU).close()
    assert (tmp_path / "log" / "checkpoint").read_bytes().startswith(f"{BRU}\n0\n47DEQpj8HBSa+/".encode())
    good(tmp_path / "log", 0)


def test_files_are_for_the_gateway_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        written(tmp_path / "log", 300)
    finally:
        os.umask(before)
    for path in (tmp_path / "log").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_proofs_are_made_of_the_tiles(tmp_path: Path) -> None:
    written(tmp_path, 600)
    storage = Storage.open(tmp_path, BRU)
    tiles, edge, roots = storage.tiles(), Edge(), {}
    for index, raw in enumerate(storage.entries(0, 600)):
        edge.append(leaf_hash(raw))
        roots[index + 1] = edge.root()
    for index, size in ((0, 1), (0, 600), (255, 256), (256, 600), (599, 600), (3, 300)):
        leaf = leaf_hash(next(storage.entries(index, index + 1)))
        assert root_from_inclusion(index, size, leaf, tiles.inclusion(index, size)) == roots[size] == tiles.root(size)
    for old, size in ((0, 600), (1, 600), (256, 600), (257, 512), (599, 600), (600, 600)):
        check_consistency(old, roots.get(old, Edge().root()), size, roots[size], tiles.consistency(old, size))
    storage.close()


def test_only_one_process_at_a_time_has_it_open(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, BRU)
    with pytest.raises(Conflict, match="is open in another process"):
        Storage.open(tmp_path, BRU)
    storage.close()
    Storage.open(tmp_path, BRU).close()


# Failures.


class Trouble:
    """Lets the nth call of a kind fail, as a full disk or a broken one does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
        self.calls = 0
        self._number, self._code = number, code
        for where, name in (
            (os, "open"),
            (os, "fsync"),
            (Path, "replace"),
            (Path, "mkdir"),
            (durable, "sync_directory"),
        ):
            monkeypatch.setattr(where, name, self._failing(getattr(where, name)))  # type: ignore[no-untyped-call]

    def _failing(self, real):  # type: ignore[no-untyped-def]  # any of the five
        def call(*given, **named):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.calls == self._number:
                raise OSError(self._code, os.strerror(self._code))
            return real(*given, **named)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("start", [0, 3, 254])
def test_whatever_fails_the_log_is_as_before_and_the_next_commit_succeeds(
    tmp_path: Path, start: int, code: int
) -> None:
    number = 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        written(directory, start)
        storage = Storage.open(directory, BRU)
        with pytest.MonkeyPatch.context() as patch:
            trouble = Trouble(patch, number, code)
            try:
                commit(storage, [entry(start), entry(start + 1), entry(start + 2)])
                said = ""
            except NotRecorded as error:
                said = error.message
        assert not said or os.strerror(code) in said
        if trouble.calls < number:
            assert not said
            storage.close()
            break
        # Either nothing of it is in the log, or, after the very last step, all of it.
        assert storage.size in ((start, start + 3) if said else (start + 3,))
        good(directory, storage.size)
        size = storage.size
        assert commit(storage, [entry(size)]) == size
        storage.close()
        good(directory, size + 1)
        Storage.open(directory, BRU).close()
        good(directory, size + 1)
        assert not list((directory / ".state").glob("new.*"))
    assert number > 10


def test_two_trees_of_one_size_are_never_signed_even_if_the_last_sync_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(tmp_path, BRU)
    commit(storage, [entry(0)])

    def failing(directory: Path) -> None:
        if directory == tmp_path:
            raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", failing)
        with pytest.raises(NotRecorded):
            commit(storage, [entry(1)])
    seen = Signed.decode((tmp_path / "checkpoint").read_bytes()).checkpoint
    assert seen.size == 2
    commit(storage, [entry(7)])
    assert storage.tiles().root(2) == seen.root
    storage.close()


class CrashError(Exception):
    """The process ends here."""


def test_tiles_beyond_the_checkpoint_are_removed_when_the_log_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 250)
    before = Copy.of(tmp_path).files
    storage = Storage.open(tmp_path, BRU)
    real = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if target.name == "checkpoint":
            raise CrashError
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(CrashError):
            commit(storage, [entry(number) for number in range(600)])
    storage.close()
    assert "tile/1/000.p/3" in Copy.of(tmp_path).files
    Storage.open(tmp_path, BRU).close()
    assert Copy.of(tmp_path).files == before
    good(tmp_path, 250)


def test_what_a_crash_leaves_beside_is_removed(tmp_path: Path) -> None:
    written(tmp_path, 1)
    left = [tmp_path / ".state" / "new.0011", tmp_path / ".checkpoint.abcd", tmp_path / ".state" / ".key.pem.abcd"]
    for path in left:
        path.write_bytes(b"half")
    Storage.open(tmp_path, BRU).close()
    assert not any(path.exists() for path in left)
    good(tmp_path, 1)


# What is never written to.


def test_a_log_that_is_not_what_was_written_is_not_gone_on_with(tmp_path: Path) -> None:
    for name in ("tile/0/000.p/5", "tile/entries/000.p/5", "checkpoint"):
        directory = tmp_path / name.replace("/", "-")
        written(directory, 5)
        raw = bytearray((directory / name).read_bytes())
        raw[20] ^= 1
        (directory / name).write_bytes(raw)
        with pytest.raises(EvidenceFailed, match=r"is not what was written there: .*; see `landbridge audit verify"):
            Storage.open(directory, BRU)


def test_a_log_without_a_tile_a_checkpoint_or_its_key_is_not_gone_on_with(tmp_path: Path) -> None:
    written(tmp_path / "a", 5)
    (tmp_path / "a" / "tile/0/000.p/5").unlink()
    with pytest.raises(EvidenceFailed, match=r"tile/0/000\.p/5 is missing"):
        Storage.open(tmp_path / "a", BRU)
    written(tmp_path / "b", 5)
    (tmp_path / "b" / "checkpoint").unlink()
    with pytest.raises(EvidenceFailed, match="has entries and no checkpoint"):
        Storage.open(tmp_path / "b", BRU)
    written(tmp_path / "c", 5)
    (tmp_path / "c" / ".state" / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"key\.pem, is missing: restore it"):
        Storage.open(tmp_path / "c", BRU)


def test_a_log_of_another_origin_or_with_a_bad_key_is_not_opened(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with pytest.raises(EvidenceFailed, match="it is another log's"):
        Storage.open(tmp_path, AMS)
    key = tmp_path / ".state" / "key.pem"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600 it"):
        Storage.open(tmp_path, BRU)
    key.chmod(0o600)
    key.write_bytes(b"no key")
    with pytest.raises(ConfigError, match="is not an unencrypted PEM key"):
        Storage.open(tmp_path, BRU)


def test_a_place_that_cannot_hold_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be opened: File exists"):
        Storage.open(tmp_path / "file", BRU)


# Witnesses and pruning.


def test_cosignatures_are_kept_beside_and_the_log_grows_on(tmp_path: Path) -> None:
    written(tmp_path, 3)
    cosigned(tmp_path)
    assert Signed.decode((tmp_path / "cosigned").read_bytes()).checkpoint.size == 3
    written(tmp_path, 3, first=3)
    good(tmp_path, 6)


def test_pruned_entries_are_gone_and_all_proofs_stay(tmp_path: Path) -> None:
    written(tmp_path, 1000)
    storage = Storage.open(tmp_path, BRU)
    commit(storage, [entry(1000, event="log.pruned", seen={"pruned": {"minimum": 600, "retention_days": 365}})])
    tiles = storage.tiles()
    # Also from a head in the middle of what goes, which a witness may have recorded.
    sizes, indexes = (1, 100, 256, 600), (0, 100, 600, 1000)
    before = list(map(tiles.inclusion, indexes)), list(map(tiles.consistency, sizes)), tiles.root()
    assert storage.prune(600) == 2
    assert storage.prune(600) == 0
    tiles = storage.tiles()
    assert (list(map(tiles.inclusion, indexes)), list(map(tiles.consistency, sizes)), tiles.root()) == before
    with pytest.raises(NotRecorded, match="cannot be read"):
        list(storage.entries(0, 1))
    with pytest.raises(UsageError):
        storage.prune(1002)
    commit(storage, [entry(1001)])
    storage.close()
    Storage.open(tmp_path, BRU).close()
    report = verify(Copy.of(tmp_path))
    assert report.findings == []
    assert (report.minimum, report.size, report.entries) == (600, 1002, 1002 - 512)


def test_the_lock_is_not_inherited_and_the_key_is_not_in_what_is_printed(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, BRU)
    assert not os.get_inheritable(storage._lock.fileno())
    assert repr(storage.signer) == f"Signer({BRU!r})"
    storage.close()
