"""A VM that is shut off moves with its disk, runs nowhere on the way, and is shut off where it arrives."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.story import FAST, kill_and_restart
from tests.integration.test_preflight_lab import DESTINATION, DOMAIN, PLAIN_CPU, SOURCE, disk
from tests.lab import Lab, WanSettings, processes
from tests.lab.hosts import IMAGES
from tests.lab.network import node

pytestmark = pytest.mark.lab

NAME = "cold"
IMAGE = f"{IMAGES}/{NAME}.raw"
# Mbit/s at which its disk takes some seconds.
SLOW = WanSettings(rate=8, rtt=10)


@pytest.fixture
def content(lab: Lab) -> Iterator[str]:
    """The SHA-256 of the disk of a VM that is shut off at the source."""
    lab.set_wan(FAST)
    raw = os.urandom(4 << 20) + bytes(4 << 20)
    (lab.directory / "cold.raw").write_bytes(raw)
    (lab.directory / "cold.xml").write_text(
        DOMAIN.format(name=NAME, uuid=uuid.uuid4(), cpu=PLAIN_CPU, devices=disk(IMAGE))
    )
    host = lab.hosts[SOURCE]
    host.virsh("vol-create-as", "default", Path(IMAGE).name, "8M", "--format", "raw")
    host.virsh("vol-upload", "--pool", "default", Path(IMAGE).name, str(lab.directory / "cold.raw"))
    host.virsh("define", str(lab.directory / "cold.xml"))
    yield hashlib.sha256(raw).hexdigest()
    lab.set_wan(FAST)
    for name in (SOURCE, DESTINATION):
        lab.hosts[name].virsh("undefine", NAME, check=False)
        lab.hosts[name].virsh("vol-delete", "--pool", "default", Path(IMAGE).name, check=False)


def is_shut_off(lab: Lab, host: str) -> bool:
    return lab.hosts[host].virsh("domstate", NAME, check=False).strip() == "shut off"


def sha256(lab: Lab, host: str) -> str:
    return lab.hosts[host].run(["sha256sum", IMAGE]).split()[0]


def test_it_moves_as_it_is_and_what_it_leaves_can_be_settled(lab: Lab, content: str) -> None:
    site, to = node(SOURCE).site, f"{node(DESTINATION).site}/{DESTINATION}"
    moved = lab.landbridge(site, "migrate", f"{SOURCE}/{NAME}", "--to", to)
    assert moved.returncode == 0, moved.stderr
    assert f"{NAME} has moved from {site}/{SOURCE} to {to} and is shut off there." in moved.stdout
    assert is_shut_off(lab, DESTINATION)
    assert sha256(lab, DESTINATION) == content
    assert is_shut_off(lab, SOURCE)
    (record,) = (
        each
        for each in map(json.loads, lab.landbridge(site, "migrations", "--json").stdout.splitlines())
        if each["vm"] == NAME and each["state"] == "completed"
    )
    settled = lab.landbridge(site, "settle", record["id"])
    assert settled.returncode == 0, settled.stderr
    assert NAME not in lab.hosts[SOURCE].virsh("list", "--all", "--name").split()


def test_it_is_shut_off_at_the_source_when_its_agent_is_killed(lab: Lab, content: str) -> None:
    site, to = node(SOURCE).site, f"{node(DESTINATION).site}/{DESTINATION}"
    lab.set_wan(SLOW)
    begun = lab.landbridge(site, "migrate", f"{SOURCE}/{NAME}", "--to", to, "--detach", "--json")
    assert begun.returncode == 0, begun.stderr
    processes.wait_until(
        lambda: lab.hosts[SOURCE].virsh("domstate", NAME).strip() == "paused",
        seconds=20,
        otherwise="it never stood still",
    )
    kill_and_restart(lab, SOURCE)
    lab.set_wan(FAST)
    processes.wait_until(lambda: is_shut_off(lab, SOURCE), seconds=60, otherwise="it is not shut off again")
    processes.wait_until(
        lambda: NAME not in lab.hosts[DESTINATION].virsh("list", "--all", "--name").split(),
        seconds=60,
        otherwise="it is at the destination still",
    )
    assert sha256(lab, SOURCE) == content
