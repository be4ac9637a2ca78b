"""What an agent may rely on, of every hypervisor."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from agent.hypervisor.base import MoveRequest, Presence, VmChange
from agent.hypervisor.sampling import SAMPLED
from landbridge.errors import AlreadyExists, Conflict, HypervisorError, NotFound
from landbridge.v1.agent_pb2 import Mapping
from landbridge.v1.types_pb2 import Disk, Vm, VmState
from tests.contract.hypervisor_worlds import MIB, LibvirtWorld, News, World
from tests.lab.settings import TRIXIE

NOBODY = "00000000-0000-4000-8000-000000000000"


def prepared(world: World, uuid: str) -> MoveRequest:
    """A move with its images made at the destination."""
    vm = world.source.vm(uuid)
    world.destination.create_disks(vm, Mapping())
    return world.request(uuid, world.destination.localize(world.source.migratable_xml(uuid), Mapping(), vm))


def started(world: World, request: MoveRequest) -> Future[None]:
    """The move, under way in a thread of its own."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            world.source.move(request)
        except HypervisorError as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_a_host_says_what_it_has(world: World) -> None:
    host = world.source.host()

    assert host.arch == "x86_64"
    assert {"q35", "pc-q35-7.2"} <= set(host.machine_types)
    assert "/usr/bin/qemu-system-x86_64" in host.emulators
    versions = ("11.3.0", "10") if TRIXIE and isinstance(world, LibvirtWorld) else ("9.0.0", "7")
    assert (host.libvirt_version, host.hypervisor_version.split(".")[0]) == versions
    assert 0 < host.memory_free < host.memory
    assert host.cpus > 0
    assert [pool.name for pool in host.pools] == [world.pool]
    assert 0 < host.pools[0].available <= host.pools[0].capacity


def test_a_vm_is_found_by_name_and_by_uuid(world: World) -> None:
    uuid = world.new_vm()

    vm = world.source.vm("web")

    assert vm == world.source.vm(uuid)
    assert [vm] == world.source.vms()
    assert (vm.uuid, vm.state, vm.persistent, vm.busy) == (uuid, VmState.VM_STATE_RUNNING, True, False)
    assert [(d.target, d.virtual_size, d.pool) for d in vm.disks] == [("vda", 8 * MIB, world.pool)]
    assert not vm.immovable_devices


def test_a_vm_that_is_not_there_is_absent(world: World) -> None:
    assert world.source.presence(NOBODY) is Presence.ABSENT
    assert not world.source.destroy(NOBODY)
    assert not world.source.undefine(NOBODY)
    world.source.abort(NOBODY)
    with pytest.raises(NotFound):
        world.source.vm("nobody")
    with pytest.raises(NotFound):
        world.source.progress(NOBODY)


