"""gateway/migration/policy.py"""

from __future__ import annotations

import pytest

from gateway.migration.policy import check, complete
from landbridge.errors import UsageError
from landbridge.v1.types_pb2 import NonConvergence, Policy, Severity

CANCEL = NonConvergence.NON_CONVERGENCE_CANCEL


def test_what_is_left_open_is_filled_in() -> None:
    assert complete(Policy()) == Policy(max_downtime_ms=300, on_no_convergence=NonConvergence.NON_CONVERGENCE_WAIT)


def test_what_is_asked_for_stays() -> None:
    wanted = Policy(max_downtime_ms=1500, on_no_convergence=CANCEL, deadline_ms=60_000)
    assert complete(wanted) == wanted


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Policy(max_downtime_ms=9), "10 to 60000 ms"),
        (Policy(max_downtime_ms=60_001), "10 to 60000 ms"),
        (Policy(deadline_ms=1000), "pause or cancel"),
        (Policy(deadline_ms=1000, on_no_convergence=NonConvergence.NON_CONVERGENCE_THROTTLE), "pause or cancel"),
        (Policy(deadline_ms=0, on_no_convergence=CANCEL), "more than nothing"),
        (Policy(deadline_ms=2**40, on_no_convergence=CANCEL), "at most 30 days"),
        (Policy(on_no_convergence=NonConvergence.ValueType(99)), "does not know"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(wanted: Policy, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        complete(wanted)


def test_post_copy_is_refused_by_preflight_and_nothing_else_is() -> None:
    for act in NonConvergence.values():
        found = check(Policy(on_no_convergence=act))
        if act == NonConvergence.NON_CONVERGENCE_POSTCOPY:
            assert [(f.code, f.severity) for f in found] == [("postcopy-unsafe", Severity.SEVERITY_ERROR)]
        else:
            assert not found
