"""Links with both sides authenticated: how they are dialled, and how they are accepted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from certs import tls
from certs.guard import Access
from certs.identity import Identity
from certs.store import StoredIdentity
from landbridge.config import Address
from landbridge.errors import ConfigError, LandbridgeError, Unreachable
from landbridge.link import Link

log = structlog.get_logger()

DIAL_TIMEOUT = 10.0


@dataclass(frozen=True)
class Target:
    """Where to dial, and whose certificate must answer."""

    # For messages: "host east-1", "the gateway of site west".
    name: str
    address: Address
    context: ssl.SSLContext
    server_name: str


async def dial(target: Target) -> Link:
    """A link to the target. Raises Unreachable, also for one that cannot prove who it is."""
    address = target.address
    try:
        async with asyncio.timeout(DIAL_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=target.context, server_hostname=target.server_name
            )
    except TimeoutError:
        raise Unreachable(
            f"{target.name} does not answer at {address} within {DIAL_TIMEOUT:.0f} s; see whether it runs"
        ) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise Unreachable(f"{target.name} cannot be reached at {address} ({why}); see whether it runs") from error
    return Link(reader, writer, target.name)


async def listen(
    address: Address, local: StoredIdentity, access: Access, attach: Callable[[Link, Identity], None]
) -> asyncio.Server:
    """Accept links from those whom `access` admits, before a byte of theirs is read. Raises ConfigError."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        try:
            peer = tls.peer_identity(connection, local.trust, datetime.now(UTC))
            access.check(peer, "a stream")
        except LandbridgeError as error:
            log.warning("link.refused", reason=error.message)
            writer.transport.abort()
            return
        name = f"{peer.role} {peer.name} of site {peer.site}"
        log.info("link.accepted", link=name)
        attach(Link(reader, writer, name), peer)

    try:
        return await asyncio.start_server(accept, address.host, address.port, ssl=tls.server_context(local))
    except OSError as error:
        raise ConfigError(
            f"nothing can listen on {address} ({error.strerror}); see [listen] in the configuration"
        ) from error
