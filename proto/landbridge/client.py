"""The operators' API of a gateway, for Python: one method for each verb of `landbridge.v1.Gateway`.

Methods return the messages of `landbridge.v1` and raise errors of `landbridge.errors`, nothing else. A call
that is answered with one message has a deadline; `watch` has none and notices a silent gateway by HTTP/2
pings. A Client may be used by several threads at once.
"""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc

from landbridge.errors import (
    CODE_KEY,
    LandbridgeError,
    NotAuthenticated,
    ProtocolError,
    Unreachable,
    UsageError,
    from_status,
)
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1.gateway_pb2_grpc import GatewayStub
from landbridge.v1.types_pb2 import Host, Migration

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

ANSWER_S = 30.0
# Preflight asks two gateways and both agents, which ask their hypervisors.
PREFLIGHT_S = 90.0
# Settling deletes disk images.
SETTLE_S = 300.0

# A server takes so many pings for an attack unless it is told otherwise, as the gateway's is (`certs.guard.SERVER_OPTIONS`).
PING_MS = 20_000
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)

# What gRPC says in the details of UNAVAILABLE, the error that it stands for, and what to say; the first match
# counts. "Socket closed" is also how a TLS 1.3 server's refusal of the client's certificate arrives.
_CAUSES: tuple[tuple[str, type[LandbridgeError], str], ...] = (
    (
        "certificate_verify_failed",
        NotAuthenticated,
        "shows a certificate that this identity does not trust: compare both with `landbridge certs show`",
    ),
    (
        "verification check failed",
        NotAuthenticated,
        "is not a gateway of the expected site: check the address, and its `landbridge certs show`",
    ),
    ("wrong_version_number", ProtocolError, "does not speak TLS: check the address and the port"),
    (
        "connection refused",
        Unreachable,
        "does not answer (connection refused): check the address, and that it runs",
    ),
    ("dns resolution failed", Unreachable, "cannot be found, its name does not resolve: check the address"),
    ("name resolution", Unreachable, "cannot be found, its name does not resolve: check the address"),
    ("domain name not found", Unreachable, "cannot be found, its name does not resolve: check the address"),
    (
        "no route to host",
        Unreachable,
        "does not answer (no route to host): check the address and the network",
    ),
    ("network is unreachable", Unreachable, "does not answer (network unreachable): check the network"),
    ("endpoint closing", Unreachable, "does not answer in time: check the address, and that it runs"),
    ("timed out", Unreachable, "does not answer in time: check the address, and that it runs"),
    ("timeout", Unreachable, "does not answer in time: check the address, and that it runs"),
    ("cancelling all calls", Unreachable, "is shutting down: try again when it runs"),
    (
        "closed",
        Unreachable,
        "closed the connection: check that it runs, and that it trusts this identity's site",
    ),
    (
        "reset",
        Unreachable,
        "closed the connection: check that it runs, and that it trusts this identity's site",
    ),
)


def connect(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Sequence[tuple[str, str | int]] = (),
) -> "Client":
    """A Client of the gateway at `target`, "HOST:PORT"; connecting waits for the first call.

    `credentials` and `options` come from `certs.tls.grpc_channel_credentials` and `grpc_channel_options`.
    """
    return Client(grpc.secure_channel(target, credentials, options=[*_CHANNEL_OPTIONS, *options]), target)


