"""What a gateway must not forget, in SQLite or whatever SQLAlchemy reaches by the configured URL: one row per migration, and what
operators have set for the tunnels.

A row is written before the act that it announces, so that a crash finds a record of everything that may have happened.

Several gateways of a site may share one store. Each row of a migration from this site names the gateway that coordinates it, and only
that gateway can save it: whoever was taken for dead and wakes up again meets TakenOver at its next step, before it acts. What operators
ask of any gateway (a limit, a cancel) is in columns that `save` does not write.
`docs/adr/0006-take-over.md` has the reasons.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from landbridge.errors import ConfigError, Conflict, TakenOver
from landbridge.v1.types_pb2 import Migration

R = TypeVar("R")

# For a server that is cut off: it must not hold the only worker for the minutes that TCP would. An URL may say otherwise.
_POSTGRESQL = {"connect_timeout": "5", "tcp_user_timeout": "5000"}  # seconds, milliseconds: libpq has it so

# The number of an advisory lock of ours; any that nobody else takes.
_PREPARING = 0x6C616E64

metadata = sa.MetaData()

migrations = sa.Table(
    "migrations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    # Nanoseconds since the epoch; orders the list.
    sa.Column("requested_at", sa.BigInteger, nullable=False, index=True),
    # Whether this site coordinates it: it is the source site.
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
    # Here and below: what 0.1.0 did not have from its beginning, and `_prepare` adds to an older table.
    # The gateway of this site that coordinates it, by name; "" if it is none, or from before they had names here.
    sa.Column("coordinator", sa.String(255), nullable=False, server_default=""),
    # Who has asked another gateway to cancel it; only `wish_cancelled` writes this.
    sa.Column("cancel_wish", sa.Text, nullable=False, server_default=""),
    # The VM's UUID while this site moves it away: unique, so that two gateways do not both begin to move one VM.
    sa.Column("vm_under_way", sa.String(36), nullable=True),
    # Counts the writes, for the other gateways to see that there was one.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    # What it may send over the WAN; 0: no limit. It counts, not the one in `message`, unless it is null: nobody has limited it here.
    # Only `limit_migration` writes this.
    sa.Column("bytes_per_second", sa.BigInteger, nullable=True),
    # Which entries about it stand in which audit log of this site: JSON, by the log's origin.
    sa.Column("logs", sa.Text, nullable=False, server_default=""),
    sa.Index("migrations_vm_under_way", "vm_under_way", unique=True),
)
_ADDED = ("coordinator", "cancel_wish", "vm_under_way", "revision", "bytes_per_second", "logs")

# What operators have set for the tunnel to a site, for all gateways of this one. Null: as each gateway's configuration has it.
tunnels = sa.Table(
    "tunnels",
    metadata,
    sa.Column("site", sa.String(255), primary_key=True),
    sa.Column("bytes_per_second", sa.BigInteger, nullable=True),
    sa.Column("links", sa.Integer, nullable=True),
)

# The gateways that share this store. One that ends in good order removes itself.
gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    # Grows by one with each sign of life, over restarts too. It is no time: nobody has to trust anybody's clock.
    sa.Column("beat", sa.BigInteger, nullable=False),
)

# What waits for approvals, or did: gateway/authorization/requests.py. Times are nanoseconds since the epoch.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    # Of exactly what was asked for.
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    # Empty while nobody has denied it, or used it up; a SPIFFE ID, and the id of a migration.
    sa.Column("denied_by", sa.Text, nullable=False, server_default=""),
    sa.Column("denied_because", sa.Text, nullable=False, server_default=""),
    sa.Column("used_by", sa.String(36), nullable=False, server_default=""),
    # Counts approvals, so that one that comes with a denial is ordered with it.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    # landbridge.v1.ApprovalRequest, what of it never changes
    sa.Column("message", sa.LargeBinary, nullable=False),
)
approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("request", sa.String(36), primary_key=True),
    # SPIFFE ID
    sa.Column("approver", sa.String(512), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
)

# What the audit log of each gateway says of migrations that have ended: gateway/migration/deposits.py.
deposits = sa.Table(
    "deposits",
    metadata,
    sa.Column("migration", sa.String(36), primary_key=True),
    # By its origin, and whose it is.
    sa.Column("log", sa.String(512), primary_key=True),
    sa.Column("gateway", sa.String(255), nullable=False),
    # How many entries of it were known then: if that grows, there is more to say.
    sa.Column("known", sa.Integer, nullable=False),
    # Nanoseconds since the epoch.
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    # landbridge.v1.LogProofs
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
    # Which entries about it are known to stand in which log of this site.
    logs: dict[str, list[int]] = field(default_factory=dict)
    # These two as the store has them: `save` does not take them from here.
    coordinator: str = ""
    cancel_wish: str = ""

    def become(self, other: Row) -> None:
        """Take over all that another has."""
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))


@dataclass(frozen=True)
class TunnelLimits:
    """What operators have set for a tunnel; None: nothing, so that the configuration counts."""

    # 0: no limit.
    bytes_per_second: int | None = None
    links: int | None = None


class Store:
    """The rows, durable when `save` returns. Every method raises ConfigError if the database does not do it."""

    def __init__(self, url: str, gateway: str) -> None:
        """`url` as SQLAlchemy takes it; `gateway` is the name under which rows are saved and taken over."""
        self.gateway = gateway
        # One worker, so that savings reach the database in the order in which they were asked for.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._name = _without_password(url)
        try:
            self._engine = _prepared(url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise self._error("opened", error) from error

    # Migrations

    async def save(self, row: Row) -> None:
        """Insert or replace a row, as its coordinator where this site coordinates it.

        Raises TakenOver if another gateway is its coordinator, and Conflict for a new row of a VM that is under way already.
        """
        id_, fence = row.migration.id, migrations.c.id == row.migration.id
        coordinator = self.gateway if row.coordinating else ""
        under_way = row.coordinating and not row.migration.HasField("ended_at")
        fence &= (migrations.c.coordinator == self.gateway) if row.coordinating else ~migrations.c.coordinating
        values = {
            "requested_at": row.migration.requested_at.ToNanoseconds(),
            "coordinating": row.coordinating,
            "peer_pending": row.peer_pending,
            "cancel_requested": row.cancel_requested,
            "autostart": row.autostart,
            "cause": row.cause,
            "clock_offset_ms": row.clock_offset_ms,
            "suspended_at": row.suspended_at,
            "logs": json.dumps(row.logs),
            "message": row.migration.SerializeToString(),
            "vm_under_way": (row.migration.vm_uuid or None) if under_way else None,
        }
        update = migrations.update().where(fence).values(**values, revision=migrations.c.revision + 1)
        insert = migrations.insert().values(**values, id=id_, coordinator=coordinator, cancel_wish="", revision=1)

        def write(connection: sa.Connection) -> None:
            if connection.execute(update).rowcount:
                return
            if row.coordinating and (now := _coordinator(connection, id_)) is not None:
                raise TakenOver(
                    f"migration {id_} is now coordinated by gateway {now or 'of no name'} and not by {self.gateway}: ask again",
                    details={"migration": id_, "coordinator": now},
                )
            connection.execute(insert)

        try:
            await self.write(write)
        except ConfigError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            if under_way:
                raise Conflict(
                    f"another migration of {row.migration.vm} is under way: see `landbridge migrations`"
                ) from error
            # Another gateway of this site has inserted the same row at the same time.
            await self.write(write)
        row.coordinator = coordinator

    async def load(self, ids: Collection[str] | None = None) -> list[tuple[Row, int]]:
        """Rows with their revisions, newest first: every one, or those with these ids."""
        query = sa.select(migrations).order_by(migrations.c.requested_at.desc())
        if ids is not None:
            query = query.where(migrations.c.id.in_(ids))

        def read() -> list[tuple[Row, int]]:
            with self._engine.connect() as connection:
                return [
                    (
                        Row(
                            migration=_migration(found.message, found.bytes_per_second),
                            coordinating=found.coordinating,
                            peer_pending=found.peer_pending,
                            cancel_requested=found.cancel_requested,
                            autostart=found.autostart,
                            cause=found.cause,
                            clock_offset_ms=found.clock_offset_ms,
                            suspended_at=found.suspended_at,
                            logs=json.loads(found.logs or "{}"),
                            coordinator=found.coordinator,
                            cancel_wish=found.cancel_wish,
                        ),
                        found.revision,
                    )
                    for found in connection.execute(query)
                ]

        return await self.read(read)

    async def revisions(self) -> dict[str, int]:
        """The revision of every row by its id: what differs from a former answer was written since."""
        query = sa.select(migrations.c.id, migrations.c.revision)

        def read() -> dict[str, int]:
            with self._engine.connect() as connection:
                return {found.id: found.revision for found in connection.execute(query)}

        return await self.read(read)

    async def wish_cancelled(self, id_: str, who: str) -> None:
        """Record for a row's coordinator, which may be another gateway, that somebody wants it cancelled."""
        wish = (
            migrations.update()
            .where(migrations.c.id == id_)
            .values(cancel_wish=who, revision=migrations.c.revision + 1)
        )
        await self.write(lambda connection: connection.execute(wish))

    async def limit_migration(self, id_: str, bytes_per_second: int) -> None:
        """Record what a migration may send over the WAN, for all gateways of this site, whoever coordinates it; 0: no limit."""
        limit = (
            migrations.update()
            .where(migrations.c.id == id_)
            .values(bytes_per_second=bytes_per_second, revision=migrations.c.revision + 1)
        )
        await self.write(lambda connection: connection.execute(limit))

    # Tunnels

    async def limit_tunnel(self, site: str, limits: TunnelLimits) -> None:
        """Record what is given for the tunnel to a site; what is None stays as it is."""
        values = {name: value for name, value in asdict(limits).items() if value is not None}
        update = tunnels.update().where(tunnels.c.site == site).values(**{"site": site, **values})
        insert = tunnels.insert().values(site=site, **values)

        def write(connection: sa.Connection) -> None:
            if not connection.execute(update).rowcount:
                connection.execute(insert)

        try:
            await self.write(write)
        except ConfigError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            await self.write(write)  # another gateway has inserted the same row at the same time

    async def forget_tunnel(self, site: str) -> None:
        """Undo `limit_tunnel`."""
        gone = tunnels.delete().where(tunnels.c.site == site)
        await self.write(lambda connection: connection.execute(gone))

    async def tunnel_limits(self) -> dict[str, TunnelLimits]:
        """What was set for tunnels, by site."""

        def read() -> dict[str, TunnelLimits]:
            with self._engine.connect() as connection:
                return {
                    found.site: TunnelLimits(found.bytes_per_second, found.links)
                    for found in connection.execute(sa.select(tunnels))
                }

        return await self.read(read)

    # Gateways

    async def beat(self) -> None:
        """A sign of life of this gateway."""
        update = gateways.update().where(gateways.c.name == self.gateway).values(beat=gateways.c.beat + 1)
        insert = gateways.insert().values(name=self.gateway, beat=1)

        def write(connection: sa.Connection) -> None:
            if not connection.execute(update).rowcount:
                connection.execute(insert)

        await self.write(write)

    async def beats(self) -> dict[str, int]:
        """The last sign of life of every gateway, by its name."""

        def read() -> dict[str, int]:
            with self._engine.connect() as connection:
                return {found.name: found.beat for found in connection.execute(sa.select(gateways))}

        return await self.read(read)

    async def leave(self) -> None:
        """This gateway ends in good order: nobody has to wait before its rows can be taken over."""
        gone = gateways.delete().where(gateways.c.name == self.gateway)
        await self.write(lambda connection: connection.execute(gone))

    async def take_over(self, id_: str, was: str, beat: int | None) -> bool:
        """Become the coordinator of a row, in one atomic step, if `was` still is; whether that was so.

        `beat`, unless None, is the last sign of life of `was` (0 if there is none): with a later one it keeps its row.
        """
        claim = (
            migrations.update()
            .where(migrations.c.id == id_, migrations.c.coordinating, migrations.c.coordinator == was)
            .values(coordinator=self.gateway, revision=migrations.c.revision + 1)
        )
        if beat is not None:
            alive = sa.exists().where(gateways.c.name == was, gateways.c.beat != beat)
            claim = claim.where(~alive)
        return await self.write(lambda connection: connection.execute(claim).rowcount) == 1

    # Access

    async def write(self, work: Callable[[sa.Connection], R]) -> R:
        """Do `work` in a transaction; also for other modules that keep tables here.

        It begins with a statement that writes: SQLite then waits for its turn, instead of failing halfway.
        """

        def write() -> R:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            return await self._run(write)
        except SQLAlchemyError as error:
            raise self._error("written", error) from error

    async def read(self, work: Callable[[], R]) -> R:
        """Do `work`, which reads; see `connect`."""

        try:
            return await self._run(work)
        except (SQLAlchemyError, DecodeError) as error:
            raise self._error("read", error) from error

    def connect(self) -> sa.Connection:
        """A connection, for what `read` is given."""
        return self._engine.connect()

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


