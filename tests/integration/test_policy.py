"""Policies on real hosts: what libvirt says that a VM is, approvals by others, and a destination that judges for itself."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator

import pytest

from tests.integration.story import Guest, Json
from tests.lab import Lab, processes
from tests.lab.product import policy_of

pytestmark = pytest.mark.lab

LABELS = '<labels owner="shop" classification="internal"><tag>prod</tag></labels>'
# What the site that the guest leaves says, and what the site that it comes to says.
SOURCE = """
[[four_eyes]]
name = "production takes two"
tags = ["prod"]
approvals = 2
"""
DESTINATION = """
[residency]
unclassified = ["NL", "DE"]
internal = ["NL", "DE"]
restricted = ["US"]
[sites.us]
country = "US"
"""


def _take(lab: Lab, site: str, more: str) -> None:
    """Give a site's gateway another policy, and wait until it goes by it."""
    lab.product.set_policy(site, policy_of(site, more))
    sha256 = hashlib.sha256(lab.product.policy(site).read_bytes()).hexdigest()
    lab.product.kill(f"{site}-gw", signal.SIGHUP)
    processes.wait_until(
        lambda: json.loads(lab.landbridge(site, "policy", "status", "--json").stdout)["sha256"] == sha256,
        seconds=15,
        otherwise=f"the gateway of {site} does not take its new policy",
    )


def _objects(lab: Lab, site: str, *argv: str, who: str = "alice", code: int = 0) -> list[Json]:
    done = lab.landbridge(site, *argv, "--json", who=who)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def labelled(guest: Guest) -> Iterator[tuple[Guest, str, str]]:
    """A guest whose definition says what it is, where it is, and where it can go."""
    source, lab = guest.host.partition("-")[0], guest.lab
    destination = "west" if source == "east" else "east"
    say = ["metadata", guest.name, "urn:landbridge:labels:1", "--key", "labels"]
    lab.hosts[guest.host].virsh(*say, "--live", "--config", "--set", LABELS)
    _take(lab, source, SOURCE)
    _take(lab, destination, DESTINATION)
    yield guest, source, destination
    for site in (source, destination):
        _take(lab, site, "")
    lab.hosts[guest.host].virsh(*say, "--live", "--config", "--remove")


def test_two_others_approve_exactly_what_then_moves(labelled: tuple[Guest, str, str]) -> None:
    guest, source, destination = labelled
    lab = guest.lab
    (vm,) = (vm for vm in _objects(lab, source, "vms") if vm["name"] == guest.name and vm["state"] == "running")
    assert vm["labels"] == {"owner": "shop", "classification": "internal", "tags": ["prod"]}

    (request,) = _objects(lab, source, "migrate", guest.name, "--to", destination, code=12)
    assert request["state"] == "waiting"
    refused = lab.landbridge(source, "approve", request["id"])
    assert refused.returncode == 6
    assert "takes approver" in refused.stderr
    for who, state in (("carol", "waiting"), ("dave", "approved")):
        (seen,) = _objects(lab, source, "requests", who=who)
        assert seen["id"] == request["id"]
        (approved,) = _objects(lab, source, "approve", request["id"][:8], who=who)
        assert approved["state"] == state

    *_, ended = _objects(lab, source, "migrate", guest.name, "--to", destination)
    assert ended["state"] == "completed"
    assert [approval["approver"].rpartition("/")[2] for approval in ended["approvals"]] == ["carol", "dave"]
    assert [(d["site"], d["verdict"], d["rule"]) for d in ended["decisions"]] == [
        (source, "allowed", 'permit "alice moves everything"'),
        (destination, "allowed", 'permit "alice moves everything"'),
    ]
    (used,) = _objects(lab, source, "requests", "--all", who="carol")
    assert (used["state"], used["used_by"]) == ("used", ended["id"])
    # The other site's record tells the same, and has its own decision.
    there = next(each for each in _objects(lab, destination, "migrations") if each["id"] == ended["id"])
    assert [d["site"] for d in there["decisions"]] == [source, destination]


def test_a_destination_does_not_take_what_its_own_policy_refuses(labelled: tuple[Guest, str, str]) -> None:
    guest, source, destination = labelled
    lab, host = guest.lab, guest.host
    _take(lab, source, "")
    _take(lab, destination, DESTINATION + f'[[vms]]\nnames = ["{guest.name}"]\nclassification = "restricted"\n')
    refused = lab.landbridge(source, "migrate", guest.name, "--to", destination)
    assert refused.returncode == 6
    assert f'site {destination} refuses it by residency "restricted"' in refused.stderr
    explained = lab.landbridge(source, "policy", "explain", guest.name, "--to", destination).stdout
    assert explained.startswith(f"{guest.name} may not move from {source}/{host} to {destination}/")
    assert f'{destination}: refused by residency "restricted"' in explained
    assert guest.host == host
