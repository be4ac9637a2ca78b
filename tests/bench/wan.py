"""python -m tests.bench.wan: what a guest's move over a WAN costs through Landbridge, beside QEMU's own ways.

Real guests in the lab, with a line of 100 Mbit/s, 50 ms and 0.05 % loss. The rows, and what each must show, stand in
tests.bench.workloads, the direct methods in tests.bench.direct. Each move has a guest of its own, fresh and of the same seed,
and 150 s; what is not done by then is aborted. Each row begins in a new lab, whose gateways know nothing yet; `second-vm` and
`way-back` go on in that of `page-cache`, which is measured with them.

Times are taken from a command's start to its end. Downtime is the longest time that the guest was not heard around its change of
host; it is heard 50 times a second. Bytes are those of all IP packets on the line, both directions. A move counts only if the
guest has verified, at its destination, its memory, its disk and its files.

Now and then a guest that libvirt and QEMU have moved by themselves is dead at its destination: it falls silent, or its kernel says so.
Then another one is moved in that way, and a third one, for ours is held against its figures; instead of one that Landbridge has moved no
other ever is. With --json each of these moves is told, and the last one counts.

A direct method's figures do not depend on Landbridge: `--only landbridge --against FILE` takes them from a run's --json.

With --json there is an object for each move, and after a row's moves one for the row. `failure`: why there are no figures, or null.

    move    workload, method; completed; total_s, downtime_ms (null if not completed), wan_bytes; pages_per_s: written by the
            guest in the seconds before the move, and pages_per_s_moving: from the command's start to its end; verdict: the
            guest's, in a sentence; failure
    row     workload, title; ok; bounds: a list of {figure, of, ratio, most, ok}, where ratio is Landbridge's figure as a multiple of
            that of `of`, and null if one of them is missing; best_direct: the method that was the fastest, and completed; failure

The table's MiB and GiB are powers of two. All of it takes about 50 minutes, of which Landbridge's moves are 15.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import click

from gateway.cli import words
from tests.bench import direct
from tests.bench.direct import METHODS
from tests.bench.limited import Counter, beats_of, by_landbridge, by_libvirt
from tests.bench.workloads import BEST, LANDBRIDGE, WORKLOADS, Bound, Workload
from tests.lab.lab import Lab
from tests.lab.settings import LabError, LabSettings, WanSettings

LINE = WanSettings(rate=100, rtt=50, loss=0.05)
# Seconds.
LIMIT = 150.0
VERDICT_PATIENCE = 120.0
RATE_WINDOW = 5.0
# Guests that are moved directly, if they are not well afterwards.
MOST_TRIES = 3
NOT_WELL = "the guest is not well"


@dataclass(frozen=True)
class Move:
    """One move, or why there is none."""

    type: ClassVar = "move"

    workload: str
    method: str
    completed: bool = False
    total_s: float | None = None
    downtime_ms: float | None = None
    wan_bytes: int | None = None
    pages_per_s: float | None = None
    pages_per_s_moving: float | None = None
    verdict: str = ""
    failure: str | None = None


Moves = dict[tuple[str, str], Move]


@dataclass(frozen=True)
class Compared:
    """A bound, and what was measured."""

    figure: str
    of: str
    most: float
    ratio: float | None

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.ratio is not None and self.ratio <= self.most


@dataclass(frozen=True)
class Row:
    """What all moves of a workload say."""

    type: ClassVar = "row"

    workload: Workload
    bounds: tuple[Compared, ...]
    best_direct: str | None
    failure: str | None

    @property
    def ok(self) -> bool:
        """Whether it shows what it must."""
        return self.failure is None and all(bound.ok for bound in self.bounds)


# Judging


def row_of(workload: Workload, moves: Moves) -> Row:
    """Hold a workload's moves against its bounds."""
    ours = moves.get((workload.name, LANDBRIDGE))
    best = best_direct(workload, moves)
    bounds = tuple(_compare(bound, workload, ours, moves) for bound in workload.bounds)
    if workload.alone and best is None:
        bounds = ()
    return Row(workload, bounds, best.method if best else None, _failure(workload, ours, moves))


def best_direct(workload: Workload, moves: Moves) -> Move | None:
    """The direct method that was the fastest, of those that completed."""
    done = [m for method in METHODS if (m := moves.get((workload.name, method))) and m.completed]
    return min(done, key=lambda move: move.total_s or 0.0, default=None)


def _compare(bound: Bound, workload: Workload, ours: Move | None, moves: Moves) -> Compared:
    if bound.of == BEST:
        other = best_direct(workload, moves)
    elif bound.of in WORKLOADS:
        other = moves.get((bound.of, LANDBRIDGE))
    else:
        other = moves.get((workload.name, bound.of))
    return Compared(bound.figure, bound.of, bound.most, ratio(ours, other, bound.figure))


