"""The real hypervisor: libvirt with QEMU. The only importer of `libvirt`.

What libvirt 9.0 does with a move, and what this file makes of it (measured by tests/contract/test_hypervisor.py):

    step                   source                        destination
    PREPARE                running, job outgoing         transient, paused (starting up); job statistics refused
    disks, then memory     running, memory_total 0,      transient, paused (migration); job statistics refused
                           then more
    switch-over            paused (migration)            the same
    FINISH with PAUSED     paused (migration)            persistent, paused (user); completed job came in
    after move's return    shut off (migrated)           the same

So INCOMING is "job statistics are refused: only on the source host", and ARRIVED is "paused, and the last
completed job came in"; `resume` forgets that job. A libvirtd restarted at the destination forgets it too: then
ARRIVED reads PAUSED. With PAUSED the destination never runs the guest by itself, whatever is lost on the way, so
a source that kept its guest may always let it run again until the caller activates the destination.
A libvirtd killed at the source in mid-move aborts the move when it comes back, and lets the guest run.

A VM that is shut off is moved as an instance that was started paused. libvirt lets none run after a failed move that did not run
before it, and neither does a libvirtd that was restarted: the reason of its pause is "user", and not the move.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from agent.hypervisor import domain_xml as definitions
from agent.hypervisor import images, libvirt_bitmap, libvirt_domain, libvirt_facts, libvirt_storage, placement
from agent.hypervisor.base import DiskView, MoveRequest, Presence, VmEvent
from agent.hypervisor.libvirt_connection import Connection
from agent.hypervisor.nbd_client import NbdView
from landbridge.errors import Conflict, HypervisorError, NotFound
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Disk, Host, Measurement, Progress, Vm

_MOVE_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_PAUSED
    # A disk error during the move ends the move, and the guest meets the error here instead of there.
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)

_UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

# What QEMU 7.2 says for ever after its connections broke while the guest stood still for the switch-over, before libvirt
# could abort the copying of the disks: a filter node that nobody owns stays on top of the disk.
_ORPHANED_FILTER = "Need a root block node"
# Percent of the guest's CPU time that QEMU takes away at first, and more each time that this was not enough: its own defaults, stated.
_THROTTLE_INITIAL, _THROTTLE_INCREMENT = 20, 10
# How often an abort is tried again while libvirt has not begun the move it is to abort.
_ABORT_RETRY_S = 0.05
_MIB = 2**20
# MiB/s, the most that libvirt takes: as fast as it goes, whatever somebody has set for the domain before.
_UNLIMITED = (2**63 - 1) // _MIB


@dataclass
class _Move:
    """A call of `move` under way. Owner: the driver; `aborted` is written under its lock."""

    aborted: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    # Held while the guest is paused, and while it is let run again after an error: never paused for good by one that came too late.
    gate: threading.Lock = field(default_factory=threading.Lock)
    paused: bool = False  # guarded by gate
    returned: bool = False  # guarded by gate


class LibvirtHypervisor:
    """One host's libvirtd; thread-safe. Implements `Hypervisor`."""

    def __init__(self, uri: str = "qemu:///system") -> None:
        """Connect when first needed; a libvirtd that is away makes calls fail, not this."""
        self._connection = Connection(libvirt, uri)
        self._lock = threading.Lock()
        self._moves: dict[str, _Move] = {}  # guarded by _lock
        self._meters: dict[str, libvirt_facts.Meters] = {}  # guarded by _lock

    # What is here.

    def host(self) -> Host:
        """See `Hypervisor`."""
        with self._connection.use("describe this host") as link:
            host = libvirt_facts.host_facts(link.getCapabilities())
            host.cpus = link.getInfo()[2]
            memory = link.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
            host.memory = memory["total"] * 1024
            host.memory_free = sum(memory[kind] for kind in ("free", "buffers", "cached")) * 1024
            host.libvirt_version = libvirt_facts.dotted_version(link.getLibVersion())
            host.hypervisor_version = libvirt_facts.dotted_version(link.getVersion())
            host.pools.extend(libvirt_storage.pools(libvirt, link, measured=True))
            host.networks.extend(libvirt_domain.networks(libvirt, link))
            host.reads_images = images.can_serve()
            return host

    def vms(self) -> list[Vm]:
        """See `Hypervisor`."""
        with self._connection.use("list the VMs") as link:
            pools = libvirt_storage.pools(libvirt, link)
            found = []
            for domain in link.listAllDomains():
                try:
                    found.append(libvirt_domain.describe(libvirt, domain, pools))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise  # else: gone since it was listed
            return found

    def vm(self, name_or_uuid: str) -> Vm:
        """See `Hypervisor`."""
        with self._connection.use(f"describe {name_or_uuid}") as link:
            return libvirt_domain.describe(
                libvirt, libvirt_domain.find(link, name_or_uuid), libvirt_storage.pools(libvirt, link)
            )

    def presence(self, uuid: str) -> Presence:
        """See `Hypervisor`."""
        try:
            with self._connection.use("look for a VM") as link:
                return libvirt_domain.presence(libvirt, libvirt_domain.find(link, uuid))
        except NotFound:
            return Presence.ABSENT

    # Before a move.

    def migratable_xml(self, uuid: str, *, cold: bool = False) -> str:
        """See `Hypervisor`. libvirt expands a CPU when it starts a VM, or if it is told to."""
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_UPDATE_CPU if cold else 0
        with self._connection.use("read a definition") as link:
            return definitions.without_mark(libvirt_domain.find(link, uuid).XMLDesc(flags))

    def check_incoming(self, vm: Vm, domain_xml: str, mapping: Mapping) -> CheckIncomingResponse:
        """See `Hypervisor`."""
        host = self.host()
        answer = CheckIncomingResponse(host=host)
        with self._connection.use("look at what wants to come") as link:
            answer.cpu_problem = libvirt_domain.cpu_problem(libvirt, link, vm, domain_xml, host)
            same = (d for d in link.listAllDomains() if vm.uuid == d.UUIDString() or vm.name == d.name())
            answer.conflicts.extend(libvirt_domain.describe(libvirt, domain, host.pools) for domain in same)
            for disk in placement.writable(vm):
                pool = placement.mapped_pool(disk, mapping, host.pools)
                if pool is None:
                    continue  # the gateway says so, from `host`
                path = placement.new_path(pool, disk)
                if libvirt_storage.volume(libvirt, link, path) is not None:
                    answer.existing_images.append(path)
        return answer

    def measure(self, uuid: str) -> Measurement:
        """See `Hypervisor`."""
        with self._connection.use("look at the memory of the VM") as link:
            domain = libvirt_domain.find(link, uuid)
            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                raise HypervisorError(f"The VM {domain.name()} does not run: its memory cannot be looked at.")
            return libvirt_domain.measure(libvirt, link, domain)

    def localize(self, domain_xml: str, mapping: Mapping, vm: Vm) -> str:
        """See `Hypervisor`."""
        with self._connection.use("place a VM") as link:
            pools = libvirt_storage.pools(libvirt, link)
            return placement.localize(domain_xml, vm, mapping, pools, libvirt_domain.networks(libvirt, link))

    def image_paths(self, vm: Vm, mapping: Mapping) -> list[str]:
        """See `Hypervisor`."""
        with self._connection.use("place images") as link:
            placed = placement.placements(vm, mapping, libvirt_storage.pools(libvirt, link))
            return [placement.new_path(pool, disk) for disk, pool in placed]

    def create_disks(self, vm: Vm, mapping: Mapping) -> list[str]:
        """See `Hypervisor`."""
        with self._connection.use("create images") as link:
            placed = placement.placements(vm, mapping, libvirt_storage.pools(libvirt, link))
            return libvirt_storage.create(libvirt, link, placed)

    def remove_disk(self, path: str) -> bool:
        """See `Hypervisor`."""
        with self._connection.use("remove an image") as link:
            for domain in link.listAllDomains():
                if any(disk.path == path for disk in definitions.facts(domain.XMLDesc()).disks):
                    raise Conflict(f"The image {path} belongs to {domain.name()}: remove its definition first.")
            return libvirt_storage.remove(libvirt, link, path)

    # The move, at the source.

    def start_paused(self, uuid: str) -> None:
        """See `Hypervisor`."""
        with self._connection.use("start the VM, paused") as link:
            domain = libvirt_domain.find(link, uuid)
            if domain.isActive():
                raise Conflict(
                    f"The VM {domain.name()} is not shut off any more: ask for the migration again, and it moves as it is."
                )
            if domain.hasManagedSaveImage():
                raise Conflict(f"The VM {domain.name()} has a saved state: start it, or discard that.")
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def end_paused(self, uuid: str) -> bool:
        """See `Hypervisor`. libvirt waits for it; killed, QEMU might leave an image without what it had not written."""
        with self._connection.use("shut the VM off") as link:
            domain = libvirt_domain.find(link, uuid)
            presence = libvirt_domain.presence(libvirt, domain)
            if presence is Presence.SHUT_OFF:
                return False
            if presence in {Presence.RUNNING, Presence.INCOMING}:
                raise Conflict(
                    f"The VM {domain.name()} is {presence.value} here, and does not stand still: it is not ended."
                )
            domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
            return True

    def move(self, request: MoveRequest) -> None:
        """See `Hypervisor`."""
        move = _Move()
        with self._lock:
            if request.uuid in self._moves:
                raise Conflict(f"The VM {request.uuid} is being moved already.")
            self._moves[request.uuid] = move
            self._meters[request.uuid] = libvirt_facts.Meters()
        try:
            with self._connection.alone("move the VM") as link:
                domain = libvirt_domain.find(link, request.uuid)
                _require_movable(domain, cold=request.cold)
                domain.migrateSetMaxDowntime(request.max_downtime_ms)
                domain.migrateSetMaxSpeed(_UNLIMITED)
                if move.aborted:
                    raise HypervisorError(f"The move of {domain.name()} was aborted before it began.")
                self._migrate(domain, request, move)
        finally:
            with self._lock:
                del self._moves[request.uuid]
                del self._meters[request.uuid]
            move.ended.set()

    def _migrate(self, domain: Any, request: MoveRequest, move: _Move) -> None:
        """Returns if the VM has left; else lets it run again, and raises with its presence in the details."""
        flags = _MOVE_FLAGS | (libvirt.VIR_MIGRATE_NON_SHARED_DISK if request.disks else 0)
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE if request.throttle else 0
        try:
            with self._connection.explained("move the VM"):
                domain.migrateToURI3(f"qemu+unix:///system?socket={request.rpc_socket}", _parameters(request), flags)
        except HypervisorError as error:
            with move.gate:
                move.returned = True
                outcome = _keep_running(domain, paused=move.paused, cold=request.cold)
            if outcome == RELEASED:
                return
            # After an abort libvirt may report what that broke, such as "Broken pipe".
            words = f"The move of {domain.name()} was aborted: {error}" if move.aborted else error.message
            if _ORPHANED_FILTER in error.message:
                words = (
                    f"The agent ended once during a switch-over of {domain.name()}, and since then its QEMU copies its disks "
                    "no more: shut it down and start it again, then migrate it."
                )
            raise HypervisorError(words, details={"vm": outcome}) from error

    def progress(self, uuid: str) -> Progress | None:
        """See `Hypervisor`."""
        with self._connection.use("read a move's progress") as link:
            domain = libvirt_domain.find(link, uuid)
            stats = libvirt_domain.outgoing(libvirt, domain)
            if stats is None:
                return None
            memory = domain.maxMemory() * 1024
        with self._lock:
            meters = self._meters.setdefault(uuid, libvirt_facts.Meters())
            return libvirt_facts.progress(stats, meters, memory)

    def pause(self, uuid: str) -> bool:
        """See `Hypervisor`. libvirt notes that the move is why, and lets the guest run if the move fails."""
        with self._lock:
            move = self._moves.get(uuid)
        if move is None:
            return False
        with self._connection.use("let the VM stand still") as link, move.gate:
            domain = libvirt_domain.find(link, uuid)
            if move.returned or libvirt_domain.outgoing(libvirt, domain) is None:
                return False
            move.paused = True
            domain.suspend()
        return True

    def allow_downtime(self, uuid: str, max_downtime_ms: int) -> bool:
        """See `Hypervisor`."""
        with self._lock:
            if uuid not in self._moves:
                return False
        with self._connection.use("set a move's downtime") as link:
            libvirt_domain.find(link, uuid).migrateSetMaxDowntime(max_downtime_ms)
        return True

    def abort(self, uuid: str) -> None:
        """See `Hypervisor`. Comes through even if libvirt has not begun what `move` is about to begin."""
        with self._lock:
            move = self._moves.get(uuid)
            if move is not None:
                move.aborted = True
        while not self._abort_job(uuid):
            if move is None or move.ended.wait(_ABORT_RETRY_S):
                return

    def _abort_job(self, uuid: str) -> bool:
        try:
            with self._connection.use("abort a move") as link:
                domain = libvirt_domain.find(link, uuid)
                if libvirt_domain.outgoing(libvirt, domain) is None:
                    return False
                try:
                    domain.abortJob()
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                        raise
                    return False  # it ended, or cannot be aborted just now
        except NotFound:
            return True
        return True

    # After a move.

    def resume(self, uuid: str) -> float:
        """See `Hypervisor`."""
        with self._connection.use("let the VM run") as link:
            domain = libvirt_domain.find(link, uuid)
            presence = libvirt_domain.presence(libvirt, domain)
            if presence is Presence.INCOMING:
                raise Conflict(f"The VM {domain.name()} has not arrived yet: it cannot run here.")
            if presence is not Presence.RUNNING:
                domain.resume()
            started = time.time()
            if presence is Presence.ARRIVED:
                domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)  # reading it makes libvirt forget it
            return started

    def destroy(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        try:
            with self._connection.use("remove an arriving VM") as link:
                domain = libvirt_domain.find(link, uuid)
                presence = libvirt_domain.presence(libvirt, domain)
                if presence is Presence.RUNNING:
                    raise Conflict(f"The VM {domain.name()} runs here: it is not destroyed.")
                if presence is Presence.SHUT_OFF:
                    return False
                # Undefined first: a crash in between leaves a VM that is gone for good once it stops.
                # While it is incoming, a definition could only be another, older one.
                if presence is not Presence.INCOMING and domain.isPersistent():
                    domain.undefineFlags(_UNDEFINE_FLAGS)
                domain.destroy()
        except NotFound:
            return False
        return True

    def set_autostart(self, uuid: str, enabled: bool) -> bool:
        """See `Hypervisor`."""
        with self._connection.use("set whether the VM starts with the host") as link:
            domain = libvirt_domain.find(link, uuid)
            before = bool(domain.autostart())
            domain.setAutostart(int(enabled))
            return before

    def mark_moved(self, uuid: str, migration: str | None) -> None:
        """See `Hypervisor`."""
        mark = None if migration is None else definitions.moved_mark(migration)
        with self._connection.use("mark the VM") as link:
            libvirt_domain.find(link, uuid).setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                mark,
                None if mark is None else "landbridge",
                definitions.MOVED_NAMESPACE,
                libvirt.VIR_DOMAIN_AFFECT_CONFIG,
            )

    def undefine(self, uuid: str) -> bool:
        """See `Hypervisor`."""
        try:
            with self._connection.use("remove a definition") as link:
                domain = libvirt_domain.find(link, uuid)
                if domain.isActive():
                    raise Conflict(f"The VM {domain.name()} is not shut off: its definition stays.")
                domain.undefineFlags(_UNDEFINE_FLAGS)
        except NotFound:
            return False
        return True

    # What is stored.

    def open_bitmap(self, uuid: str, name: str, targets: Sequence[str]) -> None:
        """See `Hypervisor`."""
        with self._connection.use("note what the VM writes") as link:
            libvirt_bitmap.open_(libvirt, libvirt_domain.find(link, uuid), name, targets)

    @contextmanager
    def freeze_disks(self, uuid: str, name: str, targets: Sequence[str], directory: Path) -> Iterator[list[DiskView]]:
        """See `Hypervisor`."""
        socket = directory / "proof.sock"
        socket.unlink(missing_ok=True)
        with self._connection.use("read the VM's disks") as link:
            domain = libvirt_domain.find(link, uuid)
            libvirt_bitmap.thaw(libvirt, link, domain, name)
            libvirt_bitmap.freeze(libvirt, link, domain, name, targets, str(socket))
        try:
            with ExitStack() as stack:
                views = [stack.enter_context(closing(NbdView(str(socket), each, each, each))) for each in targets]
                yield list(views)
        finally:
            with self._connection.use("let go of the VM's disks") as link:
                libvirt_bitmap.thaw(libvirt, link, libvirt_domain.find(link, uuid), name)

    def close_bitmap(self, uuid: str, name: str) -> None:
        """See `Hypervisor`."""
        try:
            with self._connection.use("note no more what the VM writes") as link:
                libvirt_bitmap.close(libvirt, link, libvirt_domain.find(link, uuid), name)
        except NotFound:
            return

    def idle_disks(self, disks: Sequence[Disk], directory: Path) -> AbstractContextManager[list[DiskView]]:
        """See `Hypervisor`."""
        return images.served(disks, directory)

    def subscribe(self, callback: Callable[[VmEvent], object]) -> Callable[[], None]:
        """See `Hypervisor`."""
        return self._connection.subscribe(callback)

    def close(self) -> None:
        """See `Hypervisor`."""
        self._connection.close()


