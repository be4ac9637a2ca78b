"""python -m tests.bench.tunnel: what the way of the bytes costs, and how well it fills a WAN, beside plain alternatives.

    goodput   through our chain of four processes without a WAN limit, on loopback, against four relays (tests.bench.relay) with
              TLS between them and nothing else; both in turns
    link      how much of an emulated WAN (tests/lab) the chain fills, beside one plain TCP stream with BBR, and one with CUBIC,
              from gateway to gateway
    fault     what comes out while one of the tunnel's links is blackholed, or stalls, which the lab does to the connection that carries
              most: before, in the lowest second of FAULT_SECONDS with the fault, and after them, when another link has taken its place
    memory    the most resident memory of each of the four processes during a long transfer at a long round trip

One stream of random bytes each, as a channel of kind ram. What is measured comes out of the far end: bytes of the stream, without
any header. A link's figures are taken after WARM_UP seconds, its chain is started anew for each cell.

What a link can carry (`capacity`): the lab's WAN counts IP packets, of at most 1500 bytes. Of these, 20 are IP's header and 32
TCP's with its timestamps, which leaves 1448. A packet that is lost was on the line before, so of the rest a share of `loss` is
gone. Frames and TLS are ours to answer for, and not taken off.

With --json each row is an object, whose `type` is the section. `ok`: whether it meets `target`; `failure`: why the chain could not
be measured, else null (its figures are null then).

    goodput   chain_mb_per_s, plain_mb_per_s, ratio, chain_cpu_s_per_gb, plain_cpu_s_per_gb
    link      rate_mbit_s, rtt_ms, loss_percent, capacity_mbit_s; shares of that: chain, bbr, cubic
    fault     rate_mbit_s, rtt_ms, fault; Mbit/s: before_mbit_s, lowest_mbit_s, after_mbit_s; shares of before: lowest, after
    memory    rate_mbit_s (0: unlimited), rtt_ms, process, peak_mib

A second begins every tenth of one. A row of `fault` is ok if the lowest share meets `target`, and the one after it AFTER_TARGET.
MB and GB are powers of ten, MiB of two.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import click

from tests.bench.byte_path import GB, MB, loopback
from tests.bench.chain import Chain, chain
from tests.bench.plain import Relays, tcp_stream, tls_chain
from tests.bench.stage import Stage, in_lab
from tests.bench.transfer import Sink, Transfer
from tests.lab.lab import Lab
from tests.lab.settings import LabError, LabSettings, WanSettings

MTU, HEADERS = 1500, 20 + 32
MEMORY_RTT = 100.0
# Of the plain relay.
GOODPUT_TARGET = 0.8
# Of what the link can carry.
LINK_TARGET = 0.9
MEMORY_TARGET = 256.0
# Of what came out before a fault: in its lowest second, and when it is over.
FAULT_TARGET = 0.667
AFTER_TARGET = 0.9
FAULT_RTT = 20.0
# Seconds: longer than a link may be silent, and another one takes to be dialled and to find its rate.
FAULT_SECONDS = 8.0
# Seconds: until TCP has found the line's rate, and for a stream to end once no more is sent.
WARM_UP = 3.0
PATIENCE = 120.0


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    runs: int
    goodput_mib: int
    link_seconds: float
    rtts: tuple[float, ...]
    losses: tuple[float, ...]
    memory_mib: int


FULL = Plan(3, 1024, 10.0, (20.0, 50.0, 100.0), (0.0, 0.1, 1.0), 1024)
QUICK = Plan(1, 512, 4.0, (20.0, 100.0), (0.0, 1.0), 256)


# Rows


@dataclass(frozen=True)
class Goodput:
    """Our chain against the plain relay."""

    type: ClassVar = "goodput"
    title: ClassVar = "goodput without a WAN limit, MB/s"
    columns: ClassVar = (("chain", 10), ("plain", 10), ("ratio", 10), ("CPU s per GB: chain", 22), ("plain", 10))
    target: ClassVar = GOODPUT_TARGET

    chain_mb_per_s: float | None
    plain_mb_per_s: float
    ratio: float | None
    chain_cpu_s_per_gb: float | None
    plain_cpu_s_per_gb: float
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.ratio is not None and self.ratio >= self.target

    def cells(self) -> list[str]:
        """As the table shows it."""
        rates = [_said(self.chain_mb_per_s, ".0f"), _said(self.plain_mb_per_s, ".0f"), _said(self.ratio, ".2f")]
        return [*rates, _said(self.chain_cpu_s_per_gb, ".2f"), _said(self.plain_cpu_s_per_gb, ".2f")]


@dataclass(frozen=True)
class Link:
    """One cell of RTT and loss."""

    type: ClassVar = "link"
    title: ClassVar = "goodput as a share of what the link can carry"
    columns: ClassVar = (
        ("RTT", 10),
        ("loss", 10),
        ("Mbit/s", 10),
        ("chain", 10),
        ("1 TCP, BBR", 12),
        ("1 TCP, CUBIC", 14),
    )
    target: ClassVar = LINK_TARGET

    rate_mbit_s: float
    rtt_ms: float
    loss_percent: float
    capacity_mbit_s: float
    chain: float | None
    bbr: float
    cubic: float
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.chain is not None and self.chain >= self.target

    def cells(self) -> list[str]:
        """As the table shows it."""
        line = [f"{self.rtt_ms:g} ms", f"{self.loss_percent:g} %", f"{self.capacity_mbit_s:.1f}"]
        return [*line, *(_said(share, ".3f") for share in (self.chain, self.bbr, self.cubic))]


@dataclass(frozen=True)
class Fault:
    """One link of the tunnel fails."""

    type: ClassVar = "fault"
    title: ClassVar = (
        f"goodput in Mbit/s while one link of the tunnel fails, at {FAULT_RTT:g} ms, and then at least {AFTER_TARGET:g}"
    )
    columns: ClassVar = (
        ("fault", 12),
        ("before", 10),
        ("lowest", 10),
        ("after", 10),
        ("share: lowest", 16),
        ("after", 10),
    )
    target: ClassVar = FAULT_TARGET

    rate_mbit_s: float
    rtt_ms: float
    fault: str
    before_mbit_s: float | None
    lowest_mbit_s: float | None
    after_mbit_s: float | None
    lowest: float | None
    after: float | None
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether both targets are met."""
        return self.lowest is not None and self.lowest >= self.target and (self.after or 0.0) >= AFTER_TARGET

    def cells(self) -> list[str]:
        """As the table shows it."""
        rates = (self.before_mbit_s, self.lowest_mbit_s, self.after_mbit_s)
        shares = (self.lowest, self.after)
        return [self.fault, *(_said(rate, ".1f") for rate in rates), *(_said(share, ".3f") for share in shares)]


