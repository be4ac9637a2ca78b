"""The steps of a migration once the source has released the VM: it is let run at the destination, and its disks compared if wanted."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.migration import proof
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.proofs import Proofs
from gateway.migration.states import Input
from gateway.migration.steps import Outcome, pause
from gateway.migration.wan_counts import WanCounts
from gateway.remote import FACTS
from gateway.store import Row
from landbridge.errors import LandbridgeError, NotFound
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import PeerActivateRequest

# What the destination's agent says of a VM that has arrived and is there no more: its host looked.
GONE = frozenset({"absent", "shut_off"})


@dataclass(frozen=True)
class Arriving:
    """Steps of ACTIVATING and VERIFYING."""

    ledger: Ledger
    inventory: Inventory
    proofs: Proofs
    counts: WanCounts

    async def activating(self, row: Row) -> Outcome:
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
                    self.ledger.note(row, f"{error.message}; it is not known there whether the VM waits, paused")
                    await pause()
                    continue
                memory = "" if migration.cold else "its memory is lost, "
                lost = f"{error.message}; {memory}its definition and disks are still on host {migration.source_host}"
                return Outcome(Input.LOST, "; ".join(filter(None, (row.cause, lost))))
            except LandbridgeError as error:
                self.ledger.note(row, f"{error.message}; the VM waits there, paused, and runs nowhere else")
            else:
                break
            await pause()
        self._summarize(row, answer.resumed_at.ToNanoseconds())
        # The other site is to hear of it, and what was delivered is to be recorded: `reports` does both.
        row.peer_pending = True
        reason = f"{row.cause}, but too late" if row.cancel_requested else row.cause
        if proof.is_wanted(migration):
            migration.ClearField("ended_at")
            return Outcome(Input.ACTIVATED_TO_VERIFY, reason)
        return Outcome(Input.ACTIVATED, reason)

    async def verifying(self, row: Row) -> Outcome:
        """The VM runs at the destination; have the disks compared."""
        await self.proofs.prove(row)
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
        self.counts.count(row)
