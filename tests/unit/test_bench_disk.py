"""What the bench of a busy disk makes of its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.bench import disk
from tests.bench.disk import (
    LANDBRIDGE,
    LIBVIRT,
    SYNCHRONOUS,
    WAYS,
    WIDTH,
    Move,
    as_lines,
    as_object,
    shortfalls,
    with_writes,
)
from tests.bench.limited import Counter, beats_of
from tests.lab.lab import Lab
from tests.lab.settings import LabError


def done(way: str, total_s: float, moving: float = 95) -> Move:
    """A move that is done, of a guest that writes 100 blocks a second when it is alone."""
    return Move(way, "done", total_s, 700, 50_000_000, 100, moving, 900, (moving - 3) / 100, moving / 100)


STAYS = Move(LIBVIRT, "not done", None, None, 300_000_000, 100, 98, 450, 0.98, 0.99, "not done after 60 s")
DEAD = replace(done(LIBVIRT, 19), end="not well", total_s=None, failure="the guest is not well: silent for 90 s")
REFUSED = Move(LIBVIRT, failure="`virsh migrate` of guest1 failed: no route to host")
SLOWED, OURS = done(SYNCHRONOUS, 19, 20), done(LANDBRIDGE, 15)


def short(*moves: Move) -> list[str]:
    """What falls short, of these and otherwise good moves."""
    return shortfalls({move.way: move for move in (STAYS, SLOWED, OURS, *moves)})


def test_the_only_move_that_is_done_in_time_and_without_a_slower_guest_is_ok() -> None:
    assert short() == []
    assert short(done(LIBVIRT, 16)) == []


@pytest.mark.parametrize("way", [LIBVIRT, SYNCHRONOUS])
@pytest.mark.parametrize("total_s", [14.0, 15.0])
def test_a_move_by_libvirt_that_is_done_is_to_take_longer(way: str, total_s: float) -> None:
    assert short(done(way, total_s)) == [f"landbridge: took 15.0 s, and {way} {total_s:.1f} s"]


def test_a_guest_that_libvirt_has_lost_is_no_competitor() -> None:
    assert short(DEAD) == []


def test_a_command_of_libvirt_that_failed_is_no_comparison() -> None:
    assert short(REFUSED) == [f"libvirt: nothing was measured to compare with: {REFUSED.failure}"]


@pytest.mark.parametrize(("moving", "ok"), [(80, True), (79.9, False), (0, False)])
def test_the_guest_is_to_write_on_while_landbridge_moves_it(moving: float, ok: bool) -> None:
    assert (short(done(LANDBRIDGE, 15, moving)) == []) is ok


def test_what_landbridge_has_not_moved_falls_short_whatever_libvirt_did() -> None:
    for end in (STAYS, DEAD, REFUSED):
        assert short(replace(end, way=LANDBRIDGE)) == [f"landbridge: {end.failure}"]


LOG = """\
100.00 0 east-1 - lab: ready
100.02 0 east-1 - B 1 m0 d0 w4 k1 e0
101.00 0 east-1 - B 2 m0 d0 w200 k99 e0
102.00 0 west-1 - B 3 m0 d0 w400 k120 e0 f1
"""


def written(*beats: tuple[float, int], began: float = 10.0, ended: float = 12.0) -> tuple[float | None, ...]:
    """The rates alone and while it is moved, the standstill, both shares."""
    move = with_writes(Move(LIBVIRT), list(beats), began, ended)
    rates = move.blocks_per_s_alone, move.blocks_per_s_moving
    return (*rates, move.still_ms, move.share, move.share_running)


def beating(since: float, until: float, per_s: float, blocks: int = 0) -> list[tuple[float, int]]:
    """The beats of a guest that runs and writes."""
    return [(since + i / 50, blocks + round(i * per_s / 50)) for i in range(1 + round((until - since) * 50))]


ALONE = beating(0, 10, 100)


def test_what_the_guest_has_written_is_its_own_count_by_the_time_its_beats_were_heard() -> None:
    assert beats_of(LOG, Counter.BLOCKS_WRITTEN) == [(100.02, 1), (101.0, 99), (102.0, 120)]


def test_a_guest_whose_writes_wait_runs_and_writes_less() -> None:
    assert written(*ALONE, *beating(10.02, 12, 20, blocks=1000)) == (100, 20, 0, 0.2, 0.2)


def test_a_guest_that_stands_still_has_another_share_of_the_time_in_which_it_ran() -> None:
    assert written(*ALONE, *beating(10.5, 12, 100, blocks=1000)) == (100, 75, 500, 0.75, 1)


def test_a_standstill_counts_only_as_far_as_it_is_within_the_move() -> None:
    assert written(*ALONE, *beating(14, 15, 100, blocks=1150), began=8, ended=10.5)[2] == 500
    assert written((0, 0), (3, 100), *beating(4, 12, 100, blocks=100))[2] == 0


def test_a_guest_that_falls_silent_for_good_writes_nothing_and_did_not_just_stand_still() -> None:
    assert written(*ALONE) == (100, 0, 0, 0, 0)


def test_there_is_no_share_of_nothing() -> None:
    assert written() == (0, 0, 0, None, None)


def test_a_row_has_what_was_measured_and_below_it_why_there_is_no_more() -> None:
    assert as_lines(OURS) == [
        "landbridge                 15.0 s      700 ms     47.7 MiB              100      95   92 %     95 %"
    ]
    assert as_lines(STAYS) == [
        "libvirt                         -           -      286 MiB              100      98   98 %     99 %",
        "    not done after 60 s",
    ]
    assert as_lines(REFUSED)[0].split() == ["libvirt", *"-------"]


def test_the_table_stays_within_its_columns() -> None:
    wordy = replace(DEAD, failure="the guest is not well: " + "silent " * 50)
    assert len(as_lines(wordy)[0]) == len(disk.HEADING)
    assert all(len(line) <= WIDTH for line in (disk.HEADING, *as_lines(wordy)))


class Broken:
    """Instead of the guests of a lab: none starts."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def start(self, name: str, host: str, settings: object) -> None:
        raise LabError(f"guest {name}\n does not beat")

    def stop(self, name: str) -> None:
        self.stopped.append(name)


