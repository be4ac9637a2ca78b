"""`landbridge migrations`"""

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.v1 import types_pb2
from landbridge.v1.types_pb2 import Migration

_SHORTEST_ID = 8

_COLUMNS = (
    output.Column("ID"),
    output.Column("VM", cut=True),
    output.Column("SOURCE", cut=True),
    output.Column("DESTINATION", cut=True),
    output.Column("STATE"),
    output.Column("REQUESTED", right=True),
)

_STYLES = {
    types_pb2.MIGRATION_STATE_FAILED: "red",
    types_pb2.MIGRATION_STATE_CANCELLED: "dim",
    types_pb2.MIGRATION_STATE_SETTLED: "dim",
}


@click.command()
@arguments.as_json
@click.pass_context
def migrations(ctx: click.Context, *, as_json: bool) -> None:
    """List all migrations, the newest first.

    On a terminal, ids are cut to what tells them apart, and REQUESTED is how long ago.
    """
    with connection.connect(ctx) as gateway:
        found = gateway.migrations()
    if as_json:
        for migration in found:
            json_lines.write("migration", migration)
        return
    now = datetime.now(UTC) if output.terminal() else None
    digits = _telling([migration.id for migration in found]) if now else None
    rows = [_row(migration, digits, now) for migration in found]
    output.table(_COLUMNS, rows, "No VM has been migrated yet.")


def _row(migration: Migration, digits: int | None, now: datetime | None) -> output.Row:
    asked = migration.requested_at
    cells = (
        words.safe(migration.id)[:digits],
        words.safe(migration.vm),
        words.place(migration.source_site, migration.source_host),
        words.place(migration.destination_site, migration.destination_host),
        words.state(migration.state),
        f"{words.age(asked, now)} ago" if now else words.moment(asked) or "",
    )
    return output.Row(cells, words.safe(migration.reason), _STYLES.get(migration.state, ""))


def _telling(ids: Sequence[str]) -> int:
    """How many characters are needed to tell these ids apart."""
    longest = max((len(each) for each in ids), default=_SHORTEST_ID)
    for digits in range(_SHORTEST_ID, longest):
        if len({each[:digits] for each in ids}) == len(set(ids)):
            return digits
    return longest
