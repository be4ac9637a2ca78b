"""All tunnels of this gateway: those that it dials, and those that other sites' gateways dial.

Channels that begin at this site go through the tunnels that it dials; what comes back goes the way it came.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import structlog

from certs.identity import Identity, Role
from certs.links import Target
from certs.living import LivingIdentity
from gateway.config import MOST_LINKS, GatewayConfig, HostSettings, SiteSettings
from gateway.store import TunnelLimits
from gateway.stream.dedup import History
from gateway.stream.page_log import PageLog
from gateway.stream.ring import GENERATION
from gateway.tunnel.codec import Codec
from gateway.tunnel.dial import TunnelDialler
from gateway.tunnel.pump import Pump
from gateway.tunnel.routes import SiteRoutes
from gateway.tunnel.tunnel import Tunnel
from landbridge.errors import NotFound
from landbridge.link import Link
from landbridge.v1.types_pb2 import RateSource

log = structlog.get_logger()

_MBIT = 125_000
_GIB = 1 << 30
# Changes with each boot of the machine (proc(5)).
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Tunnels:
    """Owned by the event loop."""

    def __init__(self, settings: GatewayConfig, identity: LivingIdentity) -> None:
        self._site = settings.site
        self._identity = identity
        # By the other site; and by the gateway that dialled, for those that were accepted.
        self._outgoing: dict[str, Tunnel] = {}
        self._incoming: dict[tuple[str, str], Tunnel] = {}
        self._pages = settings.pages
        # By the other gateway: one for all tunnels with it.
        self._codecs: dict[tuple[str, str], Codec] = {}
        self._hosts: dict[str, Target] = {}
        self.pump = Pump(SiteRoutes(settings.site, self._outgoing, self._hosts, settings.pages))
        self._diallers: dict[str, TunnelDialler] = {}
        # As configured: bytes per second, and links.
        self._configured = (int(settings.tunnel.limit * _MBIT), settings.tunnel.links)
        self._limits: Mapping[str, TunnelLimits] = {}
        self._migration_limits: dict[str, int] = {}
        self._keeps_up = False
        for host in settings.hosts:
            self.know_host(host)
        for site in settings.sites:
            if site.tunnel:
                self.join(site)

    def know_host(self, host: HostSettings) -> None:
        """Channels may lead to a host of this site from now on, or lead elsewhere than before."""
        self._hosts[host.name] = Target(
            f"host {host.name}", host.stream, self._identity, Role.HOST, self._site, host.name
        )

    def forget_host(self, name: str) -> None:
        """No channel leads to a host any more."""
        self._hosts.pop(name, None)

    def join(self, site: SiteSettings) -> None:
        """Have a tunnel to a site, or have it lead elsewhere than before."""
        who = f"the gateway of site {site.name}"
        targets = [
            Target(who, address, self._identity, Role.GATEWAY, site.name, is_tunnel=True) for address in site.tunnel
        ]
        if site.name in self._diallers:
            self._diallers[site.name].set_targets(targets)
            return
        tunnel = self._outgoing[site.name] = Tunnel(site.name, who, self.pump, self._codec_for)
        self._diallers[site.name] = TunnelDialler(tunnel, targets, self._configured[1])
        for migration, limit in self._migration_limits.items():
            tunnel.set_migration_limit(migration, limit)
        self.set_limits(self._limits)
        if self._keeps_up:
            self._diallers[site.name].keep_up()

    async def leave(self, site: str) -> None:
        """End all tunnels with a site, and what goes through them; the pages that were kept of it go, too."""
        dialler = self._diallers.pop(site, None)
        self._outgoing.pop(site, None)
        incoming = [self._incoming.pop(key) for key in list(self._incoming) if key[0] == site]
        codecs = [self._codecs.pop(key) for key in list(self._codecs) if key[0] == site]
        for tunnel in (*([dialler.tunnel] if dialler else []), *incoming):
            self.pump.close_tunnel(tunnel, f"site {self._site} is joined with site {site} no longer")
            tunnel.close()
        if dialler is not None:
            await dialler.close()
        for codec in codecs:
            await codec.close()
        for path in self._pages.directory.glob(f"{site}.*.pages"):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def keep_up(self) -> None:
        """Dial, and go on dialling."""
        self._keeps_up = True
        for dialler in self._diallers.values():
            dialler.keep_up()

    def attach(self, link: Link, peer: Identity) -> None:
        """Take a link that another site's gateway has dialled."""
        key = (peer.site, peer.name)
        if key not in self._incoming:
            who = f"gateway {peer.name} of site {peer.site}"
            self._incoming[key] = Tunnel(peer.site, who, self.pump, self._codec_for)
        if len(self._incoming[key].links) >= MOST_LINKS:
            link.abort(f"gateway {peer.name} of site {peer.site} has {MOST_LINKS} links already")
            return
        self._incoming[key].add(link)

    def _codec_for(self, site: str, gateway: str) -> Codec | None:
        """The codec for a gateway of another site; None if there are to be none."""
        if not self._pages.size:
            return None
        if (site, gateway) not in self._codecs:
            path = self._pages.directory / f"{site}.{gateway}.pages"
            size = int(self._pages.size * _GIB)
            self._codecs[site, gateway] = Codec(f"gateway {gateway} of site {site}", lambda: _open(path, size))
        return self._codecs[site, gateway]

    def to_site(self, site: str) -> TunnelDialler:
        """The tunnel to a site, and its dialler. Raises NotFound."""
        if site not in self._diallers:
            known = ", ".join(sorted(self._diallers)) or "none"
            raise NotFound(f"site {self._site} is not joined with a site {site!r}; it is joined with {known}")
        return self._diallers[site]

    def is_up(self, site: str) -> bool:
        """Whether the tunnel to a site has a link."""
        return site in self._outgoing and self._outgoing[site].is_up

    def secured(self, site: str, incoming: bool) -> Mapping[str, str]:
        """How the tunnel to a site, or the newest that came from it, is protected or was (certs.tls.facts_of); empty if none was up."""
        if not incoming:
            return self._outgoing[site].secured if site in self._outgoing else {}
        return next((each.secured for (name, _), each in reversed(self._incoming.items()) if name == site), {})

    def is_up_or_leads_nowhere(self, site: str) -> bool:
        """Whether the tunnel to a site has a link, or nobody has told where that would be dialled."""
        return self.is_up(site) or (site in self._diallers and not self._diallers[site].has_targets)

    def is_coded(self, site: str) -> bool:
        """Whether what goes to a site is compressed. Raises NotFound."""
        return self.to_site(site).tunnel.is_coded

    def rate(self, site: str) -> tuple[int, RateSource.ValueType]:
        """Bytes per second that can go to a site, and how that is known; 0 if it is not. Raises NotFound."""
        tunnel = self.to_site(site).tunnel
        measured = int(tunnel.scheduler.full_rate)
        if tunnel.limit and (not measured or tunnel.limit < measured):
            return tunnel.limit, RateSource.RATE_SOURCE_LIMIT
        return measured, RateSource.RATE_SOURCE_MEASURED if measured else RateSource.RATE_SOURCE_UNKNOWN

    def set_limits(self, limits: Mapping[str, TunnelLimits]) -> None:
        """Limit, grow and shrink the tunnels, by site, as operators have set; what they have not is as it is configured."""
        rate, links = self._configured
        self._limits = limits
        for site, dialler in self._diallers.items():
            wanted = limits.get(site, TunnelLimits())
            bytes_per_second = rate if wanted.bytes_per_second is None else wanted.bytes_per_second
            count = links if wanted.links is None else wanted.links
            if bytes_per_second != dialler.tunnel.limit:
                dialler.tunnel.set_limit(bytes_per_second)
                log.info("tunnel.limited", site=site, bytes_per_second=bytes_per_second)
            if count != dialler.wanted:
                dialler.set_links(count)
                log.info("tunnel.resized", site=site, links=count)

    def set_migration_limits(self, limits: Mapping[str, int]) -> None:
        """Limit what migrations send from here, to bytes per second by their id; others have no limit."""
        for migration in {**self._migration_limits, **limits}:
            if (limit := limits.get(migration, 0)) != self._migration_limits.get(migration, 0):
                for dialler in self._diallers.values():
                    dialler.tunnel.set_migration_limit(migration, limit)
        self._migration_limits = dict(limits)

    async def close(self) -> None:
        """End all of them."""
        for dialler in self._diallers.values():
            await dialler.close()
        for tunnel in self._incoming.values():
            tunnel.close()
        for codec in self._codecs.values():
            await codec.close()


def _open(path: Path, size: int) -> History:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return History(PageLog.open(path, size, UUID(_BOOT.read_text().strip()).bytes, secrets.token_bytes(GENERATION)))
