"""Refusals for the audit log: each kind at once, repetitions as a number, so that whoever is refused cannot fill the log.

A refusal is of a kind by its event, who was refused, and what for. The first of a kind is an entry at once; what comes in the WINDOW
after it is counted, and the count is one entry at its end. Of each event, MOST_KINDS are told apart at a time, and all others counted
together: that is at most 2 * (MOST_KINDS + 1) entries of an event in a window, and strangers cause one event only.

To refuse never waits for the log, and what is refused stays so while the log cannot be written: the count is kept for later.
Reads of the log go the same way (`log.read`): who looks at it is on record, however often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from certs.attempts import network_of
from certs.guard import Refused
from gateway.audit.entry import NOTHING, Facts
from gateway.audit.fields import certified, stamp
from gateway.audit.journal import Journal
from landbridge.errors import InternalError, NotRecorded

log = structlog.get_logger()

# Seconds in which repetitions are one entry.
WINDOW = 60.0
MOST_KINDS = 16


@dataclass
class _Kind:
    event: str
    outcome: str
    what: str
    ends_at: float
    reason: str = ""
    actor: Facts = field(default_factory=dict)
    migration: str = ""
    seen: Facts = field(default_factory=dict)
    claimed: Facts = field(default_factory=dict)
    # How many have not been recorded yet, and since when they are counted.
    count: int = 1
    since: datetime = field(default_factory=lambda: datetime.now(UTC))


class Refusals:
    """Of one gateway. Owned by the event loop."""

    def __init__(self, journal: Journal, clock: Callable[[], float] | None = None) -> None:
        """`clock` counts seconds; that of the event loop, unless given."""
        self._journal = journal
        self._clock = clock or asyncio.get_running_loop().time
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._task: asyncio.Task[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to write the counts."""
        self._task = asyncio.create_task(self._go_on(), name="audit-refusals")

    def tell(
        self,
        event: str,
        who: str,
        what: str,
        *,
        outcome: str = "denied",
        reason: str = "",
        actor: Facts = NOTHING,
        migration: str = "",
        seen: Facts = NOTHING,
        claimed: Facts = NOTHING,
    ) -> None:
        """Something was refused to `who`; `what` is the same for all that is of one kind. Never raises, never waits."""
        key, ends_at = (event, who, what), self._clock() + WINDOW
        kind = _Kind(event, outcome, what, ends_at, reason, actor, migration, seen, claimed)
        if key not in self._kinds and sum(each == event for each, _, _ in self._kinds) >= MOST_KINDS:
            key, kind = (event, "", ""), _Kind(event, outcome, "all of this kind that is not told apart", ends_at)
        if key in self._kinds:
            self._kinds[key].count += 1
            return
        self._kinds[key] = kind
        task = asyncio.create_task(self._write(kind))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def refused(self, refused: Refused) -> None:
        """What the guards of calls and links tell."""
        if refused.identity is None:
            event, who = "identity.refused", network_of(refused.address)
            actor: Facts = {"address": refused.address} if refused.address else NOTHING
        else:
            event, who, actor = "access.denied", str(refused.identity), certified(refused.identity, refused.address)
        self.tell(event, who, refused.what, reason=refused.reason, actor=actor)

    async def _write(self, kind: _Kind) -> None:
        """Record what was counted; it is counted on if it cannot be."""
        count, since = kind.count, kind.since
        kind.count, kind.since = 0, datetime.now(UTC)
        refused: Facts = {"what": kind.what, "count": count, "since": stamp(since)}
        try:
            await self._journal.record(
                kind.event,
                outcome=kind.outcome,
                reason=kind.reason,
                actor=kind.actor,
                migration=kind.migration,
                seen={**kind.seen, "refused" if kind.outcome == "denied" else "repeated": refused},
                claimed=kind.claimed,
            )
        except NotRecorded as error:
            log.error("audit.failed", error=error.message, kind=kind.event)  # noqa: TRY400 - no defect
            kind.count, kind.since = kind.count + count, since
        except InternalError:  # a defect of ours must not end the counting of all others
            log.exception("audit.defect", kind=kind.event)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(WINDOW / 10)
            await self.look()

    async def look(self) -> None:
        """Write what was counted in windows that are over, and begin anew with what comes then."""
        now = self._clock()
        for key, kind in list(self._kinds.items()):
            if now < kind.ends_at:
                continue
            if kind.count:
                await self._write(kind)
                kind.ends_at = now + WINDOW
            else:
                del self._kinds[key]

    async def close(self) -> None:
        """The gateway stops: write what was counted so far, if that can be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._writing:
            await asyncio.wait(self._writing)
        for kind in self._kinds.values():
            if kind.count:
                await self._write(kind)
