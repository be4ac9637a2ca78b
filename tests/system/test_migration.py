"""A VM moves from one site to the other, as an operator sees it."""

from __future__ import annotations

import asyncio

import pytest

from agent.hypervisor.base import Presence
from gateway.migration.states import ENDED, State
from gateway.tunnel.pump import Pump
from landbridge.errors import Conflict, NotFound, PreflightFailed, UsageError
from landbridge.v1.types_pb2 import Fate, Migration, RateSource, Saving, Severity, VmState
from tests.system.sites import SiteUnderTest, TwoSites, eventually

pytestmark = pytest.mark.timeout(20)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
IMAGE = "/pools/images/web-01.qcow2"


async def moved(source: SiteUnderTest, destination: SiteUnderTest) -> Migration:
    """The migration of web-01, completed."""
    id_ = await source.operator.migrate("web-01", destination.name)
    ended = await source.operator.ended(id_)
    # The destination records that it has heard, too, before it goes by it.
    await destination.operator.ended(id_)
    assert (State(ended.state), ended.reason) == (State.COMPLETED, "")
    return ended


async def test_a_vm_moves_with_memory_and_disk_and_runs_at_the_destination_only(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    await moved(two.fra, two.ams)
    await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY
    assert two.ams.hypervisor.images == {IMAGE: DISK}
    # Kept until the migration is settled.
    assert two.fra.hypervisor.images == {IMAGE: DISK}
    assert not list(two.ams.runtime.iterdir())
    await eventually(lambda: not list(two.fra.runtime.iterdir()))


async def test_the_summary_counts_what_went_through_the_three_channels(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    ended = await moved(two.fra, two.ams)
    to_destination = {channel.kind: channel.to_destination for channel in ended.summary.channels}
    # Each is a length of eight bytes and what it counts; the disk's content begins with its own length.
    assert to_destination["ram"] == len(MEMORY) + 8
    assert to_destination["disk"] == len(DISK) + 16
    assert 500 < to_destination["rpc"] < 50_000
    assert all(channel.to_source > 0 for channel in ended.summary.channels)
    summary = ended.summary
    assert summary.bytes_hypervisor == sum(to_destination.values())
    saved = sum(saving.bytes_stream for saving in summary.savings)
    assert {saving.kind for saving in summary.savings} == {"ram", "disk"}
    # Digests are on the way with the bytes.
    assert to_destination["ram"] + to_destination["disk"] <= saved < summary.bytes_hypervisor + 1000
    assert sum(saving.bytes_wan for saving in summary.savings) < summary.bytes_wan < summary.bytes_hypervisor
    assert 0 < summary.total_ms < 10_000
    assert 0 <= summary.downtime_ms <= summary.total_ms
    assert ended.requested_at.ToNanoseconds() < ended.ended_at.ToNanoseconds()
    assert ended.requested_by == "spiffe://landbridge.test/site/fra/operator/alice"


async def test_watching_shows_every_state_in_order_and_ends_with_the_final_one(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = 4_000_000
    id_ = await two.fra.operator.migrate("web-01", "ams")
    seen = [State(migration.state) async for migration in two.fra.operator.watch(id_[:8])]
    assert seen[-1] is State.COMPLETED
    assert not ENDED & set(seen[:-1])
    order = [state for at, state in enumerate(seen) if state not in seen[:at]]
    expected = [
        State.REQUESTED,
        State.PREPARING,
        State.COPYING_DISKS,
        State.COPYING_MEMORY,
        State.SWITCHING,
        State.ACTIVATING,
        State.COMPLETED,
    ]
    assert order == [state for state in expected if state in order]
    assert {State.COPYING_DISKS, State.COPYING_MEMORY} <= set(order)


async def test_progress_falls_while_memory_is_copied(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    two.fra.hypervisor.rate = 4_000_000
    id_ = await two.fra.operator.migrate("web-01", "ams")
    remaining = [
        migration.progress.memory_remaining
        async for migration in two.fra.operator.watch(id_)
        if migration.progress.memory_total == len(MEMORY)
    ]
    assert len(set(remaining)) > 3
    assert remaining == sorted(remaining, reverse=True)


async def test_both_sites_tell_the_same_story(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    here = await two.fra.operator.ended(id_)
    there = await two.ams.operator.ended(id_)
    assert State(there.state) is State.COMPLETED
    assert (there.vm, there.summary.total_ms) == (here.vm, here.summary.total_ms)
    with pytest.raises(Conflict, match="ask the gateway of site fra to settle it"):
        await two.ams.operator.settle(id_)


async def test_a_vm_that_starts_with_its_host_does_so_at_the_destination_and_no_longer_here(
    two: TwoSites,
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01")
    two.fra.hypervisor.set_autostart(vm, True)
    await moved(two.fra, two.ams)
    assert two.ams.hypervisor.vm(vm).autostart
    assert not two.fra.hypervisor.vm(vm).autostart


async def test_a_vm_without_disks_moves(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    ended = await moved(two.fra, two.ams)
    assert two.ams.hypervisor.memory(vm) == MEMORY
    assert {c.kind: c.to_destination for c in ended.summary.channels}["disk"] == 0


async def test_of_two_requests_at_once_for_one_vm_exactly_one_wins(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", memory=MEMORY)
    migrate = two.fra.operator.migrate
    answers = await asyncio.gather(*(migrate("web-01", "ams") for _ in range(2)), return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, str)]
    lost = [answer for answer in answers if isinstance(answer, Exception)]
    assert len(won) == len(lost) == 1
    assert isinstance(lost[0], Conflict)
    assert won[0] in str(lost[0])
    assert State((await two.fra.operator.ended(won[0])).state) is State.COMPLETED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert len(await two.fra.operator.migrations()) == 1


async def test_several_vms_move_at_once(two: TwoSites) -> None:
    vms = {name: two.fra.hypervisor.add_vm(name, disk=DISK, memory=MEMORY) for name in ("a", "b", "c")}
    ids = await asyncio.gather(*(two.fra.operator.migrate(name, "ams") for name in vms))
    ended = await asyncio.gather(*(two.fra.operator.ended(id_) for id_ in ids))
    assert {State(migration.state) for migration in ended} == {State.COMPLETED}
    assert all(two.ams.hypervisor.memory(vm) == MEMORY for vm in vms.values())


# Afterwards.


async def test_settling_removes_what_was_left_at_the_source_once(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    ended = await moved(two.fra, two.ams)
    settled = await two.fra.operator.settle(ended.id)
    assert list(settled.removed) == ["definition of web-01", IMAGE]
    assert State(settled.migration.state) is State.SETTLED
    assert two.fra.is_clean(vm)
    assert list((await two.fra.operator.settle(ended.id)).removed) == []
    there = await two.ams.operator.until(ended.id, State.COMPLETED, State.SETTLED)
    assert State(there.state) in {State.COMPLETED, State.SETTLED}


async def test_settling_refuses_what_is_not_the_copy_that_the_migration_left(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    ended = await moved(two.fra, two.ams)
    await eventually(lambda: two.fra.hypervisor.vm(vm).state == VmState.VM_STATE_MOVED)
    two.fra.hypervisor.mark_moved(vm, None)
    with pytest.raises(Conflict, match="nothing was removed"):
        await two.fra.operator.settle(ended.id)
    assert two.fra.hypervisor.images == {IMAGE: DISK}


async def test_a_vm_comes_back_and_replaces_the_copy_that_it_left(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    await moved(two.fra, two.ams)
    two.ams.hypervisor.images[IMAGE] = changed = DISK[::-1]
    found = await two.ams.operator.preflight("web-01", "fra")
    assert [(f.code, f.severity) for f in found.findings] == [("superseded", Severity.SEVERITY_INFO)]
    assert found.passed
    await moved(two.ams, two.fra)
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.SHUT_OFF)
    assert two.fra.hypervisor.images == {IMAGE: changed}
    assert not two.fra.hypervisor.vm(vm).moved_by


async def test_what_was_superseded_can_no_longer_be_settled(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    first = await moved(two.fra, two.ams)
    await moved(two.ams, two.fra)
    with pytest.raises(Conflict, match="nothing was removed"):
        await two.fra.operator.settle(first.id)
    assert two.fra.hypervisor.images == {IMAGE: DISK}


# Before.


async def test_preflight_touches_nothing(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    found = await two.fra.operator.preflight("web-01", "ams")
    assert (found.passed, list(found.findings)) == (True, [])
    assert (found.vm_uuid, found.source_host, found.destination_host) == (vm, "fra-1", "ams-1")
    assert two.ams.is_clean(vm)
    assert await two.fra.operator.migrations() == []


async def test_what_preflight_finds_keeps_a_migration_from_being_recorded(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.ams.hypervisor.images[IMAGE] = b"somebody else's"
    with pytest.raises(PreflightFailed, match=f"ams-1 has an image {IMAGE} already"):
        await two.fra.operator.migrate("web-01", "ams")
    assert await two.fra.operator.migrations() == []
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.images == {IMAGE: b"somebody else's"}


async def test_a_site_that_does_not_answer_is_a_finding(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01")
    await two.ams.gateway.stop()
    found = await two.fra.operator.preflight("web-01", "ams")
    assert [finding.code for finding in found.findings] == ["site-unreachable"]
    assert not found.passed
    site = (await two.fra.operator.sites())["ams"]
    assert "does not answer" in site.unreachable


async def test_a_host_that_does_not_answer_is_a_finding(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01")
    await two.ams.agent.stop()
    found = await two.fra.operator.preflight("web-01", "ams")
    assert [finding.code for finding in found.findings] == ["host-unreachable"]
    site = (await two.fra.operator.sites())["ams"]
    assert (site.hosts, site.hosts_reachable, site.unreachable) == (1, 0, "")


async def test_sites_are_shown_with_the_state_of_their_tunnel(two: TwoSites) -> None:
    async def is_whole() -> bool:
        return (await two.fra.operator.sites())["ams"].links_up == 4

    await eventually(is_whole)
    sites = await two.fra.operator.sites()
    assert (sites["fra"].tunnel, sites["fra"].hosts_reachable) == ("local", 1)
    assert (sites["ams"].tunnel, sites["ams"].links, sites["ams"].hosts_reachable) == ("up", 4, 1)


async def test_a_migration_that_cannot_be_is_refused_in_a_sentence(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01")
    migrate = two.fra.operator.migrate
    with pytest.raises(NotFound, match="no host of site fra has a VM 'web-02'"):
        await migrate("web-02", "ams")
    with pytest.raises(NotFound, match="not joined with a site 'lon'; it is joined with ams"):
        await migrate("web-01", "lon")
    with pytest.raises(UsageError, match="fra is the VM's own site"):
        await migrate("web-01", "fra")


async def test_the_summary_has_what_the_source_gateway_has_saved(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Saving(kind="ram", fate=Fate.FATE_ZERO, bytes_stream=4096, bytes_wan=8)
    monkeypatch.setattr(Pump, "savings", lambda _pump, _migration: [saved])
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)

    ended = await moved(two.fra, two.ams)

    assert list(ended.summary.savings) == [saved]
    there = await two.ams.operator.ended(ended.id)
    assert list(there.summary.savings) == [saved]


async def test_preflight_and_migration_have_the_same_kind_of_estimate(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)

    found = await two.fra.operator.preflight("web-01", "ams")

    assert found.estimate.measurement.pages_sampled == 64
    assert found.estimate.measurement.HasField("dirty_rate")
    assert found.estimate.rate_source in {RateSource.RATE_SOURCE_UNKNOWN, RateSource.RATE_SOURCE_MEASURED}
    # The tunnel compresses as soon as both gateways know what logs there are, which may be now or in a moment.
    assert 0 < found.estimate.bytes_wan.low <= len(DISK) + len(MEMORY)
    ended = await moved(two.fra, two.ams)
    assert ended.estimate.measurement == found.estimate.measurement
    assert (await two.ams.operator.ended(ended.id)).estimate == ended.estimate


async def test_a_vm_whose_memory_cannot_be_looked_at_moves_all_the_same(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.fail_next("measure")

    ended = await moved(two.fra, two.ams)

    assert not ended.estimate.measurement.HasField("dirty_rate")
    assert not ended.estimate.HasField("converges")


async def test_a_limit_of_the_tunnel_is_what_an_estimate_goes_by(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.dirty_rate = 100_000_000_000
    async with two.fra.person("root") as admin:
        await admin.limit(1_000_000, site="ams")

    found = await two.fra.operator.preflight("web-01", "ams")

    assert (found.estimate.rate, found.estimate.rate_source) == (1_000_000, RateSource.RATE_SOURCE_LIMIT)
    assert found.estimate.HasField("converges")
    assert not found.estimate.converges
    assert [finding.code for finding in found.findings] == ["does-not-converge"]
    assert found.passed
