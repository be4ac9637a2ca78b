"""The destination end of a migration: from empty images to a VM that was activated, or to nothing left.

    prepare   images exist, empty; libvirt makes the rest when the source's calls arrive on the rpc channel
    arrived   the VM came whole and stands still; it is removed only by one who knows that the source has it
    active    it runs here; one that was shut off is so again
    failed    nothing of it is here

When the rpc channel ends before the VM has arrived, libvirt ends the incoming VM by itself, and this agent removes the
rest, without being asked: the source's site may be out of reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import structlog

from agent import approval, preparing
from agent.admission import Admission
from agent.channels import make_directory, remove_directory
from agent.disk_proof import DestinationProof
from agent.hypervisor.base import Presence, VmChange, VmEvent
from agent.journal import Passage, Record
from agent.move import ENDED, HostContext, Move, call, end
from agent.refusals import Refusals, tell
from agent.storing import Storing
from agent.stream.firewall import Action, Approval, Firewall, Refusal, Verdict
from agent.stream.libvirt_rpc import Message, Procedure, Status
from agent.traffic import Traffic
from landbridge.errors import Conflict, LandbridgeError, NotFound, NotRecorded, ProtocolError
from landbridge.v1.agent_pb2 import (
    ActivateResponse,
    CancelResponse,
    Possession,
    PrepareRequest,
    ProveRequest,
    ProveResponse,
    Stage,
    WatchResponse,
)
from landbridge.v1.channel_pb2 import ChannelOpen

log = structlog.get_logger()

# Seconds that a prepared migration waits for its first channel before it is given up.
PREPARED_LEASE = 300.0
# Seconds that libvirt gets to end an incoming VM whose rpc channel has ended.
AUTODESTROY_PATIENCE = 10.0
# How a VM that came whole is seen: libvirt forgets why it is paused when it is restarted.
ARRIVED = frozenset({Presence.ARRIVED, Presence.PAUSED})
# Which VM with the UUID of this migration's is this migration's, by what libvirtd has said: another may have come by another way.
OWN = {
    Passage.NONE: frozenset[Presence](),
    Passage.ASKED: frozenset({Presence.INCOMING}),
    Passage.DECLINED: frozenset[Presence](),
    # It may have arrived, and this agent been killed before it was told. It does not run unless it is activated.
    Passage.PREPARED: ARRIVED | {Presence.INCOMING, Presence.SHUT_OFF},
    Passage.ARRIVED: frozenset(Presence),
}
# A pool with less free space than this, in bytes, is full for every practical purpose.
FULL_POOL = 4 << 20


class _Witness(Firewall):
    """The firewall of a move, which has written down what libvirtd is asked, and what it said, before it goes on."""

    def __init__(self, move: DestinationMove, approval: Approval, *, enforces: bool) -> None:
        super().__init__(approval, enforces=enforces)
        self._move = move

    def call(self, call: Message) -> Verdict:
        """See `Firewall`. Raises ProtocolError for a PREPARE or a FINISH that comes when the move is given up."""
        verdict = super().call(call)
        if verdict.action is Action.HOLD:
            self._move.require_going()
        elif verdict.action is Action.PASS and call.is_call_of(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS):
            self._move.asking()
        return verdict

    def reply(self, reply: Message) -> Verdict:
        """See `Firewall`."""
        verdict = super().reply(reply)
        is_good = reply.status == Status.OK
        if verdict.action is Action.PASS and reply.is_reply_to(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS):
            self._move.note(Passage.PREPARED if is_good else Passage.DECLINED)
        elif verdict.action is Action.PASS and reply.is_reply_to(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
            self._move.note(Passage.ARRIVED if is_good else Passage.ASKED)
        return verdict


class DestinationMove(Move):
    """One migration, at the host the VM comes to."""

    def __init__(self, host: HostContext, record: Record) -> None:
        super().__init__(host, record, Traffic())
        self.traffic.on_close = self._on_channel_close
        self.traffic.on_message_to_libvirtd = self._on_call
        self.traffic.on_refused = self._on_refused
        self._storing = Storing(self.traffic, self.directory / "disk.sock", host.name)
        self.traffic.is_stored = self._storing.is_done
        self._admission = Admission(record.migration, host.name)
        self._refusals = Refusals(self.traffic)
        # Whether libvirt at the source has begun to finish or to stop the move; what ends here after that is no cause.
        self._finishing = False
        # Whether it has asked libvirtd here to hang up; else libvirtd does not, unless it ends.
        self._hung_up = False
        self._cause = ""
        # Whether what was made here is being removed: libvirtd is asked for nothing any more.
        self._is_given_up = False
        self._watchdog: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._proof = DestinationProof(host, record)
        loop = asyncio.get_running_loop()
        self._unsubscribe = host.hypervisor.subscribe(lambda event: loop.call_soon_threadsafe(self._on_event, event))

    @classmethod
    async def prepare(cls, host: HostContext, request: PrepareRequest) -> DestinationMove:
        """Make the images and the directory in which QEMU will listen."""
        record, rules = await preparing.examine(host, request)
        move = cls(host, record)
        approved = approval.approve(record.domain_xml, request.vm, rules, move.directory)
        move.traffic.firewall = _Witness(move, approved, enforces=host.firewall.mode == "enforce")
        move.agree(request)
        move.advance(Stage.STAGE_PREPARED)
        try:
            await move._make_room(request)
        except (LandbridgeError, OSError) as error:
            await move._remove(f"{host.name} could not be prepared: {error}")
            raise
        move._watchdog = asyncio.create_task(move._expire(), name=f"lease of {record.migration}")
        return move

    async def _make_room(self, request: PrepareRequest) -> None:
        try:
            await call(self.host.hypervisor.create_disks, request.vm, request.mapping)
        except LandbridgeError:
            # All or nothing: what is there now is somebody else's.
            self.record.images = []
            raise
        make_directory(self.directory, self.host.qemu_owner)

    def snapshot(self) -> WatchResponse:
        """What those who watch are shown."""
        response = super().snapshot()
        response.refused.extend(self._refusals.shown)
        return response

    def agree(self, request: PrepareRequest) -> None:
        """Take over what the coordinator says of the channels, as long as none was opened."""
        if not self._admission.has_begun:
            self.traffic.outage_limit = request.outage_limit_ms / 1000
            self._admission.agree(request)

    def admit(self, opening: ChannelOpen, libvirtd: str) -> tuple[str, Traffic]:
        """Where to connect a new channel. Raises PermissionDenied for one without a good and unused ticket, or Conflict."""
        if self.stage != Stage.STAGE_PREPARED:
            raise Conflict(f"migration {self.record.migration} takes no channels on {self.host.name} any more")
        kind = self._admission.admit(opening)
        return (libvirtd if kind == "rpc" else str(self.directory / f"{kind}.sock")), self.traffic

    def require_going(self) -> None:
        """Raises ProtocolError if what comes now would be removed by nobody."""
        if self._is_given_up or self.stage != Stage.STAGE_PREPARED:
            raise ProtocolError(f"migration {self.record.migration} is over on {self.host.name}")

    def asking(self) -> None:
        """libvirtd is to be asked to take the VM in. Raises ProtocolError if it may not be any more."""
        self.require_going()
        # libvirt makes those that are missing, and takes those that are here.
        self.record.files = [file for file in self.record.files if not os.path.lexists(file)]
        self.note(Passage.ASKED)

    def note(self, passage: Passage) -> None:
        """What becomes of the VM at libvirtd, durably; nothing is after the end. Raises ProtocolError, which ends the channel."""
        if self.stage in ENDED:
            return
        self.record.passage = passage
        try:
            self.host.journal.save(self.record)
        except NotRecorded as error:
            raise ProtocolError(f"{self.host.name}: {error.message}") from error
        if passage is Passage.ARRIVED:
            self._proof.arrived()

    async def _presence(self) -> Presence:
        """Whether and how this move's VM is here; ABSENT also for another that has its UUID."""
        found = await call(self.host.hypervisor.presence, self.record.vm_uuid)
        return found if found in OWN[self.record.passage] else Presence.ABSENT

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
        if not self._finishing and self.record.passage is Passage.PREPARED:
            # Whatever stands here from now on is another's.
            with contextlib.suppress(ProtocolError):
                self.note(Passage.ASKED)

    def _on_call(self, message: Message) -> None:
        self._hung_up = self._hung_up or message.is_call_of(Procedure.CONNECT_CLOSE)
        if self._hung_up or message.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
            self._note_dead_qemu()
            self._finishing = True

    def _on_refused(self, refusal: Refusal) -> None:
        tell(refusal, migration=self.record.migration, vm=self.record.vm, source=self._admission.source)
        if self._refusals.add(refusal):
            self.changed()

    def _note_dead_qemu(self) -> None:
        """QEMU hangs up first only if it has ended, or is told to by a FINISH call."""
        if not self._finishing and not self._cause and self.traffic.closed_here & {"ram", "disk"}:
            self._cause = f"QEMU ended on {self.host.name} while it took the VM in"

    def _on_channel_close(self, kind: str) -> None:
        if kind == "disk" and self.stage == Stage.STAGE_PREPARED:
            self._storing.look()
        if kind == "rpc" and self.stage == Stage.STAGE_PREPARED and self._removing is None:
            self._removing = asyncio.create_task(self._settle_channel_end(), name=f"end of {self.record.migration}")

    async def _settle_channel_end(self) -> None:
        presence = await self._await_outcome()
        async with self.busy:
            if self.stage != Stage.STAGE_PREPARED:
                return
            # One that has come whole is removed only by who knows that the source has it, though it is off by now.
            if self._is_whole(presence) or (self.record.passage is Passage.ARRIVED and presence is Presence.SHUT_OFF):
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
                presence = await self._presence()
            except LandbridgeError as error:
                # libvirtd is away; its successor ends what it finds half done.
                log.warning("hypervisor.unreachable", error=error.message)
                deadline = asyncio.get_running_loop().time() + AUTODESTROY_PATIENCE
                presence = Presence.INCOMING
            if presence is not Presence.INCOMING or asyncio.get_running_loop().time() > deadline:
                return presence
            await asyncio.sleep(0.2)

    def _is_whole(self, presence: Presence) -> bool:
        """Whether it came, and has all that it came with: one that is to be shut off loses nothing if it is so already."""
        has_ended = self.record.cold and self.record.passage is Passage.ARRIVED and presence is Presence.SHUT_OFF
        return presence in ARRIVED or has_ended

    def _arrived(self) -> None:
        self._end_lease()
        self.advance(Stage.STAGE_ARRIVED)

    async def _explain(self) -> str:
        """What this host saw go wrong; empty if nothing."""
        if self._refusals.cause:
            return self._refusals.cause
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
        self._is_given_up = True
        await self._proof.discard()
        if await self._presence() is not Presence.ABSENT:
            await call(hypervisor.destroy, self.record.vm_uuid)
            # One that had arrived and whose QEMU has ended since is still defined.
            await call(hypervisor.undefine, self.record.vm_uuid)
        for image in self.record.images:
            await call(hypervisor.remove_disk, image)
        if self.record.passage is not Passage.NONE:
            for file in self.record.files:
                await call(Path(file).unlink, missing_ok=True)
        remove_directory(self.directory)
        self._end_lease()
        self._unsubscribe()
        self.record.passage = Passage.NONE
        self.advance(Stage.STAGE_FAILED, why)
        log.info("move.removed", migration=self.record.migration, vm=self.record.vm, why=why)

    def _end_lease(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._refusals.end()

    async def activate(self, *, autostart: bool) -> ActivateResponse:
        """Let the VM run, or shut it off if it came so. The caller knows that the source has released it."""
        async with self.busy:
            hypervisor, uuid = self.host.hypervisor, self.record.vm_uuid
            if self.stage != Stage.STAGE_ACTIVE:
                presence = await self._presence()
                has_arrived = self.record.passage is Passage.ARRIVED
                if not has_arrived or not (self._is_whole(presence) or presence is Presence.RUNNING):
                    raise NotFound(
                        f"{self.record.vm} is not on {self.host.name} ({presence.value}); it cannot be activated there",
                        # For the coordinator: this host has looked, and does not only know nothing of the migration.
                        details={"presence": presence.name.lower()},
                    )
                if not self.record.cold:
                    await self._proof.open()
                    self.record.resumed_at = await call(hypervisor.resume, uuid)
                elif presence is not Presence.RUNNING:  # else its owner has let it run: there is no other one any more
                    await call(hypervisor.end_paused, uuid)
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

    async def prove(self, request: ProveRequest) -> ProveResponse:
        """Hash the disks as they arrived. Raises Conflict if the VM was not let run here."""
        if self.stage != Stage.STAGE_ACTIVE:
            raise Conflict(
                f"migration {self.record.migration} has not come to {self.host.name}: there is nothing to prove"
            )
        async with self.busy:
            return await self._proof.prove(request)

    async def cancel(self, *, discard_arrived: bool) -> CancelResponse:
        """Remove what was made here, unless the VM is active, or has arrived and the caller does not know who has it."""
        async with self.busy:
            if self.stage == Stage.STAGE_ACTIVE:
                return CancelResponse(possession=Possession.POSSESSION_HERE)
            if self.stage != Stage.STAGE_FAILED:
                presence = await self._presence()
                if presence is Presence.RUNNING:
                    return CancelResponse(possession=Possession.POSSESSION_HERE)
                if self._is_whole(presence) and not discard_arrived:
                    return CancelResponse(possession=Possession.POSSESSION_ARRIVED)
                await self._remove(await self._explain())
            return CancelResponse(possession=Possession.POSSESSION_ABSENT, cause=self.record.error)

    async def recover(self) -> None:
        """Go on after a restart: what had not arrived cannot arrive any more."""
        if self.stage in ENDED:
            self._unsubscribe()
            self._proof.recover()
            return
        self.traffic.failure = f"the agent on {self.host.name} was restarted during the migration"
        await self._settle_channel_end()

    async def close(self) -> None:
        """Leave everything as it is; the next run takes it up."""
        self._end_lease()
        self._unsubscribe()
        await self._proof.close()
        await self._storing.close()
        await end(self._removing)
