"""Images in libvirt's storage pools: where they lie, made empty for a VM to come, removed when it has gone.

Only pools of files in a directory take part (`FILE_POOLS`). An image belongs to the pool whose directory it
lies in; its volume is named like the file. Everything goes through libvirt, so labels and ownership are the
daemon's.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from agent.hypervisor.libvirt_facts import pool_facts
from agent.hypervisor.placement import new_path, pool_of
from landbridge.errors import AlreadyExists, HypervisorError
from landbridge.v1.types_pb2 import Disk, Pool


def pools(api: Any, link: Any, *, measured: bool = False) -> list[Pool]:
    """The active pools of files, with their sizes: as libvirt last saw them, or as `measured` now."""
    try:
        handles = link.listAllStoragePools(api.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    except api.libvirtError as error:
        if error.get_error_code() == api.VIR_ERR_NO_SUPPORT:
            return []  # a libvirtd without its storage driver
        raise
    found = []
    for handle in handles:
        try:
            pool = pool_facts(handle.XMLDesc())
            if pool is not None:
                if measured:
                    _refresh(api, handle)
                _state, pool.capacity, _allocation, pool.available = handle.info()
                found.append(pool)
        except api.libvirtError as error:
            if error.get_error_code() != api.VIR_ERR_NO_STORAGE_POOL:
                raise  # else: removed since it was listed
    return found


def _refresh(api: Any, handle: Any) -> None:
    # libvirt measures a pool when it makes or deletes a volume; what QEMU and others write meanwhile it does not see.
    try:
        handle.refresh()
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_INTERNAL_ERROR:
            raise  # else: a volume is just being made or removed, which measures the pool, too


def volume(api: Any, link: Any, path: str) -> Any | None:
    """The volume at a path, or None; looks at the directory: libvirt remembers what others have removed."""
    name = pool_of(path, pools(api, link))
    if not name:
        raise HypervisorError(f"The image {path} lies in no active storage pool of this host.")
    pool = link.storagePoolLookupByName(name)
    pool.refresh()
    try:
        return pool.storageVolLookupByName(PurePosixPath(path).name)
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_NO_STORAGE_VOL:
            raise
        return None


def create(api: Any, link: Any, disks: Iterable[tuple[Disk, Pool]]) -> list[str]:
    """Create an empty image for each disk in its new pool; all or none. AlreadyExists if a name is taken."""
    made: list[Any] = []
    paths: list[str] = []
    try:
        for disk, pool in disks:
            path = new_path(pool, disk)
            _require_free(api, link, path)
            handle = link.storagePoolLookupByName(pool.name).createXML(_volume_xml(disk))
            made.append(handle)
            paths.append(handle.path())
    except (api.libvirtError, HypervisorError, AlreadyExists):
        for handle in made:
            handle.delete()
        raise
    return paths


def _require_free(api: Any, link: Any, path: str) -> None:
    if volume(api, link, path) is not None:
        raise AlreadyExists(f"The image {path} exists already: remove or rename it, and try again.")


def remove(api: Any, link: Any, path: str) -> bool:
    """Remove an image; False if it is gone."""
    found = volume(api, link, path)
    if found is None:
        return False
    found.delete()
    return True


def _volume_xml(disk: Disk) -> str:
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = disk.volume
    ET.SubElement(root, "allocation").text = "0"
    ET.SubElement(root, "capacity", unit="bytes").text = str(disk.virtual_size)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type=disk.format)
    if disk.format == "qcow2":
        ET.SubElement(target, "compat").text = "1.1"  # libvirt's default, 0.10, cannot say "zeros" cheaply
    return ET.tostring(root, encoding="unicode")
