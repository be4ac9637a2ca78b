"""The words of the lab: what can be asked for, where things lie, and the one error it raises."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE_DIRECTORY = Path(__file__).resolve().parent
CACHE = SOURCE_DIRECTORY.parents[1] / ".cache" / "lab"
# LANDBRIDGE_TRIXIE="east west" runs any test with a lab on Debian 13.
TRIXIE = tuple(os.environ.get("LANDBRIDGE_TRIXIE", "").split())


class LabError(Exception):
    """Something the lab cannot do, in one sentence that says what to do next."""


@dataclass(frozen=True)
class WanSettings:
    """The line between the sites: Mbit/s per direction (0: unlimited), ms, percent, KiB (0: 50 ms of the rate)."""

    rate: float = 1000.0
    rtt: float = 20.0
    loss: float = 0.0
    queue: int = 0


@dataclass(frozen=True)
class LabSettings:
    """What `up` builds."""

    direct_lan: bool = False
    """Route between the sites' LANs, and let libvirtd listen on TCP: for measuring plain `virsh migrate`."""
    pool_size: int = 0
    """MiB of each host's storage pool, 0: as large as the disk below it."""
    wan: WanSettings = WanSettings()
    standby: bool = False
    """A second gateway at each site."""
    outage: float = 0.0
    """Seconds that the sites may be apart before a migration ends, 0: as the product has it."""
    pages: bool = True
    """Whether gateways keep page logs; without them each byte crosses the WAN as it is."""
    strangers: bool = False
    """Nobody knows anybody yet: the sites are to be joined, and their hosts to be enrolled. No agent runs."""
    trixie: tuple[str, ...] = TRIXIE
    """Sites whose hosts and gateways run Debian 13, in the root that `python -m tests.lab trixie` makes."""


@dataclass(frozen=True)
class GuestSettings:
    """A guest and its load: sizes in MiB, rates in pages (4 KiB blocks for the disk) per second, shares in percent.

    `random`: of so many pages of the working set, and blocks of the disk, all bytes are random; the others hold text.
    """

    memory: int = 512
    disk: int = 64
    disk_format: Literal["qcow2", "raw"] = "qcow2"
    working_set: int = 96
    rate: int = 500
    words: int = 1
    random: int = 25
    disk_rate: int = 5
    disk_fill: int = 8
    pass_seconds: int = 3
    machine: str = "pc-q35-7.2"
    autostart: bool = False
    seed: int = 1
    beats: int = 10
    """Per second: 1, 2, 5, 10, 25 or 50. A pause is known to the time between two."""
    files: int = 0
    """MiB of files of a Debian root file system, and some of the guest's own; all in its page cache."""
    files_disk: int = 0
    """MiB of a second disk, with the file system that holds them; 0: they come with the initramfs, and are on no disk."""
    files_seconds: int = 15
    """A pass over the files."""
    qemu: str = ""
    """Words added to QEMU's command line."""
