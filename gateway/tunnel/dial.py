"""Links that this gateway dials: to agents of its site when a channel needs one, and to peer gateways, kept up."""

from __future__ import annotations

import asyncio
import contextlib
import random

import structlog

from certs.links import Target, dial
from gateway.tunnel.pump import Pump
from landbridge.errors import LandbridgeError
from landbridge.link import Link

log = structlog.get_logger()

# Seconds between two attempts to dial a peer: doubled from the first to the second, with jitter of a half.
BACK_OFF = (0.5, 15.0)


class Dialler:
    """The link to one target: one at a time, dialled anew when it has ended."""

    def __init__(self, pump: Pump, target: Target, *, tunnel: bool) -> None:
        self._pump = pump
        self._target = target
        self._tunnel = tunnel
        self._link: Link | None = None
        self._dialling = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def up(self) -> Link | None:
        """The link, if there is a live one."""
        return self._link if self._link is not None and self._link.closed_because is None else None

    async def link(self) -> Link:
        """The live link, dialled now if there is none. Raises Unreachable."""
        async with self._dialling:
            if (link := self.up) is None:
                link = self._link = await dial(self._target)
                self._pump.attach(link, tunnel=self._tunnel)
                log.info("link.up", link=self._target.name, address=str(self._target.address))
            return link

    def keep_up(self) -> None:
        """Dial now, and again whenever the link has ended, until `close`."""
        self._keeper = asyncio.create_task(self._keep_up(), name=f"link to {self._target.name}")

    async def _keep_up(self) -> None:
        pause = BACK_OFF[0]
        while True:
            try:
                link = await self.link()
                pause = BACK_OFF[0]
                await link.closed.wait()
            except LandbridgeError as error:
                log.warning("link.dial_failed", link=self._target.name, reason=error.message)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, BACK_OFF[1])

    async def close(self) -> None:
        """Stop dialling; the pump ends the link."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
