"""The live view of a migration on a terminal, drawn over itself at a fixed rate and gone at the end.

    web-01: fra/host-a to ams/host-b                              copying memory
    disks   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 100 %   20.0 GiB done        0 B left
    memory  ━━━━━━━━━━━━╺━━━━━━━━━━━━━━━  44 %    1.8 GiB done    2.2 GiB left
    pass 2   rate 118 MiB/s   dirty 12.1 MiB/s        elapsed 1:23   ETA 0:18

While the hosts do not hear each other, the last line has no rates, which would be those of before, but this below it:

    pass 2                                                        elapsed 2:05
    WAN to site ams down 42 s, migration holds, guest runs on at fra

It is drawn at 4 Hz by a thread of rich, so that the clock runs while the gateway is silent.
"""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gateway.cli import proofs, savings, words
from gateway.cli.views import heading, outage
from landbridge.v1.types_pb2 import (
    MIGRATION_STATE_COPYING_DISKS,
    MIGRATION_STATE_COPYING_MEMORY,
    MIGRATION_STATE_VERIFYING,
    Migration,
    Progress,
)

_FRAMES_PER_S = 4
_WIDTH = 100  # wider is not easier to read
_COPYING = frozenset({MIGRATION_STATE_COPYING_DISKS, MIGRATION_STATE_COPYING_MEMORY})


class LiveView:
    """Shows one migration on `console`."""

    def __init__(self, console: Console) -> None:
        # Written by the watching thread, read by the drawing one: each is one reference, replaced as a whole.
        self._migration: Migration | None = None
        self._shown_at = 0.0
        self._trouble = ""
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=_FRAMES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._width = min(_WIDTH, console.width)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, migration: Migration) -> None:
        """From the next frame on."""
        self._shown_at = time.monotonic()
        self._migration = migration

    def note(self, sentence: str, *, trouble: bool) -> None:
        """Trouble stands below the bars until it is over."""
        self._trouble = words.safe(sentence) if trouble else ""

    def tell(self, lines: Iterable[str]) -> None:
        """Above what is drawn, where it stays."""
        for each in lines:
            self._live.console.print(Text(words.safe(each)))

    def render(self) -> RenderableType:
        """One frame."""
        migration = self._migration
        if migration is None:
            return Text("")
        since_shown_ms = int((time.monotonic() - self._shown_at) * 1000)
        lines: list[RenderableType] = [
            _spread(
                Text(heading(migration), style="bold"),
                Text(words.state(migration.state), style="cyan"),
                self._width,
            ),
            *_bars(migration.progress, self._width),
            _spread(_speed(migration), _time(migration, since_shown_ms), self._width),
        ]
        sentences = (
            outage(migration) or words.safe(migration.reason),
            _proof(migration),
            _doubt(migration),
            _throttle(migration),
            self._trouble,
        )
        if migration.summary.savings:
            saved = Text(savings.sentence(migration.summary.savings), style="green")
            saved.truncate(self._width, overflow="ellipsis")
            lines.append(saved)
        lines.extend(Text(sentence, style="yellow") for sentence in sentences if sentence)
        limit = f"Limited to {words.limit(migration.limit)}. " if migration.limit else ""
        lines.append(Text(f"{limit}Ctrl-C detaches; the migration goes on.", style="dim"))
        return Group(*lines)


def _spread(left: Text, right: Text, width: int) -> Text:
    """Both on one line, at its two ends; the left is cut where it must be."""
    left.truncate(max(1, width - right.cell_len - 2), overflow="ellipsis", pad=True)
    return Text.assemble(left, " " * max(1, width - right.cell_len - left.cell_len), right)


def _bars(progress: Progress, width: int) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    grid.width = width
    grid.add_column(width=6)
    grid.add_column(ratio=1)
    grid.add_column(width=5, justify="right")
    grid.add_column(width=13, justify="right", no_wrap=True)
    grid.add_column(width=13, justify="right", no_wrap=True)
    for name, total, remaining in (
        ("disks", progress.disk_total, progress.disk_remaining),
        ("memory", progress.memory_total, progress.memory_remaining),
    ):
        if total:
            done = max(0, total - remaining)
            grid.add_row(
                name,
                ProgressBar(total=total, completed=done, complete_style="cyan", finished_style="green"),
                f"{words.percent(done, total)} %",
                f"{words.size(done)} done",
                f"{words.size(remaining)} left",
            )
    return [grid] if grid.row_count else []


def _speed(migration: Migration) -> Text:
    progress = migration.progress
    is_telling = not outage(migration)
    parts = [f"rate {words.rate(progress.rate)}"] if progress.rate and is_telling else []
    if migration.state == MIGRATION_STATE_COPYING_MEMORY:
        parts = [f"pass {progress.iteration}", *parts]
        if is_telling:
            parts.append(f"dirty {words.rate(progress.dirty_rate)}")
    return Text("   ".join(parts))


def _time(migration: Migration, since_shown_ms: int) -> Text:
    progress = migration.progress
    parts = [f"elapsed {words.clock(progress.elapsed_ms + since_shown_ms)}"]
    if progress.HasField("eta_ms") and migration.state in _COPYING and not outage(migration):
        parts.append(f"ETA {words.clock(max(0, progress.eta_ms - since_shown_ms))}")
    return Text("   ".join(parts))


def _doubt(migration: Migration) -> str:
    progress = migration.progress
    if (
        migration.state == MIGRATION_STATE_COPYING_MEMORY
        and progress.HasField("converges")
        and not progress.converges
        and not outage(migration)
    ):
        return "The guest dirties memory faster than it can be sent: at these rates it does not converge."
    return ""


def _proof(migration: Migration) -> str:
    if migration.state != MIGRATION_STATE_VERIFYING:
        return ""
    destination = words.place(migration.destination_site, migration.destination_host)
    return f"The VM runs at {destination}; its disks are compared: {proofs.progress(migration.proof)}."


def _throttle(migration: Migration) -> str:
    if migration.state != MIGRATION_STATE_COPYING_MEMORY or not migration.progress.throttle:
        return ""
    return f"{migration.progress.throttle} % of the guest's CPU time are taken away, so that its memory converges."
