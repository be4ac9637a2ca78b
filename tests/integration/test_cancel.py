"""The operator cancels: the guest goes on at the source, and both hosts are as before."""

from __future__ import annotations

import pytest

from tests.integration.story import (
    FAST,
    SLOW_DISK,
    SLOW_MEMORY,
    Guest,
    Move,
    assert_ended,
    assert_holds,
    assert_moves_again,
    moving,
)

pytestmark = pytest.mark.lab


def _cancel(move: Move) -> None:
    done = move.lab.landbridge(move.source_site, "cancel", move.id, "--json")
    assert done.returncode == 0, done.stderr
    move.end()
    assert move.exit_code == 11
    assert_ended(move, "cancelled", cause="^cancelled by spiffe://landbridge.test/site/.*/operator/alice$")
    assert_holds(move, at=move.source)


def test_cancelled_in_the_disk_phase_the_vm_goes_on_at_the_source_and_can_move_again(guest: Guest) -> None:
    with moving(guest, SLOW_DISK) as move:
        move.in_disk_phase()
        _cancel(move)
    guest.lab.set_wan(FAST)
    assert_moves_again(guest)


def test_cancelled_in_the_memory_phase_the_vm_goes_on_at_the_source_and_can_move_again(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        _cancel(move)
    assert_moves_again(guest)
