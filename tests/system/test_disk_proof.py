"""The proof of a migration's disks: what is found, what is refused then, and what comes of it when somebody is killed meanwhile."""

from __future__ import annotations

import os
import threading
import unittest.mock

import pytest

from agent import disk_proof
from agent.hypervisor.base import Presence
from agent.journal import BitmapState, Journal, Record
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.migration.states import State
from landbridge.disk_tree import BLOCK, Builder, leaf, root_of
from landbridge.errors import Conflict, NotRecorded, PermissionDenied, PreflightFailed
from landbridge.v1.agent_pb2 import ProveRequest, ProveResponse
from landbridge.v1.types_pb2 import Policy, ProofOutcome
from tests.system.sites import SiteUnderTest, TwoSites, eventually, policy_of

pytestmark = pytest.mark.timeout(60)

PROVED = Policy(verify_disks=True)
EQUAL, DIFFERS = ProofOutcome.PROOF_OUTCOME_EQUAL, ProofOutcome.PROOF_OUTCOME_DIFFERS
NOT_PROVED = ProofOutcome.PROOF_OUTCOME_NOT_PROVED
# Five blocks, of which one is a hole, and a part of a sixth.
DISK = os.urandom(3 * BLOCK) + bytes(BLOCK) + os.urandom(BLOCK + 1000)
TARGET = "/pools/images/web-01.qcow2"


def recorded(site: SiteUnderTest, id_: str) -> list[Recorded]:
    """What the site's audit log says of a migration."""
    log = Still(Directory(site.directory / "gw-1-audit"))
    return [entry for _, entry in last(log, 1000) if entry.text("migration") == id_]


async def begun(two: TwoSites, policy: Policy = PROVED) -> tuple[str, str]:
    """A migration with a proof; its id and the VM's UUID."""
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    return await two.fra.operator.migrate("web-01", "ams", policy), vm


def corrupt(data: bytes, block: int) -> bytes:
    """The disk with one bit of a block turned."""
    at = block * BLOCK + 77
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def root(data: bytes) -> bytes:
    """As anybody can make it."""
    blocks = -(-len(data) // BLOCK)
    builder = Builder(blocks)
    for at in range(0, len(data), BLOCK):
        builder.add(leaf(data[at : at + BLOCK]))
    return root_of(builder.nodes(), blocks)


async def closed(two: TwoSites, vm: str) -> None:
    """No bitmap is left, and no file of the proof."""
    await eventually(lambda: not two.ams.hypervisor.bitmaps(vm))
    await eventually(lambda: not list((two.ams.directory / "state/migrations").glob("*.proof")))


async def test_disks_that_are_equal_are_proved_so_and_the_source_may_be_settled(two: TwoSites) -> None:
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)

    assert State(ended.state) is State.COMPLETED
    (disk,) = ended.proof.disks
    assert (ended.proof.outcome, ended.proof.reason) == (EQUAL, "")
    assert disk.source_root == disk.destination_root == root(DISK).hex()
    assert (disk.target, disk.size, disk.blocks_compared, disk.blocks_written) == ("vda", len(DISK), 6, 0)
    await closed(two, vm)
    await eventually(lambda: two.fra.is_clean(vm) or not list(two.fra.runtime.iterdir()))
    assert (await two.fra.operator.settle(id_)).removed
    for site in (two.fra, two.ams):
        await eventually(lambda site=site: recorded(site, id_)[-1].event.name == "migration.settled")  # type: ignore[misc]  # a default, for the loop
        found = next(entry for entry in recorded(site, id_) if entry.event.name == "disk.verified")
        assert found.text("claimed", "verify", "result") == "equal"
        assert found.facts("claimed")["disks"][0]["stored_digest"] == root(DISK).hex()  # type: ignore[call-overload, index]  # as written


async def test_nothing_is_compared_unless_somebody_wants_it(two: TwoSites) -> None:
    id_, _ = await begun(two, Policy())
    ended = await two.fra.operator.ended(id_)
    assert not ended.HasField("proof")
    assert not {"open_bitmap", "freeze_disks", "close_bitmap"} & two.ams.hypervisor.asked
    assert (await two.fra.operator.settle(id_)).removed


