"""The sites lose each other while the guest stands still: it waits for as long as nobody knows where it is whole."""

from __future__ import annotations

import pytest

from tests.integration.story import FAST, Guest, assert_can_move_again, assert_holds, moving
from tests.lab import WanSettings

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


def test_cut_in_the_switch_over_nobody_runs_twice_and_the_vm_arrives_once_the_wan_is_back(guest: Guest) -> None:
    with moving(guest, WanSettings(rate=400, rtt=100)) as move:
        move.wait_for("switching")
        guest.lab.wan.cut()
        move.wait_for("switching", "activating", when=lambda m: bool(m["reason"]))
        running = [h for h, state in guest.lab.guests.where(guest.name).items() if state.startswith("running")]
        assert not running, "it stands still, and waits to learn where it is whole"
        guest.lab.wan.heal()
        guest.lab.set_wan(FAST)
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)
    assert_can_move_again(guest)


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