class Client:
    """A connection to one gateway; a context manager that closes it."""

    def __init__(self, channel: grpc.Channel, target: str) -> None:
        """`channel` belongs to the Client from now on; `target` is how errors name the gateway."""
        self.target = target
        self._channel = channel
        self._stub = GatewayStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and every call on it."""
        self._channel.close()

    def sites(self) -> list[api.Site]:
        """The gateway's own site and those that it is joined with."""
        return list(self._ask(self._stub.ListSites, api.ListSitesRequest()).sites)

    def hosts(self) -> list[Host]:
        """Hosts of all these sites; `unreachable` is set on those of which nothing else is known."""
        return list(self._ask(self._stub.ListHosts, api.ListHostsRequest()).hosts)

    def vms(self) -> api.ListVirtualMachinesResponse:
        """VMs of the gateway's site, and the hosts that did not answer and may have more."""
        return self._ask(self._stub.ListVms, api.ListVirtualMachinesRequest())

    def preflight(self, vm: str, site: str, host: str = "") -> api.PreflightResponse:
        """Whether `vm` (name, UUID or HOST/NAME) could move to `site`, and all findings; touches nothing."""
        request = api.PreflightRequest(vm=_text(vm), destination_site=_text(site), destination_host=_text(host))
        return self._ask(self._stub.Preflight, request, PREFLIGHT_S)

    def migrate(self, vm: str, site: str, host: str = "") -> Migration:
        """Begin to move `vm` to `site`, to `host` or to the one that the gateway chooses.

        PreflightFailed if it would not work: `preflight` tells why.
        After Unreachable it may have begun: look at `migrations` before trying again.
        """
        request = api.MigrateRequest(vm=_text(vm), destination_site=_text(site), destination_host=_text(host))
        doubt = "; the migration may have begun all the same, so look at the list of migrations first"
        return self._ask(self._stub.Migrate, request, PREFLIGHT_S, doubt).migration

    def migrations(self) -> list[Migration]:
        """All migrations that the gateway knows, newest first."""
        return list(self._ask(self._stub.ListMigrations, api.ListMigrationsRequest()).migrations)

    def migration(self, migration_id: str) -> Migration:
        """One migration now. Here and below, a unique prefix of the id is enough, of four characters."""
        return self._ask(self._stub.GetMigration, api.GetMigrationRequest(id=_text(migration_id))).migration

    def watch(self, migration_id: str) -> Iterator[Migration]:
        """The migration now, after each change, and last of all as it ended.

        Unreachable if the gateway goes away meanwhile: the migration goes on, so watch again. A gateway that
        shuts down may also end the iteration early: only the last message's state tells whether the migration
        has ended.
        """
        call = self._stub.WatchMigration(api.WatchMigrationRequest(id=_text(migration_id)))
        try:
            for response in call:
                yield response.migration
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()

    def cancel(self, migration_id: str) -> Migration:
        """Record the wish to cancel; the migration ends later, when both hosts are clean."""
        return self._ask(self._stub.CancelMigration, api.CancelMigrationRequest(id=_text(migration_id))).migration

    def settle(self, migration_id: str) -> api.SettleMigrationResponse:
        """Remove what a completed migration left at the source; the answer names what was removed."""
        request = api.SettleMigrationRequest(id=_text(migration_id))
        return self._ask(self._stub.SettleMigration, request, SETTLE_S)

    def _ask(
        self,
        verb: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        seconds: float = ANSWER_S,
        doubt: str = "",
    ) -> _Response:
        try:
            return verb(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._error(error, doubt) from error

    def _error(self, error: grpc.RpcError, doubt: str = "") -> LandbridgeError:
        """The error of the tree; where gRPC speaks and not the gateway, a sentence that names the address."""
        # Typed stubs hide it, but every failed call's RpcError is its grpc.Call as well.
        call = cast("grpc.Call", error)
        status, said = call.code(), call.details() or ""
        trailing = tuple((key, value) for key, value in call.trailing_metadata() or ())
        if any(key == CODE_KEY for key, _ in trailing):
            return from_status(status.name, said, trailing)
        where = f"The gateway at {self.target}"
        match status.name:
            case "UNAVAILABLE":
                for sign, kind, cause in _CAUSES:
                    if sign in said.lower():
                        return kind(f"{where} {cause}{doubt}.")
                sentence = f"{where} does not answer ({said[:200]}): check the address, and that it runs{doubt}."
            case "DEADLINE_EXCEEDED":
                sentence = f"{where} did not answer in time{doubt}."
            case "CANCELLED":
                sentence = f"{where} ended the call, perhaps because it is shutting down{doubt}."
            case "UNIMPLEMENTED":
                sentence = f"{where} does not know this request: it may be older than this client."
            case other:
                sentence = f"{where} answered {other}: {said[:200]}"
        return from_status(status.name, sentence, trailing)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!a} is not Unicode text: no name or id can be that.") from error
    return text
