"""Receipts that are kept: made by themselves once a migration from this site has ended and the other site knows it.

A receipt is made of what both logs hold, and checked; written as a hidden file, so that nothing is recorded that cannot be kept; recorded
by its hash (`migration.receipted`); and renamed. A crash in between has it made once more.
Migrations of the last KEPT_UP are looked after; of older ones, receipts are made when they are asked for.
"""

from __future__ import annotations

import asyncio
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
from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.receipts import Receipts
from gateway.rounds import Rounds
from gateway.store import Row
from landbridge import durable
from landbridge.errors import EvidenceFailed, LandbridgeError, NotRecorded

log = structlog.get_logger()

# Seconds between two looks, and before another attempt.
LOOK = 2.0
RETRY = 60.0
KEPT_UP = timedelta(days=7)
_NAME = re.compile(r"[0-9a-zA-Z-]{1,64}")


class ReceiptKeeper(Rounds):
    """Of one gateway: for the migrations that it coordinates. Owned by the event loop."""

    def __init__(
        self, receipts: Receipts, ledger: Ledger, journal: Journal, refusals: Refusals, directory: Path
    ) -> None:
        self._receipts = receipts
        self._ledger = ledger
        self._journal = journal
        self._refusals = refusals
        self._directory = directory
        # When those that could not be made are tried again, by the event loop's clock.
        self._later: dict[str, float] = {}
        self._made: set[str] = set()

    async def _go_round(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Make what is missing."""
        now = asyncio.get_running_loop().time()
        for row in self._ledger.rows():
            id_ = row.migration.id
            if self._later.get(id_, now) > now:
                continue
            try:
                if self._is_due(row):
                    await self._make(id_)
                    self._made.add(id_)
            except LandbridgeError as error:
                log.warning("receipt.not_made", migration=id_, reason=error.message)
            except Exception:  # a defect here must not end the looks
                log.exception("receipt.defect", migration=id_)
            else:
                self._later.pop(id_, None)
                continue
            self._later[id_] = now + RETRY

    def _is_due(self, row: Row) -> bool:
        migration = row.migration
        if migration.id in self._made or not self._ledger.is_own(row) or not has_ended(row) or row.peer_pending:
            return False
        if datetime.now(UTC) - migration.ended_at.ToDatetime(UTC) > KEPT_UP or self.path(migration.id).exists():
            self._made.add(migration.id)
            return False
        return True

    async def _make(self, migration: str) -> None:
        made = await self._receipts.receipt(migration)
        await asyncio.to_thread(_check, made)
        raw, path = made.encode(), self.path(migration)
        hidden = path.with_name(f".{path.name}")
        file = {"format": "receipt", "sha256": hashlib.sha256(raw).hexdigest()}
        try:
            await asyncio.to_thread(_write, hidden, raw)
            await self._journal.record("migration.receipted", migration=migration, seen={"query": file})
            await asyncio.to_thread(_rename, hidden, path)
        except OSError as error:
            raise NotRecorded(f"{self._directory} cannot be written: {error.strerror}") from error
        log.info("receipt.made", migration=migration, file=str(path))

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
            made: Receipt = await self._receipts.receipt(id_)
            raw = made.encode()
        self._refusals.tell(
            "log.read",
            str(who),
            f"the receipt of migration {id_}",
            outcome="success",
            actor=certified(who),
            seen={"query": {"filter": f"migration={id_}", "format": "receipt"}},
        )
        return id_, raw


def _check(made: Receipt) -> None:
    """Raises EvidenceFailed: what is kept, and on record, is to verify."""
    for part in made.parts:
        if not part.entries:
            raise EvidenceFailed(f"the log {part.key.name} has no entries about it: it is asked again later")
    if wrong := check(made):
        raise EvidenceFailed(f"a receipt of it would not verify: {wrong[0].message}; it is made again later")


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write(path, raw)


def _rename(hidden: Path, path: Path) -> None:
    hidden.replace(path)
    durable.sync_directory(path.parent)