RELEASED = "released"


def _parameters(request: MoveRequest) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{request.ram_socket}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: request.domain_xml,
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: request.domain_xml,
    }
    if request.disks:
        parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{request.disk_socket}"
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(request.disks)
    if request.throttle:
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL] = _THROTTLE_INITIAL
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] = _THROTTLE_INCREMENT
    if request.max_rate:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = -(-request.max_rate // _MIB)  # MiB/s
    return parameters


def _require_movable(domain: Any, *, cold: bool) -> None:
    state = domain.state()[0]
    if cold and state != libvirt.VIR_DOMAIN_PAUSED:
        raise Conflict(f"The VM {domain.name()} does not stand still: it was to move as one that is shut off.")
    if not cold and state != libvirt.VIR_DOMAIN_RUNNING:
        raise Conflict(f"The VM {domain.name()} does not run: only a running VM is moved.")


def _keep_running(domain: Any, *, paused: bool, cold: bool) -> str:
    """After an error: let the VM run here again if libvirt has not, and it did. RELEASED if it left all the same.

    `paused`: the move has paused it; libvirt forgets that this was for the move if the move had just ended.
    """
    reasons = {libvirt.VIR_DOMAIN_PAUSED_MIGRATION} | ({libvirt.VIR_DOMAIN_PAUSED_USER} if paused else set())
    try:
        state, reason = domain.state()
        if (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED):
            return RELEASED
        if state == libvirt.VIR_DOMAIN_PAUSED and reason in reasons and not cold:
            domain.resume()
        return libvirt_domain.presence(libvirt, domain).value
    except libvirt.libvirtError:
        return "unknown"  # libvirtd went away: it lets the VM run when it comes back
