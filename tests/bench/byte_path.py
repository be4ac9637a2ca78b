"""python -m tests.bench.byte_path: how fast four processes in a row pass bytes on, by the way in which they do it.

    feed -> UNIX socket -> relay -> TLS -> relay -> TLS -> relay -> TLS -> relay -> UNIX socket -> sink

The relays stand for agent, gateway, gateway and agent, on loopback: TLS 1.3 with certificates on both sides. They add nothing, or
in the rows with frames, a header to each; no channel, no acknowledgement. It decides docs/adr/0005: how we move bytes at all.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from tests.bench.plain import tls_chain
from tests.bench.relay import HEADER
from tests.bench.stage import Stage, on_loopback
from tests.bench.transfer import Sink, Transfer

KIB = 1 << 10
MB, GB = 1e6, 1e9
# Seconds that a run may take.
PATIENCE = 120.0
# What all others are compared with. Where the cores are busy with other things too, CPU time is the steadier figure.
REFERENCE = "blocking"
TITLES = ("MB/s", f"of {REFERENCE}", "CPU s per GB", f"of {REFERENCE}", "its dearest process")


@dataclass(frozen=True)
class Way:
    """One way of moving bytes, with the arguments of each of the four relays."""

    name: str
    options: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figures:
    """One run, or the medians of several."""

    mb_per_s: float
    # Of all four relays, and of the dearest of them, in seconds per 10^9 bytes.
    cpu_s_per_gb: float
    worst_cpu_s_per_gb: float


def ways(read: int, buffers: int) -> list[Way]:
    """All that are measured."""
    common = ("--buffers", str(buffers))

    def all_four(*options: str) -> tuple[tuple[str, ...], ...]:
        return ((*common, "--read", str(read), *options),) * 4

    def framed(size: int) -> tuple[tuple[str, ...], ...]:
        # With its header it fills records of TLS (16 KiB), and leaves no crumb for one more.
        payload = str(size - HEADER.size)
        return tuple((*common, "--read", payload, "--frames", each) for each in ("add", "keep", "keep", "strip"))

    plain = [Way(name, all_four("--way", name)) for name in ("streams", "protocol", "blocking", "ready")]
    return [*plain, *(Way(f"ready, frames of {size} KiB", framed(size * KIB)) for size in (64, 128, 256))]


def measure(stage: Stage, sink: Sink, way: Way, total: int) -> Figures:
    """One run."""
    with tls_chain(stage, sink.path, way.options) as chain, Transfer(chain.inlet, sink, total) as transfer:
        seconds = transfer.finish(PATIENCE)
        cpu = [report["cpu_s"] * GB / total for report in chain.reports()]
    return Figures(round(total / seconds / MB, 1), round(sum(cpu), 3), round(max(cpu), 3))


def median(figures: list[Figures]) -> Figures:
    """The median of each figure by itself."""
    rows = [asdict(each) for each in figures]
    return Figures(**{name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]})


def ratios(figures: Figures, reference: Figures | None) -> dict[str, float] | None:
    """Figures as multiples of the reference's; None if that was not measured."""
    if reference is None:
        return None
    plain = asdict(reference)
    return {name: round(value / plain[name], 3) for name, value in asdict(figures).items()}


def line(name: str, figures: Figures, reference: Figures | None) -> str:
    """A row of the table."""
    shown = ratios(figures, reference)
    cells = [f"{figures.mb_per_s:.0f}", f"{figures.cpu_s_per_gb:.2f}", f"{figures.worst_cpu_s_per_gb:.2f}"]
    cells[1:1] = [f"{shown['mb_per_s']:.2f}" if shown else ""]
    cells[3:3] = [f"{shown['cpu_s_per_gb']:.2f}" if shown else ""]
    return f"{name:<26}" + "".join(f"{cell:>{len(title) + 3}}" for title, cell in zip(TITLES, cells, strict=True))


@contextmanager
def loopback() -> Iterator[tuple[Stage, Sink]]:
    """A stage, and the end of every stream on it."""
    with tempfile.TemporaryDirectory(prefix="lb-") as name:
        sink = Sink(Path(name) / "sink.sock")
        try:
            yield on_loopback(Path(name)), sink
        finally:
            sink.close()


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option("--mib", default=1024, show_default=True, help="MiB per run.")
@click.option(
    "--runs", default=3, show_default=True, type=click.IntRange(1), help="Of each way, in turns; medians are told."
)
@click.option("--read", default=256, show_default=True, help="KiB per read, where there are no frames.")
@click.option(
    "--buffers", default=0, show_default=True, help="KiB of SO_SNDBUF and SO_RCVBUF; 0 leaves them to the kernel."
)
@click.option("--only", multiple=True, help="Ways to measure, by the beginning of their names; the default is all.")
@click.option("--json", "as_json", is_flag=True, help="One object per line: each run, then the medians.")
def main(mib: int, runs: int, read: int, buffers: int, only: tuple[str, ...], *, as_json: bool) -> None:
    """Measure and tell."""
    chosen = [way for way in ways(read * KIB, buffers * KIB) if not only or way.name.startswith(only)]
    measured: dict[str, list[Figures]] = {way.name: [] for way in chosen}
    with loopback() as (stage, sink):
        for run in range(1, runs + 1):
            for way in chosen:
                figures = measure(stage, sink, way, mib << 20)
                measured[way.name].append(figures)
                if as_json:
                    click.echo(json.dumps({"type": "run", "way": way.name, "run": run, **asdict(figures)}))
    medians = {name: median(figures) for name, figures in measured.items()}
    reference = medians.get(REFERENCE)
    if not as_json:
        click.echo(f"{mib} MiB per run, {runs} run{'s' * (runs > 1)} each, reads of {read} KiB")
        click.echo(f"{'':<26}" + "".join(f"   {title}" for title in TITLES))
    for name, figures in medians.items():
        if as_json:
            closing = {**asdict(figures), "ratio": ratios(figures, reference)}
            click.echo(json.dumps({"type": "median", "way": name, "runs": runs, **closing}))
        else:
            click.echo(line(name, figures, reference))


if __name__ == "__main__":
    main()
