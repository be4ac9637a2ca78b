"""What operators have set for the tunnels from this site: durable in the store, and held by each of its gateways."""

from __future__ import annotations

from gateway.config import MOST_LINKS
from gateway.store import Store, TunnelLimits
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import UsageError


class Limits:
    """Every gateway looks once a round (`succession`), and the one that is asked, at once. Raises ConfigError if the store fails."""

    def __init__(self, store: Store, tunnels: Tunnels) -> None:
        self._store = store
        self._tunnels = tunnels

    async def look(self) -> None:
        """Hold what the store has."""
        self._tunnels.set_limits(await self._store.tunnel_limits())

    async def set(self, site: str, limits: TunnelLimits) -> None:
        """Set what is given for the tunnel to a site, until it is set again or reset. Raises NotFound or UsageError."""
        self._tunnels.to_site(site)
        if limits.links is not None and not 1 <= limits.links <= MOST_LINKS:
            raise UsageError(f"a tunnel has 1 to {MOST_LINKS} links, not {limits.links}")
        await self._store.limit_tunnel(site, limits)
        await self.look()

    async def reset(self, site: str) -> None:
        """Have the tunnel to a site as each gateway's configuration has it. Raises NotFound."""
        self._tunnels.to_site(site)
        await self._store.forget_tunnel(site)
        await self.look()
