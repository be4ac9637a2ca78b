"""Which channel may exist, and where it leads: only between the two hosts of a migration that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.migration.ledger import Ledger, has_ended
from gateway.store import Row
from gateway.tunnel.dial import Dialler
from landbridge.errors import NotFound, PermissionDenied
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelOpen


def _under_way(ledger: Ledger, opening: ChannelOpen) -> Row:
    row = ledger.get(opening.migration)
    if row is None or has_ended(row):
        raise NotFound(f"no migration {opening.migration} is under way here")
    return row


@dataclass(frozen=True)
class FromHost:
    """Channels that a host of this site opens: on the tunnel to the site its VM goes to."""

    host: str
    ledger: Ledger
    tunnels: Mapping[str, Dialler]

    async def route(self, opening: ChannelOpen) -> Link:
        """The link of the tunnel."""
        row = _under_way(self.ledger, opening)
        if not row.coordinating or row.migration.source_host != self.host:
            raise PermissionDenied(f"host {self.host} is not the source of migration {opening.migration}")
        return await self.tunnels[row.migration.destination_site].link()


@dataclass(frozen=True)
class FromSite:
    """Channels that come from another site: to the host its VM comes to."""

    site: str
    ledger: Ledger
    hosts: Mapping[str, Dialler]

    async def route(self, opening: ChannelOpen) -> Link:
        """The link to the host's agent."""
        row = _under_way(self.ledger, opening)
        if row.coordinating or row.migration.source_site != self.site:
            raise PermissionDenied(f"migration {opening.migration} does not come from site {self.site}")
        return await self.hosts[row.migration.destination_host].link()
