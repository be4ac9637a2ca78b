"""The one writer of a log, for many callers at once: what they bring while a group is being written is the next group.

    append -> waiting -> group -> Storage.commit (in a thread of its own) -> every caller of the group hears its index

A caller that has not heard an index must not do what it wanted to record: that is what makes the log complete.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

from gateway.audit.checkpoint import Signed
from gateway.audit.entry import NOTHING, Entry, Facts, clean
from gateway.audit.note import Key
from gateway.audit.storage import Storage
from landbridge.errors import LandbridgeError, NotRecorded

# A group takes about 60 us for each entry, and about 5 ms for the disk (tests.bench.audit): 1,024 cost little more delay than one.
MOST_GROUP = 1024
MOST_WAITING = 8192
# Migrations of which it is remembered where their entries stand: far more than are under way, and some MB.
MOST_TOLD = 10_000

_Result = TypeVar("_Result")


class Journal:
    """A log that is open for appending. All methods are of one event loop; only the thread of `_run` touches the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._thread = ThreadPoolExecutor(1, "audit")
        self._waiting: deque[tuple[Entry, asyncio.Future[int]]] = deque()
        self._room = asyncio.Semaphore(MOST_WAITING)
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        # By migration, the indexes of the entries about it: a few dozen of each. The one of which nothing came for longest first.
        self._told: OrderedDict[str, list[int]] = OrderedDict()

    @classmethod
    async def open(cls, directory: Path, origin: str) -> Self:
        """Open the log `origin`; raises as `Storage.open`."""
        return cls(await asyncio.to_thread(Storage.open, directory, origin))

    @property
    def signed(self) -> Signed:
        """The newest checkpoint."""
        return self._storage.signed

    @property
    def storage(self) -> Storage:
        """To read from, below `signed`: nothing there changes any more."""
        return self._storage

    @property
    def key(self) -> Key:
        """The public key by which others verify it."""
        return self._storage.signer.key()

    async def record(
        self,
        event: str,
        *,
        outcome: str = "success",
        reason: str = "",
        actor: Facts = NOTHING,
        migration: str = "",
        seen: Facts = NOTHING,
        claimed: Facts = NOTHING,
    ) -> int:
        """Record what happens now; the fields as in `Entry`. Raises as `append`."""
        made = Entry(event, str(uuid.uuid4()), datetime.now(UTC), outcome, reason, actor, migration, seen, claimed)
        return await self.append(made)

    async def append(self, entry: Entry) -> int:
        """Record an entry, and return its index when it is durable.

        NotRecorded if it cannot be written, now or for as long as the disk is full. Cancelling does not take an entry back.
        """
        async with self._room:
            if self._closed:
                raise NotRecorded("the audit log is closed: the gateway is shutting down")
            done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append((entry, done))
            if self._writer is None:
                self._writer = asyncio.create_task(self._write(), name="audit-journal")
            return await done

    def told(self, migration: str) -> list[int]:
        """The indexes of the entries about a migration that were recorded since the log was opened; of MOST_TOLD migrations."""
        return list(self._told.get(clean(migration), ()))

    def _tell(self, migration: str, index: int) -> None:
        id_ = clean(migration)  # another site may have named it
        self._told.setdefault(id_, []).append(index)
        self._told.move_to_end(id_)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)

    async def read(self, question: Callable[[Storage], _Result]) -> _Result:
        """Ask the storage something, between two groups."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, question, self._storage)

    async def close(self) -> None:
        """Write what waits, and let another process open the log."""
        self._closed = True
        while self._writer is not None:
            await asyncio.wait([self._writer])
        self._thread.shutdown()
        self._storage.close()

    async def _write(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(MOST_GROUP, len(self._waiting)))]
                await self._commit(group)
        finally:
            self._writer = None

    async def _commit(self, group: list[tuple[Entry, asyncio.Future[int]]]) -> None:
        message = "the audit log was closed before the entry was written"
        first: int | None = None
        try:
            first = await self.read(lambda storage: commit(storage, [entry for entry, _ in group]))
        except LandbridgeError as error:
            message = error.message
        finally:
            # Also if this task was cancelled, or met a defect: nobody waits for ever.
            for at, (entry, done) in enumerate(group):
                if first is not None and entry.migration:
                    self._tell(entry.migration, first + at)
                if done.done():
                    continue
                if first is None:
                    done.set_exception(NotRecorded(message))
                else:
                    done.set_result(first + at)


def commit(storage: Storage, entries: list[Entry]) -> int:
    """Append entries to a storage, and return the index of the first. NotRecorded if the system refuses."""
    return storage.commit([entry.encode(storage.signer.name, storage.size + at) for at, entry in enumerate(entries)])
