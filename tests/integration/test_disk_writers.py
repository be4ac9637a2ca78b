"""A guest that writes to its disk more often than once in a round trip, as a database does: its disk's copy comes to an end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.integration.story import (
    FAST,
    GUEST,
    HOMES,
    Guest,
    assert_ended,
    assert_holds,
    kill_and_restart,
    kill_qemu,
    moving,
)
from tests.lab import Lab, WanSettings

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

# 100 blocks/s, so that ten are written within a round trip.
BUSY = dataclasses.replace(GUEST, disk_rate=100)
# The same, of 256 blocks, so that many are written again before they have arrived.
HOT = dataclasses.replace(BUSY, disk_fill=1)
LINE = WanSettings(rate=100, rtt=100)
# So slow that a move is in its disk phase for some seconds.
SLOW = WanSettings(rate=8, rtt=100)


@pytest.fixture
def writer(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Such a guest."""
    lab.set_wan(FAST)
    guest = Guest(lab, "db")
    lab.guests.start(guest.name, HOMES[0], getattr(request, "param", BUSY))
    yield guest
    lab.wan.heal()
    lab.set_wan(FAST)
    lab.guests.stop(guest.name)


@pytest.mark.parametrize("writer", [HOT], ids=["hot"], indirect=True)
def test_it_arrives_and_its_disk_is_stored_as_it_was(writer: Guest) -> None:
    with moving(writer, LINE, "--verify-disks") as move:
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert ended["proof"]["outcome"] == "equal", ended["proof"]
    assert_holds(move, at=move.destination)


def test_it_arrives_though_the_line_is_cut_and_a_gateway_is_killed_in_between(writer: Guest) -> None:
    with moving(writer, SLOW) as move:
        move.in_disk_phase()
        writer.lab.wan.cut()
        kill_and_restart(writer.lab, move.destination_gateway)
        writer.lab.wan.heal()
        writer.lab.set_wan(LINE)
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)


def test_it_goes_on_at_the_source_if_qemu_ends_with_writes_that_were_answered_here(writer: Guest) -> None:
    with moving(writer, SLOW) as move:
        move.in_disk_phase()
        kill_qemu(writer, move.destination)
        move.end()
    assert_ended(move, "failed", cause=f"QEMU ended on host {move.destination}")
    assert_holds(move, at=move.source)
