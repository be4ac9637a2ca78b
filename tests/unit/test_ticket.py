"""Tickets: good for exactly the channel that they were made for."""

from __future__ import annotations

import pytest

from landbridge.ticket import SECRET_SIZE, is_good, ticket
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

SECRET = bytes(range(SECRET_SIZE))


def opening() -> ChannelOpen:
    made = ChannelOpen(
        migration="m-1",
        kind=ChannelKind.CHANNEL_KIND_DISK,
        index=1,
        source_site="fra",
        source_host="fra-1",
        destination_site="ams",
        destination_host="ams-1",
        vm_uuid="8f1c1c2a-4c26-4b52-9d0e-3c2f3cf7f3a1",
        vm_name="web",
    )
    made.ticket = ticket(SECRET, made)
    return made


def test_a_channel_with_its_ticket_is_let_in() -> None:
    assert is_good(SECRET, opening())


def test_the_ticket_itself_is_left_aside_when_it_is_made() -> None:
    made = opening()
    assert ticket(SECRET, made) == made.ticket


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("migration", "m-2"),
        ("kind", ChannelKind.CHANNEL_KIND_RAM),
        ("index", 2),
        ("source_site", "lon"),
        ("source_host", "fra-2"),
        ("destination_site", "lon"),
        ("destination_host", "ams-2"),
        ("vm_uuid", "8f1c1c2a-4c26-4b52-9d0e-3c2f3cf7f3a2"),
        ("vm_name", "db"),
    ],
)
def test_a_ticket_is_good_for_no_other_channel(field: str, value: str | int) -> None:
    made = opening()
    setattr(made, field, value)
    assert not is_good(SECRET, made)


def test_a_byte_that_moves_from_one_field_to_the_next_makes_another_channel() -> None:
    made = opening()
    made.source_site, made.source_host = "fraf", "ra-1"
    assert not is_good(SECRET, made)


@pytest.mark.parametrize("given", [b"", b"x", bytes(32), bytes(33)])
def test_anything_else_is_no_ticket(given: bytes) -> None:
    made = opening()
    made.ticket = given
    assert not is_good(SECRET, made)


def test_a_ticket_under_another_secret_is_none() -> None:
    assert not is_good(bytes(SECRET_SIZE), opening())


@pytest.mark.parametrize("secret", [b"", b"short", bytes(SECRET_SIZE + 1)])
def test_without_a_whole_secret_no_ticket_is_good_not_even_one_made_with_it(secret: bytes) -> None:
    made = opening()
    made.ticket = ticket(secret, made)
    assert not is_good(secret, made)


def test_a_ticket_that_was_made_once_is_the_same_in_every_release() -> None:
    assert opening().ticket.hex() == "beebff44118a22bac862afadcd2b5ea485a6665a220ea76b5f1d8882f8ae82a3"
