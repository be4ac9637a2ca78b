"""Of every attack of `tests.attack`, a real libvirtd sees nothing, nothing is left, and a migration passes afterwards."""

from __future__ import annotations

import pytest

from tests.attack.arena import attack
from tests.attack.attacks import ATTACKS
from tests.integration.story import Guest, assert_holds, moving

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


def test_no_attack_reaches_libvirtd_and_each_is_told_and_logged(guest: Guest) -> None:
    report = attack(guest.lab)
    assert report.problems == []
    assert len(report.outcomes) > len(ATTACKS)
    with moving(guest) as move:
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)
