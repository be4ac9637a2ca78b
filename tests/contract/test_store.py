"""The gateway's store, on every database: what was saved is there after a restart, and only a row's coordinator can save it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from gateway.store import Row, Store, TunnelLimits
from landbridge.errors import Conflict, TakenOver
from landbridge.v1.types_pb2 import Migration, MigrationState
from tests.contract.postgresql import PostgreSQL


def row(number: int, **changes: object) -> Row:
    migration = Migration(id=f"{number:08}", vm="web-01", state=MigrationState.MIGRATION_STATE_COPYING_DISKS)
    migration.requested_at.FromSeconds(number)
    return Row(migration=migration, **changes)  # type: ignore[arg-type]  # the caller's keywords


def moving(number: int, vm_uuid: str = "6c1e5f0a") -> Row:
    made = row(number)
    made.migration.vm_uuid = vm_uuid
    return made


@pytest.fixture
async def stores(url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Those of two gateways, gw-1 and gw-2."""
    async with opened(url, "gw-1") as one, opened(url, "gw-2") as two:
        yield one, two


@contextlib.asynccontextmanager
async def opened(url: str, gateway: str = "gw-1") -> AsyncIterator[Store]:
    store = await asyncio.to_thread(Store, url, gateway)
    try:
        yield store
    finally:
        store.close()


async def saved(url: str, *rows: Row) -> None:
    async with opened(url) as store:
        for each in rows:
            await store.save(each)


async def loaded(url: str) -> list[Row]:
    async with opened(url) as store:
        return [row for row, _ in await store.load()]


# One gateway


async def test_every_field_of_a_row_survives_a_restart(url: str) -> None:
    before = row(
        1,
        coordinating=False,
        peer_pending=True,
        cancel_requested=True,
        autostart=True,
        cause="the disk is full",
        clock_offset_ms=-1500,
        suspended_at=1_700_000_000_123_456_789,
        logs={"example.org/site/fra/gateway/gw-1": [0, 7], "example.org/site/fra/gateway/gw-2": [3]},
    )
    before.migration.summary.channels.add(kind="ram", to_destination=1 << 40)
    await saved(url, before)
    assert await loaded(url) == [before]


async def test_rows_come_back_newest_first(url: str) -> None:
    await saved(url, row(2), row(3), row(1))
    assert [r.migration.requested_at.seconds for r in await loaded(url)] == [3, 2, 1]


async def test_saving_again_replaces(url: str) -> None:
    one, other, changed = row(1), row(2), row(1, cause="it rained")
    await saved(url, one, other, changed)
    assert await loaded(url) == [other, changed]
    assert other.coordinator == changed.coordinator == "gw-1"


async def test_of_several_savings_at_once_the_last_one_stays(url: str) -> None:
    one = row(1)
    async with opened(url) as store:

        async def save(number: int) -> None:
            one.suspended_at = number
            await store.save(one)

        await asyncio.gather(*(save(number) for number in range(1, 51)))
    assert [r.suspended_at for r in await loaded(url)] == [50]


async def test_a_saving_whose_caller_gave_up_does_not_overtake_the_next_one(url: str) -> None:
    one = row(1)
    async with opened(url) as store:
        for number in range(1, 21):
            one.suspended_at = number
            task = asyncio.create_task(store.save(one))
            await asyncio.sleep(0)
            task.cancel()
        one.suspended_at = 99
        await store.save(one)
    assert [r.suspended_at for r in await loaded(url)] == [99]


async def test_each_writing_of_a_row_changes_its_revision_and_no_other(url: str) -> None:
    one, other = row(1), row(2)
    async with opened(url) as store:
        await store.save(one)
        await store.save(other)
        before = await store.revisions()
        await store.save(one)
        after = await store.revisions()
        assert after["00000001"] != before["00000001"]
        assert after["00000002"] == before["00000002"]
        assert [(r.migration.id, n) for r, n in await store.load(["00000001"])] == [("00000001", after["00000001"])]


# Several gateways


