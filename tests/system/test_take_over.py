"""A site has two gateways: any of them answers for the site, and one takes over when the other does not come back."""

from __future__ import annotations

import asyncio

import pytest

from agent.hypervisor.base import Presence
from gateway.migration.states import State
from gateway.migration.succession import Succession
from gateway.store import Row, Store
from landbridge.errors import Conflict, TakenOver
from landbridge.v1.types_pb2 import Migration
from tests.system.sites import (
    DISK,
    MEMORY,
    TwoSites,
    coordinated_by,
    eventually,
    has_gone,
    take_over,
)

pytestmark = pytest.mark.timeout(30)

CRAWL = 50_000


@pytest.fixture
async def three(two: TwoSites) -> TwoSites:
    """Two sites, with a second gateway at the source."""
    await two.fra.second_gateway.start()
    return two


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Gateways, by name, that go no round: they show no life, look at nobody, and do all else."""
    names: set[str] = set()
    go_round = Succession.round

    async def round_unless_deaf(self: Succession, now: float) -> None:
        if self._store.gateway not in names:
            await go_round(self, now)

    monkeypatch.setattr(Succession, "round", round_unless_deaf)
    return names


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gateways whose savings the store has refused."""
    names: list[str] = []
    save = Store.save

    async def save_and_note(self: Store, row: Row) -> None:
        try:
            await save(self, row)
        except TakenOver:
            names.append(self.gateway)
            raise

    monkeypatch.setattr(Store, "save", save_and_note)
    return names


async def ended(two: TwoSites, id_: str, state: State) -> Migration:
    """The migration as the second gateway tells that it ended; the other site tells the same."""
    told = await two.fra.second_operator.ended(id_)
    assert State(told.state) is state, told.reason
    assert State((await two.ams.operator.ended(id_)).state) is state
    return told


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_while_disks_are_copied_the_other_gateway_brings_it_to_an_end(
    three: TwoSites, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    id_, vm = await take_over(three, monkeypatch, how)
    await ended(three, id_, State.COMPLETED)
    assert three.ams.hypervisor.memory(vm) == MEMORY


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_vm_that_the_source_has_released_is_activated_by_the_other_gateway(
    three: TwoSites, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    vm = three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    three.ams.hypervisor.fail_next("resume")
    held = three.ams.hypervisor.hold_next("resume")
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await three.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in three.ams.hypervisor.asked)
    await has_gone(three.fra, monkeypatch, how)
    held.set()
    await ended(three, id_, State.COMPLETED)
    assert three.fra.hypervisor.presence(vm) is Presence.SHUT_OFF
    assert three.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert three.ams.hypervisor.memory(vm) == MEMORY


async def test_a_gateway_that_was_taken_for_dead_and_wakes_up_is_refused_by_the_store_and_stops(
    three: TwoSites, deaf: set[str], refused: list[str]
) -> None:
    vm = three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    held = three.ams.hypervisor.hold_next("resume")
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await three.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in three.ams.hypervisor.asked)
    deaf.add("gw-1")
    await coordinated_by(three.fra, id_, "gw-2")
    # Both of them have asked for the activation now, and both hear that the VM runs.
    held.set()
    told = await ended(three, id_, State.COMPLETED)
    await eventually(lambda: "gw-1" in refused)
    assert "gw-2" not in refused
    assert three.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert three.fra.hypervisor.presence(vm) is Presence.SHUT_OFF
    # What it was about to say is forgotten: it tells what the other one has written.
    assert (await three.fra.operator.ended(id_)).ended_at == told.ended_at
    await coordinated_by(three.fra, id_, "gw-2")


async def test_a_gateway_that_finds_its_migration_taken_over_stops_running_it(three: TwoSites, deaf: set[str]) -> None:
    three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    three.fra.hypervisor.rate = CRAWL
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await three.fra.operator.until(id_, State.COPYING_DISKS)

    def runs() -> int:
        return sum(task.get_name() == f"migration {id_}" for task in asyncio.all_tasks())

    deaf.add("gw-1")
    await eventually(lambda: runs() == 2)
    deaf.clear()
    await eventually(lambda: runs() == 1)
    await coordinated_by(three.fra, id_, "gw-2")
    # Its channels have been there all the time, and the migration has not noticed.
    assert State((await three.fra.operator.migration(id_)).state) is State.COPYING_DISKS


async def test_each_gateway_tells_of_the_migrations_of_the_other(three: TwoSites) -> None:
    vm = three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    three.fra.hypervisor.rate = 10 * CRAWL
    id_ = await three.fra.operator.migrate("web-01", "ams")
    assert (await three.fra.second_operator.migration(id_)).vm_uuid == vm

    async def shows_progress() -> bool:
        progress = (await three.fra.second_operator.migration(id_)).progress
        return 0 < progress.disk_remaining < len(DISK)

    await eventually(shows_progress)
    await ended(three, id_, State.COMPLETED)
    assert [each.id for each in await three.fra.second_operator.migrations()] == [id_]


async def test_a_cancel_that_one_gateway_hears_is_carried_out_by_the_other(three: TwoSites) -> None:
    vm = three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    three.fra.hypervisor.rate = CRAWL
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await three.fra.operator.until(id_, State.COPYING_DISKS)
    await three.fra.second_operator.cancel(id_)
    told = await ended(three, id_, State.CANCELLED)
    assert "operator/alice" in told.reason
    assert three.fra.hypervisor.presence(vm) is Presence.RUNNING
    await coordinated_by(three.fra, id_, "gw-1")
    with pytest.raises(Conflict, match="has ended already"):
        await three.fra.second_operator.cancel(id_)


async def test_a_cancel_whose_gateway_dies_before_it_hears_of_it_is_carried_out_all_the_same(
    three: TwoSites, deaf: set[str]
) -> None:
    three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    three.fra.hypervisor.rate = CRAWL
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await three.fra.operator.until(id_, State.COPYING_DISKS)
    deaf.add("gw-1")
    await three.fra.second_operator.cancel(id_)
    await three.fra.gateway.stop()
    told = await three.fra.second_operator.ended(id_)
    assert State(told.state) is State.CANCELLED


async def test_what_one_gateway_has_moved_the_other_settles(three: TwoSites) -> None:
    vm = three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await three.fra.operator.migrate("web-01", "ams")
    await ended(three, id_, State.COMPLETED)
    assert len((await three.fra.second_operator.settle(id_)).removed) == 2
    assert three.fra.is_clean(vm)
    assert (await three.fra.operator.settle(id_)).removed == []


async def test_of_two_gateways_that_are_asked_to_move_one_vm_one_does(three: TwoSites) -> None:
    three.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    operators = (three.fra.operator, three.fra.second_operator)
    answers = await asyncio.gather(
        *(operator.migrate("web-01", "ams") for operator in operators), return_exceptions=True
    )
    [id_] = [answer for answer in answers if isinstance(answer, str)]
    assert [type(answer) for answer in answers if not isinstance(answer, str)] == [Conflict]
    assert [each.id for each in await three.fra.operator.migrations()] == [id_]
    await three.fra.operator.ended(id_)


async def test_the_destination_is_asked_at_its_other_gateway_when_one_is_gone(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.ams.hypervisor.fail_next("resume")
    held = two.ams.hypervisor.hold_next("resume")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.ACTIVATING)
    await eventually(lambda: "resume" in two.ams.hypervisor.asked)
    await two.ams.second_gateway.start()
    await two.ams.gateway.stop()
    held.set()
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert State((await two.ams.second_operator.ended(id_)).state) is State.COMPLETED
