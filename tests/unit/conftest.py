"""What the tests of verbs share: `landbridge` as a shell would run it."""

from __future__ import annotations

import pytest

from gateway.cli import main
from tests.unit.fake_gateway import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `landbridge` with these words: its exit code, what it writes, and what it writes to stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
