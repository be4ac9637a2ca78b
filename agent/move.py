"""What the two ends of a migration have in common at a host: the record, who watches it, and what they are shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from agent.channels import Gateways
from agent.config import FirewallSettings
from agent.hypervisor.base import Hypervisor
from agent.journal import Journal, Record
from agent.traffic import KINDS, Traffic
from landbridge.errors import NotRecorded
from landbridge.v1.agent_pb2 import (
    CancelResponse,
    Delivered,
    PrepareRequest,
    ProveRequest,
    ProveResponse,
    Role,
    Stage,
    WatchResponse,
)
from landbridge.v1.types_pb2 import ChannelBytes, Progress

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")

# Seconds that channels get to end once the move has.
DELIVERY_PATIENCE = 2.0

ENDED = frozenset({Stage.STAGE_RELEASED, Stage.STAGE_ACTIVE, Stage.STAGE_FAILED})


@dataclass(frozen=True)
class HostContext:
    """What every migration at this host needs."""

    hypervisor: Hypervisor
    journal: Journal
    # Where channels to other sites go.
    gateways: Gateways
    # Where each migration has its directory of sockets.
    runtime: Path
    # User and group ids of QEMU.
    qemu_owner: tuple[int, int]
    # For messages: "host east-1".
    name: str
    # What VMs that come may use.
    firewall: FirewallSettings = field(default_factory=FirewallSettings)
    # Bytes per second that the proof of a migration's disks may read here; 0: no limit.
    proof_rate: int = 0


async def call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the hypervisor, which blocks, from a worker thread."""
    return await asyncio.to_thread(function, *args, **kwargs)


class Move:
    """One end of one migration. Owned by the event loop; `busy` serializes what changes it."""

    def __init__(self, host: HostContext, record: Record, traffic: Traffic) -> None:
        self.host = host
        self.record = record
        self.traffic = traffic
        self.progress = Progress()
        self.suspended_at: float | None = None
        self.busy = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def stage(self) -> Stage.ValueType:
        """How far it is."""
        return Stage.ValueType(self.record.stage)

    @property
    def directory(self) -> Path:
        """Where its sockets are."""
        return self.host.runtime / self.record.migration

    def advance(self, stage: Stage.ValueType, error: str = "") -> None:
        """Go to a stage, durably, and tell those who watch. Raises NotRecorded where nothing has begun yet.

        After that the hypervisor goes on whatever is written here. An agent that is killed before it could write it finds out by
        looking, as it does if it is killed just before it writes.
        """
        self.record.stage = stage
        self.record.error = error
        try:
            self.host.journal.save(self.record)
        except NotRecorded as failed:
            if stage == Stage.STAGE_PREPARED:
                self.host.journal.abandon(self.record)
                raise
            log.error("journal.failed", migration=self.record.migration, error=failed.message)  # noqa: TRY400 - no defect
        self.changed()

    def changed(self) -> None:
        """Tell those who watch."""
        self._changed.set()
        self._changed = asyncio.Event()

    def snapshot(self) -> WatchResponse:
        """What those who watch are shown."""
        response = WatchResponse(
            migration=self.record.migration,
            role=Role.ValueType(self.record.role),
            stage=self.stage,
            error=self.record.error,
            progress=self.progress,
        )
        for kind in KINDS:
            ours, theirs = self.traffic.read[kind], self.traffic.written[kind]
            if not self.record.is_source:
                ours, theirs = theirs, ours
            unhinted, why = self.traffic.unhinted(kind)
            response.channels.append(
                ChannelBytes(kind=kind, to_destination=ours, to_source=theirs, unhinted=unhinted, not_understood=why)
            )
        silent = self.traffic.silent(asyncio.get_running_loop().time())
        if silent is not None and self.stage not in ENDED:
            response.silent_ms = int(silent * 1000)
        response.bytes_repeated = self.traffic.repeated_bytes
        if self.suspended_at is not None:
            response.suspended_at.FromNanoseconds(int(self.suspended_at * 1e9))
        return response

    async def watch(self) -> AsyncIterator[WatchResponse]:
        """A snapshot at once and after each change, until the end of the migration at this host."""
        while True:
            changed, snapshot = self._changed, self.snapshot()
            yield snapshot
            # Not our stage: the move may have ended while the snapshot was taken away.
            if snapshot.stage in ENDED:
                return
            await changed.wait()

    async def delivered(self) -> list[Delivered]:
        """What its channels have carried; those that have not ended by then are left out."""
        ends = [asyncio.create_task(carrier.ended.wait()) for carrier in self.traffic.carriers]
        if ends:
            _, late = await asyncio.wait(ends, timeout=DELIVERY_PATIENCE)
            for each in late:
                each.cancel()
        return self.traffic.delivered(is_source=self.record.is_source)

    def agree(self, request: PrepareRequest) -> None:
        """Take over what the coordinator says of the channels, as long as none was opened: it may have been restarted."""
        raise NotImplementedError

    async def cancel(self, *, discard_arrived: bool) -> CancelResponse:
        """Stop, remove what was made here, and say who has the VM."""
        raise NotImplementedError

    async def prove(self, request: ProveRequest) -> ProveResponse:
        """Hash the VM's disks as they stood at the switch-over, once it has moved; begin, or say how far that is."""
        raise NotImplementedError

    async def recover(self) -> None:
        """Take up what a former run of this agent left; the same steps as after any other failure."""
        raise NotImplementedError

    async def close(self) -> None:
        """The agent stops: let go of sockets and tasks, and leave the rest to the next run."""


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it is over."""
    if task is not None and task is not asyncio.current_task():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
