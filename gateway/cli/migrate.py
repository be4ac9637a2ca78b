"""`landbridge migrate`: preflight, begin, and watch to the end."""

import contextlib
from dataclasses import dataclass

import click

from gateway.cli import (
    arguments,
    connection,
    decisions,
    estimates,
    findings,
    follow,
    json_lines,
    output,
    summary,
    words,
)
from gateway.cli.arguments import Destination
from landbridge.client import Client
from landbridge.errors import ApprovalNeeded, LandbridgeError, PolicyRefused, PreflightFailed, UsageError
from landbridge.v1.decision_pb2 import VERDICT_APPROVAL
from landbridge.v1.gateway_pb2 import PreflightResponse
from landbridge.v1.types_pb2 import NON_CONVERGENCE_UNSPECIFIED, Migration, NonConvergence, Policy

# How the command line calls what can be done without convergence.
ACTS = {
    words.word(NonConvergence.DESCRIPTOR, number): number
    for number in NonConvergence.values()
    if number != NON_CONVERGENCE_UNSPECIFIED
}


@dataclass(frozen=True)
class Wanted:
    """The migration that is asked for, as a gateway takes it."""

    vm: str
    destination: Destination
    policy: Policy
    break_glass: str
    request: str
    purpose: str

    def preflight(self, gateway: Client) -> PreflightResponse:
        """What it finds."""
        site, host = self.destination.site, self.destination.host
        return gateway.preflight(self.vm, site, host, self.policy, break_glass=self.break_glass, purpose=self.purpose)

    def migrate(self, gateway: Client) -> Migration:
        """Begin it."""
        site, host = self.destination.site, self.destination.host
        given = {"break_glass": self.break_glass, "request": self.request, "purpose": self.purpose}
        return gateway.migrate(self.vm, site, host, self.policy, **given)


