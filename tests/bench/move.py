"""python -m tests.bench.move: what a guest's move costs through Landbridge, beside the same move by libvirt alone.

    libvirt       `virsh migrate --p2p` over TCP from host to host, in the clear: both sites' networks are routed
    landbridge    `landbridge migrate`, through both gateways, encrypted and authenticated

Both have the same lab, line and guest (fresh each time, of the same seed), one after the other. Each command's time is taken
from its start to its end, downtime is the longest time that the guest was not heard around its change of host, and bytes are
those of all IP packets on the line, both directions. A figure counts only if the guest has verified its memory and disk.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import click

from gateway.cli import words
from tests.lab.lab import Lab, name_of
from tests.lab.network import node
from tests.lab.settings import GuestSettings, LabError, LabSettings, WanSettings

GUEST = GuestSettings()
# Seconds.
MOVE_PATIENCE = 1800.0
# What may wait on the way while the guest stands still.
QUEUES_MS = 50.0
VERDICT_PATIENCE = 90.0


@dataclass(frozen=True)
class Figures:
    """One move, or the medians of several."""

    total_s: float
    downtime_ms: float
    wan_bytes: float


def by_libvirt(lab: Lab, vm: str) -> None:
    """Move a guest from east-1 to west-1 without Landbridge, as its documentation tells to with local disks."""
    destination = node("west-1").lan
    create = ["vol-create-as", "default", f"{vm}.qcow2", f"{GUEST.disk}M", "--allocation", "0", "--format", "qcow2"]
    lab.hosts["west-1"].virsh(*create)
    lab.hosts["east-1"].virsh(
        *("migrate", "--live", "--p2p", "--persistent", "--copy-storage-all", vm, f"qemu+tcp://{destination}/system"),
        *("--migrateuri", f"tcp://{destination}", "--disks-uri", f"tcp://{destination}:49999"),
        timeout=MOVE_PATIENCE,
    )


def by_landbridge(lab: Lab, vm: str) -> None:
    """Move a guest from east-1 to west-1."""
    argv = ["migrate", vm, "--to", "west/west-1"]
    done = lab.landbridge("east", *argv, timeout=MOVE_PATIENCE)
    if done.returncode != 0:
        raise LabError(f"`landbridge {shlex.join(argv)}` failed: {done.stderr.strip()}")


WAYS: Mapping[str, Callable[[Lab, str], None]] = {"libvirt": by_libvirt, "landbridge": by_landbridge}


def measure(lab: Lab, way: str, vm: str) -> Figures:
    """Start a guest, move it, and hear its verdict. Raises LabError if that is not good. No gateway has seen its pages before."""
    lab.product.forget_pages()
    lab.guests.start(vm, "east-1", GUEST)
    lab.guests.check(vm, wait=VERDICT_PATIENCE)  # until it has been once through its memory, so that all is as it stays
    carried, began = lab.wan.bytes_carried(), time.monotonic()
    WAYS[way](lab, vm)
    total_s, carried = time.monotonic() - began, lab.wan.bytes_carried() - carried
    verdict = lab.guests.check(vm, wait=VERDICT_PATIENCE, at="west-1")
    if not verdict.good or verdict.host != "west-1" or verdict.last_move_pause_ms is None:
        raise LabError(f"after its move by {way}, the guest is not well: {verdict.sentence()}")
    lab.guests.stop(vm)
    return Figures(round(total_s, 2), round(verdict.last_move_pause_ms), carried)


def median(figures: list[Figures]) -> Figures:
    """The median of each figure by itself."""
    rows = [asdict(each) for each in figures]
    return Figures(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


def ratios(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Landbridge's figures as multiples of libvirt's."""
    ours, plain = asdict(figures["landbridge"]), asdict(figures["libvirt"])
    return {name: round(ours[name] / plain[name], 3) for name in ours}


def table(figures: Mapping[str, Figures]) -> str:
    """Both ways side by side."""
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("total time", "total_s", lambda value: f"{value:.1f} s"),
        ("downtime, heard outside", "downtime_ms", lambda value: f"{value:.0f} ms"),
        ("bytes on the WAN", "wan_bytes", lambda value: words.size(round(value))),
    )
    ratio = ratios(figures)
    lines = [f"{'':<26}" + "".join(f"{cell:>14}" for cell in (*figures, "ratio"))]
    for name, field, say in shown:
        cells = [say(getattr(figures[way], field)) for way in figures]
        lines.append(f"{name:<26}" + "".join(f"{cell:>14}" for cell in (*cells, f"{ratio[field]:.2f}")))
    return "\n".join(lines)


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option("--rate", default=200.0, show_default=True, help="Mbit/s of the WAN per direction; 0: unlimited.")
@click.option("--rtt", default=40.0, show_default=True, help="ms.")
@click.option("--loss", default=0.0, show_default=True, help="Percent.")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1), help="Moves each way; medians are told.")
@click.option("--json", "as_json", is_flag=True, help="One object per line: each move, then the medians.")
@click.option("--check", is_flag=True, help="Exit with 1 if the downtime is longer than it may be.")
def main(rate: float, rtt: float, loss: float, runs: int, *, as_json: bool, check: bool) -> None:
    """Measure and tell."""
    settings = {"rate_mbit_s": rate, "rtt_ms": rtt, "loss_percent": loss}
    lab = Lab(name_of("b"))
    measured: dict[str, list[Figures]] = {way: [] for way in WAYS}
    if not as_json:
        click.echo(f"{rate:g} Mbit/s, {rtt:g} ms, {loss:g} % loss; {_guest()}; {runs} run{'s' * (runs > 1)} each way")
    try:
        lab.down()
        lab.up(LabSettings(direct_lan=True, wan=WanSettings(rate, rtt, loss)))
        for run in range(1, runs + 1):
            for way, figures in measured.items():
                figures.append(measure(lab, way, f"{way}{run}"))
                if as_json:
                    line = {"type": "move", "way": way, "run": run, **settings, **asdict(figures[-1])}
                    click.echo(json.dumps(line))
    finally:
        lab.down()
    medians = {way: median(figures) for way, figures in measured.items()}
    if as_json:
        closing = {way: asdict(figures) for way, figures in medians.items()}
        click.echo(
            json.dumps(
                {
                    "type": "medians",
                    **settings,
                    "runs": runs,
                    **closing,
                    "ratio": ratios(medians),
                    "allowed_downtime_ms": allowed_downtime(medians, rtt),
                }
            )
        )
    else:
        click.echo(table(medians))
        click.echo(f"{'downtime may be':<40}{f'{allowed_downtime(medians, rtt):.0f} ms':>14}")
    if check and medians["landbridge"].downtime_ms > allowed_downtime(medians, rtt):
        sys.exit(1)


def allowed_downtime(figures: Mapping[str, Figures], rtt: float) -> float:
    """Milliseconds: as long as libvirt's own, one round trip for the activation, and what the gateways may queue."""
    return figures["libvirt"].downtime_ms + rtt + QUEUES_MS


def _guest() -> str:
    return (
        f"{GUEST.memory} MiB of memory, {GUEST.disk} MiB disk,"
        f" {GUEST.rate} pages/s rewritten in {GUEST.working_set} MiB"
    )


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(1)