def test_a_paused_vm_runs_again_and_says_so(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    news = News(world.source)
    world.pause(uuid)
    assert world.source.presence(uuid) is Presence.PAUSED

    before = time.time()
    started_at = world.source.resume(uuid)

    assert before <= started_at <= time.time()
    assert world.source.presence(uuid) is Presence.RUNNING
    suspended = news.wait_for(lambda event: event.change is VmChange.SUSPENDED)
    resumed = news.wait_for(lambda event: event.change is VmChange.RESUMED)
    assert suspended.uuid == resumed.uuid == uuid
    assert suspended.at <= resumed.at
    assert world.source.resume(uuid) >= started_at
    assert world.source.presence(uuid) is Presence.RUNNING


def test_nobody_hears_of_events_after_unsubscribing(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    stopped, heard = News(world.source), News(world.source)
    stopped.stop()

    world.pause(uuid)

    heard.wait_for(lambda event: event.change is VmChange.SUSPENDED)
    assert not stopped.events


def test_a_host_without_conflicts_takes_the_vm(world: World) -> None:
    uuid = world.new_vm()
    vm, xml = world.source.vm(uuid), world.source.migratable_xml(uuid)

    answer = world.destination.check_incoming(vm, xml, Mapping())

    assert answer.cpu_problem == ""
    assert not answer.conflicts
    assert not answer.existing_images
    assert [pool.name for pool in answer.host.pools] == [world.pool]


def test_a_vm_conflicts_with_its_namesake_and_with_its_images(world: World) -> None:
    uuid = world.new_vm()
    vm, xml = world.source.vm(uuid), world.source.migratable_xml(uuid)

    answer = world.source.check_incoming(vm, xml, Mapping())

    assert [conflict.uuid for conflict in answer.conflicts] == [uuid]
    assert list(answer.existing_images) == [vm.disks[0].path]
    stranger = Vm(name=vm.name, uuid=NOBODY, arch=vm.arch, machine=vm.machine)
    assert [c.uuid for c in world.source.check_incoming(stranger, xml, Mapping()).conflicts] == [uuid]


def test_a_cpu_that_the_host_has_not_is_named(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    vm, xml = world.source.vm(uuid), world.source.migratable_xml(uuid)

    problem = world.destination.check_incoming(vm, xml.replace("qemu64", "EPYC-Milan"), Mapping()).cpu_problem

    assert problem.startswith(f"This host's CPU cannot run {vm.name}: ")
    assert problem.endswith(".")


def test_a_definition_is_rewritten_for_pools_that_exist(world: World) -> None:
    uuid = world.new_vm()
    vm, xml = world.source.vm(uuid), world.source.migratable_xml(uuid)
    vm.disks[0].pool = "elsewhere"

    assert vm.disks[0].path in world.destination.localize(xml, Mapping(pools={"elsewhere": world.pool}), vm)
    with pytest.raises(HypervisorError, match="elsewhere"):
        world.destination.localize(xml, Mapping(), vm)


def test_images_are_made_all_or_none_and_removed_once(world: World) -> None:
    vm = world.source.vm(world.new_vm())
    more = Disk(target="vdb", volume="more.img", pool=world.pool, format="raw", virtual_size=MIB)
    both = Vm(name="web", disks=[more, vm.disks[0]])

    (path,) = world.destination.create_disks(vm, Mapping())
    with pytest.raises(AlreadyExists, match="exists already"):
        world.destination.create_disks(both, Mapping())

    assert path == vm.disks[0].path
    assert len(world.destination.check_incoming(both, "<domain/>", Mapping()).existing_images) == 1
    assert world.destination.remove_disk(path)
    assert not world.destination.remove_disk(path)


def test_the_image_of_a_defined_vm_is_not_removed(world: World) -> None:
    vm = world.source.vm(world.new_vm())

    with pytest.raises(Conflict, match="web"):
        world.source.remove_disk(vm.disks[0].path)
    with pytest.raises(HypervisorError, match="pool"):
        world.source.remove_disk("/etc/passwd")


def test_the_memory_of_a_running_vm_is_looked_at(world: World) -> None:
    uuid = world.new_vm(disk_size=0)

    found = world.source.measure(uuid)

    assert found.HasField("dirty_rate")
    assert found.pages_sampled == SAMPLED
    assert found.pages_zero <= found.pages_sampled
    assert found.bytes_sampled == (found.pages_sampled - found.pages_zero) * 4096
    assert (found.bytes_compressed > 0) == (found.bytes_sampled > 0)
    assert world.source.presence(uuid) is Presence.RUNNING


def test_the_memory_of_a_vm_that_does_not_run_is_not_looked_at(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    world.pause(uuid)

    with pytest.raises(HypervisorError, match="does not run"):
        world.source.measure(uuid)


def test_whether_a_vm_starts_with_the_host_is_set_and_told(world: World) -> None:
    uuid = world.new_vm(disk_size=0)

    assert world.source.set_autostart(uuid, True) is False
    assert world.source.vm(uuid).autostart
    assert world.source.set_autostart(uuid, False) is True


def test_a_moved_vm_arrives_paused_and_whole_and_leaves_its_definition(world: World) -> None:
    uuid = world.new_vm()
    before = world.source.vm(uuid)
    here, there = News(world.source), News(world.destination)
    path = before.disks[0].path

    world.source.move(prepared(world, uuid))

    assert world.source.presence(uuid) is Presence.SHUT_OFF
    assert world.destination.presence(uuid) is Presence.ARRIVED
    assert world.image("destination", path) == world.image("source", path)
    assert here.wait_for(lambda e: e.change is VmChange.STOPPED).detail == "migrated"
    here.wait_for(lambda e: e.change is VmChange.SUSPENDED)
    assert not [event for event in there.events if event.change is VmChange.RESUMED]

    world.destination.resume(uuid)

    assert world.destination.presence(uuid) is Presence.RUNNING
    there.wait_for(lambda event: event.change is VmChange.RESUMED)
    after = world.destination.vm(uuid)
    assert (after.name, after.memory, after.persistent) == (before.name, before.memory, True)
    assert world.source.progress(uuid) is None


def test_a_vm_without_disks_moves(world: World) -> None:
    uuid = world.new_vm(disk_size=0)

    world.source.move(prepared(world, uuid))

    assert world.destination.presence(uuid) is Presence.ARRIVED


def test_a_moved_vm_is_marked_until_its_definition_goes(world: World) -> None:
    uuid = world.new_vm()
    world.source.move(prepared(world, uuid))

    world.source.mark_moved(uuid, "m-1")

    vm = world.source.vm(uuid)
    assert (vm.state, vm.moved_by) == (VmState.VM_STATE_MOVED, "m-1")
    assert "m-1" not in world.source.migratable_xml(uuid)
    for _ in range(2):
        world.source.mark_moved(uuid, None)
    assert world.source.vm(uuid).state == VmState.VM_STATE_SHUT_OFF
    assert not world.source.destroy(uuid)
    assert world.source.undefine(uuid)
    assert world.source.presence(uuid) is Presence.ABSENT
    assert world.source.remove_disk(vm.disks[0].path)


def test_an_arrived_vm_can_be_discarded_and_the_source_goes_on(world: World) -> None:
    uuid = world.new_vm()
    world.source.move(prepared(world, uuid))

    assert world.destination.destroy(uuid)

    assert world.destination.presence(uuid) is Presence.ABSENT
    assert not world.destination.destroy(uuid)


def test_a_running_vm_is_neither_destroyed_nor_undefined(world: World) -> None:
    uuid = world.new_vm(disk_size=0)

    with pytest.raises(Conflict):
        world.source.destroy(uuid)
    with pytest.raises(Conflict):
        world.source.undefine(uuid)

    assert world.source.presence(uuid) is Presence.RUNNING


def test_only_a_running_vm_is_moved(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    request = prepared(world, uuid)
    world.pause(uuid)

    with pytest.raises(Conflict, match="does not run"):
        world.source.move(request)

    assert world.source.presence(uuid) is Presence.PAUSED


def test_a_move_without_its_images_fails_and_the_source_goes_on(world: World) -> None:
    uuid = world.new_vm()
    vm = world.source.vm(uuid)
    xml = world.destination.localize(world.source.migratable_xml(uuid), Mapping(), vm)

    with pytest.raises(HypervisorError) as caught:
        world.source.move(world.request(uuid, xml))

    assert caught.value.details["vm"] == "running"
    assert world.source.presence(uuid) is Presence.RUNNING
    assert world.destination.presence(uuid) is Presence.ABSENT


@pytest.mark.parametrize(("phase", "broken"), [("disk", "disk"), ("disk", "rpc"), ("ram", "ram"), ("ram", "rpc")])
def test_a_move_whose_connection_breaks_fails_and_the_source_goes_on(world: World, phase: str, broken: str) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    world.relay.hold(phase, 64 * 1024)
    move = started(world, request)
    world.relay.wait_for(phase, 64 * 1024)

    world.relay.cut(broken)
    world.relay.release(phase)

    error = move.exception(60)
    assert isinstance(error, HypervisorError)
    assert error.details["vm"] == "running"
    assert world.source.presence(uuid) is Presence.RUNNING
    assert world.source.progress(uuid) is None
    there = News(world.destination)
    if world.destination.presence(uuid) is not Presence.ABSENT:
        there.wait_for(lambda event: event.change is VmChange.STOPPED)


@pytest.mark.parametrize("phase", ["disk", "ram"])
def test_an_aborted_move_fails_and_the_source_goes_on(world: World, phase: str) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    world.relay.hold(phase, 64 * 1024)
    move = started(world, request)
    world.relay.wait_for(phase, 64 * 1024)
    assert world.destination.presence(uuid) is Presence.INCOMING
    assert world.source.vm(uuid).busy

    world.source.abort(uuid)
    if phase == "disk":
        world.relay.cut("disk")  # QEMU waits for what it has written to a disk that stands still
    error = move.exception(60)

    assert isinstance(error, HypervisorError)
    assert "abort" in error.message
    assert world.source.presence(uuid) is Presence.RUNNING
    assert world.destination.presence(uuid) is Presence.ABSENT


def test_a_vm_that_is_paused_during_its_move_arrives_all_the_same(world: World) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    news = News(world.source)
    assert not world.source.pause(uuid)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, request)
    world.relay.wait_for("ram", 64 * 1024)

    assert world.source.pause(uuid)
    news.wait_for(lambda event: event.change is VmChange.SUSPENDED)
    assert not move.done()
    assert world.source.pause(uuid)
    world.relay.release("ram")
    move.result(60)

    assert world.source.presence(uuid) is Presence.SHUT_OFF
    assert world.destination.presence(uuid) is Presence.ARRIVED
    assert len([event for event in news.events if event.change is VmChange.SUSPENDED]) == 1
    world.destination.resume(uuid)
    assert world.destination.presence(uuid) is Presence.RUNNING


def test_what_a_move_is_allowed_is_changed_while_it_goes(world: World) -> None:
    uuid = world.new_vm()
    request = replace(prepared(world, uuid), max_downtime_ms=120)
    assert not world.source.allow_downtime(uuid, 700)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, request)
    world.relay.wait_for("ram", 64 * 1024)
    assert world.max_downtime(uuid) == 120

    assert world.source.allow_downtime(uuid, 700)

    assert world.max_downtime(uuid) == 700
    world.relay.release("ram")
    move.result(60)
    assert not world.source.allow_downtime(uuid, 120)


@pytest.mark.parametrize("how", ["abort", "cut"])
def test_a_vm_that_was_paused_for_a_move_that_fails_goes_on_at_the_source(world: World, how: str) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, request)
    world.relay.wait_for("ram", 64 * 1024)
    assert world.source.pause(uuid)

    if how == "abort":
        world.source.abort(uuid)
    else:
        # Memory, too, as the agent does it. If all of it could go on now, libvirt would cancel just as QEMU pauses before its switch-over:
        # QEMU 7.2 may then wait for ever (migration_maybe_pause looks at the state, and waits without looking again).
        world.relay.cut("rpc")
        world.relay.cut("ram")

    assert isinstance(move.exception(60), HypervisorError)
    assert world.source.presence(uuid) is Presence.RUNNING
    assert not world.source.pause(uuid)
    assert world.source.presence(uuid) is Presence.RUNNING


def test_a_throttled_move_arrives(world: World) -> None:
    uuid = world.new_vm()

    world.source.move(replace(prepared(world, uuid), throttle=True))

    assert world.destination.presence(uuid) is Presence.ARRIVED


def test_progress_tells_disks_from_memory(world: World) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    assert world.source.progress(uuid) is None
    world.relay.hold("disk", 64 * 1024)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, request)

    world.relay.wait_for("disk", 64 * 1024)
    disks = world.source.progress(uuid)
    world.relay.release("disk")
    world.relay.wait_for("ram", 64 * 1024)
    memory = world.source.progress(uuid)
    world.relay.release("ram")
    move.result(60)

    assert disks is not None
    assert memory is not None
    assert disks.memory_total == 0
    assert disks.disk_total == memory.disk_total >= 8 * MIB
    assert 0 < disks.disk_remaining <= disks.disk_total
    assert memory.memory_total > 0
    assert memory.iteration > 0
    assert memory.elapsed_ms >= disks.elapsed_ms


def test_a_vm_that_is_being_moved_is_not_moved_twice(world: World) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    world.relay.hold("disk", 64 * 1024)
    move = started(world, request)
    world.relay.wait_for("disk", 64 * 1024)

    with pytest.raises(Conflict, match="already"):
        world.source.move(request)

    world.relay.release("disk")
    move.result(60)


def test_an_incoming_vm_does_not_run_and_can_be_destroyed(world: World) -> None:
    uuid = world.new_vm()
    request = prepared(world, uuid)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, request)
    world.relay.wait_for("ram", 64 * 1024)
    assert world.destination.vm(uuid).state == VmState.VM_STATE_INCOMING

    with pytest.raises(Conflict, match="not arrived"):
        world.destination.resume(uuid)
    assert world.destination.destroy(uuid)
    world.relay.release("ram")

    assert isinstance(move.exception(60), HypervisorError)
    assert world.destination.presence(uuid) is Presence.ABSENT
    assert world.source.presence(uuid) is Presence.RUNNING


