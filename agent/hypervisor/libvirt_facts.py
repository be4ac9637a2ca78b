"""What libvirt reports, as messages of ours: capabilities, pools and the statistics of a move. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # for types; input goes through defusedxml
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import defusedxml.ElementTree as Safe

from landbridge.v1.types_pb2 import Host, Pool, Progress

# Pools whose volumes are files of one directory.
FILE_POOLS = ("dir", "fs", "netfs")
# Rates are means over at least so long; shorter samples of a bursty stream mislead.
RATE_WINDOW_MS = 500


def host_facts(capabilities_xml: str) -> Host:
    """CPU, machines and emulators for the host's own architecture; from virConnectGetCapabilities."""
    root: ET.Element = Safe.fromstring(capabilities_xml, forbid_dtd=True)
    arch = root.findtext("host/cpu/arch", "")
    machines: dict[str, None] = {}
    emulators: dict[str, None] = {}
    for guest in root.iterfind(f"guest/arch[@name='{arch}']"):
        for emulator in guest.iter("emulator"):
            emulators[emulator.text or ""] = None
        for machine in guest.iter("machine"):
            machines[machine.text or ""] = None
            machines[machine.get("canonical", machine.text or "")] = None
    return Host(
        arch=arch,
        cpu_model=root.findtext("host/cpu/model", ""),
        cpu_features=[feature.get("name", "") for feature in root.iterfind("host/cpu/feature")],
        machine_types=sorted(machines),
        emulators=sorted(emulators),
    )


def dotted_version(number: int) -> str:
    """7002022 -> "7.2.22"."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def pool_facts(pool_xml: str) -> Pool | None:
    """Name and directory of a pool that holds images as files; None for every other pool."""
    root: ET.Element = Safe.fromstring(pool_xml, forbid_dtd=True)
    if root.get("type") not in FILE_POOLS:
        return None
    return Pool(name=root.findtext("name", ""), path=root.findtext("target/path", "").rstrip("/"))


@dataclass
class Meter:
    """Bytes per second of one move, from samples of a counter. Owner: the driver, under its lock."""

    _since: tuple[int, int] | None = field(default=None)
    _rate: int = 0

    def rate(self, elapsed_ms: int, sent: int) -> int:
        """The rate as of now; a counter that goes back (a new phase, a new move) starts afresh."""
        if self._since is None or sent < self._since[1] or elapsed_ms < self._since[0]:
            self._since = (elapsed_ms, sent)
        passed = elapsed_ms - self._since[0]
        if passed >= RATE_WINDOW_MS:
            self._rate = (sent - self._since[1]) * 1000 // passed
            self._since = (elapsed_ms, sent)
        return self._rate


@dataclass
class Meters:
    """What is measured of one move."""

    # Bytes that the hypervisor has written, and bytes of the guest's memory that it is done with.
    sent: Meter = field(default_factory=Meter)
    memory: Meter = field(default_factory=Meter)


def progress(stats: Mapping[str, Any], meters: Meters, memory: int) -> Progress:
    """A job's statistics (virDomainGetJobStats). `memory` is the VM's, all ahead while its disks are copied.

    Of the memory that is done with, a page of zeros is as much as any other (`memory_constant`, in pages), though QEMU writes a few
    bytes for it: `memory_remaining` and `memory_dirty_rate` count pages, too.

    libvirt copies the disks first: until QEMU starts on the memory, memory_total is 0. From then on the
    disks are mirrored, and their numbers stay (with what the guest has written anew still to come).
    """
    sent = int(stats.get("disk_processed", 0)) + int(stats.get("memory_processed", 0))
    page, elapsed = int(stats.get("memory_page_size", 4096)), int(stats.get("time_elapsed", 0))
    done = int(stats.get("memory_normal_bytes", 0)) + int(stats.get("memory_constant", 0)) * page
    result = Progress(
        disk_total=stats.get("disk_total", 0),
        disk_remaining=stats.get("disk_remaining", 0),
        memory_total=stats.get("memory_total", 0),
        memory_remaining=stats.get("memory_remaining", 0),
        rate=meters.sent.rate(elapsed, sent),
        dirty_rate=stats.get("memory_dirty_rate", 0) * page,
        iteration=stats.get("memory_iteration", 0),
        elapsed_ms=elapsed,
        memory_rate=meters.memory.rate(elapsed, done),
        throttle=stats.get("auto_converge_throttle", 0),
    )
    gain = result.rate - result.dirty_rate
    ahead = result.disk_remaining + (result.memory_remaining if result.memory_total else memory)
    if gain > 0:
        result.eta_ms = ahead * 1000 // gain
    return result
