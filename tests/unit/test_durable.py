"""Files that are whole or absent: a crash at any instant leaves the old one or the new one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from landbridge import durable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    durable.write(tmp_path / "record", b"old")
    return tmp_path / "record"


def only(path: Path) -> bytes:
    """The file's content; nothing else is in its directory."""
    assert list(path.parent.iterdir()) == [path]
    return path.read_bytes()


class CrashError(Exception):
    """The process ends here."""


def test_a_file_is_written_and_replaced(path: Path) -> None:
    assert only(path) == b"old"
    durable.write(path, b"new" * 100_000)
    assert only(path) == b"new" * 100_000


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_mode_is_as_asked_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        durable.write(path, b"new", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("where", "name", "left"),
    [
        (os, "fchmod", b"old"),
        (os, "fsync", b"old"),
        (Path, "replace", b"old"),
        (durable, "sync_directory", b"new"),
    ],
)
def test_a_failure_leaves_the_old_file_or_the_new_one_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, left: bytes
) -> None:
    def crash(*_: object) -> None:
        raise CrashError

    monkeypatch.setattr(where, name, crash)
    with pytest.raises(CrashError):
        durable.write(path, b"new")
    assert only(path) == left


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        happened.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        happened.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    durable.write(path, b"new")
    assert happened == ["file", "replace", "directory"]


def test_a_directory_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.write(tmp_path / "nowhere" / "record", b"x")


def test_removing_twice_is_removing_once(path: Path) -> None:
    durable.remove(path)
    assert not path.exists()
    durable.remove(path)
