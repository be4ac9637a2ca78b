"""Windows of local time, by instants: what a window is when clocks change. Pure.

A window begins with the first instant at which the wall clock shows its beginning or more, and ends after the last one at which it
shows less than its end. So an hour that happens twice in autumn is frozen from its first beginning to its second end, and what
falls into the hour that is missing in spring falls on the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo

_DAY = timedelta(days=1)


def first(wall: datetime, zone: tzinfo) -> datetime:
    """The first instant, in UTC, at which the clock of a zone shows `wall` (naive) or more."""
    return _instant(wall, zone, fold=0)


def last(wall: datetime, zone: tzinfo) -> datetime:
    """The instant, in UTC, from which on the clock of a zone shows no less than `wall` (naive)."""
    return _instant(wall, zone, fold=1)


def _instant(wall: datetime, zone: tzinfo, fold: int) -> datetime:
    instant = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    if _shown(instant, zone) == wall:
        return instant
    # The clock was put forward past `wall`: both readings of it lie around the change, which is looked for to the microsecond.
    readings = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    before, after = min(readings), max(readings)
    while after - before > datetime.resolution:
        middle = before + (after - before) / 2
        before, after = (before, middle) if _shown(middle, zone) >= wall else (middle, after)
    return after


def _shown(instant: datetime, zone: tzinfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def once(begins: datetime, ends: datetime, zone: tzinfo, now: datetime) -> datetime | None:
    """When the window ends that `now` is in; None if it is not in it."""
    end = last(ends, zone)
    return end if first(begins, zone) <= now < end else None


def weekly(days: frozenset[int], begins: time, ends: time, zone: tzinfo, now: datetime) -> datetime | None:
    """The same of a window that opens on each of `days` (0: Monday), and closes on the next day unless `ends` is later than `begins`."""
    found = [
        end
        for day in _days_around(now.astimezone(zone).date())
        if day.weekday() in days
        and (end := once(datetime.combine(day, begins), _close(day, begins, ends), zone, now)) is not None
    ]
    return max(found, default=None)


def _close(day: date, begins: time, ends: time) -> datetime:
    return datetime.combine(day if ends > begins else day + _DAY, ends)


def _days_around(day: date) -> Iterator[date]:
    """Whose windows may hold an instant of a day: also yesterday's, past midnight, and tomorrow's, where clocks are put back over it."""
    for offset in (-1, 0, 1):
        yield day + offset * _DAY
