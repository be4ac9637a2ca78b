"""The VM has arrived, and its source's site is gone: what the destination does by itself, what an admin can do, and how it goes on if
that site comes back.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.hypervisor.base import Presence
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.walk import RECEIPTS
from gateway.migration import stranded
from gateway.migration.arriving import Arriving
from gateway.migration.incoming import Incoming
from gateway.migration.states import ENDED, State
from landbridge.errors import Conflict, PermissionDenied, Unreachable, UsageError
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1.agent_pb2 import ActivateRequest, ActivateResponse
from landbridge.v1.types_pb2 import Migration, Policy, ProofOutcome, VmState
from tests.system.sites import PATIENCE, Operator, SiteUnderTest, TwoSites, eventually, losing_power_at_the_release

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
PROVED = Policy(verify_disks=True)


@pytest.fixture
async def hasty(identities: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoSites]:
    """Both sites; at the destination, nobody waits long before they look for what is not heard."""
    monkeypatch.setattr(stranded, "LOOK", 0.05)
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        sites = TwoSites(identities, Path(directory))
        sites.ams.patience = sites.ams.patience.model_copy(update={"outage": 0.5})
        async with sites:
            yield sites


async def burn(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, *, runs: bool, policy: Policy | None = None
) -> tuple[str, str]:
    """The fault: the source has released the VM, which was let run at the destination or not, and its site ends before it hears of it.

    The migration, and the VM.
    """
    activate, asked = Incoming.activate, asyncio.Event()

    async def cut(self: Incoming, request: ActivateRequest, site: str) -> ActivateResponse:
        if runs:
            await activate(self, request, site)
        asked.set()
        raise Unreachable("the answer is lost")

    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.set_autostart(vm, True)
    with monkeypatch.context() as patched:
        patched.setattr(Incoming, "activate", cut)
        id_ = await two.fra.operator.migrate("web-01", "ams", policy)
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await eventually(lambda: two.fra.hypervisor.vm(vm).moved_by == id_)
        await asyncio.gather(two.fra.gateway.stop(), two.fra.agent.stop())
    assert two.ams.hypervisor.presence(vm) is (Presence.RUNNING if runs else Presence.ARRIVED)
    return id_, vm


async def reaches(site: SiteUnderTest, other: str) -> None:
    """Wait until one site's gateway has found the other's again."""

    async def is_there() -> bool:
        return not (await site.operator.sites())[other].unreachable

    await eventually(is_there)


async def back(two: TwoSites) -> None:
    """The source's site is there again, as it was."""
    await two.fra.agent.start()
    await two.fra.gateway.start()


def events(site: SiteUnderTest, id_: str) -> list[Recorded]:
    """What the site's audit log says of a migration."""
    log = Still(Directory(site.directory / "gw-1-audit"))
    return [entry for _, entry in last(log, 1000) if entry.text("migration") == id_]


def names(site: SiteUnderTest, id_: str) -> list[str]:
    return [entry.event.name for entry in events(site, id_)]


async def completed(site: SiteUnderTest, id_: str) -> Migration:
    ended = await site.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    return ended


@pytest.fixture
async def admin(two: TwoSites) -> AsyncIterator[Operator]:
    async with two.ams.person("root") as admin:
        yield admin


async def activate(who: Operator, id_: str, reason: str = "the hall burnt down") -> Migration:
    request = api.ActivateMigrationRequest(id=id_, source_is_lost=reason)
    return (await who.remote.ask(who.stub.ActivateMigration, request)).migration


# What runs here.


