"""Tells the other site how migrations stand, so that both tell the same story; until it has heard how each has ended.

What the source's agent says was delivered is recorded meanwhile: libvirt there ends its last channel only when it has put the VM's
remains away, a second or more after the VM runs at the destination, and nobody waits for that. `peer_pending` stands for both: it is
taken back once the other site has heard of the end and the delivery is on record. There is no receipt before that, and after a crash
both are done again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.states import State
from gateway.remote import WORK
from gateway.store import Row
from landbridge.errors import LandbridgeError, NotFound, PermissionDenied
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import PeerCancelRequest, PeerReportRequest
from landbridge.v1.types_pb2 import Migration

# Seconds between two rounds of telling other sites how migrations ended that they have not heard of.
INTERVAL = 10.0
# Seconds for which the news that the source has released the VM waits: until the VM runs, all else that the other site's gateway does is
# in its way.
ACTIVATION = 0.5
# States from which the VM has left for good: its channels carry nothing more.
_LEFT = frozenset({State.VERIFYING, State.COMPLETED})


class Reports:
    """Reports to other sites, of migrations that this gateway coordinates."""

    def __init__(self, ledger: Ledger, inventory: Inventory, deliveries: Deliveries) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._deliveries = deliveries
        self._tasks: set[asyncio.Task[None]] = set()
        # By migration: what records its delivery, or has done so; until the other site has heard of the end.
        self._recording: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Go on telling those who could not be reached."""
        self._spawn(self._tell_peers())

    def send(self, row: Row) -> None:
        """Report how a migration stands now, in the background."""
        match state_of(row):
            case State.PREPARING:
                pass  # the other site hears of it by being asked to prepare
            case State.ACTIVATING as told:
                self._spawn(self._tell_later(row, told))
            case _:
                self._spawn(self._tell(row))

    async def of(self, migration: str, site: str) -> Migration:
        """What the site that a migration goes to would be told now. Raises NotFound, or PermissionDenied for another site."""
        row = await self._ledger.latest(migration)
        if row is None:
            raise NotFound(f"site {self._inventory.site} knows of no migration {migration}")
        if not row.coordinating or row.migration.destination_site != site:
            raise PermissionDenied(f"migration {migration} does not go from here to site {site}")
        return row.migration

    async def close(self) -> None:
        """Stop telling; what was not heard is told by the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell_later(self, row: Row, told: State) -> None:
        """Report it, unless it is no news by then."""
        await asyncio.sleep(ACTIVATION)
        if state_of(row) is told:
            await self._tell(row)

    async def _tell(self, row: Row) -> None:
        """Tell the other site how a migration stands; if that fails, it is told later how it ended."""
        ended, told = has_ended(row), state_of(row)
        self._begin_recording(row)
        with contextlib.suppress(LandbridgeError):
            remote = self._inventory.site_named(row.migration.destination_site).remote
            if ended and state_of(row) in {State.FAILED, State.CANCELLED} and row.peer_pending:
                request = agent_pb2.CancelRequest(migration=row.migration.id, discard_arrived=True)
                await remote.ask(remote.stub.Cancel, PeerCancelRequest(cancel=request), WORK)
            await remote.ask(remote.stub.Report, PeerReportRequest(migration=row.migration))
            if ended and (recording := self._recording.get(row.migration.id)):
                await asyncio.wait([recording])
            # What it became meanwhile is told by another call.
            if ended and row.peer_pending and state_of(row) is told:
                row.peer_pending = False
                await self._ledger.save(row)
                self._recording.pop(row.migration.id, None)

    def _begin_recording(self, row: Row) -> None:
        """Record what was delivered of a migration whose VM has left, once in each run of this gateway that may be the first."""
        id_ = row.migration.id
        if state_of(row) in _LEFT and row.peer_pending and id_ not in self._recording:
            self._recording[id_] = self._spawn(self._deliveries.record(row))

    async def _tell_peers(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            for row in self._ledger.rows():
                if self._ledger.is_own(row) and row.peer_pending and has_ended(row):
                    await self._tell(row)
