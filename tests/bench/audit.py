"""python -m tests.bench.audit: how quickly the audit log takes entries for good, and how quickly it is verified.

    append    so many callers at once, each waiting for its entry to be durable before it brings the next: entries per second, and
              how long one waits (the median, and 99 of 100)
    grown     one caller, in logs of 1,000, 100,000 and 1,000,000 entries: an append must not take longer in a large log
    verify    the whole recipe, every entry and every tile of such logs; and the time to open one for writing

Each log is made anew in --directory, on the disk that is to be measured; by default where temporary files are.

With --json each row is an object, whose `type` is the section. `ok`: whether it meets `target`, where there is one.

    append    callers, entries_per_s, median_ms, slowest_ms
    grown     entries, median_ms, slowest_ms
    verify    entries, verify_s, entries_per_s, open_ms
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import click

from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from tests.unit.audit_logs import BRU, entry

CALLERS = (1, 16, 256, 1024)
SIZES = (1_000, 100_000, 1_000_000)
APPENDS = 20_000
# The fewest callers that the target is for: it is one for batches.
BATCH = 256
# A log that is a thousand times as large may take this many times as long.
MOST_GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class Append:
    """Appends by some callers at once."""

    type: ClassVar[str] = "append"
    callers: int
    entries_per_s: float
    median_ms: float
    slowest_ms: float

    @property
    def target(self) -> float | None:
        """Entries per second, at least."""
        return 5000.0 if self.callers >= BATCH else None

    @property
    def ok(self) -> bool:
        """Whether it is met."""
        return self.target is None or self.entries_per_s >= self.target

    def line(self) -> str:
        """For people."""
        return (
            f"append   {self.callers:>9,} callers   {self.entries_per_s:>9,.0f} entries/s   "
            f"median {self.median_ms:7.2f} ms   99 % {self.slowest_ms:7.2f} ms"
        )


@dataclass(frozen=True, slots=True)
class Grown:
    """Appends by one caller to a log of some size; `target` is what they may take, from the smallest log's."""

    type: ClassVar[str] = "grown"
    entries: int
    median_ms: float
    slowest_ms: float
    target: float | None

    @property
    def ok(self) -> bool:
        """Whether it is met."""
        return self.target is None or self.median_ms <= self.target

    def line(self) -> str:
        """For people."""
        return (
            f"grown    {self.entries:>9,} entries   {'':>19}   "
            f"median {self.median_ms:7.2f} ms   99 % {self.slowest_ms:7.2f} ms"
        )


@dataclass(frozen=True, slots=True)
class Verify:
    """A verification of a whole log."""

    type: ClassVar[str] = "verify"
    entries: int
    verify_s: float
    open_ms: float
    target: ClassVar[float | None] = 10_000.0

    @property
    def entries_per_s(self) -> float:
        """How quickly it goes."""
        return self.entries / self.verify_s

    @property
    def ok(self) -> bool:
        """Whether that is quick enough."""
        return self.target is None or self.entries_per_s >= self.target

    def line(self) -> str:
        """For people."""
        return (
            f"verify   {self.entries:>9,} entries   {self.entries_per_s:>9,.0f} entries/s   "
            f"in {self.verify_s:11.2f} s    open {self.open_ms:7.2f} ms"
        )


Row = Append | Grown | Verify


def appended(room: Path) -> Iterator[Row]:
    """How many callers at once get how much done."""
    for callers in CALLERS:
        count = APPENDS if callers >= BATCH else APPENDS // 10
        took, waits = asyncio.run(_append(room / f"callers-{callers}", callers, count))
        yield Append(callers, count / took, statistics.median(waits), statistics.quantiles(waits, n=100)[98])


async def _append(directory: Path, callers: int, count: int) -> tuple[float, list[float]]:
    """How long it all took, in seconds, and how long each waited, in milliseconds."""
    journal = await Journal.open(directory, BRU)
    entries = iter([entry(number) for number in range(count)])
    waits: list[float] = []

    async def call() -> None:
        for each in entries:
            begun = time.perf_counter()
            await journal.append(each)
            waits.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    took = time.perf_counter() - begun
    await journal.close()
    return took, waits


def make(directory: Path, size: int) -> Path:
    """A log of `size` valid entries, made quickly: they differ in what an index makes different."""
    storage = Storage.open(directory, BRU)
    before, after = entry(0).encode(BRU, 0).split(b'"sequence":0')
    for start in range(0, size, 10_000):
        group = [b'%s"sequence":%d%s' % (before, number, after) for number in range(start, min(start + 10_000, size))]
        storage.commit(group)
    storage.close()
    return directory


def verified(room: Path, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Logs of these sizes: opened, verified, and appended to."""
    first: float | None = None
    for size in sizes:
        directory = make(room / f"entries-{size}", size)
        begun = time.perf_counter()
        Storage.open(directory, BRU).close()
        opened = time.perf_counter() - begun
        begun = time.perf_counter()
        report = verify(Directory(directory))
        took = time.perf_counter() - begun
        if not report.is_good or report.entries != size:
            raise click.ClickException(f"the log of {size} entries does not verify: {report.findings[:1]}")
        yield Verify(size, took, opened * 1000)
        _, waits = asyncio.run(_append(directory, 1, 300))
        median = statistics.median(waits)
        yield Grown(size, median, statistics.quantiles(waits, n=100)[98], first and first * MOST_GROWTH)
        first = first or median


def as_object(row: Row) -> dict[str, object]:
    """What --json prints."""
    speed = {"entries_per_s": round(row.entries_per_s, 1)} if isinstance(row, Verify) else {}
    figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(row).items()}
    return {"type": row.type, **figures, **speed, "target": row.target, "ok": row.ok}


@click.command()
@click.option("--quick", is_flag=True, help="Leave out the log of 1,000,000 entries.")
@click.option("--directory", type=click.Path(path_type=Path, exists=True), help="Where to make the logs.")
@click.option("--json", "as_json", is_flag=True, help="One object per line and row.")
@click.option("--check", is_flag=True, help="Exit with 1 where a row falls short of its target.")
def main(directory: Path | None, *, quick: bool, as_json: bool, check: bool) -> None:
    """Measure the audit log."""
    short = False
    with tempfile.TemporaryDirectory(dir=directory, prefix="audit-") as room:
        for rows in (appended(Path(room)), verified(Path(room), SIZES[:-1] if quick else SIZES)):
            for row in rows:
                short |= not row.ok
                click.echo(
                    json.dumps(as_object(row)) if as_json else f"{row.line()}{'' if row.ok else '   falls short'}"
                )
    if check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
