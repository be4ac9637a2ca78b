"""`landbridge migrate`: preflight, begin, and watch to the end."""

import contextlib

import click

from gateway.cli import arguments, connection, findings, follow, json_lines, output, summary, words
from gateway.cli.arguments import Destination
from landbridge.client import Client
from landbridge.errors import LandbridgeError, PreflightFailed
from landbridge.v1.gateway_pb2 import PreflightResponse
from landbridge.v1.types_pb2 import Migration


@click.command()
@arguments.vm
@click.option("--to", "destination", type=arguments.DESTINATION, required=True, help="Where to move it.")
@click.option("--dry-run", is_flag=True, help="Only the preflight: nothing is touched.")
@click.option("--detach", is_flag=True, help="Return as soon as the migration has begun.")
@arguments.as_json
@click.pass_context
def migrate(
    ctx: click.Context, vm: str, destination: Destination, *, dry_run: bool, detach: bool, as_json: bool
) -> None:
    """Move a running VM to another site.

    VM is a name, a UUID, or HOST/NAME. Without a host, the gateway chooses one.

    Shows the progress until the VM runs at the destination. Ctrl-C stops the watching only: `landbridge
    cancel` stops the migration. The exit code is 0 if it completed, 5 if preflight refused it, 10 if it
    failed, 11 if somebody cancelled it, 130 after Ctrl-C.
    """
    with connection.connect(ctx) as gateway:
        if dry_run:
            _try(gateway, vm, destination, as_json=as_json)
            return
        migration = _begin(gateway, vm, destination, as_json=as_json)
        if detach:
            if as_json:
                json_lines.write("migration", migration)
            else:
                click.echo(follow.detached(migration.id, f"Migration {words.safe(migration.id)} has begun."))
            return
        if not as_json:
            findings.show(migration.findings)
        ended = follow.to_end(gateway, migration, as_json=as_json)
    if error := summary.failure(ended):
        raise error


def _try(gateway: Client, vm: str, destination: Destination, *, as_json: bool) -> None:
    preflight = gateway.preflight(vm, destination.site, destination.host)
    _report(preflight, as_json=as_json)
    if not preflight.passed:
        raise PreflightFailed(f"{vm} cannot move to {destination} now: nothing has been changed.")
    if not as_json:
        place = words.place(destination.site, preflight.destination_host)
        source = words.safe(preflight.source_host)
        output.say(f"{vm} can move from {source} to {place}; nothing has been changed.")


def _begin(gateway: Client, vm: str, destination: Destination, *, as_json: bool) -> Migration:
    try:
        return gateway.migrate(vm, destination.site, destination.host)
    except PreflightFailed:
        # The refusal is one sentence: the findings are asked for again. If that fails, the sentence must do.
        with contextlib.suppress(LandbridgeError):
            _report(gateway.preflight(vm, destination.site, destination.host), as_json=as_json)
        raise
    except KeyboardInterrupt:
        click.echo("\nInterrupted; it may have begun all the same: `landbridge migrations` tells.", err=True)
        raise click.exceptions.Exit(follow.DETACHED_EXIT) from None


def _report(preflight: PreflightResponse, *, as_json: bool) -> None:
    if as_json:
        json_lines.write("preflight", preflight)
    else:
        findings.show(preflight.findings)
