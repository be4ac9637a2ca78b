"""The sites lose each other: the guest is served first, and what the other site still has is put right without it."""

from __future__ import annotations

import pytest

from tests.integration.story import (
    FAST,
    LONG,
    SLOW_MEMORY,
    Guest,
    assert_can_move_again,
    assert_ended,
    assert_holds,
    assert_moves_again,
    assert_nothing_left,
    assert_sound,
    moving,
    wait_for_site,
)
from tests.lab import WanSettings

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

LINK = "the link to the gateway of site .* has been silent|link"


def test_cut_for_good_in_the_memory_phase_both_sites_put_things_right_by_themselves(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        guest.lab.wan.cut()
        move.end()
        # All of this while the sites still cannot reach each other.
        assert_ended(move, "failed", cause=LINK)
        assert guest.host == move.source
        assert_nothing_left(guest, move.id, move.destination, seconds=LONG)
        assert_sound(guest)
    guest.lab.wan.heal()
    guest.lab.set_wan(FAST)
    wait_for_site(guest.lab, move.source_site)
    assert_moves_again(guest)


def test_cut_in_the_switch_over_the_vm_runs_on_at_most_one_side_and_ends_well_after_the_wan_is_back(
    guest: Guest,
) -> None:
    with moving(guest, WanSettings(rate=400, rtt=100)) as move:
        move.wait_for("switching")
        guest.lab.wan.cut()
        move.wait_for("resolving", "cleaning", "failed", "activating", when=lambda m: bool(m["reason"]))
        running = [h for h, state in guest.lab.guests.where(guest.name).items() if state.startswith("running")]
        assert len(running) <= 1, running
        assert running or move.last["reason"]
        guest.lab.wan.heal()
        guest.lab.set_wan(FAST)
        ended = move.end()
    if ended["state"] == "completed":
        assert_holds(move, at=move.destination)
    else:
        assert_ended(move, "failed", cause=LINK)
        assert_holds(move, at=move.source)
    assert_can_move_again(guest)
    if ended["state"] == "failed":
        # Its QEMU may copy its disks no more, see `agent.relay.LOST_GRACE`: the next test needs another.
        guest.lab.guests.stop(guest.name)


def test_cut_after_the_source_has_released_the_vm_it_waits_paused_until_the_wan_is_back(guest: Guest) -> None:
    with moving(guest, WanSettings(rate=400, rtt=100)) as move:
        move.wait_for("activating")
        guest.lab.wan.cut()
        waiting = move.wait_for(
            "activating", "completed", when=lambda m: bool(m["reason"]) or m["state"] == "completed"
        )
        if waiting["state"] == "activating":
            assert "the VM waits there, paused, and runs nowhere else" in waiting["reason"]
            assert guest.lab.guests.where(guest.name)[move.source].startswith("shut off")
        guest.lab.wan.heal()
        guest.lab.set_wan(FAST)
        assert move.end()["state"] == "completed"
    assert_holds(move, at=move.destination)
