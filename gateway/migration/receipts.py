"""Receipts: what the audit logs of both sites say of a migration that has ended, in one file that verifies alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.audit.canonical import MOST
from gateway.audit.entry import clean
from gateway.audit.receipt import Missing, Part, Receipt
from gateway.migration.deposits import Deposits, message, part_of
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended
from gateway.remote import WORK
from gateway.store import Row
from landbridge.errors import Conflict, EvidenceFailed, NotFound, PermissionDenied, ProtocolError
from landbridge.v1.audit_pb2 import GetProofsRequest, GetProofsResponse, LogProofs, MissingEntries

# Logs of a site that are taken from another one, and entries that it says are missing.
MOST_LOGS = 16
MOST_MISSING = 1000


@dataclass(frozen=True)
class Said:
    """What the logs of a site say."""

    parts: tuple[Part, ...]
    missing: tuple[Missing, ...] = ()
    # Another gateway there has not said yet what its log has.
    waits: bool = False


@dataclass(frozen=True)
class Made:
    """A receipt as it can be made now."""

    receipt: Receipt
    # It may have more in a few seconds.
    waits: bool = False


class Receipts:
    """Made when they are asked for, of what the logs have then."""

    def __init__(self, ledger: Ledger, inventory: Inventory, deposits: Deposits) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._deposits = deposits

    async def receipt(self, prefix: str) -> Made:
        """Of a migration, by its id or the beginning of it. Conflict if it goes on, Unreachable if the other site does not answer."""
        row = await self._ledger.find(prefix)
        migration = row.migration
        other = migration.destination_site if row.coordinating else migration.source_site
        if not has_ended(row):
            raise Conflict(f"migration {migration.id} has not ended yet: there is a receipt when it has")
        if row.coordinating and row.peer_pending:
            raise Conflict(f"site {other} has not heard yet how migration {migration.id} ended: ask again")
        remote = self._inventory.site_named(other).remote
        own, answer = await asyncio.gather(
            self._said(row), remote.ask(remote.stub.GetProofs, GetProofsRequest(migration=migration.id), WORK)
        )
        theirs = _told(answer, other)
        receipt = Receipt(migration.id, own.parts + theirs.parts, own.missing + theirs.missing)
        return Made(receipt, own.waits or theirs.waits)

    async def proofs(self, migration: str, site: str) -> GetProofsResponse:
        """What the logs here say, for the gateway of `site`.

        NotFound, PermissionDenied for a migration that is not of that site, or Conflict while not all of it is on record.
        """
        row = await self._ledger.latest(migration)
        if row is None:
            raise NotFound(f"site {self._inventory.site} knows of no migration {migration}")
        if site not in (row.migration.source_site, row.migration.destination_site):
            raise PermissionDenied(f"migration {migration} is not of site {site}")
        if row.coordinating and row.peer_pending and has_ended(row):
            # What was delivered may be on record only in a moment, and there is no second receipt.
            raise Conflict(f"site {self._inventory.site} has not recorded all of migration {migration} yet: ask again")
        said = await self._said(row)
        first, *others = map(message, said.parts)
        missing = [MissingEntries(log=each.log, entries=each.entries) for each in said.missing]
        return GetProofsResponse(key=first.key, entries=first.entries, others=others, missing=missing, waits=said.waits)

    async def _said(self, row: Row) -> Said:
        """What this gateway's log says, and those of the others as far as they have left it in the store."""
        id_ = row.migration.id
        own, left = await self._deposits.own(id_), await self._deposits.of_others(id_)
        return said([own, *left.values()], row.logs, waits=bool(await self._deposits.others() - set(left)))


def said(parts: list[Part], logs: Mapping[str, list[int]], *, waits: bool) -> Said:
    """The logs that have something to say, at least one; and what of `logs`, entries that are known by their logs, is in none."""
    has = {part.key.name: {each.proof.index for each in part.entries} for part in parts}
    lacks = {log: sorted(set(indexes) - has.get(log, set())) for log, indexes in logs.items()}
    missing = tuple(Missing(log, tuple(indexes)) for log, indexes in sorted(lacks.items()) if indexes)
    return Said(tuple(part for part in parts if part.entries) or tuple(parts[:1]), missing, waits)


def _told(answer: GetProofsResponse, site: str) -> Said:
    """What another site answered; whether it is true is for whoever checks the receipt."""
    indexes = [index for each in answer.missing for index in each.entries]
    if len(answer.others) >= MOST_LOGS or len(indexes) > MOST_MISSING or max(indexes, default=0) > MOST:
        raise ProtocolError(
            f"site {site} tells of more logs or missing entries than it can have: update the older gateway"
        )
    logs = [LogProofs(key=answer.key, entries=answer.entries), *answer.others]
    try:
        parts = tuple(part_of(each) for each in logs)
    except EvidenceFailed as error:
        raise ProtocolError(
            f"site {site} gave no proofs that can be read: {error.message}; update the older gateway"
        ) from error
    missing = tuple(
        Missing(clean(each.log), tuple(each.entries)) for each in answer.missing if each.log and each.entries
    )
    for origin in (*(part.key.name for part in parts), *(each.log for each in missing)):
        if origin.split("/")[1:3] != ["site", site]:
            raise ProtocolError(
                f"site {site} speaks of the log {origin[:200]}, which is none of its own: that is refused"
            )
    return Said(parts, missing, answer.waits)
