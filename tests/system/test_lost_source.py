"""A source host loses power in the switch-over: the VM has left it, and it does not know. It is told, before the VM runs elsewhere."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable

import pytest

from agent.hypervisor.base import Presence
from agent.source import SourceMove
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.migration.states import State
from landbridge.errors import Conflict
from landbridge.v1.agent_pb2 import Stage
from landbridge.v1.types_pb2 import VmState
from tests.system.sites import SiteUnderTest, TwoSites, eventually, losing_power_at_the_release

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096

# Have a migration come so far that the destination has the VM, and the source host goes down before it has written that down: the
# migration and the VM.
Lose = Callable[[], Awaitable[tuple[str, str]]]


@pytest.fixture
def lose(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> Lose:
    """The fault. What the host does after it is undone: it was set to start the VM, which had been written to its disk before."""

    async def begin() -> tuple[str, str]:
        vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        with losing_power_at_the_release(monkeypatch) as went_down:
            id_ = await two.fra.operator.migrate("web-01", "ams")
            await eventually(went_down.is_set)
            await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
            await two.fra.agent.stop()
        two.fra.hypervisor.set_autostart(vm, True)
        two.fra.hypervisor.asked.clear()
        assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
        return id_, vm

    return begin


def events(site: SiteUnderTest, id_: str) -> list[Recorded]:
    """What the site's audit log says of a migration."""
    log = Still(Directory(site.directory / "gw-1-audit"))
    return [entry for _, entry in last(log, 1000) if entry.text("migration") == id_]


async def completed(two: TwoSites, id_: str, vm: str) -> None:
    """It runs at the destination, and what is at the source is what any migration leaves."""
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY
    left = two.fra.hypervisor.vm(vm)
    assert (left.state, left.moved_by, left.autostart) == (VmState.VM_STATE_MOVED, id_, False)


async def test_what_it_has_left_is_marked_and_can_be_settled(two: TwoSites, lose: Lose) -> None:
    id_, vm = await lose()
    await two.fra.agent.start()
    await completed(two, id_, vm)
    assert [entry.event.name for entry in events(two.fra, id_)].count("migration.left") == 1
    assert len((await two.fra.operator.settle(id_)).removed) == 2
    assert two.fra.is_clean(vm)


async def test_the_vm_comes_back_as_after_any_migration(two: TwoSites, lose: Lose) -> None:
    id_, vm = await lose()
    await two.fra.agent.start()
    await completed(two, id_, vm)
    back = await two.ams.operator.migrate("web-01", "fra")
    ended = await two.ams.operator.ended(back)
    assert State(ended.state) is State.COMPLETED, ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert not two.fra.hypervisor.vm(vm).moved_by


async def test_a_gateway_that_comes_back_while_the_host_is_down_tells_it(two: TwoSites, lose: Lose) -> None:
    two.fra.patience = two.fra.patience.model_copy(update={"agent": 0.2})
    await two.fra.gateway.restart()
    id_, vm = await lose()
    await two.fra.operator.hears(id_, "until it answers, it is not known whether the VM runs there")
    await two.fra.gateway.restart()
    assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
    await two.fra.agent.start()
    await completed(two, id_, vm)


async def test_a_gateway_that_takes_over_while_the_host_is_down_tells_it(two: TwoSites, lose: Lose) -> None:
    await two.fra.second_gateway.start()
    id_, vm = await lose()
    await two.fra.gateway.stop()
    await two.fra.agent.start()
    ended = await two.fra.second_operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    assert two.fra.hypervisor.vm(vm).moved_by == id_


async def test_it_is_told_again_until_it_has_done_it_and_the_vm_stands_still_meanwhile(
    two: TwoSites, lose: Lose
) -> None:
    id_, vm = await lose()
    two.fra.hypervisor.fail_next("mark_moved", "the moon is full")
    held = two.fra.hypervisor.hold_next("set_autostart")
    await two.fra.agent.start()
    await eventually(lambda: "set_autostart" in two.fra.hypervisor.asked)
    assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
    held.set()
    await completed(two, id_, vm)


async def test_an_agent_that_ends_in_between_marks_it_in_its_next_run(two: TwoSites, lose: Lose) -> None:
    id_, vm = await lose()
    held = two.fra.hypervisor.hold_next("mark_moved")
    await two.fra.agent.start()
    await eventually(lambda: "mark_moved" in two.fra.hypervisor.asked)
    restarting = asyncio.create_task(two.fra.agent.restart())
    await asyncio.wait({restarting}, timeout=0.2)
    held.set()
    await restarting
    await completed(two, id_, vm)