async def test_what_the_guest_writes_meanwhile_is_left_out_and_counted(two: TwoSites) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, vm = await begun(two)
    await two.fra.operator.until(id_, State.VERIFYING)
    two.ams.hypervisor.write(vm, BLOCK + 9, b"written by the guest")
    two.ams.hypervisor.write(vm, 3 * BLOCK - 2, b"over an edge")
    hold.set()

    ended = await two.fra.operator.ended(id_)
    (disk,) = ended.proof.disks
    assert (ended.proof.outcome, disk.blocks_compared, disk.blocks_written) == (EQUAL, 3, 3)


async def test_a_disk_that_is_stored_otherwise_than_it_was_is_found_and_its_source_never_settled(two: TwoSites) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, vm = await begun(two)
    await two.fra.operator.until(id_, State.VERIFYING)
    two.ams.hypervisor.images[TARGET] = corrupt(two.ams.hypervisor.images[TARGET], 2)
    hold.set()

    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert ended.proof.outcome == DIFFERS
    assert ended.proof.reason == f"disk vda of web-01 differs between fra-1 and ams-1, first at byte {2 * BLOCK}"
    assert [(each.offset, each.length) for each in ended.proof.disks[0].differing] == [(2 * BLOCK, BLOCK)]
    two.fra.set_policy(policy_of("fra").replace("admin = ['root']", "admin = ['root', 'alice']"))
    await eventually(lambda: has_role(two, "admin"))
    for without_proof in ("", "I know better"):
        with pytest.raises(Conflict, match="may be the only good copy"):
            await two.fra.operator.settle(id_, without_proof)
    assert TARGET in two.fra.hypervisor.images
    assert "disk.differs" in {entry.event.name for entry in recorded(two.fra, id_)}
    await eventually(lambda: recorded(two.ams, id_)[-1].event.name == "migration.completed")
    assert "disk.differs" in {entry.event.name for entry in recorded(two.ams, id_)}


async def has_role(two: TwoSites, role: str) -> bool:
    return role in (await two.fra.operator.policy()).roles


async def test_a_source_that_is_started_by_hand_cannot_be_compared(two: TwoSites) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, vm = await begun(two)
    await two.fra.operator.until(id_, State.VERIFYING)
    two.fra.hypervisor.set_presence(vm, Presence.RUNNING)
    hold.set()

    ended = await two.fra.operator.ended(id_)
    assert ended.proof.outcome == NOT_PROVED
    assert ended.proof.reason == f"at the source: Disk vda cannot be read: web-01 uses {TARGET}"
    await closed(two, vm)


async def test_without_a_proof_that_was_wanted_the_source_stays_until_an_admin_says_why_not(two: TwoSites) -> None:
    two.ams.hypervisor.fail_next("open_bitmap", "no space")
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert (ended.proof.outcome, ended.proof.reason) == (
        NOT_PROVED,
        "at the destination: The hypervisor refuses open_bitmap: no space",
    )
    assert "disk.unproved" in {entry.event.name for entry in recorded(two.fra, id_)}
    with pytest.raises(Conflict, match="an admin may say why it can be all the same"):
        await two.fra.operator.settle(id_)
    with pytest.raises(PermissionDenied, match="takes the role admin"):
        await two.fra.operator.settle(id_, "checked by hand")
    assert TARGET in two.fra.hypervisor.images

    two.fra.set_policy(policy_of("fra").replace("admin = ['root']", "admin = ['root', 'alice']"))
    await eventually(lambda: has_role(two, "admin"))
    assert (await two.fra.operator.settle(id_, "checked by hand")).removed
    assert recorded(two.fra, id_)[-1].text("reason").endswith("without a proof of the disks: checked by hand")


