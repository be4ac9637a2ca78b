"""The files of a lab's guest, as the guest will find them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.files import Tree, installed, own_files

# Entries of cpio's "newc" format: 13 numbers of 8 digits behind a magic; the name and the content are padded to 4 bytes.
HEADER = 6 + 13 * 8


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two files, one of them the guest's own."""
    (tmp_path / "library").write_bytes(b"code" * 5000)
    return Tree({"usr/lib/deep/library": tmp_path / "library"}, {"etc/hostname": b"web\n"})


def unpacked(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and content of each entry."""
    found, at = [], 0
    while at < len(archive):
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, named = numbers[1], numbers[6], numbers[11]
        name = archive[at + HEADER : at + HEADER + named - 1].decode()
        at += HEADER + named + -(HEADER + named) % 4
        found.append((name, mode, archive[at : at + size]))
        at += size + -size % 4
    return found


def test_an_archive_names_each_folder_before_what_is_in_it(tree: Tree) -> None:
    *entries, last = unpacked(b"".join(tree.archive()))
    assert last[0] == "TRAILER!!!"
    seen = {"."}
    for name, mode, _ in entries:
        assert str(Path(name).parent) in seen
        if mode == 0o040755:
            seen.add(name)
    contents = {name: content for name, mode, content in entries if mode == 0o100644}
    assert contents == {"files/usr/lib/deep/library": b"code" * 5000, "files/etc/hostname": b"web\n"}


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs e2fsprogs: make install")
def test_a_file_system_holds_the_same_files(tree: Tree, tmp_path: Path) -> None:
    image = tmp_path / "pool" / "image.raw"
    image.parent.mkdir()
    tree.write_ext4(image, 16)
    assert image.stat().st_size == 16 << 20

    def content(name: str) -> bytes:
        return subprocess.run(["debugfs", "-R", f"cat {name}", str(image)], capture_output=True, check=True).stdout

    assert content("/usr/lib/deep/library") == b"code" * 5000
    assert content("/etc/hostname") == b"web\n"


def test_two_guests_have_no_file_of_their_own_in_common() -> None:
    one, other = own_files("one"), own_files("other")
    assert one == own_files("one")
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs a Debian machine")
def test_as_much_of_this_machine_is_taken_as_was_asked_for() -> None:
    files = installed(24)
    pages = sum(-(-path.stat().st_size // 4096) for path in files.values())
    assert 0.95 * 24 <= pages / 256 <= 24
    assert all(str(path) == f"/{name}" for name, path in files.items())
