"""landbridge.v1.Agent: thin; the work is in `source`, `destination` and the hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import structlog

from agent import unrecorded
from agent.approval import refusals
from agent.destination import DestinationMove
from agent.journal import Record
from agent.move import ENDED, HostContext, Move, call
from agent.source import SourceMove
from agent.traffic import Traffic
from landbridge.errors import Conflict, LandbridgeError, NotFound, NotRecorded, UsageError
from landbridge.v1 import agent_pb2 as pb
from landbridge.v1 import agent_pb2_grpc
from landbridge.v1.channel_pb2 import ChannelOpen
from landbridge.v1.types_pb2 import Host, Vm

log = structlog.get_logger()

MIGRATION_ID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
RECOVERY_INTERVAL = 2.0


def _is_canonical(text: str) -> bool:
    """Whether this is a UUID, written as libvirt writes it."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


class Moves:
    """The migrations of this host, under way and ended."""

    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._moves: dict[str, Move] = {}
        self._recovered: dict[str, asyncio.Task[None]] = {}
        self._preparing: dict[str, asyncio.Task[Move]] = {}
        # Held from the first look at what is here until a VM that comes has its place.
        self._placing = asyncio.Lock()
        self._catching_up: asyncio.Task[None] | None = None

    def recover(self) -> None:
        """Take up what a former run left. Each goes on in the background until the hypervisor answers."""
        self._catching_up = asyncio.create_task(self._catch_up(), name="journal")
        for record in self._host.journal.load():
            move: Move
            if record.is_source:
                move = SourceMove(self._host, record, Vm(name=record.vm, uuid=record.vm_uuid))
            else:
                move = DestinationMove(self._host, record)
            self._moves[record.migration] = move
            self._recovered[record.migration] = asyncio.create_task(self._recover(move, record))

    async def _catch_up(self) -> None:
        while True:
            await asyncio.sleep(RECOVERY_INTERVAL)
            with contextlib.suppress(NotRecorded):  # said when it happened
                self._host.journal.catch_up()

    async def _recover(self, move: Move, record: Record) -> None:
        while True:
            try:
                await move.recover()
            except LandbridgeError as error:
                log.warning("move.recovery_waits", migration=record.migration, why=error.message)
                await asyncio.sleep(RECOVERY_INTERVAL)
            else:
                return

    async def get(self, migration: str) -> Move | None:
        """A migration, once it is recovered or prepared."""
        if task := self._recovered.get(migration):
            await asyncio.shield(task)
        if preparing := self._preparing.get(migration):
            await asyncio.wait([preparing])
        return self._moves.get(migration)

    async def prepare(self, request: pb.PrepareRequest) -> Record:
        """Prepare one end; returns its record. Raises Conflict if it has ended here already."""
        if not MIGRATION_ID.fullmatch(request.migration):
            raise UsageError(f"{request.migration!r} is no id of a migration; ids are UUIDs")
        if not _is_canonical(request.vm.uuid):
            # libvirt knows more ways to write one, and a name is none: each would go round what is compared here.
            raise UsageError(f"{request.vm.uuid!r} is no UUID of a VM; it has 36 characters, in lower case")
        move = await self.get(request.migration)
        if move is None:
            # Goes on if the caller gives up, so that what it makes is known to whoever asks next, be it to remove it.
            task = self._preparing[request.migration] = asyncio.create_task(self._prepare(request))
            task.add_done_callback(lambda _: self._preparing.pop(request.migration))
            move = await asyncio.shield(task)
        else:
            move.agree(request)
        if move.stage == pb.Stage.STAGE_FAILED:
            raise Conflict(f"migration {request.migration} has ended on {self._host.name}: {move.record.error}")
        return move.record

    async def _prepare(self, request: pb.PrepareRequest) -> Move:
        move: Move
        # Nothing begins while something is not on record: what it leaves could be taken for this one's.
        self._host.journal.catch_up()
        await call(self._host.journal.reserve)
        if request.role == pb.Role.ROLE_SOURCE:
            move = SourceMove.prepare(self._host, request)
        else:
            await self.departed(request.vm.uuid)
            async with self._placing:
                self._require_alone(request.vm)
                move = await DestinationMove.prepare(self._host, request)
                self._moves[request.migration] = move
            return move
        self._moves[request.migration] = move
        return move

    def _require_alone(self, vm: Vm) -> None:
        """Raises Conflict if another migration brings a VM of this UUID or this name."""
        for move in self._moves.values():
            same = move.record.vm_uuid == vm.uuid or move.record.vm == vm.name
            if same and isinstance(move, DestinationMove) and move.stage not in ENDED:
                raise Conflict(
                    f"migration {move.record.migration} brings {move.record.vm} to {self._host.name} already; wait until it has ended"
                )

    async def departed(self, vm: str) -> None:
        """Wait until a VM, by its UUID, that was just released has left this host for good, so that it can come back."""
        for move in list(self._moves.values()):
            if isinstance(move, SourceMove) and move.record.vm_uuid == vm:
                await move.gone()

    async def source(self, migration: str) -> SourceMove:
        """A migration that leaves this host."""
        move = await self.get(migration)
        if not isinstance(move, SourceMove):
            raise NotFound(f"{self._host.name} is not the source of a migration {migration}")
        return move

    async def destination(self, migration: str) -> DestinationMove:
        """A migration that comes to this host."""
        move = await self.get(migration)
        if not isinstance(move, DestinationMove):
            raise NotFound(f"{self._host.name} is not the destination of a migration {migration}")
        return move

    def admit(self, opening: ChannelOpen, libvirtd: str) -> tuple[str, Traffic]:
        """Where to connect a channel that a gateway brings. Raises NotFound, PermissionDenied or Conflict."""
        move = self._moves.get(opening.migration)
        if not isinstance(move, DestinationMove):
            raise NotFound(f"{self._host.name} expects no migration {opening.migration}")
        return move.admit(opening, libvirtd)

    async def close(self) -> None:
        """The agent stops."""
        tasks: list[asyncio.Task[Any]] = [*self._recovered.values(), *self._preparing.values()]
        if self._catching_up is not None:
            tasks.append(self._catching_up)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(move.close() for move in self._moves.values()))


