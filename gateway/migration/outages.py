"""When the tunnels to other sites come, go and come back, for the audit log: looked at every second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import structlog

from gateway.audit.canonical import Value
from gateway.audit.entry import NOTHING, Facts
from gateway.audit.fields import stamp
from gateway.audit.journal import Journal
from gateway.rounds import Rounds
from landbridge.errors import NotRecorded

log = structlog.get_logger()

# Seconds between two looks; outages that are shorter than that may not be seen.
LOOK = 1.0


class Outages(Rounds):
    """Watches the tunnels of one gateway; what cannot be recorded at once is seen again at the next look."""

    def __init__(
        self,
        journal: Journal,
        site: str,
        sites: Callable[[], Iterable[str]],
        is_up: Callable[[str], bool],
        secured: Callable[[str], Facts] = lambda _: NOTHING,
    ) -> None:
        """`secured` says how the tunnel to a site is protected."""
        self._journal = journal
        self._site = site
        self._sites = sites
        self._is_up = is_up
        self._secured = secured
        # Since when which tunnel is down; None for one that is up. A tunnel that never was up is not in it.
        self._down: dict[str, datetime | None] = {}

    async def close(self) -> None:
        """Stop watching. The tunnels that are up are closed now, in good order."""
        await super().close()
        with contextlib.suppress(NotRecorded):  # then the next start says enough
            for site in [site for site, since in self._down.items() if since is None and self._is_up(site)]:
                await self._record("tunnel.closed", site, None)

    async def _go_round(self) -> None:
        while True:
            try:
                await self.look(datetime.now(UTC))
            except NotRecorded as error:
                log.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect
            await asyncio.sleep(LOOK)

    async def look(self, now: datetime) -> None:
        """Record what has changed. Raises NotRecorded."""
        sites = list(self._sites())
        for site in [each for each in self._down if each not in sites]:
            await self._record("tunnel.closed", site, None)
            del self._down[site]
        for site in sites:
            is_up = self._is_up(site)
            if site not in self._down:
                if is_up:
                    await self._record("tunnel.opened", site, None)
                    self._down[site] = None
                continue
            since = self._down[site]
            if is_up and since is not None:
                gone: dict[str, Value] = {
                    "since": stamp(since),
                    "duration_ms": max(0, round((now - since).total_seconds() * 1000)),
                }
                await self._record("outage.ended", site, gone)
                self._down[site] = None
            elif not is_up and since is None:
                await self._record("outage.began", site, {"since": stamp(now)}, outcome="failure")
                self._down[site] = now

    async def _record(self, event: str, site: str, outage: dict[str, Value] | None, outcome: str = "success") -> None:
        seen: dict[str, Value] = {"source": {"site": self._site}, "destination": {"site": site}}
        if outage is not None:
            seen["outage"] = {"what": f"the tunnel to site {site}", **outage}
        elif event == "tunnel.opened" and (secured := self._secured(site)):
            seen["tls"] = secured
        await self._journal.record(event, outcome=outcome, seen=seen)
