"""gateway/authorization/roles.py: the matrix of roles and calls, in full."""

from __future__ import annotations

import click
import pytest

from gateway.authorization.roles import CALLS, COMMANDS, OPEN, OperatorRole, may_call, needed
from gateway.cli import cli
from landbridge.v1 import enrolment_pb2, gateway_pb2

# What operators call.
SERVICES = (
    gateway_pb2.DESCRIPTOR.services_by_name["Gateway"],
    enrolment_pb2.DESCRIPTOR.services_by_name["Identities"],
)

# x: may. Written by hand, and held against the table: whoever changes one changes the other, and is seen.
MATRIX = """
                  viewer  operator  approver  auditor  admin  nobody
ListSites         x       x         x         x        x      .
ListHosts         x       x         x         x        x      .
ListVms           x       x         x         x        x      .
ListMigrations    x       x         x         x        x      .
GetMigration      x       x         x         x        x      .
WatchMigration    x       x         x         x        x      .
ListRequests      x       x         x         x        x      .
ExplainPolicy     x       x         x         x        x      .
GetReceipt        x       x         x         x        x      .
RecordExport      .       .         .         x        .      .
GetPolicy         x       x         x         x        x      x
Preflight         .       x         .         .        .      .
Migrate           .       x         .         .        .      .
CancelMigration   .       x         .         .        .      .
SettleMigration   .       x         .         .        .      .
ActivateMigration .       .         .         .        x      .
SetLimit          .       x         .         .        x      .
ApproveRequest    .       .         x         .        .      .
DenyRequest       .       .         x         .        .      .
ListCertificates  x       x         x         x        x      .
CreateToken       .       .         .         .        x      .
Revoke            .       .         .         .        x      .
LookAtSite        .       .         .         .        x      .
JoinSite          .       .         .         .        x      .
RemoveHost        .       .         .         .        x      .
LeaveSite         .       .         .         .        x      .
RequestIssuer     .       .         .         .        x      .
InstallIssuer     .       .         .         .        x      .
InstallRoots      .       .         .         .        x      .
"""


def matrix() -> dict[tuple[str, str], bool]:
    """By call and role; the role "nobody" is none."""
    head, *lines = MATRIX.strip().splitlines()
    return {
        (line.split()[0], role): sign == "x"
        for line in lines
        for role, sign in zip(head.split(), line.split()[1:], strict=True)
    }


@pytest.mark.parametrize(("call", "role"), matrix(), ids=" ".join)
def test_a_role_may_make_the_calls_of_the_matrix_and_no_others(call: str, role: str) -> None:
    roles = set() if role == "nobody" else {OperatorRole(role)}
    assert may_call(call, roles) is matrix()[call, role]


def test_the_matrix_has_every_call_and_every_role() -> None:
    calls = {method.name for service in SERVICES for method in service.methods}
    assert {call for call, _ in matrix()} == calls == CALLS.keys() | OPEN
    assert {role for _, role in matrix()} == {*OperatorRole, "nobody"}
    assert not CALLS.keys() & OPEN


def test_a_call_that_the_table_does_not_have_is_made_by_nobody() -> None:
    assert not may_call("Teleport", set(OperatorRole))
    assert needed("Teleport") == "a role that does not exist"


def test_roles_add_up_and_none_contains_another() -> None:
    both = {OperatorRole.VIEWER, OperatorRole.APPROVER}
    assert may_call("ApproveRequest", both)
    assert not may_call("Migrate", both)
    assert not may_call("Migrate", {OperatorRole.ADMIN})


def test_a_refusal_can_name_what_is_needed() -> None:
    assert needed("Migrate") == "operator"
    assert needed("SetLimit") == "admin or operator"


def test_each_call_that_may_be_refused_has_a_command_that_people_know() -> None:
    assert set(COMMANDS) == set(CALLS)
    for command in set(COMMANDS.values()):
        found: click.Command = cli
        for word in command.split():
            assert isinstance(found, click.Group)
            child = found.get_command(click.Context(found), word)
            assert child is not None, command
            found = child
