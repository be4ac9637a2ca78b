"""A guest's move by libvirt and QEMU alone, in the clear, over TCP from host to host: both sites' networks are routed.

`METHODS` are what `virsh migrate` of libvirt 9.0 offers. `multifd-zstd` is not among it: QEMU 7.2 can, but libvirt has no option
for it before 9.4, so it is set in the guest's definition, on QEMU's command line, behind libvirt's back.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.lab.guests import second_image
from tests.lab.lab import Lab
from tests.lab.network import node
from tests.lab.settings import GuestSettings, LabError

MULTIFD = ("--parallel", "--parallel-connections", "4")
METHODS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "multifd": MULTIFD,
    "xbzrle": ("--compressed", "--comp-methods", "xbzrle", "--comp-xbzrle-cache", str(256 << 20)),
    "auto-converge": ("--auto-converge",),
    "multifd-zstd": MULTIFD,
}
# What a guest needs on its QEMU's command line for a method.
QEMU: Mapping[str, str] = {"multifd-zstd": "-global migration.multifd-compression=zstd"}
NBD_PORT = 49_999
# Seconds that an aborted migration has to end.
ABORT_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """How long it took, and what it put on the WAN, both directions; one that was aborted at its limit is not completed."""

    completed: bool
    seconds: float
    wan_bytes: int


def move(lab: Lab, vm: str, guest: GuestSettings, method: str, limit: float) -> Outcome:
    """Move a guest with its disks from east-1 to west-1, or abort after `limit` seconds. Raises LabError if it fails."""
    there, destination = lab.hosts["west-1"], node("west-1").lan
    images = [(f"{vm}.{guest.disk_format}", guest.disk, guest.disk_format)]
    if guest.files_disk:
        images.append((second_image(vm), guest.files_disk, "raw"))
    for image, size, form in images:
        there.virsh("vol-create-as", "default", image, f"{size}M", "--allocation", "0", "--format", form)
    here = lab.hosts["east-1"]
    argv = [
        *("virsh", "-q", "-c", "qemu:///system", "migrate", "--live", "--p2p", "--persistent", "--copy-storage-all"),
        *(vm, f"qemu+tcp://{destination}/system", "--migrateuri", f"tcp://{destination}"),
        *("--disks-uri", f"tcp://{destination}:{NBD_PORT}", *METHODS[method]),
    ]
    carried, began = lab.wan.bytes_carried(), time.monotonic()
    with subprocess.Popen(
        [*here.enter(), *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as migrate:
        try:
            said, _ = migrate.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            outcome = Outcome(False, time.monotonic() - began, lab.wan.bytes_carried() - carried)
            here.virsh("domjobabort", vm)
            migrate.communicate(timeout=ABORT_PATIENCE)
            return outcome
        outcome = Outcome(True, time.monotonic() - began, lab.wan.bytes_carried() - carried)
    if migrate.returncode != 0:
        raise LabError(f"`virsh migrate` of {vm} ({method}) failed: {said.strip()}")
    return outcome
