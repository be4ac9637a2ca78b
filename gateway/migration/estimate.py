"""What a migration will take, before it begins: time, bytes and downtime, each from the least to the most that is to be expected. Pure.

Memory is copied in passes, of which each sends what the guest has dirtied during the one before. With M bytes of memory, dirtied at D,
sent at R (both in bytes of the guest's memory per second), pass k sends M * (D / R) ** k. It ends when a pass fits into the downtime
that is allowed. If D / R is 1 or more, it does not end by itself: then there is a least, and no most.

Nothing is guessed without being said. The rate of the line is what the tunnel has measured while it was full, or else its limit, which
the line need not reach: then there is no most either. What is not known at all is missing in the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from landbridge.v1.types_pb2 import Estimate, Finding, Measurement, NonConvergence, Policy, RateSource, Severity, Vm

# A rate that was measured a while ago may have changed by so much.
RATE_SPREAD = 0.15
# QEMU samples 512 pages for each GiB: one that has changed stands for 2 MiB. What a guest writes in one second, it may write half as
# much again in another.
DIRTY_STEP = 2 << 20
DIRTY_SPREAD = 1.5
# Of how well a sample compresses.
RATIO_SPREAD = 0.15
# Of a share of sampled pages: standard errors, which with two leave out one case in twenty.
SHARE_ERRORS = 2
# What frames, acknowledgements and libvirt's calls add, and what a guest writes to its disks meanwhile.
FRAMING_SPREAD = 1.05
DISK_SPREAD = 1.1
# From the guest's stop to its start, beyond the last memory: at least, and at most, each with so many round trips (measured in the lab).
SWITCH_MS, SWITCH_TRIPS = (50, 800), (2, 4)
# Preparing both ends and ending it: at least, and at most.
OVERHEAD_MS = (500, 5000)
# A migration that takes more passes does not converge in practice.
MOST_PASSES = 100
# What QEMU writes for a page of zeros.
ZERO_RECORD = 9
PAGE = 4096


@dataclass(frozen=True)
class Facts:
    """All that the estimate is made from. Sizes in bytes, rates in bytes per second."""

    memory: int
    # Of the images that are copied.
    disks: int
    measurement: Measurement
    # Of the line, and how it is known; 0 if it is not.
    rate: int
    rate_source: RateSource.ValueType
    rtt_ms: int
    policy: Policy
    # Whether the tunnel compresses what it carries.
    is_compressed: bool = False
    # Whether the VM is shut off: all of its memory is zeros, and stays so.
    cold: bool = False


@dataclass(frozen=True)
class Case:
    """One set of assumptions."""

    # Of memory that is no zeros, and of disks.
    memory: float
    disks: float
    rate: float
    dirty_rate: float
    # Bytes of the stream for each byte on the line.
    ratio: float
    downtime_s: float


@dataclass(frozen=True)
class Copying:
    """What comes of a case."""

    seconds: float
    bytes_wan: float
    converges: bool


def copying(case: Case) -> Copying:
    """The copying of disks and memory; up to MOST_PASSES passes."""
    rate = case.rate * case.ratio
    rest, sent = case.memory, case.memory
    passes = 1
    share = case.dirty_rate / rate
    while rest > rate * case.downtime_s and passes < MOST_PASSES and share < 1:
        rest *= share
        sent += rest
        passes += 1
    is_over = share < 1 and rest <= rate * case.downtime_s
    return Copying((case.disks + sent) / rate, (case.disks + sent) / case.ratio, is_over)


def estimate(facts: Facts) -> Estimate:
    """The estimate; what cannot be said is left out."""
    measured = facts.measurement
    result = Estimate(rate=facts.rate, rate_source=facts.rate_source, measurement=measured, cold=facts.cold)
    if not facts.cold:
        result.downtime_ms.low = SWITCH_MS[0] + SWITCH_TRIPS[0] * facts.rtt_ms
    most = facts.policy.max_downtime_ms + SWITCH_MS[1] + SWITCH_TRIPS[1] * facts.rtt_ms
    best, worst = _cases(facts)
    if facts.rate == 0:
        result.bytes_wan.low = int((best.memory + best.disks) / best.ratio)
        return result
    low, high = copying(best), copying(worst)
    result.total_ms.low = OVERHEAD_MS[0] + int(low.seconds * 1000)
    result.bytes_wan.low = int(low.bytes_wan)
    if not low.converges:
        result.converges = False
    elif (
        high.converges
        and (facts.cold or measured.HasField("dirty_rate"))
        and facts.rate_source == RateSource.RATE_SOURCE_MEASURED
    ):
        result.converges = True
        result.total_ms.high = OVERHEAD_MS[1] + int(high.seconds * 1000)
        result.bytes_wan.high = int(high.bytes_wan * FRAMING_SPREAD)
    # Only a guest that converges is sure not to be paused for the rest, which may be all of its memory.
    pauses = facts.policy.on_no_convergence == NonConvergence.NON_CONVERGENCE_PAUSE
    if not facts.cold and (not pauses or result.converges):
        result.downtime_ms.high = most
    return result


def _cases(facts: Facts) -> tuple[Case, Case]:
    """What is best and what is worst for the migration, of all that is to be expected."""
    measured = facts.measurement
    zeros = (1.0 if facts.cold else 0.0, 1.0)
    ratios = (1.0, 1.0)
    step = 0 if facts.cold else DIRTY_STEP
    if measured.pages_sampled:
        share = measured.pages_zero / measured.pages_sampled
        # A page more of each kind than was found, so that what was not seen is not taken for impossible.
        likely = (measured.pages_zero + 1) / (measured.pages_sampled + 2)
        spread = SHARE_ERRORS * sqrt(likely * (1 - likely) / measured.pages_sampled)
        zeros = max(share - spread, 0.0), min(share + spread, 1.0)
        if facts.is_compressed and measured.bytes_compressed:
            ratio = measured.bytes_sampled / measured.bytes_compressed
            ratios = max(ratio * (1 - RATIO_SPREAD), 1.0), max(ratio * (1 + RATIO_SPREAD), 1.0)
    best = Case(
        memory=facts.memory * (1 - zeros[1]) + facts.memory * zeros[1] * ZERO_RECORD / PAGE,
        disks=facts.disks,
        rate=facts.rate * (1 + RATE_SPREAD if facts.rate_source == RateSource.RATE_SOURCE_MEASURED else 1),
        dirty_rate=max(min(measured.dirty_rate / DIRTY_SPREAD, measured.dirty_rate - step), 0),
        ratio=ratios[1],
        downtime_s=facts.policy.max_downtime_ms / 1000,
    )
    worst = replace(
        best,
        memory=facts.memory * (1 - zeros[0]) + facts.memory * zeros[0] * ZERO_RECORD / PAGE,
        disks=facts.disks * DISK_SPREAD,
        rate=facts.rate * (1 - RATE_SPREAD),
        dirty_rate=max(measured.dirty_rate * DIRTY_SPREAD, measured.dirty_rate + step),
        ratio=ratios[0],
    )
    return best, worst


def facts_of(vm: Vm) -> tuple[int, int]:
    """The memory of a VM, and the data in the images that are copied."""
    return vm.memory, sum(disk.allocation for disk in vm.disks if not disk.read_only)


def check(made: Estimate, vm: Vm, policy: Policy) -> list[Finding]:
    """What preflight says of it."""
    if not made.HasField("converges") or made.converges:
        return []
    waits = policy.on_no_convergence == NonConvergence.NON_CONVERGENCE_WAIT
    message = (
        f"{vm.name} writes about {_mib(made.measurement.dirty_rate)} of memory per second, and the line carries "
        f"{_mib(made.rate)}: its memory will hardly converge"
    )
    remedy = (
        "choose --on-no-convergence=pause, throttle or cancel"
        if waits
        else "nothing to do: the policy says what is done then"
    )
    severity = Severity.SEVERITY_WARNING if waits else Severity.SEVERITY_INFO
    return [Finding(code="does-not-converge", severity=severity, message=message, remedy=remedy)]


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
