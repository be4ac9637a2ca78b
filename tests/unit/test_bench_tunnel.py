"""What the bench of the tunnel makes of its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from tests.bench import tunnel
from tests.bench.tunnel import Fault, Goodput, Link, Memory, Row, capacity

GOOD: list[Row] = [
    Goodput(400.0, 500.0, 0.8, 4.0, 3.3),
    Link(200, 20, 0.1, 192.9, 0.9, 0.99, 0.2),
    Fault(200, 20, "stalled", 190.0, 126.8, 171.0, 0.667, 0.9),
    Memory(200, 100, "source agent", 255.9),
]


@pytest.mark.parametrize(("loss", "carried"), [(0, 193.07), (0.1, 192.87), (1, 191.14)])
def test_a_line_carries_less_than_its_rate_by_headers_and_loss(loss: float, carried: float) -> None:
    assert capacity(200, loss) == pytest.approx(carried, abs=0.01)


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.type)
def test_a_row_that_meets_its_target_is_ok(row: Row) -> None:
    assert row.ok
    assert tunnel.as_line(row).endswith("    ok")


@pytest.mark.parametrize(
    "row",
    [
        Goodput(395.0, 500.0, 0.79, 4.0, 3.3),
        Link(200, 20, 0.1, 192.9, 0.899, 0.99, 0.2),
        Fault(200, 20, "stalled", 190.0, 126.5, 190.0, 0.666, 1.0),
        Fault(200, 20, "stalled", 190.0, 190.0, 170.0, 1.0, 0.895),
        Memory(200, 100, "source agent", 256.0),
    ],
    ids=lambda row: row.type,
)
def test_a_row_that_misses_it_falls_short(row: Row) -> None:
    assert not row.ok
    assert tunnel.as_line(row).endswith("falls short")


@pytest.mark.parametrize(
    "row",
    [
        Goodput(None, 500.0, None, None, 3.3, "no gateway"),
        Link(200, 20, 0.1, 192.9, None, 0.99, 0.2, "no gateway"),
        Fault(200, 20, "stalled", None, None, None, None, None, "no gateway"),
        Memory(200, 100, "source agent", None, "no gateway"),
    ],
    ids=lambda row: row.type,
)
def test_a_chain_that_cannot_be_measured_falls_short_and_says_why(row: Row) -> None:
    assert tunnel.as_object(row)["ok"] is False
    assert tunnel.as_object(row)["failure"] == "no gateway"
    assert tunnel.as_line(row).endswith("falls short: no gateway")


def run(monkeypatch: pytest.MonkeyPatch, found: list[Row], *argv: str) -> tuple[int, str]:
    """The command's exit code and output, for these rows."""

    def rows(*_: object) -> Iterator[Row]:
        yield from found

    monkeypatch.setattr(tunnel, "rows", rows)
    result = CliRunner().invoke(tunnel.main, argv)
    return result.exit_code, result.stdout


def test_check_exits_with_1_where_a_row_falls_short_and_prints_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Memory(0, 100, "source agent", 300.0), *GOOD]
    code, output = run(monkeypatch, found, "--check", "--json")
    assert code == 1
    assert [json.loads(line)["type"] for line in output.splitlines()] == [
        "memory",
        "goodput",
        "link",
        "fault",
        "memory",
    ]
    assert run(monkeypatch, GOOD, "--check")[0] == 0
    assert run(monkeypatch, found)[0] == 0


def test_a_table_has_a_heading_for_each_section(monkeypatch: pytest.MonkeyPatch) -> None:
    _, output = run(monkeypatch, GOOD)
    assert [line.split(";")[0] for line in output.splitlines() if "target" in line] == [
        "goodput without a WAN limit, MB/s",
        "goodput as a share of what the link can carry",
        "goodput in Mbit/s while one link of the tunnel fails, at 20 ms, and then at least 0.9",
        "most resident memory at 100 ms",
    ]
