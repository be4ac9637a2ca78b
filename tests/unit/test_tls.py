"""Real handshakes on the loopback, with Python's ssl and with gRPC: who gets in, as whom, over which TLS."""

import certs  # noqa: F401 - holds the TLS floor, which has to come before grpc is loaded

# isort: split
import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs import authority, floor, store, tls
from certs.authority import Authority, Leaf
from certs.identity import Identity, Role, Site
from certs.store import StoredIdentity
from certs.trust import TrustBundles
from landbridge.errors import (
    IdentityError,
    LandbridgeError,
    NotAuthenticated,
    NotFound,
    from_status,
    to_status,
)
from tests.unit.test_errors import STATUSES
from tests.unit.test_identity import forge

NOW = datetime.now(UTC)  # the TLS libraries use the real clock
DOMAIN = "example.org"
SECONDS = 20


@dataclass
class World:
    """Two sites that trust each other, and a third that nobody trusts."""

    directory: Path
    a: Authority
    b: Authority
    stranger: Authority
    trust: TrustBundles

    def issued(self, ca: Authority, role: Role, name: str) -> StoredIdentity:
        site = ca.site
        return self.stored(authority.issue(ca, Identity(site.trust_domain, site.site, role, name), NOW))

    def stored(self, leaf: Leaf) -> StoredIdentity:
        """Whatever a CA issued, honest or not, as an identity that trusts both sites."""
        directory = self.directory / f"{leaf.certificate.serial_number:x}"
        store.save_identity(directory, leaf)
        pem = leaf.certificate.public_bytes(Encoding.PEM)
        key_pem = (directory / "key.pem").read_bytes()
        return StoredIdentity(directory, leaf.identity, leaf.certificate, pem, key_pem, self.trust)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    a, b, stranger = (authority.create(Site(DOMAIN, site), NOW - timedelta(days=30)) for site in ("a", "b", "stranger"))
    trust = TrustBundles.of([a.certificate, b.certificate])
    return World(tmp_path_factory.mktemp("identities"), a, b, stranger, trust)


@pytest.fixture(scope="module")
def gateway_a(world: World) -> StoredIdentity:
    return world.issued(world.a, Role.GATEWAY, "gw1")


@pytest.fixture(scope="module")
def gateway_b(world: World) -> StoredIdentity:
    return world.issued(world.b, Role.GATEWAY, "gw2")


GATEWAY_B = tls.server_name(Role.GATEWAY, "b", DOMAIN)
A_GATEWAY = f"spiffe://{DOMAIN}/site/a/gateway/gw1"

# Clients that nobody may take for who they say they are. TLS alone lets the first four through.
IMPOSTORS: dict[str, Callable[[World], Leaf]] = {
    "the CA of site b vouching for a gateway of site a": lambda w: forge(w.b, [A_GATEWAY], now=NOW),
    "two URI names": lambda w: forge(w.a, [A_GATEWAY, f"spiffe://{DOMAIN}/site/a/gateway/gw9"], now=NOW),
    "no URI name": lambda w: forge(w.a, [], now=NOW),
    "a CA certificate": lambda w: forge(w.a, [A_GATEWAY], now=NOW, is_ca=True, signs=True),
    "a certificate of an unknown CA": lambda w: forge(w.stranger, [A_GATEWAY], now=NOW),
    "an expired certificate": lambda w: forge(w.a, [A_GATEWAY], now=NOW - timedelta(days=7)),
    "a certificate of tomorrow": lambda w: forge(w.a, [A_GATEWAY], now=NOW + timedelta(days=7)),
}
THROUGH_TLS = list(IMPOSTORS)[:4]


# Python's ssl.


@dataclass
class Outcome:
    """What each side of one connection saw: the other's identity, or what stopped it."""

    server: Identity | Exception
    client: Identity | Exception


def connect(server: ssl.SSLContext, client: ssl.SSLContext, trust: TrustBundles, hostname: str = GATEWAY_B) -> Outcome:
    def accept() -> Identity | Exception:
        raw, _ = listener.accept()
        raw.settimeout(SECONDS)
        with raw:
            try:
                with server.wrap_socket(raw, server_side=True) as connection:
                    identity = tls.peer_credential(connection, trust, NOW).identity
                    connection.sendall(b"welcome")
                    return identity
            except (OSError, LandbridgeError) as error:
                return error

    def dial() -> Identity | Exception:
        with socket.create_connection(listener.getsockname(), SECONDS) as raw:
            try:
                with client.wrap_socket(raw, server_hostname=hostname) as connection:
                    if connection.recv(7) != b"welcome":
                        return ConnectionError("turned away")
                    return tls.peer_credential(connection, trust, NOW).identity
            except (OSError, LandbridgeError) as error:
                return error

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(SECONDS)
        accepting = pool.submit(accept)
        client_saw = dial()
        return Outcome(accepting.result(SECONDS), client_saw)


