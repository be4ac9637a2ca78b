"""What `landbridge-agent enroll` sees before it spends a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.main import main


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--identity", "{}/file/identity"), "file/identity cannot be used as a directory (Not a directory)"),
        (("--identity", "{}/identity", "--listen", "10.0.0.1:7443"), "'10.0.0.1:7443' is no address of this host"),
        (("--identity", "{}/identity", "--listen", "a b"), "give --listen ADDRESS, without a port"),
    ],
)
def test_a_token_is_not_spent_where_nothing_could_be_kept(tmp_path: Path, argv: tuple[str, ...], said: str) -> None:
    (tmp_path / "file").touch()
    ran = CliRunner().invoke(main, ["enroll", "lb1.a.b.c.d", *(word.format(tmp_path) for word in argv)])
    assert (ran.exit_code, ran.output.count("\n"), said in ran.output) == (2, 1, True), ran.output
