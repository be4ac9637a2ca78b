"""One VM goes back and forth, and loses nothing; then what it left behind is removed."""

from __future__ import annotations

import json

import pytest

from tests.integration.story import (
    FAST,
    SLOW_MEMORY,
    Guest,
    assert_holds,
    assert_sound,
    images,
    moving,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MOVES = 10


def test_ten_moves_back_and_forth_lose_and_repeat_nothing(guest: Guest) -> None:
    before = guest.lab.guests.check(guest.name).moves
    for _ in range(MOVES):
        with moving(guest) as move:
            ended = move.end()
        assert ended["state"] == "completed", ended["reason"]
        assert guest.host == move.destination
        assert_sound(guest, passes=1)
    assert_holds(move, at=move.destination)
    assert guest.lab.guests.check(guest.name).moves - before == MOVES


def test_while_a_vm_moves_only_the_agent_listens_on_its_hosts(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        for host in (move.source, move.destination):
            listening = guest.node(host).run(["ss", "--no-header", "--tcp", "--listening", "--numeric", "--processes"])
            assert len(listening.splitlines()) == 2, listening
            assert all("landbridge" in line for line in listening.splitlines()), listening
        guest.lab.set_wan(FAST)
        assert move.end()["state"] == "completed"
    assert_holds(move, at=move.destination)


def test_settling_removes_what_a_completed_migration_left_at_the_source_and_may_be_repeated(guest: Guest) -> None:
    with moving(guest) as move:
        assert move.end()["state"] == "completed"
    assert images(guest, move.source)
    settled = [guest.lab.landbridge(move.source_site, "settle", move.id, "--json") for _ in range(2)]
    assert [done.returncode for done in settled] == [0, 0], [done.stderr for done in settled]
    removed = [json.loads(done.stdout)["removed"] for done in settled]
    assert len(removed[0]) == 2
    assert removed[1] == []
    assert not images(guest, move.source)
    assert guest.name not in guest.node(move.source).virsh("list", "--all", "--name").split()
    assert guest.host == move.destination
    assert_sound(guest)


def test_settling_a_migration_that_did_not_complete_is_refused(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        early = guest.lab.landbridge(move.source_site, "settle", move.id)
        guest.lab.landbridge(move.source_site, "cancel", move.id)
        guest.lab.set_wan(FAST)
        assert move.end()["state"] == "cancelled"
    late = guest.lab.landbridge(move.source_site, "settle", move.id)
    for refused in (early, late):
        assert refused.returncode == 4
        assert "only a completed one can be settled" in refused.stderr
    assert_holds(move, at=move.source)
