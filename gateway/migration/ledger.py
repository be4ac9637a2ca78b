"""The migrations this gateway knows: in memory, durable in the store, and watched.

Of a migration that this gateway coordinates, its own row is the truth, and the store follows it. Of every other one the store is the
truth, where other gateways of the site write: `refresh` follows it, into the same Row objects, so that whoever watches one sees it change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from gateway.migration.states import ENDED, Input, State, following
from gateway.store import Row, Store
from landbridge.errors import ConfigError, LandbridgeError, NotFound, NotRecorded, TakenOver, UsageError
from landbridge.v1.types_pb2 import Migration

log = structlog.get_logger()

# Writes in the audit log that a row is in a new state, and which it had before; returns when that is durable. Raises NotRecorded.
Record = Callable[[Row, State | None], Awaitable[None]]

# Characters that a shortened id must have.
SHORTEST_PREFIX = 4
# Seconds between two attempts to record a step in a store that fails.
STORE_RETRY = 2.0
# Rows that are read one by one; all of them are read if more than that have changed, as at the start.
MANY = 100


def state_of(row: Row) -> State:
    """The state a migration is in."""
    return State(row.migration.state)


def has_ended(row: Row) -> bool:
    """Whether nothing more will happen to it by itself."""
    return state_of(row) in ENDED


class Ledger:
    """All rows. Owned by the event loop; `advance` and `save` return when the row is durable."""

    def __init__(self, store: Store, record: Record) -> None:
        self._store = store
        self._record = record
        # Of each row, the number of the state that the audit log has.
        self._recorded: dict[str, int] = {}
        self._rows: dict[str, Row] = {}
        self._changed: dict[str, asyncio.Event] = {}
        # Of each row, the revision in the store that `refresh` has seen.
        self._seen: dict[str, int] = {}
        # Rows of our own that have changed since they were saved.
        self._unsaved: set[str] = set()
        # Held while what was read from the store is on its way into the rows.
        self._refreshing = asyncio.Lock()

    async def load(self) -> None:
        """Read what the store holds, once, before anything else. From here on, no other gateway takes our rows for abandoned."""
        await self._store.beat()
        await self.refresh()

    async def refresh(self) -> None:
        """Take over what other gateways of this site have written since. Raises ConfigError."""
        async with self._refreshing:
            revisions = await self._store.revisions()
            news = [id_ for id_, revision in revisions.items() if self._seen.get(id_) != revision]
            if not news:
                return
            found = await self._store.load(news if len(news) < MANY else None)
            for row, revision in reversed(found):
                self._seen[row.migration.id] = revision
                self._take(row)
            self._rows = dict(
                sorted(self._rows.items(), key=lambda item: item[1].migration.requested_at.ToNanoseconds())
            )

    def _take(self, found: Row) -> None:
        known = self._rows.setdefault(found.migration.id, found)
        if known is found:
            self._recorded[found.migration.id] = found.migration.state
            return
        if self.is_own(known) and self.is_own(found):
            known.cancel_wish = found.cancel_wish
            if known.migration.limit != found.migration.limit:
                known.migration.limit = found.migration.limit
                self._tell(known)
        else:
            known.become(found)
            self._recorded[found.migration.id] = found.migration.state
            self._unsaved.discard(found.migration.id)
            self._tell(known)

    def is_own(self, row: Row) -> bool:
        """Whether this gateway coordinates it, as far as is known: only the store knows for certain, in `save`."""
        return row.coordinating and row.coordinator == self._store.gateway

    def rows(self) -> list[Row]:
        """Newest first."""
        return list(reversed(self._rows.values()))

    def get(self, migration: str) -> Row | None:
        """By its whole id, as it is known here."""
        return self._rows.get(migration)

    async def latest(self, migration: str) -> Row | None:
        """By its whole id, as the store has it now if it is not our own."""
        row = self._rows.get(migration)
        if row is None or not self.is_own(row):
            await self.refresh()
        return self._rows.get(migration)

    async def find(self, prefix: str) -> Row:
        """By its id or the beginning of it. Raises NotFound, or UsageError for a prefix that is short or fits several."""
        found = self._matches(prefix)
        if not (len(found) == 1 and self.is_own(found[0]) and not has_ended(found[0])):
            await self.refresh()
            found = self._matches(prefix)
        if len(found) == 1 and (len(prefix) >= SHORTEST_PREFIX or found[0].migration.id == prefix):
            return found[0]
        if found:
            raise UsageError(
                f"{prefix!r} is not enough of an id: give at least {SHORTEST_PREFIX} characters that fit one migration",
            )
        raise NotFound(f"there is no migration {prefix}; see `landbridge migrations`")

    def _matches(self, prefix: str) -> list[Row]:
        if prefix in self._rows:
            return [self._rows[prefix]]
        return [row for id_, row in self._rows.items() if id_.startswith(prefix)]

    def reserve(self, row: Row) -> None:
        """Have a row found from now on, before `save` makes it durable."""
        self._rows[row.migration.id] = row

    async def save(self, row: Row) -> None:
        """Make a row durable, and tell those who watch; a new state is in the audit log before.

        Raises TakenOver if another gateway coordinates it, NotRecorded if the audit log cannot be written.
        """
        id_ = row.migration.id
        self._fence(row)
        if (before := self._recorded.get(id_)) != row.migration.state:
            # The audit log first: what it does not have does not happen.
            await self._record(row, None if before is None else State(before))
            self._recorded[id_] = row.migration.state
        row.migration.updated_at.GetCurrentTime()
        self._rows[id_] = row
        try:
            await self._store.save(row)
        except TakenOver:
            # What is here is not true: the other gateway's word counts from now on.
            await self.refresh()
            raise
        self._unsaved.discard(id_)
        self._tell(row)

    async def advance(self, row: Row, event: Input, reason: str | None = None) -> None:
        """Take a row through the table. Raises Conflict if the event has no place in its state, TakenOver as `save`.

        Returns when that is durable, however long a failing store takes.
        """
        self._fence(row)
        before, after = state_of(row), following(state_of(row), event)
        row.migration.state = after.value
        if reason is not None:
            row.migration.reason = reason
        if after in ENDED and not row.migration.HasField("ended_at"):
            row.migration.ended_at.GetCurrentTime()
        while True:
            try:
                await self.save(row)
            except (ConfigError, NotRecorded) as error:
                # What is not recorded must not be acted upon: the migration is held here until it can be.
                log.error("store.failed", migration=row.migration.id, error=error.message)  # noqa: TRY400 - no defect
                await asyncio.sleep(STORE_RETRY)
            except TakenOver:
                raise
            except LandbridgeError:
                # A defect of ours: what is not recorded has not happened.
                row.migration.state = before.value
                raise
            else:
                break
        log.info(
            "migration.state",
            migration=row.migration.id,
            vm=row.migration.vm,
            before=before.name,
            after=after.name,
            why=event.value,
        )

    def _fence(self, row: Row) -> None:
        # Before anything in the row is changed; the store is asked too, and has the last word.
        if row.coordinating and row.coordinator not in {"", self._store.gateway}:
            raise TakenOver(f"migration {row.migration.id} is coordinated by gateway {row.coordinator} now: ask again")

    def forget(self, row: Row) -> None:
        """Undo `reserve`, for a row that could not be saved."""
        self._rows.pop(row.migration.id, None)

    async def take_over(self, row: Row, beat: int | None = None) -> bool:
        """Become a row's coordinator, if the one it had still is, and has not lived on (`Store.take_over`)."""
        was = row.coordinator
        if taken := await self._store.take_over(row.migration.id, was, beat):
            log.warning("migration.taken_over", migration=row.migration.id, was=was, state=state_of(row).name)
        await self.refresh()
        return taken and self.is_own(row)

    async def wish_cancelled(self, row: Row, who: str) -> None:
        """Have another gateway, which coordinates the row, hear that it is to be cancelled."""
        await self._store.wish_cancelled(row.migration.id, who)

    async def limit(self, row: Row, bytes_per_second: int) -> None:
        """Limit what a migration may send over the WAN; every gateway of this site reads it with its next `refresh`."""
        await self._store.limit_migration(row.migration.id, bytes_per_second)
        await self.refresh()

    def changed(self, row: Row) -> None:
        """Tell those who watch a row; for what need not be durable, such as progress."""
        self._unsaved.add(row.migration.id)
        self._tell(row)

    def note(self, row: Row, note: str) -> None:
        """Show why a migration does not go on at present, behind what went wrong before."""
        row.migration.reason = "; ".join(part for part in (row.cause, note) if part)
        self.changed(row)

    async def publish(self) -> None:
        """Let the other gateways of this site see what has changed in rows of our own and was not saved."""
        unsaved, self._unsaved = self._unsaved, set()
        for row in [self._rows[id_] for id_ in unsaved if id_ in self._rows]:
            if self.is_own(row):
                with contextlib.suppress(TakenOver):  # `refresh` tells
                    await self._store.save(row)

    def _tell(self, row: Row) -> None:
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
