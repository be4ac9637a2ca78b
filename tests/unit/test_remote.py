"""Asking a site that has several gateways: whichever answers, and what it answers is the answer."""
# ruff: noqa: N802 - the contract names the methods of a servicer

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from grpc import aio

from gateway.remote import _FirstThatAnswers
from landbridge.errors import Unreachable, to_status
from landbridge.v1 import peer_pb2 as pb
from landbridge.v1.peer_pb2_grpc import PeerServicer, PeerStub, add_PeerServicer_to_server

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.peer_pb2_grpc import PeerAsyncStub


class FakePeer:
    """A gateway that tells its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        self.refuse: grpc.StatusCode | None = None
        self.hangs = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    async def _not_asked(self, request: object, context: Any) -> None:
        raise NotImplementedError

    CheckIncoming = Authorize = Prepare = Activate = Cancel = Prove = Report = _not_asked
    ExchangeTrust = GetProofs = AddCheckpoint = GetReport = Leave = _not_asked

    async def GetSite(self, request: pb.GetSiteRequest, context: Any) -> pb.GetSiteResponse:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(60)
        if self.refuse is not None:
            status = to_status(Unreachable("the host is away"))
            await context.abort(self.refuse, status.message, tuple(status.trailing.items()))
        return pb.GetSiteResponse(name=self.name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = aio.server()
        add_PeerServicer_to_server(cast("PeerServicer", self), server)
        server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


@pytest.fixture
def peers() -> tuple[FakePeer, FakePeer]:
    return FakePeer("gw-1"), FakePeer("gw-2")


@pytest.fixture
async def stub(peers: tuple[FakePeer, FakePeer]) -> AsyncIterator[PeerAsyncStub]:
    options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
    channels = [aio.insecure_channel(f"127.0.0.1:{peer.port}", options=options) for peer in peers]
    made: PeerAsyncStub = PeerStub(cast("aio.Channel", _FirstThatAnswers(channels)))
    yield made
    for channel in channels:
        await channel.close()


async def name(stub: PeerAsyncStub, timeout: float = 5.0) -> str:
    return (await stub.GetSite(pb.GetSiteRequest(), timeout=timeout)).name


async def test_the_first_that_answers_is_asked_first_from_then_on(
    peers: tuple[FakePeer, FakePeer], stub: PeerAsyncStub
) -> None:
    one, two = peers
    async with two.running():
        assert await name(stub) == "gw-2"
        async with one.running():
            assert await name(stub) == "gw-2"
        assert one.asked == 0
    async with one.running(), asyncio.timeout(10):
        while True:  # gRPC pauses between two attempts to connect, and nobody is asked meanwhile
            with contextlib.suppress(aio.AioRpcError):
                assert await name(stub) == "gw-1"
                break
            await asyncio.sleep(0.02)


async def test_one_that_does_not_answer_in_time_is_passed_over(
    peers: tuple[FakePeer, FakePeer], stub: PeerAsyncStub
) -> None:
    one, two = peers
    one.hangs = True
    async with one.running(), two.running():
        assert await name(stub, 0.3) == "gw-2"
        assert await name(stub, 0.3) == "gw-2"
    assert one.asked == 1


async def test_what_one_answers_is_not_asked_of_the_next(peers: tuple[FakePeer, FakePeer], stub: PeerAsyncStub) -> None:
    one, two = peers
    one.refuse = grpc.StatusCode.UNAVAILABLE
    async with one.running(), two.running():
        with pytest.raises(aio.AioRpcError, match="the host is away"):
            await name(stub)
    assert two.asked == 0


async def test_if_nobody_answers_that_is_an_error(stub: PeerAsyncStub) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await name(stub)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
