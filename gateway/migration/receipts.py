"""Receipts: what the audit logs of both sites say of a migration that has ended, in one file that verifies alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.note import Key
from gateway.audit.proof import Proof
from gateway.audit.proving import prove
from gateway.audit.receipt import Part, Proved, Receipt
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended
from gateway.remote import WORK
from landbridge.errors import Conflict, EvidenceFailed, NotFound, PermissionDenied, ProtocolError, UsageError
from landbridge.v1.audit_pb2 import GetProofsRequest, GetProofsResponse, ProvedEntry


class Receipts:
    """Made when they are asked for, of what the logs have then."""

    def __init__(
        self, ledger: Ledger, inventory: Inventory, journal: Journal, head: Callable[[], Awaitable[Signed]]
    ) -> None:
        """`head` is the log's newest head, cosigned by whoever answers in time."""
        self._head = head
        self._ledger = ledger
        self._inventory = inventory
        self._journal = journal

    async def receipt(self, prefix: str) -> Receipt:
        """Of a migration, by its id or the beginning of it. Conflict if it goes on, Unreachable if the other site does not answer."""
        row = await self._ledger.find(prefix)
        migration = row.migration
        other = migration.destination_site if row.coordinating else migration.source_site
        if not has_ended(row):
            raise Conflict(f"migration {migration.id} has not ended yet: there is a receipt when it has")
        if row.coordinating and row.peer_pending:
            raise Conflict(f"site {other} has not heard yet how migration {migration.id} ended: ask again")
        remote = self._inventory.site_named(other).remote
        own, theirs = await asyncio.gather(
            self._proved(migration.id),
            remote.ask(remote.stub.GetProofs, GetProofsRequest(migration=migration.id), WORK),
        )
        return Receipt(migration.id, (own, _part(theirs, other)))

    async def proofs(self, migration: str, site: str) -> GetProofsResponse:
        """What this log says, for the gateway of `site`. NotFound, or PermissionDenied for a migration that is not of that site."""
        row = await self._ledger.latest(migration)
        if row is None:
            raise NotFound(f"site {self._inventory.site} knows of no migration {migration}")
        if site not in (row.migration.source_site, row.migration.destination_site):
            raise PermissionDenied(f"migration {migration} is not of site {site}")
        part = await self._proved(migration)
        entries = [ProvedEntry(entry=each.raw.decode(), proof=each.proof.encode().decode()) for each in part.entries]
        return GetProofsResponse(key=str(part.key), entries=entries)

    async def _proved(self, migration: str) -> Part:
        return await asyncio.to_thread(prove, self._journal.storage, await self._head(), migration)


def _part(answer: GetProofsResponse, site: str) -> Part:
    """What another site answered; whether it is true is for whoever checks the receipt."""
    try:
        entries = tuple(Proved(each.entry.encode(), Proof.decode(each.proof.encode())) for each in answer.entries)
        return Part(Key.parse(answer.key), entries)
    except (EvidenceFailed, UsageError) as error:
        raise ProtocolError(
            f"site {site} gave no proofs that can be read: {error.message}; update the older gateway"
        ) from error
