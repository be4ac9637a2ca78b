"""`landbridge watch`"""

import click

from gateway.cli import arguments, connection, follow, summary


@click.command()
@arguments.migration_id
@arguments.as_json
@click.pass_context
def watch(ctx: click.Context, migration_id: str, *, as_json: bool) -> None:
    """Watch a migration until it has ended. Ctrl-C stops the watching only.

    The exit code is that of the migration: 0 completed, 10 failed, 11 cancelled; 130 after Ctrl-C.
    """
    with connection.connect(ctx) as gateway:
        ended = follow.to_end(gateway, gateway.migration(migration_id), as_json=as_json)
    if error := summary.failure(ended):
        raise error
