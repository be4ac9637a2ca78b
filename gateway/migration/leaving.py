"""A source host that went down in the switch-over cannot know that the VM has left. It is told, before the VM is let run elsewhere.

    RESOLVING   the source says that the VM is off, and the destination that it is whole there: `tell`, until the source has answered
    COMPLETED   `is_noted`, before what is left is removed: its disk may have been full when it was to be written down

From then on, what the host has of the VM is what any migration leaves: it does not start with the host, it is marked, and it can be settled
or replaced by the VM when that comes back. If somebody has started it meanwhile, nothing is touched.
"""

from __future__ import annotations

import structlog

from gateway.audit.journal import Journal
from gateway.authorization import telling
from gateway.migration.inventory import Inventory
from gateway.remote import WORK
from gateway.store import Row
from landbridge.v1.agent_pb2 import CancelRequest, Possession
from landbridge.v1.types_pb2 import Migration

log = structlog.get_logger()


class Leaving:
    """Of the migrations that this gateway coordinates; what it remembers only keeps the audit log from saying a thing twice."""

    def __init__(self, journal: Journal, inventory: Inventory) -> None:
        self._journal = journal
        self._inventory = inventory
        self._recorded: set[tuple[str, str]] = set()

    async def tell(self, row: Row) -> bool:
        """Have the source's agent note that the VM has left, on record. Raises NotRecorded, or as `is_noted`."""
        migration = row.migration
        await self._record("migration.left", migration, f"host {migration.source_host} is told that the VM has left it")
        return await self.is_noted(row)

    async def is_noted(self, row: Row) -> bool:
        """Whether the source's agent has noted by now that the VM has left; False if somebody has started it, and nothing was touched.

        Raises what the agent says or does not say: then it is to be asked again.
        """
        agent = self._inventory.agent(row.migration.source_host)
        migration = row.migration
        request = CancelRequest(migration=migration.id, vm_uuid=migration.vm_uuid, has_left=True)
        answer = await agent.ask(agent.stub.Cancel, request, WORK)
        if answer.possession == Possession.POSSESSION_HERE:
            return False
        if not answer.left:
            log.warning("migration.not_marked", migration=row.migration.id, host=row.migration.source_host)
        return True

    async def alarm(self, row: Row, sentence: str) -> None:
        """Somebody has let a VM run where it is not. Raises NotRecorded."""
        log.error("migration.doubled", security=True, migration=row.migration.id, vm=row.migration.vm, error=sentence)
        await self._record("migration.doubled", row.migration, sentence, outcome="failure")

    async def _record(self, event: str, migration: Migration, reason: str, outcome: str = "success") -> None:
        if (event, migration.id) in self._recorded:
            return
        seen = telling.about(migration, lambda _: "")
        await self._journal.record(event, outcome=outcome, reason=reason, migration=migration.id, seen=seen)
        self._recorded.add((event, migration.id))
