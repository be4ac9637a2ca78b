"""The order of the tests: what answers in milliseconds comes first, what needs real hosts and guests comes last.

Two processes that share them (`-n 2 --dist loadfile`) begin with the file that takes longest, or one would wait for the other.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Rooms that are not named here come between these two.
FIRST = ("unit", "property", "architecture")
LAST = ("contract", "system", "integration")
LONGEST = "test_network_faults.py"


def pytest_configure() -> None:
    """A shell starts what it puts in the background with SIGINT ignored; the tests press Ctrl-C all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by cost; within a room, the order of collection stays."""
    items.sort(key=_cost)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != LONGEST)


def _cost(item: pytest.Item) -> tuple[bool, int]:
    room = item.path.relative_to(HERE).parts[0]
    if room in FIRST:
        place = FIRST.index(room)
    elif room in LAST:
        place = len(FIRST) + 1 + LAST.index(room)
    else:
        place = len(FIRST)
    return item.get_closest_marker("lab") is not None, place
