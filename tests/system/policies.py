"""Policies for two sites, what is decided by them, and migrations that are asked for."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway.authorization.request import domain_digest, mapping_digest
from gateway.migration.states import State
from landbridge.errors import ApprovalNeeded
from landbridge.v1 import agent_pb2
from landbridge.v1.authorization_pb2 import ApprovalRequest
from landbridge.v1.types_pb2 import Migration
from tests.system.sites import TRUST_DOMAIN, Operator, SiteUnderTest, eventually, policy_of

TWO = '\n[[four_eyes]]\nname = "two"\napprovals = 2\n'
ONE = '\n[[four_eyes]]\nname = "one"\napprovals = 1\n'
ALWAYS = """
[[freezes]]
name = "always"
timezone = "Europe/Berlin"
begins = 2000-01-01T00:00:00
ends = 2199-01-01T00:00:00
"""
GLASS = '\n[break_glass]\nwho = ["*/alice"]\n'
DEFINITION = "<domain type='qemu'><name>web-01</name></domain>"


def person(name: str, site: str = "fra") -> str:
    return f"spiffe://{TRUST_DOMAIN}/site/{site}/operator/{name}"


async def give(site: SiteUnderTest, more: str = "", *, permits: bool = True) -> str:
    """Write a site's policy, and wait until its gateway goes by it; the hash."""
    text = policy_of(site.name, more=more, permits=permits)
    site.set_policy(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()

    async def is_taken() -> bool:
        return (await site.operator.policy()).sha256 == sha256

    await eventually(is_taken)
    return sha256


async def has_role(operator: Operator, role: str) -> bool:
    return role in (await operator.policy()).roles


def decided(entries: list[dict[str, Any]], **facts: str) -> list[dict[str, Any]]:
    """The decisions in the log that have these facts."""
    return [
        entry
        for entry in entries
        if entry["event"] == "policy.decided" and all(entry[name] == value for name, value in facts.items())
    ]


async def asked(operator: Operator, vm: str = "web-01", site: str = "ams", **options: Any) -> str:
    """Ask for a migration that waits for approvals; the id of its request."""
    with pytest.raises(ApprovalNeeded) as error:
        await operator.migrate(vm, site, **options)
    return error.value.details["request"]


async def found(operator: Operator, id_: str) -> ApprovalRequest:
    return next(each for each in await operator.requests() if each.id == id_)


def brought(**changes: object) -> Migration:
    """A migration as fra's gateway brings it to ams."""
    facts: dict[str, object] = {
        "id": "6f0c4a52-3d1c-4c0e-9f64-1f1b4a3c9e01",
        "vm": "web-01",
        "vm_uuid": "11111111-2222-4333-8444-555555555555",
        "source_site": "fra",
        "source_host": "fra-1",
        "destination_site": "ams",
        "destination_host": "ams-1",
        "requested_by": person("alice"),
        "state": State.PREPARING.value,
        "domain_sha256": domain_digest(DEFINITION),
        "mapping_sha256": mapping_digest(agent_pb2.Mapping()),
    }
    return Migration(**{**facts, **changes})  # type: ignore[arg-type]  # the caller's keywords
