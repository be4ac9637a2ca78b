"""The steps of a migration after trouble, or a wish to cancel: who has the VM is asked, and what is left at the destination is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from gateway.config import PatienceSettings
from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.leaving import Leaving
from gateway.migration.ledger import Ledger
from gateway.migration.states import Input
from gateway.migration.steps import Outcome, pause
from gateway.remote import WORK
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError
from landbridge.v1.agent_pb2 import CancelRequest, CancelResponse, Possession
from landbridge.v1.peer_pb2 import PeerCancelRequest

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Resolving:
    """Steps of RESOLVING and CLEANING."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    patience: PatienceSettings
    deliveries: Deliveries
    leaving: Leaving

    async def resolving(self, row: Row) -> Outcome:
        """Who has the VM? Asked until it is known."""
        migration = row.migration
        source = await self._ask_source(
            row,
            CancelRequest(migration=migration.id, vm_uuid=migration.vm_uuid),
            "until it answers, it is not known whether the VM runs there",
        )
        if source.possession != Possession.POSSESSION_ABSENT:
            return Outcome(Input.SOURCE_HAS_IT, row.cause)
        there = await self._ask_destination(row)
        if there.possession in {Possession.POSSESSION_ARRIVED, Possession.POSSESSION_HERE}:
            if await self._leaves(row):
                return Outcome(Input.DESTINATION_HAS_IT, row.cause)
            started = (
                f"somebody has started {migration.vm} on host {migration.source_host} meanwhile, and it stays there"
            )
            return Outcome(Input.SOURCE_HAS_IT, f"{row.cause}; {started}")
        if migration.cold:
            # Whether a VM that is shut off at the source is so as before: it may be told that nothing of it has arrived.
            request = CancelRequest(migration=migration.id, vm_uuid=migration.vm_uuid, discard_arrived=True)
            stayed = await self._ask_source(row, request, "the VM is shut off there, and nowhere else")
            if stayed.possession != Possession.POSSESSION_ABSENT:
                return Outcome(Input.SOURCE_HAS_IT, row.cause)
        return Outcome(Input.NOBODY_HAS_IT, f"{row.cause}; the VM is off at the source: start it there if it is wanted")

    async def _ask_source(self, row: Row, request: CancelRequest, meanwhile: str) -> CancelResponse:
        agent = self.inventory.agent(row.migration.source_host)
        return await self._until_answered(row, lambda: agent.ask(agent.stub.Cancel, request, WORK), meanwhile)

    async def _ask_destination(self, row: Row) -> CancelResponse:
        remote = self.inventory.site_named(row.migration.destination_site).remote
        request = PeerCancelRequest(cancel=CancelRequest(migration=row.migration.id))
        meanwhile = "the VM is off at the source, and waits paused if it has arrived there"
        return (
            await self._until_answered(row, lambda: remote.ask(remote.stub.Cancel, request, WORK), meanwhile)
        ).cancel

    async def _leaves(self, row: Row) -> bool:
        """Whether the source has noted for good that the VM has left: somebody may have started it since it was asked."""
        waits = (
            f"the VM waits at site {row.migration.destination_site}, paused, until that host has noted that it has left"
        )
        return await self._until_answered(row, lambda: self.leaving.tell(row), waits)

    async def _until_answered(self, row: Row, ask: Callable[[], Awaitable[Answer]], meanwhile: str) -> Answer:
        while True:
            try:
                return await ask()
            except LandbridgeError as error:
                self.ledger.note(row, f"{error.message}; {meanwhile}")
            await pause()

    async def cleaning(self, row: Row) -> Outcome:
        """Have the destination remove what it made; its agent does so by itself if nobody can tell it to."""
        migration = row.migration
        self.tunnels.pump.close_channels(migration.id, row.cause)
        request = PeerCancelRequest(cancel=CancelRequest(migration=migration.id, discard_arrived=True))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience.cleanup
        reason = row.migration.reason or row.cause
        row.peer_pending = True
        while True:
            try:
                # A site that was left meanwhile is one that does not answer.
                remote = self.inventory.site_named(migration.destination_site).remote
                there = (await remote.ask(remote.stub.Cancel, request, WORK)).cancel
            except LandbridgeError as error:
                if loop.time() > deadline:
                    reason = f"{reason}; {error.message}: site {migration.destination_site} removes what is left there by itself"
                    break
                self.ledger.note(row, f"{error.message}; waiting to clean up there")
            else:
                if there.possession == Possession.POSSESSION_HERE:
                    reason = f"{reason}; {await self._doubled(row)}"
                    break
                if there.cause and there.cause not in reason and not row.cancel_requested:
                    reason = f"{there.cause} ({reason.rstrip('.')})"
                break
            await pause()
        await self.deliveries.record(row)
        return Outcome(Input.CLEANED_AFTER_CANCEL if row.cancel_requested else Input.CLEANED, reason)

    async def _doubled(self, row: Row) -> str:
        """The source has the VM, and it runs at the destination, which nobody has told it to: what is to be done, in one sentence."""
        migration = row.migration
        sentence = (
            f"somebody has let {migration.vm} run on host {migration.destination_host} of site {migration.destination_site}, and host "
            f"{migration.source_host} has it too: nothing is touched; shut off the one that is not wanted, and remove it by hand"
        )
        await self._until_answered(row, lambda: self.leaving.alarm(row, sentence), sentence)
        return sentence