def test_two_gateways_learn_who_the_other_is(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    outcome = connect(tls.server_context(gateway_b), tls.client_context(gateway_a, "b"), world.trust)
    assert outcome == Outcome(server=gateway_a.identity, client=gateway_b.identity)


def test_a_host_is_let_in_as_a_host(world: World, gateway_b: StoredIdentity) -> None:
    host = world.issued(world.a, Role.HOST, "h1")
    outcome = connect(tls.server_context(gateway_b), tls.client_context(host, "b"), world.trust)
    assert isinstance(outcome.server, Identity)
    assert outcome.server.role is Role.HOST


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_impostors_are_turned_away(world: World, gateway_b: StoredIdentity, kind: str) -> None:
    impostor = world.stored(IMPOSTORS[kind](world))
    outcome = connect(tls.server_context(gateway_b), tls.client_context(impostor, "b"), world.trust)
    assert isinstance(outcome.server, IdentityError if kind in THROUGH_TLS else ssl.SSLError), outcome
    assert isinstance(outcome.client, OSError)


def test_a_client_without_certificate_is_turned_away(world: World, gateway_b: StoredIdentity) -> None:
    context = ssl.create_default_context(cadata=world.b.certificate.public_bytes(Encoding.PEM).decode())
    outcome = connect(tls.server_context(gateway_b), context, world.trust)
    assert isinstance(outcome.server, ssl.SSLError)
    assert isinstance(outcome.client, OSError)


def test_nobody_but_a_gateway_of_the_wanted_site_answers_as_one(world: World, gateway_a: StoredIdentity) -> None:
    context = tls.client_context(gateway_a, "b")
    for local in (
        world.issued(world.b, Role.HOST, "gateway"),
        world.issued(world.b, Role.OPERATOR, "alice"),
        world.issued(world.a, Role.GATEWAY, "gw1"),
    ):
        outcome = connect(tls.server_context(local), context, world.trust)
        assert isinstance(outcome.client, ssl.SSLCertVerificationError), local


def test_a_client_can_ask_for_one_gateway_by_name(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    server, client = tls.server_context(gateway_b), tls.client_context(gateway_a, "b")
    right = connect(server, client, world.trust, tls.server_name(Role.GATEWAY, "b", DOMAIN, "gw2"))
    wrong = connect(server, client, world.trust, tls.server_name(Role.GATEWAY, "b", DOMAIN, "gw3"))
    assert right.client == gateway_b.identity
    assert isinstance(wrong.client, ssl.SSLCertVerificationError)


def test_a_site_without_a_root_cannot_be_dialled(gateway_a: StoredIdentity) -> None:
    with pytest.raises(NotFound, match="not trusted"):
        tls.client_context(gateway_a, "c")


def limited(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Another program's context: one version only, every cipher suite of TLS 1.2 that OpenSSL has."""
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    return context


def test_tls_1_2_is_refused_in_both_directions(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    old_client = limited(tls.client_context(gateway_a, "b"), ssl.TLSVersion.TLSv1_2)
    outcome = connect(tls.server_context(gateway_b), old_client, world.trust)
    assert "UNSUPPORTED_PROTOCOL" in str(outcome.server)
    old_server = limited(tls.server_context(gateway_b), ssl.TLSVersion.TLSv1_2)
    outcome = connect(old_server, tls.client_context(gateway_a, "b"), world.trust)
    assert isinstance(outcome.client, ssl.SSLError)


async def test_asyncio_streams_use_the_same_contexts(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    seen: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(tls.peer_credential(writer.get_extra_info("ssl_object"), world.trust, NOW).identity)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server_context(gateway_b))
    async with server:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls.client_context(gateway_a, "b"), server_hostname=GATEWAY_B
        )
        assert await asyncio.wait_for(seen, SECONDS) == gateway_a.identity
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


# gRPC.


def who(world: World) -> Callable[[bytes, Any], bytes]:
    """A method that answers with the caller's identity, and refuses as our interceptors do."""

    def method(_: bytes, context: Any) -> bytes:
        try:
            return str(tls.grpc_peer_credential(context, world.trust, NOW).identity).encode()
        except LandbridgeError as error:
            name, message, trailing = to_status(error)
            context.set_trailing_metadata(tuple(trailing.items()))
            context.abort(grpc.StatusCode[name], message)
            raise AssertionError("abort raises") from error

    return method


@contextmanager
def serving(local: StoredIdentity, world: World) -> Iterator[str]:
    handler: Any = grpc.unary_unary_rpc_method_handler(who(world))
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", {"Who": handler}),))
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(lambda: local))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(SECONDS)


def options(role: Role = Role.GATEWAY, name: str | None = None) -> list[tuple[str, str]]:
    return tls.grpc_channel_options(role, "b", DOMAIN, name)


def ask(address: str, credentials: grpc.ChannelCredentials, chosen: list[tuple[str, str]] | None = None) -> str:
    """The identity that the server sees, or the error that the call stands for."""
    with grpc.secure_channel(address, credentials, chosen or options()) as channel:
        call = cast("Callable[..., bytes]", channel.unary_unary("/Test/Who"))
        try:
            return call(b"", timeout=SECONDS).decode()
        except grpc.RpcError as failure:
            error = cast("grpc.Call", failure)
            trailing = [(key, value) for key, value in error.trailing_metadata() or ()]
            raise from_status(error.code().name, error.details(), trailing) from None


def test_our_status_names_are_those_of_grpc() -> None:
    assert set(grpc.StatusCode.__members__) == STATUSES


def test_a_grpc_server_learns_who_calls(world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity) -> None:
    alice = world.issued(world.b, Role.OPERATOR, "alice")
    host = world.issued(world.a, Role.HOST, "h1")
    with serving(gateway_b, world) as address:
        for local in (gateway_a, alice, host):
            assert ask(address, tls.grpc_channel_credentials(local, "b")) == str(local.identity)
        named = ask(address, tls.grpc_channel_credentials(host, "b"), options(name="gw2"))
        assert named.endswith("/host/h1")


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_grpc_impostors_are_turned_away(world: World, gateway_b: StoredIdentity, kind: str) -> None:
    impostor = world.stored(IMPOSTORS[kind](world))
    with serving(gateway_b, world) as address, pytest.raises(LandbridgeError) as refusal:
        ask(address, tls.grpc_channel_credentials(impostor, "b"))
    assert refusal.value.code == ("bad-identity" if kind in THROUGH_TLS else "unreachable")


def test_a_grpc_client_without_certificate_is_turned_away(world: World, gateway_b: StoredIdentity) -> None:
    root = world.b.certificate.public_bytes(Encoding.PEM)
    with serving(gateway_b, world) as address, pytest.raises(LandbridgeError) as refusal:
        ask(address, grpc.ssl_channel_credentials(root))
    assert refusal.value.code == "unreachable"


def test_a_grpc_client_accepts_nobody_but_a_gateway_of_the_wanted_site(world: World, gateway_a: StoredIdentity) -> None:
    for local in (
        world.issued(world.b, Role.HOST, "gateway"),
        world.issued(world.b, Role.OPERATOR, "alice"),
        world.issued(world.a, Role.GATEWAY, "gw1"),
    ):
        with serving(local, world) as address, pytest.raises(LandbridgeError) as refusal:
            ask(address, tls.grpc_channel_credentials(gateway_a, "b"))
        assert refusal.value.code == "unreachable", local


async def test_grpc_aio_uses_the_same_credentials(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    async def method(_: bytes, context: Any) -> bytes:
        return str(tls.grpc_peer_credential(context, world.trust, NOW).identity).encode()

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(cast("Any", method))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", {"Who": handler}),))
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(lambda: gateway_b))
    await server.start()
    credentials = tls.grpc_channel_credentials(gateway_a, "b")
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options()) as channel:
        call = cast("Callable[..., Any]", channel.unary_unary("/Test/Who"))
        assert await call(b"", timeout=SECONDS) == A_GATEWAY.encode()
    await server.stop(None)


@dataclass
class Facts:
    """A servicer context with made-up facts about the connection."""

    facts: dict[str, list[bytes]]

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.facts


def test_a_call_without_certificate_or_over_an_old_version_is_refused(world: World, gateway_a: StoredIdentity) -> None:
    good = {"x509_pem_cert": [gateway_a.certificate_pem], "ssl_tls_version": [b"TLSv1.3"]}
    assert tls.grpc_peer_credential(Facts(good), world.trust, NOW).identity == gateway_a.identity
    for bad in (dict[str, list[bytes]](x509_pem_cert=[]), {"ssl_tls_version": [b"TLSv1.2"]}):
        with pytest.raises(NotAuthenticated):
            tls.grpc_peer_credential(Facts({**good, **bad}), world.trust, NOW)


# The TLS floor of gRPC.


def raw_handshake(address: str, context: ssl.SSLContext) -> str | None:
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=GATEWAY_B) as connection,
    ):
        assert connection.recv(4)[3] == 4  # the server's first HTTP/2 frame: SETTINGS (RFC 9113, 6.5)
        return connection.version()


