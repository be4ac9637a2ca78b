"""Retention: what is older than the configuration wants kept is removed, whole bundles at a time, and that is an entry itself.

Recorded first, then removed: a crash in between leaves files that are removed a day later. The hashes stay, and with them every
proof.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from gateway.audit.entry import Recorded
from gateway.audit.journal import Journal
from gateway.audit.storage import Storage
from gateway.audit.tree import TILE, TileName, unbundle
from gateway.rounds import Rounds
from landbridge.errors import LandbridgeError

log = structlog.get_logger()

# Seconds between two looks.
LOOK = 86_400.0


class Retention(Rounds):
    """Of one log. Owned by the event loop."""

    def __init__(self, journal: Journal, days: int) -> None:
        """0 days: all is kept for ever."""
        self._journal = journal
        self._days = days

    def start(self) -> None:
        """Begin to look, if anything is ever to be removed."""
        if self._days:
            super().start()

    async def _go_round(self) -> None:
        while True:
            try:
                await self.look(datetime.now(UTC))
            except LandbridgeError as error:
                log.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect
            await asyncio.sleep(LOOK)

    async def look(self, now: datetime) -> int:
        """Remove what is old enough, and say below which entry. Raises NotRecorded, or EvidenceFailed for a damaged log."""
        minimum = await self._journal.read(lambda storage: expired(storage, now - timedelta(days=self._days)))
        if minimum:
            pruned = {"minimum": minimum, "retention_days": self._days}
            await self._journal.record("log.pruned", seen={"pruned": pruned})
            removed = await self._journal.read(lambda storage: storage.prune(minimum))
            log.info("audit.pruned", minimum=minimum, files=removed)
        return minimum


def expired(storage: Storage, before: datetime) -> int:
    """Below which entry all are from before a moment and still there in part, by whole bundles; 0 if there are none."""
    minimum = 0
    for number in range(storage.size // TILE):
        name = TileName(None, number, TILE)
        if not storage.has(name):
            continue
        # Not that of the last entry: clocks are set back.
        newest = max(Recorded.decode(raw).time for raw in unbundle(storage.read(name)))
        if newest >= before:
            break
        minimum = (number + 1) * TILE
    return minimum
