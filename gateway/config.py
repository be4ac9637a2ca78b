"""What a gateway is told: /etc/landbridge/gateway.toml."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from certs.identity import Identity, Role
from landbridge.config import AddressesField, AddressField, PathField, Settings
from landbridge.errors import IdentityError

# Connections of one tunnel, at most.
MOST_LINKS = 64


def _check_names(site: str, name: str) -> None:
    try:
        Identity("any", site, Role.HOST, name)
    except IdentityError as error:
        raise ValueError(error.message.removesuffix(".")) from error


def _site_name(text: str) -> str:
    _check_names(text, "any")
    return text


def _name(text: str) -> str:
    _check_names("any", text)
    return text


def _check_each_once(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} is named twice")
        seen.add(name)


SiteName = Annotated[str, AfterValidator(_site_name)]
Name = Annotated[str, AfterValidator(_name)]


class IdentitySettings(Settings):
    """Who this gateway is: a directory as `landbridge certs issue` writes it."""

    directory: PathField
    # Seconds for which the certificates are valid that it signs, for itself and for hosts; they are renewed half way.
    lifetime: float = Field(default=86_400.0, ge=4.0, le=90 * 86_400.0)


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
    # gRPC, landbridge.v1.Enrolment, for new hosts, who have no certificate yet; nobody can enrol where it is missing
    enrolment: AddressField | None = None


class StoreSettings(Settings):
    """Where migrations are recorded: an SQLAlchemy URL. The gateways of one site have the same."""

    url: str = "sqlite:////var/lib/landbridge/gateway.db"


class HostSettings(Settings):
    """A host of this site."""

    name: Name
    control: AddressField
    stream: AddressField


class SiteSettings(Settings):
    """Another site, and what it calls our pools and networks. A name without an entry must exist there as it is."""

    name: SiteName
    # of each of its gateways; neither for a site that operators join with `landbridge sites join`, which then tells itself
    peers: AddressesField = ()
    tunnel: AddressesField = ()

    @model_validator(mode="after")
    def _check_addresses(self) -> SiteSettings:
        if bool(self.peers) != bool(self.tunnel):
            raise ValueError(
                "peers and tunnel are both needed, or neither for a site that is joined with `landbridge sites join`"
            )
        return self

    pools: dict[str, str] = Field(default_factory=dict)
    networks: dict[str, str] = Field(default_factory=dict)


class PatienceSettings(Settings):
    """How long, in seconds, to wait for those who do not answer before a migration goes on without them."""

    # For the source's agent, while the VM's whereabouts are not in doubt.
    agent: float = Field(default=30.0, gt=0)
    # For the destination site, when a migration has failed and is to be cleaned up there.
    cleanup: float = Field(default=30.0, gt=0)
    # For the network between the two hosts of a migration, which holds as long; then it ends, with the VM at the source.
    outage: float = Field(default=900.0, gt=0)


class TunnelSettings(Settings):
    """Tunnels to other sites, as this gateway dials them."""

    # Connections of each.
    links: int = Field(default=4, ge=1, le=MOST_LINKS)
    # Mbit/s that each may use; 0: no limit.
    limit: float = Field(default=0.0, ge=0, le=1e8)


class PagesSettings(Settings):
    """The page log that this gateway keeps with each gateway of other sites, so that nothing is sent twice."""

    directory: PathField = Path("/var/lib/landbridge/pages")
    # GiB that each may take on the disk; 0: there is none, and frames are sent as they are
    size: float = Field(default=8.0, ge=0, le=1e6)
    # With whose pages those of a VM may be compared. What is known already arrives sooner, and whoever can write into the
    # memory of one VM and measure that learns something of the others.
    compare: Literal["vm", "tenant", "site"] = "tenant"
    # The VMs of each tenant, by patterns of their names, the first that fits; all others are one tenant more
    tenants: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def domain_of(self, vm_uuid: str, vm_name: str) -> str:
        """What VMs have in common whose pages may be compared."""
        if self.compare == "vm":
            return f"vm {vm_uuid}"
        if self.compare == "site":
            return "site"
        for tenant, patterns in self.tenants.items():
            if any(fnmatchcase(vm_name, pattern) for pattern in patterns):
                return f"tenant {tenant}"
        return "tenant"


class PolicySettings(Settings):
    """Who may do what: a file of its own, so that others can review it."""

    # None: nothing is allowed.
    file: PathField | None = None


class ShipSettings(Settings):
    """Where the audit log is shipped to while it grows: a receiver of syslog over TLS, or a file. One of the two."""

    # RFC 5424 over TLS (RFC 5425), most often at port 6514
    syslog: AddressField | None = None
    # PEM: the CA of the receiver's certificate, which names it; and what is shown to it, where it asks for a certificate
    ca: PathField | None = None
    # What its certificate is to name, where it is not the host of the address
    server_name: str = ""
    certificate: PathField | None = None
    key: PathField | None = None
    # Of a receiver that closes without TLS close_notify, as rsyslog does: then entries can vanish on the way, by whoever ends connections
    ends_without_close_notify: bool = False
    # A line for each entry is appended to this file
    file: PathField | None = None
    format: Literal["jsonl", "ocsf"] = "jsonl"

    @model_validator(mode="after")
    def _check_target(self) -> ShipSettings:
        if (self.syslog is None) == (self.file is None):
            raise ValueError('syslog = "HOST:PORT" or file = "PATH" is needed, and not both')
        if self.file is None and self.ca is None:
            raise ValueError("ca is needed with syslog: the CA of the receiver's certificate")
        of_other = {"ca", "server_name", "certificate", "key", "ends_without_close_notify"} if self.file else {"format"}
        if wrong := sorted(of_other & self.model_fields_set):
            raise ValueError(f"{' and '.join(wrong)} go with {'syslog' if self.file else 'file'} only")
        if self.key is not None and self.certificate is None:
            raise ValueError("key is needed with certificate only")
        return self


class AuditSettings(Settings):
    """Where this gateway keeps its audit log: a directory of its own, also where several gateways share a store."""

    directory: PathField = Path("/var/lib/landbridge/audit")
    # Where it is shipped to, by names that are the operators' own.
    ship: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")], ShipSettings] = Field(default_factory=dict)
    # Where the receipts of migrations from here are kept. None: "receipts" below the directory.
    receipts: PathField | None = None
    # Days after which entries are removed, some hundreds at a time; 0: never
    retention: int = Field(default=0, ge=0, le=36_500)


class WitnessedLog(Settings):
    """A log whose heads this gateway cosigns for anybody who brings them; of a peer's log, also the key that is expected."""

    # Its public key as C2SP signed-note writes it, NAME+ID+KEY; its name is the log's origin.
    vkey: str


