"""The only door to ssl and to gRPC credentials.

Both stacks keep the same rules: TLS 1.3 only, and a certificate from both sides.

    client   trusts the root of the site that it wants to reach, and no other, and asks for the server by the
             DNS name that only that role has (`server_name`): no host of that site can answer as its gateway
    server   lets TLS accept the roots of all trusted sites, and after the handshake, before it acts on the
             first byte or call, asks `trust.judge` who it is: only there is a CA bound to its site

In TLS 1.3 a client learns only at its first read that the server has refused its certificate.

The key exchange is what both libraries prefer: with OpenSSL 3.5 and later, and with gRPC where it says so, a hybrid with ML-KEM
(X25519MLKEM768). What was agreed on is known where the library tells it (`group_of`), and "unknown" elsewhere.
"""

import hashlib
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs import floor  # importing the package has set the floor before grpc was loaded
from certs.identity import Role, Site, server_name
from certs.store import StoredIdentity
from certs.trust import Credential, Denials, TrustBundles, judge, load_certificates, pem_of
from landbridge.errors import ConfigError, NotAuthenticated, NotFound

__all__ = [
    "Connection",
    "ServicerContext",
    "client_context",
    "end",
    "facts_of",
    "group_of",
    "grpc_channel_credentials",
    "grpc_channel_options",
    "grpc_group_of",
    "grpc_peer_credential",
    "grpc_server_credentials",
    "grpc_stranger_credentials",
    "peer_credential",
    "probe_context",
    "receiver_context",
    "server_context",
    "server_name",
    "shown_by",
]

UNKNOWN = "unknown"

_VERSION = "TLSv1.3"
_DER = 2  # _ssl.ENCODING_DER, which the module ssl has no name for


# Python's ssl: links and streams.


def server_context(local: StoredIdentity) -> ssl.SSLContext:
    """For accepting; call `peer_identity` after each handshake."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, local, _roots_pem(local.trust))
    context.num_tickets = 0  # a resumed session would skip the certificate
    return context


def client_context(local: StoredIdentity, peer_site: str) -> ssl.SSLContext:
    """For dialling a site: wrap with server_hostname=server_name(role, site, trust_domain, name or None)."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, local, _roots_pem(local.trust, peer_site))


def probe_context() -> ssl.SSLContext:
    """For asking a server which certificates it has, before anything of it is known. Nothing may be sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # servers of gRPC refuse others
    return context


Connection: TypeAlias = ssl.SSLSocket


def wrap(
    context: ssl.SSLContext, raw: socket.socket, *, server_name: str | None = None, shakes_hands: bool = False
) -> ssl.SSLSocket:
    """TLS on a connection; without `server_name`, as the end that was called. With `shakes_hands`, the handshake is made as well.

    Raises OSError if the other end has hung up, and `raw` is still the caller's to close: the ssl module finds that out only when it has
    taken its descriptor, which nobody could close then.
    """
    raw.getpeername()
    is_called = server_name is None
    return context.wrap_socket(
        raw, server_side=is_called, server_hostname=server_name, do_handshake_on_connect=shakes_hands
    )


def receiver_context(ca: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For dialling a server that is none of ours, such as a receiver of syslog: it shows a certificate below `ca` (PEM), and its name.

    `certificate` and `key` (PEM) are shown to it if it asks. ConfigError if a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{ca} cannot be loaded as PEM certificates of a CA: {error.strerror or error}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{certificate} and its key {key or certificate} cannot be loaded as PEM: {error.strerror or error}"
            ) from error
    # Where it is set, any end would pass for an orderly one; OpenSSL knows it since 3.0.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def _no_password() -> str:
    # Else OpenSSL would ask for it on the terminal.
    return ""


def end(connection: Connection) -> tuple[socket.socket, bool]:
    """Say that nothing more comes, and wait for the other side's end: the bare socket below, and whether close_notify came.

    Without it, whoever is on the way may have closed the TCP connection: only what TLS protects is the other side's word.
    TimeoutError after the socket's own timeout, OSError if the connection was reset or refused.
    """
    try:
        return connection.unwrap(), True
    except ssl.SSLError as error:
        if not isinstance(error, ssl.SSLEOFError) and error.reason != "UNEXPECTED_EOF_WHILE_READING":
            raise
        return socket.socket(fileno=connection.detach()), False


def peer_credential(
    connection: ssl.SSLSocket | ssl.SSLObject, trust: TrustBundles, now: datetime, denials: Denials | None = None
) -> Credential:
    """Who is at the other end of a finished handshake, or NotAuthenticated. Takes an asyncio ssl_object."""
    if connection.version() != _VERSION:
        raise NotAuthenticated(f"The connection uses {connection.version()}: only {_VERSION} is accepted.")
    leaf = connection.getpeercert(binary_form=True)
    if leaf is None:
        raise NotAuthenticated("The other side showed no certificate: give it an identity directory.")
    return judge(leaf, trust, now, shown_by(connection)[1:], denials)


def shown_by(connection: ssl.SSLSocket | ssl.SSLObject) -> list[bytes]:
    """The certificates that the other side has shown, DER, the leaf first; the handshake proves the leaf's key, and no more."""
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13 and later
        return [bytes(each) for each in connection.get_unverified_chain()]
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[union-attr]  # noqa: SLF001 - the same, under its former name
    return [each.public_bytes(_DER) for each in chain or ()]


def group_of(connection: ssl.SSLSocket | ssl.SSLObject) -> str:
    """The group of the key exchange, or "unknown" where Python cannot tell."""
    group = getattr(connection, "group", None)  # Python 3.15 and later
    return str(group()) if callable(group) else UNKNOWN


