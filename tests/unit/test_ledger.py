"""The ledger: migrations found by the beginning of their id, taken through the table, and watched to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.states import Input, State
from gateway.store import Row, Store
from landbridge.errors import ConfigError, Conflict, NotFound, UsageError
from landbridge.v1.types_pb2 import Migration

SECONDS = 5.0


def row(id_: str, state: State = State.REQUESTED, at: int = 1) -> Row:
    migration = Migration(id=id_, vm="web-01", state=state.value)
    migration.requested_at.FromSeconds(at)
    return Row(migration=migration)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    made = Ledger(store)
    await made.load()
    yield made
    store.close()


async def test_a_migration_is_found_by_its_id_or_by_four_characters_of_it(ledger: Ledger) -> None:
    one, other = row("aaaa1111"), row("aaaa2222")
    await ledger.save(one)
    await ledger.save(other)
    assert ledger.get("aaaa1111") is one
    assert ledger.get("aaaa") is None
    assert ledger.find("aaaa2222") is other
    assert ledger.find("aaaa2") is other
    with pytest.raises(UsageError, match="not enough of an id"):
        ledger.find("aaaa")
    with pytest.raises(NotFound, match="no migration bbbb"):
        ledger.find("bbbb")


async def test_three_characters_are_not_enough_even_for_the_only_migration(ledger: Ledger) -> None:
    await ledger.save(row("aaaa1111"))
    assert ledger.find("aaaa")
    with pytest.raises(UsageError, match="at least 4 characters"):
        ledger.find("aaa")


async def test_an_id_that_begins_another_one_is_found_as_itself(ledger: Ledger) -> None:
    short, long = row("aaaa"), row("aaaa1")
    await ledger.save(short)
    await ledger.save(long)
    assert ledger.find("aaaa") is short


async def test_a_reserved_row_is_found_and_is_not_durable_yet(ledger: Ledger, tmp_path: Path) -> None:
    reserved = row("aaaa1111")
    ledger.reserve(reserved)
    assert ledger.find("aaaa") is reserved
    again = Store(f"sqlite:///{tmp_path}/gateway.db")
    assert await again.load() == []
    await ledger.save(reserved)
    assert [r.migration.id for r in await again.load()] == ["aaaa1111"]
    again.close()


async def test_rows_are_newest_first_also_after_a_restart(ledger: Ledger, tmp_path: Path) -> None:
    for number, id_ in enumerate(["c", "a", "b"]):
        await ledger.save(row(id_, at=number + 1))
    assert [r.migration.id for r in ledger.rows()] == ["b", "a", "c"]
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    again = Ledger(store)
    await again.load()
    assert [r.migration.id for r in again.rows()] == ["b", "a", "c"]
    await again.save(row("d", at=9))
    assert again.rows()[0].migration.id == "d"
    store.close()


async def test_advancing_is_durable_and_keeps_to_the_table(ledger: Ledger, tmp_path: Path) -> None:
    one = row("aaaa")
    await ledger.advance(one, Input.BEGIN)
    assert state_of(one) is State.PREPARING
    with pytest.raises(Conflict, match="preparing takes no activated"):
        await ledger.advance(one, Input.ACTIVATED)
    await ledger.advance(one, Input.TROUBLE, "the disk is full")
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    saved = (await store.load())[0].migration
    store.close()
    assert (State(saved.state), saved.reason) == (State.RESOLVING, "the disk is full")
    assert saved.HasField("updated_at")
    assert not saved.HasField("ended_at")


async def test_a_reason_stays_until_there_is_another_one(ledger: Ledger) -> None:
    one = row("aaaa", State.RESOLVING)
    one.migration.reason = "the disk is full"
    await ledger.advance(one, Input.SOURCE_HAS_IT)
    assert one.migration.reason == "the disk is full"
    await ledger.advance(one, Input.CLEANED, "")
    assert one.migration.reason == ""


async def test_the_end_has_a_time_that_settling_does_not_change(ledger: Ledger) -> None:
    one = row("aaaa", State.ACTIVATING)
    assert not has_ended(one)
    await ledger.advance(one, Input.ACTIVATED)
    ended_at = one.migration.ended_at.ToNanoseconds()
    assert has_ended(one)
    assert ended_at > 0
    await ledger.advance(one, Input.SETTLE)
    assert one.migration.ended_at.ToNanoseconds() == ended_at


async def test_watching_shows_the_migration_now_each_change_and_the_end(ledger: Ledger) -> None:
    one = row("aaaa", State.SWITCHING)
    await ledger.save(one)
    seen = []
    async with asyncio.timeout(SECONDS), aclosing(ledger.watch(one)) as changes:  # type: ignore[type-var]  # a generator
        async for migration in changes:
            seen.append(State(migration.state))
            if seen[-1] is State.SWITCHING:
                asyncio.get_running_loop().create_task(ledger.advance(one, Input.RELEASED))
            elif seen[-1] is State.ACTIVATING:
                asyncio.get_running_loop().create_task(ledger.advance(one, Input.ACTIVATED))
    assert seen == [State.SWITCHING, State.ACTIVATING, State.COMPLETED]


async def test_what_has_ended_is_shown_once(ledger: Ledger) -> None:
    one = row("aaaa", State.FAILED)
    async with asyncio.timeout(SECONDS):
        assert [m.id async for m in ledger.watch(one)] == ["aaaa"]


async def test_an_end_that_comes_while_a_snapshot_is_taken_away_is_shown_all_the_same(ledger: Ledger) -> None:
    one = row("aaaa", State.ACTIVATING)
    await ledger.save(one)
    seen: list[State] = []
    async with asyncio.timeout(SECONDS):
        async for migration in ledger.watch(one):
            if not seen:
                await ledger.advance(one, Input.ACTIVATED)
            seen.append(State(migration.state))
    assert seen == [State.ACTIVATING, State.COMPLETED]


async def test_changes_that_are_not_durable_are_shown_too(ledger: Ledger) -> None:
    one = row("aaaa", State.COPYING_MEMORY)
    changes = ledger.watch(one)
    assert (await anext(changes)).progress.memory_remaining == 0
    one.migration.progress.memory_remaining = 7
    ledger.changed(one)
    async with asyncio.timeout(SECONDS):
        assert (await anext(changes)).progress.memory_remaining == 7
    await changes.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_everybody_who_watches_sees_the_end(ledger: Ledger) -> None:
    one = row("aaaa", State.ACTIVATING)
    await ledger.save(one)

    async def last() -> State:
        return State([migration.state async for migration in ledger.watch(one)][-1])

    watching = [asyncio.create_task(last()) for _ in range(3)]
    await asyncio.sleep(0)
    await ledger.advance(one, Input.ACTIVATED)
    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*watching) == [State.COMPLETED] * 3


async def test_a_step_that_the_store_does_not_take_is_held_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    ledger = Ledger(store)
    held = row("a" * 36)
    await ledger.save(held)
    monkeypatch.setattr("gateway.migration.ledger.STORE_RETRY", 0.0)
    failures, save = iter([True, True, False]), store.save

    async def save_sometimes(row: Row) -> None:
        if next(failures):
            raise ConfigError("the store cannot be written: the disk is full")
        await save(row)

    monkeypatch.setattr(store, "save", save_sometimes)
    await ledger.advance(held, Input.BEGIN)
    assert next(failures, None) is None
    assert [State(kept.migration.state) for kept in await store.load()] == [State.PREPARING]
    store.close()
