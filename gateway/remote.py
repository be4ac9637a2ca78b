"""Calls to agents of this site and to gateways of others: with a deadline, and with errors of our tree that name whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from grpc import aio

from certs import tls
from certs.identity import Role
from certs.store import StoredIdentity
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
    ("grpc.enable_http_proxy", 0),
)


class Remote:
    """One agent or one gateway."""

    def __init__(
        self, name: str, address: Address, local: StoredIdentity, role: Role, site: str, host: str | None
    ) -> None:
        # For messages: "host east-1", "site west".
        self.name = name
        self._address = address
        self._is_host = role is Role.HOST
        options = tls.grpc_channel_options(role, site, local.identity.trust_domain, host)
        self.channel = aio.secure_channel(
            str(address), tls.grpc_channel_credentials(local, site), options=[*options, *_OPTIONS]
        )

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
        trailing = tuple((key, value) for key, value in error.trailing_metadata() or ())
        if any(key == CODE_KEY for key, _ in trailing):
            return from_status(error.code().name, error.details(), trailing)
        unreachable = HostUnreachable if self._is_host else Unreachable
        said = (error.details() or error.code().name).splitlines()[0][:200]
        return unreachable(f"{self.name} does not answer at {self._address} ({said}); see whether it runs there")

    async def close(self) -> None:
        """Give up the connection."""
        await self.channel.close()


class AgentRemote(Remote):
    """An agent of this site."""

    def __init__(self, host: str, address: Address, local: StoredIdentity) -> None:
        super().__init__(f"host {host}", address, local, Role.HOST, local.identity.site, host)
        self.stub: AgentAsyncStub = AgentStub(self.channel)


class PeerRemote(Remote):
    """The gateway of another site."""

    def __init__(self, site: str, address: Address, local: StoredIdentity) -> None:
        super().__init__(f"site {site}", address, local, Role.GATEWAY, site, None)
        self.stub: PeerAsyncStub = PeerStub(self.channel)


def clock_offset_ms(asked: datetime, answered: datetime, theirs: datetime) -> int:
    """Their clock minus ours, taking their reading for the middle of the round trip (RFC 5905, section 8)."""
    middle = asked + (answered - asked) / 2
    return round((theirs - middle).total_seconds() * 1000)


def now() -> datetime:
    """This gateway's clock."""
    return datetime.now(UTC)
