"""What the audit log says of a migration: an entry for each state, before anything follows from it.

What this gateway has seen itself stands under "seen": at the source, what it coordinates; at the destination, what it was asked for and
by whom. What agents count, and what the other site reports of its own doing, is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import MappingProxyType

from gateway.audit.canonical import Value
from gateway.audit.entry import NOTHING, Facts
from gateway.audit.fields import LIST_ITEMS
from gateway.audit.journal import Journal
from gateway.authorization import telling
from gateway.authorization.request import digest
from gateway.migration.states import ENDED, State
from gateway.store import Row
from landbridge.v1.types_pb2 import Migration, Proof, ProofOutcome

# How an entry is called by the state that it tells of, and the outcome; all others are steps.
_EVENTS = MappingProxyType(
    {
        State.COMPLETED: ("migration.completed", "success"),
        State.FAILED: ("migration.failed", "failure"),
        State.CANCELLED: ("migration.cancelled", "failure"),
        State.SETTLED: ("migration.settled", "success"),
    }
)

# What is said of a proof that has ended. What it is called otherwise, also in words that are not known here, was told by the other site.
_PROOFS = MappingProxyType(
    {
        ProofOutcome.PROOF_OUTCOME_EQUAL: ("disk.verified", "success"),
        ProofOutcome.PROOF_OUTCOME_DIFFERS: ("disk.differs", "failure"),
    }
)
_UNPROVED = ("disk.unproved", "unknown")


class Recorder:
    """Writes those entries. A `gateway.migration.ledger.Record`, when it is called."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # Where a site is, and how the tunnel to (or, if that is asked for, from) it is protected; until somebody knows, "" and nothing.
        self.country: Callable[[str], str] = lambda _: ""
        self.secured: Callable[[str, bool], Facts] = lambda _site, _incoming: NOTHING

    async def __call__(self, row: Row, before: State | None) -> None:
        """Record that a row is in its state, having been in `before`, or nowhere. Raises NotRecorded."""
        migration = row.migration
        state = State(migration.state)
        if state is State.COMPLETED and before is not state and migration.HasField("proof"):
            await self._record_proof(migration)
        if before is None:
            event, outcome = ("migration.requested" if row.coordinating else "migration.admitted"), "success"
        else:
            event, outcome = _EVENTS.get(state, ("migration.stepped", "success"))
        seen, claimed = facts(migration, before, self.country, coordinating=row.coordinating)
        if state in ENDED:
            seen = {**seen, **self._protection(row)}
        entry = self._journal.record(
            event,
            outcome=outcome,
            reason=migration.reason,
            actor=_actor(migration, coordinating=row.coordinating),
            migration=migration.id,
            seen=seen,
            claimed=claimed,
        )
        # In this order, and in one group.
        await asyncio.gather(entry, *(self._decided(row) if before is None else ()))
        know_entries(row, self._journal)

    def _protection(self, row: Row) -> Facts:
        migration = row.migration
        other = migration.destination_site if row.coordinating else migration.source_site
        secured = self.secured(other, not row.coordinating)
        return {"tls": secured} if secured else NOTHING

    def _decided(self, row: Row) -> list[Coroutine[None, None, int]]:
        """By which rules of both sites it may begin."""
        migration = row.migration
        here = migration.source_site if row.coordinating else migration.destination_site
        entries = []
        for decision in migration.decisions[:2]:
            said = telling.policy(decision) | telling.grounds(decision.grounds)
            own = decision.site == here
            entries.append(
                self._journal.record(
                    "migration.permitted",
                    reason=f"the glass was broken: {decision.break_glass}" if decision.break_glass else "",
                    actor=_actor(migration, coordinating=row.coordinating),
                    migration=migration.id,
                    seen=said | {"request": {"sha256": digest(migration)}} if own else NOTHING,
                    claimed=NOTHING if own else said,
                )
            )
        return entries

    async def _record_proof(self, migration: Migration) -> None:
        """What was found of the disks. Both sides' roots are what agents have said."""
        event, outcome = _PROOFS.get(migration.proof.outcome, _UNPROVED)
        await self._journal.record(
            event,
            outcome=outcome,
            reason=migration.proof.reason,
            migration=migration.id,
            claimed=proof_facts(migration.proof),
        )


