"""python -m tests.bench.disk: what the move of a guest that writes its disk without a pause costs, and what the guest feels of it.

    libvirt                  `virsh migrate --p2p --copy-storage-all` over TCP from host to host, in the clear
    libvirt, synchronous     the same with --copy-storage-synchronous-writes: a guest's write waits for the other site
    landbridge               `landbridge migrate`, through both gateways

QEMU calls a disk's copy complete only in a moment in which none of its writes is under way. On a line with a round trip longer
than the time between two of the guest's writes there is no such moment, and the move stays with the disk.

All have the same lab, line (100 Mbit/s, 50 ms) and guest (fresh each time, of the same seed), one after the other. A move that is
not done within the limit is aborted. Time is taken from a command's start to its end, downtime is the longest time that the
guest was not heard around its change of host (it is heard 50 times a second), and bytes are those of all IP packets on the
line, both directions. What the guest writes is its own count, over the seconds before the command and from its start to its
end. Its share is told twice: of all that time, and of the time in which the guest ran. It stands still for its downtime, and
while its QEMU connects to the other site's disk; a write that waits for the line is no standstill. --check goes by the second,
for the first says of a short move little but its downtime. A move is done only if the guest has verified its memory and disk
at its destination.

With --json there is an object for each move, and one for what --check makes of them.

    move       way; end: done, not done (within the limit), not well (the guest, afterwards) or failed (the command);
               total_s, downtime_ms (null if not done), wan_bytes; blocks_per_s_alone, blocks_per_s_moving; still_ms: how
               long the guest stood still in all; share, share_running: of what it writes alone; failure: in words, or null
    verdict    ok; short: a list of sentences
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import click

from gateway.cli import words
from tests.bench.limited import Counter, Outcome, beats_of, by_landbridge, by_libvirt
from tests.bench.move import VERDICT_PATIENCE
from tests.lab.lab import Lab
from tests.lab.settings import GuestSettings, LabError, LabSettings, WanSettings

LINE = WanSettings(rate=100, rtt=50)
GUEST = GuestSettings(memory=256, disk=64, disk_fill=16, disk_rate=100, working_set=32, rate=200, beats=50)
# Seconds: over so many before its move, the guest's writes alone are counted.
ALONE = 5.0
# A guest that was not heard for so long (seconds) stood still: it beats 50 times a second.
STILL = 0.1
# Of what it writes alone, the guest is to write so much while Landbridge moves it, and it runs.
LEAST_SHARE = 0.8
# Columns of the table.
WIDTH = 100


@dataclass(frozen=True)
class Move:
    """One move, or why there is none."""

    type: ClassVar = "move"

    way: str
    end: Literal["done", "not done", "not well", "failed"] = "failed"
    total_s: float | None = None
    downtime_ms: float | None = None
    wan_bytes: int | None = None
    blocks_per_s_alone: float | None = None
    blocks_per_s_moving: float | None = None
    still_ms: float | None = None
    share: float | None = None
    share_running: float | None = None
    failure: str | None = None


# Moving


LIBVIRT, SYNCHRONOUS, LANDBRIDGE = "libvirt", "libvirt, synchronous", "landbridge"
WAYS: Mapping[str, Callable[[Lab, str, float], Outcome]] = {
    LIBVIRT: lambda lab, vm, limit: by_libvirt(lab, vm, GUEST, (), limit),
    SYNCHRONOUS: lambda lab, vm, limit: by_libvirt(lab, vm, GUEST, ("--copy-storage-synchronous-writes",), limit),
    LANDBRIDGE: lambda lab, vm, limit: by_landbridge(lab, vm, ("east", "west"), (), limit),
}


# Measuring


def measurements(name: str, limit: float) -> Iterator[Move]:
    """Each move as it was made, in a lab of this name."""
    lab = Lab(name)
    try:
        lab.down()
        lab.up(LabSettings(direct_lan=True, wan=LINE))
        for number, way in enumerate(WAYS, 1):
            yield measure(lab, way, f"guest{number}", limit)
    finally:
        lab.down()


def measure(lab: Lab, way: str, vm: str, limit: float) -> Move:
    """Start a guest, move it, and hear its verdict. What goes wrong is told in the result."""
    try:
        lab.guests.start(vm, "east-1", GUEST)
        lab.guests.check(vm, wait=VERDICT_PATIENCE)  # until it has been once through all, so that all is as it stays
        return _move(lab, way, vm, limit)
    except (LabError, subprocess.TimeoutExpired) as error:
        return Move(way, failure=" ".join(str(error).split()))
    finally:
        lab.guests.stop(vm)


def _move(lab: Lab, way: str, vm: str, limit: float) -> Move:
    began = time.monotonic()
    outcome = WAYS[way](lab, vm, limit)
    beats = beats_of(lab.guests.log(vm).read_text(errors="replace"), Counter.BLOCKS_WRITTEN)
    measured = with_writes(Move(way, wan_bytes=outcome.wan_bytes), beats, began, began + outcome.seconds)
    if not outcome.completed:
        verdict = lab.guests.check(vm)
        failure = "; ".join([f"not done after {limit:g} s", *([] if verdict.good else [verdict.sentence()])])
        return replace(measured, end="not done", failure=failure)
    verdict = lab.guests.check(vm, wait=VERDICT_PATIENCE, at="west-1")
    if not verdict.good or verdict.host != "west-1" or verdict.last_move_pause_ms is None:
        return replace(measured, end="not well", failure=f"the guest is not well: {verdict.sentence()}")
    downtime = round(verdict.last_move_pause_ms)
    return replace(measured, end="done", total_s=round(outcome.seconds, 2), downtime_ms=downtime)


def with_writes(move: Move, beats: list[tuple[float, int]], began: float, ended: float) -> Move:
    """A move with what its guest wrote. One that is silent for good writes nothing, and does not stand still."""

    def rate(since: float, until: float) -> float:
        first, last = (max((blocks for at, blocks in beats if at <= by), default=0) for by in (since, until))
        return (last - first) / (until - since)

    gaps = [(max(one, began), min(next_, ended)) for (one, _), (next_, _) in pairwise(beats) if next_ - one > STILL]
    still = sum(max(0.0, until - since) for since, until in gaps)
    alone, moving = rate(began - ALONE, began), rate(began, ended)
    share = moving / alone if alone else None
    return replace(
        move,
        blocks_per_s_alone=round(alone, 1),
        blocks_per_s_moving=round(moving, 1),
        still_ms=round(1000 * still),
        share=None if share is None else round(share, 3),
        share_running=None if share is None else round(share * (ended - began) / (ended - began - still), 3),
    )


# Judging and telling


def shortfalls(moves: Mapping[str, Move]) -> list[str]:
    """What is not as it is to be, in sentences."""
    ours = moves[LANDBRIDGE]
    if ours.end != "done" or ours.total_s is None:
        return [f"{LANDBRIDGE}: {ours.failure}"]
    short = []
    if ours.share_running is None or ours.share_running < LEAST_SHARE:
        short.append(
            f"{LANDBRIDGE}: while it ran, the guest wrote {_percent(ours.share_running)} of what it writes alone"
        )
    for way, other in moves.items():
        if other.end == "failed":
            short.append(f"{way}: nothing was measured to compare with: {other.failure}")
        elif way != LANDBRIDGE and other.total_s is not None and ours.total_s >= other.total_s:
            short.append(f"{LANDBRIDGE}: took {ours.total_s:.1f} s, and {way} {other.total_s:.1f} s")
    return short


def as_object(move: Move) -> dict[str, Any]:
    """What --json prints."""
    return {"type": move.type, **asdict(move)}


HEADING = f"{'':<24}{'time':>9}{'downtime':>12}{'on the WAN':>13}{'blocks/s alone':>17}{'moving':>8}{'share':>7}{'running':>9}"


def as_lines(move: Move) -> list[str]:
    """A row of the table, and why there is not more of it."""
    cells: tuple[tuple[int, float | None, Callable[[float], str]], ...] = (
        (9, move.total_s, lambda value: f"{value:.1f} s"),
        (12, move.downtime_ms, lambda value: f"{value:.0f} ms"),
        (13, move.wan_bytes, lambda value: words.size(round(value))),
        (17, move.blocks_per_s_alone, lambda value: f"{value:.0f}"),
        (8, move.blocks_per_s_moving, lambda value: f"{value:.0f}"),
        (7, move.share, _percent),
        (9, move.share_running, _percent),
    )
    line = "".join(f"{'-' if value is None else say(value):>{width}}" for width, value, say in cells)
    why = textwrap.wrap(move.failure or "", WIDTH, initial_indent="    ", subsequent_indent="    ")
    return [f"{move.way:<24}{line}", *why]


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.0f} %"


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option(
    "--limit", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds that a move may take."
)
@click.option("--name", default="disk", show_default=True, help="Which lab to build for it.")
@click.option("--json", "as_json", is_flag=True, help="One object per line: each move, then the verdict.")
@click.option(
    "--check",
    is_flag=True,
    help=f"Exit with 1 unless Landbridge's move is done, before each of libvirt's that is,"
    f" and its guest has written {_percent(LEAST_SHARE)} of what it writes alone while it ran.",
)
def main(limit: float, name: str, *, as_json: bool, check: bool) -> None:
    """Measure and tell."""
    if not as_json:
        click.echo(f"{LINE.rate:g} Mbit/s, {LINE.rtt:g} ms; {_guest()}; {limit:g} s each\n{HEADING}")
    moves: dict[str, Move] = {}
    for move in measurements(name, limit):
        moves[move.way] = move
        click.echo(json.dumps(as_object(move)) if as_json else "\n".join(as_lines(move)))
    short = shortfalls(moves)
    if as_json:
        click.echo(json.dumps({"type": "verdict", "ok": not short, "short": short}))
    else:
        click.echo("\n".join(f"falls short: {sentence}" for sentence in short) or "ok")
    if check and short:
        sys.exit(1)


def _guest() -> str:
    return f"{GUEST.memory} MiB of memory, {GUEST.disk} MiB disk, {GUEST.disk_rate} blocks/s asked for"


if __name__ == "__main__":
    try:
        main()
    except (LabError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(1)
