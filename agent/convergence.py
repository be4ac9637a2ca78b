"""Whether the copying of memory comes to an end, judged from the hypervisor's statistics, and what the policy makes of it. Pure.

Memory is copied in passes: each sends what the guest has written during the one before. That comes to an end if each pass is shorter
than the last one, until the rest fits into the downtime that is allowed. Two signs say that it does not, once it was looked at for 10 s:

    the guest writes as fast as memory is sent, or faster
    of the last passes, four or more, the later ones began with hardly less to send than the earlier ones: the guest writes the same
    pages again and again, and there are too many of them for the downtime

The rate that counts is that of the guest's memory (`Progress.memory_rate`): a page that travels as a few bytes is a page that is done.
While the other host is not heard, nothing is judged: an outage is no fault of the guest's.

The downtime that is allowed is granted late. The hypervisor switches over as soon as the rest fits into its limit, and where pages
travel as a few bytes, tens of megabytes fit into a third of a second. Another pass over them takes no longer, and leaves less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from landbridge.v1.types_pb2 import NonConvergence, Policy, Progress

# Long enough for several of the hypervisor's counts of dirty pages (each second at most) and for the bursts of a tunnel, and short
# against what a migration over a WAN takes.
WINDOW_MS = 10_000
# The first pass sends everything once: what the guest writes is known only from the second one on.
FIRST_TELLING_PASS = 2
# Passes whose rests are compared, at least; one that began before the first look does not count, since its whole rest was not seen.
COMPARED_PASSES = 4
# Of the downtime that is allowed, what has to do at first. On a line of 100 Mbit/s and 50 ms, a guest that wrote 5,000 pages per second
# stood still for 0.46 to 0.65 s with it and for 0.72 to 0.84 s without; with a half or a quarter of it, for as long.
EAGER_DOWNTIME_MS = 100
# The pass from which on all of it is granted, so that two were tried.
GRANTING_PASS = 4
# A rest that is not smaller than this share of an earlier one has not shrunk.
HARDLY = 0.9


@dataclass(frozen=True)
class Sample:
    """One look at the copying of memory, `at_ms` after the move began. Sizes in bytes, rates per second."""

    at_ms: int
    iteration: int
    remaining: int
    rate: int
    dirty_rate: int


def judge(samples: Sequence[Sample], max_downtime_ms: int) -> bool | None:
    """Whether memory converges; None while that is not known. Samples in the order of their time."""
    telling = [sample for sample in samples if sample.iteration >= FIRST_TELLING_PASS]
    if not telling or telling[-1].at_ms - telling[0].at_ms < WINDOW_MS:
        return None
    window = [sample for sample in telling if telling[-1].at_ms - sample.at_ms <= WINDOW_MS]
    rate = sum(sample.rate for sample in window) / len(window)
    if sum(sample.dirty_rate for sample in window) / len(window) >= rate:
        return False
    rests = list(_rests(telling).values())
    if len(rests) < COMPARED_PASSES:
        return True
    middle = len(rests) // 2
    before, after = max(rests[:middle]), max(rests[middle:])
    return after <= rate * max_downtime_ms / 1000 or after < HARDLY * before


def _rests(samples: Sequence[Sample]) -> dict[int, int]:
    """What was left at the beginning of each pass that began while it was looked, by its number."""
    rests: dict[int, int] = {}
    for sample in samples:
        if sample.iteration > samples[0].iteration:
            rests[sample.iteration] = max(rests.get(sample.iteration, 0), sample.remaining)
    return rests


def add_eta(progress: Progress) -> None:
    """Estimate the time to the switch-over from the present rates: what is left over what is gained per second."""
    progress.ClearField("eta_ms")
    if progress.rate == 0:
        return
    seconds = progress.disk_remaining / progress.rate
    if progress.memory_remaining:
        gained = (progress.memory_rate or progress.rate) - progress.dirty_rate
        if gained <= 0 or (progress.HasField("converges") and not progress.converges):
            return
        seconds += progress.memory_remaining / gained
    progress.eta_ms = int(seconds * 1000)


class Act(Enum):
    """What the policy asks for."""

    PAUSE = "let the guest stand still"
    CANCEL = "end the migration"


ACTS = {NonConvergence.NON_CONVERGENCE_PAUSE: Act.PAUSE, NonConvergence.NON_CONVERGENCE_CANCEL: Act.CANCEL}


class Steering:
    """What is done about one move, once. Fed with each look at it. To cancel is the coordinator's to do, who is told the reason."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._samples: deque[Sample] = deque()
        # What the hypervisor is to take for the longest downtime.
        self.downtime_ms = min(policy.max_downtime_ms, EAGER_DOWNTIME_MS)
        # Why the policy has acted; empty while it has not, or if what it asked for could not be done, to be tried again.
        self.reason = ""

    def look(self, progress: Progress, *, heard: bool) -> Act | None:
        """Complete a progress with whether it converges; returns what is to be done now, if anything.

        `elapsed_ms` must grow from look to look. `heard`: whether the other host is.
        """
        if not heard or progress.paused:
            self._samples.clear()
        elif progress.memory_total:
            self._add(progress)
        if progress.iteration >= GRANTING_PASS:
            self.downtime_ms = self._policy.max_downtime_ms
        verdict = judge(self._samples, self._policy.max_downtime_ms)
        if verdict is not None:
            progress.converges = verdict
        act = ACTS.get(self._policy.on_no_convergence)
        if act is None or self.reason:
            return None
        # A guest stands still only for memory that is on its way: not for disks, and not for an outage.
        may = act is Act.CANCEL or (progress.memory_total > 0 and heard)
        is_late = self._policy.HasField("deadline_ms") and progress.elapsed_ms >= self._policy.deadline_ms
        if not may or not (is_late or verdict is False):
            return None
        if verdict is False:
            self.reason = (
                f"memory does not converge: the guest writes {_mib(progress.dirty_rate)} of it per second, "
                f"and {_mib(progress.memory_rate)} is sent"
            )
        else:
            seconds = self._policy.deadline_ms / 1000
            self.reason = f"the memory was not over within {seconds:g} s, the deadline of the migration"
        return act

    def _add(self, progress: Progress) -> None:
        sample = Sample(
            progress.elapsed_ms,
            progress.iteration,
            progress.memory_remaining,
            progress.memory_rate,
            progress.dirty_rate,
        )
        self._samples.append(sample)
        # One that is older than the window stays, so that the window is seen to be full; and the passes that are compared do.
        while (
            len(self._samples) > 1
            and self._samples[1].at_ms <= sample.at_ms - WINDOW_MS
            and self._samples[1].iteration < sample.iteration - COMPARED_PASSES
        ):
            self._samples.popleft()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