async def test_a_vm_that_runs_here_is_not_under_way_for_ever(hasty: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    two = hasty
    id_, vm = await burn(two, monkeypatch, runs=True)
    ended = await completed(two.ams, id_)
    assert ended.reason.startswith(
        "host ams-1 says that web-01 was let run there; nobody else can be asked: site fra does not"
    )
    assert ended.HasField("ended_at")
    entry = next(entry for entry in events(two.ams, id_) if entry.event.name == "migration.completed")
    assert entry.text("reason") == ended.reason
    await two.ams.gateway.restart()
    assert (await two.ams.operator.migration(id_)).reason == ended.reason
    assert names(two.ams, id_).count("migration.completed") == 1
    assert two.ams.hypervisor.vm(vm).autostart


async def test_a_source_that_comes_back_completes_it_and_can_be_settled_with_a_receipt_that_verifies(
    hasty: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = hasty
    id_, vm = await burn(two, monkeypatch, runs=True)
    await completed(two.ams, id_)
    await back(two)
    assert (await completed(two.fra, id_)).summary.total_ms
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.vm(vm).autostart
    assert len((await two.fra.operator.settle(id_)).removed) == 2

    async def has_heard() -> bool:
        return State((await two.ams.operator.migration(id_)).state) is State.SETTLED

    await eventually(has_heard)
    await eventually((two.fra.directory / "gw-1-audit" / RECEIPTS / f"{id_}.receipt").exists)
    receipt = Receipt.decode(await two.fra.operator.receipt(id_))
    assert not check(receipt)
    assert len(receipt.parts) == 2


def moved_on(two: TwoSites, vm: str) -> None:
    """What a move to a third site leaves."""
    two.ams.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    two.ams.hypervisor.set_autostart(vm, False)
    two.ams.hypervisor.mark_moved(vm, "another")


def settled(two: TwoSites, vm: str) -> None:
    """And nothing is left of that."""
    moved_on(two, vm)
    two.ams.hypervisor.undefine(vm)
    two.ams.hypervisor.images.clear()


def shut_off(two: TwoSites, vm: str) -> None:
    """By its owner."""
    two.ams.hypervisor.set_presence(vm, Presence.SHUT_OFF)


@pytest.mark.parametrize(("fate", "forgets"), [(moved_on, False), (shut_off, False), (settled, False), (settled, True)])
async def test_a_source_that_comes_back_completes_it_and_starts_nothing_whatever_has_become_of_the_vm(
    hasty: TwoSites, monkeypatch: pytest.MonkeyPatch, fate: Callable[[TwoSites, str], None], forgets: bool
) -> None:
    two = hasty
    id_, vm = await burn(two, monkeypatch, runs=True)
    await completed(two.ams, id_)
    fate(two, vm)
    if forgets:  # the host here is installed anew, too
        await two.ams.agent.stop()
        for record in (two.ams.directory / "state/migrations").glob("*.json"):
            record.unlink()
        await two.ams.agent.start()
    before = [each.SerializeToString(deterministic=True) for each in two.ams.hypervisor.vms()]
    two.ams.hypervisor.asked.clear()
    await back(two)
    await completed(two.fra, id_)
    assert [each.SerializeToString(deterministic=True) for each in two.ams.hypervisor.vms()] == before
    assert not two.ams.hypervisor.asked & {"resume", "set_autostart", "destroy", "undefine", "mark_moved"}
    left = two.fra.hypervisor.vm(vm)
    assert (left.state, left.moved_by, left.autostart) == (VmState.VM_STATE_MOVED, id_, False)


async def test_a_vm_that_is_back_at_its_source_before_that_has_asked_again_runs_there_alone(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, admin: Operator
) -> None:
    id_, vm = await burn(two, monkeypatch, runs=False)
    await activate(admin, id_)
    activating, slowly = Arriving.activating, asyncio.Event()

    async def late(self: Arriving, row: object) -> object:
        await slowly.wait()
        return await activating(self, row)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Arriving, "activating", late)
    await back(two)
    await reaches(two.ams, "fra")
    there = await two.ams.operator.migrate("web-01", "fra")
    # It waits in the same place, and the first one still does.
    await two.ams.operator.until(there, State.ACTIVATING)
    assert State((await two.fra.operator.migration(id_)).state) is State.ACTIVATING
    slowly.set()
    await completed(two.ams, there)
    await completed(two.fra, id_)
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert two.fra.hypervisor.memory(vm) == MEMORY
    await eventually(lambda: two.ams.hypervisor.vm(vm).moved_by == there)
    assert not two.ams.hypervisor.vm(vm).autostart


async def test_a_vm_can_go_back_to_a_site_that_was_built_anew_and_knows_nothing(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, vm = await burn(two, monkeypatch, runs=True)
    assert State((await two.ams.operator.migration(id_)).state) not in ENDED
    for file in two.fra.directory.glob("gateway.db*"):
        file.unlink()
    await back(two)
    await reaches(two.ams, "fra")
    there = await two.ams.operator.migrate("web-01", "fra")
    await completed(two.ams, there)
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert "site fra knows of no migration" in (await completed(two.ams, id_)).reason


async def test_disks_that_were_to_be_compared_are_said_not_to_be_proved_once_the_source_was_waited_for(
    hasty: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = hasty
    id_, vm = await burn(two, monkeypatch, runs=True, policy=PROVED)
    ended = await completed(two.ams, id_)
    assert ended.proof.outcome == ProofOutcome.PROOF_OUTCOME_NOT_PROVED
    assert "disk.unproved" in names(two.ams, id_)
    await eventually(lambda: not two.ams.hypervisor.bitmaps(vm))
    await back(two)
    assert (await completed(two.fra, id_)).proof.reason == "at the destination: it was ended"
    with pytest.raises(Conflict, match="were to be proved equal, and are not"):
        await two.fra.operator.settle(id_)


# What waits here.


async def burn_before_the_release_was_noted(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Likewise, and its host lost power first: what it knows is that it was about to hand the VM over."""
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with losing_power_at_the_release(monkeypatch) as went_down:
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await asyncio.wait_for(went_down.wait(), PATIENCE)
        await eventually(lambda: two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF)
        await asyncio.gather(two.fra.gateway.stop(), two.fra.agent.stop())
    return id_, vm


async def test_a_vm_that_waits_is_never_completed_and_what_a_person_can_do_is_said(
    hasty: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = hasty
    id_, vm = await burn(two, monkeypatch, runs=False)
    waiting = await two.ams.operator.hears(id_, f"with landbridge activate {id_[:8]}")
    assert "web-01 has arrived whole and waits on host ams-1: if site fra is lost for good" in waiting.reason
    assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
    monkeypatch.setattr(
        stranded, "LOOK", PATIENCE
    )  # else it looks once more before the source, which is back, has told the end
    await back(two)
    await completed(two.fra, id_)
    assert (await completed(two.ams, id_)).reason == ""
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_an_admin_has_it_run_on_record_and_a_source_that_comes_back_completes_it(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, admin: Operator
) -> None:
    id_, vm = await burn(two, monkeypatch, runs=False)
    ended = await activate(admin, id_)
    assert State(ended.state) is State.COMPLETED
    assert "root, who says that site fra is lost: the hall burnt down" in ended.reason
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.memory(vm) == MEMORY
    assert two.ams.hypervisor.vm(vm).autostart
    told = names(two.ams, id_)
    assert told.index("migration.forced") < told.index("migration.completed")
    forced = next(entry for entry in events(two.ams, id_) if entry.event.name == "migration.forced")
    assert forced.text("reason") == "the hall burnt down"
    with pytest.raises(Conflict, match="has ended already"):
        await activate(admin, id_)
    await back(two)
    await completed(two.fra, id_)
    assert two.fra.hypervisor.presence(vm) is Presence.SHUT_OFF
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


@pytest.mark.parametrize("runs", [False, True])
async def test_a_source_that_comes_back_and_has_to_find_out_who_has_the_vm_never_takes_it_from_here(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, admin: Operator, runs: bool
) -> None:
    id_, vm = await burn_before_the_release_was_noted(two, monkeypatch)
    await activate(admin, id_)
    if runs:  # libvirt has let it go on there, or somebody has: what the admin had to see to
        two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    await back(two)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is (State.FAILED if runs else State.COMPLETED)
    assert ("migration.doubled" in names(two.fra, id_)) is runs
    assert (two.fra.hypervisor.presence(vm) is Presence.RUNNING) is runs
    assert bool(two.fra.hypervisor.vm(vm).moved_by) is not runs
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert State((await two.ams.operator.migration(id_)).state) is State.COMPLETED


async def test_only_an_admin_has_it_run_and_only_with_a_reason(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, admin: Operator
) -> None:
    id_, vm = await burn(two, monkeypatch, runs=False)
    with pytest.raises(PermissionDenied, match="`landbridge activate` takes admin"):
        await activate(two.ams.operator, id_)
    for reason in ("  ", "x" * 501):
        with pytest.raises(UsageError, match="say how it is known that the source is lost"):
            await activate(admin, id_, reason)
    assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
    assert "migration.forced" not in names(two.ams, id_)


async def test_while_the_source_answers_nobody_has_it_run(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, admin: Operator
) -> None:
    id_, vm = await burn(two, monkeypatch, runs=False)
    monkeypatch.setattr(Arriving, "activating", lambda *_: asyncio.Event().wait())
    await back(two)
    await reaches(two.ams, "fra")
    with pytest.raises(Conflict, match="site fra is not lost, it answers"):
        await activate(admin, id_)
    assert two.ams.hypervisor.presence(vm) is Presence.ARRIVED
    assert "migration.forced" not in names(two.ams, id_)


async def test_what_has_not_arrived_whole_is_not_let_run(two: TwoSites, admin: Operator) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = 50_000
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await two.fra.gateway.stop()
    with pytest.raises(Conflict, match="has not arrived whole on host ams-1"):
        await activate(admin, id_)
    async with two.fra.person("root") as other:
        await two.fra.gateway.start()
        with pytest.raises(Conflict, match="goes from here"):
            await activate(other, id_)
    await two.fra.operator.cancel(id_)
