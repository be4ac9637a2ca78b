"""The destination's libvirtd, QEMU or storage fails: the guest goes on at the source, and the record says what it was."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.integration.story import (
    FAST,
    LONG,
    SHORT_LIMIT,
    SLOW_DISK,
    SLOW_MEMORY,
    Guest,
    assert_can_move_again,
    assert_ended,
    assert_holds,
    assert_moves_again,
    hanging,
    kill_libvirtd,
    kill_qemu,
    moving,
    with_short_limit,
)
from tests.lab import WanSettings, processes
from tests.lab.hosts import IMAGES

pytestmark = pytest.mark.lab

# So long a round trip that what is said last at the source has not come when it is known that it was said.
DISTANT = WanSettings(rate=400, rtt=400)


def test_a_killed_libvirtd_at_the_destination_leaves_the_vm_at_the_source(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        kill_libvirtd(guest.lab, move.destination)
        there = guest.node(move.destination)
        there.start_libvirtd()
        there.wait_for_libvirtd()
        guest.lab.set_wan(FAST)
        move.end()
    assert_ended(move, "failed", cause=f"libvirtd.*{move.destination}|{move.destination}.*libvirtd")
    assert_holds(move, at=move.source)
    assert_can_move_again(guest)


def test_a_killed_qemu_at_the_destination_leaves_the_vm_at_the_source(guest: Guest) -> None:
    with moving(guest, SLOW_MEMORY) as move:
        move.in_memory_phase()
        kill_qemu(guest, move.destination)
        move.end()
    assert_ended(move, "failed", cause="QEMU|ended")
    assert_holds(move, at=move.source)
    assert_moves_again(guest)


def test_a_qemu_that_ends_before_it_has_taken_in_the_last_of_memory_leaves_the_vm_at_the_source(guest: Guest) -> None:
    with moving(guest, DISTANT) as move:
        move.in_memory_phase()
        source = guest.node(move.source)
        processes.wait_until(
            lambda: "completed" in source.virsh("qemu-monitor-command", "--hmp", guest.name, "info migrate"),
            seconds=30,
            otherwise="QEMU at the source waits for the one at the destination",
        )
        kill_qemu(guest, move.destination)
        move.end()
    assert_ended(move, "failed", cause=f"QEMU ended on host {move.destination}")
    assert_holds(move, at=move.source)
    assert_moves_again(guest)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("program", ["QEMU", "libvirtd"])
def test_what_hangs_while_the_guest_stands_still_leaves_the_vm_at_the_source(
    guest: Guest, program: Literal["QEMU", "libvirtd"]
) -> None:
    with with_short_limit(guest), moving(guest, DISTANT) as move:
        move.wait_for("switching")
        with hanging(guest, move.destination, program):
            move.wait_for("resolving", "cleaning", "failed", seconds=SHORT_LIMIT + LONG)
        move.end(LONG)
    why = f"host {move.destination} is heard, and yet nothing has gone on for {SHORT_LIMIT:.0f} s"
    assert_ended(move, "failed", cause=why)
    assert_holds(move, at=move.source)
    guest.lab.guests.stop(guest.name)  # it may have lost its sockets in the switch-over: see `agent.relay.LOST_GRACE`


def test_a_full_storage_pool_at_the_destination_leaves_the_vm_at_the_source(guest: Guest) -> None:
    filler = f"{IMAGES}/filler"
    with moving(guest, SLOW_DISK) as move:
        there = guest.node(move.destination)
        try:
            move.in_disk_phase()
            there.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], check=False)
            move.end()
            assert_ended(move, "failed", cause=f"pool default on host {move.destination} is full")
        finally:
            there.run(["rm", "-f", filler])
    assert_holds(move, at=move.source)
    guest.lab.set_wan(FAST)
    assert_moves_again(guest)
