"""Receipts that are kept: made by themselves once a migration from this site has ended and the other site knows it.

A receipt is made of what the logs of both sites hold, and checked; written as a hidden file, so that nothing is recorded that cannot be
kept; recorded by its hash (`migration.receipted`); and renamed. A crash in between has it made once more.

Where a site has several gateways, each leaves what its own log says for the others (`deposits`). Another gateway that has not done so
is waited for, and one in whose log entries are known to stand for longer; then the receipt names what it lacks.

Migrations of the last KEPT_UP are looked after; of older ones, receipts are made when they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from certs.identity import Identity
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.audit.receipt import Receipt, check
from gateway.audit.refusals import Refusals
from gateway.migration.deposits import Deposits, site_of
from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.receipts import Receipts
from gateway.migration.states import State
from gateway.rounds import Rounds
from gateway.store import Row
from landbridge import durable
from landbridge.errors import EvidenceFailed, LandbridgeError, NotRecorded

log = structlog.get_logger()

# Seconds between two looks, and before another attempt.
LOOK = 2.0
RETRY = 60.0
KEPT_UP = timedelta(days=7)
# How long after the end of a migration a gateway is waited for that has not said what its log has; and one whose log is known to have
# something: it is taken for lost then.
LATE = timedelta(seconds=30)
LOST = timedelta(hours=1)
_NAME = re.compile(r"[0-9a-zA-Z-]{1,64}")


class ReceiptKeeper(Rounds):
    """Of one gateway: for the migrations that it coordinates. Owned by the event loop."""

    def __init__(
        self,
        receipts: Receipts,
        deposits: Deposits,
        ledger: Ledger,
        journal: Journal,
        refusals: Refusals,
        directory: Path,
    ) -> None:
        self._receipts = receipts
        self._deposits = deposits
        self._ledger = ledger
        self._journal = journal
        self._refusals = refusals
        self._directory = directory
        # When those that could not be made are tried again, by the event loop's clock.
        self._later: dict[str, float] = {}
        # The same of what could not be left for others.
        self._leave_later: dict[str, float] = {}
        self._made: set[str] = set()
        # What was said last of why there is none, by migration.
        self._told: dict[str, str] = {}

    async def _go_round(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Leave what others may want, and make what is missing."""
        now = asyncio.get_running_loop().time()
        rows = [row for row in self._ledger.rows() if has_ended(row) and _age(row) <= KEPT_UP]
        await self._leave(rows, now)
        for row in rows:
            id_ = row.migration.id
            if self._later.get(id_, now) > now:
                continue
            again = RETRY
            try:
                if not self._is_due(row):
                    continue
                again = await self._make(row)
            except LandbridgeError as error:
                self._tell(id_, "receipt.not_made", error.message)
            except Exception:  # a defect here must not end the looks
                log.exception("receipt.defect", migration=id_)
            self._later[id_] = now + again

    async def _leave(self, rows: list[Row], now: float) -> None:
        try:
            others = await self._deposits.others() if rows else set()
        except LandbridgeError as error:
            self._tell("", "deposit.not_made", error.message)
            return
        for row in rows:
            # One at a time: what one migration has too much of holds up no other.
            id_ = row.migration.id
            if self._leave_later.get(id_, now) > now:
                continue
            try:
                await self._deposits.leave(row, others)
            except LandbridgeError as error:
                self._tell(id_, "deposit.not_made", error.message)
            except Exception:  # likewise
                log.exception("deposit.defect", migration=id_)
            else:
                continue
            self._leave_later[id_] = now + RETRY

    def _tell(self, migration: str, event: str, reason: str) -> None:
        """Log why something is not there; once, until the reason is another one."""
        if self._told.get(migration) != reason:
            self._told[migration] = reason
            log.warning(event, migration=migration, reason=reason)

    def _is_due(self, row: Row) -> bool:
        id_ = row.migration.id
        if id_ in self._made or not self._ledger.is_own(row) or row.peer_pending:
            return False
        if self.path(id_).exists():
            self._made.add(id_)
            return False
        return True

    def is_owed(self, row: Row) -> bool:
        """Whether the receipt of a migration from this site may still come, if both sites are asked: then it is no time to part.

        Of what another gateway coordinated it is not known here; and what did not complete may have nothing to say for itself.
        """
        if not row.coordinating or not has_ended(row):
            return False
        if not self._ledger.is_own(row):
            return _age(row).total_seconds() < RETRY
        has_completed = State(row.migration.state) in {State.COMPLETED, State.SETTLED}
        is_late = _age(row) > (LOST if has_completed else timedelta(seconds=RETRY))
        return not is_late and not self.path(row.migration.id).exists()

    async def _make(self, row: Row) -> float:
        """Make a receipt, or say after how many seconds to try again."""
        id_ = row.migration.id
        found = await self._receipts.receipt(id_)
        made, age = found.receipt, _age(row)
        if found.waits and age < LATE:
            return LOOK
        lacks = "; ".join(map(str, made.missing))
        if lacks and age < LOST:
            self._tell(id_, "receipt.waits", f"{lacks}: pruned, or its gateway has not said yet what it holds")
            return RETRY
        await asyncio.to_thread(_check, made)
        raw, path = made.encode(), self.path(id_)
        hidden = path.with_name(f".{path.name}")
        file = {"format": "receipt", "sha256": hashlib.sha256(raw).hexdigest()}
        reason = f"what it lacks could not be had: {lacks}" if lacks else ""
        try:
            await asyncio.to_thread(_write, hidden, raw)
            await self._journal.record("migration.receipted", migration=id_, reason=reason, seen={"query": file})
            await asyncio.to_thread(_rename, hidden, path)
        except OSError as error:
            raise NotRecorded(f"{self._directory} cannot be written: {error.strerror}") from error
        self._made.add(id_)
        self._told.pop(id_, None)
        log.info("receipt.made", migration=id_, file=str(path), missing=lacks)
        return 0.0

    def path(self, migration: str) -> Path:
        """Where the receipt of a migration is kept. Raises NotRecorded for an id that is no name of a file."""
        if not _NAME.fullmatch(migration):
            raise NotRecorded(f"{migration[:80]!r} is no id of a migration: no receipt is kept of it")
        return self._directory / f"{migration}.receipt"

    async def receipt(self, prefix: str, who: Identity) -> tuple[str, bytes]:
        """The id and the file of a migration: as it is kept, or made now. Raises as `Receipts.receipt`. On record as a read of the log."""
        row = await self._ledger.find(prefix)
        id_ = row.migration.id
        path = self.path(id_)
        raw = await asyncio.to_thread(path.read_bytes) if path.exists() else b""
        if not raw:
            raw = (await self._receipts.receipt(id_)).receipt.encode()
        elif lacks := _lacks(Receipt.decode(raw)):
            # Which may be there by now; else that is handed out which is kept, and on record.
            with contextlib.suppress(LandbridgeError):
                made = (await self._receipts.receipt(id_)).receipt
                await asyncio.to_thread(_check, made)
                raw = made.encode() if _lacks(made) < lacks else raw
        self._refusals.tell(
            "log.read",
            str(who),
            f"the receipt of migration {id_}",
            outcome="success",
            actor=certified(who),
            seen={"query": {"filter": f"migration={id_}", "format": "receipt"}},
        )
        return id_, raw


def _age(row: Row) -> timedelta:
    """For how long a migration has ended."""
    return datetime.now(UTC) - row.migration.ended_at.ToDatetime(UTC)


def _lacks(receipt: Receipt) -> int:
    """How many entries are known to be missing."""
    return sum(len(each.entries) for each in receipt.missing)


def _check(made: Receipt) -> None:
    """Raises EvidenceFailed: what is kept, and on record, is to verify."""
    for part in made.parts:
        if not part.entries and not any(site_of(each.log) == site_of(part.key.name) for each in made.missing):
            raise EvidenceFailed(f"the log {part.key.name} has no entries about it: it is asked again later")
    if wrong := check(made):
        raise EvidenceFailed(f"a receipt of it would not verify: {wrong[0].message}; it is made again later")


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write(path, raw)


def _rename(hidden: Path, path: Path) -> None:
    hidden.replace(path)
    durable.sync_directory(path.parent)
