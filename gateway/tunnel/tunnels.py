"""All tunnels of this gateway: those that it dials, and those that other sites' gateways dial.

Channels that begin at this site go through the tunnels that it dials; what comes back goes the way it came.
"""

from __future__ import annotations

from certs import tls
from certs.identity import Identity, Role
from certs.links import Target
from certs.store import StoredIdentity
from gateway.config import MOST_LINKS, GatewayConfig
from gateway.tunnel.dial import TunnelDialler
from gateway.tunnel.pump import Pump
from gateway.tunnel.routes import SiteRoutes
from gateway.tunnel.tunnel import Tunnel
from landbridge.errors import NotFound, UsageError
from landbridge.link import Link

_MBIT = 125_000


class Tunnels:
    """Owned by the event loop."""

    def __init__(self, settings: GatewayConfig, identity: StoredIdentity) -> None:
        domain = identity.identity.trust_domain
        self._site = settings.site
        # By the other site; and by the gateway that dialled, for those that were accepted.
        self._outgoing: dict[str, Tunnel] = {}
        self._incoming: dict[tuple[str, str], Tunnel] = {}
        hosts = {}
        for host in settings.hosts:
            name = tls.server_name(Role.HOST, settings.site, domain, host.name)
            context = tls.client_context(identity, settings.site)
            hosts[host.name] = Target(f"host {host.name}", host.stream, context, name)
        self.pump = Pump(SiteRoutes(settings.site, self._outgoing, hosts))
        self._diallers: dict[str, TunnelDialler] = {}
        for site in settings.sites:
            name = tls.server_name(Role.GATEWAY, site.name, domain)
            context = tls.client_context(identity, site.name)
            who = f"the gateway of site {site.name}"
            targets = [Target(who, address, context, name, is_tunnel=True) for address in site.tunnel]
            tunnel = self._outgoing[site.name] = Tunnel(site.name, who, self.pump)
            tunnel.set_limit(int(settings.tunnel.limit * _MBIT))
            self._diallers[site.name] = TunnelDialler(tunnel, targets, settings.tunnel.links)

    def keep_up(self) -> None:
        """Dial, and go on dialling."""
        for dialler in self._diallers.values():
            dialler.keep_up()

    def attach(self, link: Link, peer: Identity) -> None:
        """Take a link that another site's gateway has dialled."""
        key = (peer.site, peer.name)
        if key not in self._incoming:
            self._incoming[key] = Tunnel(peer.site, f"gateway {peer.name} of site {peer.site}", self.pump)
        if len(self._incoming[key].links) >= MOST_LINKS:
            link.abort(f"gateway {peer.name} of site {peer.site} has {MOST_LINKS} links already")
            return
        self._incoming[key].add(link)

    def to_site(self, site: str) -> TunnelDialler:
        """The tunnel to a site, and its dialler. Raises NotFound."""
        if site not in self._diallers:
            known = ", ".join(sorted(self._diallers)) or "none"
            raise NotFound(f"site {self._site} is not joined with a site {site!r}; it is joined with {known}")
        return self._diallers[site]

    def is_up(self, site: str) -> bool:
        """Whether the tunnel to a site has a link."""
        return site in self._outgoing and self._outgoing[site].is_up

    def set_limit(self, site: str, bytes_per_second: int) -> None:
        """Limit what goes to a site. Raises NotFound."""
        self.to_site(site).tunnel.set_limit(bytes_per_second)

    def set_links(self, site: str, links: int) -> None:
        """Grow or shrink the tunnel to a site. Raises NotFound or UsageError."""
        if not 1 <= links <= MOST_LINKS:
            raise UsageError(f"a tunnel has 1 to {MOST_LINKS} links, not {links}")
        self.to_site(site).set_links(links)

    def set_migration_limit(self, migration: str, bytes_per_second: int) -> None:
        """Limit what a migration sends from here."""
        for dialler in self._diallers.values():
            dialler.tunnel.set_migration_limit(migration, bytes_per_second)

    async def close(self) -> None:
        """End all of them."""
        for dialler in self._diallers.values():
            await dialler.close()
        for tunnel in self._incoming.values():
            tunnel.close()
