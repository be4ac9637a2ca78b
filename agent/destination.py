"""The destination end of a migration: from empty images to a VM that was activated, or to nothing left.

    prepare   images exist, empty; libvirt makes the rest when the source's calls arrive on the rpc channel
    arrived   the VM came whole and stands still; it is removed only by one who knows that the source has it
    active    it runs here
    failed    nothing of it is here

When the rpc channel ends before the VM has arrived, libvirt ends the incoming VM by itself, and this agent removes the
rest, without being asked: the source's site may be out of reach.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from agent import approval
from agent.channels import NAMES, make_directory, remove_directory
from agent.hypervisor.base import Presence, VmChange, VmEvent
from agent.journal import Record
from agent.move import ENDED, HostContext, Move, call, end
from agent.relay import Traffic
from agent.source import remove_moved
from agent.stream.firewall import Firewall, Refusal
from agent.stream.libvirt_rpc import Message, Procedure
from landbridge import ticket
from landbridge.errors import AlreadyExists, Conflict, LandbridgeError, NotFound, PermissionDenied
from landbridge.v1.agent_pb2 import (
    ActivateResponse,
    CancelResponse,
    Possession,
    PrepareRequest,
    Role,
    Stage,
)
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from landbridge.v1.types_pb2 import VmState

log = structlog.get_logger()

# Seconds that a prepared migration waits for its first channel before it is given up.
PREPARED_LEASE = 300.0
# Channels of one migration: more than a VM has disks.
MOST_CHANNELS = 512
# Seconds that libvirt gets to end an incoming VM whose rpc channel has ended.
AUTODESTROY_PATIENCE = 10.0
# How a VM that came whole is seen: libvirt forgets why it is paused when it is restarted.
ARRIVED = frozenset({Presence.ARRIVED, Presence.PAUSED})
# Seconds that libvirt at the source gets to leave in good order after one of its calls was refused.
REFUSED_PATIENCE = 5.0
# A pool with less free space than this, in bytes, is full for every practical purpose.
FULL_POOL = 4 << 20


def _tell_security(*, enforced: bool, **facts: object) -> None:
    """A security event: what was refused, or would have been."""
    log.warning("firewall.refused" if enforced else "firewall.would_refuse", security=True, **facts)


def _not_approved(host: HostContext, request: PrepareRequest, clause: str, *, enforces: bool) -> None:
    """Raises PermissionDenied, if the rules are enforced."""
    reason = f"{host.name} does not take {request.vm.name} in: {clause}"
    _tell_security(
        enforced=enforces,
        migration=request.migration,
        vm=request.vm.name,
        source=f"{request.source_site}/{request.source_host}",
        call="Prepare",
        part=clause,
        reason=reason,
    )
    if enforces:
        raise PermissionDenied(reason)


class DestinationMove(Move):
    """One migration, at the host the VM comes to."""

    def __init__(self, host: HostContext, record: Record) -> None:
        super().__init__(host, record, Traffic())
        self.traffic.on_close = self._on_channel_close
        self.traffic.on_message_to_libvirtd = self._on_call
        self.traffic.on_refused = self._on_refused
        # What its channels are opened with, and who they are said to be between; none is opened after a restart.
        self._secret = b""
        self._ends = ("", "", "", "")
        # The tickets that have opened a channel, by kind and index.
        self._tickets: set[tuple[int, int]] = set()
        # Whether libvirt at the source has begun to finish or to stop the move; what ends here after that is no cause.
        self._finishing = False
        # Whether it has asked libvirtd here to hang up; else libvirtd does not, unless it ends.
        self._hung_up = False
        self._cause = ""
        # What the firewall has refused first; and what ends those who stay all the same.
        self._refused = ""
        self._leaving: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._unsubscribe = host.hypervisor.subscribe(lambda event: loop.call_soon_threadsafe(self._on_event, event))

    @classmethod
    async def prepare(cls, host: HostContext, request: PrepareRequest) -> DestinationMove:
        """Make the images and the directory in which QEMU will listen."""
        vm, hypervisor = request.vm, host.hypervisor
        if unreadable := approval.unreadable(request.domain_xml):
            _not_approved(host, request, unreadable, enforces=True)
        for other in await call(hypervisor.vms):
            if other.uuid == vm.uuid and other.state == VmState.VM_STATE_MOVED:
                # The VM comes back to where it once left from; what it left there is out of date.
                log.info("move.superseded", vm=vm.name, migration=other.moved_by)
                await remove_moved(host, other)
            elif other.uuid == vm.uuid or other.name == vm.name:
                raise AlreadyExists(
                    f"{host.name} has a VM {other.name} with UUID {other.uuid}; rename or remove one of the two"
                )
        record = Record(
            migration=request.migration,
            role=Role.ROLE_DESTINATION,
            vm=vm.name,
            vm_uuid=vm.uuid,
            domain_xml=await call(hypervisor.localize, request.domain_xml, request.mapping, vm),
        )
        images = await call(hypervisor.image_paths, vm, request.mapping)
        check = await call(hypervisor.check_incoming, vm, request.domain_xml, request.mapping)
        if check.existing_images:
            raise AlreadyExists(f"{host.name} already has the image {check.existing_images[0]}; remove or rename it")
        rules = approval.allowed(host.firewall, check.host, vm, request.mapping, images)
        enforces = host.firewall.mode == "enforce"
        for problem in await call(approval.problems, record.domain_xml, vm, rules):
            _not_approved(host, request, str(problem), enforces=enforces)
        record.images, record.files = images, approval.made_files(record.domain_xml)
        move = cls(host, record)
        approved = approval.approve(record.domain_xml, vm, rules, move.directory)
        move.traffic.firewall = Firewall(approved, enforces=enforces)
        move.agree(request)
        move.advance(Stage.STAGE_PREPARED)
        try:
            await call(hypervisor.create_disks, vm, request.mapping)
            make_directory(move.directory, host.qemu_owner)
        except (LandbridgeError, OSError) as error:
            await move._remove(f"{host.name} could not be prepared: {error}")
            raise
        move._watchdog = asyncio.create_task(move._expire(), name=f"lease of {record.migration}")
        return move

    def agree(self, request: PrepareRequest) -> None:
        """Take over what the coordinator says of the channels, as long as none was opened."""
        if not self._tickets:
            self.traffic.outage_limit = request.outage_limit_ms / 1000
            self._secret = request.channel_secret
            self._ends = (request.source_site, request.source_host, request.destination_site, request.destination_host)

    def admit(self, opening: ChannelOpen, libvirtd: str) -> tuple[str, Traffic]:
        """Where to connect a new channel. Raises PermissionDenied for one without a good and unused ticket, or Conflict."""
        if self.stage != Stage.STAGE_PREPARED:
            raise Conflict(f"migration {self.record.migration} takes no channels on {self.host.name} any more")
        ends = (opening.source_site, opening.source_host, opening.destination_site, opening.destination_host)
        if ends != self._ends or not ticket.is_good(self._secret, opening):
            raise PermissionDenied(
                f"host {opening.source_host} of site {opening.source_site} opened a channel of migration {self.record.migration} "
                f"on {self.host.name} without a ticket for it"
            )
        if (opening.kind, opening.index) in self._tickets:
            # Also by the same channel, once it is forgotten: what it carried has arrived, and could be written over.
            raise PermissionDenied(
                f"a ticket of migration {self.record.migration} was used a second time on {self.host.name}"
            )
        if opening.kind == ChannelKind.CHANNEL_KIND_RPC and opening.index:
            # The firewall follows one conversation: a second one could prepare a second time.
            raise PermissionDenied(
                f"migration {self.record.migration} has one rpc channel on {self.host.name}, not more"
            )
        if len(self._tickets) >= MOST_CHANNELS:
            raise Conflict(
                f"migration {self.record.migration} has {MOST_CHANNELS} channels on {self.host.name} already"
            )
        self._tickets.add((opening.kind, opening.index))
        kind = NAMES[opening.kind]
        return (libvirtd if kind == "rpc" else str(self.directory / f"{kind}.sock")), self.traffic

    async def _expire(self) -> None:
        await asyncio.sleep(PREPARED_LEASE)
        if not any(self.traffic.written.values()):
            self._removing = asyncio.create_task(self._give_up("no channel was opened by the source"))

    def _on_event(self, event: VmEvent) -> None:
        if event.uuid != self.record.vm_uuid or self.stage in ENDED:
            return
        if event.change is not VmChange.STOPPED or self.stage != Stage.STAGE_PREPARED:
            return
        if not self._cause and not self._finishing and self.traffic.failure is None:
            self._cause = f"QEMU ended on {self.host.name} while it took the VM in ({event.detail})"

    def _on_call(self, message: Message) -> None:
        self._hung_up = self._hung_up or message.is_call_of(Procedure.CONNECT_CLOSE)
        if self._hung_up or message.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
            self._note_dead_qemu()
            self._finishing = True

    def _on_refused(self, refusal: Refusal) -> None:
        """A security event. Whoever sent this is told, may leave in good order, and is cut off if it does not."""
        _tell_security(
            enforced=refusal.enforced,
            migration=self.record.migration,
            vm=self.record.vm,
            source=f"{self._ends[0]}/{self._ends[1]}",
            call=refusal.call,
            part=refusal.part,
            reason=refusal.sentence,
        )
        if refusal.enforced and not self._refused:
            self._refused = refusal.sentence
            self._leaving = asyncio.get_running_loop().call_later(REFUSED_PATIENCE, self._cut_off)

    def _cut_off(self) -> None:
        for carrier in self.traffic.carriers:
            if not carrier.ended.is_set():
                carrier.lost(self._refused)

    def _note_dead_qemu(self) -> None:
        """QEMU hangs up first only if it has ended, or is told to by a FINISH call."""
        if not self._finishing and not self._cause and self.traffic.closed_here & {"ram", "disk"}:
            self._cause = f"QEMU ended on {self.host.name} while it took the VM in"

    def _on_channel_close(self, kind: str) -> None:
        if kind == "rpc" and self.stage == Stage.STAGE_PREPARED and self._removing is None:
            self._removing = asyncio.create_task(self._settle_channel_end(), name=f"end of {self.record.migration}")

    async def _settle_channel_end(self) -> None:
        presence = await self._await_outcome()
        async with self.busy:
            if self.stage != Stage.STAGE_PREPARED:
                return
            if presence in ARRIVED:
                self._arrived()
            elif presence is Presence.RUNNING:
                # A former run of this agent let it run, and was killed before it could say so.
                self.advance(Stage.STAGE_ACTIVE)
            else:
                await self._remove(await self._explain())

    async def _await_outcome(self) -> Presence:
        # Events say that a VM stopped, not that libvirt has forgotten it: look until it has, or the patience ends.
        deadline = asyncio.get_running_loop().time() + AUTODESTROY_PATIENCE
        while True:
            try:
                presence = await call(self.host.hypervisor.presence, self.record.vm_uuid)
            except LandbridgeError as error:
                # libvirtd is away; its successor ends what it finds half done.
                log.warning("hypervisor.unreachable", error=error.message)
                deadline = asyncio.get_running_loop().time() + AUTODESTROY_PATIENCE
                presence = Presence.INCOMING
            if presence is not Presence.INCOMING or asyncio.get_running_loop().time() > deadline:
                return presence
            await asyncio.sleep(0.2)

    def _arrived(self) -> None:
        self._end_lease()
        self.advance(Stage.STAGE_ARRIVED)

    async def _explain(self) -> str:
        """What this host saw go wrong; empty if nothing."""
        if self._refused:
            return self._refused
        with contextlib.suppress(LandbridgeError):
            host = await call(self.host.hypervisor.host)
            full = [
                p.name
                for p in host.pools
                if p.available < FULL_POOL and any(i.startswith(p.path) for i in self.record.images)
            ]
            if full:
                return f"the storage pool {full[0]} on {self.host.name} is full"
        if "rpc" in self.traffic.closed_here and not self._hung_up:
            return f"libvirtd on {self.host.name} ended the connection; see whether it was restarted"
        self._note_dead_qemu()
        return self._cause or self.traffic.failure or ""

    async def _give_up(self, why: str) -> None:
        async with self.busy:
            if self.stage == Stage.STAGE_PREPARED:
                await self._remove(why)

    async def _remove(self, why: str) -> None:
        """Remove everything that this migration made here. The VM is not active, and the source has it."""
        hypervisor = self.host.hypervisor
        await call(hypervisor.destroy, self.record.vm_uuid)
        # One that had arrived and whose QEMU has ended since is still defined.
        await call(hypervisor.undefine, self.record.vm_uuid)
        for image in self.record.images:
            await call(hypervisor.remove_disk, image)
        for file in self.record.files:
            await call(Path(file).unlink, missing_ok=True)
        remove_directory(self.directory)
        self._end_lease()
        self._unsubscribe()
        self.advance(Stage.STAGE_FAILED, why)
        log.info("move.removed", migration=self.record.migration, vm=self.record.vm, why=why)

    def _end_lease(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    async def activate(self, *, autostart: bool) -> ActivateResponse:
        """Let the VM run. The caller knows that the source has released it."""
        async with self.busy:
            hypervisor, uuid = self.host.hypervisor, self.record.vm_uuid
            if self.stage != Stage.STAGE_ACTIVE:
                presence = await call(hypervisor.presence, uuid)
                if presence not in ARRIVED | {Presence.RUNNING}:
                    raise NotFound(
                        f"{self.record.vm} is not on {self.host.name} ({presence.value}); it cannot be activated there",
                        # For the coordinator: this host has looked, and does not only know nothing of the migration.
                        details={"presence": presence.name.lower()},
                    )
                self.record.resumed_at = await call(hypervisor.resume, uuid)
                self._end_lease()
                self._unsubscribe()
                self.advance(Stage.STAGE_ACTIVE)
            # Also when it is active already: a former run may have been killed as soon as it had let it run.
            if autostart:
                await call(hypervisor.set_autostart, uuid, True)
            remove_directory(self.directory)
            response = ActivateResponse()
            response.resumed_at.FromNanoseconds(int((self.record.resumed_at or 0.0) * 1e9))
            return response

    async def cancel(self, *, discard_arrived: bool) -> CancelResponse:
        """Remove what was made here, unless the VM is active, or has arrived and the caller does not know who has it."""
        async with self.busy:
            if self.stage == Stage.STAGE_ACTIVE:
                return CancelResponse(possession=Possession.POSSESSION_HERE)
            if self.stage != Stage.STAGE_FAILED:
                presence = await call(self.host.hypervisor.presence, self.record.vm_uuid)
                if presence is Presence.RUNNING:
                    return CancelResponse(possession=Possession.POSSESSION_HERE)
                if presence in ARRIVED and not discard_arrived:
                    return CancelResponse(possession=Possession.POSSESSION_ARRIVED)
                await self._remove(await self._explain())
            return CancelResponse(possession=Possession.POSSESSION_ABSENT, cause=self.record.error)

    async def recover(self) -> None:
        """Go on after a restart: what had not arrived cannot arrive any more."""
        if self.stage in ENDED:
            self._unsubscribe()
            return
        self.traffic.failure = f"the agent on {self.host.name} was restarted during the migration"
        await self._settle_channel_end()

    async def close(self) -> None:
        """Leave everything as it is; the next run takes it up."""
        self._end_lease()
        self._unsubscribe()
        await end(self._removing)
