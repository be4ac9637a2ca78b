"""Which channel may exist, and where it leads: only from a host that is who it says, to a host of the site that it names.

Nothing is looked up that a restarted gateway would not know: whether a migration is under way between the two hosts is for the
destination's agent to say, which alone can check the channel's ticket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import xxhash

from certs.links import Target
from gateway.config import PagesSettings
from gateway.tunnel.codec import Subject
from gateway.tunnel.tunnel import Tunnel
from landbridge.errors import NotFound, PermissionDenied, ProtocolError
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen


@dataclass(frozen=True)
class SiteRoutes:
    """The routes of a gateway of `site`."""

    site: str
    # By the other site's name.
    tunnels: Mapping[str, Tunnel]
    # By the host's name: how its agent is dialled.
    hosts: Mapping[str, Target]
    # With whose pages a VM's may be compared.
    pages: PagesSettings = field(default_factory=PagesSettings)

    def from_host(self, opening: ChannelOpen, host: str) -> Tunnel:
        """For a channel that a host of this site opens. Raises PermissionDenied, NotFound or ProtocolError."""
        _check_kind(opening)
        if (opening.source_site, opening.source_host) != (self.site, host):
            raise PermissionDenied(
                f"host {host} of site {self.site} opened a channel as host {opening.source_host} of site {opening.source_site}"
            )
        if opening.destination_site not in self.tunnels:
            raise NotFound(f"site {self.site} is not joined with a site {opening.destination_site!r}")
        return self.tunnels[opening.destination_site]

    def from_site(self, opening: ChannelOpen, site: str) -> Target:
        """For a channel that comes from another site. Raises PermissionDenied, NotFound or ProtocolError."""
        _check_kind(opening)
        if opening.source_site != site or opening.destination_site != self.site:
            raise PermissionDenied(
                f"site {site} opened a channel from site {opening.source_site} to site {opening.destination_site}"
            )
        if opening.destination_host not in self.hosts:
            raise NotFound(f"site {self.site} has no host {opening.destination_host!r}")
        return self.hosts[opening.destination_host]

    def subject(self, opening: ChannelOpen) -> Subject | None:
        """Whose pages the channel carries; None for libvirt's calls, and for an agent that does not say."""
        if opening.kind == ChannelKind.CHANNEL_KIND_RPC or not opening.vm_uuid:
            return None
        return Subject(_number(opening.vm_uuid), _number(self.pages.domain_of(opening.vm_uuid, opening.vm_name)))


def _number(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _check_kind(opening: ChannelOpen) -> None:
    # Protobuf lets any number pass.
    if opening.kind not in ChannelKind.values():
        raise ProtocolError(f"a channel of unknown kind {opening.kind} was opened; update the older end")
