"""What a migration may touch at its destination: what it made there itself, and nothing that another has brought."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agent.config import FirewallSettings
from agent.hypervisor.base import Presence
from agent.journal import Journal, Passage
from agent.stream.libvirt_rpc import Status
from gateway.migration.states import State
from gateway.remote import WORK
from landbridge.errors import AlreadyExists, Conflict, HypervisorError, NotFound, PermissionDenied, UsageError
from landbridge.v1 import agent_pb2 as pb
from tests.attack.attacker import CutOffError, HostileChannel
from tests.system.sites import TwoSites, eventually
from tests.system.test_firewall import Attacked, another_emulator
from tests.unit import rpc_made
from tests.unit.rpc_made import GREETING

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 64
IMAGE = "/pools/images/web-01.qcow2"


def passage(two: TwoSites, migration: str) -> Passage:
    """What the journal at ams has of a migration."""
    records = {record.migration: record for record in Journal(two.ams.directory / "state" / "migrations").load()}
    return records[migration].passage


async def cancel(attacked: Attacked) -> pb.CancelResponse:
    request = pb.CancelRequest(migration=attacked.id, discard_arrived=True)
    return await attacked.agent.ask(attacked.agent.stub.Cancel, request, WORK)


async def activate(attacked: Attacked) -> pb.ActivateResponse:
    return await attacked.agent.ask(attacked.agent.stub.Activate, pb.ActivateRequest(migration=attacked.id), WORK)


async def asking(attacked: Attacked, vm: str, os: str = "") -> tuple[HostileChannel, bytes]:
    """A channel on which libvirtd was greeted, and the PREPARE that may come next on it."""
    definition = attacked.two.fra.hypervisor.migratable_xml(vm).replace("</os>", f"{os}</os>")
    xml = await attacked.prepare(definition)
    channel = await attacked.channel()
    for raw in GREETING:
        assert (await channel.call(raw)).status == Status.OK
    ram = f"unix://{attacked.two.ams.runtime}/{attacked.id}/ram.sock"
    return channel, rpc_made.Vm("web-01", vm, xml, ram, disks=()).prepare()


# Which VM.


@pytest.mark.parametrize("role", [pb.Role.ROLE_SOURCE, pb.Role.ROLE_DESTINATION])
@pytest.mark.parametrize(
    "write", [str.upper, lambda vm: vm.replace("-", ""), lambda vm: f"{{{vm}}}", lambda _: "web-01"]
)
async def test_a_uuid_is_taken_in_one_way_of_writing_only(two: TwoSites, role: Any, write: Any) -> None:
    attacked = Attacked(two)
    vm = two.ams.hypervisor.add_vm("web-01")
    with pytest.raises(UsageError, match="is no UUID of a VM"):
        await attacked.prepare(two.ams.hypervisor.migratable_xml(vm), role=role, uuid=write(vm))
    assert not list(two.ams.runtime.iterdir())
    await attacked.agent.close()


@pytest.mark.parametrize("said", [{"name": "other"}, {"uuid": str(uuid.UUID(int=1))}])
async def test_whose_definition_it_is_counts_where_nothing_is_enforced_too(two: TwoSites, said: dict[str, Any]) -> None:
    two.ams.firewall = FirewallSettings(mode="observe")
    await two.ams.agent.restart()
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    with pytest.raises(PermissionDenied, match="the source's host says"):
        await attacked.prepare(two.fra.hypervisor.migratable_xml(vm), **said)
    await attacked.agent.close()


async def test_a_source_that_skips_preflight_gets_no_pool_that_is_not_for_vms_from_other_sites(two: TwoSites) -> None:
    two.ams.firewall = FirewallSettings(pools=("fast",))
    await two.ams.agent.restart()
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    with pytest.raises(PermissionDenied, match="the pool images is not among the pools for VMs from other sites"):
        await attacked.prepare(two.fra.hypervisor.migratable_xml(vm), two.fra.hypervisor.vm(vm))
    assert "create_disks" not in two.ams.hypervisor.asked
    await attacked.agent.close()


async def test_of_migrations_of_one_uuid_or_one_name_one_comes_at_a_time(two: TwoSites) -> None:
    attacked, second = Attacked(two), Attacked(two)
    vm, namesake = (two.fra.hypervisor.add_vm("web-01") for _ in range(2))
    await attacked.prepare(two.fra.hypervisor.migratable_xml(vm))
    for xml in (
        two.fra.hypervisor.migratable_xml(vm).replace("web-01", "web-02"),
        two.fra.hypervisor.migratable_xml(namesake),
    ):
        with pytest.raises(Conflict, match=f"migration {attacked.id} brings web-01 to host ams-1 already"):
            await second.prepare(xml)
    await cancel(attacked)
    await second.prepare(two.fra.hypervisor.migratable_xml(namesake))
    for each in (attacked, second):
        await each.agent.close()


@pytest.mark.parametrize("found", [Presence.INCOMING, Presence.SHUT_OFF, Presence.PAUSED, Presence.RUNNING])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_vm_that_came_by_another_way_is_left_alone(two: TwoSites, found: Presence, restarts: bool) -> None:
    attacked = Attacked(two)
    xml = two.fra.hypervisor.migratable_xml(vm := two.fra.hypervisor.add_vm("web-01"))
    await attacked.prepare(xml)
    two.ams.hypervisor.land(xml)
    two.ams.hypervisor.set_presence(vm, found)
    with pytest.raises(NotFound, match="cannot be activated"):
        await activate(attacked)
    if restarts:
        await two.ams.agent.restart()
    assert (await cancel(attacked)).possession == pb.Possession.POSSESSION_ABSENT
    with pytest.raises(NotFound, match="cannot be activated"):
        await activate(attacked)
    assert two.ams.hypervisor.presence(vm) is found
    await attacked.agent.close()


async def test_what_libvirtd_is_asked_is_written_down_before_it_is_and_so_is_its_answer(two: TwoSites) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    channel, prepare = await asking(attacked, vm)
    assert passage(two, attacked.id) is Passage.NONE
    held = two.ams.hypervisor.hold_next("land")
    channel.send(prepare)
    await eventually(lambda: "land" in two.ams.hypervisor.asked)
    assert passage(two, attacked.id) is Passage.ASKED
    held.set()
    assert (await channel.receive()).status == Status.OK
    assert passage(two, attacked.id) is Passage.PREPARED
    # It is here, and it has not arrived.
    two.ams.hypervisor.set_presence(vm, Presence.PAUSED)
    with pytest.raises(NotFound, match="cannot be activated"):
        await activate(attacked)
    await cancel(attacked)
    assert two.ams.is_clean(vm)
    channel.close()
    await attacked.agent.close()


async def test_a_vm_whose_qemu_has_ended_may_have_been_made_anew_by_another(two: TwoSites) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    channel, prepare = await asking(attacked, vm)
    assert (await channel.call(prepare)).status == Status.OK
    two.ams.hypervisor.discard(vm)
    await eventually(lambda: passage(two, attacked.id) is Passage.ASKED)
    two.ams.hypervisor.land(two.fra.hypervisor.migratable_xml(vm))
    two.ams.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    await cancel(attacked)
    assert two.ams.hypervisor.presence(vm) is Presence.SHUT_OFF
    channel.close()
    await attacked.agent.close()


async def test_a_vm_that_libvirtd_did_not_take_in_is_not_this_migrations(two: TwoSites) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    channel, prepare = await asking(attacked, vm)
    two.ams.hypervisor.land(two.fra.hypervisor.migratable_xml(vm))
    assert (await channel.call(prepare)).status == Status.ERROR
    assert passage(two, attacked.id) is Passage.DECLINED
    await cancel(attacked)
    assert two.ams.hypervisor.presence(vm) is Presence.INCOMING
    channel.close()
    await attacked.agent.close()


async def test_after_the_end_libvirtd_is_asked_for_nothing(two: TwoSites) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    channel, prepare = await asking(attacked, vm)
    await cancel(attacked)
    with pytest.raises(CutOffError, match="is over on host ams-1"):
        await channel.call(prepare)
    assert "land" not in two.ams.hypervisor.asked
    await attacked.agent.close()


async def test_what_a_killed_agent_had_not_heard_to_have_arrived_is_removed_once_the_source_has_it(
    two: TwoSites,
) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    channel, prepare = await asking(attacked, vm)
    assert (await channel.call(prepare)).status == Status.OK
    await two.ams.agent.stop()
    channel.close()
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.ABSENT)
    journal = Journal(two.ams.directory / "state" / "migrations")
    (record,) = journal.load()
    # libvirtd has said that it waits, and then it came.
    killed = {"stage": pb.Stage.STAGE_PREPARED, "passage": Passage.PREPARED}
    journal.save(record.model_copy(update=killed))
    two.ams.hypervisor.land(two.fra.hypervisor.migratable_xml(vm))
    two.ams.hypervisor.arrive(vm, b"", b"")
    await two.ams.agent.start()
    with pytest.raises(NotFound, match="cannot be activated"):
        await activate(attacked)
    await cancel(attacked)
    assert two.ams.is_clean(vm)
    await attacked.agent.close()


# What a VM left.


async def test_a_refused_vm_does_not_take_away_what_it_left(two: TwoSites) -> None:
    hypervisor = two.ams.hypervisor
    vm = hypervisor.add_vm("web-01", disk=DISK)
    hypervisor.set_presence(vm, Presence.SHUT_OFF)
    hypervisor.mark_moved(vm, "m-1")
    xml, facts = hypervisor.migratable_xml(vm), hypervisor.vm(vm)
    with pytest.raises(PermissionDenied, match="emulator"):
        await Attacked(two).prepare(another_emulator(xml), facts)
    hypervisor.fail_next("localize")
    with pytest.raises(HypervisorError):
        await Attacked(two).prepare(xml, facts)
    assert hypervisor.presence(vm) is Presence.SHUT_OFF
    assert hypervisor.images == {IMAGE: DISK}
    await Attacked(two).prepare(xml, facts)
    assert hypervisor.presence(vm) is Presence.ABSENT
    assert hypervisor.images == {IMAGE: bytes(len(DISK))}


# Images.


async def test_an_image_that_came_in_between_is_somebody_elses(two: TwoSites) -> None:
    hypervisor = two.ams.hypervisor
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    held = hypervisor.hold_next("create_disks")
    preparing = asyncio.create_task(
        Attacked(two).prepare(two.fra.hypervisor.migratable_xml(vm), two.fra.hypervisor.vm(vm))
    )
    await eventually(lambda: "create_disks" in hypervisor.asked)
    hypervisor.images[IMAGE] = b"somebody else's"
    held.set()
    with pytest.raises(AlreadyExists):
        await preparing
    assert hypervisor.images == {IMAGE: b"somebody else's"}


async def test_of_two_vms_with_one_image_the_first_keeps_it(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    xml, facts = two.fra.hypervisor.migratable_xml(vm), two.fra.hypervisor.vm(vm)
    held = two.ams.hypervisor.hold_next("create_disks")
    first = asyncio.create_task(Attacked(two).prepare(xml, facts))
    await eventually(lambda: "create_disks" in two.ams.hypervisor.asked)
    other = str(uuid.UUID(int=1))
    another = xml.replace(vm, other).replace("<name>web-01", "<name>web-02")
    second = asyncio.create_task(Attacked(two).prepare(another, facts, name="web-02", uuid=other))
    await asyncio.wait({second}, timeout=0.2)
    held.set()
    await first
    with pytest.raises(AlreadyExists):
        await second
    assert two.ams.hypervisor.images == {IMAGE: bytes(len(DISK))}


async def test_a_completed_migration_has_arrived_and_what_it_brought_stays(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    assert passage(two, id_) is Passage.ARRIVED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_variables_of_firmware_that_were_here_before_libvirtd_was_asked_stay(two: TwoSites) -> None:
    two.ams.firewall = FirewallSettings(nvram=(str(two.ams.directory),))
    await two.ams.agent.restart()
    variables = two.ams.directory / "web_VARS.fd"
    vm = two.fra.hypervisor.add_vm("web-01")
    for is_there in (True, False):
        attacked = Attacked(two)
        variables.unlink(missing_ok=True)
        channel, prepare = await asking(attacked, vm, f"<nvram>{variables}</nvram>")
        if is_there:
            variables.touch()
        assert (await channel.call(prepare)).status == Status.OK
        variables.touch()
        await cancel(attacked)
        assert variables.exists() is is_there
        channel.close()
        await attacked.agent.close()
