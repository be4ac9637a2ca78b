"""Whom this gateway reaches: the hosts of its site and the other sites, which come and go while it runs."""

from __future__ import annotations

import asyncio

from certs.living import LivingIdentity
from gateway.config import HostSettings, SiteSettings
from gateway.migration.inventory import Inventory, RemoteSite
from gateway.remote import AgentRemote, PeerRemote, Remote
from gateway.tunnel.tunnels import Tunnels


class Neighbours:
    """Owned by the event loop. Calls that are under way end by themselves: connections are closed when the gateway stops."""

    def __init__(self, identity: LivingIdentity, inventory: Inventory, tunnels: Tunnels) -> None:
        self._identity = identity
        self._inventory = inventory
        self._tunnels = tunnels
        self._remotes: list[Remote] = []

    def know_host(self, host: HostSettings) -> None:
        """A host has come, or is reached elsewhere than before."""
        remote = AgentRemote(host.name, host.control, self._identity)
        self._remotes.append(remote)
        self._inventory.add_host(host.name, remote)
        self._tunnels.know_host(host)

    def forget_host(self, name: str) -> None:
        """A host has gone."""
        self._inventory.remove_host(name)
        self._tunnels.forget_host(name)

    def join(self, site: SiteSettings) -> None:
        """A site has come, or is reached elsewhere than before."""
        remote = PeerRemote(site.name, site.peers, self._identity)
        self._remotes.append(remote)
        self._inventory.add_site(site.name, RemoteSite(remote, site))
        self._tunnels.join(site)

    async def leave(self, name: str) -> None:
        """A site has gone: its links are closed."""
        self._inventory.remove_site(name)
        await self._tunnels.leave(name)

    def has_tunnel(self, site: str) -> bool:
        """Whether the tunnel to a site is up, or could not be, since nobody has told where it would lead."""
        return self._tunnels.is_up_or_leads_nowhere(site)

    async def close(self) -> None:
        """The gateway stops."""
        await asyncio.gather(*(remote.close() for remote in self._remotes))
