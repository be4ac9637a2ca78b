"""Refusals for the audit log: each kind at once, repetitions as a number, so that whoever is refused cannot fill the log.

A refusal is of a kind by its event, who was refused, and what for. The first of a kind is an entry at once; what comes in the WINDOW
after it is counted, and the count is one entry at its end.

Of strangers, who cause the event STRANGERS only, MOST_KINDS are told apart at a time, and all others counted together: that is at most
2 * (MOST_KINDS + 1) entries in a window. Of each other event, MOST_CALLERS are told apart, and of each of them MOST_OF_ONE kinds; what else
is refused to one of them is counted together under their name, so that nobody hides what others are denied, and all other callers' is
counted together: at most 2 * (MOST_CALLERS * (MOST_OF_ONE + 1) + 1) entries of an event.

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
from gateway.rounds import Rounds
from landbridge.errors import InternalError, NotRecorded

log = structlog.get_logger()

# Seconds in which repetitions are one entry.
WINDOW = 60.0
STRANGERS = "identity.refused"
MOST_KINDS = 16
MOST_CALLERS = 16
MOST_OF_ONE = 4
# What is counted together.
_REST = "all of this kind that is not told apart"


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


class Refusals(Rounds):
    """Of one gateway. Owned by the event loop."""

    def __init__(self, journal: Journal, clock: Callable[[], float] | None = None) -> None:
        """`clock` counts seconds; that of the event loop, unless given."""
        self._journal = journal
        self._clock = clock or asyncio.get_running_loop().time
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._writing: set[asyncio.Task[None]] = set()

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
        key, ends_at = self._key(event, who, what), self._clock() + WINDOW
        if known := self._kinds.get(key):
            known.count += 1
            if not key[2]:
                # Of a caller whose kinds are counted together, what is the same in all: a site brings requests of many people.
                known.actor = {name: value for name, value in known.actor.items() if actor.get(name) == value}
            return
        if key == (event, who, what):
            kind = _Kind(event, outcome, what, ends_at, reason, actor, migration, seen, claimed)
        else:
            kind = _Kind(event, outcome, _REST, ends_at, actor=actor if key[1] else NOTHING)
        self._kinds[key] = kind
        task = asyncio.create_task(self._write(kind))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _key(self, event: str, who: str, what: str) -> tuple[str, str, str]:
        """Under which kind something is counted: its own, all others of the caller, or all others."""
        if (event, who, what) in self._kinds:
            return event, who, what
        known = [key for key in self._kinds if key[0] == event and key != (event, "", "")]
        if event == STRANGERS:
            return (event, "", "") if len(known) >= MOST_KINDS else (event, who, what)
        callers = {key[1] for key in known}
        if who not in callers and len(callers) >= MOST_CALLERS:
            return event, "", ""
        own = sum(key[1] == who and key[2] != "" for key in known)
        return (event, who, "") if own >= MOST_OF_ONE else (event, who, what)

    def refused(self, refused: Refused) -> None:
        """What the guards of calls and links tell."""
        if refused.identity is None:
            event, who = STRANGERS, network_of(refused.address)
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

    async def _go_round(self) -> None:
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
        await super().close()
        if self._writing:
            await asyncio.wait(self._writing)
        for kind in self._kinds.values():
            if kind.count:
                await self._write(kind)
