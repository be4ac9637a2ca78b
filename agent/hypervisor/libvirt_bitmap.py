"""What a VM writes, and its disks as they stand at one moment, while it runs: libvirt's checkpoints and pull backups.

    open      a checkpoint: QEMU puts a bitmap into each qcow2 image, and marks there what the guest writes from now on
    freeze    a backup in pull mode since that checkpoint: QEMU serves the disks over NBD as they stand, with the bitmaps; what the
              guest writes over meanwhile is kept in a scratch image beside each disk's own
    thaw      the backup job is ended, the scratch images are removed
    close     thaw what a killed agent has left, and delete the checkpoint with its bitmaps

Given libvirt's module, like its siblings; libvirt's errors pass through.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import defusedxml.ElementTree as Safe

from agent.hypervisor import domain_xml as definitions
from agent.hypervisor import libvirt_storage
from landbridge.errors import HypervisorError

# The only format whose images carry bitmaps.
FORMAT = "qcow2"
SCRATCH = ".landbridge"
# Seconds for a backup job to end, and between two looks whether it has.
_END_PATIENCE_S = 30.0
_END_INTERVAL_S = 0.05


def open_(api: Any, domain: Any, name: str, targets: Sequence[str]) -> None:
    """See `Hypervisor.open_bitmap`."""
    if _checkpoint(api, domain, name) is not None:
        return
    for disk in definitions.facts(domain.XMLDesc()).disks:
        if disk.target in targets and disk.format != FORMAT:
            raise HypervisorError(
                f"Disk {disk.target} of {domain.name()} is {disk.format or 'of no known format'}, which carries no bitmap: "
                f"only {FORMAT} does."
            )
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = "What is written here since the VM arrived: landbridge removes it."
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap", bitmap=name)
    domain.checkpointCreateXML(ET.tostring(root, encoding="unicode"), 0)


def freeze(api: Any, link: Any, domain: Any, name: str, targets: Sequence[str], socket: str) -> None:
    """Begin what `Hypervisor.freeze_disks` reads: each disk is an export under its target's name, and so is its bitmap."""
    if not domain.isActive():
        raise HypervisorError(
            f"The VM {domain.name()} does not run: its disks cannot be read while it might be started."
        )
    _remove_scratch(api, link, domain, targets)
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "incremental").text = name
    ET.SubElement(root, "server", transport="unix", socket=socket)
    disks = ET.SubElement(root, "disks")
    for disk in definitions.facts(domain.XMLDesc()).disks:
        if disk.target not in targets:
            ET.SubElement(disks, "disk", name=disk.target, backup="no")
            continue
        words = {"name": disk.target, "exportname": disk.target, "exportbitmap": disk.target}
        element = ET.SubElement(disks, "disk", words, backup="yes", type="file")
        ET.SubElement(element, "driver", type=FORMAT)
        ET.SubElement(element, "scratch", file=disk.path + SCRATCH)
    domain.backupBegin(ET.tostring(root, encoding="unicode"), None, 0)


def thaw(api: Any, link: Any, domain: Any, name: str) -> None:
    """End the backup since this checkpoint, if one is under way, and remove what it leaves."""
    deadline = time.monotonic() + _END_PATIENCE_S
    targets = _backed_up(api, domain, name)
    if targets is None:
        return
    domain.abortJob()
    while _backed_up(api, domain, name) is not None:
        if time.monotonic() > deadline:
            raise HypervisorError(f"libvirt does not end the backup of {domain.name()}.")
        time.sleep(_END_INTERVAL_S)
    _remove_scratch(api, link, domain, targets)


def close(api: Any, link: Any, domain: Any, name: str) -> None:
    """See `Hypervisor.close_bitmap`."""
    thaw(api, link, domain, name)
    checkpoint = _checkpoint(api, domain, name)
    if checkpoint is not None:
        # libvirt opens no image of a VM that is shut off: there the bitmap stays in it, and is a bitmap that nobody reads.
        checkpoint.delete(0 if domain.isActive() else api.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _checkpoint(api: Any, domain: Any, name: str) -> Any | None:
    try:
        return domain.checkpointLookupByName(name)
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise
        return None


def _backed_up(api: Any, domain: Any, name: str) -> list[str] | None:
    """The disks in the backup since this checkpoint that is under way; None if there is none, or it is somebody else's."""
    if not domain.isActive():
        return None
    try:
        root: ET.Element = Safe.fromstring(domain.backupGetXMLDesc(), forbid_dtd=True)
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_NO_DOMAIN_BACKUP:
            raise
        return None
    if root.findtext("incremental") != name:
        return None
    return [disk.get("name", "") for disk in root.iterfind("disks/disk") if disk.get("backup") != "no"]


def _remove_scratch(api: Any, link: Any, domain: Any, targets: Sequence[str]) -> None:
    """libvirt removes them itself, unless it or its QEMU was killed."""
    for disk in definitions.facts(domain.XMLDesc()).disks:
        if disk.target in targets:
            libvirt_storage.remove(api, link, disk.path + SCRATCH)
