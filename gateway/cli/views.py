"""How a migration is shown while it goes: as JSON, or in a pipe as lines; for a terminal see `live`."""

import time
from types import TracebackType
from typing import Protocol, Self

import click

from gateway.cli import json_lines, words
from landbridge.v1.types_pb2 import MIGRATION_STATE_COPYING_DISKS, MIGRATION_STATE_COPYING_MEMORY, Migration

# In a pipe, between two lines of the same state.
INTERVAL_S = 2.0


class View(Protocol):
    """Shows one migration; a context manager that leaves the terminal as it was."""

    def show(self, migration: Migration) -> None:
        """The migration has changed."""

    def note(self, sentence: str, *, trouble: bool) -> None:
        """Something about the watching itself: trouble begins, or is over."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Stateless:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to restore."""


class JsonView(_Stateless):
    """Each change is a line; notes go to standard error."""

    def __init__(self) -> None:
        self._last: Migration | None = None

    def show(self, migration: Migration) -> None:
        """A line, unless it would be the same as the one before."""
        if migration != self._last:
            json_lines.write("migration", migration)
        self._last = migration

    def note(self, sentence: str, *, trouble: bool) -> None:  # noqa: ARG002 - programs need not tell them apart
        """Outside of the JSON."""
        click.echo(f"landbridge: {words.safe(sentence)}", err=True)


class PlainView(_Stateless):
    """A line for each change of state or reason, and while copying one every INTERVAL_S at most."""

    def __init__(self) -> None:
        self._said: tuple[int, str] | None = None
        self._said_at = 0.0

    def show(self, migration: Migration) -> None:
        """A line if it is time for one."""
        saying, now = (migration.state, migration.reason), time.monotonic()
        if saying != self._said or now - self._said_at >= INTERVAL_S:
            if self._said is None:
                click.echo(f"{heading(migration)}, migration {words.safe(migration.id)}")
            click.echo(line(migration))
            self._said, self._said_at = saying, now

    def note(self, sentence: str, *, trouble: bool) -> None:  # noqa: ARG002 - a line of its own either way
        """A line of its own."""
        click.echo(words.safe(sentence))


def heading(migration: Migration) -> str:
    """What goes where."""
    source = words.place(migration.source_site, migration.source_host)
    destination = words.place(migration.destination_site, migration.destination_host)
    return f"{words.safe(migration.vm)}: {source} to {destination}"


def line(migration: Migration) -> str:
    """The migration now, on one line."""
    progress = migration.progress
    elapsed_ms = progress.elapsed_ms or migration.summary.total_ms
    parts = [f"{words.clock(elapsed_ms):>7}", words.state(migration.state)]
    for state, total, remaining in (
        (MIGRATION_STATE_COPYING_DISKS, progress.disk_total, progress.disk_remaining),
        (MIGRATION_STATE_COPYING_MEMORY, progress.memory_total, progress.memory_remaining),
    ):
        if migration.state == state and total:
            done = max(0, total - remaining)
            parts.append(f"{words.percent(done, total)} %")
            parts.append(f"{words.size(done)} of {words.size(total)}")
            parts.append(words.rate(progress.rate))
    if migration.state == MIGRATION_STATE_COPYING_MEMORY:
        parts.append(f"dirty {words.rate(progress.dirty_rate)}")
        parts.append(f"pass {progress.iteration}")
    if progress.HasField("eta_ms") and len(parts) > 2:
        parts.append(f"ETA {words.duration(progress.eta_ms)}")
    if migration.reason:
        parts.append(words.safe(migration.reason))
    return "  ".join(parts)
