"""What gateways of one site leave for each other: each what its own log says, and what does not prove itself counts for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.receipt import Part, Receipt, check
from gateway.migration.deposits import KEPT, Deposits, message
from gateway.migration.recording import Recorder
from gateway.migration.states import State
from gateway.store import Row, Store, deposits
from tests.unit.audit_logs import AMS, BRU
from tests.unit.test_recording import row

ID = "aaaa1111"


@dataclass
class Gateway:
    """One of them."""

    journal: Journal
    store: Store
    deposits: Deposits

    async def steps(self, one: Row, state: State, before: State | None) -> None:
        """Record that a migration is in a state."""
        one.migration.state = state.value
        await Recorder(self.journal)(one, before)


async def followed(migration: str) -> None:
    """All that agents tell of it is on record already."""


async def gateway(directory: Path, name: str) -> Gateway:
    journal = await Journal.open(directory / name, f"{BRU}/gateway/{name}")
    store = Store(f"sqlite:///{directory}/gateway.db", name)

    async def head() -> Signed:
        return journal.signed

    return Gateway(journal, store, Deposits(store, journal, head, followed))


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    made = (await gateway(tmp_path, "gw-1"), await gateway(tmp_path, "gw-2"))
    yield made
    for each in made:
        await each.journal.close()
        each.store.close()


async def taken_over(one: Gateway, two: Gateway) -> Row:
    """A migration that has begun at the one and ended at the other."""
    moved = row(ID)
    await one.steps(moved, State.REQUESTED, None)
    await one.steps(moved, State.PREPARING, State.REQUESTED)
    await two.journal.record("access.denied")
    await two.steps(moved, State.FAILED, State.PREPARING)
    return moved


async def test_a_row_knows_which_entries_stand_in_which_log(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)
    assert moved.logs == {one.journal.key.name: [0, 1], two.journal.key.name: [1]}
    # And those that somebody else has written of it meanwhile.
    await two.journal.record("migration.delivered", migration=ID)
    await two.journal.record("migration.delivered", migration="bbbb2222")
    await two.steps(moved, State.SETTLED, State.FAILED)
    assert moved.logs[two.journal.key.name] == [1, 2, 4]


async def test_what_one_leaves_the_other_finds_with_its_proofs(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)
    assert await two.deposits.of_others(ID) == {}
    await one.deposits.leave(moved, {"gw-2"})
    found = await two.deposits.of_others(ID)
    assert list(found) == ["gw-1"]
    assert found["gw-1"].key == one.journal.key
    assert [each.proof.index for each in found["gw-1"].entries] == [0, 1]
    assert check(Receipt(ID, (found["gw-1"], await two.deposits.own(ID)))) == []
    assert await one.deposits.of_others(ID) == {}  # its own it has itself


async def test_one_that_has_nothing_says_so(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = row(ID)
    await one.steps(moved, State.REQUESTED, None)
    await two.deposits.leave(moved, {"gw-1"})
    assert (await one.deposits.of_others(ID))["gw-2"].entries == ()


async def test_who_is_alone_leaves_nothing_until_somebody_comes(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = row(ID)
    await one.steps(moved, State.REQUESTED, None)
    assert await one.deposits.others() == set()
    await one.deposits.leave(moved, set())
    assert await two.deposits.of_others(ID) == {}
    await two.store.beat()
    assert await one.deposits.others() == {"gw-2"}
    await one.deposits.leave(moved, await one.deposits.others())
    assert list(await two.deposits.of_others(ID)) == ["gw-1"]


async def test_it_is_left_once_and_again_when_there_is_more_also_after_a_restart(
    both: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = both
    moved = await taken_over(one, two)
    asked: list[str] = []
    own = Deposits.own

    async def noted(self: Deposits, migration: str) -> object:
        asked.append(migration)
        return await own(self, migration)

    monkeypatch.setattr(Deposits, "own", noted)
    for _ in range(3):
        await two.deposits.leave(moved, ())
    again = Deposits(two.store, two.journal, two.deposits._head, followed)
    await again.leave(moved, ())
    assert asked == [ID]
    await two.steps(moved, State.SETTLED, State.FAILED)
    await again.leave(moved, ())
    assert asked == [ID, ID]
    assert len((await one.deposits.of_others(ID))["gw-2"].entries) == 2


async def test_what_an_agent_tells_late_is_waited_for(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)

    async def late(migration: str) -> None:
        await two.journal.record("migration.delivered", migration=migration)

    waiting = Deposits(two.store, two.journal, two.deposits._head, late)
    await waiting.leave(moved, ())
    assert len((await one.deposits.of_others(ID))["gw-2"].entries) == 2
    # And what comes later still is left again.
    await two.journal.record("migration.delivered", migration=ID)
    two.deposits = Deposits(two.store, two.journal, two.deposits._head, followed)
    await two.deposits.leave(moved, ())
    assert len((await one.deposits.of_others(ID))["gw-2"].entries) == 3


async def test_what_does_not_prove_itself_is_as_if_it_were_not_there(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)
    await one.deposits.leave(moved, ())
    whole = message(await one.deposits.own(ID))
    foreign = message(await two.deposits.own(ID))
    changed, cut = type(whole)(), type(whole)()
    changed.CopyFrom(whole)
    changed.entries[0].entry = whole.entries[1].entry
    cut.CopyFrom(whole)
    cut.entries[0].proof = "no proof"
    for wrong in (changed, cut, foreign):
        forged = deposits.update().values(message=wrong.SerializeToString())
        await one.store.write(lambda connection, forged=forged: connection.execute(forged))  # type: ignore[misc]
        with capture_logs() as logged:
            assert await two.deposits.of_others(ID) == {}
        assert [(each["event"], each["security"]) for each in logged] == [("deposit.wrong", True)]


async def test_what_is_old_is_forgotten(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)
    await one.deposits.leave(moved, ())
    age = deposits.update().values(at=deposits.c.at - int(KEPT.total_seconds() + 1) * 1_000_000_000)
    await one.store.write(lambda connection: connection.execute(age))
    other = row("bbbb2222")
    await two.steps(other, State.REQUESTED, None)
    await two.deposits.leave(other, {"gw-1"})
    with two.store.connect() as connection:
        assert list(connection.execute(sa.select(deposits.c.migration)).scalars()) == ["bbbb2222"]


async def test_what_is_no_deposit_at_all_or_of_another_site_is_as_if_it_were_not_there(
    both: tuple[Gateway, Gateway],
) -> None:
    one, two = both
    moved = await taken_over(one, two)
    await one.deposits.leave(moved, ())
    said = message(await one.deposits.own(ID)).SerializeToString()
    for wrong in (
        {"message": b"\xff no message"},
        {"log": f"{AMS}/gateway/gw-1", "message": said},
        {"gateway": "gw-3"},
    ):
        forged = deposits.update().values(**{"log": one.journal.key.name, "gateway": "gw-1", "message": said, **wrong})
        await one.store.write(lambda connection, forged=forged: connection.execute(forged))  # type: ignore[misc]
        with capture_logs() as logged:
            assert await two.deposits.of_others(ID) == {}
        assert [each["event"] for each in logged] == ["deposit.wrong"]


async def test_what_was_left_is_not_replaced_by_less_of_it(both: tuple[Gateway, Gateway]) -> None:
    one, two = both
    moved = await taken_over(one, two)
    await one.journal.record("migration.delivered", migration=ID)
    await one.deposits.leave(moved, ())
    assert len((await two.deposits.of_others(ID))["gw-1"].entries) == 3

    async def pruned(self: Deposits, migration: str) -> Part:
        return replace(await own(self, migration), entries=())

    own = Deposits.own
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Deposits, "own", pruned)
        patched.setattr(one.journal, "_told", {})  # as after a restart
        await Deposits(one.store, one.journal, one.deposits._head, followed).leave(moved, ())
    assert len((await two.deposits.of_others(ID))["gw-1"].entries) == 3
