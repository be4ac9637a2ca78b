"""Reading disks through NBD: a real qemu-nbd, and servers that break what they promise."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.hypervisor import nbd_client
from agent.hypervisor.base import Extent
from agent.hypervisor.nbd_client import NbdView, _side_by_side
from landbridge.errors import HypervisorError

KIB, MIB = 1 << 10, 1 << 20


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """3 MiB and a half: a MiB of random bytes, a hole, and a bitmap that knows of one write."""
    path = tmp_path / "vda.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "3584k")
    (tmp_path / "random").write_bytes(os.urandom(MIB))
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {tmp_path}/random 0 1M", str(path))
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", str(path), "since")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", "-c", "write -z 2112k 64k", str(path))
    return path


@pytest.fixture
def served(image: Path, tmp_path: Path) -> Iterator[str]:
    """The socket at which a qemu-nbd serves it to everybody."""
    path = tmp_path / "s"
    words = ["qemu-nbd", "--read-only", "--persistent", "--shared=4", "-f", "qcow2", "-B", "since", "-x", "vda", "-k"]
    server = subprocess.Popen([*words, str(path), str(image)])
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield str(path)
    server.terminate()
    server.wait()


def test_what_is_a_hole_and_what_was_written_is_told_of_all_of_a_disk(served: str) -> None:
    view = NbdView(served, "vda", "vda", "since")
    extents = list(view.extents())
    view.close()
    assert view.size == 3584 * KIB
    assert [extent.offset for extent in extents] == [0, *(e.offset + e.length for e in extents[:-1])]
    assert [(e.offset // KIB, e.zero, e.written) for e in extents] == [
        (0, False, False),
        (1024, True, False),
        (2048, False, True),
        (2112, True, True),
        (2176, True, False),
    ]


def test_the_status_of_a_disk_is_asked_for_in_pieces(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NbdView(served, "vda", "vda", "since")
    monkeypatch.setattr(nbd_client, "MOST_ASKED", 320 * KIB)
    in_pieces = list(whole.extents())
    whole.close()
    assert len(in_pieces) > 10
    assert sum(e.length for e in in_pieces) == whole.size
    assert {e.offset // KIB for e in in_pieces if e.written} >= {2048, 2112}


def test_bytes_are_read_as_they_are_stored_holes_as_zeros(served: str, tmp_path: Path) -> None:
    view = NbdView(served, "vda", "vda")
    assert view.read(0, MIB) == (tmp_path / "random").read_bytes()
    assert view.read(MIB + 5, 100_000) == bytes(100_000)
    assert view.read(2 * MIB - 10, 64 * KIB) == bytes(10) + b"\7" * (64 * KIB - 10)
    assert {extent.written for extent in view.extents()} == {False}
    view.close()


def test_an_export_or_a_bitmap_that_is_not_there_is_said(served: str, tmp_path: Path) -> None:
    with pytest.raises(
        HypervisorError, match="Disk vda cannot be read: it refuses option 10: export 'other' not present"
    ):
        NbdView(served, "other", "vda")
    with pytest.raises(HypervisorError, match="it does not know qemu:dirty-bitmap:other"):
        NbdView(served, "vda", "vda", "other")
    with pytest.raises(HypervisorError, match="No such file"):
        NbdView(str(tmp_path / "nobody"), "vda", "vda")


def test_a_server_that_dies_is_an_error_and_no_short_disk(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = NbdView(served, "vda", "vda")
    view._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(HypervisorError, match="Disk vda cannot be read"):
        view.read(0, 512)
    with pytest.raises(HypervisorError, match="Disk vda cannot be read"):
        list(view.extents())
    view.close()


CHUNK = struct.Struct("!IHHQI")


def answering(*answers: bytes) -> tuple[NbdView, Callable[[], None]]:
    """A view that is past haggling, of a disk of 1 MiB, whose server says this, and then hangs up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    view = NbdView.__new__(NbdView)
    view.target, view.size, view._cookie = "vda", MIB, 0
    view._contexts, view._wanted, view._bitmap = {1: "base:allocation"}, {"base:allocation"}, "none"
    view._socket = ours

    def serve() -> None:
        for answer in answers:
            theirs.recv(28)
            theirs.sendall(answer)
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return view, thread.join


