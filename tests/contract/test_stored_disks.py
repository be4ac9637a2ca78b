"""What an agent may rely on of every hypervisor, where it reads what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.hypervisor.base import DiskView, Presence
from landbridge.errors import HypervisorError
from tests.contract.hypervisor_worlds import MIB, World
from tests.contract.test_hypervisor import prepared

GRAIN = 1 << 16
NAME, TARGETS = "landbridge-test", ("vda",)


@pytest.fixture
def sockets(world: World) -> Path:
    """A directory of sockets that QEMU can reach."""
    return world.sockets


def arrived(world: World, *, disk_format: str = "qcow2") -> str:
    """A VM that has moved, and stands still at the destination."""
    uuid = world.new_vm(disk_format=disk_format)
    world.source.move(prepared(world, uuid))
    assert world.destination.presence(uuid) is Presence.ARRIVED
    return uuid


def read(view: DiskView) -> bytes:
    return b"".join(bytes(view.read(at, MIB)) for at in range(0, view.size, MIB))


def written(view: DiskView) -> set[int]:
    """The grains in which something was written; the extents are all of the disk, in order."""
    found: set[int] = set()
    at = 0
    for extent in view.extents():
        assert extent.offset == at
        at += extent.length
        if extent.written:
            found.update(range(extent.offset // GRAIN, -(-at // GRAIN)))
    assert at == view.size
    return found


def test_what_is_written_after_the_arrival_is_told_and_the_rest_is_as_the_source_has_left_it(
    world: World, sockets: Path
) -> None:
    uuid = arrived(world)
    world.destination.open_bitmap(uuid, NAME, TARGETS)
    world.destination.open_bitmap(uuid, NAME, TARGETS)
    assert world.destination.presence(uuid) is Presence.ARRIVED
    world.destination.resume(uuid)
    world.write(uuid, 3 * GRAIN + 512, 512)

    with world.destination.freeze_disks(uuid, NAME, TARGETS, sockets) as (there,):
        world.write(uuid, 5 * GRAIN, GRAIN)
        with world.source.idle_disks([world.left()], sockets) as (here,):
            assert (here.target, here.size, there.target, there.size) == ("vda", 8 * MIB, "vda", 8 * MIB)
            assert (written(here), written(there)) == (set(), {3})
            ours, theirs = read(here), read(there)
    assert ours[: 3 * GRAIN] + ours[4 * GRAIN :] == theirs[: 3 * GRAIN] + theirs[4 * GRAIN :]
    assert theirs[3 * GRAIN + 512 : 3 * GRAIN + 1024] == b"\1" * 512
    assert world.destination.presence(uuid) is Presence.RUNNING

    with world.destination.freeze_disks(uuid, NAME, TARGETS, sockets) as (again,):
        assert written(again) == {3, 5}
    world.destination.close_bitmap(uuid, NAME)
    world.destination.close_bitmap(uuid, NAME)
    assert not world.destination.vm(uuid).busy
    with (
        pytest.raises(HypervisorError, match=NAME),
        world.destination.freeze_disks(uuid, NAME, TARGETS, sockets),
    ):
        pytest.fail("there is no bitmap")


def test_what_a_killed_agent_has_frozen_is_ended_with_the_bitmap(world: World, sockets: Path) -> None:
    uuid = arrived(world)
    world.destination.open_bitmap(uuid, NAME, TARGETS)
    world.destination.resume(uuid)
    forgotten = world.destination.freeze_disks(uuid, NAME, TARGETS, sockets)
    forgotten.__enter__()

    world.destination.close_bitmap(uuid, NAME)

    assert not world.destination.vm(uuid).busy
    assert [image for image in world.images("destination") if "landbridge" in image] == []


def test_a_vm_that_had_a_bitmap_can_be_stopped_and_removed(world: World) -> None:
    uuid = arrived(world)
    world.destination.open_bitmap(uuid, NAME, TARGETS)

    assert world.destination.destroy(uuid)
    world.destination.undefine(uuid)
    assert world.destination.presence(uuid) is Presence.ABSENT
    world.destination.close_bitmap(uuid, NAME)


def test_an_image_that_carries_no_bitmap_is_refused_by_name(world: World) -> None:
    uuid = arrived(world, disk_format="raw")
    with pytest.raises(HypervisorError, match="Disk vda of web is raw, which carries no bitmap"):
        world.destination.open_bitmap(uuid, NAME, TARGETS)
    assert world.destination.presence(uuid) is Presence.ARRIVED


def test_an_image_in_use_is_not_read(world: World, sockets: Path) -> None:
    world.new_vm(disk_format="qcow2")
    with (
        pytest.raises(HypervisorError, match="Disk vda cannot be read"),
        world.source.idle_disks([world.left()], sockets),
    ):
        pytest.fail("a running VM writes to it")


def test_a_vm_that_is_shut_off_is_not_frozen(world: World, sockets: Path) -> None:
    uuid = arrived(world)
    with (
        pytest.raises(HypervisorError, match="does not run"),
        world.source.freeze_disks(uuid, NAME, TARGETS, sockets),
    ):
        pytest.fail("it has left")
