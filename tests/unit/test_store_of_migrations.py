"""The gateway's store where it is SQLite, and URLs that lead nowhere; tests/contract/test_store.py has what holds for every database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.store import Row, Store, _engine
from landbridge.errors import ConfigError
from landbridge.v1.types_pb2 import Migration


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def test_what_was_saved_is_in_the_file_before_save_returns(path: Path) -> None:
    store = Store(url(path), "gw-1")
    await store.save(Row(migration=Migration(id="00000001")))
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


def strange(path: Path) -> str:
    with sqlite3.connect(path) as other:
        other.execute("create table migrations (id text)")
    other.close()
    return url(path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: url(path / "nowhere" / "gateway.db"),
        lambda _: "sqlight:///gateway.db",
        lambda _: "gateway.db",
        lambda _: "postgresql+nodriver://gateway@db/landbridge",
        lambda path: f"postgresql://gateway@/landbridge?host={path}",
        damaged,
        strange,
    ],
    ids=["no-directory", "unknown-database", "no-url", "no-driver", "no-server", "damaged", "another-shape"],
)
def test_a_store_that_cannot_be_opened_is_a_config_error_in_one_sentence(path: Path, wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(wrong(path), "gw-1")  # type: ignore[operator]  # one of the above
    assert "cannot be opened" in one_sentence(caught.value)


@pytest.mark.parametrize("wrong", [damaged, strange])
def test_a_store_that_cannot_be_opened_is_not_left_open(path: Path, wrong: Callable[[Path], str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(wrong(path), "gw-1")
    # While `caught` still holds all that was at work: nothing here waits for the garbage collector.
    assert caught.tb
    assert path.resolve() not in {link.resolve() for link in Path("/proc/self/fd").iterdir()}


def test_the_password_in_a_url_is_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        Store("postgresql+nodriver://gateway:hunter2@db/landbridge", "gw-1")
    assert "hunter2" not in caught.value.message


def test_postgresql_is_waited_for_no_longer_than_the_url_allows() -> None:
    engine = _engine("postgresql://gateway@db/landbridge?connect_timeout=2")
    assert engine.url.drivername == "postgresql+psycopg"
    assert (engine.url.query["connect_timeout"], engine.url.query["tcp_user_timeout"]) == ("2", "5000")


async def test_rows_that_cannot_be_read_are_a_config_error(path: Path) -> None:
    store = Store(url(path), "gw-1")
    await store.save(Row(migration=Migration(id="00000001")))
    with sqlite3.connect(path) as other:
        other.execute("update migrations set message = x'ffffff'")
    other.close()
    with pytest.raises(ConfigError) as caught:
        await store.load()
    assert "cannot be read" in one_sentence(caught.value)
    store.close()
