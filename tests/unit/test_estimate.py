"""gateway/migration/estimate.py"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.migration.estimate import Case, Facts, check, copying, estimate, facts_of
from landbridge.v1.types_pb2 import Measurement, NonConvergence, Policy, RateSource, Severity
from tests.unit.facts import disk, vm

MIB, GIB = 2**20, 2**30
MEASURED, LIMIT, UNKNOWN = (
    RateSource.RATE_SOURCE_MEASURED,
    RateSource.RATE_SOURCE_LIMIT,
    RateSource.RATE_SOURCE_UNKNOWN,
)
WAIT, PAUSE = NonConvergence.NON_CONVERGENCE_WAIT, NonConvergence.NON_CONVERGENCE_PAUSE
CASE = Case(memory=1000 * MIB, disks=500 * MIB, rate=100 * MIB, dirty_rate=50 * MIB, ratio=1.0, downtime_s=0.3)


def facts(**changes: object) -> Facts:
    known = Facts(
        memory=GIB,
        disks=0,
        measurement=Measurement(dirty_rate=MIB, pages_sampled=64, pages_zero=32),
        rate=100 * MIB,
        rate_source=MEASURED,
        rtt_ms=40,
        policy=Policy(max_downtime_ms=300, on_no_convergence=WAIT),
    )
    return replace(known, **changes)  # type: ignore[arg-type]  # the caller's keywords


def test_memory_is_sent_in_passes_each_shorter_by_what_the_guest_writes() -> None:
    made = copying(CASE)
    # 1000 + 500 + ... + 31.25 MiB, and at last 15.625 MiB, which fit into 300 ms; and 500 MiB of disks.
    assert made.bytes_wan == pytest.approx((500 + 1984.375) * MIB)
    assert made.seconds == pytest.approx(24.84375)
    assert made.converges


def test_memory_that_is_written_as_fast_as_it_is_sent_does_not_converge() -> None:
    assert not copying(replace(CASE, dirty_rate=CASE.rate)).converges


def test_compression_makes_the_line_faster_for_the_guest() -> None:
    made = copying(replace(CASE, ratio=2.0, dirty_rate=0.0))
    assert (made.seconds, made.bytes_wan) == (7.5, 750 * MIB)
    assert copying(replace(CASE, dirty_rate=CASE.rate, ratio=2.0)).converges


positive = st.floats(1, 1e12)
cases = st.builds(
    Case,
    memory=positive,
    disks=st.floats(0, 1e12),
    rate=positive,
    dirty_rate=st.floats(0, 1e12),
    ratio=st.floats(1, 10),
    downtime_s=st.floats(0.01, 60),
)


@given(cases, st.floats(1, 10))
def test_it_never_takes_longer_over_a_faster_line_nor_shorter_with_more_to_send(case: Case, factor: float) -> None:
    now = copying(case)
    if not now.converges:
        return
    slack = 1 + 1e-9
    for easier in (
        replace(case, rate=case.rate * factor),
        replace(case, dirty_rate=case.dirty_rate / factor),
        replace(case, memory=case.memory / factor),
        replace(case, disks=case.disks / factor),
        replace(case, downtime_s=case.downtime_s * factor),
        replace(case, ratio=case.ratio * factor),
    ):
        made = copying(easier)
        assert made.converges
        assert made.seconds <= now.seconds * slack
        assert made.bytes_wan <= now.bytes_wan * slack


@given(
    st.integers(MIB, 64 * GIB),
    st.integers(0, GIB),
    st.integers(1, 10 * GIB),
    st.integers(0, 64),
    st.sampled_from([MEASURED, LIMIT]),
)
def test_the_most_is_never_less_than_the_least(
    memory: int, dirty_rate: int, rate: int, zero: int, source: RateSource.ValueType
) -> None:
    measured = Measurement(dirty_rate=dirty_rate, pages_sampled=64, pages_zero=zero)
    made = estimate(facts(memory=memory, measurement=measured, rate=rate, rate_source=source))
    for found in (made.total_ms, made.bytes_wan, made.downtime_ms):
        assert not found.HasField("high") or found.low <= found.high


def test_a_calm_guest_over_a_measured_line_has_a_least_and_a_most() -> None:
    made = estimate(facts())
    assert made.converges
    # Half of the memory is zeros, give or take: 512 MiB in five seconds, and what comes on top.
    assert 2000 < made.total_ms.low < 5600 < made.total_ms.high < 20_000
    assert 300 * MIB < made.bytes_wan.low < 512 * MIB < made.bytes_wan.high < 900 * MIB
    assert (made.downtime_ms.low, made.downtime_ms.high) == (130, 1260)


def test_a_limit_only_says_how_long_it_takes_at_least() -> None:
    made = estimate(facts(rate_source=LIMIT))
    assert made.total_ms.low > 0
    assert not made.total_ms.HasField("high")
    assert not made.HasField("converges")


def test_without_a_rate_there_is_no_time_and_nothing_is_said_of_convergence() -> None:
    made = estimate(facts(rate=0, rate_source=UNKNOWN))
    assert not made.HasField("total_ms")
    assert not made.HasField("converges")
    assert made.bytes_wan.low > 0
    assert made.rate_source == UNKNOWN


def test_without_a_dirty_rate_there_is_no_most() -> None:
    made = estimate(facts(measurement=Measurement()))
    assert not made.total_ms.HasField("high")
    assert not made.HasField("converges")
    assert made.bytes_wan.low == pytest.approx(9 / 4096 * GIB, rel=1e-3)


def test_a_guest_that_writes_far_more_than_the_line_carries_does_not_converge_and_is_a_warning() -> None:
    wild = facts(measurement=Measurement(dirty_rate=400 * MIB))
    made = estimate(wild)
    assert made.HasField("converges")
    assert not made.converges
    assert not made.total_ms.HasField("high")

    (finding,) = check(made, vm(), wild.policy)
    assert (finding.code, finding.severity) == ("does-not-converge", Severity.SEVERITY_WARNING)
    assert "400.0 MiB" in finding.message
    (finding,) = check(made, vm(), Policy(on_no_convergence=PAUSE))
    assert finding.severity == Severity.SEVERITY_INFO
    assert not check(estimate(facts()), vm(), facts().policy)


def test_one_that_may_be_paused_has_no_longest_downtime_unless_it_converges() -> None:
    policy = Policy(max_downtime_ms=300, on_no_convergence=PAUSE)
    assert estimate(facts(policy=policy)).downtime_ms.HasField("high")
    wild = facts(policy=policy, measurement=Measurement(dirty_rate=400 * MIB))
    assert not estimate(wild).downtime_ms.HasField("high")


def test_only_a_tunnel_that_compresses_counts_with_that() -> None:
    measured = Measurement(dirty_rate=0, pages_sampled=64, pages_zero=0, bytes_sampled=4 * MIB, bytes_compressed=MIB)
    plain, coded = estimate(facts(measurement=measured)), estimate(facts(measurement=measured, is_compressed=True))
    assert coded.bytes_wan.high < plain.bytes_wan.low


def test_of_a_vm_its_memory_counts_and_the_data_of_what_is_copied() -> None:
    machine = vm()
    machine.disks.append(disk("vdb", read_only=True))
    assert facts_of(machine) == (2 * GIB, 5 * GIB)


@pytest.mark.parametrize("rate_source", [MEASURED, LIMIT])
def test_a_vm_that_is_shut_off_has_its_disks_to_send_and_no_downtime(rate_source: RateSource.ValueType) -> None:
    made = estimate(facts(disks=500 * MIB, measurement=Measurement(), cold=True, rate_source=rate_source))
    assert made.cold
    assert not made.HasField("downtime_ms")
    assert 500 * MIB <= made.bytes_wan.low < 510 * MIB
    assert made.total_ms.HasField("high") == (rate_source == MEASURED)