def test_a_grpc_server_refuses_tls_1_2_and_accepts_1_3(
    world: World, gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    with serving(gateway_b, world) as address:
        new = limited(tls.client_context(gateway_a, "b"), ssl.TLSVersion.TLSv1_3)
        assert raw_handshake(address, new) == "TLSv1.3"
        old = limited(tls.client_context(gateway_a, "b"), ssl.TLSVersion.TLSv1_2)
        with pytest.raises(OSError):  # noqa: PT011 - an alert, an end of file or a reset, as the kernel has it
            raw_handshake(address, old)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_grpc_client_refuses_tls_1_2_and_accepts_1_3(
    gateway_a: StoredIdentity, gateway_b: StoredIdentity, version: ssl.TLSVersion
) -> None:
    server = limited(tls.server_context(gateway_b), version)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        credentials = tls.grpc_channel_credentials(gateway_a, "b")
        with grpc.secure_channel(address, credentials, options()) as channel:
            asking = cast("grpc.UnaryUnaryMultiCallable[bytes, bytes]", channel.unary_unary("/Test/Who"))
            call = asking.future(b"", timeout=SECONDS)  # so that it connects
            raw, _ = listener.accept()
            raw.settimeout(SECONDS)
            with raw:
                if version is ssl.TLSVersion.TLSv1_2:
                    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
                        server.wrap_socket(raw, server_side=True)
                else:
                    with server.wrap_socket(raw, server_side=True) as connection:
                        assert connection.version() == "TLSv1.3"
                        assert connection.recv(14) == b"PRI * HTTP/2.0"
            call.cancel()


# Runs in a fresh interpreter, because gRPC reads its environment once. Prints what a TLS 1.2 client gets.
PROBE = """
import os, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

order, directory = sys.argv[1], Path(sys.argv[2])
if order == "grpc first":
    import grpc
import certs.tls
import grpc
from certs import floor, store
from landbridge.errors import InternalError

local = store.load_identity(directory, datetime.now(UTC))
try:
    certs.tls.grpc_channel_credentials(local, "b")
    credentials, made = certs.tls.grpc_server_credentials(lambda: local), "made"
except InternalError:
    roots = (directory / "trust" / "b.pem").read_bytes()
    pair = (local.key_pem, local.certificate_pem)
    credentials, made = grpc.ssl_server_credentials([pair], roots, True), "refused"
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", credentials)
server.start()
client = certs.tls.client_context(local, "b")
client.minimum_version = ssl.TLSVersion.TLSv1_2
client.maximum_version = ssl.TLSVersion.TLSv1_2
client.set_alpn_protocols(["h2"])
try:
    with socket.create_connection(("127.0.0.1", port), 20) as raw:
        with client.wrap_socket(raw, server_hostname="gateway.b.example.org") as connection:
            old = connection.version()
except OSError:
    old = "nothing"
server.stop(None).wait(20)
print(made, old)
"""


@pytest.mark.parametrize(
    ("order", "preset", "expected"),
    [
        ("certs first", None, "made nothing"),
        ("certs first", "ECDHE-ECDSA-AES128-GCM-SHA256", "made nothing"),
        ("grpc first", floor.SUITES, "made nothing"),
        ("grpc first", None, "refused TLSv1.2"),
        ("grpc first", "ECDHE-ECDSA-AES128-GCM-SHA256", "refused TLSv1.2"),
    ],
)
def test_the_floor_holds_or_no_credentials_are_made(
    tmp_path: Path, world: World, order: str, preset: str | None, expected: str
) -> None:
    leaf = authority.issue(world.b, Identity(DOMAIN, "b", Role.GATEWAY, "gw2"), NOW)
    store.save_identity(tmp_path / "gw2", leaf)
    environment = {key: value for key, value in os.environ.items() if key != floor.VARIABLE}
    if preset is not None:
        environment[floor.VARIABLE] = preset
    done = subprocess.run(
        [sys.executable, "-c", PROBE, order, str(tmp_path / "gw2")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr


def test_an_identity_serves_from_memory(gateway_a: StoredIdentity, tmp_path: Path) -> None:
    tls.server_context(replace(gateway_a, directory=tmp_path / "gone"))


def test_an_identity_that_tls_cannot_use_is_a_config_error(
    gateway_a: StoredIdentity, gateway_b: StoredIdentity
) -> None:
    with pytest.raises(LandbridgeError, match="cannot be loaded"):
        tls.server_context(replace(gateway_a, key_pem=gateway_b.key_pem))