def test_a_daemon_that_was_away_is_found_again(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    news = News(world.source)
    assert world.source.presence(uuid) is Presence.RUNNING

    world.stop_daemon()
    with pytest.raises(HypervisorError):
        world.source.presence(uuid)
    world.start_daemon()

    assert world.source.presence(uuid) is Presence.RUNNING
    world.pause(uuid)
    news.wait_for(lambda event: event.change is VmChange.SUSPENDED)


def test_many_threads_use_one_hypervisor(world: World) -> None:
    uuid = world.new_vm()

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: world.source.vm(uuid).name, range(32)))

    assert seen == ["web"] * 32


def shut_off(world: World, *, disk_size: int = 8 * MIB) -> str:
    """A VM at the source that is shut off. Its UUID."""
    uuid = world.new_vm(disk_size=disk_size)
    world.pause(uuid)
    assert world.source.end_paused(uuid)
    assert world.source.presence(uuid) is Presence.SHUT_OFF
    return uuid


def test_a_vm_that_is_shut_off_moves_and_its_cpus_never_run(world: World) -> None:
    uuid = shut_off(world)
    here, there = News(world.source), News(world.destination)
    xml = world.source.migratable_xml(uuid, cold=True)

    world.source.start_paused(uuid)
    assert world.source.presence(uuid) is Presence.PAUSED
    assert world.source.migratable_xml(uuid, cold=True) == xml
    vm = world.source.vm(uuid)
    world.destination.create_disks(vm, Mapping())
    request = world.request(uuid, world.destination.localize(xml, Mapping(), vm))
    world.source.move(replace(request, cold=True))

    assert world.source.presence(uuid) is Presence.SHUT_OFF
    assert world.destination.presence(uuid) is Presence.ARRIVED
    assert world.destination.end_paused(uuid)
    assert not world.destination.end_paused(uuid)
    assert world.destination.presence(uuid) is Presence.SHUT_OFF
    assert world.destination.vm(uuid).persistent
    path = vm.disks[0].path
    assert world.image("destination", path) == world.image("source", path)
    for news in (here, there):
        news.wait_for(lambda event: event.change is VmChange.STOPPED)
        assert not [event for event in news.events if event.change is VmChange.RESUMED]