def test_what_goes_wrong_is_told_and_the_guest_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    guests, lab = Broken(), Lab("none")
    monkeypatch.setattr(lab, "guests", guests)
    assert disk.measure(lab, LIBVIRT, "g", 60) == Move(LIBVIRT, "failed", failure="guest g does not beat")
    assert guests.stopped == ["g"]


def run(monkeypatch: pytest.MonkeyPatch, *argv: str, ours: Move = OURS) -> tuple[int, str]:
    """The command's exit code and output."""

    def measurements(name: str, limit: float) -> Iterator[Move]:
        yield from (STAYS, SLOWED, ours)

    monkeypatch.setattr(disk, "measurements", measurements)
    result = CliRunner().invoke(disk.main, argv)
    return result.exit_code, result.stdout


SLOW = done(LANDBRIDGE, 15, 50)


def test_check_exits_with_1_where_something_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--check")[0] == 0
    assert run(monkeypatch, "--check", ours=SLOW)[0] == 1
    assert run(monkeypatch, ours=SLOW)[0] == 0


def test_json_is_an_object_for_each_move_and_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    _, output = run(monkeypatch, "--json", ours=SLOW)
    *moves, verdict = [json.loads(line) for line in output.splitlines()]
    assert moves == [as_object(move) for move in (STAYS, SLOWED, SLOW)]
    assert (moves[2]["share"], moves[2]["share_running"]) == (0.47, 0.5)
    assert verdict == {
        "type": "verdict",
        "ok": False,
        "short": ["landbridge: while it ran, the guest wrote 50 % of what it writes alone"],
    }


def test_the_text_says_what_was_done_and_what_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    _, output = run(monkeypatch)
    assert [line for line in output.splitlines() if line.startswith(tuple(WAYS))] == [
        as_lines(move)[0] for move in (STAYS, SLOWED, OURS)
    ]
    assert output.endswith("\nok\n")
    assert "falls short: landbridge: while it ran, the guest wrote 50 %" in run(monkeypatch, ours=SLOW)[1]
