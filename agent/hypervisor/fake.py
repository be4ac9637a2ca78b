"""A hypervisor in memory, beside the real one: the same contract, and moves that use their three sockets.

As a source it calls what libvirt calls, in libvirt's frames, and pushes its disks and its memory through the
sockets of the `MoveRequest`. As a destination it serves `rpc_socket`, its "libvirtd", and listens where
PREPARE says. What goes through the disk and memory sockets is our own: a length (8 bytes, big-endian), so
many bytes, and the length comes back. The VM arrives if all of it came.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from agent.hypervisor import domain_xml as definitions
from agent.hypervisor import placement, sampling
from agent.hypervisor.base import DiskView, MoveRequest, Presence, VmChange, VmEvent
from agent.hypervisor.fake_disks import Bitmap, FakeView
from agent.hypervisor.fake_incoming import hang_up, serve
from agent.hypervisor.fake_outgoing import Outgoing
from landbridge.errors import AlreadyExists, Conflict, HypervisorError, NotFound
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Disk, Host, Measurement, Pool, Progress, Vm, VmState

_STATES = {
    Presence.SHUT_OFF: VmState.VM_STATE_SHUT_OFF,
    Presence.INCOMING: VmState.VM_STATE_INCOMING,
    Presence.ARRIVED: VmState.VM_STATE_PAUSED,
    Presence.PAUSED: VmState.VM_STATE_PAUSED,
    Presence.RUNNING: VmState.VM_STATE_RUNNING,
}


@dataclass
class _Guest:
    """A VM. Owner: its hypervisor, under its lock."""

    xml: str
    memory: bytes = b""
    presence: Presence = Presence.RUNNING
    persistent: bool = True
    autostart: bool = False
    managed_save: bool = False
    moved_by: str = ""
    move: Outgoing | None = None
    # Of its last move.
    max_downtime_ms: int = 0
    # By their names.
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)


class FakeHypervisor:
    """Implements `Hypervisor`. The public attributes, and the methods of the first section, are for tests."""

    def __init__(
        self,
        name: str,
        rpc_socket: Path,
        *,
        pools: tuple[str, ...] = ("images",),
    ) -> None:
        """Serve `rpc_socket`."""
        self.name = name
        # Two hosts call their directories of sockets alike, and two fakes share one file system: what the other one's is called
        # goes into PREPARE, if it is given.
        self.far_runtime: Path | None = None
        # Contents of images by path.
        self.images: dict[str, bytes] = {}
        self.networks = ["default"]
        # Bytes per second of a move; 0 is as fast as it goes.
        self.rate = 0
        # Bytes per second that a guest writes to its memory while it runs: a move's memory comes to no end while it is `rate` or more.
        self.dirty_rate = 0
        # While False, every call fails as if the daemon were away, and no event is delivered.
        self.daemon_runs = True
        self._pools = [Pool(name=p, path=f"/pools/{p}", capacity=2**40, available=2**40) for p in pools]
        self._lock = threading.RLock()
        self._guests: dict[str, _Guest] = {}  # guarded by _lock, as all below
        self._subscribers: dict[int, Callable[[VmEvent], object]] = {}
        self._numbers = itertools.count()
        self._failures: dict[str, str] = {}
        self._holds: dict[str, threading.Event] = {}
        self._server = serve(self, rpc_socket)

    # Hooks for tests.

    def add_vm(
        self,
        name: str,
        *,
        disk: bytes = b"",
        memory: bytes = bytes(2**20),
        extra: str = "",
        disk_format: str = "qcow2",
    ) -> str:
        """A running VM, with a disk in the first pool unless empty; `extra` goes into <devices>. Its UUID."""
        uuid = str(uuids.uuid4())
        devices = extra
        if disk:
            path = f"{self._pools[0].path}/{name}.{disk_format}"
            self.images[path] = disk
            devices += (
                f"<disk type='file' device='disk'><driver name='qemu' type='{disk_format}'/>"
                f"<source file='{path}'/><target dev='vda' bus='virtio'/></disk>"
            )
        xml = (
            f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>"
            f"<memory unit='b'>{len(memory)}</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
            "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
            f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"
        )
        with self._lock:
            self._guests[uuid] = _Guest(xml, memory)
        return uuid

    def memory(self, uuid: str) -> bytes:
        """What a VM's memory holds."""
        return self._guest(uuid).memory

    def write(self, uuid: str, offset: int, data: bytes) -> None:
        """Write to a running VM's disk, as its guest does."""
        with self._lock:
            guest = self._guest(uuid)
            (disk,) = placement.writable(definitions.facts(guest.xml))
            old = self.images[disk.path]
            self.images[disk.path] = old[:offset] + data + old[offset + len(data) :]
            for bitmap in guest.bitmaps.values():
                bitmap.note(disk.target, offset, len(data))

    def max_downtime(self, uuid: str) -> int:
        """What its move was allowed last, in ms."""
        return self._guest(uuid).max_downtime_ms

    def set_presence(self, uuid: str, presence: Presence) -> None:
        """Stop, pause or start a VM, as its owner would."""
        changes = {Presence.RUNNING: VmChange.STARTED, Presence.SHUT_OFF: VmChange.STOPPED}
        self._set(uuid, presence, changes.get(presence, VmChange.SUSPENDED), "by its owner")

    def save_memory(self, uuid: str) -> None:
        """Shut a VM off with its memory saved, as its owner would."""
        self._guest(uuid).managed_save = True
        self.set_presence(uuid, Presence.SHUT_OFF)

    def fail_next(self, method: str, message: str = "told to fail") -> None:
        """Let the next call of a method raise HypervisorError."""
        self._failures[method] = message

    def hold_next(self, method: str) -> threading.Event:
        """Let the next call of a method hang until the event is set."""
        return self._holds.setdefault(method, threading.Event())

    # What is here.

    def host(self) -> Host:
        """See `Hypervisor`."""
        self._enter("host")
        return Host(
            arch="x86_64",
            cpu_model="qemu64",
            machine_types=["pc-q35-7.2", "q35"],
            emulators=["/usr/bin/qemu-system-x86_64"],
            libvirt_version="9.0.0",
            hypervisor_version="7.2.22",
            memory=2**36,
            memory_free=2**35,
            cpus=16,
            pools=self._pools,
            networks=self.networks,
            reads_images=True,
        )

    def vms(self) -> list[Vm]:
        """See `Hypervisor`."""
        self._enter("vms")
        with self._lock:
            return [self._describe(guest) for guest in self._guests.values()]

    def vm(self, name_or_uuid: str) -> Vm:
        """See `Hypervisor`."""
        self._enter("vm")
        with self._lock:
            return self._describe(self._guest(name_or_uuid))

    def presence(self, uuid: str) -> Presence:
        """See `Hypervisor`."""
        self._enter("presence")
        with self._lock:
            guest = self._guests.get(uuid)
            return Presence.ABSENT if guest is None else guest.presence

    # Before a move.

    def migratable_xml(self, uuid: str, *, cold: bool = False) -> str:
        """See `Hypervisor`. Here both definitions are the same."""
        del cold
        self._enter("migratable_xml")
        return self._guest(uuid).xml

    def check_incoming(self, vm: Vm, domain_xml: str, mapping: Mapping) -> CheckIncomingResponse:
        """See `Hypervisor`."""
        self._enter("check_incoming")
        answer = CheckIncomingResponse(host=self.host())
        model = definitions.facts(domain_xml).cpu_model
        if model != "qemu64":
            answer.cpu_problem = f"This host's CPU cannot run {vm.name}: it has not the model {model}."
        with self._lock:
            same = (g for u, g in self._guests.items() if u == vm.uuid or _name(g) == vm.name)
            answer.conflicts.extend(self._describe(guest) for guest in same)
            for disk in placement.writable(vm):
                pool = placement.mapped_pool(disk, mapping, self._pools)
                if pool and placement.new_path(pool, disk) in self.images:
                    answer.existing_images.append(placement.new_path(pool, disk))
        return answer

    def measure(self, uuid: str) -> Measurement:
        """See `Hypervisor`."""
        self._enter("measure")
        guest = self._guest(uuid)
        if guest.presence is not Presence.RUNNING:
            raise HypervisorError(f"The VM {_name(guest)} does not run: its memory cannot be looked at.")
        chosen = sampling.addresses(len(guest.memory), Random(uuid))  # noqa: S311 - no secret, and the same each time
        found = sampling.summarize(guest.memory[at : at + sampling.PAGE] for at in chosen)
        found.dirty_rate = self.dirty_rate
        return found

    def localize(self, domain_xml: str, mapping: Mapping, vm: Vm) -> str:
        """See `Hypervisor`."""
        self._enter("localize")
        return placement.localize(domain_xml, vm, mapping, self._pools, self.networks)

    def image_paths(self, vm: Vm, mapping: Mapping) -> list[str]:
        """See `Hypervisor`."""
        self._enter("image_paths")
        with self._lock:
            return [placement.new_path(pool, disk) for disk, pool in placement.placements(vm, mapping, self._pools)]

    def create_disks(self, vm: Vm, mapping: Mapping) -> list[str]:
        """See `Hypervisor`."""
        self._enter("create_disks")
        with self._lock:
            placed = placement.placements(vm, mapping, self._pools)
            paths = {placement.new_path(pool, disk): bytes(disk.virtual_size) for disk, pool in placed}
            if taken := paths.keys() & self.images.keys():
                raise AlreadyExists(f"The image {min(taken)} exists already: remove or rename it, then try again.")
            self.images.update(paths)
            return list(paths)

    def remove_disk(self, path: str) -> bool:
        """See `Hypervisor`."""
        self._enter("remove_disk")
        if not placement.pool_of(path, self._pools):
            raise HypervisorError(f"The image {path} lies in no active storage pool of this host.")
        with self._lock:
            for guest in self._guests.values():
                if any(disk.path == path for disk in definitions.facts(guest.xml).disks):
                    raise Conflict(f"The image {path} belongs to {_name(guest)}: remove its definition first.")
            return self.images.pop(path, None) is not None

    # The move, at the source.

    def start_paused(self, uuid: str) -> None:
        """See `Hypervisor`."""
        self._enter("start_paused")
        with self._lock:
            guest = self._guest(uuid)
            if guest.presence is not Presence.SHUT_OFF:
                raise Conflict(
                    f"The VM {_name(guest)} is not shut off any more: ask for the migration again, and it moves as it is."
                )
            if guest.managed_save:
                raise Conflict(f"The VM {_name(guest)} has a saved state: start it, or discard that.")
            guest.memory = bytes(len(guest.memory))
            guest.presence = Presence.PAUSED
        self._tell(uuid, _name(guest), VmChange.STARTED, "booted")
        self._tell(uuid, _name(guest), VmChange.SUSPENDED, "paused")

    def end_paused(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        self._enter("end_paused")
        with self._lock:
            guest = self._guest(uuid)
            if guest.presence is Presence.SHUT_OFF:
                return False
            if guest.presence in {Presence.RUNNING, Presence.INCOMING}:
                raise Conflict(
                    f"The VM {_name(guest)} is {guest.presence.value} here, and does not stand still: it is not ended."
                )
            guest.presence = Presence.SHUT_OFF
        self._tell(uuid, _name(guest), VmChange.STOPPED, "destroyed")
        return True

    def move(self, request: MoveRequest) -> None:
        """See `Hypervisor`."""
        move = Outgoing(self.rate, self.dirty_rate, lambda: self._suspend(request.uuid))
        with self._lock:
            guest = self._guest(request.uuid)
            if guest.move is not None:
                raise Conflict(f"The VM {_name(guest)} is being moved already.")
            if request.cold and guest.presence is not Presence.PAUSED:
                raise Conflict(f"The VM {_name(guest)} does not stand still: it was to move as one that is shut off.")
            if not request.cold and guest.presence is not Presence.RUNNING:
                raise Conflict(f"The VM {_name(guest)} does not run: only a running VM is moved.")
            guest.move, guest.max_downtime_ms = move, request.max_downtime_ms
        try:
            self._enter("move")
            vm = definitions.facts(guest.xml)
            disks = [self.images[disk.path] for disk in vm.disks if disk.target in request.disks]
            move.run(self.name, vm, request, disks, guest.memory, self.far_runtime)
        except OSError as error:
            if not request.cold:
                self._take_back(request.uuid)
            why = "it was aborted" if move.is_aborted else str(error)
            raise HypervisorError(
                f"Cannot move {_name(guest)}: {why}.", details={"vm": guest.presence.value}
            ) from error
        finally:
            guest.move = None
        self._set(request.uuid, Presence.SHUT_OFF, VmChange.STOPPED, "migrated")

    def progress(self, uuid: str) -> Progress | None:
        """See `Hypervisor`."""
        self._enter("progress")
        move = self._guest(uuid).move
        if move is None:
            return None
        return move.so_far()

    def pause(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        self._enter("pause")
        move = self._guest(uuid).move
        if move is None:
            return False
        if self._guest(uuid).presence is Presence.RUNNING:
            self._suspend(uuid)
        move.pause()
        return True

    def allow_downtime(self, uuid: str, max_downtime_ms: int) -> bool:
        """See `Hypervisor`."""
        self._enter("allow_downtime")
        if self._guest(uuid).move is None:
            return False
        self._guest(uuid).max_downtime_ms = max_downtime_ms
        return True

    def _take_back(self, uuid: str) -> None:
        if self._guest(uuid).presence is Presence.PAUSED:
            self._set(uuid, Presence.RUNNING, VmChange.RESUMED, "unpaused")

    def _suspend(self, uuid: str) -> None:
        if self._guest(uuid).presence is Presence.RUNNING:
            self._set(uuid, Presence.PAUSED, VmChange.SUSPENDED, "migrated")

    def abort(self, uuid: str) -> None:
        """See `Hypervisor`."""
        self._enter("abort")
        with self._lock:
            guest = self._guests.get(uuid)
            move = None if guest is None else guest.move
        if move is not None:
            move.abort()

    # The move, at the destination: called by the landing.

    def land(self, xml: str) -> Vm:
        """A VM is to come; its images must be there."""
        self._enter("land")
        vm = definitions.facts(xml)
        with self._lock:
            if vm.uuid in self._guests:
                raise Conflict(f"The VM {vm.name} is here already.")
            for disk in vm.disks:
                if disk.path not in self.images:
                    raise HypervisorError(f"Cannot access storage file {disk.path!r}: no such file.")
            self._guests[vm.uuid] = _Guest(xml, presence=Presence.INCOMING, persistent=False)
        self._tell(vm.uuid, vm.name, VmChange.STARTED, "migrated")
        return vm

    def arrive(self, uuid: str, memory: bytes, disks: bytes) -> None:
        """It came whole."""
        with self._lock:
            guest = self._guest(uuid)
            for disk in placement.writable(definitions.facts(guest.xml)):
                size, disks = int.from_bytes(disks[:8], "big"), disks[8:]
                self.images[disk.path], disks = disks[:size], disks[size:]
            guest.memory, guest.persistent = memory, True
        self._set(uuid, Presence.ARRIVED, VmChange.SUSPENDED, "paused")

    def discard(self, uuid: str) -> None:
        """It does not come."""
        with self._lock:
            guest = self._guests.get(uuid)
            if guest is None or guest.presence is not Presence.INCOMING:
                return
            del self._guests[uuid]
        self._tell(uuid, _name(guest), VmChange.STOPPED, "failed")

    # After a move.

    def resume(self, uuid: str) -> float:
        """See `Hypervisor`."""
        self._enter("resume")
        guest = self._guest(uuid)
        if guest.presence is Presence.INCOMING:
            raise Conflict(f"The VM {_name(guest)} has not arrived yet: it cannot run here.")
        if guest.presence is Presence.SHUT_OFF:
            raise HypervisorError(f"The VM {_name(guest)} is shut off.")
        if guest.presence is not Presence.RUNNING:
            self._set(uuid, Presence.RUNNING, VmChange.RESUMED, "unpaused")
        return time.time()

    def destroy(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        self._enter("destroy")
        with self._lock:
            guest = self._guests.get(uuid)
            if guest is None or guest.presence is Presence.SHUT_OFF:
                return False
            if guest.presence is Presence.RUNNING:
                raise Conflict(f"The VM {_name(guest)} runs here: it is not destroyed.")
            del self._guests[uuid]
        self._tell(uuid, _name(guest), VmChange.STOPPED, "destroyed")
        return True

    def set_autostart(self, uuid: str, enabled: bool) -> bool:
        """See `Hypervisor`."""
        self._enter("set_autostart")
        guest = self._guest(uuid)
        before, guest.autostart = guest.autostart, enabled
        return before

    def mark_moved(self, uuid: str, migration: str | None) -> None:
        """See `Hypervisor`."""
        self._enter("mark_moved")
        self._guest(uuid).moved_by = migration or ""

    def undefine(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        self._enter("undefine")
        with self._lock:
            guest = self._guests.get(uuid)
            if guest is None:
                return False
            if guest.presence is not Presence.SHUT_OFF:
                raise Conflict(f"The VM {_name(guest)} is not shut off: its definition stays.")
            del self._guests[uuid]
            return True

    # What is stored.

    def open_bitmap(self, uuid: str, name: str, targets: Sequence[str]) -> None:
        """See `Hypervisor`."""
        self._enter("open_bitmap")
        with self._lock:
            guest = self._guest(uuid)
            for disk in definitions.facts(guest.xml).disks:
                if disk.target in targets and disk.format != "qcow2":
                    raise HypervisorError(
                        f"Disk {disk.target} of {_name(guest)} is {disk.format}, which carries no bitmap."
                    )
            guest.bitmaps.setdefault(name, Bitmap(targets))

    @contextmanager
    def freeze_disks(self, uuid: str, name: str, targets: Sequence[str], directory: Path) -> Iterator[list[DiskView]]:
        """See `Hypervisor`. Nothing is made in `directory`."""
        del directory
        self._enter("freeze_disks")
        with self._lock:
            guest = self._guest(uuid)
            if guest.presence is not Presence.RUNNING:
                raise HypervisorError(f"The VM {_name(guest)} does not run: its disks cannot be read.")
            if (bitmap := guest.bitmaps.get(name)) is None:
                raise HypervisorError(f"The VM {_name(guest)} has no bitmap {name}.")
            paths = {disk.target: disk.path for disk in definitions.facts(guest.xml).disks}
            views = [FakeView(each, self.images[paths[each]], bitmap.written(each), self._enter) for each in targets]
        yield list(views)

    def close_bitmap(self, uuid: str, name: str) -> None:
        """See `Hypervisor`."""
        self._enter("close_bitmap")
        with self._lock:
            if (guest := self._guests.get(uuid)) is not None:
                guest.bitmaps.pop(name, None)

    def bitmaps(self, uuid: str) -> list[str]:
        """For tests: the names of those that are open."""
        return sorted(self._guest(uuid).bitmaps)

    @contextmanager
    def idle_disks(self, disks: Sequence[Disk], directory: Path) -> Iterator[list[DiskView]]:
        """See `Hypervisor`. Nothing is made in `directory`."""
        del directory
        self._enter("idle_disks")
        with self._lock:
            used = {
                disk.path: guest
                for guest in self._guests.values()
                for disk in definitions.facts(guest.xml).disks
                if guest.presence is not Presence.SHUT_OFF
            }
            for disk in disks:
                if disk.path in used:
                    raise HypervisorError(
                        f"Disk {disk.target} cannot be read: {_name(used[disk.path])} uses {disk.path}."
                    )
                if disk.path not in self.images:
                    raise HypervisorError(f"Disk {disk.target} cannot be read: there is no {disk.path}.")
            views = [FakeView(disk.target, self.images[disk.path], frozenset(), self._enter) for disk in disks]
        yield list(views)

    def subscribe(self, callback: Callable[[VmEvent], object]) -> Callable[[], None]:
        """See `Hypervisor`."""
        with self._lock:
            number = next(self._numbers)
            self._subscribers[number] = callback

        def stop() -> None:
            with self._lock:
                self._subscribers.pop(number, None)

        return stop

    def close(self) -> None:
        """See `Hypervisor`."""
        hang_up(self._server)
        for hold in list(self._holds.values()):
            hold.set()

    def _enter(self, method: str) -> None:
        if (hold := self._holds.get(method)) is not None:
            hold.wait()
            del self._holds[method]
        if not self.daemon_runs:
            raise HypervisorError("The hypervisor's daemon does not answer.")
        if (failure := self._failures.pop(method, None)) is not None:
            raise HypervisorError(f"The hypervisor refuses {method}: {failure}.")

    def _guest(self, name_or_uuid: str) -> _Guest:
        for uuid, guest in list(self._guests.items()):
            if name_or_uuid in (uuid, _name(guest)):
                return guest
        raise NotFound(f"No such VM on this host: {name_or_uuid}.")

    def _describe(self, guest: _Guest) -> Vm:
        vm = definitions.facts(guest.xml)
        vm.state = _STATES[guest.presence]
        vm.moved_by, vm.autostart, vm.persistent = guest.moved_by, guest.autostart, guest.persistent
        vm.managed_save = guest.managed_save
        if vm.state == VmState.VM_STATE_SHUT_OFF and guest.moved_by:
            vm.state = VmState.VM_STATE_MOVED
        vm.busy = guest.move is not None or guest.presence is Presence.INCOMING
        for disk in vm.disks:
            disk.pool = placement.pool_of(disk.path, self._pools)
            disk.virtual_size = disk.allocation = len(self.images.get(disk.path, b""))
        return vm

    def _set(self, uuid: str, presence: Presence, change: VmChange, detail: str) -> None:
        with self._lock:
            guest = self._guest(uuid)
            guest.presence = presence
        self._tell(uuid, _name(guest), change, detail)

    def _tell(self, uuid: str, name: str, change: VmChange, detail: str) -> None:
        with self._lock:
            callbacks = list(self._subscribers.values()) if self.daemon_runs else []
        for callback in callbacks:
            callback(VmEvent(uuid, name, change, time.time(), detail))


def _name(guest: _Guest) -> str:
    return definitions.facts(guest.xml).name
