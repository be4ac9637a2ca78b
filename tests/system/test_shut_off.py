"""A VM that is shut off moves, and runs nowhere on the way; whatever goes wrong, it is shut off at one side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from agent.destination import DestinationMove
from agent.hypervisor.base import Presence, VmChange, VmEvent
from agent.journal import Instance
from gateway.migration.states import State
from landbridge.errors import PreflightFailed
from landbridge.v1.agent_pb2 import Stage
from landbridge.v1.types_pb2 import Migration, VmState
from tests.system.sites import SiteUnderTest, TwoSites, eventually

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 1024
# Bytes per second: with CRAWL nothing gets anywhere, with WALK a move takes a second or two.
CRAWL, WALK = 50_000, 600_000
GATEWAYS = ["fra.gateway", "ams.gateway"]
AGENTS = ["fra.agent", "ams.agent"]


@pytest.fixture
def vm(two: TwoSites) -> str:
    """A VM that is shut off, and would start with its host."""
    uuid = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.set_presence(uuid, Presence.SHUT_OFF)
    two.fra.hypervisor.set_autostart(uuid, True)
    return uuid


@pytest.fixture(autouse=True)
def never_ran(two: TwoSites) -> Iterator[list[VmEvent]]:
    """What was let run. A test that lets something run itself clears it."""
    ran: list[VmEvent] = []

    def note(event: VmEvent) -> None:
        if event.change is VmChange.RESUMED:
            ran.append(event)

    for site in (two.fra, two.ams):
        site.hypervisor.subscribe(note)
    yield ran
    assert not ran


async def restart(two: TwoSites, program: str) -> None:
    site, kind = program.split(".")
    await getattr(getattr(two, site), kind).restart()


async def moving(two: TwoSites, vm: str, rate: int = CRAWL) -> str:
    """A migration whose disk is being copied."""
    two.fra.hypervisor.rate = rate
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    assert two.fra.hypervisor.presence(vm) is Presence.PAUSED
    return id_


async def stayed(two: TwoSites, id_: str, vm: str, state: State = State.FAILED) -> Migration:
    """It ended without a move: shut off at the source as before, and nothing at the destination."""
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is state, ended.reason
    assert ended.reason
    assert ended.cold
    assert two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF
    there = two.fra.hypervisor.vm(vm)
    assert (there.state, there.autostart) == (VmState.VM_STATE_SHUT_OFF, True)
    await eventually(lambda: two.ams.is_clean(vm))
    await eventually(lambda: not list(two.fra.runtime.iterdir()))
    return ended


async def moved(two: TwoSites, id_: str, vm: str) -> Migration:
    """It is shut off at the destination, whole, and what is left at the source is marked."""
    ended = await two.fra.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    assert ended.cold
    assert ended.summary.downtime_ms == 0
    assert two.ams.hypervisor.presence(vm) is Presence.SHUT_OFF
    assert two.ams.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}
    there = two.ams.hypervisor.vm(vm)
    assert (there.state, there.autostart, there.persistent) == (VmState.VM_STATE_SHUT_OFF, True, True)
    await eventually(lambda: two.fra.hypervisor.vm(vm).state == VmState.VM_STATE_MOVED)
    assert not two.fra.hypervisor.vm(vm).autostart
    await eventually(lambda: not [*two.fra.runtime.iterdir(), *two.ams.runtime.iterdir()])
    assert State((await two.ams.operator.ended(id_)).state) is State.COMPLETED
    return ended


def journal(site: SiteUnderTest, id_: str, **changes: Any) -> dict[str, Any]:
    """What the site's agent remembers, changed to what a killed one would."""
    (path,) = site.directory.rglob(f"{id_}.json")
    record: dict[str, Any] = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(record))
    return record


