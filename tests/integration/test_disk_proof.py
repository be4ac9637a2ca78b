"""The proof of a guest's disks, with real images: what is equal is proved so while it writes, and what rots is found."""

from __future__ import annotations

import json

import pytest

from tests.integration.story import (
    FAST,
    HOMES,
    Guest,
    assert_holds,
    assert_moves_again,
    images,
    kill_and_restart,
    moving,
    reconfigure,
)
from tests.lab.hosts import IMAGES

pytestmark = pytest.mark.lab

BLOCK = 1 << 16


def corrupt(guest: Guest, host: str) -> None:
    """Turn a byte in each cluster of the guest's image that holds data, behind the back of the QEMU that uses it."""
    (name,) = [image for image in images(guest, host) if image.endswith(".qcow2")]
    image = f"{IMAGES}/{name}"
    extents = json.loads(guest.node(host).run(["qemu-img", "map", "-U", "--output=json", "-f", "qcow2", image]))
    places = [at for e in extents if e["data"] for at in range(e["offset"], e["offset"] + e["length"], BLOCK)]
    assert places
    writes = "".join(f"printf U | dd of={image} bs=1 seek={at + 5} conv=notrunc status=none\n" for at in places)
    guest.node(host).run(["sh", "-ec", writes])


def test_the_disks_of_a_guest_that_writes_are_proved_equal_and_it_can_move_on(guest: Guest) -> None:
    with moving(guest, FAST, "--verify-disks") as move:
        ended = move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert "verifying" in move.states
    proof = ended["proof"]
    (disk,) = proof["disks"]
    assert (proof["outcome"], proof["reason"]) == ("equal", "")
    assert disk["source_root"] == disk["destination_root"]
    assert disk["blocks_compared"] + disk["blocks_written"] == disk["size"] // BLOCK
    assert disk["blocks_written"] < 40
    assert_holds(move, at=move.destination)
    assert guest.node(move.destination).virsh("checkpoint-list", guest.name, "--name").split() == []
    assert len(images(guest, move.destination)) == 1
    assert guest.lab.landbridge(move.source_site, "settle", move.id).returncode == 0
    assert_moves_again(guest)


def test_a_disk_that_rots_is_found_though_the_agent_was_killed_meanwhile(guest: Guest) -> None:
    lab = guest.lab
    destination = next(home for home in HOMES if home != guest.host)
    lab.product.read_disks_at(destination, 1.0)
    kill_and_restart(lab, destination, seconds=0.0)
    try:
        with moving(guest, FAST, "--verify-disks") as move:
            move.wait_for("verifying")
            lab.product.kill(move.destination)
            corrupt(guest, move.destination)
            lab.product.restart(move.destination)
            ended = move.end()
        assert ended["state"] == "completed"
        assert ended["proof"]["outcome"] == "differs"
        assert ended["proof"]["disks"][0]["bytes_differing"] >= BLOCK
        refused = lab.landbridge(move.source_site, "settle", move.id)
        assert refused.returncode == 4
        assert "may be the only good copy" in refused.stderr
        assert len(images(guest, move.source)) == 1
        assert guest.node(move.destination).virsh("checkpoint-list", guest.name, "--name").split() == []
    finally:
        lab.guests.stop(guest.name)
        reconfigure(lab)
