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
from landbridge.errors import ConfigError, Conflict, InternalError, NotFound, TakenOver, UsageError
from landbridge.v1.types_pb2 import Migration

SECONDS = 5.0


def row(id_: str, state: State = State.REQUESTED, at: int = 1) -> Row:
    migration = Migration(id=id_, vm="web-01", state=state.value)
    migration.requested_at.FromSeconds(at)
    return Row(migration=migration)


async def unrecorded(row: Row, before: State | None) -> None:
    """No audit log: test_recording.py has one."""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    made = Ledger(store, unrecorded)
    await made.load()
    yield made
    store.close()


async def test_a_migration_is_found_by_its_id_or_by_four_characters_of_it(ledger: Ledger) -> None:
    one, other = row("aaaa1111"), row("aaaa2222")
    await ledger.save(one)
    await ledger.save(other)
    assert ledger.get("aaaa1111") is one
    assert ledger.get("aaaa") is None
    assert await ledger.find("aaaa2222") is other
    assert await ledger.find("aaaa2") is other
    with pytest.raises(UsageError, match="not enough of an id"):
        await ledger.find("aaaa")
    with pytest.raises(NotFound, match="no migration bbbb"):
        await ledger.find("bbbb")


async def test_three_characters_are_not_enough_even_for_the_only_migration(ledger: Ledger) -> None:
    await ledger.save(row("aaaa1111"))
    assert await ledger.find("aaaa")
    with pytest.raises(UsageError, match="at least 4 characters"):
        await ledger.find("aaa")


async def test_an_id_that_begins_another_one_is_found_as_itself(ledger: Ledger) -> None:
    short, long = row("aaaa"), row("aaaa1")
    await ledger.save(short)
    await ledger.save(long)
    assert await ledger.find("aaaa") is short


async def test_a_reserved_row_is_found_and_is_not_durable_yet(ledger: Ledger, tmp_path: Path) -> None:
    reserved = row("aaaa1111")
    ledger.reserve(reserved)
    assert await ledger.find("aaaa") is reserved
    again = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    assert await again.load() == []
    await ledger.save(reserved)
    assert [r.migration.id for r, _ in await again.load()] == ["aaaa1111"]
    again.close()


async def test_rows_are_newest_first_also_after_a_restart(ledger: Ledger, tmp_path: Path) -> None:
    for number, id_ in enumerate(["c", "a", "b"]):
        await ledger.save(row(id_, at=number + 1))
    assert [r.migration.id for r in ledger.rows()] == ["b", "a", "c"]
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    again = Ledger(store, unrecorded)
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
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    saved = (await store.load())[0][0].migration
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
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    ledger = Ledger(store, unrecorded)
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
    assert [State(kept.migration.state) for kept, _ in await store.load()] == [State.PREPARING]
    store.close()


async def test_a_step_that_cannot_be_recorded_at_all_has_not_happened(tmp_path: Path) -> None:
    async def defect(row: Row, before: State | None) -> None:
        if before is not None:
            raise InternalError("it is no entry")

    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    ledger = Ledger(store, defect)
    held = row("a" * 36)
    await ledger.save(held)
    with pytest.raises(InternalError):
        await ledger.advance(held, Input.BEGIN)
    assert State(held.migration.state) is State.REQUESTED
    store.close()


# Beside another gateway of the site


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Ledger]:
    """That of gw-2, on the same store."""
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-2")
    made = Ledger(store, unrecorded)
    await made.load()
    yield made
    store.close()


async def test_a_migration_that_another_gateway_has_begun_is_found_at_once(ledger: Ledger, other: Ledger) -> None:
    await ledger.save(row("aaaa1111"))
    found = await other.find("aaaa")
    assert found.migration.id == "aaaa1111"
    assert found.coordinator == "gw-1"
    assert not other.is_own(found)
    assert other.get("aaaa1111") is found
    latest = await other.latest("aaaa1111")
    assert latest is found


