"""What the bench of the WAN makes of its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import wan
from tests.bench.direct import METHODS
from tests.bench.wan import NOT_WELL, Move, Moves, Row, as_lines, as_object, best_direct, chosen, read, row_of
from tests.bench.workloads import BEST, LANDBRIDGE, WORKLOADS
from tests.lab.settings import LabError

RATE_1000, RATE_5000, RATE_20000 = (WORKLOADS[f"rate-{rate}"] for rate in (1000, 5000, 20000))


def done(workload: str, method: str, total_s: float, megabytes: float, downtime_ms: float = 100) -> Move:
    """A move that completed."""
    return Move(workload, method, True, total_s, downtime_ms, round(megabytes * 1e6), 1000, 1000, "well")


def aborted(workload: str, method: str) -> Move:
    """A move that took too long."""
    return Move(workload, method, wan_bytes=1_800_000_000, failure="not done after 150 s")


def known(*moves: Move) -> Moves:
    """As the bench keeps them."""
    return {(move.workload, move.method): move for move in moves}


def row(*moves: Move) -> Row:
    """The row of the last move's workload."""
    return row_of(WORKLOADS[moves[-1].workload], known(*moves))


SLOW, FAST = done("rate-1000", "plain", 30, 300), done("rate-1000", "xbzrle", 20, 280)


def test_a_row_within_all_its_bounds_is_ok() -> None:
    assert row(SLOW, FAST, done("rate-1000", LANDBRIDGE, 6.0, 70)).ok


@pytest.mark.parametrize(("total_s", "megabytes"), [(6.1, 70), (6.0, 70.5)])
def test_a_row_beyond_one_of_them_falls_short(total_s: float, megabytes: float) -> None:
    assert not row(SLOW, FAST, done("rate-1000", LANDBRIDGE, total_s, megabytes)).ok


def test_the_best_direct_method_is_the_fastest_that_completed() -> None:
    compressed = done("rate-1000", "multifd-zstd", 10, 77)
    assert best_direct(RATE_1000, known(SLOW, FAST, aborted("rate-1000", "auto-converge"))) == FAST
    assert best_direct(RATE_1000, known(SLOW, FAST, compressed)) == compressed
    assert best_direct(RATE_1000, known(aborted("rate-1000", "plain"))) is None


def test_a_row_is_held_against_the_method_that_its_bound_names() -> None:
    beside = done("rate-5000", "xbzrle", 30, 300, downtime_ms=300), done("rate-5000", "plain", 1, 1, downtime_ms=1)
    assert row(*beside, done("rate-5000", LANDBRIDGE, 9, 60, downtime_ms=300)).ok
    assert not row(*beside, done("rate-5000", LANDBRIDGE, 9, 60, downtime_ms=301)).ok


def test_a_row_is_held_against_another_of_landbridge() -> None:
    first = done("page-cache", LANDBRIDGE, 20, 100)
    assert row(first, done("second-vm", LANDBRIDGE, 5, 50)).ok
    assert not row(first, done("second-vm", LANDBRIDGE, 5, 51)).ok


@pytest.mark.parametrize(
    "moves",
    [
        (SLOW, FAST, aborted("rate-1000", LANDBRIDGE)),
        (done("rate-1000", LANDBRIDGE, 1, 1),),
        (aborted("rate-5000", "xbzrle"), done("rate-5000", LANDBRIDGE, 1, 1)),
        (SLOW, FAST),
        (aborted("page-cache", LANDBRIDGE), done("way-back", LANDBRIDGE, 1, 1)),
    ],
    ids=["ours took too long", "no direct one", "the named one took too long", "ours is missing", "no way out"],
)
def test_what_could_not_be_measured_falls_short(moves: tuple[Move, ...]) -> None:
    assert not row(*moves).ok
    assert "falls short" in "\n".join(as_lines(row(*moves), known(*moves)))


def test_the_row_of_the_fastest_guest_is_held_against_a_direct_method_only_if_one_completes() -> None:
    ours = done("rate-20000", LANDBRIDGE, 40, 100)
    beside = [aborted("rate-20000", method) for method in METHODS]
    assert row(*beside, ours).ok
    assert row(*beside[:-1], ours).failure == f"{beside[-1].method} was not measured"
    assert not row(*beside, done("rate-20000", "auto-converge", 100, 900), ours).ok
    assert row(*beside, done("rate-20000", "auto-converge", 140, 900), ours).ok
    assert not row(*beside).ok