def chunk(kind: int, payload: bytes, cookie: int = 1, flags: int = 1) -> bytes:
    return CHUNK.pack(0x668E33EF, flags, kind, cookie, len(payload)) + payload


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (chunk(1, struct.pack("!Q", 0) + b"abc"), "other bytes than it was asked for"),
        (chunk(1, struct.pack("!Q", 4) + b"abcd"), "other bytes than it was asked for"),
        (chunk(2, struct.pack("!QI", 0, 3)), "other bytes than it was asked for"),
        (chunk(0, b""), "other bytes than it was asked for"),
        (chunk(1, struct.pack("!Q", 0) + b"abcd", cookie=9), "does not fit what was asked"),
        (chunk(0x8001, struct.pack("!IH", 5, 0)), "error 5"),
        (struct.pack("!IIQ", 0x67446698, 5, 1), "error 5"),
        (CHUNK.pack(0x668E33EF, 1, 1, 1, 2**31), "2147483648 bytes at once"),
        (chunk(5, b""), "too short"),
        (b"x" * 16, "does not fit what was asked"),
        (chunk(1, b"ab"), "too short"),
        (b"", "hung up"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer: bytes, why: str) -> None:
    view, join = answering(answer)
    with pytest.raises(HypervisorError, match=why):
        view.read(0, 4)
    view.close()
    join()


@pytest.mark.parametrize("status", [struct.pack("!I", 1), struct.pack("!III", 1, 0, 0), struct.pack("!III", 2, 512, 0)])
def test_a_server_that_says_nothing_of_its_blocks_is_refused_instead_of_asked_for_ever(status: bytes) -> None:
    view, join = answering(chunk(5, status))
    with pytest.raises(HypervisorError, match="of its blocks"):
        list(view.extents())
    view.close()
    join()


def test_two_lists_stand_side_by_side_as_far_as_both_tell() -> None:
    zeros, dirty = [(4, 0), (2, 3), (4, 0)], [(5, 0), (3, 1)]
    assert list(_side_by_side(10, zeros, dirty)) == [
        Extent(10, 4),
        Extent(14, 1, zero=True),
        Extent(15, 1, zero=True, written=True),
        Extent(16, 2, written=True),
    ]


# Flushing.


def serving(tmp_path: Path, *arguments: str) -> tuple[str, subprocess.Popen[bytes]]:
    """A qemu-nbd that can be written to, and the socket of its one export."""
    path = tmp_path / "w"
    server = subprocess.Popen(
        ["qemu-nbd", "--persistent", "--shared=4", "-x", "drive-vda", "-k", str(path), *arguments]
    )
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return str(path), server


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait()


def test_what_a_server_was_given_is_in_the_image_once_it_is_flushed(image: Path, tmp_path: Path) -> None:
    path, server = serving(tmp_path, "--cache=writeback", "-f", "qcow2", str(image))
    try:
        run("qemu-io", "-f", "raw", "-t", "unsafe", "-c", "write -P 9 3M 64k", f"nbd+unix:///drive-vda?socket={path}")
        nbd_client.flush(path)
        # Killed, it writes nothing more of what it had in memory: the image's own tables.
        server.kill()
        server.wait()
        run("qemu-io", "-f", "qcow2", "-c", "read -P 9 3M 64k", str(image))
    finally:
        end(server)


def test_a_disk_that_cannot_be_flushed_is_said(image: Path, tmp_path: Path) -> None:
    broken = f"driver=blkdebug,inject-error.0.event=flush_to_disk,inject-error.0.errno=5,image.driver=file,image.filename={image}"
    path, server = serving(
        tmp_path, "--image-opts", f"driver=raw,{','.join('file.' + each for each in broken.split(','))}"
    )
    try:
        words = ["qemu-io", "-f", "raw", "-t", "unsafe", "-c", "write -P 9 0 64k"]
        subprocess.run([*words, f"nbd+unix:///drive-vda?socket={path}"], check=False, capture_output=True)
        with pytest.raises(HypervisorError, match="Disk drive-vda cannot be flushed: it answers with error 5"):
            nbd_client.flush(path)
    finally:
        end(server)
    with pytest.raises(HypervisorError, match="cannot be flushed"):
        nbd_client.flush(str(tmp_path / "nobody"))