async def test_a_rule_of_either_site_may_want_the_proof(two: TwoSites) -> None:
    more = """
[[rules]]
name = "what is restricted is proved"
effect = "permit"
who = ["*/*"]
vms = ["web-*"]
from = ["*"]
to = ["*"]
verify_disks = true
"""
    assert two.ams.policy is not None
    two.ams.set_policy(policy_of("ams", more=more))
    two.fra.hypervisor.add_vm("raw-01", disk=DISK, disk_format="raw")
    await eventually(lambda: demands(two, "web-01x"))
    id_, _ = await begun(two, Policy())
    ended = await two.fra.operator.ended(id_)
    assert ended.proof.outcome == EQUAL
    # Only what the rule is for.
    two.fra.hypervisor.add_vm("db-01", disk=DISK)
    other = await two.fra.operator.ended(await two.fra.operator.migrate("db-01", "ams"))
    assert not other.HasField("proof")


async def demands(two: TwoSites, vm: str) -> bool:
    """Whether the other site's policy has been read."""
    if not any(each.name == vm for each in two.fra.hypervisor.vms()):
        two.fra.hypervisor.add_vm(vm, disk=DISK)
    answer = await two.fra.operator.explain(vm, "ams")
    return any(decision.verify_disks for decision in answer.decisions)


async def test_a_disk_that_carries_no_bitmap_is_said_before_anything_is_touched(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, disk_format="raw")
    with pytest.raises(PreflightFailed, match="disk vda of web-01 is raw, which cannot carry the bitmap"):
        await two.fra.operator.migrate("web-01", "ams", PROVED)
    found = await two.fra.operator.preflight("web-01", "ams", PROVED)
    assert "disk-unprovable" in {finding.code for finding in found.findings}
    assert (await two.fra.operator.preflight("web-01", "ams")).passed