@dataclass(frozen=True)
class Memory:
    """One process during the transfer."""

    type: ClassVar = "memory"
    title: ClassVar = f"most resident memory at {MEMORY_RTT:g} ms"
    columns: ClassVar = (("process", 22), ("line", 14), ("MiB", 10))
    target: ClassVar = MEMORY_TARGET

    rate_mbit_s: float
    rtt_ms: float
    process: str
    peak_mib: float | None
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.peak_mib is not None and self.peak_mib < self.target

    def cells(self) -> list[str]:
        """As the table shows it."""
        line = f"{self.rate_mbit_s:g} Mbit/s" if self.rate_mbit_s else "no limit"
        return [self.process, line, _said(self.peak_mib, ".0f")]


SECTIONS = ("goodput", "link", "fault", "memory")
Row = Goodput | Link | Fault | Memory


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def capacity(rate_mbit_s: float, loss_percent: float) -> float:
    """Mbit/s of a TCP stream's bytes that a line of this rate can carry at most; see the head of this file."""
    return rate_mbit_s * (MTU - HEADERS) / MTU * (1 - loss_percent / 100)


# Measuring


def goodput(plan: Plan) -> Iterator[Goodput]:
    """One row, of medians; plain and chain in turns, so that what else the machine does hits both."""
    total, failure = plan.goodput_mib << 20, None
    plain: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    with loopback() as (stage, sink):
        for _ in range(plan.runs):
            with tls_chain(stage, sink.path) as relays, Transfer(relays.inlet, sink, total) as transfer:
                seconds = transfer.finish(PATIENCE)
                plain.append((total / seconds / MB, sum(r["cpu_s"] for r in relays.reports()) * GB / total))
            try:
                with chain(stage, sink.path) as started:
                    before = started.cpu_seconds()
                    with Transfer(started.inlet, sink, total) as transfer:
                        seconds = transfer.finish(PATIENCE)
                        ours.append((total / seconds / MB, (started.cpu_seconds() - before) * GB / total))
            except LabError as error:
                failure = str(error)
                break
    rate, cpu = (round(statistics.median(run[i] for run in plain), 2) for i in (0, 1))
    if failure is not None:
        yield Goodput(None, rate, None, None, cpu, failure)
        return
    our_rate, our_cpu = (round(statistics.median(run[i] for run in ours), 2) for i in (0, 1))
    yield Goodput(our_rate, rate, round(our_rate / rate, 3), our_cpu, cpu)


def links(plan: Plan, lab: Lab, stage: Stage, sink: Sink, rate: float) -> Iterator[Link]:
    """A row for each cell."""
    for rtt in plan.rtts:
        for loss in plan.losses:
            lab.set_wan(WanSettings(rate, rtt, loss))
            can = capacity(rate, loss)

            def share(path: AbstractContextManager[Chain | Relays], *, can: float = can) -> float:
                with path as opened, Transfer(opened.inlet, sink) as transfer:
                    time.sleep(WARM_UP)
                    return round(transfer.rate(plan.link_seconds) * 8 / MB / can, 3)

            bbr, cubic = (share(tcp_stream(stage, sink.path, name)) for name in ("bbr", "cubic"))
            try:
                ours, failure = share(chain(stage, sink.path)), None
            except LabError as error:
                ours, failure = None, str(error)
            yield Link(rate, rtt, loss, round(can, 1), ours, bbr, cubic, failure)


