"""What a gateway is told: /etc/landbridge/gateway.toml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from landbridge.config import AddressesField, AddressField, Settings


class IdentitySettings(Settings):
    """Who this gateway is: a directory as `landbridge certs issue` writes it."""

    directory: Path


class ListenSettings(Settings):
    """Where others reach this gateway."""

    # gRPC, landbridge.v1.Gateway, for operators of this site
    operators: AddressField
    # links that carry channels from this site's agents
    agents: AddressField
    # gRPC, landbridge.v1.Peer, for the gateways of other sites
    peers: AddressField
    # tunnel links, dialled by the gateways of other sites
    tunnel: AddressField


class StoreSettings(Settings):
    """Where migrations are recorded: an SQLAlchemy URL. The gateways of one site have the same."""

    url: str = "sqlite:////var/lib/landbridge/gateway.db"


class HostSettings(Settings):
    """A host of this site."""

    name: str
    control: AddressField
    stream: AddressField


class SiteSettings(Settings):
    """Another site, and what it calls our pools and networks. A name without an entry must exist there as it is."""

    name: str
    # of each of its gateways
    peers: AddressesField
    tunnel: AddressesField
    pools: dict[str, str] = Field(default_factory=dict)
    networks: dict[str, str] = Field(default_factory=dict)


class PatienceSettings(Settings):
    """How long, in seconds, to wait for those who do not answer before a migration goes on without them."""

    # For the source's agent, while the VM's whereabouts are not in doubt.
    agent: float = 30.0
    # For the destination site, when a migration has failed and is to be cleaned up there.
    cleanup: float = 30.0


class GatewayConfig(Settings):
    """The whole file."""

    site: str
    name: str
    identity: IdentitySettings
    listen: ListenSettings
    store: StoreSettings = StoreSettings()
    hosts: tuple[HostSettings, ...] = ()
    sites: tuple[SiteSettings, ...] = ()
    patience: PatienceSettings = PatienceSettings()