def _migration(message: bytes, bytes_per_second: int | None) -> Migration:
    migration = Migration.FromString(message)
    if bytes_per_second is not None:
        migration.limit = bytes_per_second
    return migration


def _coordinator(connection: sa.Connection, id_: str) -> str | None:
    name: str | None = connection.execute(sa.select(migrations.c.coordinator).where(migrations.c.id == id_)).scalar()
    return name


def _engine(text: str) -> sa.Engine:
    url = sa.make_url(text)
    if url.drivername == "postgresql":  # the driver that comes with Landbridge; SQLAlchemy would take another one
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg":
        url = url.set(query={**_POSTGRESQL, **url.query})
    # A connection that was idle while the server restarted is noticed before it is used.
    engine = sa.create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _durable_sqlite)
    return engine


def _prepared(url: str) -> sa.Engine:
    """Of a database that has all tables; one that cannot have them is not left open."""
    engine = _engine(url)
    try:
        _prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _prepare(engine: sa.Engine) -> None:
    """Make the tables that are missing, and the columns that an older one lacks."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Of gateways that start at the same time, one does it, and the others find it done.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARING)))
        inspected = sa.inspect(connection)
        if inspected.has_table(migrations.name):
            present = {column["name"] for column in inspected.get_columns(migrations.name)}
            for name in [name for name in _ADDED if name not in present]:
                column = sa.schema.CreateColumn(migrations.c[name]).compile(dialect=engine.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {migrations.name} ADD COLUMN {column}")
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


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
