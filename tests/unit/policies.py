"""A policy, people and requests for tests: change one thing, and one thing comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from certs.identity import Identity, Role
from gateway.authorization.request import Labels, Request
from gateway.authorization.rules import Rules, parse

DOMAIN = "example.org"
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)

HEAD = """\
site = "fra"
trust_domain = "example.org"
[roles]
viewer = ["vera"]
operator = ["alice", "bob"]
approver = ["carol", "dave", "bob"]
auditor = ["adam"]
admin = ["root"]
[sites.fra]
country = "DE"
zone = "eu"
[sites.ams]
country = "NL"
zone = "eu"
[sites.nyc]
country = "US"
"""
PERMIT = """\
[[rules]]
name = "web"
effect = "permit"
who = ["alice", "bob"]
vms = ["web-*"]
from = ["fra"]
to = ["ams", "nyc"]
"""


def who(name: str, site: str = "fra", domain: str = DOMAIN) -> Identity:
    return Identity(domain, site, Role.OPERATOR, name)


def people(*names: str) -> frozenset[Identity]:
    return frozenset(who(name) for name in names)


def rules(*parts: str, head: str = HEAD, permit: str = PERMIT) -> Rules:
    return parse("\n".join((head, permit, *parts)), "policy.toml")


def request(
    *,
    requester: Identity | None = None,
    vm: str = "web-1",
    source: str = "fra/fra-1",
    destination: str = "ams/ams-1",
    approvals: Iterable[Identity] = (),
    break_glass: str = "",
    purpose: str = "",
    **labels: object,
) -> Request:
    here, _, host = source.partition("/")
    there, _, other = destination.partition("/")
    made = Request(requester or who("alice"), vm, here, host, there, other)
    said = replace(Labels(), **labels)  # type: ignore[arg-type]  # the caller's keywords
    return replace(made, labels=said, approvals=frozenset(approvals), break_glass=break_glass, purpose=purpose)
