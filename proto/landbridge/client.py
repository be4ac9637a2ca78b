"""The operators' API of a gateway, for Python: one method for each verb of `landbridge.v1.Gateway`.

Methods return the messages of `landbridge.v1` and raise errors of `landbridge.errors`, nothing else. A call
that is answered with one message has a deadline; `watch` has none and notices a silent gateway by HTTP/2
pings. A Client may be used by several threads at once.

A site may have several gateways, and each of them answers for the whole site. A Client that was given several
addresses asks the one that answered last, and goes on to the next when that is silent. Only `migrate`, which
must not happen twice, goes on only where it is certain that the silent gateway never got it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from landbridge.v1 import enrolment_pb2 as identities
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1.audit_pb2 import GetReceiptRequest, GetReceiptResponse, RecordExportRequest, RecordExportResponse
from landbridge.v1.authorization_pb2 import ApprovalRequest, PolicyStatus
from landbridge.v1.enrolment_pb2_grpc import IdentitiesStub
from landbridge.v1.gateway_pb2_grpc import GatewayStub
from landbridge.v1.types_pb2 import (
    MIGRATION_STATE_CANCELLED,
    MIGRATION_STATE_COMPLETED,
    MIGRATION_STATE_FAILED,
    MIGRATION_STATE_SETTLED,
    Host,
    Migration,
    Policy,
)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Wanted = TypeVar("_Wanted", api.PreflightRequest, api.MigrateRequest)

ANSWER_S = 30.0
# Preflight asks two gateways and both agents, which ask their hypervisors.
PREFLIGHT_S = 90.0
# Settling deletes disk images.
SETTLE_S = 300.0
# A log of a million entries is looked through, at both sites.
RECEIPT_S = 90.0

# A server takes so many pings for an attack unless it is told otherwise, as the gateway's is (`certs.guard.SERVER_OPTIONS`).
PING_MS = 20_000
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # How long one attempt to connect may take, whatever its name says: there may be another address to try.
    ("grpc.min_reconnect_backoff_ms", 5_000),
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

# How the details begin of a call that no connection was found for: the gateway has not heard of it.
_UNSENT = ("failed to connect to all addresses", "dns resolution failed", "name resolution", "domain name not found")

_ENDED = frozenset(
    {MIGRATION_STATE_COMPLETED, MIGRATION_STATE_FAILED, MIGRATION_STATE_CANCELLED, MIGRATION_STATE_SETTLED}
)


def connect(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Sequence[tuple[str, str | int]] = (),
) -> "Client":
    """A Client of the gateway at `target`, "HOST:PORT", or of several at "HOST:PORT,HOST:PORT,...", of one site.

    Connecting waits for the first call.
    `credentials` and `options` come from `certs.tls.grpc_channel_credentials` and `grpc_channel_options`.
    """
    channel_options = [*_CHANNEL_OPTIONS, *options]
    return Client({each: grpc.secure_channel(each, credentials, channel_options) for each in target.split(",")})


class _Stub(GatewayStub, IdentitiesStub):
    """Both services that a gateway has for operators."""

    def __init__(self, channel: grpc.Channel) -> None:
        GatewayStub.__init__(self, channel)  # type: ignore[call-arg]  # the generated types have __new__ only
        IdentitiesStub.__init__(self, channel)  # type: ignore[call-arg]  # see above


@dataclass(frozen=True)
class _Gateway:
    target: str
    channel: grpc.Channel
    stub: _Stub


class Client:
    """A connection to one gateway, or to whichever of several answers; a context manager that closes it."""

    def __init__(self, channels: Mapping[str, grpc.Channel]) -> None:
        """At least one channel, which belongs to the Client from now on, by how errors name its gateway."""
        self._gateways = [_Gateway(target, channel, _Stub(channel)) for target, channel in channels.items()]
        # The one that answered last. One reference, replaced as a whole: threads need no lock.
        self._last = 0
        self._closed = False

    @property
    def target(self) -> str:
        """The addresses, as `connect` takes them."""
        return ",".join(gateway.target for gateway in self._gateways)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and every call on it."""
        self._closed = True
        for gateway in self._gateways:
            gateway.channel.close()

    def sites(self) -> list[api.Site]:
        """The gateway's own site and those that it is joined with."""
        return list(self._ask(lambda stub: stub.ListSites, api.ListSitesRequest()).sites)

    def hosts(self) -> list[Host]:
        """Hosts of all these sites; `unreachable` is set on those of which nothing else is known."""
        return list(self._ask(lambda stub: stub.ListHosts, api.ListHostsRequest()).hosts)

    def vms(self) -> api.ListVirtualMachinesResponse:
        """VMs of the gateway's site, and the hosts that did not answer and may have more."""
        return self._ask(lambda stub: stub.ListVms, api.ListVirtualMachinesRequest())

    def preflight(
        self,
        vm: str,
        site: str,
        host: str = "",
        policy: Policy | None = None,
        *,
        break_glass: str = "",
        purpose: str = "",
    ) -> api.PreflightResponse:
        """Whether `vm` (name, UUID or HOST/NAME) could move to `site`, and all findings; touches nothing."""
        wanted = _wanted(api.PreflightRequest, vm, site, host, policy, break_glass, purpose)
        return self._ask(lambda stub: stub.Preflight, wanted, PREFLIGHT_S)

    def migrate(
        self,
        vm: str,
        site: str,
        host: str = "",
        policy: Policy | None = None,
        *,
        break_glass: str = "",
        request: str = "",
        purpose: str = "",
    ) -> Migration:
        """Begin to move `vm` to `site`, to `host` or to the one that the gateway chooses.

        `policy`: how long the guest may stand still, and what is done if that cannot be had; UsageError if it makes no sense.
        PreflightFailed if it would not work: `preflight` tells why. PolicyRefused if a rule of either site is against it, and
        ApprovalNeeded if others must approve it first: its `details["request"]` waits for them, and the same call begins it then.
        `break_glass`: why freezes and approvals are to be overridden, for those who may. `request`: one that was approved; without,
        the one that fits is used. `purpose`: why the VM is to move; some policies demand it, and approvals are bound to it.
        After Unreachable it may have begun: look at `migrations` before trying again.
        """
        wanted = _wanted(api.MigrateRequest, vm, site, host, policy, break_glass, purpose)
        wanted.request = _text(request)
        doubt = "; the migration may have begun all the same, so look at the list of migrations first"
        return self._ask(lambda stub: stub.Migrate, wanted, PREFLIGHT_S, doubt).migration

    def migrations(self) -> list[Migration]:
        """All migrations that the gateway knows, newest first."""
        return list(self._ask(lambda stub: stub.ListMigrations, api.ListMigrationsRequest()).migrations)

    def migration(self, migration_id: str) -> Migration:
        """One migration now. Here and below, a unique prefix of the id is enough, of four characters."""
        return self._ask(lambda stub: stub.GetMigration, api.GetMigrationRequest(id=_text(migration_id))).migration

    def watch(self, migration_id: str) -> Iterator[Migration]:
        """The migration now, after each change, and last of all as it ended.

        Goes on at the next gateway, if several are known, when one goes away. Unreachable if none of them answers:
        the migration goes on, so watch again. A gateway that shuts down may also end the iteration early, if there
        is no other: only the last message's state tells whether the migration has ended.
        """
        request = api.WatchMigrationRequest(id=_text(migration_id))
        latest: Migration | None = None
        lost: list[LandbridgeError] = []
        while len(lost) < len(self._gateways):
            index = self._last
            gateway = self._gateways[index]
            call = gateway.stub.WatchMigration(request)
            try:
                for response in call:
                    if response.migration != latest:
                        latest = response.migration
                        lost.clear()
                    yield response.migration
            except grpc.RpcError as error:
                if not self._is_silence(error):
                    raise _error(gateway.target, error) from error
                lost.append(_error(gateway.target, error))
            else:
                if len(self._gateways) == 1 or (latest is not None and latest.state in _ENDED):
                    return
                lost.append(Unreachable(f"The gateway at {gateway.target} ended the call: it may be shutting down."))
            finally:
                call.cancel()
            self._last = (index + 1) % len(self._gateways)
        raise _all(lost)

    def cancel(self, migration_id: str) -> Migration:
        """Record the wish to cancel; the migration ends later, when both hosts are clean."""
        return self._ask(
            lambda stub: stub.CancelMigration, api.CancelMigrationRequest(id=_text(migration_id))
        ).migration

    def settle(self, migration_id: str, *, without_proof: str = "") -> api.SettleMigrationResponse:
        """Remove what a completed migration left at the source; the answer names what was removed.

        Conflict if its disks differ, or were to be compared and could not be: then an admin may say why, `without_proof`.
        """
        request = api.SettleMigrationRequest(id=_text(migration_id), without_proof=_text(without_proof))
        return self._ask(lambda stub: stub.SettleMigration, request, SETTLE_S)

    def activate(self, migration_id: str, *, source_is_lost: str) -> Migration:
        """Let a VM run that waits, paused, at this site, its destination, for a source that is lost for good; the reason is recorded.

        If the VM does run at the source, it runs twice from now on. Conflict while the source's site answers for it.
        """
        request = api.ActivateMigrationRequest(id=_text(migration_id), source_is_lost=_text(source_is_lost))
        return self._ask(lambda stub: stub.ActivateMigration, request, SETTLE_S).migration

    def receipt(self, migration_id: str) -> GetReceiptResponse:
        """What the audit logs of both sites say of a migration that has ended, as a file that verifies alone.

        Conflict if it goes on, or the other site has not heard yet that it does not; Unreachable if that does not answer.
        """
        return self._ask(lambda stub: stub.GetReceipt, GetReceiptRequest(id=_text(migration_id)), RECEIPT_S)

    def record_export(self, export: RecordExportRequest) -> RecordExportResponse:
        """Have it on record that entries of an audit log of this site are exported, before the file is there. Takes an auditor."""
        return self._ask(lambda stub: stub.RecordExport, export)

    def set_limit(
        self,
        bytes_per_second: int | None = None,
        *,
        migration: str | None = None,
        site: str | None = None,
        links: int | None = None,
        reset: bool = False,
    ) -> None:
        """Limit what a migration (by its id), or the tunnel to a site, may send over the WAN; at once, also while it runs.

        0 bytes per second is no limit. `links` is for a site: how many connections its tunnel is to have.
        It holds at every gateway of the site within a few seconds, and over their restarts: a migration's limit until it ends, a
        tunnel's, and its links, until they are set again, or until `reset` has the tunnel as each gateway's configuration has it.
        UsageError if it does not say what to change, or of what; Conflict if the migration has ended or begins at another site.
        """
        if (migration is None) == (site is None):
            raise UsageError("Say what is to be limited: a migration, or the tunnel to a site.")
        if links is not None and site is None:
            raise UsageError("A migration has no links of its own: name the site whose tunnel is to have them.")
        if reset and (site is None or bytes_per_second is not None or links is not None):
            raise UsageError("Only the tunnel to a site can be reset, and not while something is set for it.")
        if bytes_per_second is None and links is None and not reset:
            raise UsageError("Say what is to change: the bytes per second, or the number of links.")
        for number, bits, what in ((bytes_per_second, 64, "bytes per second"), (links, 32, "links")):
            if number is not None and not 0 <= number < 2**bits:
                raise UsageError(f"{number} cannot be a number of {what}.")
        request = api.SetLimitRequest(bytes_per_second=bytes_per_second, links=links, as_configured=reset)
        if migration is not None:
            request.migration = _text(migration)
        if site is not None:
            request.site = _text(site)
        self._ask(lambda stub: stub.SetLimit, request)

    def policy(self) -> PolicyStatus:
        """The policy that the gateway goes by, and what the caller is by it."""
        return self._ask(lambda stub: stub.GetPolicy, api.GetPolicyRequest()).policy

    def explain(
        self, vm: str, site: str, host: str = "", *, requester: str = "", break_glass: str = "", purpose: str = ""
    ) -> api.ExplainPolicyResponse:
        """What the policies of both sites say to a migration, rule by rule; nothing is touched or recorded.

        `requester`: who would ask, as NAME, SITE/NAME or a SPIFFE ID; without, the caller.
        """
        request = api.ExplainPolicyRequest(
            vm=_text(vm),
            destination_site=_text(site),
            destination_host=_text(host),
            requester=_text(requester),
            break_glass=_text(break_glass),
            purpose=_text(purpose),
        )
        return self._ask(lambda stub: stub.ExplainPolicy, request, PREFLIGHT_S)

    def requests(self) -> list[ApprovalRequest]:
        """Requests that wait for approvals at this site, or did; newest first."""
        return list(self._ask(lambda stub: stub.ListRequests, api.ListRequestsRequest()).requests)

    def approve(self, request: ApprovalRequest) -> ApprovalRequest:
        """Say yes to a request as `requests` gave it, and to nothing else. Conflict if it is over."""
        approval = api.ApproveRequestRequest(id=request.id, sha256=request.sha256)
        return self._ask(lambda stub: stub.ApproveRequest, approval).request

    def deny(self, request_id: str, reason: str) -> ApprovalRequest:
        """Say no to a request, which ends it. Conflict if it is over."""
        denial = api.DenyRequestRequest(id=_text(request_id), reason=_text(reason))
        return self._ask(lambda stub: stub.DenyRequest, denial).request

    # Identities

    def create_token(self, host: str) -> identities.CreateTokenResponse:
        """A token, good once and for an hour, with which `landbridge-agent enroll` makes a machine this host of the site."""
        return self._ask(lambda stub: stub.CreateToken, identities.CreateTokenRequest(name=_text(host)))

    def certificates(self) -> identities.ListCertificatesResponse:
        """The certificates of the site, as far as its gateways know them, and all that was revoked."""
        return self._ask(lambda stub: stub.ListCertificates, identities.ListCertificatesRequest())

    def revoke(self, subject: str, reason: str = "") -> None:
        """Believe somebody, or one certificate, no more: a SPIFFE ID, ROLE/NAME of this site, or a serial number in hex.

        What is open is closed within seconds, here and at the sites that this one is joined with. UsageError if it names nothing.
        """
        self._ask(lambda stub: stub.Revoke, identities.RevokeRequest(subject=_text(subject), reason=_text(reason)))

    def look_at_site(self, address: str) -> identities.LookAtSiteResponse:
        """The root of the site whose gateway listens for peers at an address, beside this site's; nothing is believed yet."""
        return self._ask(lambda stub: stub.LookAtSite, identities.LookAtSiteRequest(address=_text(address)))

    def join_site(self, site: str, root: str, peers: Sequence[str]) -> None:
        """Believe what `look_at_site` has shown. Conflict if a site of this name is known by another root."""
        request = identities.JoinSiteRequest(site=_text(site), root=_text(root), peers=[_text(each) for each in peers])
        self._ask(lambda stub: stub.JoinSite, request)

    def remove_host(self, host: str, reason: str = "", *, force: bool = False) -> identities.RemoveHostResponse:
        """Take a host out of service: it is revoked, and not listed any more; a new token lets it come back.

        Conflict while migrations from or to it are under way, while it has VMs, and for a host that stands in gateway.toml;
        HostUnreachable if it cannot be asked. `force` is for all of these but gateway.toml: what runs there is not known here any more.
        """
        request = identities.RemoveHostRequest(name=_text(host), reason=_text(reason), force=force)
        return self._ask(lambda stub: stub.RemoveHost, request)

    def leave_site(self, site: str, reason: str = "", *, force: bool = False) -> identities.LeaveSiteResponse:
        """End the trust in a site, at all gateways of this one; the other site is told, if it answers, and ends its own.

        Conflict while migrations from or to it are under way, which `force` overrides, and for a site that stands in gateway.toml.
        """
        request = identities.LeaveSiteRequest(site=_text(site), reason=_text(reason), force=force)
        return self._ask(lambda stub: stub.LeaveSite, request)

    def request_issuer(self) -> identities.RequestIssuerResponse:
        """What the gateway that answers wants signed by its site's root."""
        return self._ask(lambda stub: stub.RequestIssuer, identities.RequestIssuerRequest())

    def install_issuer(self, certificate: str) -> identities.InstallIssuerResponse:
        """What was signed, at the gateway that has asked for it; when it comes into use."""
        return self._ask(lambda stub: stub.InstallIssuer, identities.InstallIssuerRequest(certificate=certificate))

    def install_roots(self, roots: str) -> None:
        """New roots of this site, PEM, with the handovers by which the present ones have signed them off."""
        self._ask(lambda stub: stub.InstallRoots, identities.InstallRootsRequest(roots=roots))

    def _ask(
        self,
        verb: "Callable[[_Stub], grpc.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        seconds: float = ANSWER_S,
        doubt: str = "",
    ) -> _Response:
        """Ask until somebody answers. With `doubt`, which says what may have come of it, whoever may have got it is the last."""
        lost: list[LandbridgeError] = []
        first = self._last
        for index in (*range(first, len(self._gateways)), *range(first)):
            gateway = self._gateways[index]
            try:
                answer = verb(gateway.stub)(request, timeout=seconds)
            except grpc.RpcError as error:
                if not self._is_silence(error):
                    self._last = index
                    raise _error(gateway.target, error, doubt) from error
                lost.append(_error(gateway.target, error, doubt))
                if doubt and not _is_unsent(error):
                    break
            else:
                self._last = index
                return answer
        raise _all(lost)

    def _is_silence(self, error: grpc.RpcError) -> bool:
        """Whether nobody has answered: then the next gateway may."""
        call = cast("grpc.Call", error)
        silent = call.code() in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
        }
        return silent and not self._closed and not any(key == CODE_KEY for key, _ in call.trailing_metadata() or ())


