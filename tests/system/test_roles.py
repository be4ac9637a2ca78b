"""Every role makes every call that operators have, over the wire: those that the matrix has go through, all others do not."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.authorization.roles import OperatorRole
from landbridge.errors import LandbridgeError, PermissionDenied
from landbridge.v1.enrolment_pb2_grpc import IdentitiesStub
from tests.system.sites import OPERATORS, STRANGER, Operator, TwoSites
from tests.unit.test_roles import SERVICES, matrix

CALLS = {method.name: method for service in SERVICES for method in service.methods}


async def refusal(who: Operator, call: str) -> str:
    """Why a call is refused for who calls; empty if it came through, whatever became of it."""
    request: Message = GetMessageClass(CALLS[call].input_type)()
    stub = who.stub if hasattr(who.stub, call) else IdentitiesStub(who.remote.channel)
    method = getattr(stub, call)
    try:
        if CALLS[call].server_streaming:
            async with contextlib.aclosing(who.remote.follow(method, request)) as answers:  # type: ignore[type-var]  # an async generator
                async for _ in answers:
                    break
        else:
            await who.remote.ask(method, request)
    except PermissionDenied as error:
        return error.message
    except LandbridgeError:
        return ""  # an empty request makes no sense to most calls, which says that they were reached
    return ""


@pytest.fixture
async def people(two: TwoSites) -> AsyncIterator[dict[str, Operator]]:
    """One operator of fra for each role, and one without any."""
    names = {role: name for name, role in OPERATORS.items()} | {"nobody": STRANGER}
    async with contextlib.AsyncExitStack() as stack:
        yield {role: await stack.enter_async_context(two.fra.person(name)) for role, name in names.items()}


async def test_each_role_may_make_the_calls_of_the_matrix_and_no_others(people: dict[str, Operator]) -> None:
    found = {(call, role): not await refusal(who, call) for call in CALLS for role, who in people.items()}
    assert found == matrix()


async def test_a_refusal_names_who_was_refused_what_they_are_and_the_role_that_it_takes(
    people: dict[str, Operator],
) -> None:
    assert await refusal(people[OperatorRole.VIEWER], "Migrate") == (
        "spiffe://landbridge.test/site/fra/operator/vera has the role viewer at site fra, and `landbridge migrate` takes operator: "
        "see [roles] in the policy file"
    )
    assert "has no role at site fra, and `landbridge limit` takes admin or operator" in await refusal(
        people["nobody"], "SetLimit"
    )


async def test_without_a_policy_nothing_is_allowed_and_what_to_write_is_said(two: TwoSites) -> None:
    await two.fra.gateway.stop()
    two.fra.policy = None
    await two.fra.gateway.start()
    alice = two.fra.operator
    refused = {call: await refusal(alice, call) for call in CALLS}
    assert {call for call, said in refused.items() if not said} == {"GetPolicy"}
    assert all(
        "this gateway has no policy, so nothing is allowed: write one" in said for said in refused.values() if said
    )
    status = await alice.policy()
    assert (status.file, list(status.roles)) == ("", [])
    assert "[policy]" in status.problem
