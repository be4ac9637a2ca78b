"""The steps of a migration after trouble, or a wish to cancel: who has the VM is asked, and what is left at the destination is removed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.config import PatienceSettings
from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.states import Input
from gateway.migration.steps import Outcome, pause
from gateway.remote import WORK
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError
from landbridge.v1 import agent_pb2
from landbridge.v1.agent_pb2 import Possession
from landbridge.v1.peer_pb2 import PeerCancelRequest


@dataclass(frozen=True)
class Resolving:
    """Steps of RESOLVING and CLEANING."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    patience: PatienceSettings
    deliveries: Deliveries

    async def resolving(self, row: Row) -> Outcome:
        """Who has the VM? Asked until it is known."""
        migration = row.migration
        agent = self.inventory.agent(migration.source_host)
        request = agent_pb2.CancelRequest(migration=migration.id)
        while True:
            try:
                source = await agent.ask(agent.stub.Cancel, request, WORK)
                break
            except LandbridgeError as error:
                self.ledger.note(row, f"{error.message}; until it answers, it is not known whether the VM runs there")
            await pause()
        if source.possession != Possession.POSSESSION_ABSENT:
            return Outcome(Input.SOURCE_HAS_IT, row.cause)
        remote = self.inventory.site_named(migration.destination_site).remote
        while True:
            try:
                there = (await remote.ask(remote.stub.Cancel, PeerCancelRequest(cancel=request), WORK)).cancel
                break
            except LandbridgeError as error:
                self.ledger.note(
                    row, f"{error.message}; the VM is off at the source, and waits paused if it has arrived there"
                )
            await pause()
        if there.possession in {Possession.POSSESSION_ARRIVED, Possession.POSSESSION_HERE}:
            return Outcome(Input.DESTINATION_HAS_IT, row.cause)
        if migration.cold and await self._stayed(row):
            return Outcome(Input.SOURCE_HAS_IT, row.cause)
        return Outcome(Input.NOBODY_HAS_IT, f"{row.cause}; the VM is off at the source: start it there if it is wanted")

    async def _stayed(self, row: Row) -> bool:
        """Whether a VM that is shut off at the source is so as before: it may be told that nothing of it has arrived."""
        agent = self.inventory.agent(row.migration.source_host)
        request = agent_pb2.CancelRequest(migration=row.migration.id, discard_arrived=True)
        while True:
            try:
                source = await agent.ask(agent.stub.Cancel, request, WORK)
            except LandbridgeError as error:
                self.ledger.note(row, f"{error.message}; the VM is shut off there, and nowhere else")
            else:
                return source.possession != Possession.POSSESSION_ABSENT
            await pause()

    async def cleaning(self, row: Row) -> Outcome:
        """Have the destination remove what it made; its agent does so by itself if nobody can tell it to."""
        migration = row.migration
        remote = self.inventory.site_named(migration.destination_site).remote
        self.tunnels.pump.close_channels(migration.id, row.cause)
        request = PeerCancelRequest(cancel=agent_pb2.CancelRequest(migration=migration.id, discard_arrived=True))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience.cleanup
        reason = row.migration.reason or row.cause
        row.peer_pending = True
        while True:
            try:
                there = (await remote.ask(remote.stub.Cancel, request, WORK)).cancel
            except LandbridgeError as error:
                if loop.time() > deadline:
                    reason = f"{reason}; {error.message}: site {migration.destination_site} removes what is left there by itself"
                    break
                self.ledger.note(row, f"{error.message}; waiting to clean up there")
            else:
                if there.cause and there.cause not in reason and not row.cancel_requested:
                    reason = f"{there.cause} ({reason.rstrip('.')})"
                break
            await pause()
        await self.deliveries.record(row)
        return Outcome(Input.CLEANED_AFTER_CANCEL if row.cancel_requested else Input.CLEANED, reason)
