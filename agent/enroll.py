"""`landbridge-agent enroll TOKEN`: the first certificate of a new host.

1. A handshake with a gateway's enrolment port, over which nothing is sent: the chain that it shows.
2. Its root is held against the hash in the token, and the chain against its root. Stops: whoever poses as the gateway.
3. A connection that trusts this root alone, to a gateway of its site by name: only here does the token's secret go.
4. A key, made here; a request for it; and the answer, which is judged like any other certificate before it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from grpc import aio

from certs import authority, store, tls
from certs import token as tokens
from certs.authority import Leaf
from certs.identity import Identity, Role
from certs.probe import probe
from certs.token import Token
from certs.trust import TrustBundles, judge, load_certificates
from landbridge import durable
from landbridge.config import Address, parse_address
from landbridge.errors import (
    AlreadyExists,
    ConfigError,
    IdentityError,
    LandbridgeError,
    ProtocolError,
    Unreachable,
    UsageError,
    from_status,
)
from landbridge.v1.enrolment_pb2 import EnrolRequest, EnrolResponse
from landbridge.v1.enrolment_pb2_grpc import EnrolmentStub

PATIENCE = 15.0
CONTROL_PORT, STREAM_PORT = 7443, 7444


@dataclass(frozen=True)
class Enrolled:
    """What has come of it."""

    identity: Identity
    expires_at: datetime
    control: Address
    stream: Address
    gateway_control: tuple[str, ...]
    gateway_stream: tuple[str, ...]


@click.command()
@click.argument("token")
@click.option(
    "--identity",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("/etc/landbridge/identity"),
    show_default=True,
    help="Where to write cert.pem, key.pem and trust/.",
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/etc/landbridge/agent.toml"),
    show_default=True,
    help="Written if it is not there.",
)
@click.option(
    "--listen", "host", help="The address of this host that gateways reach. [default: the one that reaches them]"
)
@click.option("--force", is_flag=True, help="Replace the identity that is there.")
def enroll(token: str, directory: Path, path: Path, host: str | None, force: bool) -> None:
    """Enrol this host with a token.

    `landbridge hosts enroll` prints one, at a gateway of the site. Writes an identity, and a configuration if there is none.
    """
    is_new = not directory.exists()
    try:
        if not force and (directory / store.CERTIFICATE).exists():
            raise AlreadyExists(f"{directory} holds an identity already: use --force to replace it.")
        if host is not None:
            _check_address(host)
        store.make_room(directory)  # the token is good once
        enrolled = asyncio.run(_enrol(tokens.parse(token), directory, host, force=force))
        is_written = _configure(path, directory, enrolled)
    except LandbridgeError as error:
        if is_new:
            with contextlib.suppress(OSError):  # it is not there, or something was kept in it
                directory.rmdir()
        click.echo(f"landbridge-agent: {error.message}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"Enrolled {enrolled.identity} in {directory}, valid until {enrolled.expires_at:%Y-%m-%dT%H:%M:%SZ}.")
    if is_written:
        click.echo(f"Wrote {path}. Next: start landbridge-agent, which renews the certificate by itself.")
    else:
        click.echo(f"{path} is as it was: see that it names this identity, and start landbridge-agent.")


async def _enrol(token: Token, directory: Path, host: str | None, *, force: bool) -> Enrolled:
    """Raises Unreachable, IdentityError, or what the gateway answered."""
    address, gateway, root = await _find(token)
    own = await asyncio.to_thread(_own_address, address) if host is None else host
    control, stream = Address(own, CONTROL_PORT), Address(own, STREAM_PORT)
    key = authority.new_key()
    request = EnrolRequest(
        token_id=token.id,
        secret=token.secret,
        request=authority.request(key).decode(),
        control=str(control),
        stream=str(stream),
    )
    answer = await _ask(address, gateway, root, request)
    roots = TrustBundles.of([root]).follow(load_certificates(answer.roots.encode()), datetime.now(UTC))
    leaf, *issuers = load_certificates(answer.chain.encode())
    credential = judge(leaf, roots, datetime.now(UTC), issuers)
    identity = credential.identity
    if identity.role is not Role.HOST or identity.home != gateway.home or leaf.public_key() != key.public_key():
        raise ProtocolError(f"The gateway has signed {identity}, and not this host: report it to whoever runs it.")
    made = Leaf(identity, leaf, key, root, issuers[0] if issuers else None)
    store.save_identity(directory, made, force=force)
    store.save_trust(directory, roots)
    gateways = ([_reachable(each, address) for each in told] for told in (answer.control, answer.stream))
    return Enrolled(identity, credential.until, control, stream, *map(tuple, gateways))


def _check_address(host: str) -> None:
    try:
        parse_address(str(Address(host, CONTROL_PORT)))
    except ValueError as error:
        raise UsageError(
            f"{host!r} is no address of this host: give --listen ADDRESS, without a port, such as 10.1.0.11."
        ) from error


def _reachable(told: str, gateway: Address) -> str:
    """An address at which a gateway listens, for one that listens everywhere as this host has reached it."""
    try:
        host, port = parse_address(told[:256])
    except ValueError as error:
        raise ProtocolError(f"The gateway at {gateway} tells an address that is none: {error}.") from error
    return str(Address(gateway.host if host in {"0.0.0.0", "::"} else host, port))  # noqa: S104 - compared, not listened on


async def _find(token: Token) -> tuple[Address, Identity, x509.Certificate]:
    """A gateway that the token knows, and its root."""
    failure: LandbridgeError = Unreachable("The token names no gateway: make a new one with `landbridge hosts enroll`.")
    for address in token.addresses:
        try:
            credential, root = await probe(address)
        except LandbridgeError as error:
            failure = error
            continue
        if token.is_for(root):
            return address, credential.identity, root
        failure = IdentityError(
            f"Whoever answers at {address} is not the gateway that the token was made by: nothing was sent. Make a new token with "
            "`landbridge hosts enroll`; if that changes nothing, somebody is in between."
        )
    raise failure


async def _ask(address: Address, gateway: Identity, root: x509.Certificate, request: EnrolRequest) -> EnrolResponse:
    options = tls.grpc_channel_options(Role.GATEWAY, gateway.site, gateway.trust_domain)
    channel = aio.secure_channel(
        str(address), tls.grpc_stranger_credentials(root), options=[*options, ("grpc.enable_http_proxy", 0)]
    )
    try:
        answer: EnrolResponse = await EnrolmentStub(channel).Enrol(request, timeout=PATIENCE)
        return answer
    except aio.AioRpcError as error:
        trailing = tuple((key, value) for key, value in error.trailing_metadata() or ())
        raise from_status(error.code().name, error.details(), trailing) from error
    finally:
        await channel.close()


def _own_address(gateway: Address) -> str:
    """The address of this host from which it reaches a gateway."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(*gateway, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(where)  # of UDP: sends nothing
            return str(sock.getsockname()[0])
    except OSError as error:
        raise Unreachable(f"There is no way to {gateway} ({error.strerror}): give --listen ADDRESS.") from error


def _configure(path: Path, directory: Path, enrolled: Enrolled) -> bool:
    """Write a configuration, if there is none."""
    if path.exists():
        return False
    text = f"""\
site = "{enrolled.identity.site}"
name = "{enrolled.identity.name}"

[identity]
directory = {json.dumps(str(directory))}

[listen]
control = "{enrolled.control}"
stream = "{enrolled.stream}"

[gateway]
control = {json.dumps(list(enrolled.gateway_control))}
stream = {json.dumps(list(enrolled.gateway_stream))}
"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, text.encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another with --config.") from error
    return True
