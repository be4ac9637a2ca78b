"""The source end of a migration: from three listening sockets to a VM that was released, or that goes on here.

prepare   sockets exist, nothing else has changed
start     autostart is off from here on, so that a reboot of this host can never start a second copy
run       the hypervisor moves the VM; this task watches
pause     asked for by the policy: from here on the guest stands still while the rest is copied, and the stage stays what it is
released  the VM has left and this host will not run it again: only now may the destination let it run
failed    the VM goes on here, and starts with the host as before
left      of one that failed because this host went down: the destination has the VM, and this host had released it without knowing

A VM that is shut off is started paused between `start` and `run` (`paused_instance`), and is shut off again if it fails.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from agent import convergence
from agent.channels import LocalSockets, Way, make_directory, remove_directory
from agent.disk_proof import SourceProof
from agent.hypervisor.base import MoveRequest, Presence, VmChange, VmEvent
from agent.journal import Record
from agent.move import ENDED, HostContext, Move, call, end
from agent.paused_instance import PausedInstance
from agent.standstill import Standstill
from agent.stream.libvirt_rpc import Message
from agent.stream.rpc_calls import FinishWatch
from agent.traffic import Traffic
from landbridge.errors import Conflict, HypervisorError, LandbridgeError, NotFound, NotRecorded
from landbridge.v1.agent_pb2 import (
    CancelResponse,
    Possession,
    PrepareRequest,
    ProveRequest,
    ProveResponse,
    Role,
    SettleResponse,
    Stage,
    StartRequest,
    WatchResponse,
)
from landbridge.v1.types_pb2 import NonConvergence, Policy, Vm, VmState

log = structlog.get_logger()

# Seconds between two looks at the hypervisor's job statistics, which it has no event for.
PROGRESS_INTERVAL = 0.5
# Seconds after which a job that does not obey an abort has its sockets closed under it.
ABORT_PATIENCE = 5.0
# Seconds between two attempts to mark a VM that has left, while libvirtd is away.
MARK_RETRY = 2.0


class SourceMove(Move):
    """One migration, at the host the VM leaves."""

    def __init__(self, host: HostContext, record: Record, vm: Vm) -> None:
        super().__init__(host, record, Traffic())
        self._sockets = LocalSockets(host.gateways, host.runtime / record.migration, self.traffic)
        self._vm = vm
        self._run: asyncio.Task[None] | None = None
        self._began_at = 0.0
        self._finish = FinishWatch()
        self.traffic.on_message_from_libvirtd = self._finish.called
        self.traffic.on_message_to_libvirtd = self._on_reply
        self.traffic.on_lost = self._on_lost
        self._aborting: asyncio.Task[None] | None = None
        self._steering = convergence.Steering(Policy())
        self._granted_ms = 0
        self._instance = PausedInstance(host, record)
        # What has happened here that ends the move; empty if nothing.
        self._trouble = ""
        self._proof = SourceProof(host, record)
        self._standstill = Standstill(self.traffic)

    @classmethod
    def prepare(cls, host: HostContext, request: PrepareRequest) -> SourceMove:
        """Make the sockets."""
        vm = request.vm
        record = Record(
            migration=request.migration, role=Role.ROLE_SOURCE, vm=vm.name, vm_uuid=vm.uuid, cold=request.cold
        )
        record.keep_disks(vm)
        move = cls(host, record, vm)
        move.agree(request)
        move.advance(Stage.STAGE_PREPARED)
        make_directory(move.directory, host.qemu_owner)
        move._sockets.listen(host.qemu_owner)
        return move

    def agree(self, request: PrepareRequest) -> None:
        """Take over what the coordinator says of the channels, as long as none was opened."""
        if self._run is None:
            self.traffic.outage_limit = request.outage_limit_ms / 1000
            self._sockets.way = Way(
                request.migration,
                request.source_site,
                request.source_host,
                request.destination_site,
                request.destination_host,
                request.channel_secret,
                request.vm.uuid,
                request.vm.name,
            )

    async def start(self, request: StartRequest) -> None:
        """Begin to move the VM; returns once that has begun. A second call changes nothing."""
        if self.stage in ENDED:
            raise Conflict(f"migration {self.record.migration} has ended on {self.host.name}; begin a new one")
        if self._run is None:
            self._steering = convergence.Steering(request.policy)
            self._granted_ms = self._steering.downtime_ms
            self._run = asyncio.create_task(self._move(request), name=f"move of {self.record.vm}")

    async def _move(self, wanted: StartRequest) -> None:
        hypervisor, uuid = self.host.hypervisor, self.record.vm_uuid
        loop = asyncio.get_running_loop()
        self._began_at = loop.time()
        unsubscribe = hypervisor.subscribe(lambda event: loop.call_soon_threadsafe(self._on_event, event))
        watching = asyncio.create_task(self._watch_progress())
        request = MoveRequest(
            uuid=uuid,
            domain_xml=wanted.domain_xml,
            rpc_socket=self._sockets.path("rpc"),
            ram_socket=self._sockets.path("ram"),
            disk_socket=self._sockets.path("disk"),
            disks=tuple(disk.target for disk in self._vm.disks if not disk.read_only),
            throttle=wanted.policy.on_no_convergence == NonConvergence.NON_CONVERGENCE_THROTTLE,
            max_downtime_ms=self._granted_ms,
            cold=self.record.cold,
        )
        try:
            # The record comes first: if this agent is killed in between, the next run sets autostart as it was.
            self.record.autostart = self._vm.autostart
            self.host.journal.save(self.record)
            await call(hypervisor.set_autostart, uuid, False)
            if self.record.cold:
                await self._instance.start()
            await call(hypervisor.move, request)
        except LandbridgeError as error:
            # After the release, an error only says that libvirt was interrupted while it removed what is left of the VM.
            if self.stage != Stage.STAGE_RELEASED:
                if error.details.get("vm") != "unknown":
                    self._instance.stays()
                await self._fail(self._cause(error.message))
        else:
            if self.stage != Stage.STAGE_RELEASED:
                self.advance(Stage.STAGE_RELEASED)
        finally:
            unsubscribe()
            await end(watching)
            await self._sockets.close()
        if self.stage == Stage.STAGE_RELEASED:
            await self._mark_moved()

    def _on_lost(self) -> None:
        if self._aborting is None and self.stage not in ENDED:
            self._aborting = asyncio.create_task(self._abort(), name=f"end of {self.record.migration}")

    def _on_reply(self, message: Message) -> None:
        # libvirtd has these bytes already, and only now is the release recorded: were it the other way round, and this agent
        # killed in between, libvirtd would let the guest run here again, and the record would let it run there as well.
        if self._finish.replied(message) and self.stage not in ENDED:
            self.advance(Stage.STAGE_RELEASED)

    def _cause(self, said: str) -> str:
        # libvirt only ever sees that its connection is gone; why it went is known to the channels.
        return self._trouble or self.traffic.failure or said

    async def _fail(self, error: str) -> None:
        log.warning("move.failed", migration=self.record.migration, vm=self.record.vm, error=error)
        with contextlib.suppress(LandbridgeError):  # else: restored when somebody asks whether the VM is here
            if not self.record.cold or await self._instance.is_here():
                await self._restore_autostart()
        self.advance(Stage.STAGE_FAILED, error)

    async def _restore_autostart(self) -> None:
        """Have the VM start with the host again, if it did; only while it is known that it has not left."""
        if self.record.autostart:
            await call(self.host.hypervisor.set_autostart, self.record.vm_uuid, True)
            self.record.autostart = None
            self.host.journal.save(self.record)

    async def _mark(self) -> None:
        with contextlib.suppress(NotFound):  # somebody has removed what was left
            await call(self.host.hypervisor.mark_moved, self.record.vm_uuid, self.record.migration)
        self.record.marked = True
        self.host.journal.save(self.record)

    async def _mark_moved(self) -> None:
        while True:
            try:
                await self._mark()
            except LandbridgeError as error:
                log.warning("move.not_marked", migration=self.record.migration, error=error.message)
                await asyncio.sleep(MARK_RETRY)
            else:
                return

    def _on_event(self, event: VmEvent) -> None:
        if event.uuid != self.record.vm_uuid or self.stage in ENDED:
            return
        if self.record.cold:
            if event.change is VmChange.RESUMED and self._instance.is_let_run():
                self._trouble = f"somebody let {self.record.vm} run on {self.host.name}, and it was to move shut off"
                self._on_lost()
        elif event.change is VmChange.SUSPENDED and self.stage in {
            Stage.STAGE_COPYING_MEMORY,
            Stage.STAGE_COPYING_DISKS,
        }:
            self.suspended_at = event.at
            if not self.record.paused:
                self.advance(Stage.STAGE_SWITCHING)
        elif event.change is VmChange.RESUMED and self.stage == Stage.STAGE_SWITCHING:
            self.suspended_at = None
            self.advance(Stage.STAGE_COPYING_MEMORY)
        elif event.change is VmChange.RESUMED and self.record.paused:
            self.suspended_at = None
            self._note_paused(paused=False)

    async def _watch_progress(self) -> None:
        has_disks = any(not disk.read_only for disk in self._vm.disks)
        self.advance(Stage.STAGE_COPYING_DISKS if has_disks else Stage.STAGE_COPYING_MEMORY)
        loop = asyncio.get_running_loop()
        while self.stage not in ENDED:
            if self.stage != Stage.STAGE_SWITCHING:
                with contextlib.suppress(LandbridgeError):
                    await self._look(loop.time())
            self._mind_standstill(loop.time())
            self.changed()  # for how long the other host has been silent changes by itself
            await asyncio.sleep(PROGRESS_INTERVAL)

    def _mind_standstill(self, now: float) -> None:
        stands_still = self.stage == Stage.STAGE_SWITCHING or self.record.paused
        if self._aborting is None and self._standstill.is_in_vain(now, stands_still=stands_still):
            self._trouble = (
                f"host {self._sockets.way.destination_host} is heard, and yet nothing has gone on for "
                f"{self._standstill.limit:.0f} s while the guest stood still; "
                "see whether QEMU, libvirtd or the storage hangs, there or here"
            )
            log.warning("move.in_vain", migration=self.record.migration, vm=self.record.vm)
            self._aborting = asyncio.create_task(self._stop(), name=f"end of {self.record.migration}")

    async def _look(self, now: float) -> None:
        progress = await call(self.host.hypervisor.progress, self.record.vm_uuid)
        if progress is None:
            return
        progress.elapsed_ms = int((now - self._began_at) * 1000)
        progress.paused = self.record.paused
        act = self._steering.look(progress, heard=self.traffic.silent(now) is None)
        convergence.add_eta(progress)
        self.progress = progress
        if progress.memory_total and self.stage == Stage.STAGE_COPYING_DISKS:
            self.advance(Stage.STAGE_COPYING_MEMORY)
        if act is convergence.Act.PAUSE and self.stage == Stage.STAGE_COPYING_MEMORY and not self.record.cold:
            await self._pause()
        if self._granted_ms != self._steering.downtime_ms and await call(
            self.host.hypervisor.allow_downtime, self.record.vm_uuid, self._steering.downtime_ms
        ):
            self._granted_ms = self._steering.downtime_ms

    async def _pause(self) -> None:
        try:
            # The record comes first: a guest that a killed agent has paused is let run by the next run.
            self._note_paused(paused=True)
            log.info("move.paused", migration=self.record.migration, vm=self.record.vm, why=self._steering.reason)
            is_paused = await call(self.host.hypervisor.pause, self.record.vm_uuid)
        except LandbridgeError as error:
            log.warning("move.not_paused", migration=self.record.migration, error=error.message)
            is_paused = False
        if not is_paused:
            self._steering.reason = ""
            self._note_paused(paused=False)

    def _note_paused(self, *, paused: bool) -> None:
        self.record.paused = paused
        try:
            self.host.journal.save(self.record)
        except NotRecorded:
            if paused:
                self.record.paused = False
                raise
            # The next run would let run a guest that runs already.
        self.progress.paused = paused

    def snapshot(self) -> WatchResponse:
        """What those who watch are shown."""
        response = super().snapshot()
        response.steered = self._steering.reason
        return response

    async def cancel(self, *, discard_arrived: bool = False) -> CancelResponse:
        """Stop the move if it still can be stopped, and say whether the VM is here."""
        async with self.busy:
            await self._stop()
            if self.stage not in ENDED:
                await self._fail("the migration was stopped before it began")
                await self._sockets.close()
            return await self._possession(is_not_there=discard_arrived)

    async def leave(self) -> CancelResponse:
        """Take the gateway's word that the VM is whole at the destination: this host will not run it again, as after a release.

        Nothing is touched if somebody has started it here. May be asked again. Raises NotRecorded, HypervisorError, or Conflict while
        the VM stands still: then it is not done yet.
        """
        answer = await self.cancel()
        if answer.possession != Possession.POSSESSION_ABSENT:
            return answer
        await self.gone()
        async with self.busy:
            if await self._was_started():
                return CancelResponse(possession=Possession.POSSESSION_HERE, cause=self.record.error)
            if not self.record.marked:
                # The record comes first: if this agent is killed in between, the next run marks what is left.
                self.record.stage, self.record.error, self.record.autostart = Stage.STAGE_RELEASED, "", None
                self.host.journal.save(self.record)
                self.changed()
                with contextlib.suppress(NotFound):
                    await call(self.host.hypervisor.set_autostart, self.record.vm_uuid, False)
                await self._mark()
            return CancelResponse(possession=Possession.POSSESSION_ABSENT, left=True)

    async def _was_started(self) -> bool:
        """Whether somebody lets run what the migration left here. A VM that has come back is no leftover: it has no mark."""
        try:
            vm = await call(self.host.hypervisor.vm, self.record.vm_uuid)
        except NotFound:
            return False
        is_off = vm.state in {VmState.VM_STATE_SHUT_OFF, VmState.VM_STATE_MOVED}
        if is_off or (self.record.marked and vm.moved_by != self.record.migration):
            return False
        if vm.state != VmState.VM_STATE_RUNNING:
            # The hypervisor may be putting it away.
            raise Conflict(f"{vm.name} on {self.host.name} is not shut off yet; if it stays so, shut it off there")
        return True

    async def _stop(self) -> None:
        """Abort, and take the sockets away if that does not help: an abort waits for disk writes that may never be answered."""
        if self._run is None or self.stage in ENDED:
            if self._run is not None and self.stage == Stage.STAGE_FAILED:
                await asyncio.wait([self._run])  # what it made here is being removed
            return
        aborting = asyncio.create_task(self._abort())
        await asyncio.wait([self._run], timeout=ABORT_PATIENCE)
        if self.stage not in ENDED:
            await self._sockets.close()
        await asyncio.wait([self._run, aborting])

    async def _abort(self) -> None:
        with contextlib.suppress(HypervisorError):
            await call(self.host.hypervisor.abort, self.record.vm_uuid)

    async def _possession(self, *, is_not_there: bool) -> CancelResponse:
        if self.stage == Stage.STAGE_RELEASED:
            return CancelResponse(possession=Possession.POSSESSION_ABSENT)
        here = await (self._instance.is_here(is_not_there=is_not_there) if self.record.cold else self._goes_on())
        if here:
            await self._restore_autostart()
        return CancelResponse(
            possession=Possession.POSSESSION_HERE if here else Possession.POSSESSION_ABSENT,
            cause=self.record.error,
        )

    async def _goes_on(self) -> bool:
        """Whether a VM that was running is here."""
        presence = await call(self.host.hypervisor.presence, self.record.vm_uuid)
        if presence is Presence.PAUSED and self.suspended_at is not None:
            # A libvirtd that was restarted during the switch-over leaves it to others what becomes of the VM. It was never
            # released, so it runs nowhere else.
            await call(self.host.hypervisor.resume, self.record.vm_uuid)
        return presence in {Presence.RUNNING, Presence.PAUSED}

    async def recover(self) -> None:
        """End what a former run of this agent had under way; its sockets are gone, so the move cannot go on."""
        hypervisor, uuid = self.host.hypervisor, self.record.vm_uuid
        remove_directory(self.directory)
        if self.stage == Stage.STAGE_RELEASED and not self.record.marked:
            await self._mark_moved()
        if self.stage in ENDED:
            if self.stage == Stage.STAGE_FAILED and self._instance.may_stand:
                await self._possession(is_not_there=False)
            return
        while await call(hypervisor.progress, uuid) is not None:
            with contextlib.suppress(HypervisorError):
                await call(hypervisor.abort, uuid)
            await asyncio.sleep(PROGRESS_INTERVAL)
        if self.record.cold:
            await self._possession(is_not_there=False)
        else:
            await self._take_up()
        await self._fail(f"the agent on {self.host.name} was restarted during the migration")

    async def _take_up(self) -> None:
        """Let a VM run that a former run of this agent left paused."""
        hypervisor, uuid = self.host.hypervisor, self.record.vm_uuid
        presence = await call(hypervisor.presence, uuid)
        if presence is Presence.PAUSED and (self.stage == Stage.STAGE_SWITCHING or self.record.paused):
            # It was never released, so the destination never let it run.
            await call(hypervisor.resume, uuid)
        elif presence is Presence.SHUT_OFF:
            # Killed between libvirtd's release and the record of it, perhaps: then it must not start here with the host.
            self.record.autostart = None

    async def gone(self) -> None:
        """Wait until the hypervisor has put away what is left of a VM that was released."""
        if self._run is not None and self.stage == Stage.STAGE_RELEASED:
            await asyncio.wait([self._run])

    async def prove(self, request: ProveRequest) -> ProveResponse:
        """Hash the disks as the VM has left them. Raises Conflict if it has not."""
        if self.stage != Stage.STAGE_RELEASED:
            raise Conflict(f"migration {self.record.migration} has not left {self.host.name}: its disks still change")
        await self.gone()
        return await self._proof.prove(request)

    async def settle(self) -> SettleResponse:
        """Remove the definition and disks of the VM that left."""
        await self.gone()
        await self._proof.close()
        async with self.busy:
            hypervisor, removed = self.host.hypervisor, []
            vm = next((vm for vm in await call(hypervisor.vms) if vm.uuid == self.record.vm_uuid), None)
            if vm is not None and (vm.state != VmState.VM_STATE_MOVED or vm.moved_by != self.record.migration):
                raise Conflict(
                    f"{self.record.vm} on {self.host.name} is not what migration {self.record.migration} left there; "
                    "nothing was removed"
                )
            if vm is not None:
                # Recorded first: a disk is removed only when no definition names it, and a crash in between is taken up here.
                self.record.images = [disk.path for disk in vm.disks if not disk.read_only]
                self.host.journal.save(self.record)
                await call(hypervisor.undefine, vm.uuid)
                removed.append(f"definition of {vm.name}")
            removed += [image for image in self.record.images if await call(hypervisor.remove_disk, image)]
            self.record.images = []
            self.host.journal.save(self.record)
            return SettleResponse(removed=removed)

    async def close(self) -> None:
        """Close the sockets; the move fails, and the next run of the agent takes it up."""
        await self._proof.close()
        await self._sockets.close()
        if self._run is not None:
            await asyncio.wait([self._run], timeout=ABORT_PATIENCE)


async def remove_moved(host: HostContext, vm: Vm) -> None:
    """Remove the definition and the writable disks of a VM that has moved away."""
    await call(host.hypervisor.undefine, vm.uuid)
    for disk in vm.disks:
        if not disk.read_only:
            await call(host.hypervisor.remove_disk, disk.path)
