"""A gateway or an agent ends and comes back in the middle of a migration: nothing is forgotten, and nothing runs twice."""

from __future__ import annotations

import asyncio

import pytest

from agent.hypervisor.base import Presence
from gateway.migration.incoming import Incoming
from gateway.migration.states import State
from landbridge.errors import Unreachable
from landbridge.v1.types_pb2 import Migration
from tests.system.sites import TwoSites, eventually

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
# Bytes per second: with CRAWL nothing gets anywhere, with WALK a move takes some seconds.
CRAWL, WALK = 50_000, 400_000
GATEWAYS = ["fra.gateway", "ams.gateway"]
AGENTS = ["fra.agent", "ams.agent"]
PROGRAMS = [*GATEWAYS, *AGENTS]


async def restart(two: TwoSites, program: str) -> None:
    site, kind = program.split(".")
    await getattr(getattr(two, site), kind).restart()


async def failed(two: TwoSites, id_: str, vm: str) -> Migration:
    """The migration ends failed, the VM runs at the source, and nothing is at the destination."""
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: two.ams.is_clean(vm))
    await eventually(lambda: not list(two.fra.runtime.iterdir()))
    assert State((await two.ams.operator.ended(id_)).state) is State.FAILED
    return ended


async def completed(two: TwoSites, id_: str, vm: str) -> None:
    """The migration completes, and the VM runs at the destination only."""
    ended = await two.fra.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY
    assert State((await two.ams.operator.ended(id_)).state) is State.COMPLETED


@pytest.mark.parametrize("state", [State.COPYING_DISKS, State.COPYING_MEMORY])
@pytest.mark.parametrize("program", GATEWAYS)
async def test_a_gateway_that_comes_back_carries_on_what_is_copied(two: TwoSites, program: str, state: State) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = WALK
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, state)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await restart(two, program)
    await completed(two, id_, vm)
    assert two.ams.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}