async def test_a_gateway_cannot_save_what_another_one_coordinates(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.save(row(1, cause="the first"))
    with pytest.raises(TakenOver, match="coordinated by gateway gw-1") as caught:
        await two.save(row(1, cause="the second"))
    assert caught.value.details["coordinator"] == "gw-1"
    assert [r.cause for r, _ in await two.load()] == ["the first"]


async def test_any_gateway_saves_what_comes_from_another_site(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.save(row(1, coordinating=False))
    await two.save(row(1, coordinating=False, cause="later"))
    assert [(r.cause, r.coordinator) for r, _ in await one.load()] == [("later", "")]


async def test_two_gateways_may_meet_the_same_new_row_from_another_site(stores: tuple[Store, Store]) -> None:
    for number in range(20):
        await asyncio.gather(*(store.save(row(number, coordinating=False)) for store in stores))
    assert len(await stores[0].revisions()) == 20


async def test_after_a_take_over_the_former_coordinator_is_fenced_off(stores: tuple[Store, Store]) -> None:
    one, two = stores
    held = row(1, cause="the first")
    await one.beat()
    await one.save(held)
    assert await two.take_over("00000001", "gw-1", 1)
    held.cause = "a zombie"
    with pytest.raises(TakenOver, match="coordinated by gateway gw-2"):
        await one.save(held)
    taken = (await two.load())[0][0]
    assert (taken.cause, taken.coordinator) == ("the first", "gw-2")
    taken.cause = "goes on"
    await two.save(taken)
    assert [r.cause for r, _ in await one.load()] == ["goes on"]


async def test_who_has_beaten_since_keeps_its_rows_and_who_has_left_does_not(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.beat()
    await one.save(row(1))
    await one.beat()
    assert await one.beats() == {"gw-1": 2}
    assert not await two.take_over("00000001", "gw-1", 1)
    assert not await two.take_over("00000001", "gw-1", 0)
    await one.leave()
    assert await two.beats() == {}
    assert await two.take_over("00000001", "gw-1", 0)


async def test_what_has_a_new_coordinator_already_is_not_taken_over_again(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.save(row(1))
    assert await two.take_over("00000001", "gw-1", None)
    assert not await two.take_over("00000001", "gw-1", None)
    assert await one.take_over("00000001", "gw-2", None)


async def test_of_those_who_take_over_at_once_one_succeeds(url: str, stores: tuple[Store, Store]) -> None:
    async with opened(url, "gw-3") as third:
        for number in range(20):
            await third.save(row(number))
            answers = await asyncio.gather(*(store.take_over(f"{number:08}", "gw-3", 0) for store in stores))
            assert sorted(answers) == [False, True]


async def test_a_migration_from_another_site_is_nobodys_to_take_over(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.save(row(1, coordinating=False))
    assert not await two.take_over("00000001", "", 0)


async def test_a_beat_counts_on_over_restarts(url: str) -> None:
    for number in (1, 2, 3):
        async with opened(url) as store:
            await store.beat()
            assert await store.beats() == {"gw-1": number}


async def test_two_gateways_cannot_both_begin_to_move_one_vm(stores: tuple[Store, Store]) -> None:
    one, two = stores
    first = moving(1)
    await one.save(first)
    with pytest.raises(Conflict, match="another migration of web-01 is under way"):
        await two.save(moving(2))
    await two.save(moving(3, "another"))
    first.migration.ended_at.GetCurrentTime()
    await one.save(first)
    await two.save(moving(2))
    assert len(await one.revisions()) == 3


async def test_a_wish_to_cancel_is_not_overwritten_by_the_coordinator(stores: tuple[Store, Store]) -> None:
    one, two = stores
    held = row(1)
    await one.save(held)
    await two.wish_cancelled("00000001", "alice")
    await one.save(held)
    assert [r.cancel_wish for r, _ in await one.load()] == ["alice"]


async def test_what_a_migration_may_send_is_set_by_any_gateway_and_not_overwritten_by_the_coordinator(
    url: str, stores: tuple[Store, Store]
) -> None:
    one, two = stores
    held = row(1)
    await one.save(held)
    before = await one.revisions()
    await two.limit_migration("00000001", 6_250_000)
    assert await one.revisions() != before
    await one.save(held)
    assert [r.migration.limit for r in await loaded(url)] == [6_250_000]
    await two.limit_migration("00000001", 0)
    assert [r.migration.limit for r in await loaded(url)] == [0]


async def test_what_is_set_for_a_tunnel_is_there_for_every_gateway_and_after_a_restart(
    url: str, stores: tuple[Store, Store]
) -> None:
    one, two = stores
    assert await one.tunnel_limits() == {}
    await one.limit_tunnel("ams", TunnelLimits(bytes_per_second=6_250_000))
    await two.limit_tunnel("ams", TunnelLimits(links=8))
    await two.limit_tunnel("lon", TunnelLimits(2**63 - 1, 1))
    await two.limit_tunnel("ams", TunnelLimits())
    expected = {"ams": TunnelLimits(6_250_000, 8), "lon": TunnelLimits(2**63 - 1, 1)}
    assert await one.tunnel_limits() == await two.tunnel_limits() == expected
    async with opened(url) as again:
        assert await again.tunnel_limits() == expected
        await again.limit_tunnel("ams", TunnelLimits(bytes_per_second=0))
        assert await one.tunnel_limits() == {**expected, "ams": TunnelLimits(0, 8)}
        await again.forget_tunnel("ams")
        await again.forget_tunnel("ams")
    assert list(await one.tunnel_limits()) == ["lon"]


async def test_two_gateways_may_set_a_tunnel_for_the_first_time_at_once(stores: tuple[Store, Store]) -> None:
    for number in range(20):
        await asyncio.gather(*(store.limit_tunnel(f"site-{number}", TunnelLimits(number)) for store in stores))
    assert await stores[0].tunnel_limits() == {f"site-{n}": TunnelLimits(n) for n in range(20)}


async def test_gateways_that_start_at_once_make_the_tables_once(url: str) -> None:
    opening = [asyncio.to_thread(Store, url, f"gw-{number}") for number in range(4)]
    stores = await asyncio.gather(*opening)
    for store in stores:
        await store.beat()
    assert len(await stores[0].beats()) == 4
    for store in stores:
        store.close()


# A server


@pytest.mark.lab
async def test_a_store_outlives_a_restart_of_its_server(postgresql: PostgreSQL) -> None:
    url = await asyncio.to_thread(postgresql.database)
    async with opened(url) as store:
        await store.save(row(1))
        await asyncio.to_thread(postgresql.restart)
        await store.save(row(2))
        assert len(await store.revisions()) == 2


# An older store

COLUMNS = (
    *("id", "requested_at", "coordinating", "peer_pending", "cancel_requested", "autostart", "cause"),
    *("clock_offset_ms", "suspended_at", "message"),
)

OLD = """
CREATE TABLE migrations (
    id VARCHAR(36) NOT NULL PRIMARY KEY, requested_at BIGINT NOT NULL, coordinating BOOLEAN NOT NULL,
    peer_pending BOOLEAN NOT NULL, cancel_requested BOOLEAN NOT NULL, autostart BOOLEAN NOT NULL, cause TEXT NOT NULL,
    clock_offset_ms BIGINT NOT NULL, suspended_at BIGINT NOT NULL, message {bytes} NOT NULL
)
"""


async def test_a_store_from_before_there_were_several_gateways_is_taken_up(url: str) -> None:
    engine = sa.create_engine(url)
    old = sa.table("migrations", *(sa.column(name) for name in COLUMNS))
    with engine.begin() as connection:
        connection.exec_driver_sql(OLD.format(bytes="BYTEA" if "postgresql" in url else "BLOB"))
        connection.exec_driver_sql("CREATE INDEX ix_migrations_requested_at ON migrations (requested_at)")
        before = row(1).migration
        before.limit = 6_250_000
        values = (before.id, 1, True, True, False, False, "rain", 0, 0, before.SerializeToString())
        connection.execute(old.insert().values(dict(zip(COLUMNS, values, strict=True))))
    engine.dispose()
    async with opened(url, "gw-1") as store:
        [(found, _)] = await store.load()
        assert (found.migration, found.cause, found.peer_pending) == (before, "rain", True)
        assert (found.coordinator, found.cancel_wish, found.migration.limit) == ("", "", 6_250_000)
        assert found.logs == {}
        with pytest.raises(TakenOver, match="of no name"):
            await store.save(found)
        assert await store.take_over("00000001", "", 0)
        await store.save(found)
    assert [r.coordinator for r in await loaded(url)] == ["gw-1"]
