"""Where a VM's images and networks go on a host that it comes to. Pure, and the same for every hypervisor."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from agent.hypervisor.domain_xml import localize as rewrite
from landbridge.errors import HypervisorError
from landbridge.v1.agent_pb2 import Mapping
from landbridge.v1.types_pb2 import Disk, Pool, Vm


def writable(vm: Vm) -> list[Disk]:
    """The disks that a move copies."""
    return [disk for disk in vm.disks if not disk.read_only]


def pool_of(path: str, pools: Iterable[Pool]) -> str:
    """Name of the pool whose directory holds a path directly; empty if none does."""
    parent = str(PurePosixPath(path).parent)
    return next((pool.name for pool in pools if pool.path == parent), "")


def new_path(pool: Pool, disk: Disk) -> str:
    """Where a disk's image goes in a pool: under its own name."""
    return f"{pool.path}/{disk.volume}"


def mapped_pool(disk: Disk, mapping: Mapping, pools: Iterable[Pool]) -> Pool | None:
    """The pool here that a disk goes to, or None; a pool that the mapping leaves out keeps its name."""
    wanted = mapping.pools.get(disk.pool, disk.pool)
    return next((pool for pool in pools if pool.name == wanted), None)


def placements(vm: Vm, mapping: Mapping, pools: Collection[Pool]) -> list[tuple[Disk, Pool]]:
    """Each writable disk and its pool here; HypervisorError if one has no place, or two have the same."""
    placed: dict[str, tuple[Disk, Pool]] = {}
    for disk in writable(vm):
        pool = mapped_pool(disk, mapping, pools)
        if not disk.pool or pool is None:
            wanted = mapping.pools.get(disk.pool, disk.pool)
            raise HypervisorError(
                f"Disk {disk.target} of {vm.name} has no place here: there is no active pool {wanted!r}; map its pool."
            )
        if disk.volume in ("", ".", "..") or "/" in disk.volume:
            raise HypervisorError(f"Disk {disk.target} of {vm.name} has no usable image name: {disk.volume!r}.")
        path = new_path(pool, disk)
        if path in placed:
            raise HypervisorError(f"Two disks of {vm.name} would both become {path}: map their pools apart.")
        placed[path] = (disk, pool)
    return list(placed.values())


def localize(xml: str, vm: Vm, mapping: Mapping, pools: Collection[Pool], networks: Collection[str]) -> str:
    """The definition with the paths and networks of the host that has these pools and networks."""
    images = {disk.path: new_path(pool, disk) for disk, pool in placements(vm, mapping, pools)}
    names = {name: mapping.networks.get(name, name) for name in vm.networks}
    return rewrite(xml, images, {here: there for here, there in names.items() if there in networks})
