"""What this gateway dials: the links of its tunnels, kept up, and a link to a host's agent when a channel needs one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

import structlog

from certs.links import Target, dial
from gateway.tunnel.tunnel import Tunnel
from landbridge.errors import LandbridgeError

log = structlog.get_logger()

# Seconds between two attempts to dial: doubled from the first to the second, with jitter of a half.
BACK_OFF = (0.2, 3.0)


class TunnelDialler:
    """Keeps a tunnel's links up: as many as wanted, all to one of the other site's gateways, the first that answers."""

    def __init__(self, tunnel: Tunnel, targets: Sequence[Target], links: int) -> None:
        self.tunnel = tunnel
        # How many there should be.
        self.wanted = links
        self._targets = list(targets)
        self._at = 0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def has_targets(self) -> bool:
        """Whether it is known where to dial."""
        return bool(self._targets)

    def keep_up(self) -> None:
        """Dial now, and again whenever a link has ended, until `close`."""
        self._keeper = asyncio.create_task(self._keep_up(), name=f"tunnel to site {self.tunnel.site}")

    def set_links(self, wanted: int) -> None:
        """Grow or shrink the tunnel."""
        self.wanted = wanted
        for link in self.tunnel.links[wanted:]:
            link.close()
        if self._keeper is not None:
            self._keeper.cancel()
            self.keep_up()

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Dial others from now on; links that are up stay."""
        self._targets, self._at = list(targets), 0
        if self._keeper is not None:
            self._keeper.cancel()
            self.keep_up()

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        pause, dialled_at = BACK_OFF[0], float("-inf")
        while True:
            changed = self.tunnel.changed
            if len(self.tunnel.links) >= self.wanted or not self._targets:
                await changed.wait()
                continue
            if loop.time() - dialled_at < BACK_OFF[1]:
                # Nobody answered, or whoever did has hung up at once: TLS tells one who is refused only afterwards.
                if not self.tunnel.links:
                    self._at = (self._at + 1) % len(self._targets)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                pause = min(pause * 2, BACK_OFF[1])
            else:
                pause = BACK_OFF[0]
            await self._dial(self.wanted - len(self.tunnel.links))
            dialled_at = loop.time()

    async def _dial(self, count: int) -> None:
        """Dial so many links at once; each is in service as soon as it is up."""
        target = self._targets[self._at]
        async with asyncio.TaskGroup() as dialling:
            dialled = [dialling.create_task(self._dial_one(target)) for _ in range(count)]
        failures = [reason for task in dialled if (reason := task.result())]
        if failures:
            log.warning("link.dial_failed", link=target.name, address=str(target.address), reason=failures[0])

    async def _dial_one(self, target: Target) -> str:
        """Dial a link; why it failed, if it did."""
        try:
            self.tunnel.add(await dial(target))
        except LandbridgeError as error:
            return error.message
        return ""

    async def close(self) -> None:
        """Stop dialling, and end the links."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self.tunnel.close()
