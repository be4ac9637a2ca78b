"""agent/convergence.py"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from agent.convergence import EAGER_DOWNTIME_MS, WINDOW_MS, Act, Sample, Steering, add_eta, judge
from landbridge.v1.types_pb2 import NonConvergence, Policy, Progress

MIB = 2**20
RATE = 10 * MIB
DOWNTIME_MS = 300
INTERVAL_MS = 500
LONG = 2 * WINDOW_MS


def steady(dirty_rate: int, *, iteration: int = 2, until: int = LONG) -> list[Sample]:
    """One long pass at 10 MiB/s, looked at twice a second."""
    return [Sample(at, iteration, 500 * MIB, RATE, dirty_rate) for at in range(0, until + 1, INTERVAL_MS)]


def passes(rests: Iterable[int], *, dirty_rate: int = RATE // 2) -> list[Sample]:
    """Passes of a second each, with so much left at the beginning of each."""
    samples = []
    for number, rest in enumerate(rests):
        for half in (0, 1):
            at = (2 * number + half) * INTERVAL_MS
            samples.append(Sample(at, 2 + number, rest // (1 + half), RATE, dirty_rate))
    return samples


def test_a_guest_that_writes_less_than_is_sent_converges() -> None:
    assert judge(steady(RATE // 2), DOWNTIME_MS) is True


@pytest.mark.parametrize("dirty_rate", [RATE, 2 * RATE])
def test_a_guest_that_writes_as_fast_as_is_sent_does_not(dirty_rate: int) -> None:
    assert judge(steady(dirty_rate), DOWNTIME_MS) is False


def test_nothing_is_known_before_the_window_is_full() -> None:
    assert judge([], DOWNTIME_MS) is None
    assert judge(steady(2 * RATE, until=WINDOW_MS - INTERVAL_MS), DOWNTIME_MS) is None
    assert judge(steady(2 * RATE, until=WINDOW_MS), DOWNTIME_MS) is False


def test_the_first_pass_tells_nothing() -> None:
    assert judge(steady(0, iteration=1), DOWNTIME_MS) is None


def test_a_burst_shorter_than_the_window_is_forgiven() -> None:
    calm = steady(RATE // 4)
    burst = [Sample(s.at_ms, s.iteration, s.remaining, s.rate, 2 * RATE) for s in calm[-4:]]
    assert judge(calm[:-4] + burst, DOWNTIME_MS) is True


def test_passes_that_leave_as_much_as_the_ones_before_do_not_converge() -> None:
    assert judge(passes([8 * MIB] * 12), DOWNTIME_MS) is False


def test_passes_that_leave_less_each_time_converge() -> None:
    assert judge(passes([(64 >> number // 2) * MIB for number in range(12)]), DOWNTIME_MS) is True


def test_long_passes_are_compared_as_well_as_short_ones() -> None:
    # The guest writes all of its 24 MiB anew in each pass of 4 s, and a little slower than it is sent.
    samples = [
        Sample(at, 2 + at // 4000, (24 - 6 * (at % 4000) // 1000) * MIB, RATE, RATE - MIB)
        for at in range(0, 20_001, 500)
    ]
    assert judge(samples[:24], DOWNTIME_MS) is True
    assert judge(samples, DOWNTIME_MS) is False


def test_a_pass_that_had_begun_before_is_not_compared() -> None:
    seen_late = [MIB, *((64 >> number // 2) * MIB for number in range(12))]
    assert judge(passes(seen_late), DOWNTIME_MS) is True


def test_a_rest_that_fits_into_the_downtime_needs_not_shrink() -> None:
    assert judge(passes([2 * MIB] * 12), DOWNTIME_MS) is True
    assert judge(passes([2 * MIB] * 12), DOWNTIME_MS // 3) is False


def progress(at_ms: int, *, dirty_rate: int = 2 * RATE, memory: int = 500 * MIB) -> Progress:
    return Progress(
        elapsed_ms=at_ms,
        memory_total=memory,
        memory_remaining=memory,
        iteration=2,
        rate=RATE,
        memory_rate=RATE,
        dirty_rate=dirty_rate,
    )


def policy(act: NonConvergence.ValueType, deadline_ms: int | None = None) -> Policy:
    return Policy(max_downtime_ms=DOWNTIME_MS, on_no_convergence=act, deadline_ms=deadline_ms)


WAIT, THROTTLE = NonConvergence.NON_CONVERGENCE_WAIT, NonConvergence.NON_CONVERGENCE_THROTTLE
PAUSE, CANCEL = NonConvergence.NON_CONVERGENCE_PAUSE, NonConvergence.NON_CONVERGENCE_CANCEL


@pytest.mark.parametrize(("wanted", "act"), [(PAUSE, Act.PAUSE), (CANCEL, Act.CANCEL), (WAIT, None), (THROTTLE, None)])
def test_the_policy_is_acted_on_once(wanted: NonConvergence.ValueType, act: Act | None) -> None:
    steering = Steering(policy(wanted))

    acts = [steering.look(progress(at), heard=True) for at in range(0, LONG, INTERVAL_MS)]

    assert [a for a in acts if a] == ([act] if act else [])
    if act:
        assert acts.index(act) == WINDOW_MS // INTERVAL_MS
        assert steering.reason == (
            "memory does not converge: the guest writes 20.0 MiB of it per second, and 10.0 MiB is sent"
        )


def test_progress_says_whether_it_converges_once_that_is_known() -> None:
    steering = Steering(policy(WAIT))
    looks = [progress(at) for at in range(0, LONG, INTERVAL_MS)]
    for look in looks:
        steering.look(look, heard=True)
    assert not looks[0].HasField("converges")
    assert looks[-1].HasField("converges")
    assert not looks[-1].converges


def test_a_short_downtime_is_tried_for_two_passes_before_all_of_it_is_granted() -> None:
    steering = Steering(policy(WAIT))
    granted = [steering.downtime_ms]
    for at, iteration in enumerate([1, 2, 3, 4, 5]):
        look = progress(at * INTERVAL_MS)
        look.iteration = iteration
        steering.look(look, heard=True)
        granted.append(steering.downtime_ms)
    assert granted == [EAGER_DOWNTIME_MS] * 4 + [DOWNTIME_MS] * 2


def test_no_more_is_tried_for_than_is_allowed() -> None:
    assert Steering(Policy(max_downtime_ms=30)).downtime_ms == 30


def test_an_outage_is_no_fault_of_the_guests() -> None:
    steering = Steering(policy(PAUSE))
    for at in range(0, WINDOW_MS, INTERVAL_MS):
        assert steering.look(progress(at), heard=True) is None
    assert steering.look(progress(WINDOW_MS), heard=False) is None

    acts = [steering.look(progress(WINDOW_MS + at), heard=True) for at in range(0, WINDOW_MS, INTERVAL_MS)]

    assert not any(acts)


def test_at_the_deadline_the_policy_is_acted_on_whatever_the_memory_does() -> None:
    steering = Steering(policy(CANCEL, 5000))
    assert steering.look(progress(4999, dirty_rate=0), heard=True) is None
    assert steering.look(progress(5000, dirty_rate=0), heard=True) is Act.CANCEL
    assert steering.reason == "the memory was not over within 5 s, the deadline of the migration"


def test_a_guest_does_not_stand_still_for_disks_or_for_an_outage_but_the_migration_is_cancelled() -> None:
    disks = Progress(elapsed_ms=6000, disk_total=MIB, disk_remaining=MIB)

    pausing = Steering(policy(PAUSE, 5000))
    assert pausing.look(disks, heard=True) is None
    assert pausing.look(progress(6500), heard=False) is None
    assert pausing.look(progress(7000), heard=True) is Act.PAUSE

    assert Steering(policy(CANCEL, 5000)).look(disks, heard=True) is Act.CANCEL


def test_the_time_left_is_that_of_the_disks_and_of_what_is_gained_on_the_memory() -> None:
    made = Progress(disk_remaining=RATE, memory_remaining=9 * RATE, rate=RATE, memory_rate=4 * RATE, dirty_rate=RATE)
    add_eta(made)
    assert made.eta_ms == 4000


def test_there_is_no_time_left_to_tell_where_memory_does_not_converge() -> None:
    for made in (progress(0), Progress(memory_remaining=RATE), progress(0, dirty_rate=0)):
        made.converges = False
        made.eta_ms = 1
        add_eta(made)
        assert not made.HasField("eta_ms")
