"""What goes on beside a migration, which does not wait for it: the measuring of its guest, and the record of what was delivered."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agent import move
from agent.hypervisor import fake_wire
from agent.hypervisor.base import Presence
from gateway.migration import reports, survey
from gateway.migration.states import State
from landbridge.errors import Conflict
from tests.system.sites import TwoSites, eventually
from tests.system.test_audit import receipt, recorded

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
SLOW = 400_000


def hold_leaving(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have libvirt at the source hold its connection after FINISH until the event is set: so long it takes to put a VM away."""
    put_away, leave = threading.Event(), fake_wire.Caller.leave

    def leave_later(caller: fake_wire.Caller) -> None:
        put_away.wait(20)
        leave(caller)

    monkeypatch.setattr(fake_wire.Caller, "leave", leave_later)
    return put_away


def events(two: TwoSites, id_: str) -> list[str]:
    return [entry.event.name for entry in recorded(two.fra, id_)]


async def test_a_move_does_not_wait_until_its_guest_was_measured_and_shows_the_estimate_then(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = SLOW
    measured = two.fra.hypervisor.hold_next("measure")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    under_way = await two.fra.operator.until(id_, State.COPYING_DISKS)
    assert not under_way.HasField("estimate")
    measured.set()

    async def is_estimated() -> bool:
        return (await two.fra.operator.migration(id_)).HasField("estimate")

    await eventually(is_estimated)
    two.fra.hypervisor.hasten()
    ended = await two.fra.operator.ended(id_)
    assert ended.estimate.measurement.pages_sampled == 64
    assert (await two.ams.operator.ended(id_)).estimate == ended.estimate


async def test_an_estimate_that_comes_after_the_end_is_none(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "FACTS", 60.0)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    measured = two.fra.hypervisor.hold_next("measure")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(id_)
    measured.set()
    await eventually(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == f"estimate of {id_}"])
    assert State(ended.state) is State.COMPLETED
    assert not (await two.fra.operator.migration(id_)).HasField("estimate")


async def test_a_gateway_that_ends_while_the_guest_is_measured_goes_on_without_an_estimate(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = SLOW
    measured = two.fra.hypervisor.hold_next("measure")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await two.fra.gateway.restart()
    measured.set()
    two.fra.hypervisor.hasten()
    ended = await two.fra.operator.ended(id_)
    assert (State(ended.state), ended.HasField("estimate")) == (State.COMPLETED, False)
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_a_refusal_leaves_no_measuring_behind(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = SLOW
    id_ = await two.fra.operator.migrate("web-01", "ams")
    with pytest.raises(Conflict, match="under way"):
        await two.fra.operator.migrate("web-01", "ams")
    two.fra.hypervisor.hasten()
    await two.fra.operator.ended(id_)
    await eventually(
        lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith(("estimate", "measurement"))]
    )


async def test_a_migration_is_completed_before_libvirt_has_put_away_what_is_left(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "DELIVERY_PATIENCE", 30.0)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    put_away = hold_leaving(monkeypatch)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert events(two, id_)[-1] == "migration.completed"
    for site in (two.fra, two.ams):
        with pytest.raises(Conflict, match="ask again"):
            await site.operator.receipt(id_)
    put_away.set()
    made = await receipt(two.fra, id_)
    assert "migration.delivered" in events(two, id_)
    assert len(made.parts[0].entries) == len(events(two, id_))


async def test_what_was_delivered_is_recorded_by_the_next_run_of_a_gateway_that_ended_before(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "INTERVAL", 0.05)
    monkeypatch.setattr(move, "DELIVERY_PATIENCE", 30.0)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    put_away = hold_leaving(monkeypatch)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    await two.fra.gateway.stop()
    assert "migration.delivered" not in events(two, id_)
    put_away.set()
    await two.fra.gateway.start()
    await receipt(two.fra, id_)
    assert events(two, id_).count("migration.delivered") == 1
