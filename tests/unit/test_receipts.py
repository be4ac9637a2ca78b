"""Receipts as a gateway makes them: of both logs, for those whom the migration concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from gateway.audit import proving
from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.proving import prove
from gateway.audit.receipt import Missing, Part, Receipt, check
from gateway.audit.storage import Storage
from gateway.audit.tree import TileName
from gateway.migration.deposits import Deposits
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.receipts import MOST_LOGS, MOST_MISSING, Receipts, _told, said
from gateway.migration.recording import Recorder
from gateway.migration.states import State
from gateway.store import Store
from landbridge.errors import Conflict, NotFound, PermissionDenied, ProtocolError
from landbridge.v1.audit_pb2 import GetProofsResponse, LogProofs, MissingEntries, ProvedEntry
from tests.unit.audit_logs import AMS, BRU, WITNESS_KEY, part, written
from tests.unit.test_recording import row

BRUS_KEY = replace(WITNESS_KEY, name=f"{BRU}/gateway/gw-1")


async def followed(migration: str) -> None:
    """All that agents tell of it is on record already."""


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
async def receipts(tmp_path: Path, ledger: Ledger, journal: Journal) -> AsyncIterator[Receipts]:
    async def head() -> Signed:
        return journal.signed

    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    yield Receipts(ledger, cast("Inventory", Bru()), Deposits(store, journal, head, followed))
    store.close()


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
    proved = prove(journal.storage, journal.signed, "aaaa1111")
    assert [each.proof.index for each in proved.entries] == [0, 301]
    assert check(Receipt("aaaa1111", (proved,))) == []
    # What was pruned is left out.
    await journal.record("log.pruned", seen={"pruned": {"minimum": 256}})
    journal.storage.prune(256)
    assert [each.proof.index for each in prove(journal.storage, journal.signed, "aaaa1111").entries] == [301]


async def test_a_bundle_that_is_pruned_while_it_is_read_is_left_out(
    receipts: Receipts, ledger: Ledger, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.save(row())
    for _ in range(256):
        await journal.record("access.denied")
    has = Storage.has
    pruned: list[int] = []

    def there(self: Storage, name: TileName) -> bool:
        was = has(self, name)
        if not pruned:
            pruned.append(journal.storage.prune(256))
        return was

    monkeypatch.setattr(Storage, "has", there)
    assert prove(journal.storage, journal.signed, "aaaa1111").entries == ()


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
        GetProofsResponse(key=str(WITNESS_KEY), others=[LogProofs(key="no key")]),
    ],
)
def test_what_another_site_says_must_be_proofs(answer: GetProofsResponse) -> None:
    with pytest.raises(ProtocolError, match="site ams gave no proofs that can be read"):
        _told(answer, "ams")


@pytest.mark.parametrize(
    "answer",
    [
        GetProofsResponse(key=str(WITNESS_KEY), others=[LogProofs(key=str(WITNESS_KEY))] * MOST_LOGS),
        GetProofsResponse(key=str(WITNESS_KEY), missing=[MissingEntries(log="a", entries=range(MOST_MISSING + 1))]),
        GetProofsResponse(key=str(WITNESS_KEY), missing=[MissingEntries(log="a", entries=[2**63])]),
    ],
    ids=["logs", "missing", "index"],
)
def test_another_site_has_so_many_logs_and_no_more(answer: GetProofsResponse) -> None:
    with pytest.raises(ProtocolError, match="site ams tells of more logs or missing entries than it can have"):
        _told(answer, "ams")


def test_what_another_site_says_is_missing_is_taken_as_it_says(tmp_path: Path) -> None:
    named, empty = MissingEntries(log=f"{AMS}/gateway/{'x' * 600}", entries=[3]), MissingEntries(log="y")
    heard = _told(GetProofsResponse(key=str(WITNESS_KEY), missing=[named, empty], waits=True), "ams")
    assert [(len(each.log), each.entries) for each in heard.missing] == [(512, (3,))]
    assert heard.waits
    assert Receipt.decode(Receipt("m", (), heard.missing).encode()).missing == heard.missing


@pytest.mark.parametrize(
    "answer",
    [
        GetProofsResponse(key=str(WITNESS_KEY), missing=[MissingEntries(log=f"{BRU}/gateway/gw-1", entries=[4])]),
        GetProofsResponse(key=str(WITNESS_KEY), others=[LogProofs(key=str(BRUS_KEY))]),
        GetProofsResponse(key=str(BRUS_KEY)),
    ],
    ids=["missing", "other log", "log"],
)
def test_another_site_speaks_of_its_own_logs_only(answer: GetProofsResponse) -> None:
    with pytest.raises(ProtocolError, match="site ams speaks of the log example\\.org/site/bru"):
        _told(answer, "ams")


# A site with several gateways.


def test_of_the_logs_of_a_site_those_are_told_that_say_something_and_what_is_known_and_not_there_is_missing(
    tmp_path: Path,
) -> None:
    one, two, three = (f"{BRU}/gateway/gw-{number}" for number in (1, 2, 3))
    for log in (one, two):
        written(tmp_path / log, 4, origin=log)
    first, second = part(tmp_path / one, 1, 2, origin=one), part(tmp_path / two, 0, origin=two)
    nothing = Part(second.key, ())
    told = said([first, second], {one: [1], two: [0, 3], three: [9, 7]}, waits=False)
    assert told.parts == (first, second)
    assert told.missing == (Missing(two, (3,)), Missing(three, (7, 9)))
    assert said([first, nothing], {one: [1, 2]}, waits=True).parts == (first,)
    assert said([nothing, first], {}, waits=False).parts == (first,)
    # A log that has nothing is named where no other has anything.
    assert said([nothing, Part(first.key, ())], {}, waits=False).parts == (nothing,)


async def test_another_site_hears_what_all_logs_here_say(receipts: Receipts, ledger: Ledger, tmp_path: Path) -> None:
    await ledger.save(row())
    other = await Journal.open(tmp_path / "second", f"{BRU}/gateway/gw-2")
    await other.record("migration.limited", migration="aaaa1111")
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-2")
    await store.beat()
    assert (await receipts.proofs("aaaa1111", "ams")).waits
    known = ledger.get("aaaa1111")
    assert known is not None

    async def head() -> Signed:
        return other.signed

    await Deposits(store, other, head, followed).leave(known, {"gw-1"})
    answer = await receipts.proofs("aaaa1111", "ams")
    assert not answer.waits
    assert [len(each.entries) for each in answer.others] == [1]
    heard = _told(answer, "bru")
    assert [part.key for part in heard.parts] == [receipts._deposits._journal.key, other.key]
    assert check(Receipt("aaaa1111", heard.parts)) == []
    store.close()
    await other.close()
