"""The judge of the lab's guests: what it must never let pass."""

from collections.abc import Iterable

import pytest

from tests.lab.judge import Verdict, judge


def beats(host: str, numbers: Iterable[int], start: float, *, connection: int = 1, errors: int = 0) -> list[str]:
    """Beats every 100 ms; memory and disk passes count up with every tenth beat."""
    return [
        f"{start + i * 0.1:.6f} 0 {host} {connection} B {n} m{n // 10} d{n // 10} w{n} k{n} e{errors}"
        for i, n in enumerate(numbers)
    ]


BEFORE = ["0.0 0 east-1 1 lab: boot", *beats("east-1", range(1, 51), 1.0)]
MOVED = [*BEFORE, *beats("west-1", range(51, 101), 6.3, connection=2)]


def test_a_guest_that_beats_on_and_verifies_all_after_its_move_is_good() -> None:
    verdict = judge(MOVED)
    assert verdict.good
    assert (verdict.beats, verdict.host, verdict.moves) == (100, "west-1", 1)
    assert verdict.longest_pause_ms == pytest.approx(400, abs=1)
    assert verdict.longest_pause_at == 51
    assert verdict.last_move_pause_ms == pytest.approx(400, abs=1)


def test_a_pass_that_began_before_the_arrival_verifies_nothing() -> None:
    verdict = judge(MOVED[: 51 + 15])
    assert not verdict.problems
    assert not verdict.good
    assert "not verified yet" in verdict.sentence()


def test_silence_is_not_good() -> None:
    assert not judge([]).good
    assert judge([]).sentence() == "no beat was heard"


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (beats("west-1", [103], 11.5), "lost beats"),
        (beats("west-1", [100], 11.5), "ran twice"),
        (beats("east-1", [90], 11.5), "ran twice"),
        (beats("west-1", [101], 11.5, errors=1), "counts 1 mismatches"),
        (["11.5 0 west-1 2 X memory page=3 writes=1 want=aa got=bb"], "page=3"),
        (["11.5 0 west-1 2 X disk block=7 want=2 got=1"], "block=7"),
        (["11.5 0 west-1 2 X files /files/etc/hostname want=aa got=bb"], "etc/hostname"),
        (["11.5 0 west-1 2 lab: boot"], "booted again"),
        (["11.5 0 west-1 2 [    9.1] Kernel panic - not syncing"], "kernel is in trouble"),
        (["11.5 0 west-1 2 [    9.1] Oops: 0000 [#1] SMP"], "kernel is in trouble"),
    ],
)
def test_whatever_must_not_be_is_a_problem_for_good(extra: list[str], complaint: str) -> None:
    verdict = judge([*MOVED, *extra])
    assert not verdict.good
    assert complaint in " ".join(verdict.problems)


def test_two_hosts_that_beat_by_turns_are_one_guest_that_runs_twice() -> None:
    both = [
        line
        for pair in zip(beats("east-1", range(51, 61), 6.0), beats("west-1", range(51, 61), 6.05), strict=True)
        for line in pair
    ]
    assert any("ran twice" in problem for problem in judge([*BEFORE, *both]).problems)


def test_pauses_before_a_mark_do_not_count_and_gaps_do() -> None:
    late = beats("west-1", range(101, 131), 15.0)
    assert judge([*MOVED, *late], since=15.05).longest_pause_ms == pytest.approx(100, abs=1)
    assert judge([*MOVED, *beats("west-1", range(105, 131), 15.0)], since=16.0).problems


def test_a_guest_that_has_fallen_silent_is_not_good_whatever_it_has_proved() -> None:
    ended = float(MOVED[-1].split()[0])
    assert judge(MOVED, now=ended + 0.5).good
    dead = judge(MOVED, now=ended + 60)
    assert not dead.good
    assert not dead.problems
    assert "silent for 60 s" in dead.sentence()


def test_a_guest_without_a_disk_needs_no_disk_passes() -> None:
    lines = [line.replace(" d10", " d0") for line in MOVED]
    assert isinstance(judge(lines, has_disk=False), Verdict)
    assert judge(lines, has_disk=False).disk_verified


def test_a_guest_with_files_is_good_once_it_has_read_them_twice_after_its_move() -> None:
    def with_files(lines: list[str], passes: int) -> list[str]:
        return [f"{line} f{passes}" if " B " in line else line for line in lines]

    before, after = with_files(BEFORE, 3), MOVED[len(BEFORE) :]
    unread = judge([*before, *with_files(after, 3)])
    assert not unread.good
    assert not unread.problems
    assert "files not verified yet" in unread.sentence()
    read = judge([*before, *with_files(after[:30], 3), *with_files(after[30:], 5)])
    assert read.good
    assert "files verified" in read.sentence()


def test_a_guest_without_files_says_nothing_of_them() -> None:
    assert judge(MOVED).files_verified is None
    assert "files" not in judge(MOVED).sentence()
