"""Which gateway is taken for gone, and when: by the counters of the others and one's own clock, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.migration.succession import BEAT, EXPIRED, ROUND, Pulse


def looking(pulse: Pulse, beats: dict[str, int], start: float, seconds: float) -> float:
    """Look once a second; the time of the last look."""
    times = [start + number for number in range(int(seconds) + 1)]
    for now in times:
        pulse.look(beats, now)
    return times[-1]


def test_who_does_not_beat_any_more_is_gone_after_ten_seconds_of_looking() -> None:
    pulse = Pulse(10.0)
    now = looking(pulse, {"gw-1": 7}, 100.0, 9)
    assert not pulse.is_gone("gw-1")
    pulse.look({"gw-1": 7}, now + 1)
    assert pulse.is_gone("gw-1")
    assert pulse.beat("gw-1") == 7


def test_who_has_left_or_never_came_is_gone_at_once() -> None:
    pulse = Pulse(10.0)
    pulse.look({"gw-1": 1}, 0.0)
    assert pulse.is_gone("gw-2")
    assert pulse.beat("gw-2") == 0
    pulse.look({}, 1.0)
    assert pulse.is_gone("gw-1")


def test_one_beat_makes_it_live_again() -> None:
    pulse = Pulse(10.0)
    now = looking(pulse, {"gw-1": 7}, 0.0, 20)
    assert pulse.is_gone("gw-1")
    pulse.look({"gw-1": 8}, now + 1)
    assert not pulse.is_gone("gw-1")
    assert pulse.beat("gw-1") == 8


def test_who_was_stopped_itself_does_not_take_the_others_for_gone() -> None:
    pulse = Pulse(10.0)
    now = looking(pulse, {"gw-1": 7}, 0.0, 3)
    pulse.look({"gw-1": 7}, now + 40)
    assert not pulse.is_gone("gw-1")
    looking(pulse, {"gw-1": 7}, now + 41, 10)
    assert pulse.is_gone("gw-1")


@given(st.lists(st.floats(min_value=0.1, max_value=30.0), max_size=40))
def test_who_beats_between_any_two_looks_is_never_gone(pauses: list[float]) -> None:
    pulse, now = Pulse(EXPIRED), 0.0
    for beat, pause in enumerate(pauses):
        pulse.look({"gw-1": beat}, now)
        assert not pulse.is_gone("gw-1")
        now += pause


def test_a_gateway_may_miss_some_beats() -> None:
    assert pytest.approx(5) == EXPIRED / BEAT
    assert ROUND <= BEAT
