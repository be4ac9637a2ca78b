"""What a destination has refused of a migration, or would have: each is a security event, and those who watch are shown it."""

from __future__ import annotations

import asyncio

import structlog

from agent.stream.firewall import Refusal
from agent.traffic import Traffic
from landbridge.v1.agent_pb2 import RefusedCall

log = structlog.get_logger()

# Seconds that libvirt at the source gets to leave in good order after one of its calls was refused.
REFUSED_PATIENCE = 5.0
# Refused calls that are shown, of one migration.
MOST_SHOWN = 16


def tell(refusal: Refusal, *, migration: str, vm: str, source: str) -> None:
    """Log a security event; `source` is the site and the host of whoever sent it."""
    log.warning(
        "firewall.refused" if refusal.enforced else "firewall.would_refuse",
        security=True,
        migration=migration,
        vm=vm,
        source=source,
        call=refusal.call,
        part=refusal.part,
        reason=refusal.sentence,
    )


class Refusals:
    """The calls of one migration. Whoever sent one is told, may leave in good order, and is cut off if it does not."""

    def __init__(self, traffic: Traffic) -> None:
        self.shown: list[RefusedCall] = []
        # What was refused first.
        self.cause = ""
        self._traffic = traffic
        self._leaving: asyncio.TimerHandle | None = None

    def add(self, refusal: Refusal) -> bool:
        """Note one; returns whether it is shown."""
        if refusal.enforced and not self.cause:
            self.cause = refusal.sentence
            self._leaving = asyncio.get_running_loop().call_later(REFUSED_PATIENCE, self._cut_off)
        if len(self.shown) >= MOST_SHOWN:
            return False
        self.shown.append(
            RefusedCall(call=refusal.call, part=refusal.part, reason=refusal.sentence, enforced=refusal.enforced)
        )
        return True

    def _cut_off(self) -> None:
        for carrier in self._traffic.carriers:
            if not carrier.ended.is_set():
                carrier.lost(self.cause)

    def end(self) -> None:
        """The move is over, and nobody is to be cut off."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