@click.command()
@arguments.vm
@click.option("--to", "destination", type=arguments.DESTINATION, required=True, help="Where to move it.")
@click.option(
    "--max-downtime",
    type=click.IntRange(10, 60_000),
    metavar="MS",
    help="Switch over when the last memory can be sent within so many milliseconds at most; 300 if nothing is said. Less is "
    "tried for at first. The switch itself adds some round trips of the WAN.",
)
@click.option(
    "--on-no-convergence",
    "act",
    type=click.Choice(ACTS),
    help="What to do about a guest that writes memory faster than it is sent. wait (the default): go on until it converges. "
    "throttle: take CPU time away from it, more and more. pause: let it stand still while the rest is copied. "
    "cancel: it stays at the source. postcopy is refused, with the reason.",
)
@click.option(
    "--deadline",
    type=arguments.DURATION,
    help="With pause or cancel: do that at the latest so long after the copying began, such as 90s, 15min or 2h.",
)
@click.option(
    "--verify-disks",
    is_flag=True,
    help="Once the VM runs at the destination, compare what both ends have stored, in the background. Until that is proved equal, "
    "what is left at the source is not settled. For qcow2 disks.",
)
@click.option(
    "--purpose",
    type=arguments.REASON,
    help="Why the VM is to move: it is recorded, and approved with the rest. Some policies demand it.",
)
@click.option(
    "--break-glass",
    type=arguments.REASON,
    help="Override freezes and approvals, if the policy lets you; the reason is recorded, and others are told loudly.",
)
@click.option(
    "--request",
    type=arguments.REQUEST,
    help="Begin exactly what this request was approved for; else the request that fits is used.",
)
@click.option("--dry-run", is_flag=True, help="Only the preflight: nothing is touched.")
@click.option("--detach", is_flag=True, help="Return as soon as the migration has begun.")
@arguments.as_json
@click.pass_context
def migrate(
    ctx: click.Context,
    vm: str,
    destination: Destination,
    *,
    max_downtime: int | None,
    act: str | None,
    deadline: int | None,
    verify_disks: bool,
    purpose: str | None,
    break_glass: str | None,
    request: str | None,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Move a VM to another site.

    One that runs goes on running there; one that is shut off is so there, and runs nowhere on the way.

    VM is a name, a UUID, or HOST/NAME. Without a host, the gateway chooses one.

    Shows the progress until the VM is at the destination. Ctrl-C stops the watching only: `landbridge
    cancel` stops the migration. The exit code is 0 if it completed, 5 if preflight refused it, 6 if a
    policy did, 10 if it failed, 11 if somebody cancelled it, 12 if others must approve it first (ask again
    when they have), 130 after Ctrl-C.
    """
    policy = _policy(max_downtime, act, deadline)
    policy.verify_disks = verify_disks
    wanted = Wanted(vm, destination, policy, break_glass or "", request or "", purpose or "")
    with connection.connect(ctx) as gateway:
        if dry_run:
            _try(gateway, wanted, as_json=as_json)
            return
        migration = _begin(gateway, wanted, as_json=as_json)
        if detach:
            if as_json:
                json_lines.write("migration", migration)
            else:
                click.echo(follow.detached(migration.id, f"Migration {words.safe(migration.id)} has begun."))
            return
        if not as_json:
            findings.show(migration.findings)
            estimate = estimates.pairs(migration.estimate) if migration.HasField("estimate") else ()
            output.facts([*decisions.pairs(migration.decisions), *estimate])
        ended = follow.to_end(gateway, migration, as_json=as_json)
    if error := summary.failure(ended):
        raise error


def _policy(max_downtime: int | None, act: str | None, deadline: int | None) -> Policy:
    if deadline is not None and act not in {"pause", "cancel"}:
        raise UsageError("--deadline needs --on-no-convergence=pause or =cancel: something to do when it is over.")
    return Policy(
        max_downtime_ms=max_downtime or 0,
        deadline_ms=deadline,
        on_no_convergence=ACTS[act] if act else NON_CONVERGENCE_UNSPECIFIED,
    )


def _try(gateway: Client, wanted: Wanted, *, as_json: bool) -> None:
    preflight = wanted.preflight(gateway)
    _report(preflight, as_json=as_json)
    if not preflight.passed:
        raise PreflightFailed(f"{wanted.vm} cannot move to {wanted.destination} now: nothing has been changed.")
    if not as_json:
        place = words.place(wanted.destination.site, preflight.destination_host)
        source = words.safe(preflight.source_host)
        waits = any(decision.verdict == VERDICT_APPROVAL for decision in preflight.decisions)
        once = " once others have approved it" if waits else ""
        off = ", shut off as it is" if preflight.estimate.cold else ""
        output.say(f"{wanted.vm} can move from {source} to {place}{off}{once}; nothing has been changed.")


def _begin(gateway: Client, wanted: Wanted, *, as_json: bool) -> Migration:
    try:
        return wanted.migrate(gateway)
    except (PreflightFailed, PolicyRefused):
        # The refusal is one sentence: the findings are asked for again. If that fails, the sentence must do.
        with contextlib.suppress(LandbridgeError):
            _report(wanted.preflight(gateway), as_json=as_json)
        raise
    except ApprovalNeeded as error:
        if as_json:
            with contextlib.suppress(LandbridgeError):
                for each in gateway.requests():
                    if each.id == error.details.get("request"):
                        json_lines.write("request", each)
        raise
    except KeyboardInterrupt:
        click.echo("\nInterrupted; it may have begun all the same: `landbridge migrations` tells.", err=True)
        raise click.exceptions.Exit(follow.DETACHED_EXIT) from None


def _report(preflight: PreflightResponse, *, as_json: bool) -> None:
    if as_json:
        json_lines.write("preflight", preflight)
        return
    findings.show(preflight.findings)
    estimate = estimates.pairs(preflight.estimate) if preflight.HasField("estimate") else ()
    output.facts([*decisions.pairs(preflight.decisions), *estimate])