@pytest.mark.parametrize("how", ["abort", "cut"])
def test_a_vm_that_was_shut_off_stands_still_after_a_move_that_failed(world: World, how: str) -> None:
    uuid = shut_off(world)
    vm = world.source.vm(uuid)
    world.destination.create_disks(vm, Mapping())
    xml = world.destination.localize(world.source.migratable_xml(uuid, cold=True), Mapping(), vm)
    news = News(world.source)
    world.source.start_paused(uuid)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, replace(world.request(uuid, xml), cold=True))
    world.relay.wait_for("ram", 64 * 1024)

    if how == "abort":
        world.source.abort(uuid)
    else:
        world.relay.cut("rpc")
        world.relay.release("ram")

    error = move.exception(60)
    assert isinstance(error, HypervisorError)
    assert error.details["vm"] == "paused"
    assert world.source.presence(uuid) is Presence.PAUSED
    assert world.source.end_paused(uuid)
    assert world.source.presence(uuid) is Presence.SHUT_OFF
    assert not [event for event in news.events if event.change is VmChange.RESUMED]


def test_only_a_vm_that_is_shut_off_is_started_to_be_moved(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    request = replace(world.request(uuid, "<domain/>"), cold=True)

    with pytest.raises(Conflict, match="not shut off any more"):
        world.source.start_paused(uuid)
    with pytest.raises(Conflict, match="does not stand still"):
        world.source.end_paused(uuid)
    with pytest.raises(Conflict, match="does not stand still"):
        world.source.move(request)

    assert world.source.presence(uuid) is Presence.RUNNING


def test_a_vm_whose_memory_was_saved_is_not_started_to_be_moved(world: World) -> None:
    uuid = world.new_vm(disk_size=0)
    assert not world.source.vm(uuid).managed_save

    world.save_memory(uuid)

    assert world.source.vm(uuid).managed_save
    with pytest.raises(Conflict, match="saved state"):
        world.source.start_paused(uuid)
    assert world.source.presence(uuid) is Presence.SHUT_OFF


def test_a_vm_that_was_started_to_be_moved_stands_still_when_its_daemon_comes_back(world: World) -> None:
    uuid = shut_off(world)
    vm = world.source.vm(uuid)
    world.destination.create_disks(vm, Mapping())
    xml = world.destination.localize(world.source.migratable_xml(uuid, cold=True), Mapping(), vm)
    world.source.start_paused(uuid)
    world.relay.hold("ram", 64 * 1024)
    move = started(world, replace(world.request(uuid, xml), cold=True))
    world.relay.wait_for("ram", 64 * 1024)

    world.stop_daemon()
    world.relay.cut("rpc")
    world.relay.release("ram")
    world.start_daemon()

    assert isinstance(move.exception(60), HypervisorError)
    assert world.source.presence(uuid) is Presence.PAUSED
