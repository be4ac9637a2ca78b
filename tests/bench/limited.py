"""A guest's move that is given up at a limit, by libvirt alone or through Landbridge, and what the guest counted meanwhile.

By libvirt alone it goes in the clear, over TCP from host to host: both sites' networks are routed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from tests.lab.guests import second_image
from tests.lab.judge import BEAT
from tests.lab.lab import Lab
from tests.lab.network import node
from tests.lab.settings import GuestSettings, LabError

NBD_PORT = 49_999
# Seconds that an aborted migration has to end.
ABORT_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """How long it took, and what it put on the WAN, both directions; one that was aborted at its limit is not completed."""

    completed: bool
    seconds: float
    wan_bytes: int


def by_libvirt(lab: Lab, vm: str, guest: GuestSettings, options: tuple[str, ...], limit: float) -> Outcome:
    """Move a guest with its disks from east-1 to west-1, or abort after `limit` seconds. Raises LabError if it fails.

    `options` are those of `virsh migrate`.
    """
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
        *("--disks-uri", f"tcp://{destination}:{NBD_PORT}", *options),
    ]
    outcome = _stopwatch(lab)
    with subprocess.Popen(
        [*here.enter(), *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as migrate:
        try:
            said, _ = migrate.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            aborted = outcome(completed=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                here.virsh("domjobabort", vm, check=False)
                migrate.communicate(timeout=ABORT_PATIENCE)
            return aborted
        finally:
            migrate.kill()  # for nothing, if it has ended; else the end of `with` would wait for it
        completed = outcome(completed=True)
    if migrate.returncode != 0:
        raise LabError(f"`virsh migrate {' '.join(options)}` of {vm} failed: {said.strip()}")
    return completed


def by_landbridge(lab: Lab, vm: str, way: tuple[str, str], options: tuple[str, ...], limit: float) -> Outcome:
    """Move a guest from one site to the other's first host, or cancel after `limit` seconds. Raises LabError if it fails.

    `way` is the two sites, `options` those of `landbridge migrate`.
    """
    site, other = way
    outcome = _stopwatch(lab)
    try:
        done = lab.landbridge(site, "migrate", vm, "--to", f"{other}/{other}-1", *options, timeout=limit)
    except subprocess.TimeoutExpired:
        cancelled = outcome(completed=False)
        newest = json.loads(lab.landbridge(site, "migrations", "--json").stdout.partition("\n")[0])
        lab.landbridge(site, "cancel", newest["id"], timeout=ABORT_PATIENCE)
        return cancelled
    completed = outcome(completed=True)
    if done.returncode != 0:
        raise LabError(f"`landbridge migrate` of {vm} failed: {done.stderr.strip()}")
    return completed


def _stopwatch(lab: Lab) -> Callable[..., Outcome]:
    carried, began = lab.wan.bytes_carried(), time.monotonic()

    def outcome(*, completed: bool) -> Outcome:
        return Outcome(completed, time.monotonic() - began, lab.wan.bytes_carried() - carried)

    return outcome


class Counter(IntEnum):
    """What a guest counts: a group of BEAT."""

    PAGES_WRITTEN = 4
    BLOCKS_WRITTEN = 5


def beats_of(log: str, counter: Counter) -> list[tuple[float, int]]:
    """When each beat of a guest was heard, and how much it had counted by then."""
    found = ((line, BEAT.search(line)) for line in log.splitlines())
    return [(float(line.split(" ", 1)[0]), int(match[counter])) for line, match in found if match]
