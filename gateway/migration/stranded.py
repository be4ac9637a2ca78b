"""Migrations to this site whose source is not heard any more: its site may be down for an hour, or have burnt down.

    catch_up    the source is asked how a migration stands: only a report may have been lost
    conclude    it cannot be asked, and the host here says that the VM was let run: the source has asked for that, which it does only
                where no way leads back from, so that the migration is completed, as this host says. Where the host has given the VM
                up, it has failed: a VM of which nothing is here is never let run here
    activate    it cannot be asked, and the VM waits here, paused: nobody here knows whether it runs at the source, where libvirt may have
                let it go on. An admin says that the source is lost for good, and answers for that

A source that comes back is answered by `incoming` so that it completes the migration, whatever has become of the VM here since.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import structlog

from certs.identity import Identity
from gateway.authorization.authority import Authority
from gateway.authorization.request import REASON_CHARACTERS
from gateway.migration import proof
from gateway.migration.incoming import Incoming
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.states import LATER, State
from gateway.remote import FACTS, AgentRemote
from gateway.rounds import Rounds
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import Conflict, LandbridgeError, NotFound, ProtocolError, Unreachable, UsageError
from landbridge.v1.agent_pb2 import ActivateRequest, ProveRequest, Stage, WatchRequest
from landbridge.v1.peer_pb2 import PeerGetReportRequest
from landbridge.v1.types_pb2 import Migration, Proof, ProofOutcome

log = structlog.get_logger()

# Seconds between two looks at the migrations of which nothing is heard.
LOOK = 60.0


class Stranded(Rounds):
    """Of one gateway. Owned by the event loop."""

    def __init__(
        self,
        ledger: Ledger,
        inventory: Inventory,
        tunnels: Tunnels,
        authority: Authority,
        incoming: Incoming,
        patience: float,
    ) -> None:
        """`patience`: seconds for which the network between two hosts may be down, and nobody wonders."""
        self._ledger = ledger
        self._inventory = inventory
        self._tunnels = tunnels
        self._authority = authority
        self._incoming = incoming
        self._patience = timedelta(seconds=patience)

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for row in self._ledger.rows():
                if not row.coordinating and not has_ended(row) and self._is_silent(row):
                    try:
                        await self.catch_up(row)
                    except Exception:  # a defect must not end the looks
                        log.exception("stranded.defect", migration=row.migration.id)

    def _is_silent(self, row: Row) -> bool:
        """Whether nothing was told of a migration for longer than a network may be down."""
        return datetime.now(UTC) - row.migration.updated_at.ToDatetime(UTC) > self._patience

    async def catch_up(self, row: Row) -> None:
        """Have a migration to this site stand as it does at its source, or as its host here knows that it ended.

        Where neither says anything, nothing changes.
        """
        with contextlib.suppress(LandbridgeError):
            try:
                told = await self._ask_source(row.migration)
            except (Unreachable, NotFound) as error:
                await self._conclude(row, error.message)
            else:
                await self._incoming.report(told, row.migration.source_site)

    async def _ask_source(self, migration: Migration) -> Migration:
        """How it stands there. Raises Unreachable; NotFound where its gateways have forgotten it, or the site is not joined any more."""
        remote = self._inventory.site_named(migration.source_site).remote
        request = PeerGetReportRequest(migration=migration.id)
        told = (await remote.ask(remote.stub.GetReport, request, FACTS)).migration
        if told.id != migration.id:
            raise ProtocolError(
                f"site {migration.source_site} was asked for migration {migration.id}, and tells of another"
            )
        return told

    async def _conclude(self, row: Row, why: str) -> None:
        """End a migration whose VM was let run here, or of which nothing is here; where it waits here, say what a person can do."""
        migration = row.migration
        host, vm = migration.destination_host, migration.vm
        stage = await self._stage(migration)
        # Whoever wants the disks compared waits for the source as long as the source would for this site.
        if stage == Stage.STAGE_ACTIVE and (self._is_silent(row) or not proof.is_wanted(migration)):
            with contextlib.suppress(NotFound):  # somebody has taken it away since
                await self._let_run(row)
            said = f"host {host} says that {vm} was let run there"
            await self._end(row, State.COMPLETED, f"{said}; nobody else can be asked: {why}")
        elif stage == Stage.STAGE_FAILED and self._is_silent(row) and State.FAILED in LATER[state_of(row)]:
            said = f"host {host} says that nothing of {vm} is there"
            await self._end(row, State.FAILED, f"{said}; nobody else can be asked: {why}")
        elif stage == Stage.STAGE_ARRIVED and self._is_silent(row):
            migration.reason = (
                f"{why}; {vm} has arrived whole and waits on host {host}: if site {migration.source_site} is lost for good, an admin can "
                f"let it run, with landbridge activate {migration.id[:8]}"
            )
            self._ledger.changed(row)

    async def activate(self, prefix: str, reason: str, who: Identity) -> Row:
        """Let a VM run here that waits for a source which is lost, as an admin says: on record with the reason, before it is done.

        Raises Conflict while the source's site answers for the migration, if it has ended, or if the VM has not arrived whole;
        UsageError without a reason.
        """
        if not reason.strip() or len(reason) > REASON_CHARACTERS:
            raise UsageError(f"say how it is known that the source is lost, in at most {REASON_CHARACTERS} characters")
        row = await self._ledger.find(prefix)
        migration = row.migration
        if row.coordinating:
            raise Conflict(
                f"migration {migration.id} goes from here: it is the gateway of site {migration.destination_site} that can let "
                f"{migration.vm} run"
            )
        if has_ended(row):
            raise Conflict(f"migration {migration.id} has ended already ({state_of(row).name.lower()})")
        await self._require_lost(migration)
        if await self._stage(migration) not in {Stage.STAGE_ARRIVED, Stage.STAGE_ACTIVE}:
            raise Conflict(
                f"{migration.vm} has not arrived whole on host {migration.destination_host}: there is nothing there that could run"
            )
        await self._authority.note("migration.forced", who, reason, migration=migration)
        log.warning(
            "migration.forced", security=True, migration=migration.id, vm=migration.vm, who=str(who), reason=reason
        )
        await self._let_run(row)
        said = f"let run by {who}, who says that site {migration.source_site} is lost"
        await self._end(row, State.COMPLETED, f"{said}: {reason}")
        return row

    async def _require_lost(self, migration: Migration) -> None:
        """Raises Conflict if anybody at the source's site may know more of a migration; NotFound if nobody here could tell."""
        site = migration.source_site
        self._inventory.site_named(site)
        try:
            await self._ask_source(migration)
        except NotFound:
            return  # it was built anew, and nobody there will ever let the VM run here
        except LandbridgeError as error:
            if isinstance(error, Unreachable) and not self._tunnels.is_up(site):
                return
        raise Conflict(
            f"site {site} is not lost, it answers: its gateways alone know whether {migration.vm} runs there, and have it run here if "
            f"it does not; see `landbridge show {migration.id[:8]}` there"
        )

    async def _stage(self, migration: Migration) -> Stage.ValueType:
        """How far the host here is."""
        agent = self._agent(migration)
        told = agent.follow(agent.stub.Watch, WatchRequest(migration=migration.id))
        async with contextlib.aclosing(told) as snapshots:  # type: ignore[type-var]  # an async generator
            async for snapshot in snapshots:
                return snapshot.stage
        return Stage.STAGE_UNKNOWN

    def _agent(self, migration: Migration) -> AgentRemote:
        return self._inventory.agent(migration.destination_host)

    async def _let_run(self, row: Row) -> None:
        """Also where it runs: its agent may have been killed before it had it start with the host."""
        agent = self._agent(row.migration)
        request = ActivateRequest(migration=row.migration.id, autostart=row.autostart)
        await agent.ask(agent.stub.Activate, request, FACTS)

    async def _end(self, row: Row, state: State, reason: str) -> None:
        """That is the end of it, by this site's word. Raises NotRecorded."""
        is_unproved = state is State.COMPLETED and proof.is_wanted(row.migration)
        if is_unproved:
            agent = self._agent(row.migration)
            with contextlib.suppress(LandbridgeError):
                await agent.ask(agent.stub.Prove, ProveRequest(migration=row.migration.id, end=True), FACTS)
        if has_ended(await self._ledger.latest(row.migration.id) or row):
            return  # the source is back
        end = Migration()
        end.CopyFrom(row.migration)
        end.state, end.reason = state.value, reason
        end.ClearField("silent_ms")
        end.ended_at.GetCurrentTime()
        if is_unproved:
            end.proof.CopyFrom(Proof(outcome=ProofOutcome.PROOF_OUTCOME_NOT_PROVED, reason=reason))
        await self._incoming.become(row, end)
        log.info("stranded.ended", migration=end.id, vm=end.vm, state=state.name, reason=reason)