async def test_a_vm_without_disks_has_nothing_to_prove_and_is_settled(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01")
    id_ = await two.fra.operator.migrate("web-01", "ams", PROVED)
    ended = await two.fra.operator.ended(id_)
    assert (ended.proof.outcome, len(ended.proof.disks)) == (EQUAL, 0)
    assert (await two.fra.operator.settle(id_)).removed


async def test_a_vm_that_somebody_lets_run_before_its_bitmap_is_open_is_not_called_proved(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = two.ams.hypervisor
    arrive = hypervisor.arrive

    def run_at_once(uuid: str, memory: bytes, disks: bytes) -> None:
        arrive(uuid, memory, disks)
        hypervisor.set_presence(uuid, Presence.RUNNING)

    monkeypatch.setattr(hypervisor, "arrive", run_at_once)
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert ended.proof.outcome == NOT_PROVED
    assert "somebody let web-01 run before it was noted what it writes" in ended.proof.reason
    await closed(two, vm)


@pytest.mark.parametrize("method", ["freeze_disks", "read_disk", "close_bitmap"])
async def test_a_destinations_agent_that_dies_during_the_proof_does_it_again(two: TwoSites, method: str) -> None:
    hold = two.ams.hypervisor.hold_next(method)
    id_, vm = await begun(two)
    await eventually(lambda: method in two.ams.hypervisor.asked)
    await kill(two.ams, hold)
    await two.ams.agent.start()
    ended = await two.fra.operator.ended(id_)
    assert (ended.proof.outcome, ended.proof.reason) == (EQUAL, "")
    await closed(two, vm)


async def kill(site: SiteUnderTest, hold: threading.Event) -> None:
    """Stop an agent whose worker hangs: it is let go once it was told to stop, for threads cannot be killed."""
    real = disk_proof.Reading.stop

    def stop(self: disk_proof.Reading) -> None:
        real(self)
        hold.set()

    with unittest.mock.patch.object(disk_proof.Reading, "stop", stop):
        await site.agent.stop()


async def test_a_sources_agent_that_dies_during_the_proof_does_it_again(two: TwoSites) -> None:
    hold = two.fra.hypervisor.hold_next("idle_disks")
    id_, _ = await begun(two)
    await eventually(lambda: "idle_disks" in two.fra.hypervisor.asked)
    await kill(two.fra, hold)
    await two.fra.agent.start()
    assert (await two.fra.operator.ended(id_)).proof.outcome == EQUAL


@pytest.mark.parametrize("site", ["fra", "ams"])
async def test_a_gateway_that_dies_during_the_proof_goes_on_with_it(two: TwoSites, site: str) -> None:
    hold = two.ams.hypervisor.hold_next("read_disk")
    id_, _ = await begun(two)
    await eventually(lambda: "read_disk" in two.ams.hypervisor.asked)
    dying = two.fra if site == "fra" else two.ams
    await dying.gateway.stop()
    hold.set()
    await dying.gateway.start()
    assert (await two.fra.operator.ended(id_)).proof.outcome == EQUAL


@pytest.mark.parametrize(("attempts", "outcome"), [(1, NOT_PROVED), (2, EQUAL)])
async def test_a_reading_that_fails_is_tried_again_and_in_the_end_its_reason_told(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch, attempts: int, outcome: ProofOutcome.ValueType
) -> None:
    monkeypatch.setattr(disk_proof, "ATTEMPTS", attempts)
    two.ams.hypervisor.fail_next("read_disk", "an error of the storage")
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert ended.proof.outcome == outcome
    assert ("an error of the storage" in ended.proof.reason) is (outcome == NOT_PROVED)
    await closed(two, vm)


async def test_a_host_that_stays_away_leaves_the_disks_unproved_after_the_patience(two: TwoSites) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, _ = await begun(two)
    await two.fra.operator.until(id_, State.VERIFYING)
    await kill(two.ams, hold)
    two.fra.patience = two.fra.patience.model_copy(update={"outage": 0.3})
    await two.fra.gateway.restart()
    ended = await two.fra.operator.ended(id_)
    assert ended.proof.outcome == NOT_PROVED
    assert "host ams-1 does not answer" in ended.proof.reason
    await two.ams.agent.start()


async def test_a_bitmap_that_nobody_asks_for_is_closed_in_time(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, vm = await begun(two)
    await eventually(lambda: "freeze_disks" in two.ams.hypervisor.asked)
    await two.fra.gateway.stop()
    await kill(two.ams, hold)
    assert two.ams.hypervisor.bitmaps(vm)
    monkeypatch.setattr(disk_proof, "LEASE", 0.1)
    await two.ams.agent.start()
    await closed(two, vm)
    await two.fra.gateway.start()
    ended = await two.fra.operator.ended(id_)
    assert (ended.proof.outcome, ended.proof.reason) == (NOT_PROVED, "at the destination: nobody asked for it any more")


async def test_a_vm_that_comes_back_does_not_replace_what_may_be_the_only_good_copy(two: TwoSites) -> None:
    hold = two.ams.hypervisor.hold_next("freeze_disks")
    id_, _ = await begun(two)
    await two.fra.operator.until(id_, State.VERIFYING)
    two.ams.hypervisor.images[TARGET] = corrupt(two.ams.hypervisor.images[TARGET], 2)
    hold.set()
    assert (await two.fra.operator.ended(id_)).proof.outcome == DIFFERS
    with pytest.raises(Conflict, match="may be the only good copy"):
        await two.ams.operator.migrate("web-01", "fra")
    assert two.fra.hypervisor.images[TARGET] == DISK


async def test_a_figure_that_no_entry_can_hold_ends_no_migration(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = disk_proof.DestinationProof.prove

    async def boasts(self: disk_proof.DestinationProof, request: ProveRequest) -> ProveResponse:
        answer = await real(self, request)
        answer.downtime_us = 1 << 60
        return answer

    monkeypatch.setattr(disk_proof.DestinationProof, "prove", boasts)
    id_, _ = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    assert {"disk.verified", "migration.completed"} <= {entry.event.name for entry in recorded(two.fra, id_)}


async def test_a_failed_migration_leaves_no_bitmap(two: TwoSites) -> None:
    two.ams.hypervisor.fail_next("arrive")
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert not ended.HasField("proof")
    assert two.ams.is_clean(vm)


async def test_a_journal_that_cannot_be_written_holds_up_no_vm(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Journal.save

    def full(self: Journal, record: Record) -> None:
        if record.bitmap is BitmapState.OPEN:
            raise NotRecorded("the journal cannot be written")
        save(self, record)

    monkeypatch.setattr(Journal, "save", full)
    id_, vm = await begun(two)
    ended = await two.fra.operator.ended(id_)
    assert (ended.proof.outcome, ended.proof.reason) == (
        NOT_PROVED,
        "at the destination: the journal cannot be written",
    )
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    await closed(two, vm)
