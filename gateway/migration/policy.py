"""The policy of a migration: how long its guest may stand still, and what is done if that cannot be had. Pure.

The default for the downtime is QEMU's own, 300 ms. It bounds the sending of the last memory only. What comes on top over a WAN, the
switch with its round trips between the sites, was measured at 340 to 740 ms on a line of 40 ms (`make demo`): together about a second,
which TCP connections survive and the heartbeats of clusters mostly do. The agent tries for less at first, and grants all of it to a guest
that writes too much for that (`agent.convergence`); a longer one is the operator's to grant.

There is no post-copy. In it the guest runs at the destination before its memory is complete there, and the source cannot go on: while
that lasts, a WAN or a host that fails leaves the guest whole on neither side. That cannot be had with what is promised, that the source
goes on until everything has arrived unaltered (FINISH waits for that), so preflight refuses it.
"""

from __future__ import annotations

from landbridge.errors import UsageError
from landbridge.v1.types_pb2 import Finding, NonConvergence, Policy, Severity

DEFAULT_DOWNTIME_MS = 300
# Below the first, QEMU's measurement of its rate, 100 ms at a time, decides more than the limit; above the second, pause is meant.
SHORTEST_DOWNTIME_MS, LONGEST_DOWNTIME_MS = 10, 60_000
LONGEST_DEADLINE_MS = 30 * 24 * 3600 * 1000

_WITH_DEADLINE = frozenset({NonConvergence.NON_CONVERGENCE_PAUSE, NonConvergence.NON_CONVERGENCE_CANCEL})


def complete(wanted: Policy) -> Policy:
    """The policy with what it leaves open filled in. Raises UsageError for one that makes no sense."""
    policy = Policy()
    policy.CopyFrom(wanted)
    policy.max_downtime_ms = policy.max_downtime_ms or DEFAULT_DOWNTIME_MS
    policy.on_no_convergence = policy.on_no_convergence or NonConvergence.NON_CONVERGENCE_WAIT
    if not SHORTEST_DOWNTIME_MS <= policy.max_downtime_ms <= LONGEST_DOWNTIME_MS:
        raise UsageError(
            f"a downtime of at most {policy.max_downtime_ms} ms cannot be asked for: give {SHORTEST_DOWNTIME_MS} to "
            f"{LONGEST_DOWNTIME_MS} ms"
        )
    if policy.on_no_convergence not in NonConvergence.values():
        raise UsageError(
            "this gateway does not know what to do without convergence: update it, or choose something older"
        )
    if not policy.HasField("deadline_ms"):
        return policy
    if policy.on_no_convergence not in _WITH_DEADLINE:
        raise UsageError(
            "a deadline needs something to do when it is over: pause or cancel (wait never ends, and throttle begins by itself)"
        )
    if not 0 < policy.deadline_ms <= LONGEST_DEADLINE_MS:
        raise UsageError("a deadline is more than nothing and at most 30 days after the beginning")
    return policy


def check(policy: Policy) -> list[Finding]:
    """What preflight says of it."""
    if policy.on_no_convergence != NonConvergence.NON_CONVERGENCE_POSTCOPY:
        return []
    return [
        Finding(
            code="postcopy-unsafe",
            severity=Severity.SEVERITY_ERROR,
            message="in post-copy the guest runs at the destination before its memory is complete, so a failure on the way would "
            "leave it whole on neither side",
            remedy="choose pause or throttle",
        )
    ]
