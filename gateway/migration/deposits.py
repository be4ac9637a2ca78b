"""What the audit logs of this site's gateways say of migrations that have ended, each with its proofs, in the store that they share.

A migration that was taken over, or whose reports came to several gateways, has entries in the logs of all of them, and a gateway reads
no log but its own. So each leaves in the store what its log says, as soon as the migration has ended, also if that is nothing; whoever
makes the receipt finds it there, also when that gateway is gone by then. What is there proves itself: who can write to the store can
take it away, and not change it. (They can put a log there that they have made up, under a key of their own and the name of a gateway of
this site: whoever verifies the receipt by the keys of all logs sees that it is none of them.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import partial

import sqlalchemy as sa
import structlog
from google.protobuf.message import DecodeError

from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.note import Key
from gateway.audit.proof import Proof
from gateway.audit.proving import prove
from gateway.audit.receipt import Part, Proved, Receipt, check
from gateway.store import Row, Store, deposits
from landbridge.errors import EvidenceFailed, UsageError
from landbridge.v1.audit_pb2 import LogProofs, ProvedEntry

log = structlog.get_logger()

# What is older is forgotten: receipts are made within a week.
KEPT = timedelta(days=90)


class Deposits:
    """Of one gateway. Every method raises ConfigError if the store fails."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        head: Callable[[], Awaitable[Signed]],
        followed: Callable[[str], Awaitable[None]],
    ) -> None:
        """`head` is the log's newest head, cosigned by whoever answers in time; `followed` waits until all of a migration is on record."""
        self._store = store
        self._journal = journal
        self._head = head
        self._followed = followed
        self._log = journal.key.name
        # Of each migration, how many entries of this log were known when it was left here; None: not looked up yet.
        self._left: dict[str, int] | None = None

    async def own(self, migration: str) -> Part:
        """What this gateway's log says of a migration. Raises as `prove`."""
        return await asyncio.to_thread(prove, self._journal.storage, await self._head(), migration)

    async def others(self) -> set[str]:
        """The other gateways that share the store, by name, also one that was killed and has not come back."""
        return set(await self._store.beats()) - {self._store.gateway}

    async def leave(self, row: Row, others: Iterable[str]) -> None:
        """Leave what this log says of a migration that has ended, if that is not there and anybody else may want it. Raises as `own`."""
        id_ = row.migration.id
        if not others and not set(row.logs) - {self._log}:
            return
        if self._left is None:
            self._left = await self._store.read(self._load)
        known = self._known(row)
        if self._left.get(id_) == known:
            return
        await self._followed(id_)
        known = self._known(row)
        part = await self.own(id_)
        if len(part.entries) < await self._store.read(partial(self._entries_left, id_)):
            # Some were pruned since, or the log was begun anew: what was left is worth more.
            self._left[id_] = known
            return
        said = message(part).SerializeToString()
        now = time.time_ns()
        mine = (deposits.c.migration == id_) & (deposits.c.log == self._log)
        old = deposits.c.at < now - int(KEPT.total_seconds()) * 1_000_000_000
        values = {"migration": id_, "log": self._log, "gateway": self._store.gateway, "known": known, "at": now}

        def write(connection: sa.Connection) -> None:
            connection.execute(deposits.delete().where(mine | old))
            connection.execute(deposits.insert().values(**values, message=said))

        await self._store.write(write)
        self._left[id_] = known

    def _known(self, row: Row) -> int:
        """How many entries of this log are known to be about a migration."""
        return len({*row.logs.get(self._log, ()), *self._journal.told(row.migration.id)})

    def _load(self) -> dict[str, int]:
        query = sa.select(deposits.c.migration, deposits.c.known).where(deposits.c.log == self._log)
        with self._store.connect() as connection:
            return {found.migration: found.known for found in connection.execute(query)}

    def _entries_left(self, migration: str) -> int:
        query = sa.select(deposits.c.message).where(deposits.c.migration == migration, deposits.c.log == self._log)
        with self._store.connect() as connection:
            said = connection.execute(query).scalar()
        try:
            return len(LogProofs.FromString(said or b"").entries)
        except DecodeError:  # it is replaced
            return 0

    async def of_others(self, migration: str) -> dict[str, Part]:
        """What other gateways have left of a migration, by their names; what does not prove itself is as if it were not there."""
        query = sa.select(deposits).where(deposits.c.migration == migration, deposits.c.log != self._log)

        def read() -> list[tuple[str, str, bytes]]:
            with self._store.connect() as connection:
                found = connection.execute(query.order_by(deposits.c.log))
                return [(each.gateway, each.log, each.message) for each in found]

        parts: dict[str, Part] = {}
        for gateway, origin, said in await self._store.read(read):
            try:
                part = _proved(said, migration, origin)
                _require_of(gateway, site_of(self._log), origin)
            except EvidenceFailed as error:
                log.error("deposit.wrong", migration=migration, log=origin, security=True, reason=error.message)  # noqa: TRY400 - no defect
                continue
            parts[gateway] = part
        return parts


def _proved(said: bytes, migration: str, origin: str) -> Part:
    """What a deposit says of a migration; EvidenceFailed unless it is the log's own word."""
    try:
        part = part_of(LogProofs.FromString(said))
    except DecodeError as error:
        raise EvidenceFailed("it cannot be read") from error
    if part.key.name != origin:
        raise EvidenceFailed("it is of another log")
    if wrong := check(Receipt(migration, (part,))):
        raise EvidenceFailed(wrong[0].message)
    return part


def _require_of(gateway: str, site: str, origin: str) -> None:
    if site_of(origin) != site or not origin.endswith(f"/gateway/{gateway}"):
        raise EvidenceFailed(f"it is of no log of gateway {gateway} of this site")


def site_of(origin: str) -> str:
    """Whose log it is: TRUST-DOMAIN/site/SITE/gateway/NAME."""
    return "/".join(origin.split("/")[:3])


def message(part: Part) -> LogProofs:
    """What a log says, for others."""
    entries = [ProvedEntry(entry=each.raw.decode(), proof=each.proof.encode().decode()) for each in part.entries]
    return LogProofs(key=str(part.key), entries=entries)


def part_of(said: LogProofs) -> Part:
    """What was said; whether it is true is for whoever checks it. EvidenceFailed if it cannot be read."""
    try:
        entries = tuple(Proved(each.entry.encode(), Proof.decode(each.proof.encode())) for each in said.entries)
        return Part(Key.parse(said.key), entries)
    except UsageError as error:
        raise EvidenceFailed(error.message) from error