class WitnessSettings(Settings):
    """How this gateway cosigns the audit logs of others. Those of the gateways of other sites it always does."""

    # HTTP in the clear, C2SP tlog-witness, for logs that are no peers, and for monitors
    listen: AddressField | None = None
    # Whether cosignatures of ML-DSA-44, against quantum computers to come, stand beside those of Ed25519: 3.3 KB more each
    ml_dsa: bool = False
    logs: tuple[WitnessedLog, ...] = ()


class GatewayConfig(Settings):
    """The whole file."""

    site: SiteName
    name: Name
    identity: IdentitySettings
    listen: ListenSettings
    store: StoreSettings = StoreSettings()
    hosts: tuple[HostSettings, ...] = ()
    sites: tuple[SiteSettings, ...] = ()
    patience: PatienceSettings = PatienceSettings()
    tunnel: TunnelSettings = TunnelSettings()
    pages: PagesSettings = PagesSettings()
    policy: PolicySettings = PolicySettings()
    audit: AuditSettings = AuditSettings()
    witness: WitnessSettings = WitnessSettings()

    @model_validator(mode="after")
    def _check_neighbours(self) -> GatewayConfig:
        _check_each_once("host", (host.name for host in self.hosts))
        _check_each_once("site", (self.site, *(site.name for site in self.sites)))
        return self
