"""Images of VMs that are shut off: read whatever their format, never while they are in use, and let go by an agent that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.hypervisor import images
from landbridge.errors import HypervisorError
from landbridge.v1.types_pb2 import Disk

MIB = 1 << 20
# Begins to serve, says the server's pid, and does not get further.
KILLED = """
import sys, time
from pathlib import Path
from agent.hypervisor import images
from landbridge.v1.types_pb2 import Disk

def wait(server, path, disk):
    print(server.pid, flush=True)
    time.sleep(60)

images._await_socket = wait
with images.served([Disk(target="vda", path=sys.argv[1], format="qcow2")], Path(sys.argv[2])):
    pass
"""


def image(directory: Path, fmt: str) -> Disk:
    """A disk of 3 MiB, whose second one is random."""
    raw, path = directory / "raw", directory / f"vda.{fmt}"
    raw.write_bytes(bytes(MIB) + os.urandom(MIB) + bytes(MIB))
    subprocess.run(["qemu-img", "convert", "-O", fmt, str(raw), str(path)], check=True)
    return Disk(target="vda", path=str(path), format=fmt)


@pytest.mark.parametrize("fmt", ["qcow2", "raw", "vmdk"])
def test_an_image_is_read_as_its_guest_saw_it_whatever_its_format(tmp_path: Path, fmt: str) -> None:
    disk = image(tmp_path, fmt)
    with images.served([disk], tmp_path) as (view,):
        assert view.size == 3 * MIB
        assert bytes(view.read(0, 3 * MIB)) == (tmp_path / "raw").read_bytes()
        assert sum(extent.length for extent in view.extents() if extent.zero) >= MIB
    assert images.can_serve()


def test_an_image_that_is_not_there_or_is_of_another_format_is_said(tmp_path: Path) -> None:
    for disk in (Disk(target="vda", path="/nowhere", format="raw"), image(tmp_path, "raw")):
        disk.format = "qcow2"
        with (
            pytest.raises(HypervisorError, match="Disk vda cannot be read: Failed to"),
            images.served([disk], tmp_path),
        ):
            pytest.fail("it cannot be opened")


def test_a_host_without_the_program_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PROGRAM", "qemu-nbd-that-is-not-there")
    assert not images.can_serve()
    with (
        pytest.raises(HypervisorError, match="qemu-nbd-that-is-not-there"),
        images.served([image(tmp_path, "raw")], tmp_path),
    ):
        pytest.fail("there is no program")


def test_an_agent_that_is_killed_as_it_begins_leaves_no_server_behind(tmp_path: Path) -> None:
    disk = image(tmp_path, "qcow2")
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED, disk.path, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    server = Path(f"/proc/{int(agent.stdout.readline())}/stat")
    deadline = time.monotonic() + 20
    while not (tmp_path / "vda.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    while server.exists() and server.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it serves on"
        time.sleep(0.01)
