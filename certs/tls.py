"""The only door to ssl and to gRPC credentials.

Both stacks keep the same rules: TLS 1.3 only, and a certificate from both sides.

    client   trusts the root of the site that it wants to reach, and no other, and asks for the server by the
             DNS name that only that role has (`server_name`): no host of that site can answer as its gateway
    server   lets TLS accept the roots of all trusted sites, and after the handshake, before it acts on the
             first byte or call, asks `identity.authenticate` who it is: only there is a CA bound to its site

In TLS 1.3 a client learns only at its first read that the server has refused its certificate.
"""

import ssl
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Protocol

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from certs import floor  # importing the package has set the floor before grpc was loaded
from certs.identity import Identity, Role, Site, TrustBundles, authenticate, identity_of, load_certificate, server_name
from certs.store import CERTIFICATE, KEY, StoredIdentity
from landbridge.errors import ConfigError, NotAuthenticated, NotFound

__all__ = [
    "client_context",
    "grpc_channel_credentials",
    "grpc_channel_options",
    "grpc_peer_identity",
    "grpc_server_credentials",
    "peer_identity",
    "server_context",
    "server_identity",
    "server_name",
]

_VERSION = "TLSv1.3"


# Python's ssl: links and streams.


def server_context(local: StoredIdentity) -> ssl.SSLContext:
    """For accepting; call `peer_identity` after each handshake."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, local, _roots_pem(local.trust))
    context.num_tickets = 0  # a resumed session would skip the certificate
    return context


def client_context(local: StoredIdentity, peer_site: str) -> ssl.SSLContext:
    """For dialling a site: wrap with server_hostname=server_name(role, site, trust_domain, name or None)."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, local, _roots_pem(local.trust, peer_site))


def peer_identity(connection: ssl.SSLSocket | ssl.SSLObject, trust: TrustBundles, now: datetime) -> Identity:
    """Who is at the other end of a finished handshake, or NotAuthenticated. Takes an asyncio ssl_object."""
    if connection.version() != _VERSION:
        raise NotAuthenticated(f"The connection uses {connection.version()}: only {_VERSION} is accepted.")
    leaf = connection.getpeercert(binary_form=True)
    if leaf is None:
        raise NotAuthenticated("The other side showed no certificate: give it an identity directory.")
    return authenticate(leaf, trust, now)


def server_identity(connection: ssl.SSLSocket) -> Identity:
    """Who has answered. TLS has verified it: its root, and its `server_name`, which may stand for several of one role."""
    leaf = connection.getpeercert(binary_form=True)
    if leaf is None:
        raise NotAuthenticated("The other side showed no certificate: give it an identity directory.")
    return identity_of(load_certificate(leaf))


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
        context.load_cert_chain(local.directory / CERTIFICATE, local.directory / KEY)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{local.directory} cannot be loaded for TLS ({error}): issue it again.") from error
    return context


# gRPC: control. The same credentials serve grpc and grpc.aio.


class _ServicerContext(Protocol):
    """What grpc.ServicerContext and grpc.aio.ServicerContext have in common here."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...


def grpc_server_credentials(local: StoredIdentity) -> grpc.ServerCredentials:
    """For add_secure_port; call `grpc_peer_identity` in the first interceptor of every call."""
    floor.require()
    return grpc.ssl_server_credentials(
        [(local.key_pem, local.certificate_pem)],
        root_certificates=_roots_pem(local.trust),
        require_client_auth=True,
    )


def grpc_channel_credentials(local: StoredIdentity, peer_site: str) -> grpc.ChannelCredentials:
    """For secure_channel, always together with `grpc_channel_options`."""
    floor.require()
    return grpc.ssl_channel_credentials(
        root_certificates=_roots_pem(local.trust, peer_site),
        private_key=local.key_pem,
        certificate_chain=local.certificate_pem,
    )


def grpc_channel_options(role: Role, site: str, trust_domain: str, name: str | None = None) -> list[tuple[str, str]]:
    """Whom the server's certificate must name; the address that is dialled has no say in it."""
    expected = server_name(role, site, trust_domain, name)
    return [("grpc.ssl_target_name_override", expected), ("grpc.default_authority", expected)]


def grpc_peer_identity(context: _ServicerContext, trust: TrustBundles, now: datetime) -> Identity:
    """Who makes this call; NotAuthenticated otherwise. `context` is the servicer context, sync or aio."""
    facts = context.auth_context()
    # The handshake has refused TLS 1.2 already (see floor). This is for a process that undid that.
    for version in facts.get("ssl_tls_version", ()):  # a key of newer gRPC releases: seen in 1.85
        if version != _VERSION.encode():
            raise NotAuthenticated(f"The call came over {version.decode('ascii', 'replace')}: use {_VERSION}.")
    leaves = list(facts.get("x509_pem_cert", ()))
    if len(leaves) != 1:
        raise NotAuthenticated("The caller showed no certificate: give it an identity directory.")
    return authenticate(leaves[0], trust, now)


def _roots_pem(trust: TrustBundles, site: str | None = None) -> bytes:
    """The roots of one site, or of all."""
    wanted: list[Site] = [known for known in sorted(trust.roots) if site in (None, known.site)]
    if not wanted:
        raise NotFound(f"Site {site} is not trusted here: add its ca.pem with `landbridge certs trust`.")
    return b"".join(root.public_bytes(Encoding.PEM) for known in wanted for root in trust.roots[known])
