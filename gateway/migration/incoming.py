"""At the destination's site: what the coordinator of another site asks, for migrations of its own and no others.

What comes is judged by this site's own policy: when the other site asks beforehand, and again when it brings the migration. What it
says of the VM, of who asked and of who approved are its claims; that they are of this site's people alone is not.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable

import structlog

from certs.attempts import Attempts
from certs.identity import Identity
from gateway.authorization.authority import Authority, refusal
from gateway.authorization.request import digest, domain_digest, mapping_digest
from gateway.migration import proof
from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.states import LATER, State
from gateway.remote import FACTS, WORK
from gateway.store import Row
from gateway.tunnel.pump import Pump
from landbridge.errors import Conflict, LandbridgeError, NotFound, PermissionDenied, UsageError
from landbridge.v1 import agent_pb2
from landbridge.v1.agent_pb2 import Role
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.types_pb2 import Migration, MigrationState

log = structlog.get_logger()

# How a migration stands: what its source tells of it once it was let in. All else is what was judged here, and stays.
TOLD = frozenset(
    {"state", "reason", "updated_at", "ended_at", "progress", "summary", "silent_ms", "limit", "proof", "estimate"}
)

# States in which this site knows that it has let the VM run, whatever became of it since.
ACTIVATED = frozenset({State.VERIFYING, State.COMPLETED, State.SETTLED})

# Each migration that is let in, and each new state of one, is written to this site's audit log at once: so many of either may another site
# cause in one go, and as many again in each minute. Apart from each other, so that many that move keep none from being let in.
ALLOWANCE = 200
_MINUTE = 60.0


class Incoming:
    """Migrations to this site. `site` is always that of the calling gateway, as its certificate says."""

    def __init__(
        self,
        ledger: Ledger,
        inventory: Inventory,
        pump: Pump,
        authority: Authority,
        deliveries: Deliveries,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._admissions = Attempts(ALLOWANCE, ALLOWANCE / _MINUTE)
        self._changes = Attempts(ALLOWANCE, ALLOWANCE / _MINUTE)
        self._deliveries = deliveries
        self._ledger = ledger
        self._inventory = inventory
        self._pump = pump
        self._authority = authority

    async def check(
        self, host: str, request: agent_pb2.CheckIncomingRequest, migration: Migration, source: Identity
    ) -> agent_pb2.CheckIncomingResponse:
        """Preflight facts of one host here. PolicyRefused where the VM may not come: nobody learns then what is on the host."""
        decision = await self.authorize(migration, source, opens=False)
        if decision.verdict == Verdict.VERDICT_REFUSED and (error := refusal(decision)):
            raise error
        asked = (host, request.vm.uuid, request.vm.name, domain_digest(request.domain_xml))
        if asked != (migration.destination_host, migration.vm_uuid, migration.vm, migration.domain_sha256):
            raise UsageError(
                f"the request to look at {request.vm.name} contradicts itself; update the older gateway of site {source.site}"
            )
        return await self._look(host, request)

    async def _look(self, host: str, request: agent_pb2.CheckIncomingRequest) -> agent_pb2.CheckIncomingResponse:
        """What is on a host. Raises Conflict where it would replace what may be the only good copy of a VM."""
        agent = self._inventory.agent(host)
        found = await agent.ask(agent.stub.CheckIncoming, request, WORK)
        for other in found.conflicts:
            left = await self._ledger.latest(other.moved_by) if other.moved_by else None
            if (
                left is not None
                and left.coordinating
                and State(left.migration.state) in {State.ACTIVATING, State.VERIFYING, State.COMPLETED}
            ):
                proof.require_settleable(left.migration, "")
        return found

    async def authorize(self, migration: Migration, source: Identity, *, opens: bool) -> Decision:
        """What this site's policy says to a migration; `source` is the gateway that asks. PermissionDenied for others' migrations."""
        self._own_claims(migration, source)
        _real_uuid(migration)
        asked = Migration()
        asked.CopyFrom(migration)
        asked.ClearField("id")
        return await self._decide(asked, source, opens=opens)

    async def prepare(
        self, migration: Migration, request: agent_pb2.PrepareRequest, source: Identity
    ) -> tuple[agent_pb2.PrepareResponse, Decision]:
        """Record a migration and have its host prepare it.

        Raises PolicyRefused or ApprovalNeeded where this site does not take it, Conflict where the other site brings too many.
        """
        self._own_claims(migration, source)
        _known_state(migration)
        _real_uuid(migration)
        _hold_together(migration, request)
        agent = self._inventory.agent(migration.destination_host)
        row = await self._ledger.latest(migration.id)
        if row is None:
            self._spend(self._admissions, source.site, "migrations", "begin this one")
            row = Row(migration=Migration(), coordinating=False, autostart=request.vm.autostart)
            row.migration.CopyFrom(migration)
            # Again, for who has skipped preflight.
            look = agent_pb2.CheckIncomingRequest(vm=request.vm, domain_xml=request.domain_xml, mapping=request.mapping)
            await self._admit(row, source, look)
        elif row.coordinating or row.migration.source_site != source.site or has_ended(row):
            raise Conflict(f"migration {migration.id} is known here already, and cannot be prepared again")
        elif digest(row.migration) != digest(migration):
            raise Conflict(f"migration {migration.id} is known here already, and this is not what was let in")
        try:
            prepared = await agent.ask(agent.stub.Prepare, request, WORK)
        except PermissionDenied as error:
            refused = agent_pb2.RefusedCall(call="Prepare", reason=error.message, enforced=True)
            self._deliveries.refused(row, refused)
            raise
        self._deliveries.follow(row)
        return prepared, _decision_of(row.migration, self._inventory.site)

    async def _admit(self, row: Row, source: Identity, look: agent_pb2.CheckIncomingRequest) -> None:
        """Decide, and record a migration with the decision and the request that it uses up."""
        migration = row.migration
        decision = await self._decide(migration, source, opens=False)
        if error := refusal(decision):
            raise error
        await self._look(migration.destination_host, look)
        # One of the source: more would stand before this site's own.
        others = [each for each in migration.decisions if each.site == source.site][:1]
        del migration.decisions[:]
        migration.decisions.extend((*others, decision))
        await self._authority.take(decision, migration.id)
        try:
            await self._ledger.save(row)
        except LandbridgeError:
            await self._authority.give_back(decision, migration.id)
            raise

    async def _decide(self, migration: Migration, source: Identity, *, opens: bool) -> Decision:
        return await self._authority.authorize(migration, opens=opens, claimed_by=source.site)

    def _own_claims(self, migration: Migration, source: Identity) -> None:
        """Raises PermissionDenied unless a migration is of the site whose gateway brings it, to this one."""
        if migration.source_site != source.site or migration.destination_site != self._inventory.site:
            raise PermissionDenied(
                f"site {source.site} may only bring its own migrations to site {self._inventory.site}"
            )
        self._authority.claims(migration, source)

    def resume(self) -> None:
        """Follow again what this site's agents tell of migrations that have not ended."""
        for row in self._ledger.rows():
            if not row.coordinating and not has_ended(row):
                self._deliveries.follow(row)

    async def activate(self, request: agent_pb2.ActivateRequest, site: str) -> agent_pb2.ActivateResponse:
        """Let the VM run here; where it was before, only say so: it may have moved on, and must not start with this host again."""
        row = await self._own(request.migration, site)
        agent = self._inventory.agent(row.migration.destination_host)
        if State(row.migration.state) not in ACTIVATED:
            # Whoever asks is heard, and tells how it ends.
            row.migration.updated_at.GetCurrentTime()
            return await agent.ask(agent.stub.Activate, request, FACTS)
        with contextlib.suppress(LandbridgeError):  # its host may be gone, too, or know nothing any more
            again = agent_pb2.ActivateRequest(migration=request.migration)
            return await agent.ask(agent.stub.Activate, again, FACTS)
        return agent_pb2.ActivateResponse()

    async def prove(self, request: agent_pb2.ProveRequest, site: str) -> agent_pb2.ProveResponse:
        """Have the host hash the VM's disks."""
        agent = self._inventory.agent((await self._own(request.migration, site)).migration.destination_host)
        return await agent.ask(agent.stub.Prove, request, WORK)

    async def cancel(self, request: agent_pb2.CancelRequest, site: str) -> agent_pb2.CancelResponse:
        """Have the host stop, and say who has the VM. A migration that never came here is absent."""
        if request.has_left:
            raise PermissionDenied(
                f"what has left a host of site {self._inventory.site}, its own gateways tell it: site {site} has no say in that"
            )
        if await self._ledger.latest(request.migration) is None:
            return agent_pb2.CancelResponse(possession=agent_pb2.Possession.POSSESSION_ABSENT)
        row = await self._own(request.migration, site)
        if State(row.migration.state) in ACTIVATED:
            # Whatever its host knows by now: nobody has to look for it at the source.
            return agent_pb2.CancelResponse(possession=agent_pb2.Possession.POSSESSION_HERE)
        agent = self._inventory.agent(row.migration.destination_host)
        stop = agent_pb2.CancelRequest(migration=request.migration, discard_arrived=request.discard_arrived)
        answer = await agent.ask(agent.stub.Cancel, stop, WORK)
        if answer.possession == agent_pb2.Possession.POSSESSION_ABSENT:
            self._pump.close_channels(request.migration, "the migration was stopped")
        return answer

    async def report(self, migration: Migration, site: str) -> None:
        """Take over how the migration stands at its source; an end stays an end.

        Raises Conflict for a state that cannot come after the present one, or if the site reports too much: it is told again later.
        """
        row = await self._own(migration.id, site)
        _known_state(migration)
        settled = migration.state == MigrationState.MIGRATION_STATE_SETTLED
        if has_ended(row) and not (settled and State(row.migration.state) is State.COMPLETED):
            return
        identity = (row.migration.vm_uuid, row.migration.destination_host, row.migration.source_host)
        if (migration.vm_uuid, migration.destination_host, migration.source_host) != identity:
            raise PermissionDenied(f"migration {migration.id} is of another VM or between other hosts than was agreed")
        self._expect(row.migration, State(migration.state), site)
        await self.become(row, _as_let_in(row.migration, migration, self._inventory.site))

    async def become(self, row: Row, news: Migration) -> None:
        """Have a migration stand as it is known to by now, and make that durable. Raises NotRecorded, and it stands as before."""
        before = Migration()
        before.CopyFrom(row.migration)
        row.migration.CopyFrom(news)
        try:
            await self._ledger.save(row)
        except BaseException:
            # It is told again, and must be news then.
            row.migration.CopyFrom(before)
            raise
        if has_ended(row):
            # Once the source has heard the answer, receipts are made of what is in both logs.
            await self._deliveries.followed(news.id)
            self._pump.forget_counts(news.id)

    def _expect(self, known: Migration, told: State, site: str) -> None:
        """Raises Conflict for a new state that has no way from the known one, or is one too many. States in between may be missing."""
        present = State(known.state)
        if told is present:
            return
        if told not in LATER[present]:
            raise Conflict(
                f"migration {known.id} is {present.name.lower()} at site {self._inventory.site}, and cannot become {told.name.lower()}"
            )
        self._spend(self._changes, site, "changes of migrations", "report this one")

    def _spend(self, attempts: Attempts, site: str, what: str, then: str) -> None:
        """Raises Conflict for what is one entry too many for now."""
        now = self._clock()
        if attempts.take(site, now):
            return
        if attempts.is_news(site, now):
            log.warning("peer.too_much", security=True, site=site, what=what)
        raise Conflict(
            f"site {site} has brought site {self._inventory.site} more than {ALLOWANCE} {what} in a minute: {then} again a minute later"
        )

    async def _own(self, migration: str, site: str) -> Row:
        # The site's, and not this gateway's: the next call may come to any gateway here.
        row = await self._ledger.latest(migration)
        if row is None:
            raise NotFound(f"site {self._inventory.site} knows of no migration {migration}")
        if row.coordinating or row.migration.source_site != site:
            raise PermissionDenied(f"migration {migration} does not come from site {site}")
        return row


