"""The table of `make trixie`: nothing that did not hold is counted as held."""

from __future__ import annotations

import pytest

from tests.lab import LabError
from tests.trixie.table import WIDTH, Table


def fail(error: Exception) -> None:
    raise error


def test_a_check_that_ends_well_shows_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    with table.check("moves") as row:
        row.seen = "5 s"
    table.show()
    assert table.misses == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [f"ok     {'moves':<{WIDTH}}5 s", "", "1 of 1 checks held"]


@pytest.mark.parametrize("error", [AssertionError("it is\nnowhere"), LabError("it is nowhere")])
def test_a_check_that_fails_is_a_miss_with_its_reason_and_the_next_one_runs(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table()
    with table.check("moves") as row:
        row.seen = "5 s"
        fail(error)
    with table.check("moves back"):
        pass
    table.show()
    assert table.misses == 1
    assert f"MISSED {'moves':<{WIDTH}}it is nowhere\n" in capsys.readouterr().out


def test_an_assertion_without_words_is_a_miss_too() -> None:
    table = Table()
    with table.check("moves"):
        fail(AssertionError())
    assert table.misses == 1


def test_an_error_of_ours_is_not_taken_for_an_outcome() -> None:
    table = Table()
    with pytest.raises(KeyError), table.check("moves"):
        raise KeyError("ours")


def test_a_run_in_which_nothing_was_checked_is_a_miss() -> None:
    assert Table().misses == 1
