"""What is learned of a way from acknowledgements."""

from __future__ import annotations

import pytest

from landbridge.estimator import LARGEST_SEGMENT, LOSS_DELAY, MENDING, SMALLEST_SEGMENT, Estimator
from landbridge.frame import HEADER, RECORD


def test_the_loss_delay_is_the_round_trip_and_four_deviations_or_three_round_trips_within_its_bounds() -> None:
    estimator = Estimator()
    assert estimator.loss_delay == 1.0
    estimator.on_round_trip(0.4)
    assert estimator.loss_delay == pytest.approx(0.4 + 4 * 0.2)
    estimator.on_round_trip(0.8)
    assert estimator.loss_delay == pytest.approx(0.45 + 4 * 0.25)  # which is more than three round trips
    for _ in range(100):
        estimator.on_round_trip(0.6)
    assert estimator.loss_delay == pytest.approx(MENDING * 0.6, rel=1e-3)
    for _ in range(100):
        estimator.on_round_trip(0.001)
    assert estimator.loss_delay == LOSS_DELAY[0]
    estimator.on_round_trip(600.0)
    assert estimator.loss_delay == LOSS_DELAY[1]


def test_one_sample_of_a_way_that_has_become_slower_is_enough_to_wait_for_it() -> None:
    estimator = Estimator()
    for _ in range(100):
        estimator.on_round_trip(0.02)
    estimator.on_round_trip(1.0)
    assert estimator.loss_delay > 1.0


def test_segments_grow_and_shrink_with_the_rate_at_which_bytes_are_delivered() -> None:
    estimator = Estimator()
    assert estimator.segment == SMALLEST_SEGMENT
    for step in range(20):
        estimator.on_delivered(step * 2_000_000, step / 10)
    assert estimator.rate == pytest.approx(20e6)
    assert estimator.segment == 6 * RECORD - HEADER.size  # whole records of TLS, in 100,000 bytes
    for step in range(20, 40):
        estimator.on_delivered(step * 20_000_000, step / 10)
    assert estimator.segment == LARGEST_SEGMENT
    for step in range(40, 60):
        estimator.on_delivered(800_000_000 + (step - 40) * 1000, step / 10)
    assert estimator.segment == SMALLEST_SEGMENT


def test_a_pause_is_not_taken_for_a_slow_way() -> None:
    estimator = Estimator()
    for step in range(20):
        estimator.on_delivered(step * 2_000_000, step / 10)
    rate = estimator.rate
    estimator.on_delivered(38_000_001, 60.0)
    assert estimator.rate == rate
