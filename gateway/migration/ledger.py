"""The migrations this gateway knows: in memory, durable in the store, and watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from gateway.migration.states import ENDED, Input, State, following
from gateway.store import Row, Store
from landbridge.errors import ConfigError, NotFound, UsageError
from landbridge.v1.types_pb2 import Migration

log = structlog.get_logger()

# Characters that a shortened id must have.
SHORTEST_PREFIX = 4
# Seconds between two attempts to record a step in a store that fails.
STORE_RETRY = 2.0


def state_of(row: Row) -> State:
    """The state a migration is in."""
    return State(row.migration.state)


def has_ended(row: Row) -> bool:
    """Whether nothing more will happen to it by itself."""
    return state_of(row) in ENDED


class Ledger:
    """All rows. Owned by the event loop; `advance` and `save` return when the row is durable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, Row] = {}
        self._changed: dict[str, asyncio.Event] = {}

    async def load(self) -> None:
        """Read what the store holds, once, before anything else."""
        self._rows = {row.migration.id: row for row in reversed(await self._store.load())}

    def rows(self) -> list[Row]:
        """Newest first."""
        return list(reversed(self._rows.values()))

    def get(self, migration: str) -> Row | None:
        """By its whole id."""
        return self._rows.get(migration)

    def find(self, prefix: str) -> Row:
        """By its id or the beginning of it. Raises NotFound, or UsageError for a prefix that is short or fits several."""
        if prefix in self._rows:
            return self._rows[prefix]
        found = [row for id_, row in self._rows.items() if id_.startswith(prefix)]
        if len(found) == 1 and len(prefix) >= SHORTEST_PREFIX:
            return found[0]
        if found:
            raise UsageError(
                f"{prefix!r} is not enough of an id: give at least {SHORTEST_PREFIX} characters that fit one migration",
            )
        raise NotFound(f"there is no migration {prefix}; see `landbridge migrations`")

    def reserve(self, row: Row) -> None:
        """Have a row found from now on, before `save` makes it durable."""
        self._rows[row.migration.id] = row

    async def save(self, row: Row) -> None:
        """Make a row durable, and tell those who watch."""
        row.migration.updated_at.GetCurrentTime()
        self._rows[row.migration.id] = row
        await self._store.save(row)
        self.changed(row)

    async def advance(self, row: Row, event: Input, reason: str | None = None) -> None:
        """Take a row through the table. Raises Conflict if the event has no place in its state.

        Returns when that is durable, however long a failing store takes.
        """
        before, after = state_of(row), following(state_of(row), event)
        row.migration.state = after.value
        if reason is not None:
            row.migration.reason = reason
        if after in ENDED and not row.migration.HasField("ended_at"):
            row.migration.ended_at.GetCurrentTime()
        log.info(
            "migration.state",
            migration=row.migration.id,
            vm=row.migration.vm,
            before=before.name,
            after=after.name,
            why=event.value,
        )
        while True:
            try:
                await self.save(row)
            except ConfigError as error:
                # What is not recorded must not be acted upon: the migration is held here until it can be.
                log.error("store.failed", migration=row.migration.id, error=error.message)  # noqa: TRY400 - no defect
                await asyncio.sleep(STORE_RETRY)
            else:
                return

    def forget(self, row: Row) -> None:
        """Undo `reserve`, for a row that could not be saved."""
        self._rows.pop(row.migration.id, None)

    def changed(self, row: Row) -> None:
        """Tell those who watch a row; for what need not be durable, such as progress."""
        self._changed.pop(row.migration.id, asyncio.Event()).set()

    async def watch(self, row: Row) -> AsyncIterator[Migration]:
        """The migration now, after each change, and as it ended."""
        while True:
            changed = self._changed.setdefault(row.migration.id, asyncio.Event())
            snapshot = Migration()
            snapshot.CopyFrom(row.migration)
            yield snapshot
            # Not the row's state: it may have ended while the snapshot was taken away.
            if State(snapshot.state) in ENDED:
                return
            await changed.wait()