def test_workloads_that_others_need_are_measured_with_them() -> None:
    assert [workload.name for workload in chosen(("way-back",))] == ["page-cache", "way-back"]
    assert [workload.name for workload in chosen(("disk", "rate-1000"))] == ["rate-1000", "page-cache", "disk"]
    assert chosen(()) == list(WORKLOADS.values())


def test_every_bound_names_something_that_is_measured() -> None:
    for workload in WORKLOADS.values():
        for bound in workload.bounds:
            assert bound.of in {BEST, *workload.direct, *WORKLOADS}
        assert not workload.after or not WORKLOADS[workload.after].after


def test_direct_figures_of_an_earlier_run_are_read_and_ours_are_not(tmp_path: Path) -> None:
    moves = known(SLOW, FAST, done("rate-1000", LANDBRIDGE, 6, 70))
    told: list[Move | Row] = [*moves.values(), row_of(RATE_1000, moves)]
    path = tmp_path / "run.json"
    path.write_text("".join(f"{json.dumps(as_object(each))}\n" for each in told))
    assert read(path) == known(SLOW, FAST)
    path.write_text("no JSON\n")
    with pytest.raises(LabError, match=r"run\.json is not what --json has printed"):
        read(path)


class Moving:
    """Instead of a lab, and of the bench in it."""

    def __init__(self, *outcomes: Move) -> None:
        self.outcomes = list(outcomes)

    def up(self, _settings: object) -> None:
        pass

    def down(self) -> None:
        pass

    def measure(self, _workload: object, method: str, *, stay: bool) -> Move:
        assert not stay
        move = self.outcomes.pop(0)
        assert move.method == method
        return move


def moved(monkeypatch: pytest.MonkeyPatch, *outcomes: Move) -> list[Move]:
    """The moves that are told of a workload of which these come, one after the other."""
    moving = Moving(*outcomes)
    monkeypatch.setattr(wan, "Lab", lambda _: moving)
    monkeypatch.setattr(wan, "Bench", lambda _: moving)
    moves: Moves = {}
    told = list(wan.measurements([RATE_1000], tuple({each.method: None for each in outcomes}), moves, "wan"))
    assert isinstance(told[-1], Row)
    assert moves == known(*outcomes)
    assert not moving.outcomes
    return [each for each in told if isinstance(each, Move)]


def broken(method: str) -> Move:
    return Move("rate-1000", method, failure=f"{NOT_WELL}: silent for 122 s")


def test_another_guest_is_moved_directly_if_one_is_dead_and_through_landbridge_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = [SLOW, broken("xbzrle"), FAST, broken(LANDBRIDGE)], [broken("plain")] * 3
    assert moved(monkeypatch, *one) == one
    assert moved(monkeypatch, *two) == two
    assert moved(monkeypatch, aborted("rate-1000", "plain")) == [aborted("rate-1000", "plain")]


def run(monkeypatch: pytest.MonkeyPatch, moves: Moves, *argv: str) -> tuple[int, str]:
    """The command's exit code and output, for these moves of the first workload."""

    def measurements(_: object, __: object, found: Moves, ___: object) -> Iterator[Move | Row]:
        found.update(moves)
        yield from moves.values()
        yield row_of(RATE_1000, moves)

    monkeypatch.setattr(wan, "measurements", measurements)
    result = CliRunner().invoke(wan.main, argv)
    return result.exit_code, result.stdout


def test_check_exits_with_1_where_a_row_falls_short_and_prints_all(monkeypatch: pytest.MonkeyPatch) -> None:
    good = known(SLOW, FAST, done("rate-1000", LANDBRIDGE, 6, 70))
    code, output = run(monkeypatch, known(SLOW, FAST), "--check", "--json")
    assert code == 1
    assert [json.loads(line)["type"] for line in output.splitlines()] == ["move", "move", "row"]
    assert run(monkeypatch, good, "--check")[0] == 0
    assert run(monkeypatch, known(SLOW, FAST))[0] == 0


def test_the_table_shows_each_move_beside_the_best_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = known(SLOW, FAST, done("rate-1000", LANDBRIDGE, 6, 70), aborted("rate-1000", "auto-converge"))
    _, output = run(monkeypatch, moves)
    lines = {line.split()[0]: line for line in output.splitlines() if line.startswith("  ")}
    assert "0.30" in lines[LANDBRIDGE]
    assert "0.25" in lines[LANDBRIDGE]
    assert "1.50" in lines["plain"]
    assert "not done after 150 s" in lines["auto-converge"]
    assert "time 0.300 of best direct's, at most 0.3" in output
