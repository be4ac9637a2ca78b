"""Receipts as a gateway makes them: of both logs, for those whom the migration concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from gateway.audit import proving
from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.proving import prove
from gateway.audit.receipt import Receipt, check
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.receipts import Receipts, _part
from gateway.migration.recording import Recorder
from gateway.migration.states import State
from gateway.store import Store
from landbridge.errors import Conflict, NotFound, PermissionDenied, ProtocolError
from landbridge.v1.audit_pb2 import GetProofsResponse, ProvedEntry
from tests.unit.audit_logs import BRU, WITNESS_KEY
from tests.unit.test_recording import row


class Bru:
    """An inventory that knows its own name only."""

    site = "bru"


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


@pytest.fixture
def receipts(ledger: Ledger, journal: Journal) -> Receipts:
    async def head() -> Signed:
        return journal.signed

    return Receipts(ledger, cast("Inventory", Bru()), journal, head)


async def test_only_the_two_sites_of_a_migration_get_proofs_of_it(receipts: Receipts, ledger: Ledger) -> None:
    await ledger.save(row())
    for site in ("bru", "ams"):
        assert len((await receipts.proofs("aaaa1111", site)).entries) == 1
    with pytest.raises(PermissionDenied, match="is not of site par"):
        await receipts.proofs("aaaa1111", "par")
    with pytest.raises(NotFound):
        await receipts.proofs("bbbb2222", "ams")


async def test_a_receipt_waits_for_the_end_and_for_the_other_site_to_hear_of_it(
    receipts: Receipts, ledger: Ledger
) -> None:
    one = row()
    await ledger.save(one)
    with pytest.raises(Conflict, match="has not ended yet"):
        await receipts.receipt("aaaa1111")
    one.migration.state, one.peer_pending = State.COMPLETED.value, True
    await ledger.save(one)
    with pytest.raises(Conflict, match="site ams has not heard yet"):
        await receipts.receipt("aaaa1111")


async def test_entries_are_proved_wherever_they_stand(receipts: Receipts, ledger: Ledger, journal: Journal) -> None:
    await ledger.save(row("aaaa1111"))
    for number in range(300):
        await journal.record("access.denied", reason=f"aaaa1111 is named here too, number {number}")
    one = ledger.get("aaaa1111")
    assert one is not None
    one.migration.state = State.COMPLETED.value
    await ledger.save(one)
    part = prove(journal.storage, journal.signed, "aaaa1111")
    assert [each.proof.index for each in part.entries] == [0, 301]
    assert check(Receipt("aaaa1111", (part,))) == []
    # What was pruned is left out.
    await journal.record("log.pruned", seen={"pruned": {"minimum": 256}})
    journal.storage.prune(256)
    assert [each.proof.index for each in prove(journal.storage, journal.signed, "aaaa1111").entries] == [301]


async def test_so_many_entries_make_no_receipt(
    receipts: Receipts, ledger: Ledger, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "MOST_ENTRIES", 0)
    await ledger.save(row())
    with pytest.raises(Conflict, match="export them as a bundle"):
        await receipts.proofs("aaaa1111", "ams")


@pytest.mark.parametrize(
    "answer",
    [
        GetProofsResponse(key="no key"),
        GetProofsResponse(key=str(WITNESS_KEY), entries=[ProvedEntry(entry="{}", proof="no proof")]),
    ],
)
def test_what_another_site_says_must_be_proofs(answer: GetProofsResponse) -> None:
    with pytest.raises(ProtocolError, match="site ams gave no proofs that can be read"):
        _part(answer, "ams")
