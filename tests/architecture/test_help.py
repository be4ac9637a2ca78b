"""What `--help` says is read by people and quoted in the documentation: a change of it is a change that is seen.

python -m tests.architecture.help_texts --write      writes the files anew
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "help"
ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted(path.stem for path in FILES.glob("*.txt"))


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    argv = [sys.executable, "-m", "tests.architecture.help_texts"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    texts: dict[str, str] = json.loads(done.stdout)
    return texts


def test_the_help_of_every_command_is_written_down(said: dict[str, str]) -> None:
    assert sorted(said) == KEPT


@pytest.mark.parametrize("name", KEPT)
def test_help_is_what_is_written_down(said: dict[str, str], name: str) -> None:
    assert said[name] == (FILES / f"{name}.txt").read_text()
