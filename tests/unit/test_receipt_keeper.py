"""Receipts that are kept: what is on record is in the directory and verifies, and nothing that fails fills the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from certs.identity import Identity, Role
from gateway.audit.files import Directory, Still
from gateway.audit.journal import Journal
from gateway.audit.proving import prove
from gateway.audit.reading import last
from gateway.audit.receipt import Missing, Part, Receipt, check
from gateway.audit.refusals import Refusals
from gateway.migration import receipt_keeper
from gateway.migration.deposits import Deposits
from gateway.migration.ledger import Ledger
from gateway.migration.receipt_keeper import ReceiptKeeper
from gateway.migration.receipts import Made, Receipts
from gateway.migration.recording import Recorder
from gateway.migration.states import State
from gateway.store import Row, Store
from landbridge.errors import Conflict, Unreachable
from tests.unit.audit_logs import BRU
from tests.unit.test_recording import row

ID = "aaaa1111"


class World:
    """A migration that has ended, and a keeper of its receipt; `change` is done to what the other site gives."""

    def __init__(self, directory: Path, ledger: Ledger, journal: Journal) -> None:
        self.log, self.directory, self.journal = directory / "audit", directory / "receipts", journal
        self.change: Callable[[Part], Part] = lambda part: part
        self.waits, self.missing = False, tuple[Missing, ...]()
        self.left: list[str] = []
        self.stuck = ""
        self.asked = 0
        self.ledger = ledger
        refusals = cast("Refusals", self)
        receipts, deposits = cast("Receipts", self), cast("Deposits", self)
        self.keeper = ReceiptKeeper(receipts, deposits, ledger, journal, refusals, self.directory)

    async def receipt(self, migration: str) -> Made:
        self.asked += 1
        part = prove(self.journal.storage, self.journal.signed, migration)
        return Made(Receipt(migration, (part, self.change(part)), self.missing), self.waits)

    async def others(self) -> set[str]:
        return {"gw-2"}

    async def leave(self, row: Row, others: set[str]) -> None:
        assert others == {"gw-2"}
        if row.migration.id == self.stuck:
            raise Conflict("the log has more entries about it than go into a receipt")
        self.left.append(row.migration.id)

    def tell(self, *_: object, **__: object) -> None:
        """Reads of receipts are on record."""

    def age(self, age: timedelta) -> None:
        """Have all migrations ended so long ago."""
        for each in self.ledger.rows():
            each.migration.ended_at.FromDatetime(datetime.now(UTC) - age)

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
    # Each of them once, however often it is tried.
    assert [each["event"] for each in logged] == ["receipt.not_made"] * 2
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


# A site with several gateways.


async def test_what_this_log_says_is_left_for_others_at_each_look(world: World) -> None:
    await world.keeper.look()
    assert world.left == ["bbbb2222", ID]
    world.age(receipt_keeper.KEPT_UP + timedelta(seconds=1))
    await world.keeper.look()
    assert len(world.left) == 2


async def test_what_of_one_migration_cannot_be_left_holds_up_no_other_and_is_tried_again_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stuck = "bbbb2222"
    monkeypatch.setattr(receipt_keeper, "RETRY", 60.0)
    with capture_logs() as logged:
        await world.keeper.look()
        world.stuck = ""
        await world.keeper.look()
    assert world.left == [ID, ID]
    assert [(each["event"], each["migration"]) for each in logged if each["log_level"] == "warning"] == [
        ("deposit.not_made", "bbbb2222")
    ]


async def test_a_gateway_that_has_not_said_yet_what_its_log_has_is_waited_for_a_little(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_keeper, "LOOK", -1.0)
    world.waits = True
    with capture_logs() as logged:
        await world.keeper.look()
    assert (world.receipted, logged) == (0, [])
    world.waits = False
    await world.keeper.look()
    assert world.receipted == 2


async def test_one_that_never_says_it_and_is_not_known_to_have_anything_keeps_no_receipt_from_being_made(
    world: World,
) -> None:
    world.waits = True
    world.age(receipt_keeper.LATE)
    await world.keeper.look()
    assert world.receipted == 2


async def test_a_receipt_says_what_it_lacks_once_the_gateway_that_has_it_is_taken_for_lost(world: World) -> None:
    world.missing = (Missing("example.org/site/bru/gateway/gw-2", (4, 7)),)
    with capture_logs() as logged:
        for _ in range(5):
            await world.keeper.look()
    assert world.receipted == 0
    assert [(each["event"], each["log_level"]) for each in logged] == [("receipt.waits", "warning")] * 2
    assert (
        "entries 4, 7 of the log example.org/site/bru/gateway/gw-2: pruned, or its gateway has not said"
        in logged[0]["reason"]
    )
    world.age(receipt_keeper.LOST)
    await world.keeper.look()
    await world.keeper.look()
    assert world.receipted == 2
    kept = Receipt.decode(world.keeper.path(ID).read_bytes())
    assert kept.missing == world.missing
    (entry,) = [each for _, each in last(Still(Directory(world.log)), 1)]
    assert entry.text("reason").endswith("could not be had: entries 4, 7 of the log example.org/site/bru/gateway/gw-2")


async def test_where_a_site_has_nothing_to_show_what_it_lacks_stands_for_it(world: World) -> None:
    world.change = lambda part: replace(part, entries=())
    origin = world.journal.key.name
    world.missing = (Missing(f"{origin}/gateway/gw-2", (1,)),)
    world.age(receipt_keeper.LOST)
    await world.keeper.look()
    assert world.receipted == 2


async def test_who_asks_for_a_receipt_that_lacks_something_gets_what_is_there_by_now(world: World) -> None:
    world.missing = (Missing("example.org/site/bru/gateway/gw-2", (4,)),)
    world.age(receipt_keeper.LOST)
    await world.keeper.look()
    asked, world.missing = world.asked, ()
    adam = Identity("example.org", "bru", Role.OPERATOR, "adam")
    _, raw = await world.keeper.receipt(ID, adam)
    assert (Receipt.decode(raw).missing, world.asked) == ((), asked + 1)


async def test_a_receipt_that_lacks_something_is_had_also_when_no_better_one_can_be_made(world: World) -> None:
    world.missing = (Missing("example.org/site/bru/gateway/gw-2", (4,)),)
    world.age(receipt_keeper.LOST)
    await world.keeper.look()
    kept = world.keeper.path(ID).read_bytes()
    adam = Identity("example.org", "bru", Role.OPERATOR, "adam")

    async def unreachable(_: str) -> Made:
        raise Unreachable("site ams does not answer")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world, "receipt", unreachable)
        assert (await world.keeper.receipt(ID, adam))[1] == kept
    # Nor is it replaced by one that lacks more, or that would not verify.
    world.missing = (Missing("example.org/site/bru/gateway/gw-2", (4, 5)),)
    assert (await world.keeper.receipt(ID, adam))[1] == kept
    world.missing, world.change = (), lambda part: replace(part, entries=())
    assert (await world.keeper.receipt(ID, adam))[1] == kept


async def test_a_receipt_is_owed_until_it_is_kept_or_may_be_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_keeper, "RETRY", 60.0)
    completed, other = world.ledger.rows()
    other.coordinator = "gw-2"
    minute = timedelta(minutes=1)
    for age, owed in ((0 * minute, (True, True)), (2 * minute, (True, False)), (61 * minute, (False, False))):
        world.age(age)
        assert (world.keeper.is_owed(completed), world.keeper.is_owed(other)) == owed
    world.age(2 * minute)
    completed.migration.state = State.FAILED.value
    assert not world.keeper.is_owed(completed)
    completed.migration.state = State.COMPLETED.value
    await world.keeper.look()
    assert not world.keeper.is_owed(completed)
    arrived = row("cccc3333")
    arrived.coordinating = False
    assert not world.keeper.is_owed(arrived)
