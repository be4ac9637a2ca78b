"""A guest that writes memory faster than it is sent, and what the policy of its migration makes of that."""

from __future__ import annotations

import pytest

from agent.hypervisor.base import Presence
from gateway.migration.states import State
from landbridge.errors import PreflightFailed, UsageError
from landbridge.v1.types_pb2 import NonConvergence, Policy
from tests.system.sites import TwoSites, eventually

pytestmark = pytest.mark.timeout(20)

MEMORY = bytes(range(256)) * 1024
# Bytes per second: what is above takes a second or less.
RATE = 500_000
DEADLINE_MS = 1200

PAUSE, CANCEL = NonConvergence.NON_CONVERGENCE_PAUSE, NonConvergence.NON_CONVERGENCE_CANCEL


def busy_vm(two: TwoSites) -> str:
    """A VM whose memory never comes to an end while it runs."""
    two.fra.hypervisor.rate, two.fra.hypervisor.dirty_rate = RATE, 2 * RATE
    return two.fra.hypervisor.add_vm("web-01", disk=b"little", memory=MEMORY)


async def test_it_stands_still_from_the_deadline_on_and_arrives(two: TwoSites) -> None:
    vm = busy_vm(two)
    id_ = await two.fra.operator.migrate("web-01", "ams", Policy(on_no_convergence=PAUSE, deadline_ms=DEADLINE_MS))

    paused = await two.fra.operator.hears(id_, "stands still")
    ended = await two.fra.operator.ended(id_)

    assert State(paused.state) is State.COPYING_MEMORY
    assert paused.progress.paused
    assert paused.reason == (
        "the memory was not over within 1.2 s, the deadline of the migration; "
        "the guest stands still at fra until the rest is copied"
    )
    assert State(ended.state) is State.COMPLETED
    assert not ended.reason
    assert ended.policy.max_downtime_ms == 300
    # It stood still from the pause on, not from the switch-over.
    assert ended.summary.downtime_ms >= 400
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY


async def test_one_that_stands_still_can_be_cancelled_and_goes_on_at_the_source(two: TwoSites) -> None:
    vm = busy_vm(two)
    two.fra.hypervisor.rate = 20_000
    id_ = await two.fra.operator.migrate("web-01", "ams", Policy(on_no_convergence=PAUSE, deadline_ms=DEADLINE_MS))
    await two.fra.operator.hears(id_, "stands still")
    assert two.fra.hypervisor.presence(vm) is Presence.PAUSED

    await two.fra.operator.cancel(id_)

    assert State((await two.fra.operator.ended(id_)).state) is State.CANCELLED
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.is_clean(vm)


async def test_one_that_stands_still_goes_on_at_the_source_when_the_agent_was_restarted(two: TwoSites) -> None:
    vm = busy_vm(two)
    two.fra.hypervisor.rate = 20_000
    id_ = await two.fra.operator.migrate("web-01", "ams", Policy(on_no_convergence=PAUSE, deadline_ms=DEADLINE_MS))
    await two.fra.operator.hears(id_, "stands still")

    await two.fra.agent.restart()

    assert State((await two.fra.operator.ended(id_)).state) is State.FAILED
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.RUNNING)
    await eventually(lambda: two.ams.is_clean(vm))


async def test_a_pause_that_is_refused_is_tried_again(two: TwoSites) -> None:
    vm = busy_vm(two)
    two.fra.hypervisor.fail_next("pause")
    id_ = await two.fra.operator.migrate("web-01", "ams", Policy(on_no_convergence=PAUSE, deadline_ms=DEADLINE_MS))

    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_at_the_deadline_the_migration_is_cancelled_and_the_vm_never_stood_still(two: TwoSites) -> None:
    vm = busy_vm(two)
    id_ = await two.fra.operator.migrate("web-01", "ams", Policy(on_no_convergence=CANCEL, deadline_ms=DEADLINE_MS))

    ended = await two.fra.operator.ended(id_)

    assert State(ended.state) is State.CANCELLED
    assert ended.reason == "the memory was not over within 1.2 s, the deadline of the migration"
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert "pause" not in two.fra.hypervisor.asked
    await eventually(lambda: two.ams.is_clean(vm))


async def test_one_that_is_throttled_converges(two: TwoSites) -> None:
    vm = busy_vm(two)
    throttle = Policy(on_no_convergence=NonConvergence.NON_CONVERGENCE_THROTTLE)

    id_ = await two.fra.operator.migrate("web-01", "ams", throttle)

    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    # Not at first: see `agent.convergence`.
    assert two.fra.hypervisor.max_downtime(vm) == 300
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_post_copy_is_refused_with_nothing_touched(two: TwoSites) -> None:
    busy_vm(two)
    postcopy = Policy(on_no_convergence=NonConvergence.NON_CONVERGENCE_POSTCOPY)

    answer = await two.fra.operator.preflight("web-01", "ams", postcopy)

    assert not answer.passed
    assert [finding.code for finding in answer.findings] == ["postcopy-unsafe"]
    with pytest.raises(PreflightFailed, match="post-copy"):
        await two.fra.operator.migrate("web-01", "ams", postcopy)
    assert not await two.fra.operator.migrations()


async def test_a_policy_that_makes_no_sense_is_refused(two: TwoSites) -> None:
    busy_vm(two)
    with pytest.raises(UsageError, match="pause or cancel"):
        await two.fra.operator.migrate("web-01", "ams", Policy(deadline_ms=1000))