def ratio(ours: Move | None, other: Move | None, figure: str) -> float | None:
    """A figure as a multiple of the other's; None if one of them did not complete."""
    if ours is None or other is None or not (ours.completed and other.completed):
        return None
    return round(float(getattr(ours, figure) / getattr(other, figure)), 3)


def _failure(workload: Workload, ours: Move | None, moves: Moves) -> str | None:
    if ours is None:
        return "not measured through Landbridge"
    if not ours.completed:
        return ours.failure
    if workload.alone:
        for method in workload.direct:
            if (workload.name, method) not in moves:
                return f"{method} was not measured"
    return None


# Measuring


class Bench:
    """Moves guests in one lab, and remembers when each arrived."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._arrived: dict[str, float] = {}

    def measure(self, workload: Workload, method: str, *, stay: bool = False) -> Move:
        """One move; with `stay`, the guest goes on at its destination. What goes wrong is told in the result."""
        vm = f"{workload.after if workload.back else workload.name}-{method}"
        site, other = ("west", "east") if workload.back else ("east", "west")
        empty = Move(workload.name, method)
        try:
            if workload.back:
                self._wait_for_the_way_back(vm, workload.back)
            else:
                guest = replace(workload.guest, qemu=direct.QEMU.get(method, ""))
                self._lab.guests.start(vm, f"{site}-1", guest)
                self._lab.guests.check(
                    vm, wait=VERDICT_PATIENCE
                )  # until it has been once through all, as it then stays
            move = self._move(empty, workload, vm, site, other)
        except (LabError, subprocess.TimeoutExpired) as error:
            move = replace(empty, failure=" ".join(str(error).split()))
        finally:
            if not stay:
                self._lab.guests.stop(vm)
        return move

    def _wait_for_the_way_back(self, vm: str, seconds: float) -> None:
        if vm not in self._arrived:
            raise LabError("the guest did not arrive on its way out")
        time.sleep(max(0.0, self._arrived[vm] + seconds - time.monotonic()))

    def _move(self, empty: Move, workload: Workload, vm: str, site: str, other: str) -> Move:
        began, before = time.monotonic(), self._beats(vm)
        if empty.method == LANDBRIDGE:
            outcome = by_landbridge(self._lab, vm, (site, other), workload.policy, LIMIT)
        else:
            outcome = by_libvirt(self._lab, vm, workload.guest, METHODS[empty.method], LIMIT)
        ended = time.monotonic()
        moving = [beat for beat in self._beats(vm) if beat[0] >= began]
        measured = replace(
            empty,
            wan_bytes=outcome.wan_bytes,
            pages_per_s=_rate([beat for beat in before if beat[0] > began - RATE_WINDOW]),
            pages_per_s_moving=_rate([beat for beat in moving if beat[0] <= ended]),
        )
        if not outcome.completed:
            verdict = self._lab.guests.check(vm)
            failure = "; ".join([f"not done after {LIMIT:.0f} s", *verdict.problems])
            return replace(measured, verdict=verdict.sentence(), failure=failure)
        self._arrived[vm] = ended
        verdict = self._lab.guests.check(vm, wait=VERDICT_PATIENCE, at=f"{other}-1")
        if not verdict.good or verdict.host != f"{other}-1" or verdict.last_move_pause_ms is None:
            return replace(measured, verdict=verdict.sentence(), failure=f"{NOT_WELL}: {verdict.sentence()}")
        return replace(
            measured,
            completed=True,
            total_s=round(outcome.seconds, 2),
            downtime_ms=round(verdict.last_move_pause_ms),
            verdict=verdict.sentence(),
        )

    def _beats(self, vm: str) -> list[tuple[float, int]]:
        return beats_of(self._lab.guests.log(vm).read_text(errors="replace"), Counter.PAGES_WRITTEN)


def _rate(beats: list[tuple[float, int]]) -> float | None:
    if len(beats) < 2 or beats[-1][0] == beats[0][0]:
        return None
    return round((beats[-1][1] - beats[0][1]) / (beats[-1][0] - beats[0][0]))


def chosen(names: tuple[str, ...]) -> list[Workload]:
    """The workloads of these names, or all, and those which they follow or are held against, in the order of the table."""
    wanted = set(names or WORKLOADS)
    for name in tuple(wanted):
        workload = WORKLOADS[name]
        wanted |= {other for other in (workload.after, *(b.of for b in workload.bounds)) if other in WORKLOADS}
    return [workload for workload in WORKLOADS.values() if workload.name in wanted]


def measurements(workloads: list[Workload], methods: tuple[str, ...], moves: Moves, name: str) -> Iterator[Move | Row]:
    """Every move as it was made, and every row once its moves are there. `moves`: what is known before, and grows."""
    lab = Lab(name)
    bench = Bench(lab)
    try:
        for workload in workloads:
            if not workload.after:
                lab.down()
                lab.up(LabSettings(direct_lan=True, wan=LINE))
                bench = Bench(lab)
            for method in (*workload.direct, LANDBRIDGE):
                if method not in methods:
                    continue
                stay = method == LANDBRIDGE and any(w.back and w.after == workload.name for w in workloads)
                for _ in range(1 if method == LANDBRIDGE else MOST_TRIES):
                    move = bench.measure(workload, method, stay=stay)
                    moves[workload.name, method] = move
                    yield move
                    if not (move.failure or "").startswith(NOT_WELL):
                        break
            yield row_of(workload, moves)
    finally:
        lab.down()


def read(path: Path) -> Moves:
    """The direct methods' figures of an earlier run's --json. Raises LabError."""
    known = {field.name for field in fields(Move)}
    try:
        objects = [json.loads(line) for line in path.read_text().splitlines()]
        found = [Move(**{k: v for k, v in o.items() if k in known}) for o in objects if o["type"] == Move.type]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LabError(f"{path} is not what --json has printed: {error}") from None
    return {(move.workload, move.method): move for move in found if move.method in direct.METHODS}


# Telling


def as_object(told: Move | Row) -> dict[str, Any]:
    """What --json prints."""
    if isinstance(told, Move):
        return {"type": told.type, **asdict(told)}
    bounds = [{**asdict(bound), "ok": bound.ok} for bound in told.bounds]
    return {
        "type": told.type,
        "workload": told.workload.name,
        "title": told.workload.title,
        "ok": told.ok,
        "bounds": bounds,
        "best_direct": told.best_direct,
        "failure": told.failure,
    }


HEADING = f"{'':<18}{'time':>10}{'downtime':>12}{'on the WAN':>14}{'x time':>9}{'x bytes':>9}    the guest"
FIGURES: Mapping[str, str] = {"total_s": "time", "downtime_ms": "downtime", "wan_bytes": "bytes"}


def as_lines(row: Row, moves: Moves) -> list[str]:
    """A row of the table: its moves, with their ratios to the best direct one, then its bounds."""
    workload = row.workload
    best = best_direct(workload, moves)
    made = [m for method in (*workload.direct, LANDBRIDGE) if (m := moves.get((workload.name, method)))]
    lines = [f"{workload.name}: {workload.title}", *(_line(move, best) for move in made)]
    for bound in row.bounds:
        said = "not known" if bound.ratio is None else f"{bound.ratio:.3f}"
        sense = f"{FIGURES[bound.figure]} {said} of {bound.of}'s, at most {bound.most:g}"
        lines.append(f"    {sense:<54}{'ok' if bound.ok else 'falls short'}")
    if row.failure or not row.bounds:
        lines.append(f"    {'ok' if row.ok else f'falls short: {row.failure}'}")
    return lines


def _line(move: Move, best: Move | None) -> str:
    carried = "-" if move.wan_bytes is None else words.size(move.wan_bytes)
    if not move.completed:
        return f"  {move.method:<16}{'-':>10}{'-':>12}{carried:>14}{'':>18}    {move.failure}"
    ratios = "".join(
        f"{'-' if value is None else f'{value:.2f}':>9}"
        for value in (ratio(move, best, "total_s"), ratio(move, best, "wan_bytes"))
    )
    return f"  {move.method:<16}{f'{move.total_s:.1f} s':>10}{f'{move.downtime_ms:.0f} ms':>12}{carried:>14}{ratios}    well"


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option(
    "--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), help="Rows; the default is all."
)
@click.option("--only", type=click.Choice([LANDBRIDGE, "direct"]), help="Moves through Landbridge only, or the others.")
@click.option(
    "--method", "chosen_methods", multiple=True, type=click.Choice(list(direct.METHODS)), help="Of the direct ones."
)
@click.option("--against", type=click.Path(path_type=Path), help="--json of a run whose direct figures are taken.")
@click.option("--name", default="wan", show_default=True, help="Which lab to build for it.")
@click.option("--json", "as_json", is_flag=True, help="One object per line: each move, each row.")
@click.option("--check", is_flag=True, help="Exit with 1 where a row falls short, or could not be measured.")
def main(
    names: tuple[str, ...],
    only: str | None,
    chosen_methods: tuple[str, ...],
    against: Path | None,
    name: str,
    *,
    as_json: bool,
    check: bool,
) -> None:
    """Measure and tell."""
    by_libvirt = () if only == LANDBRIDGE else chosen_methods or tuple(direct.METHODS)
    methods = (*by_libvirt, *(() if only == "direct" else (LANDBRIDGE,)))
    moves = read(against) if against else {}
    if not as_json:
        click.echo(f"{LINE.rate:g} Mbit/s, {LINE.rtt:g} ms, {LINE.loss:g} % loss\n{HEADING}")
    short = 0
    for told in measurements(chosen(names), methods, moves, name):
        if as_json:
            click.echo(json.dumps(as_object(told)))
        if isinstance(told, Row):
            short += not told.ok
            if not as_json:
                click.echo("\n".join(as_lines(told, moves)))
    if check and short:
        sys.stderr.write(f"bench: {short} row{'s fall' if short > 1 else ' falls'} short\n")
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except (LabError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(1)
