"""What the audit log says of a migration, and that nothing happens that it cannot say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.audit.entry import Recorded
from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.reading import last
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from gateway.migration import ledger as ledger_module
from gateway.migration.ledger import Ledger, state_of
from gateway.migration.recording import Recorder, facts
from gateway.migration.states import Input, State
from gateway.store import Row, Store
from landbridge.errors import NotRecorded
from landbridge.v1.decision_pb2 import Decision, Grounds, Verdict
from landbridge.v1.types_pb2 import ByteRange, ChannelBytes, DiskProof, Migration, Proof, ProofOutcome
from tests.unit.audit_logs import BRU


def row(id_: str = "aaaa1111", *, coordinating: bool = True, state: State = State.REQUESTED) -> Row:
    migration = Migration(
        id=id_,
        vm="web-01",
        vm_uuid="u-1",
        source_site="bru",
        source_host="host-a",
        destination_site="ams",
        destination_host="host-b",
        state=state.value,
        requested_by="spiffe://example.org/site/bru/operator/alice",
    )
    return Row(migration=migration, coordinating=coordinating)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = await Journal.open(tmp_path / "audit", BRU)
    yield made
    await made.close()


@pytest.fixture
async def ledger(tmp_path: Path, journal: Journal) -> AsyncIterator[Ledger]:
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    made = Ledger(store, Recorder(journal))
    await made.load()
    yield made
    store.close()


def recorded(tmp_path: Path) -> list[Recorded]:
    log = Directory(tmp_path / "audit")
    assert verify(log).findings == []
    return [entry for _, entry in last(log, 100)]


async def test_each_state_of_a_migration_is_an_entry(ledger: Ledger, tmp_path: Path) -> None:
    one = row()
    await ledger.save(one)
    await ledger.save(one)
    for event in (Input.BEGIN, Input.PREPARED, Input.MEMORY_BEGAN, Input.SUSPENDED, Input.RELEASED):
        await ledger.advance(one, event)
    one.migration.summary.total_ms, one.migration.summary.downtime_ms = 6000, 87
    one.migration.summary.channels.append(ChannelBytes(kind="ram", to_destination=4096))
    await ledger.advance(one, Input.ACTIVATED)
    await ledger.advance(one, Input.SETTLE)
    entries = recorded(tmp_path)
    assert [(each.event.name, each.text("seen", "state", "to")) for each in entries] == [
        ("migration.requested", "requested"),
        ("migration.stepped", "preparing"),
        ("migration.stepped", "copying_disks"),
        ("migration.stepped", "copying_memory"),
        ("migration.stepped", "switching"),
        ("migration.stepped", "activating"),
        ("migration.completed", "completed"),
        ("migration.settled", "settled"),
    ]
    first, completed = entries[0], entries[-2]
    assert first.text("actor", "id").endswith("/operator/alice")
    assert first.text("actor", "method") == "certificate"
    assert completed.facts("seen")["duration_ms"] == 6000
    assert completed.facts("claimed")["downtime_ms"] == 87
    assert completed.facts("claimed")["bytes_ram"] == 4096
    assert completed.facts("claimed")["location"] == {"site": "ams", "host": "host-b"}
    assert {each.text("migration") for each in entries} == {"aaaa1111"}


def test_of_a_vm_that_is_shut_off_it_says_so() -> None:
    migration = Migration(cold=True, state=State.COMPLETED.value, destination_site="ams", destination_host="host-b")
    _, claimed = facts(migration, State.ACTIVATING, coordinating=True)
    assert claimed["location"] == {"site": "ams", "host": "host-b", "vm_state": "shut off"}


@pytest.mark.parametrize(
    ("events", "name", "outcome"),
    [
        ((Input.TROUBLE, Input.SOURCE_HAS_IT, Input.CLEANED), "migration.failed", "failure"),
        ((Input.CANCEL, Input.SOURCE_HAS_IT, Input.CLEANED_AFTER_CANCEL), "migration.cancelled", "failure"),
    ],
)
async def test_how_it_went_wrong_is_in_the_last_entry(
    ledger: Ledger, tmp_path: Path, events: tuple[Input, ...], name: str, outcome: str
) -> None:
    one = row()
    await ledger.save(one)
    for event in events:
        await ledger.advance(one, event, "the WAN was down")
    ended = recorded(tmp_path)[-1]
    assert (ended.event.name, ended.text("outcome"), ended.text("reason")) == (name, outcome, "the WAN was down")


async def test_at_the_destination_what_the_source_says_is_claimed(ledger: Ledger, tmp_path: Path) -> None:
    one = row(coordinating=False, state=State.PREPARING)
    await ledger.save(one)
    one.migration.state = State.COMPLETED.value
    await ledger.save(one)
    admitted, completed = recorded(tmp_path)
    assert (admitted.event.name, completed.event.name) == ("migration.admitted", "migration.completed")
    assert admitted.facts("seen") == {"destination": {"site": "ams", "host": "host-b"}}
    assert admitted.text("claimed", "vm", "name") == "web-01"
    assert admitted.text("actor", "method") == "as site bru says"


async def test_why_and_by_what_right_is_told_at_both_ends_of_it_as_what_it_is(ledger: Ledger, tmp_path: Path) -> None:
    one = row()
    one.migration.purpose = "the cooling has failed"
    one.migration.grounds.legal_basis = "contract"
    one.migration.grounds.transfer_mechanism = "scc-eu"
    one.migration.grounds.purpose = "running the shop"
    theirs = Decision(site="ams", verdict=Verdict.VERDICT_ALLOWED, grounds=Grounds(legal_basis="consent"))
    one.migration.decisions.extend(
        [Decision(site="bru", verdict=Verdict.VERDICT_ALLOWED, grounds=one.migration.grounds), theirs]
    )
    await ledger.save(one)
    await ledger.advance(one, Input.BEGIN)
    await ledger.advance(one, Input.CANCEL)
    await ledger.advance(one, Input.SOURCE_HAS_IT)
    await ledger.advance(one, Input.CLEANED_AFTER_CANCEL)
    first, own, other, *steps, last_one = recorded(tmp_path)
    configured = {"purpose": "running the shop", "legal_basis": "contract", "transfer_mechanism": "scc-eu"}
    for entry in (first, last_one):
        assert {name: entry.facts("seen")[name] for name in configured} == configured
        assert entry.facts("claimed")["request"] == {"purpose": "the cooling has failed"}
    assert {name: own.facts("seen")[name] for name in configured} == configured
    assert (other.text("claimed", "legal_basis"), other.text("seen", "legal_basis")) == ("consent", "")
    for entry in steps:
        assert not set(configured) & set(entry.facts("seen"))


async def test_at_the_destination_the_sources_grounds_are_claims_and_its_own_are_not(
    ledger: Ledger, tmp_path: Path
) -> None:
    one = row(coordinating=False)
    one.migration.purpose, one.migration.grounds.legal_basis = "why", "contract"
    one.migration.decisions.append(
        Decision(site="ams", verdict=Verdict.VERDICT_ALLOWED, grounds=Grounds(legal_basis="consent"))
    )
    await ledger.save(one)
    admitted, permitted = recorded(tmp_path)
    assert admitted.facts("claimed")["request"] == {"purpose": "why"}
    assert (admitted.text("claimed", "legal_basis"), admitted.text("seen", "legal_basis")) == ("contract", "")
    assert permitted.text("seen", "legal_basis") == "consent"


async def test_what_cannot_be_recorded_does_not_begin(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", refuse)
        with pytest.raises(NotRecorded):
            await ledger.save(row())
    assert ledger.rows() == []


async def test_a_migration_is_held_while_its_step_cannot_be_recorded_and_goes_on_then(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "STORE_RETRY", 0.01)
    one = row()
    await ledger.save(one)
    tried = 0
    real = Storage.commit

    def full_for_a_while(self: Storage, entries: list[bytes]) -> int:
        nonlocal tried
        tried += 1
        return refuse() if tried < 4 else real(self, entries)

    monkeypatch.setattr(Storage, "commit", full_for_a_while)
    await ledger.advance(one, Input.BEGIN)
    assert tried == 4
    assert state_of(one) is State.PREPARING
    assert [each.text("seen", "state", "to") for each in recorded(tmp_path)] == ["requested", "preparing"]


def refuse(*_: object) -> int:
    raise NotRecorded("the disk is full")


async def test_states_that_were_recorded_before_a_restart_are_not_recorded_again(
    ledger: Ledger, journal: Journal, tmp_path: Path
) -> None:
    await ledger.save(row())
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    again = Ledger(store, Recorder(journal))
    await again.load()
    found = await again.find("aaaa1111")
    await again.save(found)
    await again.advance(found, Input.BEGIN)
    assert [each.text("seen", "state", "to") for each in recorded(tmp_path)] == ["requested", "preparing"]
    store.close()


@pytest.mark.parametrize(
    ("outcome", "name", "result"),
    [
        (ProofOutcome.PROOF_OUTCOME_EQUAL, "disk.verified", "equal"),
        (ProofOutcome.PROOF_OUTCOME_DIFFERS, "disk.differs", "differs"),
        (ProofOutcome.PROOF_OUTCOME_NOT_PROVED, "disk.unproved", "skipped"),
        (ProofOutcome.PROOF_OUTCOME_UNDER_WAY, "disk.unproved", "skipped"),
    ],
)
@pytest.mark.parametrize("coordinating", [True, False])
async def test_what_came_of_the_proof_of_its_disks_stands_before_its_end_at_both_sites(
    ledger: Ledger, tmp_path: Path, outcome: ProofOutcome.ValueType, name: str, result: str, coordinating: bool
) -> None:
    one = row(coordinating=coordinating, state=State.VERIFYING)
    await ledger.save(one)
    disk = DiskProof(target="vda", size=1 << 20, source_root="ab" * 32, destination_root="cd" * 32, blocks_compared=15)
    disk.differing.append(ByteRange(offset=65536, length=65536))
    one.migration.proof.CopyFrom(Proof(outcome=outcome, reason="as it is", disks=[disk], downtime_us=1200))
    one.migration.state = State.COMPLETED.value
    await ledger.save(one)
    await ledger.save(one)
    found, completed = recorded(tmp_path)[-2:]
    assert (found.event.name, completed.event.name) == (name, "migration.completed")
    assert found.text("reason") == "as it is"
    assert (found.text("claimed", "verify", "result"), found.text("claimed", "verify", "downtime_us")) == (
        result,
        "1200",
    )
    told = found.facts("claimed")["disks"][0]  # type: ignore[index]  # a list, as recorded
    assert (told["digest"], told["stored_digest"], told["differs_at"]) == ("ab" * 32, "cd" * 32, [65536])  # type: ignore[index, call-overload]  # see above