def faults(plan: Plan, lab: Lab, stage: Stage, sink: Sink, rate: float) -> Iterator[Fault]:
    """A row for each fault."""
    lab.set_wan(WanSettings(rate, FAULT_RTT))
    near, tunnel = stage.source_gateway.site, stage.destination_gateway.address("tunnel").port
    for name, fail in (("blackholed", lab.wan.block), ("stalled", lab.wan.stall)):
        try:
            with chain(stage, sink.path) as started, Transfer(started.inlet, sink) as transfer:
                time.sleep(WARM_UP)
                before = transfer.rate(plan.link_seconds)
                fail(lab.wan.busiest(near, tunnel))
                lowest = min(transfer.rates(FAULT_SECONDS, 1.0, 0.1))
                after = transfer.rate(plan.link_seconds)
        except LabError as error:
            yield Fault(rate, FAULT_RTT, name, None, None, None, None, None, str(error))
        else:
            was, least, now = (round(each * 8 / MB, 1) for each in (before, lowest, after))
            shares = round(lowest / before, 3), round(after / before, 3)
            yield Fault(rate, FAULT_RTT, name, was, least, now, *shares)
        finally:
            lab.wan.unblock()


def memory(plan: Plan, lab: Lab, stage: Stage, sink: Sink, rate: float) -> Iterator[Memory]:
    """A row for each process, on the line of the links and on one without a limit."""
    for limit in (rate, 0.0):
        lab.set_wan(WanSettings(limit, MEMORY_RTT))
        try:
            with chain(stage, sink.path) as started, Transfer(started.inlet, sink, plan.memory_mib << 20) as transfer:
                transfer.finish(PATIENCE)
                peaks = started.peak_bytes()
        except LabError as error:
            for station in stage.stations:
                yield Memory(limit, MEMORY_RTT, station.title, None, str(error))
        else:
            for process, peak in peaks.items():
                yield Memory(limit, MEMORY_RTT, process, round(peak / (1 << 20), 1))


@contextmanager
def lab_stage(name: str) -> Iterator[tuple[Lab, Stage, Sink]]:
    """A lab's network, its hosts without Landbridge, and the end of every stream in it."""
    lab = Lab(name)
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        sink = Sink(Path(directory) / "sink.sock")
        try:
            lab.down()
            lab.up(LabSettings(), product=False)
            yield lab, in_lab(lab, Path(directory)), sink
        finally:
            sink.close()
            lab.down()


def rows(plan: Plan, sections: tuple[str, ...], rate: float, name: str) -> Iterator[Row]:
    """All rows of the sections, as they are measured."""
    if Goodput.type in sections:
        yield from goodput(plan)
    on_wan: dict[str, Callable[[Plan, Lab, Stage, Sink, float], Iterator[Row]]] = {
        "link": links,
        "fault": faults,
        "memory": memory,
    }
    if wanted := [measure for section, measure in on_wan.items() if section in sections]:
        with lab_stage(name) as (lab, stage, sink):
            for measure in wanted:
                yield from measure(plan, lab, stage, sink, rate)


# Telling


def as_object(row: Row) -> dict[str, object]:
    """What --json prints."""
    return {"type": row.type, **asdict(row), "target": row.target, "ok": row.ok}


def as_line(row: Row) -> str:
    """A line of its section's table."""
    cells = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(row.cells(), row.columns, strict=True))
    return f"{cells}    {'ok' if row.ok else f'falls short: {row.failure}' if row.failure else 'falls short'}"


def heading(row: Row) -> str:
    """The two lines above a section."""
    sense = "below" if isinstance(row, Memory) else "at least"
    return f"{row.title}; target: {sense} {row.target:g}\n" + "".join(f"{name:>{width}}" for name, width in row.columns)


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option(
    "--quick", is_flag=True, help="Fewer and shorter: one run, the corners of RTT and loss, less memory traffic."
)
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="Sections; the default is all.")
@click.option("--rate", default=200.0, show_default=True, help="Mbit/s of the WAN per direction, for all but goodput.")
@click.option("--name", default="tunnel", show_default=True, help="Which lab to build for it.")
@click.option("--json", "as_json", is_flag=True, help="One object per line and row.")
@click.option("--check", is_flag=True, help="Exit with 1 where a row falls short of its target.")
def main(quick: bool, only: tuple[str, ...], rate: float, name: str, *, as_json: bool, check: bool) -> None:
    """Measure and tell."""
    sections = only or SECTIONS
    shown, short = "", 0
    for row in rows(QUICK if quick else FULL, sections, rate, name):
        short += not row.ok
        if as_json:
            click.echo(json.dumps(as_object(row)))
            continue
        if row.type != shown:
            click.echo(("\n" if shown else "") + heading(row))
            shown = row.type
        click.echo(as_line(row))
    if check and short:
        sys.stderr.write(f"bench: {short} row{'s fall' if short > 1 else ' falls'} short of the target\n")
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(1)
