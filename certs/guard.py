"""The first interceptor of every gRPC server: who calls, may they, and which status an error becomes.

1. The caller's certificate is held against the roots of its site, and against what was revoked (`trust.judge`): an unknown
   caller, or one whose CA speaks for another site, reaches no method. An answer in parts ends when its caller is revoked.
2. `Access` says which identities may call which service. Anything else is refused and logged.
3. An error of our tree becomes its status with its code; any other exception is a defect: it is logged with its trace,
   and the caller learns only that.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc import aio

from certs.attempts import address_of
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.trust import Credential
from landbridge.config import Address
from landbridge.errors import (
    ConfigError,
    IdentityError,
    InternalError,
    LandbridgeError,
    NotAuthenticated,
    PermissionDenied,
    PolicyRefused,
    Status,
    to_status,
)

log = structlog.get_logger()

# Clients ping silent connections every 10 s (gateway.remote) or 20 s (landbridge.client); gRPC takes that for an attack
# unless it is told otherwise, and ends the connection.
# gRPC shares a port with whoever else asks for it, and the kernel deals connections out among them: a second gateway, or another
# section of the same file, with the same address would answer some of them. Without, it cannot listen, and says so.
# The rest bounds what one connection costs, whoever makes it: calls at once, bytes of a message and of its headers, and how long a
# handshake may take.
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 10_000),
)
# Calls that a server answers at once, of all callers; more are told that it is exhausted.
MOST_CALLS = 1024


def server(guard: Guard) -> aio.Server:
    """A gRPC server, guarded and bounded; it is to be given services, a port by `bind`, and its start."""
    return aio.server(interceptors=[guard], options=SERVER_OPTIONS, maximum_concurrent_rpcs=MOST_CALLS)


def bind(server: aio.Server, address: Address, credentials: grpc.ServerCredentials, section: str) -> None:
    """Have a server listen, with this port to itself; `section` names it in the configuration. Raises ConfigError."""
    problem: RuntimeError | None = None
    try:
        port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:  # what grpc raises when it cannot bind
        port, problem = 0, error
    if port == 0:
        raise ConfigError(
            f"nothing can listen on {address}: it is no address of this machine, or something else listens there already; see "
            f"listen.{section} in the configuration"
        ) from problem


# The caller of the method that runs in this context.
caller: contextvars.ContextVar[Identity] = contextvars.ContextVar("caller")


@dataclass(frozen=True)
class Access:
    """Who may call a service: one role, of one site or (with `local` false) of any trusted site but this one."""

    role: Role
    home: Site
    local: bool = True

    def check(self, identity: Identity, method: str) -> None:
        """Raises PermissionDenied."""
        # Sites go by their names everywhere: a namesake in another trust domain is neither this one nor another.
        fits = identity.home == self.home if self.local else identity.site != self.home.site
        if identity.role is not self.role or not fits:
            whose = f"of site {self.home.site}" if self.local else "of another site"
            article = "an" if self.role is Role.OPERATOR else "a"
            raise PermissionDenied(
                f"{identity} may not call {method}: it takes a certificate of {article} {self.role} {whose}"
            )


@dataclass(frozen=True)
class Refused:
    """Somebody was turned away: by a guard of calls, or of links (`certs.links`)."""

    # None for one who did not prove who it is.
    identity: Identity | None
    address: str
    # The method, or "a stream".
    what: str
    reason: str


class Guard(aio.ServerInterceptor):
    """Steps 1 to 3 for every method of the services in `access`, by full name such as "landbridge.v1.Agent"."""

    def __init__(
        self,
        local: LivingIdentity,
        access: Mapping[str, Access | None],
        on_refused: Callable[[Refused], None] | None = None,
    ) -> None:
        """None where anybody may call, with or without a certificate. `on_refused` is told of whoever is turned away."""
        self._local = local
        self._access = access
        self._on_refused = on_refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                self._admit(method, context)
                return await behaviour(request, context)
            except Exception as error:  # noqa: BLE001 - the last line of defence, see _status_of
                self._tell(error, method, context)
                return await _abort(context, _status_of(error, method))

        return guarded

    def _stream(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                credential = self._admit(method, context)
                held = self._held(behaviour(request, context), credential)
                async with contextlib.aclosing(held) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:  # noqa: BLE001 - the last line of defence, see _status_of
                self._tell(error, method, context)
                await _abort(context, _status_of(error, method))

        return guarded

    def _tell(self, error: Exception, method: str, context: Any) -> None:
        """Tell of a refusal; what a policy decided is told by whoever asked it."""
        if self._on_refused is None or isinstance(error, PolicyRefused):
            return
        who = caller.get(None)
        if isinstance(error, PermissionDenied) or (who is None and isinstance(error, NotAuthenticated)):
            self._on_refused(Refused(who, address_of(context.peer()), method, error.message))

    async def _held(
        self, responses: AsyncGenerator[Any, None], credential: Credential | None
    ) -> AsyncGenerator[Any, None]:
        """The responses, until the caller is revoked; IdentityError then."""
        cut = _Cut()
        if credential is not None:
            self._local.hold(cut, credential)
        try:
            while True:
                following = asyncio.ensure_future(anext(responses, _END))
                try:
                    await asyncio.wait((following, cut.reason), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    following.cancel()  # does nothing to one that is done
                    await asyncio.wait((following,))
                if cut.reason.done():
                    following.cancelled() or following.exception()  # looked at: this end is the one that counts
                    raise IdentityError(cut.reason.result())
                if (response := following.result()) is _END:
                    return
                yield response
        finally:
            self._local.release(cut)
            await responses.aclose()

    def _admit(self, method: str, context: Any) -> Credential | None:
        service = method.split("/")[1]
        if service not in self._access:
            raise PermissionDenied(f"{method} is not served here")
        access = self._access[service]
        if access is None:
            return None
        credential = self._local.caller(context)
        caller.set(credential.identity)
        access.check(credential.identity, method)
        return credential


_END = object()


class _Cut:
    """An answer in parts, which can be ended from outside."""

    def __init__(self) -> None:
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def abort(self, reason: str) -> None:
        """End it."""
        if not self.reason.done():
            self.reason.set_result(reason)


async def _abort(context: Any, status: Status) -> None:
    await context.abort(grpc.StatusCode[status.name], status.message, tuple(status.trailing.items()))


def _status_of(error: Exception, method: str) -> Status:
    if isinstance(error, LandbridgeError):
        log.info("call.refused", method=method, code=error.code, message=error.message)
        return to_status(error)
    # A defect must not reach the caller as it is.
    log.error("call.defect", method=method, exc_info=error)
    return to_status(InternalError("an internal error occurred; see the log of the other side"))
