"""The end of a migration: its figures on standard output, and the error that decides the exit code."""

from collections.abc import Iterator

from gateway.cli import estimates, output, proofs, savings, words
from landbridge.errors import LandbridgeError, MigrationCancelled, MigrationFailed
from landbridge.v1.types_pb2 import (
    MIGRATION_STATE_CANCELLED,
    MIGRATION_STATE_COMPLETED,
    MIGRATION_STATE_FAILED,
    MIGRATION_STATE_SETTLED,
    Migration,
    Summary,
)

SUCCEEDED = frozenset({MIGRATION_STATE_COMPLETED, MIGRATION_STATE_SETTLED})
ENDED = SUCCEEDED | {MIGRATION_STATE_FAILED, MIGRATION_STATE_CANCELLED}


def show(migration: Migration) -> None:
    """Print what the ended migration took, and what to do next."""
    succeeded = migration.state in SUCCEEDED
    if succeeded:
        source = words.place(migration.source_site, migration.source_host)
        destination = words.place(migration.destination_site, migration.destination_host)
        there = " and is shut off there" if migration.cold else ""
        output.say(f"{words.safe(migration.vm)} has moved from {source} to {destination}{there}.")
    rows = [("migration", words.safe(migration.id)), *pairs(migration)]
    if migration.state == MIGRATION_STATE_COMPLETED and not proofs.holds_back(migration):
        rows.append(("next", f"landbridge settle {words.safe(migration.id)}"))
    output.facts(rows)


def pairs(migration: Migration) -> Iterator[tuple[str, str]]:
    """The figures by their names; no times where it has not ended, and no downtime where the guest never left, or never ran."""
    if migration.HasField("summary"):
        has_downtime = migration.state in SUCCEEDED and not migration.cold
        yield from _figures(migration.summary, has_downtime=has_downtime)
    if migration.HasField("proof"):
        yield "disk proof", proofs.sentence(migration.proof)
    if migration.HasField("estimate") and migration.state in SUCCEEDED:
        yield "estimate was", estimates.error(migration.estimate, migration.summary)
    if migration.limit:
        yield "limit", f"{words.limit(migration.limit)} on the WAN, {words.rate(migration.limit)}"


def _figures(summary: Summary, *, has_downtime: bool) -> Iterator[tuple[str, str]]:
    if summary.total_ms:
        yield "total time", words.duration(summary.total_ms)
    if has_downtime or summary.downtime_ms:
        yield "downtime", words.duration(summary.downtime_ms)
    yield "hypervisor", f"{words.size(summary.bytes_hypervisor)} read at the source"
    share = ""
    if summary.bytes_hypervisor:
        share = f", {summary.bytes_wan * 100 / summary.bytes_hypervisor:.0f} % of that"
    yield "WAN", f"{words.size(summary.bytes_wan)} on the tunnel{share}"
    if summary.savings:
        yield "saving", savings.sentence(summary.savings)
    if summary.bytes_repeated:
        yield "sent again", f"{words.size(summary.bytes_repeated)} after faults of the network"


def failure(migration: Migration) -> LandbridgeError | None:
    """What an ended migration is to be answered with; None if it succeeded."""
    destination = words.place(migration.destination_site, migration.destination_host)
    what = f"of {words.safe(migration.vm)} to {destination}"
    details = {"migration": migration.id}
    if migration.state == MIGRATION_STATE_CANCELLED:
        goes_on = "The VM is shut off at the source, as before" if migration.cold else "The VM goes on at the source"
        reason = words.sentence(migration.reason or goes_on)
        return MigrationCancelled(f"The migration {what} was cancelled: {reason}", details=details)
    if migration.state == MIGRATION_STATE_FAILED:
        reason = words.sentence(migration.reason or "no reason is recorded")
        return MigrationFailed(f"The migration {what} failed: {reason}", details=details)
    return None
