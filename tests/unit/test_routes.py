"""Which channels may be: only from a host that is who it says, between two sites that are joined, whoever asks."""

from __future__ import annotations

from typing import cast

import pytest

from gateway.tunnel.routes import SiteRoutes
from gateway.tunnel.tunnel import Tunnel
from landbridge.errors import NotFound, PermissionDenied, ProtocolError
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.unit.identities import nowhere

TO_AMS = cast("Tunnel", object())
TO_LON = cast("Tunnel", object())
FRA_1 = nowhere("host fra-1")
ROUTES = SiteRoutes("fra", {"ams": TO_AMS, "lon": TO_LON}, {"fra-1": FRA_1})
# An unknown kind, as a newer or hostile end may send it.
STRANGE = 77


def opening(source: str, destination: str, kind: int = ChannelKind.CHANNEL_KIND_RAM) -> ChannelOpen:
    """From "site/host" to "site/host"."""
    (source_site, source_host), (destination_site, destination_host) = source.split("/"), destination.split("/")
    made = ChannelOpen(
        source_site=source_site,
        source_host=source_host,
        destination_site=destination_site,
        destination_host=destination_host,
    )
    made.kind = kind  # type: ignore[assignment]  # any number travels
    return made


def test_a_host_is_led_to_the_tunnel_of_the_destination_site() -> None:
    assert ROUTES.from_host(opening("fra/fra-1", "ams/ams-1"), "fra-1") is TO_AMS
    assert ROUTES.from_host(opening("fra/fra-2", "lon/lon-1"), "fra-2") is TO_LON


@pytest.mark.parametrize("source", ["fra/fra-2", "ams/fra-1", "fra/", "/", "/fra-1"])
def test_a_host_opens_no_channel_in_the_name_of_another(source: str) -> None:
    with pytest.raises(PermissionDenied, match="host fra-1 of site fra opened a channel as host"):
        ROUTES.from_host(opening(source, "ams/ams-1"), "fra-1")


@pytest.mark.parametrize("destination", ["par/par-1", "fra/fra-2", "/"])
def test_a_site_that_is_not_joined_cannot_be_reached(destination: str) -> None:
    with pytest.raises(NotFound, match="site fra is not joined with a site"):
        ROUTES.from_host(opening("fra/fra-1", destination), "fra-1")


def test_another_site_is_led_to_the_agent_of_the_host_that_it_names() -> None:
    assert ROUTES.from_site(opening("ams/ams-1", "fra/fra-1"), "ams") is FRA_1


@pytest.mark.parametrize("source", ["lon/lon-1", "fra/fra-1", "/"])
def test_a_site_opens_no_channel_in_the_name_of_another(source: str) -> None:
    with pytest.raises(PermissionDenied, match="site ams opened a channel from site"):
        ROUTES.from_site(opening(source, "fra/fra-1"), "ams")


def test_a_channel_to_another_site_is_not_passed_through() -> None:
    with pytest.raises(PermissionDenied, match="to site lon"):
        ROUTES.from_site(opening("ams/ams-1", "lon/lon-1"), "ams")


@pytest.mark.parametrize("host", ["fra-2", "", "ams-1"])
def test_a_host_that_the_site_does_not_have_cannot_be_reached(host: str) -> None:
    with pytest.raises(NotFound, match="site fra has no host"):
        ROUTES.from_site(opening("ams/ams-1", f"fra/{host}"), "ams")


def test_a_kind_of_channel_that_nobody_knows_is_refused_on_either_way() -> None:
    with pytest.raises(ProtocolError, match="unknown kind 77"):
        ROUTES.from_host(opening("fra/fra-1", "ams/ams-1", STRANGE), "fra-1")
    with pytest.raises(ProtocolError, match="unknown kind 77"):
        ROUTES.from_site(opening("ams/ams-1", "fra/fra-1", STRANGE), "ams")
