"""What the bench of the audit log makes of its figures, and that its logs are good ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.audit.files import Directory
from gateway.audit.verify import verify
from tests.bench import audit
from tests.bench.audit import Append, Grown, Row, Verify


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (Append(256, 5000.0, 1.0, 2.0), True),
        (Append(256, 4999.9, 1.0, 2.0), False),
        (Append(1, 100.0, 1.0, 2.0), True),
        (Grown(1000, 5.0, 9.0, None), True),
        (Grown(1_000_000, 10.0, 9.0, 10.0), True),
        (Grown(1_000_000, 10.1, 9.0, 10.0), False),
        (Verify(100_000, 10.0, 1.0), True),
        (Verify(100_000, 10.1, 1.0), False),
    ],
)
def test_check_exits_with_1_where_a_row_falls_short(monkeypatch: pytest.MonkeyPatch, row: Row, ok: bool) -> None:
    def rows(room: Path) -> Iterator[Row]:
        yield row

    monkeypatch.setattr(audit, "appended", rows)
    monkeypatch.setattr(audit, "verified", lambda *_: iter(()))
    result = CliRunner().invoke(audit.main, ["--json", "--check"])
    assert result.exit_code == (0 if ok else 1)
    assert json.loads(result.stdout) == audit.as_object(row)
    assert json.loads(result.stdout)["ok"] is ok
    assert ("falls short" in CliRunner().invoke(audit.main, []).stdout) is not ok


def test_logs_that_are_made_quickly_verify(tmp_path: Path) -> None:
    report = verify(Directory(audit.make(tmp_path / "log", 700)))
    assert (report.findings, report.entries) == ([], 700)


async def test_every_append_is_waited_for(tmp_path: Path) -> None:
    took, waits = await audit._append(tmp_path / "log", 4, 50)
    assert took > 0
    assert len(waits) == 50
    assert verify(Directory(tmp_path / "log")).entries == 50
