"""A lab that is taken down is gone: no namespace, mount, process, socket or file of it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import Lab, processes
from tests.lab.lab import BIG, RUN

pytestmark = [pytest.mark.lab, pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")]

NAME = "itestdown"


def test_after_down_nothing_is_left(lab: Lab) -> None:
    del lab  # skips where there can be no lab
    gone = Lab(NAME)
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
