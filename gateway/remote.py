"""Calls to agents of this site and to gateways of others: with a deadline, and with errors of our tree that name whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from grpc import aio

from certs.channels import LivingChannel
from certs.identity import Role
from certs.living import LivingIdentity
from landbridge.config import Address
from landbridge.errors import CODE_KEY, HostUnreachable, LandbridgeError, Unreachable, from_status
from landbridge.v1.agent_pb2_grpc import AgentStub
from landbridge.v1.peer_pb2_grpc import PeerStub

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.agent_pb2_grpc import AgentAsyncStub
    from landbridge.v1.peer_pb2_grpc import PeerAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")

# Seconds: for facts, and for what touches a hypervisor.
FACTS = 10.0
WORK = 60.0

_OPTIONS = (
    # A silent peer is noticed by HTTP/2 pings also while nothing is asked, so that a watch does not hang for ever.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # How long one attempt to connect may take, whatever its name says: there may be another address to try.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)


class Remote:
    """One agent or one gateway."""

    def __init__(
        self, name: str, address: Address, local: LivingIdentity, role: Role, site: str, host: str | None
    ) -> None:
        # For messages: "host east-1", "site west".
        self.name = name
        self._where = str(address)
        self._is_host = role is Role.HOST
        self._channel = LivingChannel(str(address), local, role, site, host, _OPTIONS)

    @property
    def channel(self) -> aio.Channel:
        """For a stub."""
        return self._channel.for_stub()

    async def ask(
        self, method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float = FACTS
    ) -> Response:
        """Call a method. Raises HostUnreachable or Unreachable, or what the other side answered."""
        try:
            return await method(request, timeout=timeout)
        except aio.AioRpcError as error:
            raise self._error(error) from error

    async def follow(
        self, method: aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> AsyncIterator[Response]:
        """The answers of a streaming method, until it ends. Raises as `ask`."""
        call = method(request)
        try:
            async for response in call:
                yield response
        except aio.AioRpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()

    def _error(self, error: aio.AioRpcError) -> LandbridgeError:
        if _is_answer(error):
            trailing = tuple((key, value) for key, value in error.trailing_metadata() or ())
            return from_status(error.code().name, error.details(), trailing)
        unreachable = HostUnreachable if self._is_host else Unreachable
        said = (error.details() or error.code().name).splitlines()[0][:200]
        return unreachable(f"{self.name} does not answer at {self._where} ({said}); see whether it runs there")

    async def close(self) -> None:
        """Give up the connection."""
        await self._channel.close()


class AgentRemote(Remote):
    """An agent of this site."""

    def __init__(self, host: str, address: Address, local: LivingIdentity) -> None:
        super().__init__(f"host {host}", address, local, Role.HOST, local.identity.site, host)
        self.stub: AgentAsyncStub = AgentStub(self.channel)


class PeerRemote(Remote):
    """The gateways of another site: whichever answers. All that peers are asked may be asked twice, and of any of them."""

    def __init__(self, site: str, addresses: Sequence[Address], local: LivingIdentity) -> None:
        """The addresses in the order in which they are tried at first."""
        super().__init__(f"site {site}", addresses[0], local, Role.GATEWAY, site, None)
        self._where = ", ".join(map(str, addresses))
        others = [LivingChannel(str(each), local, Role.GATEWAY, site, None, _OPTIONS) for each in addresses[1:]]
        self._channels = [self._channel, *others]
        # Of each address alone, for what every gateway is to be asked.
        self.each: dict[str, PeerAsyncStub] = {
            str(address): PeerStub(channel.for_stub())
            for address, channel in zip(addresses, self._channels, strict=True)
        }
        self.stub: PeerAsyncStub = PeerStub(
            cast("aio.Channel", _FirstThatAnswers([each.for_stub() for each in self._channels]))
        )

    async def close(self) -> None:
        """Give up the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


class _FirstThatAnswers:
    """Where a stub wants a channel: each call goes to the channel that answered last, and on to the next one if it is silent."""

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        self._channels = channels
        self._last = 0

    def unary_unary(self, *method: Any, **options: Any) -> Callable[..., Awaitable[Any]]:
        """As of a channel; the call takes a request and a timeout, and raises what the last one raised that was tried."""
        methods = [channel.unary_unary(*method, **options) for channel in self._channels]

        async def ask(request: object, *, timeout: float) -> object:
            first = self._last
            *others, last = (*range(first, len(methods)), *range(first))
            for index in others:
                try:
                    return await self._ask(methods, index, request, timeout)
                except aio.AioRpcError as error:
                    if not _is_silence(error):
                        raise
            return await self._ask(methods, last, request, timeout)

        return ask

    async def _ask(self, methods: Sequence[Any], index: int, request: object, timeout: float) -> object:
        try:
            answer: object = await methods[index](request, timeout=timeout)
        except aio.AioRpcError as error:
            if not _is_silence(error):
                self._last = index
            raise
        self._last = index
        return answer


def _is_answer(error: aio.AioRpcError) -> bool:
    return any(key == CODE_KEY for key, _ in error.trailing_metadata() or ())


def _is_silence(error: aio.AioRpcError) -> bool:
    return not _is_answer(error) and error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def clock_offset_ms(asked: datetime, answered: datetime, theirs: datetime) -> int:
    """Their clock minus ours, taking their reading for the middle of the round trip (RFC 5905, section 8)."""
    middle = asked + (answered - asked) / 2
    return round((theirs - middle).total_seconds() * 1000)


def now() -> datetime:
    """This gateway's clock."""
    return datetime.now(UTC)