def know_entries(row: Row, journal: Journal) -> None:
    """Note in a row which entries of this log are about its migration, as far as this run of the gateway knows."""
    if told := journal.told(row.migration.id):
        log = journal.key.name
        row.logs = {**row.logs, log: sorted({*row.logs.get(log, ()), *told})}


def proof_facts(proof: Proof) -> Facts:
    """What both ends have stored, and how that compares."""
    _, outcome = _PROOFS.get(proof.outcome, _UNPROVED)
    verify: dict[str, Value] = {
        "method": "BLAKE3 tree of 64 KiB blocks",
        "blocks": sum(disk.blocks_compared for disk in proof.disks),
        "blocks_written": sum(disk.blocks_written for disk in proof.disks),
        "downtime_us": proof.downtime_us,
        "duration_ms": proof.duration_ms,
        "result": {"success": "equal", "failure": "differs"}.get(outcome, "skipped"),
    }
    disks: list[Value] = []
    for disk in proof.disks[:LIST_ITEMS]:
        facts: dict[str, Value] = {
            "target": disk.target,
            "capacity": disk.size,
            "digest": disk.source_root,
            "stored_digest": disk.destination_root,
            "blocks": disk.blocks_compared,
            "blocks_written": disk.blocks_written,
        }
        if disk.differing:
            facts["bytes_differing"] = disk.bytes_differing
            facts["differs_at"] = [each.offset for each in disk.differing]
        disks.append(facts)
    return {"verify": verify} | ({"disks": disks} if disks else {})


def facts(
    migration: Migration, before: State | None, country: Callable[[str], str] = lambda _: "", *, coordinating: bool
) -> tuple[Facts, Facts]:
    """What is seen of a migration, and what is claimed."""
    ends = telling.about(migration, country)
    why: dict[str, Value] = {}
    if before is None or State(migration.state) in ENDED:
        ends |= telling.grounds(migration.grounds)
        why = telling.purpose(migration)
    state: dict[str, Value] = {"to": State(migration.state).name.lower()}
    if before is not None:
        state["from"] = before.name.lower()
    else:
        ends |= telling.approvers(migration.approvals)
    counted = _counted(migration, country) | why
    if coordinating:
        seen = (
            ends
            | {"state": state}
            | {name: counted.pop(name) for name in ("bytes_wan", "duration_ms") if name in counted}
        )
        return seen, counted
    # Whose the VM is and where it comes from, the other site says; that it is to come here, this one.
    return {"destination": ends.pop("destination")}, ends | {"state": state} | counted


def _counted(migration: Migration, country: Callable[[str], str]) -> dict[str, Value]:
    """Figures, once there are any."""
    summary = migration.summary
    channels = {channel.kind: channel.to_destination for channel in summary.channels}
    figures = {
        "bytes_ram": channels.get("ram", 0),
        "bytes_disk": channels.get("disk", 0),
        "bytes_wan": summary.bytes_wan,
        "duration_ms": summary.total_ms,
        "downtime_ms": summary.downtime_ms,
    }
    counted: dict[str, Value] = {name: value for name, value in figures.items() if value}
    if State(migration.state) in {State.COMPLETED, State.SETTLED}:
        location: dict[str, Value] = {"site": migration.destination_site, "host": migration.destination_host}
        where = country(migration.destination_site)
        location |= {"country": where} if where else {}
        counted["location"] = location | ({"vm_state": "shut off"} if migration.cold else {})
    return counted


def _actor(migration: Migration, *, coordinating: bool) -> Facts:
    if not migration.requested_by:
        return {}
    method = "certificate" if coordinating else f"as site {migration.source_site} says"
    return {"id": migration.requested_by, "role": "operator", "method": method}
