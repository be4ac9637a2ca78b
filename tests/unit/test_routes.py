"""Which channels may be: only between the two hosts of a migration that is under way, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from gateway.migration.ledger import Ledger
from gateway.migration.routes import FromHost, FromSite
from gateway.migration.states import ENDED, State
from gateway.store import Row, Store
from gateway.tunnel.dial import Dialler
from landbridge.errors import LandbridgeError, NotFound, PermissionDenied, Unreachable
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelOpen
from landbridge.v1.types_pb2 import Migration

LINK = cast("Link", object())


class FakeDialler:
    """Gives its link, or says why there is none."""

    def __init__(self, failure: LandbridgeError | None = None) -> None:
        self._failure = failure

    async def link(self) -> Link:
        if self._failure is not None:
            raise self._failure
        return LINK


def to(name: str, failure: LandbridgeError | None = None) -> dict[str, Dialler]:
    return {name: cast("Dialler", FakeDialler(failure))}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One migration from fra-1 to ams-1, as `coordinating` says."""
    return Ledger(Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1"))


def knows(ledger: Ledger, *, coordinating: bool, state: State = State.COPYING_MEMORY) -> None:
    migration = Migration(
        id="m-1",
        source_site="fra",
        source_host="fra-1",
        destination_site="ams",
        destination_host="ams-1",
        state=state.value,
    )
    ledger.reserve(Row(migration=migration, coordinating=coordinating))


OPENING = ChannelOpen(migration="m-1", destination_site="ams")


async def test_the_source_host_is_led_to_the_tunnel_of_the_destination_site(ledger: Ledger) -> None:
    knows(ledger, coordinating=True)
    assert await FromHost("fra-1", ledger, to("ams")).route(OPENING) is LINK


async def test_where_a_channel_leads_is_what_was_agreed_and_not_what_the_opening_says(ledger: Ledger) -> None:
    knows(ledger, coordinating=True)
    opening = ChannelOpen(migration="m-1", destination_site="elsewhere")
    assert await FromHost("fra-1", ledger, to("ams")).route(opening) is LINK


async def test_another_host_of_the_site_may_not_open_channels_of_the_migration(ledger: Ledger) -> None:
    knows(ledger, coordinating=True)
    with pytest.raises(PermissionDenied, match="host fra-2 is not the source of migration m-1"):
        await FromHost("fra-2", ledger, to("ams")).route(OPENING)


async def test_the_destination_host_opens_no_channels(ledger: Ledger) -> None:
    knows(ledger, coordinating=False)
    for host in ("ams-1", "fra-1"):
        with pytest.raises(PermissionDenied):
            await FromHost(host, ledger, to("ams")).route(OPENING)


async def test_the_source_site_is_led_to_the_destination_host(ledger: Ledger) -> None:
    knows(ledger, coordinating=False)
    assert await FromSite("fra", ledger, to("ams-1")).route(OPENING) is LINK


async def test_another_site_may_not_open_channels_of_the_migration(ledger: Ledger) -> None:
    knows(ledger, coordinating=False)
    with pytest.raises(PermissionDenied, match="migration m-1 does not come from site lon"):
        await FromSite("lon", ledger, to("ams-1")).route(OPENING)


async def test_the_destination_site_opens_no_channels_back(ledger: Ledger) -> None:
    knows(ledger, coordinating=True)
    for site in ("ams", "fra"):
        with pytest.raises(PermissionDenied):
            await FromSite(site, ledger, to("fra-1")).route(OPENING)


@pytest.mark.parametrize("state", [state for state in State if state in ENDED])
async def test_a_migration_that_has_ended_takes_no_channels(ledger: Ledger, state: State) -> None:
    knows(ledger, coordinating=True, state=state)
    with pytest.raises(NotFound, match="no migration m-1 is under way here"):
        await FromHost("fra-1", ledger, to("ams")).route(OPENING)


async def test_a_migration_that_nobody_knows_takes_no_channels(ledger: Ledger) -> None:
    for router in (FromHost("fra-1", ledger, to("ams")), FromSite("fra", ledger, to("ams-1"))):
        with pytest.raises(NotFound):
            await router.route(OPENING)
        with pytest.raises(NotFound):
            await router.route(ChannelOpen())


async def test_a_tunnel_that_is_down_is_said_to_be(ledger: Ledger) -> None:
    knows(ledger, coordinating=True)
    with pytest.raises(Unreachable, match="the WAN is down"):
        await FromHost("fra-1", ledger, to("ams", Unreachable("the WAN is down"))).route(OPENING)
