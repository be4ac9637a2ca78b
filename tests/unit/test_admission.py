"""Which channels a destination takes: tickets, ends and numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from agent import admission
from agent.channels import Gateways, Way
from agent.destination import DestinationMove
from agent.hypervisor.base import Hypervisor
from agent.journal import Journal, Record
from agent.move import HostContext
from landbridge.errors import Conflict, LandbridgeError, PermissionDenied
from landbridge.ticket import ticket
from landbridge.v1.agent_pb2 import PrepareRequest, Role, Stage
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

SECRET = bytes(range(32))
WAY = Way("m-1", "fra", "fra-1", "ams", "ams-1", SECRET)


class NoHypervisor:
    """None is needed to admit a channel."""

    def subscribe(self, _: object) -> object:
        return lambda: None


@pytest.fixture
def move(tmp_path: Path) -> DestinationMove:
    """A migration that was prepared, with the secret and the ends of WAY."""
    hypervisor = cast("Hypervisor", NoHypervisor())
    context = HostContext(hypervisor, Journal(tmp_path), Gateways([]), tmp_path, (0, 0), "host ams-1")

    async def make() -> DestinationMove:
        record = Record(migration="m-1", role=Role.ROLE_DESTINATION, vm="db", vm_uuid="u-1")
        made = DestinationMove(context, record)
        made.agree(request())
        made.advance(Stage.STAGE_PREPARED)
        return made

    return asyncio.run(make())


def request(secret: bytes = SECRET) -> PrepareRequest:
    return PrepareRequest(
        migration="m-1",
        outage_limit_ms=60_000,
        channel_secret=secret,
        source_site=WAY.source_site,
        source_host=WAY.source_host,
        destination_site=WAY.destination_site,
        destination_host=WAY.destination_host,
    )


def test_a_channel_with_a_good_ticket_leads_to_the_socket_of_its_kind(move: DestinationMove) -> None:
    assert move.admit(WAY.opening("rpc", 0), "/run/libvirt.sock") == ("/run/libvirt.sock", move.traffic)
    assert move.admit(WAY.opening("ram", 0), "/run/libvirt.sock")[0] == str(move.directory / "ram.sock")
    assert move.admit(WAY.opening("disk", 3), "/run/libvirt.sock")[0] == str(move.directory / "disk.sock")
    assert move.traffic.outage_limit == 60.0


def refusal(move: DestinationMove, opening: ChannelOpen) -> LandbridgeError:
    with pytest.raises(LandbridgeError) as refused:
        move.admit(opening, "/run/libvirt.sock")
    return refused.value


def test_a_ticket_opens_one_channel_and_never_another_nor_the_same_one_anew(move: DestinationMove) -> None:
    move.admit(WAY.opening("disk", 0), "/run/libvirt.sock")
    again = refusal(move, WAY.opening("disk", 0))
    assert isinstance(again, PermissionDenied)
    assert "a second time" in again.message


@pytest.mark.parametrize(
    "way",
    [
        Way("m-1", "fra", "fra-1", "ams", "ams-1", bytes(32)),
        Way("m-1", "fra", "fra-1", "ams", "ams-1", b""),
        Way("m-1", "lon", "fra-1", "ams", "ams-1", SECRET),
        Way("m-1", "fra", "fra-2", "ams", "ams-1", SECRET),
        Way("m-1", "fra", "fra-1", "lon", "ams-1", SECRET),
        Way("m-1", "fra", "fra-1", "ams", "ams-2", SECRET),
        Way("m-2", "fra", "fra-1", "ams", "ams-1", SECRET[::-1]),
    ],
)
def test_a_channel_of_another_secret_site_or_host_is_refused(move: DestinationMove, way: Way) -> None:
    refused = refusal(move, way.opening("ram", 0))
    assert isinstance(refused, PermissionDenied)
    assert "without a ticket for it" in refused.message


def test_a_ticket_for_another_kind_or_number_is_refused(move: DestinationMove) -> None:
    opening = WAY.opening("ram", 0)
    opening.index = 1
    assert isinstance(refusal(move, opening), PermissionDenied)
    opening = WAY.opening("ram", 0)
    opening.kind = ChannelKind.CHANNEL_KIND_RPC
    assert isinstance(refusal(move, opening), PermissionDenied)


def test_a_migration_has_one_conversation_with_libvirtd(move: DestinationMove) -> None:
    refused = refusal(move, WAY.opening("rpc", 1))
    assert isinstance(refused, PermissionDenied)
    assert "one rpc channel" in refused.message


def test_a_migration_that_is_not_prepared_any_more_takes_no_channels(move: DestinationMove) -> None:
    move.record.stage = Stage.STAGE_ARRIVED
    assert isinstance(refusal(move, WAY.opening("ram", 0)), Conflict)


def test_before_a_secret_was_agreed_on_nobody_is_admitted(move: DestinationMove) -> None:
    move.agree(request(b""))
    opening = Way("m-1", "fra", "fra-1", "ams", "ams-1", b"").opening("ram", 0)
    assert opening.ticket == ticket(b"", opening)
    assert isinstance(refusal(move, opening), PermissionDenied)


def test_once_a_channel_was_opened_nothing_else_is_agreed_on(move: DestinationMove) -> None:
    move.agree(request(bytes(32)))
    move.agree(request())
    move.admit(WAY.opening("ram", 0), "/run/libvirt.sock")
    move.agree(request(bytes(32)))
    move.admit(WAY.opening("ram", 1), "/run/libvirt.sock")


def test_a_migration_has_a_most_of_channels(move: DestinationMove, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_CHANNELS", 2)
    for index in range(2):
        move.admit(WAY.opening("disk", index), "/run/libvirt.sock")
    assert isinstance(refusal(move, WAY.opening("disk", 2)), Conflict)
