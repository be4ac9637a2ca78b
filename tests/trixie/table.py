"""What came of each check, one row each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.lab import LabError

# Of the longest name of a check, and a gap.
WIDTH = 62


@dataclass
class Row:
    """One check: what was seen, or what is wrong."""

    what: str
    seen: str = ""
    problem: str = ""


@dataclass
class Table:
    """All checks of a run, told as they come."""

    rows: list[Row] = field(default_factory=list)

    @property
    def misses(self) -> int:
        """Checks that did not hold; a run without any check is none that held."""
        return sum(bool(row.problem) for row in self.rows) or int(not self.rows)

    def add(self, what: str, seen: str = "", problem: str = "") -> None:
        """One more."""
        self.rows.append(Row(what, seen, " ".join(problem.split())))
        _say(f"... {_line(self.rows[-1])}")

    @contextlib.contextmanager
    def check(self, what: str) -> Iterator[Row]:
        """A check that holds if its block ends without an AssertionError or LabError; `seen` is for the block to say."""
        row = Row(what)
        problem = ""
        try:
            yield row
        except (AssertionError, LabError) as error:
            problem = str(error) or type(error).__name__
        self.add(what, row.seen, problem)

    def show(self) -> None:
        """Print it."""
        _say("")
        for row in self.rows:
            _say(_line(row))
        _say(
            f"\n{len(self.rows) - self.misses} of {len(self.rows)} checks held"
            if self.rows
            else "\nnothing was checked"
        )


def _line(row: Row) -> str:
    return f"{'MISSED' if row.problem else 'ok':<7}{row.what:<{WIDTH}}{row.problem or row.seen}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
