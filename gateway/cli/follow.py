"""Following a migration to its end, through restarts of the gateway, and at another one if several are known.

    follow     watch; when no gateway answers any more, say so once, and try again for a bounded time
    to_end     choose how to show it, follow, let Ctrl-C detach, and print the summary

The migration does not depend on who watches: detaching never stops it.
"""

import contextlib
from collections.abc import Iterator
from time import monotonic, sleep

import click

from gateway.cli import estimates, live, output, summary, words
from gateway.cli.views import JsonView, PlainView, View
from landbridge.client import Client
from landbridge.errors import Unreachable
from landbridge.v1.types_pb2 import Migration, Severity

# How long a gateway may be away before we give up; the migration itself has no such bound.
PATIENCE_S = 300.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0

# As a shell says of a program that Ctrl-C ended. Not 0: nothing has completed, and "&&" must not go on.
DETACHED_EXIT = 130


def to_end(gateway: Client, migration: Migration, *, as_json: bool) -> Migration:
    """Show a migration until it has ended, then its summary; exits with 130 if Ctrl-C detaches."""
    try:
        with _view(as_json=as_json) as view:
            ended = follow(gateway, migration, view)
    except KeyboardInterrupt:
        click.echo(detached(migration.id, "\nDetached; the migration goes on."), err=True)
        raise click.exceptions.Exit(DETACHED_EXIT) from None
    if not as_json:
        summary.show(ended)
    return ended


def detached(migration_id: str, sentence: str) -> str:
    """How to come back to a migration that nobody watches."""
    short = words.safe(migration_id)
    return f"{sentence}\n  landbridge watch {short}\n  landbridge cancel {short}"


def follow(gateway: Client, migration: Migration, view: View) -> Migration:
    """Show each change until the end, and return the migration as it ended.

    Unreachable if the gateway stays away for longer than PATIENCE_S.
    """
    view.show(migration)
    away_since: float | None = None
    pause = _FIRST_PAUSE_S
    trouble = f"The gateway at {gateway.target} does not answer"
    while migration.state not in summary.ENDED:
        with contextlib.suppress(Unreachable):
            for latest in gateway.watch(migration.id):
                view.tell(_news(migration, latest))
                migration = latest
                if away_since is not None:
                    view.note("The gateway answers again.", trouble=False)
                    away_since, pause = None, _FIRST_PAUSE_S
                view.show(migration)
        if migration.state in summary.ENDED:
            break
        now = monotonic()
        if away_since is None:
            away_since = now
            view.note(f"{trouble}; the migration goes on. Trying again.", trouble=True)
        elif now - away_since > PATIENCE_S:
            raise Unreachable(
                f"{trouble} for more than {words.duration(round(PATIENCE_S * 1000))}; the migration goes on: "
                f"try `landbridge watch {words.safe(migration.id)}` later."
            )
        sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)
    return migration


def _news(before: Migration, latest: Migration) -> Iterator[str]:
    """The estimate, which is made while the migration begins, and what was found by it."""
    for finding in latest.findings[len(before.findings) :]:
        severity = words.word(Severity.DESCRIPTOR, finding.severity)
        yield f"{severity}: {finding.message}. Remedy: {finding.remedy}"
    if latest.HasField("estimate") and not before.HasField("estimate"):
        yield from (f"{name}: {value}" for name, value in estimates.pairs(latest.estimate))


def _view(*, as_json: bool) -> View:
    if as_json:
        return JsonView()
    console = output.terminal()
    return PlainView() if console is None else live.LiveView(console)
