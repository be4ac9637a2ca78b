"""`landbridge show`"""

from collections.abc import Iterator

import click

from gateway.cli import (
    arguments,
    connection,
    decisions,
    estimates,
    findings,
    json_lines,
    output,
    proofs,
    savings,
    summary,
    views,
    words,
)
from landbridge.v1.types_pb2 import Migration, NonConvergence, Policy


@click.command()
@arguments.migration_id
@arguments.as_json
@click.pass_context
def show(ctx: click.Context, migration_id: str, *, as_json: bool) -> None:
    """Show everything that is known of one migration."""
    with connection.connect(ctx) as gateway:
        migration = gateway.migration(migration_id)
    if as_json:
        json_lines.write("migration", migration)
        return
    pairs = [
        *_plan(migration),
        *_times(migration),
        *(estimates.pairs(migration.estimate) if migration.HasField("estimate") else ()),
        *(_progress(migration) if migration.HasField("progress") else ()),
        *summary.pairs(migration),
        *(proofs.pairs(migration.proof) if migration.HasField("proof") else ()),
        *_channels(migration),
    ]
    output.facts([(name, value) for name, value in pairs if value])
    if migration.summary.savings:
        click.echo("\nWhat became of the streams' bytes on the WAN:")
        savings.show(migration.summary.savings)
    if migration.decisions:
        click.echo("\nThe policies decided:")
        decisions.show(migration.decisions)
    if migration.findings:
        click.echo("\nPreflight found:")
        findings.show(migration.findings)


def _plan(migration: Migration) -> Iterator[tuple[str, str]]:
    yield "migration", words.safe(migration.id)
    yield "VM", f"{words.safe(migration.vm)} ({words.safe(migration.vm_uuid)})"
    yield "source", words.place(migration.source_site, migration.source_host)
    yield "destination", words.place(migration.destination_site, migration.destination_host)
    yield "state", words.state(migration.state)
    yield "reason", words.safe(migration.reason)
    yield "moves", "shut off: it runs at neither side" if migration.cold else ""
    if migration.HasField("policy") and not migration.cold:
        yield "policy", _policy(migration.policy)


def _policy(policy: Policy) -> str:
    act = words.word(NonConvergence.DESCRIPTOR, policy.on_no_convergence)
    deadline = f", at the latest after {words.duration(policy.deadline_ms)}" if policy.HasField("deadline_ms") else ""
    proof = "; the disks are compared" if policy.verify_disks else ""
    return f"downtime of at most {words.duration(policy.max_downtime_ms)} for the last memory; without convergence: {act}{deadline}{proof}"


def _times(migration: Migration) -> Iterator[tuple[str, str]]:
    yield "requested", words.moment(migration.requested_at) or ""
    yield "by", words.safe(migration.requested_by)
    yield "approved by", ", ".join(words.safe(approval.approver) for approval in migration.approvals)
    yield "glass broken", words.safe(migration.break_glass)
    yield "labels", decisions.labels(migration.labels)
    yield from decisions.grounds(migration)
    yield "updated", words.moment(migration.updated_at) or ""
    yield "ended", words.moment(migration.ended_at) or ""


def _progress(migration: Migration) -> Iterator[tuple[str, str]]:
    progress = migration.progress
    for name, total, remaining in (
        ("disks", progress.disk_total, progress.disk_remaining),
        ("memory", progress.memory_total, progress.memory_remaining),
    ):
        if total:
            done = max(0, total - remaining)
            yield name, f"{words.size(done)} of {words.size(total)} ({words.percent(done, total)} %)"
    if progress.iteration:
        yield "pass", str(progress.iteration)
    if progress.rate and not views.outage(migration):
        dirties = "" if migration.cold else f", the guest dirties {words.rate(progress.dirty_rate)}"
        yield "rate", f"{words.rate(progress.rate)}{dirties}"
    if progress.throttle:
        yield "throttled", f"{progress.throttle} % of the guest's CPU time are taken away"
    # At the end, the total time says more: this is as of the last look at the copying.
    yield "elapsed", "" if migration.summary.total_ms else words.duration(progress.elapsed_ms)


def _channels(migration: Migration) -> Iterator[tuple[str, str]]:
    for channel in migration.summary.channels:
        there, back = words.size(channel.to_destination), words.size(channel.to_source)
        why = (
            f"; no pages are recognized in all of it: {words.safe(channel.not_understood)}"
            if channel.not_understood
            else ""
        )
        yield f"channel {words.safe(channel.kind)}", f"{there} to the destination, {back} to the source{why}"
