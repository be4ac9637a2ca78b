"""One lab for the session, with small pools, and a guest that is well before each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.story import FAST, GUEST, HOMES, POOL_SIZE, Guest, is_well
from tests.lab import Lab, LabSettings
from tests.lab.lab import name_of

# The lab's processes outlive the Popen objects that start them.
OUTLIVING = "ignore:subprocess .* is still running:ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab's processes outlive their Popen objects, and the first test waits for the lab."""
    for item in items:
        if "lab" in item.fixturenames:  # type: ignore[attr-defined]  # a Function has them
            item.add_marker(pytest.mark.filterwarnings(OUTLIVING))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two sites with the product, whose storage pools are small, and whose moves take as long as there are bytes."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")  # what else it misses is an error
    lab = Lab(name_of("i"))
    lab.down()  # what a killed run has left
    try:
        lab.up(LabSettings(pool_size=POOL_SIZE, wan=FAST, pages=False))
        yield lab
    finally:
        lab.down()


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    """A guest that runs at one of its two homes, untouched by what the test before did; the WAN is fast."""
    lab.wan.heal()
    lab.wan.unblock()
    lab.set_wan(FAST)
    guest = Guest(lab, "web")
    if not is_well(guest):
        lab.guests.stop(guest.name)
        lab.guests.start(guest.name, HOMES[0], GUEST)
    yield guest
    lab.wan.heal()
    lab.wan.unblock()
    lab.set_wan(FAST)
