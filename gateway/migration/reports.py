"""Tells the other site how migrations stand, so that both tell the same story; until it has heard how each has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.states import State
from gateway.remote import WORK
from gateway.store import Row
from landbridge.errors import LandbridgeError
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import PeerCancelRequest, PeerReportRequest

# Seconds between two rounds of telling other sites how migrations ended that they have not heard of.
INTERVAL = 10.0


class Reports:
    """Reports to other sites, of migrations that this gateway coordinates."""

    def __init__(self, ledger: Ledger, inventory: Inventory) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Go on telling those who could not be reached."""
        self._spawn(self._tell_peers())

    def send(self, row: Row) -> None:
        """Report how a migration stands now, in the background."""
        self._spawn(self._tell(row))

    async def close(self) -> None:
        """Stop telling; what was not heard is told by the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, row: Row) -> None:
        """Tell the other site how a migration stands; if that fails, it is told later how it ended."""
        ended = has_ended(row)
        with contextlib.suppress(LandbridgeError):
            remote = self._inventory.site_named(row.migration.destination_site).remote
            if ended and state_of(row) in {State.FAILED, State.CANCELLED} and row.peer_pending:
                request = agent_pb2.CancelRequest(migration=row.migration.id, discard_arrived=True)
                await remote.ask(remote.stub.Cancel, PeerCancelRequest(cancel=request), WORK)
            await remote.ask(remote.stub.Report, PeerReportRequest(migration=row.migration))
            if ended and row.peer_pending:
                row.peer_pending = False
                await self._ledger.save(row)

    async def _tell_peers(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            for row in self._ledger.rows():
                if self._ledger.is_own(row) and row.peer_pending and has_ended(row):
                    await self._tell(row)
