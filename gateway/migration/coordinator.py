"""At the source's site: what operators ask of migrations. Begun ones are run by `runs`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from certs.identity import Identity
from gateway.authorization.authority import Authority, refusal
from gateway.authorization.requests import OPEN
from gateway.migration import proof
from gateway.migration.inventory import Inventory
from gateway.migration.leaving import Leaving
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.reports import Reports
from gateway.migration.runs import Runs
from gateway.migration.states import CANCELLABLE, Input, State
from gateway.migration.survey import Asked, Preflight, Survey
from gateway.store import Row
from landbridge.errors import ApprovalNeeded, Conflict, LandbridgeError, PermissionDenied, PreflightFailed, TakenOver
from landbridge.v1 import agent_pb2
from landbridge.v1.authorization_pb2 import ApprovalRequest
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.types_pb2 import Migration, Policy, Severity

# Seconds that an agent may take to remove what is left.
SETTLE = 300.0


@dataclass
class Coordinator:
    """All migrations from this site."""

    ledger: Ledger
    inventory: Inventory
    survey: Survey
    authority: Authority
    runs: Runs
    reports: Reports
    leaving: Leaving

    async def migrate(
        self, wanted: str, site: str, host: str, policy: Policy, asked: Asked, request: str = ""
    ) -> Migration:
        """Preflight, record and begin; `request` is one that was approved, or the beginning of its id.

        Raises with nothing recorded: PolicyRefused if a rule of either site is in the way, PreflightFailed if anything else is,
        and ApprovalNeeded, with a request that waits, if others must approve it first.
        """
        waiting = await self._request(wanted, site, host, asked, request)
        if waiting is not None:
            # What was approved names a host, though the gateway chose it.
            host = host or waiting.migration.destination_host
        found = await self.survey.preflight(wanted, site, host, policy, asked)
        try:
            return await self._begin(found, host, waiting, request)
        except BaseException:
            found.give_up()
            raise

    async def _begin(self, found: Preflight, host: str, waiting: ApprovalRequest | None, request: str) -> Migration:
        """Record and run what preflight has found nothing against. Raises as `migrate`."""
        self._refuse(found)
        migration = found.proposal
        assert migration is not None  # noqa: S101 - only what is refused has none
        if request and waiting is not None and found.decisions[0].request != waiting.id:
            raise Conflict(
                f"this is not what request {waiting.id} is for: the VM's definition, its host or an option is another one; "
                "ask without --request for a new one"
            )
        own, theirs = await self._authorize(found, wanted_host="" if waiting is not None else host)
        migration.id = str(uuid.uuid4())
        migration.state = State.REQUESTED.value
        migration.findings.extend(found.findings)
        migration.decisions.extend((own, theirs))
        migration.requested_at.GetCurrentTime()
        row = Row(migration=migration, autostart=found.vm.autostart, clock_offset_ms=found.clock_offset_ms)
        await self._record(row, own)
        # The guest is still being measured, for a second in which nothing need wait.
        self.runs.estimate(row, found)
        return migration

    async def _request(self, wanted: str, site: str, host: str, asked: Asked, request: str) -> ApprovalRequest | None:
        """The request that this migration was asked for with before. NotFound, PermissionDenied for another's, Conflict if it is over."""
        if request:
            found = await self.authority.request(request)
            if found.migration.requested_by != asked.requester or found.claimed_by:
                raise PermissionDenied(f"request {found.id} is of {found.migration.requested_by}, who alone can use it")
            if found.state not in OPEN:
                raise Conflict(
                    f"request {found.id} is over: it was used or denied, or has expired; ask without --request for a new one"
                )
            return found
        if host or asked.break_glass:
            return None
        return await self.authority.waiting_for(asked.requester, wanted.rpartition("/")[2], site)

    def _refuse(self, found: Preflight) -> None:
        """Raises what preflight found against the migration, if anything."""
        errors = [finding for finding in found.findings if finding.severity == Severity.SEVERITY_ERROR]
        if not errors:
            return
        for decision in found.decisions:
            if decision.verdict == Verdict.VERDICT_REFUSED and (error := refusal(decision)):
                self.authority.record(decision, found.proposal or Migration())
                raise error
        if any(finding.code == "already-migrating" for finding in errors):
            raise Conflict(next(f"{f.message}: {f.remedy}" for f in errors if f.code == "already-migrating"))
        more = f" (and {len(errors) - 1} more findings; see `landbridge migrate --dry-run`)" if len(errors) > 1 else ""
        raise PreflightFailed(f"{errors[0].message}: {errors[0].remedy}{more}")

    async def _authorize(self, found: Preflight, wanted_host: str) -> tuple[Decision, Decision]:
        """The decisions of both sites, now that it is to begin. Raises PolicyRefused, or ApprovalNeeded once a request waits."""
        migration = found.proposal
        assert migration is not None  # noqa: S101 - see `migrate`
        own = await self.authority.authorize(migration, opens=True, wanted_host=wanted_host)
        if own.verdict == Verdict.VERDICT_REFUSED and (error := refusal(own)):
            raise error
        theirs = found.decisions[-1]
        if theirs.verdict != Verdict.VERDICT_ALLOWED:
            # Else it has just said yes, and decides again as it takes the migration in.
            theirs = await self.survey.ask_destination(migration, opens=True)
        if theirs.verdict == Verdict.VERDICT_REFUSED and (error := refusal(theirs)):
            raise error
        waits = [refused for decision in (own, theirs) if (refused := refusal(decision)) is not None]
        if waits:
            # Also where the other site alone waits: the request keeps the host that was chosen.
            own.request = own.request or await self.authority.ask(migration, wanted_host)
            why = "; ".join(refused.message for refused in waits)
            raise ApprovalNeeded(
                f"{why}; it is request {own.request}: ask again once it is approved",
                details=waits[0].details | {"request": own.request},
            )
        return own, theirs

    async def _record(self, row: Row, own: Decision) -> None:
        """Make a migration durable, with the request that it uses up, and begin it."""
        migration = row.migration
        # Two requests for one VM may both have passed preflight: the first to come here wins, with nothing awaited between.
        for other in self.ledger.rows():
            if other.migration.vm_uuid == migration.vm_uuid and not has_ended(other):
                raise Conflict(
                    f"migration {other.migration.id} of {migration.vm} is under way: wait for it, or cancel it"
                )
        self.ledger.reserve(row)
        try:
            await self.authority.take(own, migration.id)
            try:
                await self.ledger.save(row)
            except LandbridgeError:
                await self.authority.give_back(own, migration.id)
                raise
        except LandbridgeError:
            self.ledger.forget(row)
            raise
        self.runs.start(row)

    async def cancel(self, prefix: str, who: Identity) -> Row:
        """Record the wish to stop a migration, and act on it. Raises Conflict where it is too late, PolicyRefused if it is not theirs.

        If another gateway of this site coordinates the migration, the wish waits in the store, and that gateway, or whoever takes
        over from it, acts on it within a second or two of reading it; it may come too late all the same.
        """
        row = await self.ledger.find(prefix)
        migration = row.migration
        if not row.coordinating:
            raise Conflict(
                f"migration {migration.id} is coordinated at its source: ask the gateway of site {migration.source_site} to cancel it"
            )
        decision = self.authority.oversee(who, "cancel", migration)
        state = state_of(row)
        if has_ended(row):
            raise Conflict(f"migration {migration.id} has ended already ({state.name.lower()})")
        if state not in CANCELLABLE:
            raise Conflict(
                f"migration {migration.id} is {state.name.lower()} and can no longer be cancelled; watch how it ends"
            )
        await self.authority.note("migration.stepped", who, f"{who} asks for it to be cancelled", migration=migration)
        if not self.ledger.is_own(row):
            await self.ledger.wish_cancelled(row, str(who))
            return row
        row.cancel_requested = True
        row.cause = f"cancelled by {who}"
        migration.decisions.append(decision)
        await self.ledger.save(row)
        self.runs.interrupt(row)
        return row

    async def settle(self, prefix: str, who: Identity, without_proof: str = "") -> tuple[Row, list[str]]:
        """Remove what a completed migration left at the source. Raises Conflict if it did not complete, PolicyRefused if it is not theirs.

        Conflict also if its disks differ, or could not be compared as was wanted: an admin's reason, `without_proof`, overrides the latter.
        A gateway that did not coordinate the migration becomes its coordinator first: it has ended, and nobody runs it any more.
        """
        row = await self.ledger.find(prefix)
        migration = row.migration
        if not row.coordinating:
            raise Conflict(
                f"migration {migration.id} left nothing here: ask the gateway of site {migration.source_site} to settle it"
            )
        decision = self.authority.oversee(who, "settle", migration)
        if state_of(row) is State.SETTLED:
            return row, []
        if state_of(row) is not State.COMPLETED:
            raise Conflict(
                f"migration {migration.id} is {state_of(row).name.lower()}: only a completed one can be settled"
            )
        if without_proof:
            self.authority.administer(who, f"what is asked of migration {migration.id[:8]}, the proof of its disks")
        proof.require_settleable(migration, without_proof)
        if not self.ledger.is_own(row) and not await self.ledger.take_over(row):
            raise TakenOver(f"another gateway is at work on migration {migration.id}: ask again")
        await self.authority.note(
            "migration.stepped", who, f"{who} asks for what is left of it to be removed", migration=migration
        )
        await self._require_off(row)
        agent = self.inventory.agent(migration.source_host)
        request = agent_pb2.SettleRequest(migration=migration.id, vm_uuid=migration.vm_uuid)
        removed = list((await agent.ask(agent.stub.Settle, request, SETTLE)).removed)
        row.peer_pending = True
        migration.decisions.append(decision)
        waived = f"settled by {who} without a proof of the disks: {without_proof}" if without_proof else None
        await self.ledger.advance(row, Input.SETTLE, waived)
        self.reports.send(row)
        return row, removed

    async def _require_off(self, row: Row) -> None:
        """Raises Conflict, and an alarm, if somebody has started what a migration left."""
        if await self.leaving.is_noted(row):
            return
        migration = row.migration
        sentence = (
            f"somebody has started {migration.vm} on host {migration.source_host}, after it had moved to host "
            f"{migration.destination_host} of site {migration.destination_site}: nothing is touched; shut it off on host "
            f"{migration.source_host}, save what was written there since, and settle again"
        )
        await self.leaving.alarm(row, sentence)
        raise Conflict(sentence)

    async def limit(self, prefix: str, bytes_per_second: int, who: Identity) -> Row:
        """Limit what a migration may use of the WAN; 0: no limit. Raises Conflict if it has ended or begins at another site.

        Any gateway of this site takes it, and all of them hold it: a channel may go through any of them.
        """
        row = await self.ledger.find(prefix)
        migration = row.migration
        if not row.coordinating:
            raise Conflict(
                f"migration {migration.id} is coordinated at its source: ask the gateway of site {migration.source_site} to limit it"
            )
        self.authority.oversee(who, "limit", migration)
        if has_ended(row):
            raise Conflict(f"migration {migration.id} has ended already ({state_of(row).name.lower()})")
        limit = f"{bytes_per_second} bytes per second" if bytes_per_second else "no limit"
        await self.authority.note("migration.limited", who, limit, migration=migration)
        await self.ledger.limit(row, bytes_per_second)
        self.runs.hold_limits()
        return row
