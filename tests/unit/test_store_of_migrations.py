"""The gateway's store: what was saved is there after a restart, and what is damaged is named."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from gateway.store import Row, Store
from landbridge.errors import ConfigError
from landbridge.v1.types_pb2 import Migration, MigrationState


def row(number: int, **changes: object) -> Row:
    migration = Migration(id=f"{number:08}", vm="web-01", state=MigrationState.MIGRATION_STATE_COPYING_DISKS)
    migration.requested_at.FromSeconds(number)
    return Row(migration=migration, **changes)  # type: ignore[arg-type]  # the caller's keywords


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def saved(path: Path, *rows: Row) -> None:
    store = Store(url(path))
    for each in rows:
        await store.save(each)
    store.close()


async def loaded(path: Path) -> list[Row]:
    store = Store(url(path))
    try:
        return await store.load()
    finally:
        store.close()


async def test_every_field_of_a_row_survives_a_restart(path: Path) -> None:
    before = row(
        1,
        coordinating=False,
        peer_pending=True,
        cancel_requested=True,
        autostart=True,
        cause="the disk is full",
        clock_offset_ms=-1500,
        suspended_at=1_700_000_000_123_456_789,
    )
    before.migration.summary.channels.add(kind="ram", to_destination=1 << 40)
    await saved(path, before)
    assert await loaded(path) == [before]


async def test_rows_come_back_newest_first(path: Path) -> None:
    await saved(path, row(2), row(3), row(1))
    assert [r.migration.requested_at.seconds for r in await loaded(path)] == [3, 2, 1]


async def test_saving_again_replaces(path: Path) -> None:
    changed = row(1, cause="it rained")
    await saved(path, row(1), row(2), changed)
    assert await loaded(path) == [row(2), changed]


async def test_of_several_savings_at_once_the_last_one_stays(path: Path) -> None:
    store, one = Store(url(path)), row(1)

    async def save(number: int) -> None:
        one.suspended_at = number
        await store.save(one)

    await asyncio.gather(*(save(number) for number in range(1, 51)))
    store.close()
    assert [r.suspended_at for r in await loaded(path)] == [50]


async def test_a_saving_whose_caller_gave_up_does_not_overtake_the_next_one(path: Path) -> None:
    store, one = Store(url(path)), row(1)
    for number in range(1, 21):
        one.suspended_at = number
        task = asyncio.create_task(store.save(one))
        await asyncio.sleep(0)
        task.cancel()
    one.suspended_at = 99
    await store.save(one)
    store.close()
    assert [r.suspended_at for r in await loaded(path)] == [99]


async def test_what_was_saved_is_in_the_file_before_save_returns(path: Path) -> None:
    store = Store(url(path))
    await store.save(row(1))
    with sqlite3.connect(path) as other:
        assert other.execute("select id from migrations").fetchall() == [("00000001",)]
        assert other.execute("pragma journal_mode").fetchall() == [("wal",)]
    other.close()
    store.close()


def one_sentence(error: ConfigError) -> str:
    assert "\n" not in error.message
    assert "store.url" in error.message
    return error.message


def damaged(path: Path) -> str:
    path.write_bytes(b"this was a database once " * 100)
    return url(path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: url(path / "nowhere" / "gateway.db"),
        lambda _: "sqlight:///gateway.db",
        lambda _: "gateway.db",
        lambda _: "postgresql+nodriver://gateway@db/landbridge",
        damaged,
    ],
    ids=["no-directory", "unknown-database", "no-url", "no-driver", "damaged"],
)
def test_a_store_that_cannot_be_opened_is_a_config_error_in_one_sentence(path: Path, wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(wrong(path))  # type: ignore[operator]  # one of the above
    assert "cannot be opened" in one_sentence(caught.value)


def test_the_password_in_a_url_is_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        Store("postgresql+nodriver://gateway:hunter2@db/landbridge")
    assert "hunter2" not in caught.value.message


async def test_rows_that_cannot_be_read_are_a_config_error(path: Path) -> None:
    await saved(path, row(1))
    with sqlite3.connect(path) as other:
        other.execute("update migrations set message = x'ffffff'")
    other.close()
    with pytest.raises(ConfigError) as caught:
        await loaded(path)
    assert "cannot be read" in one_sentence(caught.value)


async def test_a_store_of_another_shape_is_a_config_error(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("create table migrations (id text)")
    other.close()
    with pytest.raises(ConfigError) as caught:
        await loaded(path)
    assert "cannot be read" in one_sentence(caught.value)
