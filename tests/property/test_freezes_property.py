"""Freezes against a clock on the wall that is watched second by second, in zones whose clocks change in their own ways."""
# ruff: noqa: DTZ001 - what a clock on the wall shows has no zone

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authorization import freezes

# With changes by an hour, by half an hour (Lord Howe), over midnight (Beirut), and with none.
ZONES = [
    ZoneInfo(name)
    for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Asia/Tokyo", "UTC")
]
# Days around a change in one of them or another, and some without.
CHANGES = [datetime(2026, *day) for day in ((3, 29), (10, 25), (3, 8), (11, 1), (4, 5), (10, 4), (6, 15))]
MINUTE = timedelta(minutes=1)

zones = st.sampled_from(ZONES)
walls = st.builds(
    lambda day, minutes: day + timedelta(minutes=minutes),
    st.sampled_from(CHANGES),
    st.integers(-6 * 60, 12 * 60),
)


def shown(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def watched(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """Instants of each minute around the time at which the clock should show `wall`."""
    about = wall.replace(tzinfo=zone).astimezone(UTC)
    return [about + minutes * MINUTE for minutes in range(-180, 181)]


@settings(max_examples=150, deadline=None)
@given(walls, zones)
def test_a_window_opens_when_the_clock_first_shows_its_beginning_or_more(wall: datetime, zone: ZoneInfo) -> None:
    assert freezes.first(wall, zone) == next(i for i in watched(wall, zone) if shown(i, zone) >= wall)


@settings(max_examples=150, deadline=None)
@given(walls, zones)
def test_a_window_closes_after_the_clock_last_shows_less_than_its_end(wall: datetime, zone: ZoneInfo) -> None:
    assert freezes.last(wall, zone) == max(i for i in watched(wall, zone) if shown(i, zone) < wall) + MINUTE


@settings(max_examples=150, deadline=None)
@given(walls, walls, zones, st.integers(-60, 60))
def test_within_a_window_is_between_its_opening_and_its_closing(
    begins: datetime, ends: datetime, zone: ZoneInfo, minutes: int
) -> None:
    begins, ends = sorted((begins, ends))
    for now in (freezes.first(begins, zone) + minutes * MINUTE, freezes.last(ends, zone) + minutes * MINUTE):
        inside = freezes.first(begins, zone) <= now < freezes.last(ends, zone)
        assert freezes.once(begins, ends, zone, now) == (freezes.last(ends, zone) if inside else None)


@settings(max_examples=150, deadline=None)
@given(st.sets(st.integers(0, 6), min_size=1), st.times(), st.times(), zones, walls)
def test_a_window_of_each_week_is_one_of_its_days_windows(
    days: set[int], begins: time, ends: time, zone: ZoneInfo, wall: datetime
) -> None:
    now = wall.replace(tzinfo=zone).astimezone(UTC)
    expected = []
    for offset in range(-8, 9):  # more than a week: whatever is in force is one of these
        day = shown(now, zone).date() + timedelta(days=offset)
        if day.weekday() in days:
            closes = day if ends > begins else day + timedelta(days=1)
            end = freezes.last(datetime.combine(closes, ends), zone)
            if freezes.first(datetime.combine(day, begins), zone) <= now < end:
                expected.append(end)
    assert freezes.weekly(frozenset(days), begins, ends, zone, now) == max(expected, default=None)


@pytest.mark.parametrize(
    ("wall", "first", "last"),
    [
        # Spring: 02:00 to 03:00 is missing, and the change is at 01:00 UTC.
        ("2026-03-29T02:30", "2026-03-29T01:00", "2026-03-29T01:00"),
        ("2026-03-29T02:00", "2026-03-29T01:00", "2026-03-29T01:00"),
        ("2026-03-29T03:00", "2026-03-29T01:00", "2026-03-29T01:00"),
        # Autumn: 02:00 to 03:00 happens twice.
        ("2026-10-25T02:30", "2026-10-25T00:30", "2026-10-25T01:30"),
        ("2026-10-25T03:00", "2026-10-25T02:00", "2026-10-25T02:00"),
        ("2026-07-01T12:00", "2026-07-01T10:00", "2026-07-01T10:00"),
    ],
)
def test_the_changes_of_berlin_in_2026(wall: str, first: str, last: str) -> None:
    naive, berlin = datetime.fromisoformat(wall), ZoneInfo("Europe/Berlin")
    assert freezes.first(naive, berlin) == datetime.fromisoformat(first).replace(tzinfo=UTC)
    assert freezes.last(naive, berlin) == datetime.fromisoformat(last).replace(tzinfo=UTC)


def test_where_a_whole_day_was_left_out_a_window_in_it_falls_on_the_change() -> None:
    apia = ZoneInfo("Pacific/Apia")
    change = datetime(2011, 12, 30, 10, 0, tzinfo=UTC)
    assert freezes.first(datetime(2011, 12, 30, 12), apia) == change
    assert freezes.last(datetime(2011, 12, 30, 12), apia) == change
    held = freezes.once(datetime(2011, 12, 30), datetime(2011, 12, 31), apia, change)
    assert held is None


def test_where_clocks_are_put_back_over_midnight_a_window_that_has_begun_goes_on_the_day_before() -> None:
    st_johns = ZoneInfo("America/St_Johns")  # 2010-11-07, 00:01 became 2010-11-06, 23:01
    again = datetime(2010, 11, 7, 2, 45, tzinfo=UTC)
    assert shown(again, st_johns) == datetime(2010, 11, 6, 23, 15)
    sundays = freezes.weekly(frozenset({6}), time(0), time(6), st_johns, again)
    assert sundays == datetime(2010, 11, 7, 9, 30, tzinfo=UTC)


def test_from_midnight_to_midnight_is_a_day() -> None:
    tokyo, midnight = ZoneInfo("Asia/Tokyo"), time(0)
    monday = datetime(2026, 11, 30, tzinfo=tokyo)
    assert freezes.weekly(frozenset({0}), midnight, midnight, tokyo, monday) == monday + timedelta(days=1)
    assert freezes.weekly(frozenset({0}), midnight, midnight, tokyo, monday - MINUTE) is None
    assert freezes.weekly(frozenset({0}), midnight, midnight, tokyo, monday + timedelta(days=1)) is None
