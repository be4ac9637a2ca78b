"""What an agent asks of a hypervisor. `libvirt_driver` is the real one, `fake` stands beside it.

Every method may block and is called from worker threads; `subscribe`'s callbacks come from a thread of the
driver's. Facts are the messages of `landbridge.v1`, so that nothing is translated twice. Errors are
`HypervisorError` with the hypervisor's own words in the sentence, or `NotFound` for a VM that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Disk, Host, Measurement, Progress, Vm


class VmChange(Enum):
    """What happened to a VM, as far as migrations care."""

    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class VmEvent:
    """One change of one VM, at `at` seconds since the epoch by this host's clock."""

    uuid: str
    name: str
    change: VmChange
    at: float
    # The hypervisor's word for why, such as "migrated" or "crashed"; for messages only.
    detail: str


@dataclass(frozen=True)
class MoveRequest:
    """A prepared move, from this host: the three sockets are this host's agent's, and already listening."""

    uuid: str
    # The definition the destination is to have: names and paths there.
    domain_xml: str
    rpc_socket: str
    ram_socket: str
    disk_socket: str
    # Targets of the disks to copy, such as "vda"; the writable ones.
    disks: tuple[str, ...]
    # QEMU switches over when it expects the guest to stand still for no longer than this; see `Hypervisor.allow_downtime`.
    max_downtime_ms: int = 300
    # Bytes per second for disks and for memory, each, rounded up to MiB; 0 is as fast as it goes.
    max_rate: int = 0
    # Take CPU time away from a guest that dirties memory faster than it is sent (`Progress.throttle`).
    throttle: bool = False
    # The VM was shut off, and `start_paused` has started it: it must stand still, and is never let run, whatever comes of the move.
    cold: bool = False


class Presence(Enum):
    """Whether and how a VM is on this host."""

    ABSENT = "absent"
    # Defined, but no process runs it.
    SHUT_OFF = "shut off"
    # A process waits for its memory; the move has not finished.
    INCOMING = "incoming"
    # It came whole, and is paused. A restart of the hypervisor's daemon turns this into PAUSED.
    ARRIVED = "arrived"
    PAUSED = "paused"
    RUNNING = "running"


@dataclass(frozen=True)
class Extent:
    """Bytes of a disk in a row that are alike."""

    offset: int
    length: int
    # They are all zeros, and need not be read.
    zero: bool = False
    # The guest has written some of them since the bitmap was opened.
    written: bool = False


class DiskView(Protocol):
    """A disk as it stood at one moment. Used by one thread; HypervisorError if it cannot be read."""

    # Its device name in the guest's definition, such as "vda".
    target: str
    # Bytes.
    size: int

    def extents(self) -> Iterator[Extent]:
        """All of it, in order and without gaps."""
        ...

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """So many bytes from there; at most a few MiB at once."""
        ...


