"""Receipts that are kept: what is on record is in the directory and verifies, and nothing that fails fills the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from gateway.audit.files import Directory, Still
from gateway.audit.journal import Journal
from gateway.audit.proving import prove
from gateway.audit.reading import last
from gateway.audit.receipt import Part, Receipt, check
from gateway.audit.refusals import Refusals
from gateway.migration import receipt_keeper
from gateway.migration.ledger import Ledger
from gateway.migration.receipt_keeper import ReceiptKeeper
from gateway.migration.receipts import Receipts
from gateway.migration.recording import Recorder
from gateway.migration.states import State
from gateway.store import Store
from tests.unit.audit_logs import BRU
from tests.unit.test_recording import row

ID = "aaaa1111"


class World:
    """A migration that has ended, and a keeper of its receipt; `change` is done to what the other site gives."""

    def __init__(self, directory: Path, ledger: Ledger, journal: Journal) -> None:
        self.log, self.directory, self.journal = directory / "audit", directory / "receipts", journal
        self.change: Callable[[Part], Part] = lambda part: part
        refusals = cast("Refusals", self)
        self.keeper = ReceiptKeeper(cast("Receipts", self), ledger, journal, refusals, self.directory)

    async def receipt(self, migration: str) -> Receipt:
        part = prove(self.journal.storage, self.journal.signed, migration)
        return Receipt(migration, (part, self.change(part)))

    @property
    def receipted(self) -> int:
        return [entry.event.name for _, entry in last(Still(Directory(self.log)), 99)].count("migration.receipted")


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(receipt_keeper, "RETRY", -1.0)
    journal = await Journal.open(tmp_path / "audit", BRU)
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    ledger = Ledger(store, Recorder(journal))
    await ledger.load()
    for id_ in (ID, "bbbb2222"):
        one = row(id_)
        await ledger.save(one)
        one.migration.state = State.COMPLETED.value
        one.migration.ended_at.FromDatetime(datetime.now(UTC))
        await ledger.save(one)
    yield World(tmp_path, ledger, journal)
    await journal.close()
    store.close()


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


async def test_a_receipt_is_recorded_once_and_kept(world: World) -> None:
    await world.keeper.look()
    await world.keeper.look()
    assert world.receipted == 2
    assert names(world.directory) == [f"{ID}.receipt", "bbbb2222.receipt"]
    assert check(Receipt.decode(world.keeper.path(ID).read_bytes())) == []


async def test_where_the_directory_cannot_be_written_nothing_is_recorded(world: World) -> None:
    world.directory.write_text("no directory")
    with capture_logs() as logged:
        for _ in range(3):
            await world.keeper.look()
    assert world.receipted == 0
    assert [each["event"] for each in logged] == ["receipt.not_made"] * 6
    assert "cannot be written: " in logged[0]["reason"]
    world.directory.unlink()
    await world.keeper.look()
    assert world.receipted == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda part: replace(part, entries=()), "has no entries about it"),
        (
            lambda part: replace(part, entries=(replace(part.entries[0], raw=part.entries[1].raw),)),
            "would not verify",
        ),
    ],
)
async def test_what_does_not_verify_is_neither_recorded_nor_kept_until_it_does(
    world: World, change: Callable[[Part], Part], said: str
) -> None:
    whole, world.change = world.change, change
    with capture_logs() as logged:
        await world.keeper.look()
    assert said in logged[0]["reason"]
    assert world.receipted == 0
    assert not world.directory.exists()
    world.change = whole
    await world.keeper.look()
    assert world.receipted == 2


async def test_a_defect_ends_no_looks_and_holds_up_no_other_receipt(world: World) -> None:
    def change(part: Part) -> Part:
        if b"bbbb2222" in part.entries[0].raw:
            raise ZeroDivisionError
        return part

    world.change = change
    with capture_logs() as logged:
        await world.keeper.look()
    assert [each["migration"] for each in logged if each["event"] == "receipt.defect"] == ["bbbb2222"]
    assert names(world.directory) == [f"{ID}.receipt"]
