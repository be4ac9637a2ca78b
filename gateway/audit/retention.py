"""Retention: what is older than the configuration wants kept is removed, whole bundles at a time, and that is an entry itself.

Recorded first, then removed: a crash in between leaves files that are removed a day later. The hashes stay, and with them every
proof.

To look through a million entries takes half a minute or more, and whoever records one meanwhile is not to wait for that: it is done in
pieces of one bundle each, and between two of them the journal's thread writes what has come.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

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
# Bundles that are removed, and that are found to be removed already, in one piece: either takes a few milliseconds, as reading one does.
REMOVED = 64
SKIPPED = 64


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
        first, minimum = await self._expired(now - timedelta(days=self._days))
        if minimum:
            pruned = {"minimum": minimum, "retention_days": self._days}
            await self._journal.record("log.pruned", seen={"pruned": pruned})
            removed = 0
            for start in range(first, minimum, REMOVED * TILE):
                end = min(minimum, start + REMOVED * TILE)
                removed += await self._journal.read(partial(Storage.prune, minimum=end, start=start))
            log.info("audit.pruned", minimum=minimum, files=removed)
        return minimum

    async def _expired(self, before: datetime) -> tuple[int, int]:
        """From which entry on, and below which, all are old and still there in part, by whole bundles; 0 and 0 if there are none."""
        found: list[int] = []
        number = 0
        while number < self._journal.signed.checkpoint.size // TILE:
            number, is_old = await self._journal.read(partial(next_bundle, number=number, before=before))
            if is_old is False:
                break
            if is_old:
                found.append(number)
        return ((found[0] - 1) * TILE, found[-1] * TILE) if found else (0, 0)


def next_bundle(storage: Storage, number: int, before: datetime) -> tuple[int, bool | None]:
    """Look from a bundle on for one that is still there: the number of the next one, and whether all in this one is from before a moment.

    None instead, after SKIPPED of them, if none was there.
    """
    end = min(number + SKIPPED, storage.size // TILE)
    for each in range(number, end):
        name = TileName(None, each, TILE)
        if storage.has(name):
            # Not that of the last entry: clocks are set back.
            newest = max(Recorded.decode(raw).time for raw in unbundle(storage.read(name)))
            return each + 1, newest < before
    return end, None