def _known_state(migration: Migration) -> None:
    """Raises UsageError for a state that this gateway does not know: what it cannot read, it does not record."""
    if migration.state not in {state.value for state in State}:
        raise UsageError(
            f"migration {migration.id} is in state {migration.state}, which site {migration.destination_site} does not know"
        )


def _real_uuid(migration: Migration) -> None:
    """Raises UsageError for a VM's UUID that is none, as it is written: agents and hypervisors make names and paths of it."""
    with contextlib.suppress(ValueError):
        if str(uuid.UUID(migration.vm_uuid)) == migration.vm_uuid:
            return
    raise UsageError(f"{migration.vm_uuid[:80]!r} is no UUID of a VM, in lower case and with hyphens")


def _hold_together(migration: Migration, request: agent_pb2.PrepareRequest) -> None:
    """Raises UsageError unless what the host is to prepare is the migration that was judged."""
    asked = (
        request.migration,
        request.role,
        request.vm.uuid,
        request.vm.name,
        request.source_site,
        request.source_host,
        request.destination_site,
        request.destination_host,
        domain_digest(request.domain_xml),
        mapping_digest(request.mapping),
        request.cold,
        request.verify_disks,
    )
    judged = (
        migration.id,
        Role.ROLE_DESTINATION,
        migration.vm_uuid,
        migration.vm,
        migration.source_site,
        migration.source_host,
        migration.destination_site,
        migration.destination_host,
        migration.domain_sha256,
        migration.mapping_sha256,
        migration.cold,
        proof.is_wanted(migration),
    )
    if asked != judged:
        raise UsageError(
            f"the request to prepare migration {migration.id} contradicts itself; update the older gateway"
        )


def _as_let_in(known: Migration, told: Migration, site: str) -> Migration:
    """What was let in, as it was judged by this site, and how the source says that it stands now."""
    news = Migration()
    news.CopyFrom(told)
    for name in set(Migration.DESCRIPTOR.fields_by_name) - TOLD:
        news.ClearField(name)  # type: ignore[arg-type]  # a field, as the descriptor says
    news.DiscardUnknownFields()
    kept = Migration()
    kept.CopyFrom(known)
    for name in TOLD:
        kept.ClearField(name)  # type: ignore[arg-type]  # see TOLD
    kept.MergeFrom(news)
    del kept.decisions[:]
    # The source decides on: that somebody may cancel it, say.
    kept.decisions.extend(
        [
            *(decision for decision in told.decisions if decision.site == known.source_site),
            *(decision for decision in known.decisions if decision.site == site),
        ]
    )
    return kept


def _decision_of(migration: Migration, site: str) -> Decision:
    return next(decision for decision in migration.decisions if decision.site == site)