def _is_unsent(error: grpc.RpcError) -> bool:
    call = cast("grpc.Call", error)
    return call.code() is grpc.StatusCode.UNAVAILABLE and (call.details() or "").lower().startswith(_UNSENT)


def _all(lost: Sequence[LandbridgeError]) -> LandbridgeError:
    """One error for all gateways that were tried; of the kind of the first."""
    return type(lost[0])(" ".join(error.message for error in lost), details=lost[0].details)


def _error(target: str, error: grpc.RpcError, doubt: str = "") -> LandbridgeError:
    """The error of the tree; where gRPC speaks and not the gateway, a sentence that names the address."""
    # Typed stubs hide it, but every failed call's RpcError is its grpc.Call as well.
    call = cast("grpc.Call", error)
    status, said = call.code(), call.details() or ""
    trailing = tuple((key, value) for key, value in call.trailing_metadata() or ())
    if any(key == CODE_KEY for key, _ in trailing):
        return from_status(status.name, said, trailing)
    where = f"The gateway at {target}"
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


def _wanted(
    kind: type[_Wanted], vm: str, site: str, host: str, policy: Policy | None, break_glass: str, purpose: str
) -> _Wanted:
    return kind(
        vm=_text(vm),
        destination_site=_text(site),
        destination_host=_text(host),
        policy=policy,
        break_glass=_text(break_glass),
        purpose=_text(purpose),
    )


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!a} is not Unicode text: no name or id can be that.") from error
    return text
