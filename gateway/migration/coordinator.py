"""At the source's site: begins migrations, and runs each through the table of `states` until it has ended.

Each state has one step, a coroutine that does what the state asks for and returns what came of it. Steps may be repeated: all
that they ask of agents and peers is idempotent. So a gateway that was restarted, or that takes over from another one, goes on by
running the step of the state that the store has, and recovery has no code of its own.

Of the migrations from this site, a gateway runs those whose row names it. `look` starts and stops runs as rows come and go
(`succession` moves them); a run that meets TakenOver ends without another act.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

import structlog

from certs.identity import Identity
from gateway.authorization.authority import Authority, refusal
from gateway.authorization.request import domain_digest, mapping_digest
from gateway.authorization.requests import OPEN
from gateway.config import PatienceSettings
from gateway.migration import proof, savings, verdicts
from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.proofs import Proofs
from gateway.migration.reports import Reports
from gateway.migration.states import CANCELLABLE, TRANSITIONS, Input, State
from gateway.migration.survey import Asked, Preflight, Survey
from gateway.remote import FACTS, WORK
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import (
    ApprovalNeeded,
    Conflict,
    LandbridgeError,
    NotFound,
    PermissionDenied,
    PreflightFailed,
    TakenOver,
)
from landbridge.ticket import SECRET_SIZE
from landbridge.v1 import agent_pb2
from landbridge.v1.agent_pb2 import Possession, Role, Stage
from landbridge.v1.authorization_pb2 import ApprovalRequest
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.peer_pb2 import (
    PeerActivateRequest,
    PeerCancelRequest,
    PeerPrepareRequest,
)
from landbridge.v1.types_pb2 import Migration, NonConvergence, Policy, Saving, Severity

log = structlog.get_logger()

# Seconds between two attempts to reach somebody who must answer.
RETRY = 1.0
SETTLE = 300.0
# What the destination's agent says of a VM that has arrived and is there no more: its host looked.
GONE = frozenset({"absent", "shut_off"})


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    event: Input
    # The sentence to show from now on; None keeps the present one.
    reason: str | None = None


@dataclass
class _Run:
    row: Row
    # What this migration had sent over the WAN before this gateway counted.
    bytes_wan: int = 0
    # And what of it this had saved.
    savings: list[Saving] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    step: asyncio.Task[Outcome] | None = None


@dataclass
class Coordinator:
    """All migrations from this site."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    patience: PatienceSettings
    authority: Authority
    deliveries: Deliveries
    _runs: dict[str, _Run] = field(default_factory=dict)

    # Verbs

    def resume(self) -> None:
        """Go on with every migration of this gateway that the ledger knows to be under way."""
        self.look()
        self._reports.start()

    def look(self) -> None:
        """Run what is this gateway's now, stop what is no more, and note what was asked for at another gateway."""
        self._hold_limits()
        for row in self.ledger.rows():
            run, own = self._runs.get(row.migration.id), self.ledger.is_own(row)
            if own and row.cancel_wish and not row.cancel_requested and state_of(row) in CANCELLABLE:
                row.cancel_requested = True
                row.cause = f"cancelled by {row.cancel_wish}"
                self._interrupt(row)
            if run is not None and run.task is not None and not own:
                log.warning("migration.lost", migration=row.migration.id, coordinator=row.coordinator)
                run.task.cancel()
            elif run is None and own and not has_ended(row):
                log.info("migration.resumed", migration=row.migration.id, state=state_of(row).name)
                self._start(row)

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
        found = await self._survey.preflight(wanted, site, host, policy, asked)
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
        if found.estimate is not None:
            migration.estimate.CopyFrom(found.estimate)
        migration.requested_at.GetCurrentTime()
        await self._record(
            Row(migration=migration, autostart=found.vm.autostart, clock_offset_ms=found.clock_offset_ms), own
        )
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
        theirs = await self._survey.ask_destination(migration, opens=True)
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
        self._start(row)

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
        self._interrupt(row)
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
        agent = self.inventory.agent(migration.source_host)
        request = agent_pb2.SettleRequest(migration=migration.id, vm_uuid=migration.vm_uuid)
        removed = list((await agent.ask(agent.stub.Settle, request, SETTLE)).removed)
        row.peer_pending = True
        migration.decisions.append(decision)
        waived = f"settled by {who} without a proof of the disks: {without_proof}" if without_proof else None
        await self.ledger.advance(row, Input.SETTLE, waived)
        self._reports.send(row)
        return row, removed

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
        self._hold_limits()
        return row

    def _hold_limits(self) -> None:
        rows = (row for row in self.ledger.rows() if row.coordinating and not has_ended(row))
        self.tunnels.set_migration_limits(
            {row.migration.id: row.migration.limit for row in rows if row.migration.limit}
        )

    async def close(self) -> None:
        """Stop running; the store has what the next run needs."""
        tasks = [run.task for run in self._runs.values() if run.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reports.close()

    # The run of one migration

    def __post_init__(self) -> None:
        """Set up what is derived: the survey, the reports, and the table of steps."""
        self._survey = Survey(self.ledger, self.inventory, self.tunnels, self.authority)
        self._reports = Reports(self.ledger, self.inventory)
        self._proofs = Proofs(self.inventory, self.patience.outage, self.ledger.changed)
        self._steps: dict[State, Callable[[Row], Coroutine[None, None, Outcome]]] = {
            State.REQUESTED: self._requested,
            State.PREPARING: self._preparing,
            State.COPYING_DISKS: self._moving,
            State.COPYING_MEMORY: self._moving,
            State.SWITCHING: self._moving,
            State.RESOLVING: self._resolving,
            State.CLEANING: self._cleaning,
            State.ACTIVATING: self._activating,
            State.VERIFYING: self._verifying,
        }

    def _start(self, row: Row) -> None:
        if row.migration.id in self._runs:
            return
        run = self._runs[row.migration.id] = _Run(
            row, row.migration.summary.bytes_wan, list(row.migration.summary.savings)
        )
        run.task = asyncio.create_task(self._run(run), name=f"migration {row.migration.id}")

    def _interrupt(self, row: Row) -> None:
        run = self._runs.get(row.migration.id)
        if run is not None and run.step is not None:
            run.step.cancel()

    async def _run(self, run: _Run) -> None:
        row = run.row
        try:
            while not has_ended(row):
                state = state_of(row)
                if row.cancel_requested and state in CANCELLABLE:
                    outcome = Outcome(Input.CANCEL, row.cause)
                elif (result := await self._step(run)) is None:
                    continue
                else:
                    outcome = result
                if outcome.event is Input.TROUBLE:
                    if Input.TROUBLE not in TRANSITIONS[state_of(row)]:
                        # Who must answer has left the configuration; a migration is not forgotten for that.
                        self._note(row, outcome.reason or "")
                        await asyncio.sleep(RETRY)
                        continue
                    row.cause = row.cause or outcome.reason or ""
                row.migration.ClearField("silent_ms")
                await self.ledger.advance(row, outcome.event, outcome.reason)
                self._reports.send(row)
                if outcome.event is Input.VERIFIED:
                    await self._proofs.end(row.migration)
        except TakenOver as error:
            log.warning("migration.lost", migration=row.migration.id, reason=error.message)
        finally:
            self._runs.pop(row.migration.id, None)
            self.tunnels.pump.forget_counts(row.migration.id)
            self._hold_limits()

    async def _step(self, run: _Run) -> Outcome | None:
        """Run the step of the present state; None if the operator's wish to cancel has interrupted it."""
        step = run.step = asyncio.create_task(self._steps[state_of(run.row)](run.row))
        try:
            await asyncio.wait({step})
        finally:
            step.cancel()
            run.step = None
        try:
            return step.result()
        except asyncio.CancelledError:
            return None
        except TakenOver:
            raise
        except LandbridgeError as error:
            return Outcome(Input.TROUBLE, error.message)
        except Exception:  # a defect must end in the same recovery as any other trouble
            log.exception("migration.defect", migration=run.row.migration.id)
            return Outcome(Input.TROUBLE, "an internal error of this gateway interrupted it; see the gateway's log")

    def _note(self, row: Row, note: str) -> None:
        """Show why a migration does not go on at present, behind what went wrong before."""
        row.migration.reason = "; ".join(part for part in (row.cause, note) if part)
        self.ledger.changed(row)

    async def _requested(self, row: Row) -> Outcome:
        del row
        return Outcome(Input.BEGIN)

    async def _preparing(self, row: Row) -> Outcome:
        migration = row.migration
        agent, remote = (
            self.inventory.agent(migration.source_host),
            self.inventory.site_named(migration.destination_site),
        )
        asked = agent_pb2.InspectVmRequest(vm=migration.vm_uuid, cold=migration.cold)
        inspected = await agent.ask(agent.stub.InspectVm, asked, WORK)
        inspected.vm.autostart = row.autostart
        mapping = remote.mapping()
        self._hold_definition(migration, inspected.domain_xml, mapping)
        request = agent_pb2.PrepareRequest(
            migration=migration.id,
            role=Role.ROLE_DESTINATION,
            vm=inspected.vm,
            domain_xml=inspected.domain_xml,
            mapping=mapping,
            destination_site=migration.destination_site,
            destination_host=migration.destination_host,
            source_site=migration.source_site,
            source_host=migration.source_host,
            channel_secret=secrets.token_bytes(SECRET_SIZE),
            outage_limit_ms=int(self.patience.outage * 1000),
            cold=migration.cold,
            verify_disks=proof.is_wanted(migration),
        )
        prepared = await remote.remote.ask(
            remote.remote.stub.Prepare,
            PeerPrepareRequest(migration=migration, prepare=request),
            WORK,
        )
        _take_decision(migration, verdicts.told_by_destination(prepared.decision, migration))
        request.role = Role.ROLE_SOURCE
        here = await agent.ask(agent.stub.Prepare, request, WORK)
        if migration.cold and not (here.cold and prepared.prepare.cold):
            old = migration.source_host if not here.cold else migration.destination_host
            raise Conflict(f"the agent of {old} is too old to move a VM that is shut off: update it")
        start = agent_pb2.StartRequest(
            migration=migration.id, domain_xml=prepared.prepare.domain_xml, policy=migration.policy
        )
        await agent.ask(agent.stub.Start, start, WORK)
        return Outcome(Input.PREPARED)

    @staticmethod
    def _hold_definition(migration: Migration, domain_xml: str, mapping: agent_pb2.Mapping) -> None:
        """What was approved is what moves. Raises Conflict; where nobody had to approve, the definition of now counts."""
        now = (domain_digest(domain_xml), mapping_digest(mapping))
        if now == (migration.domain_sha256, migration.mapping_sha256):
            return
        if migration.approvals:
            what = "definition" if now[0] != migration.domain_sha256 else "mapping of pools and networks"
            raise Conflict(
                f"the {what} of {migration.vm} has changed since it was approved: ask for the migration again"
            )
        migration.domain_sha256, migration.mapping_sha256 = now

    async def _moving(self, row: Row) -> Outcome:
        async for snapshot in self._follow_source(row):
            self._take_progress(row, snapshot)
            match snapshot.stage:
                case Stage.STAGE_RELEASED:
                    return Outcome(Input.RELEASED, "")
                case Stage.STAGE_FAILED:
                    return Outcome(Input.TROUBLE, snapshot.error)
                case Stage.STAGE_UNKNOWN:
                    return Outcome(
                        Input.TROUBLE, f"the agent of host {row.migration.source_host} knows nothing of the migration"
                    )
                case stage:
                    event = STAGE_EVENTS.get((state_of(row), stage))
            if self._policy_cancels(row, snapshot):
                row.cancel_requested = True
                row.cause = snapshot.steered
                return Outcome(Input.CANCEL, row.cause)
            if event is not None:
                await self.ledger.advance(row, event, "")
                self._reports.send(row)
                if row.cancel_requested and state_of(row) in CANCELLABLE:
                    # Asked for just as the guest stood still, and it goes on at the source.
                    return Outcome(Input.CANCEL, row.cause)
            else:
                row.migration.reason = self._silence(row) or _pause(row, snapshot)
                self.ledger.changed(row)
        return Outcome(Input.TROUBLE, f"the agent of host {row.migration.source_host} stopped telling of the migration")

    @staticmethod
    def _policy_cancels(row: Row, snapshot: agent_pb2.WatchResponse) -> bool:
        """Whether the policy ends the migration, and it is not too late."""
        is_asked = row.migration.policy.on_no_convergence == NonConvergence.NON_CONVERGENCE_CANCEL
        return is_asked and bool(snapshot.steered) and state_of(row) in CANCELLABLE

    async def _follow_source(self, row: Row) -> AsyncIterator[agent_pb2.WatchResponse]:
        """What the source's agent tells; through silences no longer than the patience for agents."""
        agent = self.inventory.agent(row.migration.source_host)
        request = agent_pb2.WatchRequest(migration=row.migration.id)
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            try:
                async for snapshot in agent.follow(agent.stub.Watch, request):
                    heard_at = loop.time()
                    yield snapshot
                return
            except LandbridgeError as error:
                if loop.time() - heard_at > self.patience.agent:
                    raise
                self._note(row, f"{error.message}; waiting for it")
            await asyncio.sleep(RETRY)

    def _silence(self, row: Row) -> str:
        """What is known while the two hosts do not hear each other; empty while they do."""
        migration = row.migration
        if not migration.HasField("silent_ms"):
            return ""
        seconds = migration.silent_ms // 1000
        if self.tunnels.is_up(migration.destination_site):
            what = f"host {migration.destination_host} of site {migration.destination_site} not heard for {seconds} s"
        else:
            what = f"WAN to site {migration.destination_site} down {seconds} s"
        if migration.cold:
            return f"{what}, migration holds, VM stays shut off at {migration.source_site}"
        guest = "stands still" if state_of(row) is State.SWITCHING or migration.progress.paused else "runs on"
        return f"{what}, migration holds, guest {guest} at {migration.source_site}"

    def _take_progress(self, row: Row, snapshot: agent_pb2.WatchResponse) -> None:
        migration = row.migration
        migration.ClearField("silent_ms")
        if snapshot.HasField("silent_ms"):
            migration.silent_ms = snapshot.silent_ms
        if snapshot.HasField("progress"):
            migration.progress.CopyFrom(snapshot.progress)
        if snapshot.HasField("suspended_at"):
            row.suspended_at = snapshot.suspended_at.ToNanoseconds()
        summary = migration.summary
        del summary.channels[:]
        summary.channels.extend(snapshot.channels)
        summary.bytes_hypervisor = sum(channel.to_destination for channel in snapshot.channels)
        summary.bytes_repeated = snapshot.bytes_repeated
        self._count_wan(row)

    def _count_wan(self, row: Row) -> None:
        if run := self._runs.get(row.migration.id):
            pump, summary, id_ = self.tunnels.pump, row.migration.summary, row.migration.id
            summary.bytes_wan = run.bytes_wan + pump.wan_bytes.get(id_, 0)
            total = savings.added(run.savings, pump.savings(id_))
            del summary.savings[:]
            summary.savings.extend(total)

    async def _resolving(self, row: Row) -> Outcome:
        """Who has the VM? Asked until it is known."""
        migration = row.migration
        agent = self.inventory.agent(migration.source_host)
        request = agent_pb2.CancelRequest(migration=migration.id)
        while True:
            try:
                source = await agent.ask(agent.stub.Cancel, request, WORK)
                break
            except LandbridgeError as error:
                self._note(row, f"{error.message}; until it answers, it is not known whether the VM runs there")
            await asyncio.sleep(RETRY)
        if source.possession != Possession.POSSESSION_ABSENT:
            return Outcome(Input.SOURCE_HAS_IT, row.cause)
        remote = self.inventory.site_named(migration.destination_site).remote
        while True:
            try:
                there = (await remote.ask(remote.stub.Cancel, PeerCancelRequest(cancel=request), WORK)).cancel
                break
            except LandbridgeError as error:
                self._note(
                    row, f"{error.message}; the VM is off at the source, and waits paused if it has arrived there"
                )
            await asyncio.sleep(RETRY)
        if there.possession in {Possession.POSSESSION_ARRIVED, Possession.POSSESSION_HERE}:
            return Outcome(Input.DESTINATION_HAS_IT, row.cause)
        if migration.cold and await self._stayed(row):
            return Outcome(Input.SOURCE_HAS_IT, row.cause)
        return Outcome(Input.NOBODY_HAS_IT, f"{row.cause}; the VM is off at the source: start it there if it is wanted")

    async def _stayed(self, row: Row) -> bool:
        """Whether a VM that is shut off at the source is so as before: it may be told that nothing of it has arrived."""
        agent = self.inventory.agent(row.migration.source_host)
        request = agent_pb2.CancelRequest(migration=row.migration.id, discard_arrived=True)
        while True:
            try:
                source = await agent.ask(agent.stub.Cancel, request, WORK)
            except LandbridgeError as error:
                self._note(row, f"{error.message}; the VM is shut off there, and nowhere else")
            else:
                return source.possession != Possession.POSSESSION_ABSENT
            await asyncio.sleep(RETRY)

    async def _cleaning(self, row: Row) -> Outcome:
        """Have the destination remove what it made; its agent does so by itself if nobody can tell it to."""
        migration = row.migration
        remote = self.inventory.site_named(migration.destination_site).remote
        self.tunnels.pump.close_channels(migration.id, row.cause)
        request = PeerCancelRequest(cancel=agent_pb2.CancelRequest(migration=migration.id, discard_arrived=True))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience.cleanup
        reason = row.migration.reason or row.cause
        row.peer_pending = True
        while True:
            try:
                there = (await remote.ask(remote.stub.Cancel, request, WORK)).cancel
            except LandbridgeError as error:
                if loop.time() > deadline:
                    reason = f"{reason}; {error.message}: site {migration.destination_site} removes what is left there by itself"
                    break
                self._note(row, f"{error.message}; waiting to clean up there")
            else:
                if there.cause and there.cause not in reason and not row.cancel_requested:
                    reason = f"{there.cause} ({reason.rstrip('.')})"
                break
            await asyncio.sleep(RETRY)
        await self.deliveries.record(row)
        return Outcome(Input.CLEANED_AFTER_CANCEL if row.cancel_requested else Input.CLEANED, reason)

    async def _activating(self, row: Row) -> Outcome:
        """The VM waits, paused, at the destination; nobody else may have it. Ask until it runs."""
        migration = row.migration
        remote = self.inventory.site_named(migration.destination_site).remote
        request = PeerActivateRequest(
            activate=agent_pb2.ActivateRequest(migration=migration.id, autostart=row.autostart),
        )
        while True:
            try:
                answer = (await remote.ask(remote.stub.Activate, request, FACTS)).activate
            except NotFound as error:
                if error.details.get("presence") not in GONE:
                    # Somebody on the way has forgotten the migration; that says nothing of the VM.
                    self._note(row, f"{error.message}; it is not known there whether the VM waits, paused")
                    await asyncio.sleep(RETRY)
                    continue
                memory = "" if migration.cold else "its memory is lost, "
                lost = f"{error.message}; {memory}its definition and disks are still on host {migration.source_host}"
                return Outcome(Input.LOST, "; ".join(filter(None, (row.cause, lost))))
            except LandbridgeError as error:
                self._note(row, f"{error.message}; the VM waits there, paused, and runs nowhere else")
            else:
                break
            await asyncio.sleep(RETRY)
        self._summarize(row, answer.resumed_at.ToNanoseconds())
        await self.deliveries.record(row)
        row.peer_pending = True
        reason = f"{row.cause}, but too late" if row.cancel_requested else row.cause
        if proof.is_wanted(migration):
            migration.ClearField("ended_at")
            return Outcome(Input.ACTIVATED_TO_VERIFY, reason)
        return Outcome(Input.ACTIVATED, reason)

    async def _verifying(self, row: Row) -> Outcome:
        """The VM runs at the destination; have the disks compared."""
        await self._proofs.prove(row)
        row.peer_pending = True
        return Outcome(Input.VERIFIED)

    def _summarize(self, row: Row, resumed_at: int) -> None:
        migration = row.migration
        summary = migration.summary
        began = migration.requested_at.ToNanoseconds()
        ended = resumed_at - row.clock_offset_ms * 1_000_000
        migration.ended_at.GetCurrentTime()
        summary.total_ms = (migration.ended_at.ToNanoseconds() - began) // 1_000_000
        if row.suspended_at and resumed_at:  # else: an agent was killed before it could note the time
            summary.downtime_ms = max(ended - row.suspended_at, 0) // 1_000_000
        migration.ClearField("silent_ms")
        self._count_wan(row)


def _take_decision(migration: Migration, decision: Decision) -> None:
    """Keep what the other site's policy has decided as it took the migration in, instead of what it said before."""
    others = [each for each in migration.decisions if each.site != decision.site]
    del migration.decisions[:]
    migration.decisions.extend((*others, decision))


def _pause(row: Row, snapshot: agent_pb2.WatchResponse) -> str:
    """What is known of a guest that the policy lets stand still; empty if it runs."""
    if not snapshot.progress.paused:
        return ""
    return f"{snapshot.steered}; the guest stands still at {row.migration.source_site} until the rest is copied"


# What a stage that the source's agent tells of means in a state; anything else is no news.
STAGE_EVENTS = {
    (State.COPYING_DISKS, Stage.STAGE_COPYING_MEMORY): Input.MEMORY_BEGAN,
    (State.COPYING_DISKS, Stage.STAGE_SWITCHING): Input.SUSPENDED,
    (State.COPYING_MEMORY, Stage.STAGE_SWITCHING): Input.SUSPENDED,
    (State.SWITCHING, Stage.STAGE_COPYING_MEMORY): Input.RESUMED,
}
