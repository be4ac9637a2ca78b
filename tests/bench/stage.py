"""Where the four processes between two hosts run, and what each is told: on loopback, or in a lab's namespaces.

source agent ─ LAN ─ source gateway ═ WAN ═ destination gateway ─ LAN ─ destination agent
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certs.authority import create, issue
from certs.identity import Identity, Role, Site
from certs.store import add_trust, save_authority, save_identity
from landbridge.config import Address
from tests.lab.lab import Lab
from tests.lab.network import SITES, WAN_ADDRESS, node

TRUST_DOMAIN = "landbridge.test"
# Who listens where: ports of each station, counted from the stage's first.
LAN_USES = ("operators", "agents", "control", "stream")
WAN_USES = ("peers", "tunnel")
USES = (*LAN_USES, *WAN_USES)
LAB_PORT = 7440


@dataclass(frozen=True)
class Station:
    """Where one of the processes runs."""

    site: str
    role: Role
    name: str
    # The words before a command that make it run there.
    enter: tuple[str, ...]
    lan: str
    # The address that faces the other site; a host has none of its own.
    wan: str
    # An identity directory.
    identity: Path
    first_port: int

    def address(self, use: str) -> Address:
        """Where it listens for one of USES."""
        return Address(self.lan if use in LAN_USES else self.wan, self.first_port + USES.index(use))

    @property
    def title(self) -> str:
        """What tables call its process."""
        side = "source" if self.site == SITES[0] else "destination"
        return f"{side} {'agent' if self.role is Role.HOST else 'gateway'}"


@dataclass(frozen=True)
class Stage:
    """The four stations in the order in which bytes travel, and a folder for sockets and files, seen from all of them."""

    directory: Path
    source_agent: Station
    source_gateway: Station
    destination_gateway: Station
    destination_agent: Station

    @property
    def stations(self) -> tuple[Station, Station, Station, Station]:
        """In the order in which bytes travel."""
        return self.source_agent, self.source_gateway, self.destination_gateway, self.destination_agent


def on_loopback(directory: Path) -> Stage:
    """All four on this machine's loopback, each on an address of its own."""
    addresses = {
        f"{site}-{end}": f"127.71.{n}.{m}" for n, site in enumerate(SITES, 1) for m, end in ((1, "gw"), (11, "1"))
    }
    # Each bench that runs has ports of its own, below the range from which the kernel takes those of outgoing connections.
    first_port = 20_000 + os.getpid() % 1000 * 10
    return _stage(directory, {name: (address, address, ()) for name, address in addresses.items()}, first_port)


def in_lab(lab: Lab, directory: Path) -> Stage:
    """A host and the gateway of each site of a lab that is up."""
    names = [f"{site}-{end}" for site in SITES for end in ("gw", "1")]
    return _stage(
        directory, {n: (node(n).lan, WAN_ADDRESS[node(n).site], tuple(lab.enter(n))) for n in names}, LAB_PORT
    )


def _stage(directory: Path, places: dict[str, tuple[str, str, tuple[str, ...]]], first_port: int) -> Stage:
    now, certificates = datetime.now(UTC), directory / "certs"
    stations = []
    for site in SITES:
        authority = create(Site(TRUST_DOMAIN, site), now)
        save_authority(certificates / site / "ca", authority)
        for role, end in ((Role.HOST, "1"), (Role.GATEWAY, "gw")):
            name = f"{site}-{end}"
            lan, wan, enter = places[name]
            identity = certificates / site / role
            save_identity(identity, issue(authority, Identity(TRUST_DOMAIN, site, role, name), now))
            stations.append(Station(site, role, name, enter, lan, wan, identity, first_port))
    for site, other in (SITES, SITES[::-1]):
        add_trust(certificates / site / Role.GATEWAY, certificates / other / "ca" / "ca.pem")
    source_agent, source_gateway, destination_agent, destination_gateway = stations
    return Stage(directory, source_agent, source_gateway, destination_gateway, destination_agent)
