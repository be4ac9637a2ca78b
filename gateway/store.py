"""What a gateway must not forget: one row per migration, in SQLite or whatever SQLAlchemy reaches by the configured URL.

A row is written before the act that it announces, so that a crash finds a record of everything that may have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.exc import SQLAlchemyError

from landbridge.errors import ConfigError
from landbridge.v1.types_pb2 import Migration

R = TypeVar("R")

metadata = sa.MetaData()

migrations = sa.Table(
    "migrations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    # Nanoseconds since the epoch; orders the list.
    sa.Column("requested_at", sa.BigInteger, nullable=False, index=True),
    # Whether this gateway coordinates it: it is the source site's.
    sa.Column("coordinating", sa.Boolean, nullable=False),
    # Whether the other site is still to be told how it ended (and, after a failure, to clean up).
    sa.Column("peer_pending", sa.Boolean, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("autostart", sa.Boolean, nullable=False),
    # What went wrong first; `message` holds the sentence that is shown, which may say more.
    sa.Column("cause", sa.Text, nullable=False),
    # The destination host's clock minus the source host's, milliseconds.
    sa.Column("clock_offset_ms", sa.BigInteger, nullable=False),
    # By the source host's clock, nanoseconds since the epoch; 0 until the guest stood still.
    sa.Column("suspended_at", sa.BigInteger, nullable=False),
    # landbridge.v1.Migration
    sa.Column("message", sa.LargeBinary, nullable=False),
)


@dataclass
class Row:
    """One migration as this gateway knows it. Owned by the coordinator."""

    migration: Migration = field(default_factory=Migration)
    coordinating: bool = True
    peer_pending: bool = False
    cancel_requested: bool = False
    autostart: bool = False
    cause: str = ""
    clock_offset_ms: int = 0
    suspended_at: int = 0


class Store:
    """The rows, durable when `save` returns."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy takes it. Raises ConfigError."""
        # One worker, so that savings reach the database in the order in which they were asked for.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._name = _without_password(url)
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _durable_sqlite)
            metadata.create_all(self._engine)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise self._error("opened", error) from error

    async def save(self, row: Row) -> None:
        """Insert or replace a row. Raises ConfigError if the database does not take it."""
        values = {
            "id": row.migration.id,
            "requested_at": row.migration.requested_at.ToNanoseconds(),
            "coordinating": row.coordinating,
            "peer_pending": row.peer_pending,
            "cancel_requested": row.cancel_requested,
            "autostart": row.autostart,
            "cause": row.cause,
            "clock_offset_ms": row.clock_offset_ms,
            "suspended_at": row.suspended_at,
            "message": row.migration.SerializeToString(),
        }

        def write() -> None:
            with self._engine.begin() as connection:
                connection.execute(migrations.delete().where(migrations.c.id == values["id"]))
                connection.execute(migrations.insert().values(values))

        try:
            await self._run(write)
        except SQLAlchemyError as error:
            raise self._error("written", error) from error

    async def load(self) -> list[Row]:
        """Every row, newest first. Raises ConfigError if this is no store of ours."""

        def read() -> list[Row]:
            with self._engine.connect() as connection:
                found = connection.execute(sa.select(migrations).order_by(migrations.c.requested_at.desc()))
                return [
                    Row(
                        migration=Migration.FromString(row.message),
                        coordinating=row.coordinating,
                        peer_pending=row.peer_pending,
                        cancel_requested=row.cancel_requested,
                        autostart=row.autostart,
                        cause=row.cause,
                        clock_offset_ms=row.clock_offset_ms,
                        suspended_at=row.suspended_at,
                    )
                    for row in found
                ]

        try:
            return await self._run(read)
        except (SQLAlchemyError, DecodeError) as error:
            raise self._error("read", error) from error

    async def _run(self, work: Callable[[], R]) -> R:
        # An fsync may take long on a busy disk, and bytes must go on moving meanwhile.
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _error(self, what: str, error: Exception) -> ConfigError:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        return ConfigError(f"the store {self._name} cannot be {what}: {said}; see store.url in the configuration")

    def close(self) -> None:
        """Finish what is being saved, and close all connections."""
        self._worker.shutdown()
        self._engine.dispose()


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return "at store.url"


def _durable_sqlite(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DB-API connection, which has no common type
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
