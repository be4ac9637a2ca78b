"""`landbridge cancel`"""

import click

from gateway.cli import arguments, connection, follow, json_lines, output, summary, words
from landbridge.errors import Conflict
from landbridge.v1.types_pb2 import MIGRATION_STATE_CANCELLED


@click.command()
@arguments.migration_id
@click.option("--detach", is_flag=True, help="Return as soon as the wish is recorded.")
@arguments.as_json
@click.pass_context
def cancel(ctx: click.Context, migration_id: str, *, detach: bool, as_json: bool) -> None:
    """Cancel a migration, and wait until both hosts are clean.

    The VM goes on at the source. The exit code is 0 if the migration was cancelled, 4 if it completed
    before, 10 if it failed before; 130 after Ctrl-C, which stops the waiting only.
    """
    with connection.connect(ctx) as gateway:
        migration = gateway.cancel(migration_id)
        if detach:
            if as_json:
                json_lines.write("migration", migration)
            else:
                click.echo(f"Migration {words.safe(migration.id)} will be cancelled.")
            return
        ended = follow.to_end(gateway, migration, as_json=as_json)
    if ended.state in summary.SUCCEEDED:
        place = words.place(ended.destination_site, ended.destination_host)
        raise Conflict(f"The migration completed before it could be cancelled: {words.safe(ended.vm)} runs at {place}.")
    error = summary.failure(ended)
    if error and ended.state != MIGRATION_STATE_CANCELLED:
        raise error
    if error and not as_json:
        output.say(error.message)
