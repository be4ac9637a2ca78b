"""Images of a VM that is shut off, read through qemu-nbd: whatever their format, and as the guest saw them.

qemu-nbd locks an image as QEMU does: one that a VM uses is refused, and no VM starts on one while it is read.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.hypervisor.base import DiskView
from agent.hypervisor.nbd_client import NbdView
from landbridge.errors import HypervisorError
from landbridge.v1.types_pb2 import Disk

PROGRAM = "qemu-nbd"
# It ends with the thread that started it, be it that this agent is killed before it has connected: else it would hold the image for ever.
# By KILL: a TERM that comes while it begins is lost, and it only reads.
TIED = ("setpriv", "--pdeathsig", "KILL")
# Seconds in which it serves, or has said why not; and in which it ends once nobody reads any more.
PATIENCE_S = 10.0
_INTERVAL_S = 0.01


def can_serve() -> bool:
    """Whether this host has what it takes."""
    return all(shutil.which(each) is not None for each in (TIED[0], PROGRAM))


@contextmanager
def served(disks: Sequence[Disk], directory: Path) -> Iterator[list[DiskView]]:
    """See `Hypervisor.idle_disks`; the sockets are in `directory`, each under the disk's target."""
    with ExitStack() as stack:
        yield [stack.enter_context(_view(disk, directory / f"{disk.target}.sock")) for disk in disks]


@contextmanager
def _view(disk: Disk, path: Path) -> Iterator[DiskView]:
    path.unlink(missing_ok=True)
    # The format is said, and never guessed from what the guest has written into a raw image.
    words = ["--read-only", f"--format={disk.format}", f"--socket={path}", f"--export-name={disk.target}"]
    try:
        server = subprocess.Popen(
            [*TIED, PROGRAM, *words, "--", disk.path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise HypervisorError(
            f"Disk {disk.target} cannot be read: {TIED[0]} does not start ({error.strerror}); install it (util-linux)."
        ) from error
    with _ended(server):
        _await_socket(server, path, disk)
        with contextlib.closing(_connect(server, path, disk)) as view:
            yield view


def _await_socket(server: subprocess.Popen[str], path: Path, disk: Disk) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if server.poll() is not None:
            raise _why(server, disk)
        if time.monotonic() > deadline:
            raise HypervisorError(f"Disk {disk.target} cannot be read: {PROGRAM} does not serve {disk.path}.")
        time.sleep(_INTERVAL_S)


def _connect(server: subprocess.Popen[str], path: Path, disk: Disk) -> NbdView:
    try:
        return NbdView(str(path), disk.target, disk.target)
    except HypervisorError as error:
        # It listens before it opens the image: what is wrong with that, it says as it ends.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(1.0)
            raise _why(server, disk) from error
        raise


def _why(server: subprocess.Popen[str], disk: Disk) -> HypervisorError:
    assert server.stderr is not None  # noqa: S101 - asked for
    said = server.stderr.read().strip().replace("\n", " ") or f"{PROGRAM} ended with {server.returncode}"
    return HypervisorError(f"Disk {disk.target} cannot be read: {said.removeprefix(f'{PROGRAM}: ').rstrip('.')}.")


@contextmanager
def _ended(server: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stderr is not None:
            server.stderr.close()
