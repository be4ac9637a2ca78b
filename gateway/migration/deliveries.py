"""What agents tell of a migration's channels and of the firewall, for the audit log: all of it is claimed, and by whom.

At the source's site, the coordinator asks for it as a migration ends (`record`). At the destination's, a task follows what its agent
tells from the beginning (`follow`): whoever coordinates may not be honest, and what the firewall refused is on record all the same.

Each end tells bytes and BLAKE3 of each direction of each channel; `landbridge audit verify` and the receipt hold them against each other.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.audit.canonical import Value
from gateway.audit.entry import Facts
from gateway.audit.fields import LIST_ITEMS
from gateway.audit.journal import Journal
from gateway.audit.refusals import Refusals
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import has_ended
from gateway.migration.recording import know_entries
from gateway.remote import FACTS
from gateway.store import Row
from landbridge.errors import LandbridgeError, NotRecorded
from landbridge.frame import DIGEST_SIZE
from landbridge.v1.agent_pb2 import Delivered, GetDeliveryRequest, RefusedCall, Stage, WatchRequest, WatchResponse

log = structlog.get_logger()

KINDS = frozenset({"rpc", "ram", "disk"})
# Seconds between two attempts to reach an agent, or to write.
RETRY = 1.0
# Attempts after which the agent of a migration that has ended is not asked any more.
MOST_ATTEMPTS = 60
# Seconds that whoever needs all of it waits for it.
PATIENCE = 5.0


class Deliveries:
    """Of one gateway. Owned by the event loop."""

    def __init__(self, journal: Journal, inventory: Inventory, refusals: Refusals) -> None:
        self._journal = journal
        self._inventory = inventory
        self._refusals = refusals
        self._following: dict[str, asyncio.Task[None]] = {}

    async def record(self, row: Row) -> None:
        """Record what the agent at this end says was delivered; an agent that does not answer has said nothing.

        Returns when that is durable, however long the log cannot be written.
        """
        migration = row.migration
        host = migration.source_host if row.coordinating else migration.destination_host
        try:
            agent = self._inventory.agent(host)
            asked = GetDeliveryRequest(migration=migration.id)
            delivered = list((await agent.ask(agent.stub.GetDelivery, asked, FACTS)).delivered)
        except LandbridgeError as error:
            log.warning("delivery.unknown", migration=migration.id, host=host, reason=error.message)
            return
        channels = [_channel(each) for each in delivered if each.kind in KINDS and len(each.blake3) == DIGEST_SIZE]
        for start in range(0, len(channels), LIST_ITEMS):
            await self._append("migration.delivered", row, {"channels": channels[start : start + LIST_ITEMS]})
        know_entries(row, self._journal)

    def follow(self, row: Row) -> None:
        """At the destination: record what its agent tells, until the migration is over there."""
        id_ = row.migration.id
        if id_ not in self._following:
            task = self._following[id_] = asyncio.create_task(self._follow(row), name=f"delivery of {id_}")
            task.add_done_callback(lambda _: self._following.pop(id_, None))

    async def followed(self, migration: str) -> None:
        """Wait a moment until all that can be known is on record."""
        if task := self._following.get(migration):
            await asyncio.wait([task], timeout=PATIENCE)

    async def close(self) -> None:
        """The gateway stops."""
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, row: Row) -> None:
        told = _Told()
        attempts = 0
        while attempts < MOST_ATTEMPTS or not has_ended(row):
            attempts += 1
            try:
                agent = self._inventory.agent(row.migration.destination_host)
                asked = WatchRequest(migration=row.migration.id)
                async for snapshot in agent.follow(agent.stub.Watch, asked):
                    await self._take(row, snapshot, told)
                await self.record(row)
            except LandbridgeError as error:
                log.info("delivery.waits", migration=row.migration.id, reason=error.message)
                await asyncio.sleep(RETRY)
            else:
                return

    async def _take(self, row: Row, snapshot: WatchResponse, told: _Told) -> None:
        for call in snapshot.refused[told.refused :]:
            told.refused += 1
            self.refused(row, call)
        if snapshot.stage in {Stage.STAGE_ARRIVED, Stage.STAGE_ACTIVE} and not told.finished:
            told.finished = True
            await self._append("migration.finished", row, {})

    def refused(self, row: Row, call: RefusedCall) -> None:
        """The destination's firewall has refused a call, or would have."""
        migration = row.migration
        self._refusals.tell(
            "call.refused",
            f"host {migration.source_host} of site {migration.source_site}",
            f"{call.call} {call.part}".strip() or "a call",
            reason=call.reason if call.enforced else f"only told, not refused: {call.reason}",
            migration=migration.id,
            claimed=_ends(row),
        )

    async def _append(self, event: str, row: Row, claimed: Facts) -> None:
        while True:
            try:
                await self._journal.record(event, migration=row.migration.id, claimed={**_ends(row), **claimed})
            except NotRecorded as error:
                log.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect
                await asyncio.sleep(RETRY)
            else:
                return


class _Told:
    """What of an agent's tale is on record."""

    refused = 0
    finished = False


def _ends(row: Row) -> dict[str, Value]:
    """Whose agent says so."""
    migration = row.migration
    if row.coordinating:
        return {"source": {"site": migration.source_site, "host": migration.source_host}}
    return {"destination": {"site": migration.destination_site, "host": migration.destination_host}}


def _channel(each: Delivered) -> Value:
    said = "sent" if each.sent else "received"
    return {
        "kind": each.kind,
        "label": f"{each.index} to the {'destination' if each.to_destination else 'source'}",
        f"{said}_bytes": each.bytes,
        f"{said}_blake3": each.blake3.hex(),
    }
