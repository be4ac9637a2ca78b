from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import words
from landbridge.v1 import types_pb2 as types


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1024, "1.0 KiB"),
        (512 * 2**20, "512 MiB"),
        (1020 * 2**20, "1.0 GiB"),
        (20 * 2**30, "20.0 GiB"),
        (2**63, "8192 PiB"),
    ],
)
def test_sizes_have_three_figures_and_binary_units(count: int, said: str) -> None:
    assert words.size(count) == said


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (12_340, "12.3 s"),
        (59_999, "1 min 00 s"),
        (83_000, "1 min 23 s"),
        (3_599_900, "1 h 00 min"),
        (7_500_000, "2 h 05 min"),
    ],
)
def test_durations_have_one_or_two_units(milliseconds: int, said: str) -> None:
    assert words.duration(milliseconds) == said


@pytest.mark.parametrize(
    ("bytes_per_second", "said"),
    [
        (1, "8 bit/s"),
        (6_250_000, "50 Mbit/s"),
        (6 * 2**20, "50.33 Mbit/s"),
        (124_999_999, "1 Gbit/s"),
        (156_250_000, "1.25 Gbit/s"),
    ],
)
def test_limits_have_four_figures_and_are_in_bits(bytes_per_second: int, said: str) -> None:
    assert words.limit(bytes_per_second) == said


@given(st.integers(0, 2**64 - 1))
def test_any_limit_and_any_growing_duration_can_be_said(number: int) -> None:
    assert words.limit(number).endswith("bit/s")
    assert words.whole(number)


def test_a_growing_duration_has_whole_seconds() -> None:
    assert [words.whole(ms) for ms in (0, 42_900, 59_999, 60_000, 125_900)] == [
        "0 s",
        "42 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
    ]


def test_hundred_percent_means_all() -> None:
    assert words.percent(999_999, 1_000_000) == 99
    assert words.percent(0, 0) == 100


def test_a_running_clock_has_hours_only_when_needed() -> None:
    assert [words.clock(ms) for ms in (7_000, 761_000, 3_723_000)] == ["0:07", "12:41", "1:02:03"]


def test_moments_are_rfc_3339_and_impossible_ones_are_none() -> None:
    assert words.moment(Timestamp(seconds=1_763_870_000)) == "2025-11-23T03:53:20Z"
    assert words.moment(Timestamp()) is None
    assert words.moment(Timestamp(seconds=2**62)) is None
    assert words.age(Timestamp(seconds=2**62), datetime.now(UTC)) == "?"


def test_an_age_has_one_unit() -> None:
    now = datetime(2025, 11, 23, 12, 0, 0, tzinfo=UTC)
    ages = [words.age(Timestamp(seconds=int(now.timestamp()) - s), now) for s in (-5, 40, 200, 7300, 90_000)]
    assert ages == ["now", "40 s", "3 min", "2 h", "1 d"]


def test_states_are_words_and_unknown_ones_are_numbers() -> None:
    assert words.word(types.MigrationState.DESCRIPTOR, types.MIGRATION_STATE_COPYING_MEMORY) == "copying_memory"
    assert words.state(types.MIGRATION_STATE_COPYING_MEMORY) == "copying memory"
    assert words.state(types.MIGRATION_STATE_UNSPECIFIED) == "unspecified"
    assert words.state(99) == "99"


@given(st.text())
def test_no_text_of_a_gateway_can_move_the_cursor(text: str) -> None:
    assert words.safe(f"{text}\x1b[2J\r\n\x9b").isprintable()
