"""What the bench of the codec makes of its figures, and that its streams are what they are said to be."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from landbridge import hints
from landbridge.hints import PAGE
from tests.bench import codec
from tests.bench.codec import Code, Hint, Plan, Row
from tests.bench.memory_stream import among_zeros, changed, frames, in_a_row, random_pages, stream

GOOD = Code("zeros", 400.0, 280.0, 0.7, 240.0, 500.0, 400.0, 0.4, 0.2)
SHORT = Code("zeros", 400.0, 276.0, 0.69, 240.0, 500.0, 400.0, 0.4, 0.2)


def test_a_row_says_whether_it_meets_its_target() -> None:
    assert codec.as_line(GOOD).endswith("    ok")
    assert codec.as_line(SHORT).endswith("    falls short")
    assert codec.as_object(Hint("random", 1499.9))["ok"] is False
    assert codec.as_object(Hint("random", 1500.0))["ok"] is True


@pytest.mark.parametrize(("row", "status"), [(GOOD, 0), (SHORT, 1)])
def test_check_exits_with_1_where_a_row_falls_short(monkeypatch: pytest.MonkeyPatch, row: Row, status: int) -> None:
    def rows(plan: Plan) -> Iterator[Row]:
        yield row

    monkeypatch.setattr(codec, "code", rows)
    result = CliRunner().invoke(codec.main, ["--only", "code", "--json", "--check"])
    assert result.exit_code == status
    assert json.loads(result.stdout.splitlines()[0])["stream"] == "zeros"


def test_frames_have_the_bytes_of_the_stream_and_true_hints() -> None:
    records = among_zeros(random_pages(200))
    made = list(frames(records))
    assert b"".join(each.payload for each in made) in stream(records)
    runs = [(each.payload, run) for each in made for run in hints.decode(each.hints, len(each.payload))]
    assert sum(run.count for _, run in runs) == len(records)
    for payload, run in runs:
        number = int.from_bytes(payload[run.offset : run.offset + 8]) // PAGE
        assert run.key == hints.space(b"pc.ram") | number


def test_changed_pages_differ_in_few_words() -> None:
    before = in_a_row(random_pages(30))
    contents = dict(before)
    for number, page in changed(before, 8):
        old = contents[number]
        assert old is not None
        assert page is not None
        words = [at for at in range(0, PAGE, 8) if page[at : at + 8] != old[at : at + 8]]
        assert 1 <= len(words) <= 8


def test_every_row_can_be_measured() -> None:
    rows = list(codec.code(Plan(1, 150)))
    assert [row.stream for row in rows] == ["first pass", "zeros", "changes", "known", "random"]
    wire = {row.stream: row.wire for row in rows}
    assert wire["known"] < wire["changes"] < 0.05
    assert wire["random"] < 1.005