async def test_what_another_gateway_does_is_seen_by_those_who_watch_it_here(ledger: Ledger, other: Ledger) -> None:
    one = row("aaaa", State.SWITCHING)
    await ledger.save(one)
    seen: list[State] = []
    async with asyncio.timeout(SECONDS):
        async for migration in other.watch(await other.find("aaaa")):
            seen.append(State(migration.state))
            if seen[-1] is State.SWITCHING:
                await ledger.advance(one, Input.RELEASED)
            elif seen[-1] is State.ACTIVATING:
                await ledger.advance(one, Input.ACTIVATED)
            await other.refresh()
    assert seen == [State.SWITCHING, State.ACTIVATING, State.COMPLETED]


async def test_rows_of_other_gateways_stand_in_their_place_in_the_list(ledger: Ledger, other: Ledger) -> None:
    await other.save(row("aaaa", at=3))
    await ledger.save(row("bbbb", at=1))
    await ledger.save(row("cccc", at=2))
    await other.refresh()
    assert [r.migration.id for r in other.rows()] == ["aaaa", "cccc", "bbbb"]


async def test_a_refresh_leaves_our_own_rows_as_they_are_in_memory(ledger: Ledger) -> None:
    one = row("aaaa", State.COPYING_MEMORY)
    await ledger.save(one)
    one.migration.progress.memory_remaining = 7
    await ledger.refresh()
    assert ledger.get("aaaa") is one
    assert one.migration.progress.memory_remaining == 7


async def test_progress_is_published_for_the_other_gateways(ledger: Ledger, other: Ledger) -> None:
    one = row("aaaa", State.COPYING_MEMORY)
    await ledger.save(one)
    one.migration.progress.memory_remaining = 7
    ledger.changed(one)
    assert (await other.find("aaaa")).migration.progress.memory_remaining == 0
    await ledger.publish()
    assert (await other.find("aaaa")).migration.progress.memory_remaining == 7


async def test_a_wish_to_cancel_reaches_the_coordinator(ledger: Ledger, other: Ledger) -> None:
    one = row("aaaa", State.COPYING_MEMORY)
    await ledger.save(one)
    await other.wish_cancelled(await other.find("aaaa"), "alice")
    await ledger.refresh()
    assert one.cancel_wish == "alice"
    await ledger.save(one)
    assert (await other.find("aaaa")).cancel_wish == "alice"


async def test_a_row_that_was_taken_over_is_not_advanced_and_becomes_what_the_other_has_written(
    ledger: Ledger, other: Ledger
) -> None:
    one = row("aaaa", State.ACTIVATING)
    await ledger.save(one)
    theirs = await other.find("aaaa")
    assert await other.take_over(theirs)
    await other.advance(theirs, Input.LOST, "it is gone")
    for _ in range(2):  # as the store says, and as the ledger knows from then on
        with pytest.raises(TakenOver):
            await ledger.advance(one, Input.ACTIVATED)
        assert (state_of(one), one.migration.reason, one.coordinator) == (State.FAILED, "it is gone", "gw-2")
    assert state_of(await other.find("aaaa")) is State.FAILED


async def test_a_row_is_taken_over_once(ledger: Ledger, other: Ledger) -> None:
    await ledger.save(row("aaaa"))
    one, stale = await other.find("aaaa"), Row(migration=Migration(id="aaaa"), coordinator="gw-1")
    assert not await other.take_over(one, 0)  # gw-1 has beaten since
    assert await other.take_over(one, 1)
    assert other.is_own(one)
    assert not await other.take_over(stale, 1)


async def test_what_comes_from_another_site_is_saved_at_any_gateway(ledger: Ledger, other: Ledger) -> None:
    one = row("aaaa", State.PREPARING)
    one.coordinating = False
    await ledger.save(one)
    theirs = await other.find("aaaa")
    theirs.migration.state = State.COMPLETED.value
    await other.save(theirs)
    assert await ledger.latest("aaaa") is one
    assert state_of(one) is State.COMPLETED
