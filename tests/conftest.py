"""The order of the tests: what answers in milliseconds comes first, what needs real hosts and guests comes last.

Processes that share them (`-n 3 --dist loadfile`, see `tests.sharing`) begin with what takes longest, or one would wait for another.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.sharing import Sharing

HERE = Path(__file__).parent
# Rooms that are not named here come between these two.
FIRST = ("unit", "property", "architecture")
LAST = ("contract", "system", "integration")


def pytest_configure() -> None:
    """A shell starts what it puts in the background with SIGINT ignored; the tests press Ctrl-C all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by cost; within a room, the order of collection stays."""
    items.sort(key=_cost)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_patience, reverse=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Sharing | None:
    """`--dist loadfile` is done as `tests.sharing` says."""
    return Sharing(config, log) if config.getoption("dist") == "loadfile" else None


def _cost(item: pytest.Item) -> tuple[bool, int]:
    room = item.path.relative_to(HERE).parts[0]
    if room in FIRST:
        place = FIRST.index(room)
    elif room in LAST:
        place = len(FIRST) + 1 + LAST.index(room)
    else:
        place = len(FIRST)
    return item.get_closest_marker("lab") is not None, place


def _patience(item: pytest.Item) -> float:
    """Seconds that it may take, where that is more than usual."""
    limit = item.get_closest_marker("timeout")
    return float(limit.args[0]) if limit is not None and limit.args[0] > float(item.config.getini("timeout")) else 0.0
