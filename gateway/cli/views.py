"""How a migration is shown while it goes: as JSON, or in a pipe as lines; for a terminal see `live`."""

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

import click

from gateway.cli import json_lines, proofs, words
from landbridge.v1.types_pb2 import (
    MIGRATION_STATE_ACTIVATING,
    MIGRATION_STATE_COPYING_DISKS,
    MIGRATION_STATE_COPYING_MEMORY,
    MIGRATION_STATE_SWITCHING,
    MIGRATION_STATE_VERIFYING,
    Migration,
)

# In a pipe, between two lines of the same state.
INTERVAL_S = 2.0
# The same while an outage lasts: at first, and at most.
OUTAGE_INTERVAL_S = 10.0
LONGEST_OUTAGE_INTERVAL_S = 60.0

# While the hosts need each other. Later `silent_ms` is but what was known last.
_HOLDING = frozenset({MIGRATION_STATE_COPYING_DISKS, MIGRATION_STATE_COPYING_MEMORY, MIGRATION_STATE_SWITCHING})
_GOING_ON = _HOLDING | {MIGRATION_STATE_ACTIVATING}


class View(Protocol):
    """Shows one migration; a context manager that leaves the terminal as it was."""

    def show(self, migration: Migration) -> None:
        """The migration has changed."""

    def note(self, sentence: str, *, trouble: bool) -> None:
        """Something about the watching itself: trouble begins, or is over."""

    def tell(self, lines: Iterable[str]) -> None:
        """What was found out of the migration since it began, once."""

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

    def tell(self, lines: Iterable[str]) -> None:
        """The migration's own line has it."""


class PlainView(_Stateless):
    """A line for each change of state or reason, and while copying one every INTERVAL_S at most.

    The reason of an outage changes each second. It is said when the outage begins, then ever more seldom; and
    when it is over, that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: tuple[int, str] | None = None
        self._said_at = 0.0
        # During an outage: how long it had lasted when last heard of, and when the next line is due.
        self._silent_ms: int | None = None
        self._pause_s = OUTAGE_INTERVAL_S

    def show(self, migration: Migration) -> None:
        """A line if it is time for one."""
        now = self._clock()
        if self._said is None:
            click.echo(f"{heading(migration)}, migration {words.safe(migration.id)}")
        for text in self._due(migration, now):
            click.echo(text)
            self._said, self._said_at = (migration.state, migration.reason), now

    def _due(self, migration: Migration, now: float) -> list[str]:
        is_new_state = self._said is None or self._said[0] != migration.state
        waited = now - self._said_at
        before, self._silent_ms = self._silent_ms, None
        if outage(migration):
            self._silent_ms = migration.silent_ms
            if before is None or is_new_state:
                self._pause_s = OUTAGE_INTERVAL_S
            elif waited >= self._pause_s:
                self._pause_s = min(self._pause_s * 2, LONGEST_OUTAGE_INTERVAL_S)
            else:
                return []
            return [line(migration)]
        if before is not None and migration.state in _GOING_ON and not migration.HasField("silent_ms"):
            destination = words.place(migration.destination_site, migration.destination_host)
            over = (
                f"{_elapsed(migration)}  {destination} heard again after {words.whole(before)}; the migration goes on"
            )
            return [over, line(migration)] if is_new_state or migration.reason else [over]
        if self._said != (migration.state, migration.reason) or waited >= INTERVAL_S:
            return [line(migration)]
        return []

    def note(self, sentence: str, *, trouble: bool) -> None:  # noqa: ARG002 - a line of its own either way
        """A line of its own."""
        click.echo(words.safe(sentence))

    def tell(self, lines: Iterable[str]) -> None:
        """As they are."""
        for each in lines:
            click.echo(words.safe(each))


def heading(migration: Migration) -> str:
    """What goes where."""
    source = words.place(migration.source_site, migration.source_host)
    destination = words.place(migration.destination_site, migration.destination_host)
    return f"{words.safe(migration.vm)}: {source} to {destination}"


def outage(migration: Migration) -> str:
    """What is known of an outage that the migration waits for the end of; empty if there is none.

    While there is one, the rates and the time left are those of before.
    """
    if migration.state not in _HOLDING or not migration.HasField("silent_ms"):
        return ""
    destination = words.place(migration.destination_site, migration.destination_host)
    return words.safe(migration.reason) or f"{destination} not heard for {words.whole(migration.silent_ms)}"


def line(migration: Migration) -> str:
    """The migration now, on one line."""
    progress = migration.progress
    silence = outage(migration)
    parts = [_elapsed(migration), words.state(migration.state), *_verified(migration)]
    for state, total, remaining in (
        (MIGRATION_STATE_COPYING_DISKS, progress.disk_total, progress.disk_remaining),
        (MIGRATION_STATE_COPYING_MEMORY, progress.memory_total, progress.memory_remaining),
    ):
        if migration.state == state and total:
            done = max(0, total - remaining)
            parts.append(f"{words.percent(done, total)} %")
            parts.append(f"{words.size(done)} of {words.size(total)}")
            if not silence:
                parts.append(words.rate(progress.rate))
    if silence:
        return "  ".join((*parts, silence))
    if migration.state == MIGRATION_STATE_COPYING_MEMORY:
        parts.append(f"dirty {words.rate(progress.dirty_rate)}")
        parts.append(f"pass {progress.iteration}")
        if progress.throttle:
            parts.append(f"throttled {progress.throttle} %")
        if progress.HasField("converges") and not progress.converges:
            parts.append("does not converge")
    if progress.HasField("eta_ms") and len(parts) > 2 and migration.state != MIGRATION_STATE_VERIFYING:
        parts.append(f"ETA {words.duration(progress.eta_ms)}")
    if migration.reason:
        parts.append(words.safe(migration.reason))
    return "  ".join(parts)


def _verified(migration: Migration) -> list[str]:
    return [proofs.progress(migration.proof)] if migration.state == MIGRATION_STATE_VERIFYING else []


def _elapsed(migration: Migration) -> str:
    return f"{words.clock(migration.progress.elapsed_ms or migration.summary.total_ms):>7}"
