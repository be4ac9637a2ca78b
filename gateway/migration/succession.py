"""Which gateway of a site coordinates what: each shows the others that it lives, and takes over from those that do not.

    beat          a counter of this gateway in the store grows
    look          at the counters of the others: one that stands still for EXPIRED by this gateway's own clock is gone
    refresh       what others have written; what was taken from this gateway is noticed here
    limits        what operators have set at any of them is held here too
    take over     the rows of those that are gone, each by compare-and-set in the store
    runs          starts what has come, and stops what has gone

Nobody's clock is compared with another's. To be taken for gone while one lives does no harm: the store refuses what it then saves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.limits import Limits
from gateway.migration.runs import Runs
from gateway.rounds import Rounds
from gateway.store import Row, Store
from landbridge.errors import LandbridgeError

log = structlog.get_logger()

# Seconds between two rounds: how late one gateway knows what another has written.
ROUND = 1.0
# Seconds between two signs of life, and how long without one a gateway is taken for gone. Four may be missed: a write waits at most
# 5 s for a busy SQLite or for a PostgreSQL that does not answer. The agents keep what is under way for longer than that.
BEAT = 2.0
EXPIRED = 10.0


class Pulse:
    """Which gateways have died, as the one sees it that looks regularly. Pure: `now` is any clock in seconds that only grows."""

    def __init__(self, expired: float) -> None:
        self._expired = expired
        self._looked_at: float | None = None
        # The last beat of each, and since when it has been that.
        self._since: dict[str, tuple[int, float]] = {}

    def look(self, beats: Mapping[str, int], now: float) -> None:
        """Take a look at the last beats of all gateways."""
        # One that was stopped itself has not seen the others stand still: it begins anew.
        anew = self._looked_at is None or now - self._looked_at > self._expired / 2
        before = {} if anew else self._since
        self._since = {
            name: before[name] if name in before and before[name][0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        self._looked_at = now

    def is_gone(self, name: str) -> bool:
        """Whether it has left, was never there, or has not beaten for too long."""
        if name not in self._since:
            return True
        _, since = self._since[name]
        return self._looked_at is not None and self._looked_at - since >= self._expired

    def beat(self, name: str) -> int:
        """The last beat that was seen of it; 0 for none."""
        return self._since.get(name, (0, 0.0))[0]


class Succession(Rounds):
    """The rounds of one gateway."""

    def __init__(self, store: Store, ledger: Ledger, runs: Runs, limits: Limits) -> None:
        self._store = store
        self._ledger = ledger
        self._runs = runs
        self._limits = limits
        self._pulse = Pulse(EXPIRED)
        self._beat_at = float("-inf")

    async def _go_round(self) -> None:
        failing = False
        while True:
            try:
                await self.round(asyncio.get_running_loop().time())
            except LandbridgeError as error:
                if not failing:
                    log.error("store.failed", error=error.message)  # noqa: TRY400 - no defect
                failing = True
            except Exception:  # a defect must not leave this gateway's migrations to others, nor theirs to nobody
                log.exception("succession.defect")
            else:
                failing = False
            await asyncio.sleep(ROUND)

    async def round(self, now: float) -> None:
        """One round. Raises ConfigError if the store fails."""
        if now - self._beat_at >= BEAT:
            await self._store.beat()
            self._beat_at = now
        beats = await self._store.beats()
        self._pulse.look(beats, now)
        await self._ledger.refresh()
        await self._limits.look()
        if len(beats) > 1:
            await self._ledger.publish()
        for row in filter(self._is_orphan, self._ledger.rows()):
            await self._ledger.take_over(row, self._pulse.beat(row.coordinator))
        self._runs.look()

    def _is_orphan(self, row: Row) -> bool:
        """Whether something is still to be done for it, and the one who should is gone."""
        to_do = row.coordinating and (row.peer_pending or not has_ended(row))
        return to_do and row.coordinator != self._store.gateway and self._pulse.is_gone(row.coordinator)
