"""The roles of operators, and the one table of which of them may make which call. Pure.

A call that is not in the table is made by nobody. A person may have several roles; none of them contains another, so that, say, an
admin who may also approve is one by what the policy file says and not by accident.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum


class OperatorRole(StrEnum):
    """What a person may be, as the policy file says it."""

    # Looks.
    VIEWER = "viewer"
    # Moves VMs, within what the rules permit.
    OPERATOR = "operator"
    # Says yes or no to requests of others.
    APPROVER = "approver"
    # Looks, and is there to check on the others.
    AUDITOR = "auditor"
    # Runs Landbridge itself: the tunnels, the hosts, the certificates.
    ADMIN = "admin"


_ALL = frozenset(OperatorRole)
_OPERATOR = frozenset({OperatorRole.OPERATOR})
_APPROVER = frozenset({OperatorRole.APPROVER})
_ADMIN = frozenset({OperatorRole.ADMIN})

# Calls that every operator of this site may make, also one without a role: they say who one is here.
OPEN = frozenset({"GetPolicy"})

# By the names of landbridge.v1.Gateway, and of landbridge.v1.Identities. Operators are bound further by the rules, for each VM.
CALLS: Mapping[str, frozenset[OperatorRole]] = {
    "ListSites": _ALL,
    "ListHosts": _ALL,
    "ListVms": _ALL,
    "ListMigrations": _ALL,
    "GetMigration": _ALL,
    "WatchMigration": _ALL,
    "ListRequests": _ALL,
    "ExplainPolicy": _ALL,
    "GetReceipt": _ALL,
    "RecordExport": frozenset({OperatorRole.AUDITOR}),
    # It looks into the guest's memory, and shows its definition to the other site.
    "Preflight": _OPERATOR,
    "Migrate": _OPERATOR,
    "CancelMigration": _OPERATOR,
    "SettleMigration": _OPERATOR,
    # Whoever does it answers for that the VM does not run twice.
    "ActivateMigration": _ADMIN,
    # Of a migration: operators who may move its VM. Of a tunnel, which all share: see `authority.administer`.
    "SetLimit": frozenset({OperatorRole.OPERATOR, OperatorRole.ADMIN}),
    "ApproveRequest": _APPROVER,
    "DenyRequest": _APPROVER,
    "ListCertificates": _ALL,
    "CreateToken": _ADMIN,
    "Revoke": _ADMIN,
    "LookAtSite": _ADMIN,
    "JoinSite": _ADMIN,
    "RemoveHost": _ADMIN,
    "LeaveSite": _ADMIN,
    "RequestIssuer": _ADMIN,
    "InstallIssuer": _ADMIN,
    "InstallRoots": _ADMIN,
}

# The command of `landbridge` that makes each call, for those who are told that they may not.
COMMANDS: Mapping[str, str] = {
    "ListSites": "sites",
    "ListHosts": "hosts",
    "ListVms": "vms",
    "ListMigrations": "migrations",
    "GetMigration": "show",
    "WatchMigration": "watch",
    "ListRequests": "requests",
    "ExplainPolicy": "policy explain",
    "GetReceipt": "receipt",
    "RecordExport": "audit export",
    "Preflight": "migrate",
    "Migrate": "migrate",
    "CancelMigration": "cancel",
    "SettleMigration": "settle",
    "ActivateMigration": "activate",
    "SetLimit": "limit",
    "ApproveRequest": "approve",
    "DenyRequest": "deny",
    "ListCertificates": "certs status",
    "CreateToken": "hosts enroll",
    "Revoke": "certs revoke",
    "LookAtSite": "sites join",
    "JoinSite": "sites join",
    "RemoveHost": "hosts remove",
    "LeaveSite": "sites leave",
    "RequestIssuer": "certs renew",
    "InstallIssuer": "certs renew",
    "InstallRoots": "certs rotate",
}


def may_call(call: str, roles: Collection[OperatorRole]) -> bool:
    """Whether somebody with these roles may make a call."""
    return call in OPEN or not CALLS.get(call, frozenset()).isdisjoint(roles)


def needed(call: str) -> str:
    """The roles that a call takes, in words."""
    return " or ".join(sorted(CALLS.get(call, ()))) or "a role that does not exist"
