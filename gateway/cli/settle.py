"""`landbridge settle`"""

import click

from gateway.cli import arguments, connection, json_lines, words


@click.command()
@arguments.migration_id
@click.option(
    "--without-proof",
    type=arguments.REASON,
    help="Although its disks were to be compared (--verify-disks) and could not be: takes an admin, and the reason is recorded.",
)
@arguments.as_json
@click.pass_context
def settle(ctx: click.Context, migration_id: str, *, without_proof: str | None, as_json: bool) -> None:
    """Remove what a completed migration left at the source: the definition and the disk images.

    Refused where its disks differ, and where they were to be compared and could not be.
    """
    with connection.connect(ctx) as gateway:
        settled = gateway.settle(migration_id, without_proof=without_proof or "")
    if as_json:
        json_lines.write("settled", settled)
        return
    migration = settled.migration
    source = words.place(migration.source_site, migration.source_host)
    click.echo(f"Migration {words.safe(migration.id)} of {words.safe(migration.vm)} is settled.")
    for removed in settled.removed:
        click.echo(f"  removed at {source}: {words.safe(removed)}")
