"""A guest that stands still in vain, and what else takes long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

import agent.traffic
from agent import standstill
from agent.standstill import Standstill


@dataclass
class Traffic:
    moved_bytes: int = 0
    outage_limit: float = 900.0
    silence: float | None = None

    def silent(self, _now: float) -> float | None:
        return self.silence


def looks(traffic: Traffic) -> Standstill:
    return Standstill(cast("agent.traffic.Traffic", traffic))


def test_it_is_in_vain_once_nothing_has_gone_on_for_the_limit() -> None:
    guest = looks(Traffic())
    assert not guest.is_in_vain(10_000.0, stands_still=True)
    assert not guest.is_in_vain(10_000.0 + standstill.LIMIT, stands_still=True)
    assert guest.is_in_vain(10_000.5 + standstill.LIMIT, stands_still=True)


@pytest.mark.parametrize("what", ["a byte", "silence", "it runs"])
def test_all_else_begins_anew(what: str) -> None:
    traffic = Traffic()
    guest = looks(traffic)
    guest.is_in_vain(0.0, stands_still=True)
    traffic.moved_bytes = int(what == "a byte")
    traffic.silence = 6.0 if what == "silence" else None
    assert not guest.is_in_vain(standstill.LIMIT + 1, stands_still=what != "it runs")
    traffic.silence = None
    assert not guest.is_in_vain(2 * standstill.LIMIT + 1, stands_still=True)
    assert guest.is_in_vain(2 * standstill.LIMIT + 2, stands_still=True)


def test_a_shorter_limit_for_outages_holds_as_well() -> None:
    guest = looks(Traffic(outage_limit=8.0))
    guest.is_in_vain(0.0, stands_still=True)
    assert guest.limit == 8.0
    assert guest.is_in_vain(8.5, stands_still=True)
