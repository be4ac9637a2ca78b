"""At the destination's site: what the coordinator of another site asks, for migrations of its own and no others."""

from __future__ import annotations

from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.states import ENDED, State
from gateway.remote import FACTS, WORK
from gateway.store import Row
from gateway.tunnel.pump import Pump
from landbridge.errors import Conflict, LandbridgeError, NotFound, PermissionDenied, UsageError
from landbridge.v1 import agent_pb2
from landbridge.v1.agent_pb2 import Role
from landbridge.v1.types_pb2 import Migration, MigrationState


class Incoming:
    """Migrations to this site. `site` is always that of the calling gateway, as its certificate says."""

    def __init__(self, ledger: Ledger, inventory: Inventory, pump: Pump) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._pump = pump

    async def check(self, host: str, request: agent_pb2.CheckIncomingRequest) -> agent_pb2.CheckIncomingResponse:
        """Preflight facts of one host here."""
        agent = self._inventory.agent(host)
        return await agent.ask(agent.stub.CheckIncoming, request, WORK)

    async def prepare(
        self, migration: Migration, request: agent_pb2.PrepareRequest, site: str
    ) -> agent_pb2.PrepareResponse:
        """Record a migration and have its host prepare it."""
        if migration.source_site != site or migration.destination_site != self._inventory.site:
            raise PermissionDenied(f"site {site} may only bring its own migrations to site {self._inventory.site}")
        if (
            request.migration != migration.id
            or request.role != Role.ROLE_DESTINATION
            or request.vm.uuid != migration.vm_uuid
        ):
            raise UsageError(
                f"the request to prepare migration {migration.id} contradicts itself; update the older gateway"
            )
        agent = self._inventory.agent(migration.destination_host)
        row = await self._ledger.latest(migration.id)
        if row is None:
            row = Row(migration=Migration(), coordinating=False)
            row.migration.CopyFrom(migration)
            await self._ledger.save(row)
        elif row.coordinating or row.migration.source_site != site or has_ended(row):
            raise Conflict(f"migration {migration.id} is known here already, and cannot be prepared again")
        return await agent.ask(agent.stub.Prepare, request, WORK)

    async def activate(self, request: agent_pb2.ActivateRequest, site: str) -> agent_pb2.ActivateResponse:
        """Let the VM run here."""
        agent = self._inventory.agent((await self._own(request.migration, site)).migration.destination_host)
        return await agent.ask(agent.stub.Activate, request, FACTS)

    async def cancel(self, request: agent_pb2.CancelRequest, site: str) -> agent_pb2.CancelResponse:
        """Have the host stop, and say who has the VM. A migration that never came here is absent."""
        if await self._ledger.latest(request.migration) is None:
            return agent_pb2.CancelResponse(possession=agent_pb2.Possession.POSSESSION_ABSENT)
        row = await self._own(request.migration, site)
        agent = self._inventory.agent(row.migration.destination_host)
        answer = await agent.ask(agent.stub.Cancel, request, WORK)
        if answer.possession == agent_pb2.Possession.POSSESSION_ABSENT:
            self._pump.close_channels(request.migration, "the migration was stopped")
        return answer

    async def report(self, migration: Migration, site: str) -> None:
        """Take over how the migration stands at its source; an end stays an end."""
        row = await self._own(migration.id, site)
        settled = migration.state == MigrationState.MIGRATION_STATE_SETTLED
        if has_ended(row) and not (settled and State(row.migration.state) is State.COMPLETED):
            return
        identity = (row.migration.vm_uuid, row.migration.destination_host, row.migration.source_host)
        if (migration.vm_uuid, migration.destination_host, migration.source_host) != identity:
            raise PermissionDenied(f"migration {migration.id} is of another VM or between other hosts than was agreed")
        before = Migration()
        before.CopyFrom(row.migration)
        row.migration.CopyFrom(migration)
        try:
            await self._ledger.save(row)
        except LandbridgeError:
            # It is reported again, and must be news then.
            row.migration.CopyFrom(before)
            raise
        if State(migration.state) in ENDED:
            self._pump.forget_counts(migration.id)

    async def _own(self, migration: str, site: str) -> Row:
        # The site's, and not this gateway's: the next call may come to any gateway here.
        row = await self._ledger.latest(migration)
        if row is None:
            raise NotFound(f"site {self._inventory.site} knows of no migration {migration}")
        if row.coordinating or row.migration.source_site != site:
            raise PermissionDenied(f"migration {migration} does not come from site {site}")
        return row