def facts_of(connection: ssl.SSLSocket | ssl.SSLObject, credential: Credential) -> dict[str, str]:
    """How a connection is protected, and by which certificate its other end has proved to be `credential`: for the record."""
    cipher, leaf = connection.cipher(), connection.getpeercert(binary_form=True) or b""
    return {
        "version": connection.version() or UNKNOWN,
        "suite": cipher[0] if cipher else UNKNOWN,
        "group": group_of(connection),
        "peer": str(credential.identity),
        "peer_cert_sha256": hashlib.sha256(leaf).hexdigest(),
        "issuer": str(credential.issuer or f"the root of {credential.identity.home}"),
        "serial": f"{credential.serial:x}",
        "not_after": f"{credential.until:%Y-%m-%dT%H:%M:%S.%f}Z",
    }


def _context(protocol: ssl._SSLMethod, local: StoredIdentity, roots: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if protocol is ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname = True
        context.hostname_checks_common_name = False
    try:
        context.load_verify_locations(cadata=roots.decode("ascii"))
        # Python's ssl reads files only, and those of the directory may be renewed at any time.
        with os.fdopen(os.memfd_create("identity"), "wb", buffering=0) as pair:
            pair.write(local.certificate_pem + local.key_pem)
            context.load_cert_chain(f"/proc/self/fd/{pair.fileno()}")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{local.directory} cannot be loaded for TLS ({error}): issue it again.") from error
    return context


# gRPC: control. The same credentials serve grpc and grpc.aio.


class ServicerContext(Protocol):
    """What grpc.ServicerContext and grpc.aio.ServicerContext have in common here."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...


def grpc_server_credentials(
    current: Callable[[], StoredIdentity], *, shows_root: bool = False, takes_strangers: bool = False
) -> grpc.ServerCredentials:
    """For add_secure_port; call `grpc_peer_credential` in the first interceptor of every call.

    `current` is asked at each handshake, in whichever thread that happens. `shows_root` where strangers come who compare the root with
    what they were told; `takes_strangers` where they come without a certificate, so that none is asked for.
    """
    floor.require()
    made = current()

    def configuration(local: StoredIdentity) -> grpc.ServerCertificateConfiguration:
        # A client that knows only the root before, as an operator's may, finds its way over the handover.
        chain = local.certificate_pem + pem_of(local.trust.handovers.get(local.identity.home, ()))
        if shows_root:
            chain += pem_of([local.root])
        return grpc.ssl_server_certificate_configuration(
            [(local.key_pem, chain)], root_certificates=None if takes_strangers else _roots_pem(local.trust)
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal made
        if (wanted := current()) is made:
            return None
        made = wanted
        return configuration(wanted)

    return grpc.dynamic_ssl_server_credentials(
        configuration(made),
        fetch,  # type: ignore[arg-type]  # None, for no change, is in its documentation
        require_client_authentication=not takes_strangers,
    )


def grpc_channel_credentials(local: StoredIdentity, peer_site: str) -> grpc.ChannelCredentials:
    """For secure_channel, always together with `grpc_channel_options`."""
    floor.require()
    return grpc.ssl_channel_credentials(
        root_certificates=_roots_pem(local.trust, peer_site),
        private_key=local.key_pem,
        certificate_chain=local.certificate_pem,
    )


def grpc_stranger_credentials(root: x509.Certificate) -> grpc.ChannelCredentials:
    """For one call of somebody who has no certificate yet, to a server below this root; together with `grpc_channel_options`."""
    floor.require()
    return grpc.ssl_channel_credentials(root_certificates=pem_of([root]))


def grpc_channel_options(role: Role, site: str, trust_domain: str, name: str | None = None) -> list[tuple[str, str]]:
    """Whom the server's certificate must name; the address that is dialled has no say in it."""
    expected = server_name(role, site, trust_domain, name)
    return [("grpc.ssl_target_name_override", expected), ("grpc.default_authority", expected)]


def grpc_peer_credential(
    context: ServicerContext, trust: TrustBundles, now: datetime, denials: Denials | None = None
) -> Credential:
    """Who makes this call; NotAuthenticated otherwise. `context` is the servicer context, sync or aio."""
    facts = context.auth_context()
    # The handshake has refused TLS 1.2 already (see floor). This is for a process that undid that.
    for version in facts.get("ssl_tls_version", ()):  # a key of newer gRPC releases: seen in 1.85
        if version != _VERSION.encode():
            raise NotAuthenticated(f"The call came over {version.decode('ascii', 'replace')}: use {_VERSION}.")
    leaves = list(facts.get("x509_pem_cert", ()))
    if len(leaves) != 1:
        raise NotAuthenticated("The caller showed no certificate: give it an identity directory.")
    shown = b"".join(facts.get("x509_pem_cert_chain", ()))
    return judge(leaves[0], trust, now, load_certificates(shown) if shown else (), denials)


def grpc_group_of(context: ServicerContext) -> str:
    """The group of a call's key exchange, or "unknown" where gRPC does not tell."""
    groups = context.auth_context().get("ssl_negotiated_key_exchange_group", ())  # seen in 1.85
    return next((group.decode("ascii", "replace") for group in groups), UNKNOWN)


def _roots_pem(trust: TrustBundles, site: str | None = None) -> bytes:
    """The roots of one site, or of all. Those that have handed over are for `judge` to refuse."""
    wanted: list[Site] = [known for known in sorted(trust.roots) if site in (None, known.site)]
    if not wanted:
        raise NotFound(
            f"Site {site} is not trusted here: join it with `landbridge sites join`, or add its ca.pem with "
            "`landbridge certs trust`."
        )
    return b"".join(root.public_bytes(Encoding.PEM) for known in wanted for root in trust.roots[known])
