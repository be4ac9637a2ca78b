"""The level of compression follows whichever is the bottleneck: the link, or the processor."""

from __future__ import annotations

import pytest

from gateway.tunnel.level import FIRST, INTERVAL, MOST, START, Level

FRAME = 256 << 10
MBIT = 125_000.0


class Line:
    """A link of some rate, and a codec that takes its time; both idealized."""

    def __init__(self, rate: float, *, slowness: float = 1.0, ratio: float | None = None, most: int = MOST) -> None:
        self.rate = rate
        self.slowness = slowness
        self.ratio = ratio
        self.was_measured = False
        self.now = 0.0
        self.level = Level(self.now, most)

    def run(self, seconds: float) -> list[int]:
        """The levels that were decided on in so many seconds."""
        levels = []
        end = self.now + seconds
        while self.now < end:
            level = self.level.now
            speed, ratio = FIRST[level - 1] if level else (1e12, 1.0)
            ratio = ratio if self.ratio is None or not level else self.ratio
            busy = FRAME / speed * self.slowness
            on_link = FRAME / ratio / self.rate
            is_full = on_link > busy
            for _ in range(max(1, int(INTERVAL / max(busy, on_link)) + 1)):
                if level:
                    self.level.coded(FRAME, int(FRAME / ratio), busy)
                self.level.put(100 if is_full else 0, 100)
                self.now += max(busy, on_link)
            drained = self.rate if is_full else FRAME / ratio / busy
            self.was_measured |= is_full
            levels.append(self.level.decide(self.now, drained, was_measured=self.was_measured))
        return levels


def test_it_begins_with_a_level_that_suits_most_lines() -> None:
    assert Level(0.0).now == START


@pytest.mark.parametrize(("mbit", "expected"), [(10, {3}), (100, {3}), (400, {2, 3}), (5_000, {0}), (50_000, {0})])
def test_the_slower_the_line_the_harder_it_compresses(mbit: float, expected: set[int]) -> None:
    assert set(Line(mbit * MBIT).run(5)[-8:]) <= expected


def test_what_does_not_become_smaller_passes_through_where_the_line_is_quick() -> None:
    assert set(Line(4_000 * MBIT, ratio=1.0).run(3)[-4:]) == {0}


def test_what_does_not_become_smaller_is_looked_at_again_after_a_while() -> None:
    line = Line(2_000 * MBIT, ratio=1.0)
    assert 0 in line.run(4)
    assert any(line.run(20))


def test_what_does_not_become_smaller_is_logged_all_the_same_where_the_line_is_slow() -> None:
    assert set(Line(100 * MBIT, ratio=1.0).run(5)[-4:]) == {1}


def test_a_busy_processor_does_not_make_it_pass_a_slow_line_everything() -> None:
    assert 0 not in Line(100 * MBIT, slowness=4.0).run(5)


def test_no_level_above_the_most_is_taken() -> None:
    assert set(Line(10 * MBIT, most=2).run(3)) == {2}
    assert set(Line(10 * MBIT, most=0).run(3)) == {0}


def test_without_frames_and_without_a_known_rate_nothing_changes() -> None:
    level = Level(0.0)
    assert level.decide(10.0, 12e6, was_measured=True) == START
    level.put(0, 100)
    assert level.decide(20.0, 0.0, was_measured=False) == START


def test_what_passes_the_codec_is_known_for_the_last_interval() -> None:
    level = Level(0.0)
    level.coded(3 * FRAME, FRAME, 0.1)
    level.decide(INTERVAL, 12e6, was_measured=True)
    assert level.through == pytest.approx(3 * FRAME / INTERVAL)
    level.decide(2 * INTERVAL, 12e6, was_measured=True)
    assert level.through == 0.0