class Hypervisor(Protocol):
    """One host's hypervisor."""

    def host(self) -> Host:
        """Facts of this host; `site`, `name`, `agent_version`, `clock` are left to the caller."""
        ...

    def vms(self) -> list[Vm]:
        """Every VM of this host, running or not."""
        ...

    def vm(self, name_or_uuid: str) -> Vm:
        """One VM."""
        ...

    def presence(self, uuid: str) -> Presence:
        """Whether and how the VM is here; never raises for a VM that is not."""
        ...

    def migratable_xml(self, uuid: str, *, cold: bool = False) -> str:
        """The live definition in the form that another host accepts, CPU expanded, without secrets.

        With `cold`, the one with which the VM would be started: the same while it is shut off and once it was started for a move.
        """
        ...

    def check_incoming(self, vm: Vm, domain_xml: str, mapping: Mapping) -> CheckIncomingResponse:
        """Hold a VM that wants to come against this host; nothing is touched. The caller names the `host`.

        A pool that the mapping leaves out keeps its name; one that is not here has no `existing_images`.
        """
        ...

    def measure(self, uuid: str) -> Measurement:
        """How the memory of a running VM behaves, looked at for a second. HypervisorError for one that does not run."""
        ...

    def localize(self, domain_xml: str, mapping: Mapping, vm: Vm) -> str:
        """The definition with this host's disk paths and network names.

        HypervisorError for a pool or a network that is not here. A copied disk has no backing file: it is
        whole.
        """
        ...

    def image_paths(self, vm: Vm, mapping: Mapping) -> list[str]:
        """The paths that create_disks would make, in the same order."""
        ...

    def create_disks(self, vm: Vm, mapping: Mapping) -> list[str]:
        """Create an empty image for each writable disk, with its format and virtual size, in the mapped pool.

        Returns the paths. All or nothing: if one fails, those already made are removed. AlreadyExists for an
        image that is there.
        """
        ...

    def remove_disk(self, path: str) -> bool:
        """Remove one image that create_disks made (or that a moved VM left); False if it was gone already.

        Conflict for the image of a VM that is defined here; HypervisorError outside every pool.
        """
        ...

    def start_paused(self, uuid: str) -> None:
        """Start a VM that is shut off so that it can be moved: its CPUs do not execute a single instruction.

        Conflict, and nothing is touched, unless it is shut off and has no saved memory to go on from.
        """
        ...

    def end_paused(self, uuid: str) -> bool:
        """End a VM that stands still, and leave it defined, shut off, its images whole; False if it was off already.

        Conflict for a VM that runs, or is still incoming. HypervisorError if its process does not end: it is not killed.
        """
        ...

    def move(self, request: MoveRequest) -> None:
        """Move a running VM away, live, with its disks; returns when this host has released it.

        The VM arrives paused. The definition stays here, shut off. Conflict if it does not run (with `MoveRequest.cold`: if it does
        not stand still), or is being moved. On any HypervisorError it has not left, and `details["vm"]` is its Presence, "running"
        as a rule. "unknown" says that the daemon went away: ask `presence` when it is back.
        """
        ...

    def progress(self, uuid: str) -> Progress | None:
        """How the VM's outgoing move goes, or None if none is under way.

        Disks come first; until the memory's turn comes, memory_total is 0.
        """
        ...

    def pause(self, uuid: str) -> bool:
        """Let a VM that is being moved stand still from here on: what it has is copied without its writing anew.

        False if no move of it is under way. It arrives paused, as always; if the move fails, it runs here again.
        """
        ...

    def allow_downtime(self, uuid: str, max_downtime_ms: int) -> bool:
        """Change what the outgoing move was begun with; False if none is under way."""
        ...

    def abort(self, uuid: str) -> None:
        """Ask the outgoing move to stop; `move` then raises. Nothing happens if none is under way.

        A disk channel that stands still holds QEMU up: close the move's sockets (shutting them down is not
        enough).
        """
        ...

    def resume(self, uuid: str) -> float:
        """Let a paused VM run; returns when its CPUs started, seconds since the epoch.

        A running VM is left alone; Conflict for one that is still incoming.
        """
        ...

    def destroy(self, uuid: str) -> bool:
        """End an incoming or arrived VM and remove its definition; False if it was gone already.

        Conflict for a VM that runs; one that is shut off is left to `undefine`.
        """
        ...

    def set_autostart(self, uuid: str, enabled: bool) -> bool:
        """Set whether the VM starts with the host; returns what it was before."""
        ...

    def mark_moved(self, uuid: str, migration: str | None) -> None:
        """Mark a definition as moved away by a migration (`Vm.moved_by`), or clear the mark with None."""
        ...

    def undefine(self, uuid: str) -> bool:
        """Remove the definition of a VM that is shut off; False if it was gone already. Its disks stay."""
        ...

    # What is stored.

    def open_bitmap(self, uuid: str, name: str, targets: Sequence[str]) -> None:
        """Note from now on, under a name, which blocks of these disks are written. Nothing happens if it is open already.

        For a VM that has arrived and stands still. HypervisorError if the image of a disk cannot carry a bitmap.
        """
        ...

    def freeze_disks(
        self, uuid: str, name: str, targets: Sequence[str], directory: Path
    ) -> AbstractContextManager[list[DiskView]]:
        """These disks of a running VM as they are now, while it goes on, and what was written since the bitmap was opened.

        QEMU serves them at a socket in `directory`, which is its own. Leaving ends that; the bitmap stays. HypervisorError if the
        VM does not run, or the bitmap is not there or not whole.
        """
        ...

    def close_bitmap(self, uuid: str, name: str) -> None:
        """Forget what `open_bitmap` opened, and end what a killed agent had frozen; nothing happens if there is nothing."""
        ...

    def idle_disks(self, disks: Sequence[Disk], directory: Path) -> AbstractContextManager[list[DiskView]]:
        """The images of these disks, by path and format, of a VM that is shut off and stays so until this is left.

        HypervisorError if one of them is in use.
        """
        ...

    def subscribe(self, callback: Callable[[VmEvent], object]) -> Callable[[], None]:
        """Call back on every change of any VM; returns how to stop that. The callback does not raise.

        Survives a restart of the hypervisor's daemon; what happened meanwhile is not told, so look again.
        """
        ...

    def close(self) -> None:
        """Give up all connections; the object is not used again."""
        ...