class AgentService(agent_pb2_grpc.AgentServicer):
    """The calls of this site's gateways."""

    def __init__(self, host: HostContext, moves: Moves, site: str, name: str) -> None:
        self._host = host
        self._moves = moves
        self._site = site
        self._name = name

    def _complete(self, host: Host) -> Host:
        host.site, host.name, host.agent_version = self._site, self._name, version("landbridge")
        host.clock.GetCurrentTime()
        return host

    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:
        """Facts of this host."""
        return pb.GetHostResponse(host=self._complete(await call(self._host.hypervisor.host)))

    async def ListVms(self, request: pb.ListVmsRequest, context: Any) -> pb.ListVmsResponse:
        """Every VM here."""
        vms = await call(self._host.hypervisor.vms)
        for vm in vms:
            vm.site, vm.host = self._site, self._name
        return pb.ListVmsResponse(vms=vms)

    async def InspectVm(self, request: pb.InspectVmRequest, context: Any) -> pb.InspectVmResponse:
        """One VM and its definition."""
        vm = await call(self._host.hypervisor.vm, request.vm)
        vm.site, vm.host = self._site, self._name
        xml = await call(self._host.hypervisor.migratable_xml, vm.uuid, cold=request.cold)
        return pb.InspectVmResponse(vm=vm, domain_xml=xml)

    async def MeasureVm(self, request: pb.MeasureVmRequest, context: Any) -> pb.MeasureVmResponse:
        """How its memory behaves."""
        return pb.MeasureVmResponse(measurement=await call(self._host.hypervisor.measure, request.vm))

    async def CheckIncoming(self, request: pb.CheckIncomingRequest, context: Any) -> pb.CheckIncomingResponse:
        """Preflight facts."""
        await self._moves.departed(request.vm.uuid)
        vm, xml, mapping = request.vm, request.domain_xml, request.mapping
        check = await call(self._host.hypervisor.check_incoming, vm, xml, mapping)
        if self._host.firewall.mode == "enforce":
            check.refused.extend(await call(refusals, self._host.firewall, vm, xml, mapping, check))
        self._complete(check.host)
        return check

    async def Prepare(self, request: pb.PrepareRequest, context: Any) -> pb.PrepareResponse:
        """One end of a migration."""
        record = await self._moves.prepare(request)
        return pb.PrepareResponse(domain_xml=record.domain_xml, cold=record.cold)

    async def Start(self, request: pb.StartRequest, context: Any) -> pb.StartResponse:
        """Begin."""
        await (await self._moves.source(request.migration)).start(request)
        return pb.StartResponse()

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """Snapshots until the end."""
        move = await self._moves.get(request.migration)
        if move is None:
            yield pb.WatchResponse(migration=request.migration, stage=pb.Stage.STAGE_UNKNOWN)
            return
        async for snapshot in move.watch():
            yield snapshot

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Any) -> pb.GetDeliveryResponse:
        """What was delivered."""
        move = await self._moves.get(request.migration)
        return pb.GetDeliveryResponse(delivered=[] if move is None else await move.delivered())

    async def Activate(self, request: pb.ActivateRequest, context: Any) -> pb.ActivateResponse:
        """Let an arrived VM run, or shut it off if it came so."""
        return await (await self._moves.destination(request.migration)).activate(autostart=request.autostart)

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """Stop and remove, or note that the VM has left."""
        move = await self._moves.get(request.migration)
        if move is None:
            return await unrecorded.cancel(self._host.hypervisor, request)
        if request.has_left:
            return await (await self._moves.source(request.migration)).leave()
        return await move.cancel(discard_arrived=request.discard_arrived)

    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleResponse:
        """Remove what a completed migration left."""
        return await (await self._moves.source(request.migration)).settle()

    async def Prove(self, request: pb.ProveRequest, context: Any) -> pb.ProveResponse:
        """Hash the disks of a VM that has moved."""
        move = await self._moves.get(request.migration)
        if move is None:
            raise NotFound(f"{self._name} knows of no migration {request.migration}")
        return await move.prove(request)
