"""An operator cancels: in each phase the VM ends up on exactly one side, and the other side is clean."""

from __future__ import annotations

import pytest

from agent.hypervisor.base import Presence
from gateway.migration.states import State
from landbridge.errors import Conflict
from tests.system.sites import TwoSites, eventually

pytestmark = pytest.mark.timeout(20)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
# Bytes per second at which what is above takes longer than any test waits.
CRAWL = 50_000


async def cancelled(two: TwoSites, id_: str, vm: str) -> None:
    """The migration ends cancelled, the VM runs at the source, and nothing is at the destination."""
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.CANCELLED
    assert ended.reason == "cancelled by spiffe://landbridge.test/site/fra/operator/alice"
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.is_clean(vm)
    assert not list(two.fra.runtime.iterdir())
    there = await two.ams.operator.ended(id_)
    assert State(there.state) is State.CANCELLED


async def and_moves_after_all(two: TwoSites, vm: str) -> None:
    """A cancelled migration is in nobody's way."""
    two.fra.hypervisor.rate = 0
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_a_migration_cancelled_at_once_leaves_no_trace(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.cancel(id_)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.CANCELLED
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.is_clean(vm)


@pytest.mark.parametrize("method", ["localize", "image_paths", "create_disks"])
async def test_while_the_destination_prepares(two: TwoSites, method: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    held = two.ams.hypervisor.hold_next(method)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await eventually(lambda: method in two.ams.hypervisor.asked)
    answer = await two.fra.operator.cancel(id_)
    assert State(answer.state) is State.PREPARING
    held.set()
    await cancelled(two, id_, vm)
    await and_moves_after_all(two, vm)


async def test_while_disks_are_copied(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.fra.operator.cancel(id_)
    await cancelled(two, id_, vm)
    await and_moves_after_all(two, vm)


async def test_while_memory_is_copied(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=b"little", memory=MEMORY)
    two.fra.hypervisor.set_autostart(vm, True)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_MEMORY)
    await two.fra.operator.cancel(id_)
    await cancelled(two, id_, vm)
    assert two.fra.hypervisor.vm(vm).autostart
    await and_moves_after_all(two, vm)


async def test_not_while_the_guest_stands_still(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    held = two.ams.hypervisor.hold_next("arrive")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.SWITCHING)
    with pytest.raises(Conflict, match="switching and can no longer be cancelled"):
        await two.fra.operator.cancel(id_)
    held.set()
    ended = await two.fra.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_not_once_the_source_has_released_the_vm(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    held = two.ams.hypervisor.hold_next("resume")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    with pytest.raises(Conflict, match="activating and can no longer be cancelled"):
        await two.fra.operator.cancel(id_)
    held.set()
    ended = await two.fra.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


@pytest.mark.parametrize(("site", "method", "state"), [("fra", "abort", "RESOLVING"), ("ams", "destroy", "CLEANING")])
async def test_not_twice(two: TwoSites, site: str, method: str, state: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = CRAWL
    held = getattr(two, site).hypervisor.hold_next(method)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.fra.operator.cancel(id_)
    await two.fra.operator.until(id_, State[state])
    with pytest.raises(Conflict, match=f"{state.lower()} and can no longer be cancelled"):
        await two.fra.operator.cancel(id_)
    held.set()
    await cancelled(two, id_, vm)


async def test_a_cancel_that_comes_too_late_does_not_undo_the_move(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=b"little", memory=MEMORY)
    two.fra.hypervisor.rate = 4_000_000
    held = two.fra.hypervisor.hold_next("abort")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_MEMORY)
    await two.fra.operator.cancel(id_)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.ARRIVED)
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
    held.set()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    assert ended.reason.endswith("alice, but too late")
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_not_what_has_ended(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    with pytest.raises(Conflict, match="has ended already"):
        await two.fra.operator.cancel(id_)


async def test_not_at_the_destinations_gateway(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    with pytest.raises(Conflict, match="ask the gateway of site fra"):
        await two.ams.operator.cancel(id_)
