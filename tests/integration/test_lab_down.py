"""A lab that is taken down is gone: no namespace, mount, process, socket or file of it stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, processes
from tests.lab.lab import BIG, RUN, name_of

pytestmark = [pytest.mark.lab, pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")]

NAME = name_of("d")


@pytest.fixture
def gone(lab: Lab) -> Iterator[Lab]:
    """A lab of the test's own."""
    del lab  # skips where there can be no lab
    own = Lab(NAME)
    own.down()  # what a killed run has left
    yield own
    own.down()


def test_a_lab_whose_processes_were_all_killed_is_built_anew(gone: Lab) -> None:
    assert gone.up(product=False)
    assert not gone.up(product=False)
    victims = processes.inside(gone.network.paths()) + processes.recorded(gone.directory / "processes")
    for record in victims:
        processes.send(record, signal.SIGKILL)
    processes.wait_until(lambda: not any(v.is_alive() for v in victims), seconds=10, otherwise="they do not end")
    assert gone.up(product=False)
    assert "running" in gone.hosts["east-1"].run(["virsh", "pool-info", "default"])
    assert gone.down()
    assert not gone.down()


def test_after_down_nothing_is_left(gone: Lab) -> None:
    gone.up()
    try:
        spaces = gone.network.paths()
        started = processes.inside(spaces) + processes.recorded(gone.directory / "processes")
        assert len(started) > 10
        gone.product.kill("east-1")  # what was killed before must not confuse it
    finally:
        gone.down()
    assert not [record for record in started if record.is_alive()]
    assert not [path for path in spaces if path.exists()]
    assert not (RUN / NAME).exists()
    assert not (BIG / NAME).exists()
    assert f"/{NAME}/" not in Path("/proc/mounts").read_text()
    assert NAME not in Path("/proc/net/unix").read_text()
    assert not [entry.name for entry in os.scandir("/run/netns") if NAME in entry.name]
    assert not gone.down()
