"""`landbridge activate`"""

import click

from gateway.cli import arguments, connection, json_lines, summary, words
from landbridge.errors import UsageError


@click.command()
@arguments.migration_id
@click.option(
    "--source-is-lost",
    type=arguments.REASON,
    help="How you know that the source is lost for good and the VM does not run there: takes an admin, and is recorded.",
)
@arguments.as_json
@click.pass_context
def activate(ctx: click.Context, migration_id: str, *, source_is_lost: str | None, as_json: bool) -> None:
    """Let a VM run that waits here, paused, for a source that is lost for good.

    For the gateway of the destination, after a disaster: the VM has arrived whole, and the source's site does not
    answer. Nobody can say then whether it runs at the source. If it does, it runs twice from now on, and what one
    of the two has written is lost. Refused while the source's site answers for the migration.
    """
    if source_is_lost is None:
        raise UsageError(
            "If the VM runs at the source, it will run twice, and what one of the two has written is lost: see that its host there is "
            "off for good, and say how you know, with --source-is-lost REASON."
        )
    with connection.connect(ctx) as gateway:
        migration = gateway.activate(migration_id, source_is_lost=source_is_lost)
    if as_json:
        json_lines.write("migration", migration)
    if error := summary.failure(migration):
        raise error
    if not as_json:
        vm, source = words.safe(migration.vm), words.place(migration.source_site, migration.source_host)
        state = "is shut off, as it was" if migration.cold else "runs"
        place = words.place(migration.destination_site, migration.destination_host)
        click.echo(f"{vm} {state} at {place}. See that nobody starts it at {source} any more.")