@pytest.mark.parametrize("program", AGENTS)
async def test_an_agent_that_ends_while_disks_are_copied_ends_the_migration(two: TwoSites, program: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await restart(two, program)
    await failed(two, id_, vm)
    # And it is in nobody's way.
    two.fra.hypervisor.rate = 0
    await completed(two, await two.fra.operator.migrate("web-01", "ams"), vm)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_while_the_destination_prepares_the_migration_goes_on_or_fails_clean(two: TwoSites, program: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    held = two.ams.hypervisor.hold_next("create_disks")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await eventually(lambda: "create_disks" in two.ams.hypervisor.asked)
    restarting = asyncio.create_task(restart(two, program))
    await asyncio.wait({restarting}, timeout=0.2)
    held.set()
    await restarting
    ended = await two.fra.operator.ended(id_)
    if State(ended.state) is State.COMPLETED:
        await completed(two, id_, vm)
    else:
        await failed(two, id_, vm)


async def test_while_the_guest_stands_still_it_goes_on_at_the_source_if_its_agent_ends(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    held = two.ams.hypervisor.hold_next("arrive")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.SWITCHING)
    restarting = asyncio.create_task(restart(two, "fra.agent"))
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.RUNNING)
    held.set()
    await restarting
    await failed(two, id_, vm)


@pytest.mark.parametrize("program", GATEWAYS)
async def test_while_the_guest_stands_still_a_gateway_that_comes_back_brings_it_over(
    two: TwoSites, program: str
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    held = two.ams.hypervisor.hold_next("arrive")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.SWITCHING)
    await restart(two, program)
    assert two.fra.hypervisor.presence(vm) is Presence.PAUSED
    held.set()
    await completed(two, id_, vm)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_once_the_source_has_released_the_vm_it_is_activated_whoever_comes_back(
    two: TwoSites, program: str
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.ams.hypervisor.fail_next("resume")
    held = two.ams.hypervisor.hold_next("resume")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in two.ams.hypervisor.asked)
    restarting = asyncio.create_task(restart(two, program))
    await asyncio.wait({restarting}, timeout=0.2)
    held.set()
    await restarting
    await completed(two, id_, vm)


async def test_a_cancel_that_was_recorded_is_carried_out_by_the_next_run_of_the_gateway(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = CRAWL
    held = two.fra.hypervisor.hold_next("abort")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.fra.operator.cancel(id_)
    await two.fra.operator.until(id_, State.RESOLVING)
    await two.fra.gateway.restart()
    held.set()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.CANCELLED
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: two.ams.is_clean(vm))


@pytest.mark.parametrize("program", PROGRAMS)
async def test_what_has_completed_stays_completed_and_can_be_settled(two: TwoSites, program: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await completed(two, id_, vm)
    await restart(two, program)
    await completed(two, id_, vm)
    settled = await two.fra.operator.settle(id_)
    assert len(settled.removed) == 2
    assert two.fra.is_clean(vm)


async def test_a_vm_that_has_come_back_is_not_marked_as_moved_when_its_agent_starts_again(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    await completed(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    back = await two.ams.operator.migrate("web-01", "fra")
    assert State((await two.ams.operator.ended(back)).state) is State.COMPLETED
    two.fra.hypervisor.asked.clear()
    await two.fra.agent.restart()
    await two.fra.operator.sites()
    assert "mark_moved" not in two.fra.hypervisor.asked
    assert not two.fra.hypervisor.vm(vm).moved_by


async def test_while_the_destinations_gateway_is_away_an_activation_waits_and_says_so(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    held = two.ams.hypervisor.hold_next("resume")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in two.ams.hypervisor.asked)
    await two.ams.gateway.stop()
    waiting = await two.fra.operator.hears(id_, "the VM waits there, paused, and runs nowhere else")
    assert State(waiting.state) is State.ACTIVATING
    held.set()
    await two.ams.gateway.start()
    await completed(two, id_, vm)


async def test_a_destination_that_has_forgotten_the_migration_does_not_make_its_vm_lost(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    two.ams.hypervisor.fail_next("resume")
    held = two.ams.hypervisor.hold_next("resume")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in two.ams.hypervisor.asked)
    await two.ams.gateway.stop()
    for file in two.ams.directory.glob("gateway.db*"):
        file.unlink()
    held.set()
    await two.ams.gateway.start()
    waiting = await two.fra.operator.hears(id_, "it is not known there whether the VM waits, paused")
    assert State(waiting.state) is State.ACTIVATING
    assert two.ams.hypervisor.presence(vm) in {Presence.ARRIVED, Presence.PAUSED}
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)


async def test_an_end_that_the_other_site_did_not_hear_of_is_told_when_it_is_back(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await completed(two, id_, vm)
    await two.ams.gateway.stop()
    await two.fra.operator.settle(id_)
    await two.ams.gateway.start()

    async def has_heard() -> bool:
        return State((await two.ams.operator.migration(id_)).state) is State.SETTLED

    await eventually(has_heard)


async def test_a_vm_may_go_back_at_once_though_nobody_heard_of_the_end_of_its_way_here(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[State] = []

    async def lose(_: Incoming, migration: Migration, site: str) -> None:
        lost.append(State(migration.state))
        raise Unreachable(f"what site {site} reports is lost")

    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with monkeypatch.context() as patched:
        patched.setattr(Incoming, "report", lose)
        there = await two.fra.operator.migrate("web-01", "ams")
        assert State((await two.fra.operator.ended(there)).state) is State.COMPLETED
        await eventually(lambda: State.COMPLETED in lost)
        assert State((await two.ams.operator.migration(there)).state) is State.PREPARING
        refused = await two.ams.operator.preflight("web-01", "fra")
        assert [finding.code for finding in refused.findings if finding.code == "already-migrating"]
    # Long before the report is repeated.
    back = await two.ams.operator.ended(await two.ams.operator.migrate("web-01", "fra"))
    assert (State(back.state), back.reason) == (State.COMPLETED, "")
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert State((await two.ams.operator.migration(there)).state) is State.COMPLETED


@pytest.mark.parametrize(("method", "state"), [("resume", "ACTIVATING"), ("destroy", "CLEANING")])
async def test_a_migration_to_a_site_that_has_left_the_configuration_is_not_forgotten(
    two: TwoSites, method: str, state: str
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    held = two.ams.hypervisor.hold_next(method)
    if state == "CLEANING":
        two.fra.hypervisor.fail_next("move")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State[state])
    await two.fra.gateway.stop()
    held.set()
    two.fra.joined = False
    await two.fra.gateway.start()
    await two.fra.operator.hears(id_, "not joined with a site 'ams'")
    two.fra.joined = True
    await two.fra.gateway.restart()
    await (completed if state == "ACTIVATING" else failed)(two, id_, vm)