async def test_a_vm_that_somebody_starts_there_before_the_destination_was_heard_runs_there_alone(
    two: TwoSites, lose: Lose
) -> None:
    id_, vm = await lose()
    await two.ams.gateway.stop()
    await two.fra.agent.start()
    await two.fra.operator.hears(id_, "the VM is off at the source, and waits paused if it has arrived there")
    two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    await two.ams.gateway.start()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "somebody has started web-01 on host fra-1 meanwhile, and it stays there" in ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert not two.fra.hypervisor.vm(vm).moved_by
    await eventually(lambda: two.ams.is_clean(vm))


async def test_a_vm_that_persons_let_run_at_both_sites_is_left_alone_with_an_alarm(two: TwoSites, lose: Lose) -> None:
    id_, vm = await lose()
    for site in (two.ams, two.fra):
        site.hypervisor.set_presence(vm, Presence.RUNNING)
    await two.fra.agent.start()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "somebody has let web-01 run on host ams-1 of site ams, and host fra-1 has it too" in ended.reason
    assert "shut off the one that is not wanted" in ended.reason
    assert [site.hypervisor.presence(vm) for site in (two.fra, two.ams)] == [Presence.RUNNING] * 2
    alarm = next(entry for entry in events(two.fra, id_) if entry.event.name == "migration.doubled")
    assert alarm.text("reason") in ended.reason


async def test_what_somebody_has_started_after_the_move_is_not_settled_until_it_is_shut_off(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await completed_as_ever(two, id_, vm)
    two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    with pytest.raises(Conflict, match="somebody has started web-01 on host fra-1, after it had moved to host ams-1"):
        await two.fra.operator.settle(id_)
    assert [site.hypervisor.presence(vm) for site in (two.fra, two.ams)] == [Presence.RUNNING] * 2
    assert "migration.doubled" in {entry.event.name for entry in events(two.fra, id_)}
    two.fra.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    assert len((await two.fra.operator.settle(id_)).removed) == 2
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_a_release_that_was_told_and_never_written_down_can_be_settled(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, mark = SourceMove.advance, SourceMove._mark_moved

    def without_record(self: SourceMove, stage: Stage.ValueType, error: str = "") -> None:
        if stage == Stage.STAGE_RELEASED:
            self.record.stage = stage
            self.changed()
        else:
            advance(self, stage, error)

    async def never(_: SourceMove) -> None:
        pass

    monkeypatch.setattr(SourceMove, "advance", without_record)
    monkeypatch.setattr(SourceMove, "_mark_moved", never)
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    await two.fra.agent.stop()
    monkeypatch.setattr(SourceMove, "advance", advance)
    monkeypatch.setattr(SourceMove, "_mark_moved", mark)
    await two.fra.agent.start()
    assert len((await two.fra.operator.settle(id_)).removed) == 2
    assert two.fra.is_clean(vm)


async def completed_as_ever(two: TwoSites, id_: str, vm: str) -> None:
    """It is completed, and what it left is marked."""
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    await eventually(lambda: two.fra.hypervisor.vm(vm).moved_by == id_)


async def installed_anew(two: TwoSites, *, keeps_vm: bool, vm: str) -> None:
    """The host comes back without what its agent knew, and with the VM's definition and disk or without."""
    shutil.rmtree(two.fra.directory / "state")
    if not keeps_vm:
        two.fra.hypervisor.undefine(vm)
        two.fra.hypervisor.images.clear()
    await two.fra.agent.start()


@pytest.mark.parametrize("keeps_vm", [False, True])
async def test_a_host_that_was_installed_anew_does_not_cost_the_vm_that_has_arrived(
    two: TwoSites, lose: Lose, keeps_vm: bool
) -> None:
    id_, vm = await lose()
    await installed_anew(two, keeps_vm=keeps_vm, vm=vm)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY
    if keeps_vm:
        left = two.fra.hypervisor.vm(vm)
        assert (left.state, left.moved_by, left.autostart) == (VmState.VM_STATE_MOVED, id_, False)


async def test_a_vm_that_runs_on_a_host_that_has_lost_its_records_stays_there(two: TwoSites, lose: Lose) -> None:
    id_, vm = await lose()
    two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    await installed_anew(two, keeps_vm=True, vm=vm)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: two.ams.is_clean(vm))
