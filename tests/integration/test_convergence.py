"""A guest that writes memory faster than the WAN carries it, under QEMU, and what the policy of its migration makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.integration.story import FAST, GUEST, HOMES, Guest, assert_ended, assert_holds, moving
from tests.lab import Lab, WanSettings

pytestmark = pytest.mark.lab

# Pages per second, about 20 MB/s: twice and more what the line carries.
BUSY = replace(GUEST, rate=5000)
LINE = WanSettings(rate=60, rtt=10)


@pytest.fixture
def busy(lab: Lab, guest: Guest) -> Iterator[Guest]:
    """A guest of its own, alone on the machine."""
    lab.guests.stop(guest.name)
    busy = Guest(lab, "busy")
    lab.guests.start(busy.name, HOMES[0], BUSY)
    yield busy
    lab.set_wan(FAST)
    lab.guests.stop(busy.name)


def test_it_is_paused_while_the_rest_is_copied_and_arrives_whole(busy: Guest) -> None:
    with moving(busy, LINE, "--on-no-convergence=pause") as move:
        paused = move.wait_for("copying_memory", when=lambda m: m["progress"]["paused"] and m["reason"], seconds=120)
        assert "does not converge" in paused["reason"]
        assert "stands still" in paused["reason"]
        ended = move.end(120)
    assert move.exit_code == 0, move.stderr
    assert ended["state"] == "completed"
    assert ended["progress"]["paused"]
    # 24 MiB take three seconds on this line.
    assert ended["summary"]["downtime_ms"] > 1000
    assert_holds(move, at=move.destination)


def test_it_is_cancelled_and_goes_on_at_the_source(busy: Guest) -> None:
    with moving(busy, LINE, "--on-no-convergence=cancel") as move:
        move.end(120)
    assert move.exit_code == 11, move.stderr
    assert_ended(move, "cancelled", cause="^memory does not converge: the guest writes .* MiB of it per second")
    assert_holds(move, at=move.source)


def test_it_is_throttled_and_says_so(busy: Guest) -> None:
    with moving(busy, LINE, "--on-no-convergence=throttle") as move:
        move.wait_for("copying_memory", when=lambda m: m["progress"]["throttle"] >= 20, seconds=120)
        busy.lab.set_wan(FAST)
        move.end(120)
    assert move.exit_code == 0, move.stderr
    assert_holds(move, at=move.destination)
