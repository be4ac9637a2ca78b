"""Which agents are here, for the audit log; and whether the clock of this machine jumps.

An agent is here while it follows what its gateway tells it (landbridge.v1.Renewal.Trust). One that goes and comes back within GRACE,
as it does for a new certificate, was here all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

from certs.identity import Identity
from gateway.audit.canonical import Value
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.rounds import Rounds
from landbridge.errors import NotRecorded

log = structlog.get_logger()

# Seconds: between two looks, that an agent may be away, and by which a clock may run ahead or behind between two looks.
LOOK = 1.0
GRACE = 10.0
STEP = 0.5


class Presence(Rounds):
    """Of the agents at one gateway. Owned by the event loop."""

    def __init__(
        self, journal: Journal, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        """`wall` and `steady` are in seconds."""
        self._journal = journal
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        # How often each is here, and of those that are away, since when.
        self._here: dict[Identity, int] = {}
        self._away: dict[Identity, float] = {}
        self._recorded: set[Identity] = set()

    @contextlib.contextmanager
    def of(self, agent: Identity) -> Iterator[None]:
        """An agent is here for as long as the context is open."""
        self._here[agent] = self._here.get(agent, 0) + 1
        self._away.pop(agent, None)
        try:
            yield
        finally:
            self._here[agent] -= 1
            if not self._here[agent]:
                del self._here[agent]
                self._away[agent] = self._steady()

    async def close(self) -> None:
        """Look no more. Agents that go because this gateway stops have not left."""
        await super().close()

    async def _go_round(self) -> None:
        while True:
            try:
                await self.look()
            except NotRecorded as error:
                log.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Record what has changed. Raises NotRecorded, and sees it again with the next look then."""
        await self._look_at_clock()
        for agent in [each for each in self._here if each not in self._recorded]:
            await self._journal.record("agent.joined", actor=certified(agent))
            self._recorded.add(agent)
        now = self._steady()
        for agent in [each for each, since in self._away.items() if now - since >= GRACE]:
            if agent in self._recorded:
                await self._journal.record("agent.left", outcome="failure", actor=certified(agent))
                self._recorded.discard(agent)
            self._away.pop(agent, None)

    async def _look_at_clock(self) -> None:
        offset = self._wall() - self._steady()
        if abs(step := offset - self._offset) >= STEP:
            clock: Value = {"source": "this machine", "offset_us": round(step * 1_000_000)}
            await self._journal.record("clock.stepped", outcome="unknown", seen={"clock": clock})
        # What a clock is slowed or hastened by, a little at a time, is no jump.
        self._offset = offset
