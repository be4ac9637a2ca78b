"""`landbridge settle`"""

import click

from gateway.cli import arguments, connection, json_lines, words


@click.command()
@arguments.migration_id
@arguments.as_json
@click.pass_context
def settle(ctx: click.Context, migration_id: str, *, as_json: bool) -> None:
    """Remove what a completed migration left at the source: the definition and the disk images."""
    with connection.connect(ctx) as gateway:
        settled = gateway.settle(migration_id)
    if as_json:
        json_lines.write("settled", settled)
        return
    migration = settled.migration
    source = words.place(migration.source_site, migration.source_host)
    click.echo(f"Migration {words.safe(migration.id)} of {words.safe(migration.vm)} is settled.")
    for removed in settled.removed:
        click.echo(f"  removed at {source}: {words.safe(removed)}")
