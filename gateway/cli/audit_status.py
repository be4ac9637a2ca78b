"""`landbridge audit status`: how far a log has been shipped, as its directory says; no gateway is asked.

With --json, a line for each target:

    {"type": "shipping", "target": name, "where": s, "next": n, "size": n, "behind": n, "oldest": t|"", "lost": n,
     "confirmed": t|"", "problem": s, "since": t|""}
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from gateway.audit import files, reading, ship_cursor
from gateway.audit.ship_cursor import Cursor
from gateway.audit.walk import Log
from gateway.cli import arguments, output, words

_COLUMNS = (
    output.Column("TARGET"),
    output.Column("WHERE", cut=True),
    output.Column("SHIPPED", right=True),
    output.Column("BEHIND", right=True),
    output.Column("OLDEST"),
    output.Column("LOST", right=True),
)


@click.command()
@click.argument("place", metavar="DIRECTORY", type=click.Path(path_type=Path))
@arguments.as_json
def status(place: Path, *, as_json: bool) -> None:
    """Show how far a log has been shipped.

    DIRECTORY is that of the log, on its gateway's machine; only the gateway's user may look. SHIPPED is how many entries a
    target has confirmed, BEHIND how many it has not, OLDEST when the first of these was recorded; LOST were pruned before they
    went. A receiver of syslog confirms about every 30 seconds.
    """
    log = files.at(str(place))
    size = reading.head(log).checkpoint.size
    found = [(name, cursor, _oldest(log, cursor, size)) for name, cursor in ship_cursor.all_of(place)]
    if as_json:
        for name, cursor, oldest in found:
            facts = {"size": size, "behind": max(0, size - cursor.next), "oldest": oldest}
            told = dataclasses.asdict(cursor)
            where = told.pop("target")
            click.echo(json.dumps({"type": "shipping", "target": name, "where": where, **told, **facts}))
        return
    output.table(_COLUMNS, [_row(*each, size) for each in found], "The log is not shipped anywhere.")


def _oldest(log: Log, cursor: Cursor, size: int) -> str:
    """When the first entry was recorded that is not confirmed."""
    return next((entry.text("time") for _, entry in reading.entries(log, cursor.next, size)), "")


def _row(name: str, cursor: Cursor, oldest: str, size: int) -> output.Row:
    cells = (
        name,
        words.safe(cursor.target),
        str(cursor.next - cursor.lost),
        str(max(0, size - cursor.next)),
        f"{oldest[:19]}Z" if oldest else "",
        str(cursor.lost) if cursor.lost else "",
    )
    note = f"since {cursor.since[:19]}Z: {words.safe(cursor.problem)}" if cursor.problem else ""
    return output.Row(cells, note, "red" if cursor.problem or cursor.lost else "")
