"""Who starts the VM when a host boots: always exactly one host, and never one that another may contradict."""

from __future__ import annotations

import pytest

from tests.integration.story import (
    FAST,
    SLOW_MEMORY,
    Guest,
    assert_ended,
    assert_holds,
    autostart,
    kill_and_restart,
    moving,
)
from tests.lab import WanSettings

pytestmark = pytest.mark.lab


def test_autostart_is_off_during_a_move_and_back_after_a_failed_one(guest: Guest) -> None:
    guest.node(guest.host).virsh("autostart", guest.name)
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        assert not autostart(guest, move.source)
        kill_and_restart(guest.lab, move.source)
        guest.lab.set_wan(FAST)
        move.end()
    assert_ended(move, "failed", cause="the agent on host .* was restarted")
    assert_holds(move, at=move.source)
    assert autostart(guest, move.source)


def test_autostart_goes_with_the_vm_and_is_off_at_the_kept_source(guest: Guest) -> None:
    guest.node(guest.host).virsh("autostart", guest.name)
    with moving(guest) as move:
        assert move.end()["state"] == "completed"
    assert_holds(move, at=move.destination)
    assert autostart(guest, move.destination)
    assert not autostart(guest, move.source)


def test_autostart_is_right_when_the_source_agent_is_killed_in_the_switch_over(guest: Guest) -> None:
    guest.node(guest.host).virsh("autostart", guest.name)
    with moving(guest, WanSettings(rate=400, rtt=100)) as move:
        move.wait_for("activating")
        kill_and_restart(guest.lab, move.source)
        guest.lab.set_wan(FAST)
        assert move.end()["state"] == "completed"
    assert_holds(move, at=move.destination)
    assert autostart(guest, move.destination)
    assert not autostart(guest, move.source)
