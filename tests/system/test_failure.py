"""Something goes wrong: the migration says what, the VM goes on at the source, and the destination is clean."""

from __future__ import annotations

import pytest

import agent.source
from agent.hypervisor.base import Presence
from certs.living import LivingIdentity
from gateway.migration import incoming
from gateway.migration.states import State
from gateway.remote import AgentRemote
from landbridge.errors import Unreachable
from landbridge.v1.agent_pb2 import CancelRequest
from landbridge.v1.types_pb2 import Migration
from tests.system.sites import TwoSites, eventually

pytestmark = pytest.mark.timeout(20)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
CRAWL = 50_000


async def failed(two: TwoSites, id_: str, vm: str) -> Migration:
    """The migration ends failed, the VM runs at the source, and nothing is at the destination."""
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: two.ams.is_clean(vm))
    await eventually(lambda: not list(two.fra.runtime.iterdir()))
    return ended


@pytest.mark.parametrize("method", ["image_paths", "localize", "create_disks", "land", "arrive"])
async def test_the_destinations_hypervisor_refuses(two: TwoSites, method: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.ams.hypervisor.fail_next(method, "the moon is full")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await failed(two, id_, vm)
    assert "the moon is full" in ended.reason


async def test_a_move_that_ends_while_no_gateway_answers_is_told_to_the_destination_by_its_channels(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_away(*_: object) -> None:
        raise Unreachable("the host does not answer")

    monkeypatch.setattr(agent.source, "ABORT_PATIENCE", 0.2)
    # Else the coordinator would tell it.
    monkeypatch.setattr(incoming.Incoming, "cancel", is_away)
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.fra.gateway.stop()
    source = AgentRemote("fra-1", two.fra.addresses["control"], LivingIdentity(two.fra.identity("gw-1")))
    await source.ask(source.stub.Cancel, CancelRequest(migration=id_))
    await source.close()
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.presence(vm) is Presence.INCOMING
    await two.fra.gateway.start()
    await eventually(lambda: two.ams.is_clean(vm))


@pytest.mark.parametrize("method", ["set_autostart", "move"])
async def test_the_sources_hypervisor_refuses(two: TwoSites, method: str) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.fail_next(method, "the moon is full")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await failed(two, id_, vm)
    assert "the moon is full" in ended.reason


async def test_a_vm_that_started_with_its_host_does_so_again_after_a_failure(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01")
    two.fra.hypervisor.set_autostart(vm, True)
    two.fra.hypervisor.fail_next("move")
    await failed(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    assert two.fra.hypervisor.vm(vm).autostart


async def test_what_failed_once_can_be_tried_again(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.ams.hypervisor.fail_next("land")
    await failed(two, await two.fra.operator.migrate("web-01", "ams"), vm)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert two.ams.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}


async def test_a_vm_that_crashes_before_it_was_activated_is_lost_and_said_to_be(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.ams.hypervisor.crashes_on_arrival = True
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "its memory is lost, its definition and disks are still on host fra-1" in ended.reason
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
    assert two.fra.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}
    await eventually(lambda: two.ams.is_clean(vm))


async def test_the_destination_site_is_lost_for_good_and_cleans_up_by_itself_when_it_is_back(
    two: TwoSites,
) -> None:
    two.fra.patience = two.fra.patience.model_copy(update={"cleanup": 0.2, "outage": 2.0})
    await two.fra.gateway.restart()
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.ams.gateway.stop()
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert "nothing was heard" in ended.reason
    assert "for 2 s" in ended.reason
    assert "site ams removes what is left there by itself" in ended.reason
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    # Its agent needs nobody's word: it has heard nothing for as long.
    await eventually(lambda: two.ams.is_clean(vm))
    await two.ams.gateway.start()
    there = await two.ams.operator.ended(id_)
    assert State(there.state) is State.FAILED
