"""The guard on a real gRPC server: who may call what, and what a caller learns of an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from certs import tls
from certs.guard import Access, Guard, bind, caller
from certs.guard import server as guarded_server
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.store import StoredIdentity
from landbridge.config import Address
from landbridge.errors import (
    CODE_KEY,
    ConfigError,
    Conflict,
    InternalError,
    LandbridgeError,
    NotFound,
    PermissionDenied,
    PreflightFailed,
    from_status,
)
from landbridge.v1 import agent_pb2, gateway_pb2, gateway_pb2_grpc
from landbridge.v1.agent_pb2_grpc import AgentServicer, AgentStub, add_AgentServicer_to_server
from tests.unit.identities import DOMAIN, Identities

CONFIDENTIAL = "the CA's key is under the doormat"
ERRORS = {
    "not-found": NotFound("there is no migration x", details={"id": "x"}),
    "conflict": Conflict("it is under way"),
    "preflight-failed": PreflightFailed("the disk is full"),
    "defect": ZeroDivisionError(CONFIDENTIAL),
}


class Service(gateway_pb2_grpc.GatewayServicer):
    """Answers with the caller, or fails as the id says."""

    async def GetMigration(self, request: Any, context: Any) -> gateway_pb2.GetMigrationResponse:  # noqa: N802 - gRPC's name
        if request.id in ERRORS:
            raise ERRORS[request.id]
        answer = gateway_pb2.GetMigrationResponse()
        answer.migration.requested_by = str(caller.get())
        return answer

    async def WatchMigration(  # noqa: N802 - see above
        self, request: Any, context: Any
    ) -> AsyncIterator[gateway_pb2.WatchMigrationResponse]:
        answer = gateway_pb2.WatchMigrationResponse()
        answer.migration.requested_by = str(caller.get())
        yield answer
        if request.id in ERRORS:
            raise ERRORS[request.id]


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities.make(tmp_path_factory.mktemp("identities"))


@asynccontextmanager
async def served(identities: Identities, access: Access) -> AsyncIterator[int]:
    """Gateway by `access`, and Agent, which nobody may call; the port."""
    own = identities.of("a", Role.GATEWAY)
    living = LivingIdentity(own)
    server = guarded_server(Guard(living, {"landbridge.v1.Gateway": access}))
    gateway_pb2_grpc.add_GatewayServicer_to_server(Service(), server)  # type: ignore[abstract]  # what is not called is not there
    add_AgentServicer_to_server(AgentServicer(), server)  # type: ignore[abstract]  # see above
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(lambda: living.stored))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
        del server
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(port: int, identity: StoredIdentity) -> AsyncIterator[aio.Channel]:
    options = tls.grpc_channel_options(Role.GATEWAY, "a", DOMAIN)
    credentials = tls.grpc_channel_credentials(identity, "a")
    async with aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel


async def get(channel: aio.Channel, id_: str = "") -> str:
    """The caller as the service knows it; or the error as it came."""
    stub: Any = gateway_pb2_grpc.GatewayStub(channel)
    answer = await stub.GetMigration(gateway_pb2.GetMigrationRequest(id=id_), timeout=5)
    return str(answer.migration.requested_by)


async def watch(channel: aio.Channel, id_: str = "") -> list[str]:
    stub: Any = gateway_pb2_grpc.GatewayStub(channel)
    call = stub.WatchMigration(gateway_pb2.WatchMigrationRequest(id=id_), timeout=5)
    return [str(answer.migration.requested_by) async for answer in call]


def error_of(caught: pytest.ExceptionInfo[aio.AioRpcError]) -> LandbridgeError:
    error = caught.value
    trailing = tuple((key, value) for key, value in error.trailing_metadata() or ())
    assert any(key == CODE_KEY for key, _ in trailing)
    return from_status(error.code().name, error.details(), trailing)


HOME = Site("example.org", "a")
OPERATORS = Access(Role.OPERATOR, HOME)
PEERS = Access(Role.GATEWAY, HOME, local=False)


@pytest.mark.parametrize(("access", "site", "role"), [(OPERATORS, "a", Role.OPERATOR), (PEERS, "b", Role.GATEWAY)])
async def test_the_right_caller_is_let_in_and_known_to_the_method(
    identities: Identities, access: Access, site: str, role: Role
) -> None:
    identity = identities.of(site, role)
    async with served(identities, access) as port, connected(port, identity) as channel:
        assert await get(channel) == str(identity.identity)
        assert await watch(channel) == [str(identity.identity)]


@pytest.mark.parametrize(
    ("access", "site", "role", "takes"),
    [
        (OPERATORS, "a", Role.HOST, "it takes a certificate of an operator of site a"),
        (OPERATORS, "a", Role.GATEWAY, "it takes a certificate of an operator of site a"),
        (OPERATORS, "b", Role.OPERATOR, "it takes a certificate of an operator of site a"),
        (PEERS, "a", Role.GATEWAY, "it takes a certificate of a gateway of another site"),
        (PEERS, "b", Role.OPERATOR, "it takes a certificate of a gateway of another site"),
    ],
)
async def test_a_caller_of_another_role_or_site_is_refused_before_the_method(
    identities: Identities, access: Access, site: str, role: Role, takes: str
) -> None:
    async with served(identities, access) as port, connected(port, identities.of(site, role)) as channel:
        for call in (get, watch):
            with pytest.raises(aio.AioRpcError) as caught:
                await call(channel)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            error = error_of(caught)
            assert type(error) is PermissionDenied
            assert f"/site/{site}/{role}/x1 may not call /landbridge.v1.Gateway/" in error.message
            assert takes.replace("a operator", f"a {Role.OPERATOR}") in error.message


@pytest.mark.parametrize("access", [OPERATORS, PEERS])
def test_a_namesake_of_this_site_in_another_trust_domain_may_call_nothing(access: Access) -> None:
    with pytest.raises(PermissionDenied, match="may not call"):
        access.check(Identity("example.net", "a", access.role, "x1"), "Get")


async def test_a_service_that_nobody_was_given_access_to_is_refused(identities: Identities) -> None:
    async with (
        served(identities, OPERATORS) as port,
        connected(port, identities.of("a", Role.OPERATOR)) as channel,
    ):
        stub: Any = AgentStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.GetHost(agent_pb2.GetHostRequest(), timeout=5)
        error = error_of(caught)
        assert type(error) is PermissionDenied
        assert "/landbridge.v1.Agent/GetHost is not served here" in error.message


async def test_a_method_that_does_not_exist_is_unimplemented(identities: Identities) -> None:
    async with (
        served(identities, OPERATORS) as port,
        connected(port, identities.of("a", Role.OPERATOR)) as channel,
    ):
        fly: Any = channel.unary_unary("/landbridge.v9.Gateway/Fly")
        with pytest.raises(aio.AioRpcError) as caught:
            await fly(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_caller_whom_no_trusted_site_vouches_for_reaches_nothing(identities: Identities) -> None:
    async with (
        served(identities, OPERATORS) as port,
        connected(port, identities.of("stranger", Role.OPERATOR)) as channel,
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await get(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("id_", ["not-found", "conflict", "preflight-failed"])
async def test_an_error_of_ours_arrives_as_itself(identities: Identities, id_: str) -> None:
    async with (
        served(identities, OPERATORS) as port,
        connected(port, identities.of("a", Role.OPERATOR)) as channel,
    ):
        for call in (get, watch):
            with pytest.raises(aio.AioRpcError) as caught:
                await call(channel, id_)
            error, raised = error_of(caught), ERRORS[id_]
            assert isinstance(raised, LandbridgeError)
            assert (type(error), error.message, error.details) == (type(raised), raised.message, raised.details)


async def test_of_a_defect_the_caller_learns_only_that_it_is_one(identities: Identities) -> None:
    async with (
        served(identities, OPERATORS) as port,
        connected(port, identities.of("a", Role.OPERATOR)) as channel,
    ):
        for call in (get, watch):
            with pytest.raises(aio.AioRpcError) as caught:
                await call(channel, "defect")
            assert type(error_of(caught)) is InternalError
            assert "see the log of the other side" in (caught.value.details() or "")
            assert CONFIDENTIAL not in repr(caught.value)
            assert "ZeroDivision" not in repr(caught.value)


async def test_a_port_is_never_shared_with_another_server(identities: Identities) -> None:
    """Else the kernel would deal its callers out among both, and each would answer some of them."""
    living = LivingIdentity(identities.of("a", Role.GATEWAY))
    credentials = tls.grpc_server_credentials(lambda: living.stored)
    async with served(identities, Access(Role.OPERATOR, Site(DOMAIN, "a"))) as port:
        second = guarded_server(Guard(living, {}))
        with pytest.raises(ConfigError, match=f"nothing can listen on 127.0.0.1:{port}: .*; see listen.peers in "):
            bind(second, Address("127.0.0.1", port), credentials, "peers")
        await second.stop(None)
