"""The steps of a migration until the source has released the VM: prepared at both ends, then copied, which the source's agent tells of."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.authorization.request import domain_digest, mapping_digest
from gateway.config import PatienceSettings
from gateway.migration import proof, verdicts
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, state_of
from gateway.migration.reports import Reports
from gateway.migration.states import CANCELLABLE, Input, State
from gateway.migration.steps import Outcome, pause
from gateway.migration.wan_counts import WanCounts
from gateway.remote import WORK
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import Conflict, LandbridgeError
from landbridge.ticket import SECRET_SIZE
from landbridge.v1 import agent_pb2
from landbridge.v1.agent_pb2 import Role, Stage
from landbridge.v1.decision_pb2 import Decision
from landbridge.v1.peer_pb2 import PeerPrepareRequest
from landbridge.v1.types_pb2 import Migration, NonConvergence

# What a stage that the source's agent tells of means in a state; anything else is no news.
STAGE_EVENTS = {
    (State.COPYING_DISKS, Stage.STAGE_COPYING_MEMORY): Input.MEMORY_BEGAN,
    (State.COPYING_DISKS, Stage.STAGE_SWITCHING): Input.SUSPENDED,
    (State.COPYING_MEMORY, Stage.STAGE_SWITCHING): Input.SUSPENDED,
    (State.SWITCHING, Stage.STAGE_COPYING_MEMORY): Input.RESUMED,
}


@dataclass(frozen=True)
class Moving:
    """Steps of REQUESTED, PREPARING, COPYING_DISKS, COPYING_MEMORY and SWITCHING."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    patience: PatienceSettings
    reports: Reports
    counts: WanCounts

    async def requested(self, row: Row) -> Outcome:
        """It is recorded, and nothing more is to be done before it begins."""
        del row
        return Outcome(Input.BEGIN)

    async def preparing(self, row: Row) -> Outcome:
        """Have both ends prepared, and the move started."""
        migration = row.migration
        agent, remote = (
            self.inventory.agent(migration.source_host),
            self.inventory.site_named(migration.destination_site),
        )
        asked = agent_pb2.InspectVmRequest(vm=migration.vm_uuid, cold=migration.cold)
        inspected = await agent.ask(agent.stub.InspectVm, asked, WORK)
        inspected.vm.autostart = row.autostart
        mapping = remote.mapping()
        hold_definition(migration, inspected.domain_xml, mapping)
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

    async def moving(self, row: Row) -> Outcome:
        """Follow the source until it has released the VM, or something goes wrong."""
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
                self.reports.send(row)
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
                self.ledger.note(row, f"{error.message}; waiting for it")
            await pause()

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
        self.counts.count(row)


def hold_definition(migration: Migration, domain_xml: str, mapping: agent_pb2.Mapping) -> None:
    """What was approved is what moves. Raises Conflict; where nobody had to approve, the definition of now counts."""
    now = (domain_digest(domain_xml), mapping_digest(mapping))
    if now == (migration.domain_sha256, migration.mapping_sha256):
        return
    if migration.approvals:
        what = "definition" if now[0] != migration.domain_sha256 else "mapping of pools and networks"
        raise Conflict(f"the {what} of {migration.vm} has changed since it was approved: ask for the migration again")
    migration.domain_sha256, migration.mapping_sha256 = now


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