async def test_it_moves_and_is_shut_off_there(two: TwoSites, vm: str) -> None:
    found = await two.fra.operator.preflight("web-01", "ams")
    assert found.passed
    assert found.estimate.cold
    assert not found.estimate.HasField("downtime_ms")
    ended = await moved(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    assert (await two.ams.operator.migration(ended.id)).cold
    assert {"measure", "resume"}.isdisjoint(two.fra.hypervisor.asked | two.ams.hypervisor.asked)
    assert len((await two.fra.operator.settle(ended.id)).removed) == 2
    assert two.fra.is_clean(vm)


async def test_it_comes_back_as_it_went(two: TwoSites, vm: str) -> None:
    await moved(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    id_ = await two.ams.operator.migrate("web-01", "fra")
    ended = await two.ams.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    assert two.fra.hypervisor.vm(vm).state == VmState.VM_STATE_SHUT_OFF
    assert two.fra.hypervisor.images["/pools/images/web-01.qcow2"] == DISK


async def test_it_goes_the_way_of_any_other(two: TwoSites, vm: str) -> None:
    """The firewall at the destination holds it to what was approved, too."""
    two.fra.hypervisor.forge = lambda xml: xml.replace("<vcpu>1<", "<vcpu>2<")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert "vcpu" in (await stayed(two, id_, vm)).reason


async def test_one_with_its_memory_saved_is_refused(two: TwoSites, vm: str) -> None:
    two.fra.hypervisor.save_memory(vm)
    with pytest.raises(PreflightFailed, match="start it, or discard what was saved"):
        await two.fra.operator.migrate("web-01", "ams")
    assert "start_paused" not in two.fra.hypervisor.asked


async def test_cancelled_while_its_disk_is_copied_it_is_as_before(two: TwoSites, vm: str) -> None:
    id_ = await moving(two, vm)
    await two.fra.operator.cancel(id_)
    ended = await stayed(two, id_, vm, State.CANCELLED)
    assert ended.reason == "cancelled by spiffe://landbridge.test/site/fra/operator/alice"
    two.fra.hypervisor.rate = 0
    await moved(two, await two.fra.operator.migrate("web-01", "ams"), vm)


async def test_where_the_destination_cannot_prepare_it_is_not_even_started(two: TwoSites, vm: str) -> None:
    two.ams.hypervisor.fail_next("create_disks", "no space")
    ended = await stayed(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    assert "no space" in ended.reason
    assert "start_paused" not in two.fra.hypervisor.asked


@pytest.mark.parametrize("method", ["start_paused", "move"])
async def test_where_the_source_cannot_begin_it_is_as_before(two: TwoSites, vm: str, method: str) -> None:
    two.fra.hypervisor.fail_next(method, "no memory")
    assert "no memory" in (await stayed(two, await two.fra.operator.migrate("web-01", "ams"), vm)).reason


@pytest.mark.parametrize("program", AGENTS)
async def test_an_agent_that_ends_while_its_disk_is_copied_leaves_it_as_before(
    two: TwoSites, vm: str, program: str
) -> None:
    id_ = await moving(two, vm)
    await restart(two, program)
    await stayed(two, id_, vm)
    two.fra.hypervisor.rate = 0
    await moved(two, await two.fra.operator.migrate("web-01", "ams"), vm)


@pytest.mark.parametrize("program", GATEWAYS)
async def test_a_gateway_that_comes_back_carries_on(two: TwoSites, vm: str, program: str) -> None:
    id_ = await moving(two, vm, WALK)
    await restart(two, program)
    await moved(two, id_, vm)


@pytest.mark.parametrize("program", ["fra.gateway", "fra.agent"])
async def test_while_the_destination_prepares_it_is_shut_off_at_one_side(two: TwoSites, vm: str, program: str) -> None:
    held = two.ams.hypervisor.hold_next("create_disks")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await eventually(lambda: "create_disks" in two.ams.hypervisor.asked)
    restarting = asyncio.create_task(restart(two, program))
    await asyncio.wait({restarting}, timeout=0.2)
    held.set()
    await restarting
    ended = await two.fra.operator.ended(id_)
    await (moved if State(ended.state) is State.COMPLETED else stayed)(two, id_, vm)


async def test_a_gateway_that_comes_back_as_it_was_just_started_goes_on(two: TwoSites, vm: str) -> None:
    held = two.fra.hypervisor.hold_next("move")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await eventually(lambda: "move" in two.fra.hypervisor.asked)
    await two.fra.gateway.restart()
    held.set()
    await moved(two, id_, vm)


@pytest.mark.parametrize("program", ["fra.gateway", "ams.agent"])
async def test_once_it_is_released_it_is_shut_off_there_whoever_comes_back(
    two: TwoSites, vm: str, program: str
) -> None:
    two.ams.hypervisor.fail_next("end_paused")
    held = two.ams.hypervisor.hold_next("end_paused")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "end_paused" in two.ams.hypervisor.asked)
    restarting = asyncio.create_task(restart(two, program))
    await asyncio.wait({restarting}, timeout=0.2)
    held.set()
    await restarting
    await moved(two, id_, vm)


@pytest.mark.parametrize("stage", [Stage.STAGE_PREPARED, Stage.STAGE_ARRIVED])
async def test_one_that_was_shut_off_there_before_it_was_noted_is_not_taken_for_lost(
    two: TwoSites, vm: str, stage: Stage.ValueType
) -> None:
    two.ams.hypervisor.fail_next("end_paused")
    held = two.ams.hypervisor.hold_next("end_paused")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "end_paused" in two.ams.hypervisor.asked)
    held.set()
    await two.ams.agent.stop()
    two.ams.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    journal(two.ams, id_, stage=int(stage))
    await two.ams.agent.start()
    await moved(two, id_, vm)


async def test_what_a_killed_agent_left_standing_is_ended_by_the_next_run(two: TwoSites, vm: str) -> None:
    id_ = await moving(two, vm)
    await two.fra.gateway.stop()
    await two.fra.agent.stop()
    two.fra.hypervisor.set_presence(vm, Presence.PAUSED)
    record = journal(two.fra, id_, stage=int(Stage.STAGE_COPYING_DISKS), instance=Instance.MOVING, autostart=True)
    assert record["cold"]
    await two.fra.agent.start()
    await two.fra.gateway.start()
    await stayed(two, id_, vm)
    assert journal(two.fra, id_)["instance"] == Instance.NONE


async def test_what_a_failed_move_could_not_end_is_ended_later(two: TwoSites, vm: str) -> None:
    id_ = await moving(two, vm)
    two.fra.hypervisor.fail_next("end_paused", "not now")
    await two.fra.agent.restart()
    await stayed(two, id_, vm)


async def test_killed_before_it_was_started_it_is_as_before(two: TwoSites, vm: str) -> None:
    id_ = await moving(two, vm)
    await two.fra.gateway.stop()
    await two.fra.agent.stop()
    assert two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF
    journal(two.fra, id_, stage=int(Stage.STAGE_COPYING_DISKS), instance=Instance.STARTED, autostart=True)
    two.fra.hypervisor.set_autostart(vm, False)
    await two.fra.agent.start()
    await two.fra.gateway.start()
    await stayed(two, id_, vm)


async def test_found_shut_off_after_its_move_began_it_stays_if_nothing_of_it_arrived(two: TwoSites, vm: str) -> None:
    id_ = await moving(two, vm)
    await two.fra.gateway.stop()
    await two.fra.agent.stop()
    journal(two.fra, id_, stage=int(Stage.STAGE_COPYING_DISKS), instance=Instance.MOVING, autostart=True)
    two.fra.hypervisor.set_autostart(vm, False)
    await two.fra.agent.start()
    await two.fra.gateway.start()
    await stayed(two, id_, vm)


async def test_one_that_somebody_starts_before_it_is_moved_stays_and_runs(two: TwoSites, vm: str) -> None:
    held = two.ams.hypervisor.hold_next("create_disks")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await eventually(lambda: "create_disks" in two.ams.hypervisor.asked)
    two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    held.set()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "is not shut off any more: ask for the migration again" in ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.fra.hypervisor.vm(vm).autostart
    await eventually(lambda: two.ams.is_clean(vm))


async def test_one_that_somebody_lets_run_on_the_way_stays_and_runs(
    two: TwoSites, vm: str, never_ran: list[VmEvent]
) -> None:
    id_ = await moving(two, vm)
    two.fra.hypervisor.resume(vm)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "somebody let web-01 run on host fra-1" in ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.fra.hypervisor.vm(vm).autostart
    await eventually(lambda: two.ams.is_clean(vm))
    assert [event.uuid for event in never_ran] == [vm]
    never_ran.clear()


async def test_an_agent_that_does_not_know_of_it_is_not_given_the_vm(
    two: TwoSites, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = DestinationMove.prepare

    async def forget(host: Any, request: Any) -> DestinationMove:
        request.cold = False
        return await prepare(host, request)

    monkeypatch.setattr(DestinationMove, "prepare", forget)
    ended = await stayed(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    assert "the agent of ams-1 is too old" in ended.reason
    assert "start_paused" not in two.fra.hypervisor.asked
