"""Links with both sides authenticated: how they are dialled, and how they are accepted.

    dial      connect, handshake, and only then a Link; all within DIAL_TIMEOUT
    listen    accept, handshake within HANDSHAKE_TIMEOUT, ask `access` who may come in, and only then a Link

A caller that sends garbage, one byte a second, or never finishes its handshake costs one of HANDSHAKES for so long, and
nobody else anything: a caller that comes when all are taken is turned away. So is one from an address that tries too often, or that
was refused too often, at no more than the price of a line in the log for all of its flood.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from certs import tls
from certs.attempts import Attempts
from certs.guard import Access, Refused
from certs.identity import Identity, Role
from certs.living import LivingIdentity
from landbridge.config import Address
from landbridge.errors import ConfigError, LandbridgeError, NotAuthenticated, Unreachable
from landbridge.frame import RECORD, Payload
from landbridge.link import Link

log = structlog.get_logger()

# As socket.getaddrinfo gives them.
AddressInfo = tuple[int, int, int, str, Any]

DIAL_TIMEOUT = 5.0
HANDSHAKE_TIMEOUT = 5.0
HANDSHAKES = 128
# Of one address: links that it may begin at once, and then in a second; and those of them that may be refused. The most that is honest is
# a gateway that dials a tunnel again for each of its peers', and an agent that opens the channels of all its migrations.
CALLERS = (256, 64.0)
REFUSED = (64, 4.0)
# Seconds for which nobody is accepted once this process has no file descriptor left, or the machine no memory.
EXHAUSTION_PAUSE = 0.5
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# What Python's socket module does not name on every platform (linux/tcp.h).
_TCP_CONGESTION = 13
_TCP_NOTSENT_LOWAT = 25
# Bytes that a tunnel's socket may hold which TCP has not sent yet: with four links, 5 ms at 200 Mbit/s.
UNSENT_ON_TUNNEL = 32 << 10
# The same inside a site, and what may wait there to be read, unless somebody knows better: 10 ms at 200 Mbit/s, together.
UNSENT_ON_LAN = WAITING_ON_LAN = 128 << 10


@dataclass(frozen=True)
class Target:
    """Where to dial, and whose certificate must answer."""

    # For messages: "host east-1", "the gateway of site west".
    name: str
    address: Address
    # Who dials.
    local: LivingIdentity
    role: Role
    site: str
    # Of the host; "" for any gateway of the site.
    host: str = ""
    # Whether the link crosses the WAN.
    is_tunnel: bool = False

    def wrap(self, raw: socket.socket) -> ssl.SSLSocket:
        """TLS on a connection to it; the handshake is still to be made."""
        name = tls.server_name(self.role, self.site, self.local.identity.trust_domain, self.host or None)
        return tls.wrap(self.local.client_context(self.site), raw, server_name=name)


class TlsConnection:
    """A socket under TLS, as a Link wants it."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """For the event loop."""
        return self._connection.fileno()

    def receive_into(self, buffer: memoryview) -> int | None:
        """Read what is there; 0 at the end, None if nothing is there now."""
        # OpenSSL gives at most one record of 16 KiB at a time: this loop is the most frequent one of all.
        read, wanted, count = self._connection.read, len(buffer), 0
        try:
            while count < wanted:
                got: int = read(wanted - count, buffer[count:])  # type: ignore[assignment]  # with a buffer, it counts
                if got == 0:
                    break
                count += got
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return count or None
        return count

    def send(self, data: Payload) -> int | None:
        """Write what fits; None if nothing does now: what was not written must be given again, and nothing before it."""
        # As above: at most one record at a time.
        send, length, count = self._connection.send, len(data), 0
        try:
            if length <= RECORD:
                return send(data)
            rest = memoryview(data)
            while count < length:
                count += send(rest[count:])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return count or None
        return count

    def set_receive_buffer(self, size: int) -> None:
        """Have the kernel hold so many bytes, and no more, that were not read yet."""
        with contextlib.suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def close(self) -> None:
        """Close at once, without a farewell: frames have an end of their own."""
        self._connection.close()


async def dial(target: Target) -> Link:
    """A link to the target. Raises Unreachable, also for one that cannot prove who it is."""
    address = target.address
    try:
        async with asyncio.timeout(DIAL_TIMEOUT):
            connection = await _connect(target)
    except TimeoutError:
        raise Unreachable(
            f"{target.name} does not answer at {address} within {DIAL_TIMEOUT:.0f} s; see whether it runs"
        ) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise Unreachable(f"{target.name} cannot be reached at {address} ({why}); see whether it runs") from error
    try:
        credential = target.local.peer(connection)
    except NotAuthenticated as error:
        connection.close()
        raise Unreachable(f"{target.name} at {address} is not accepted: {error.message}") from error
    link = Link(TlsConnection(connection), target.name, must_answer=target.is_tunnel)
    link.peer = credential.identity.name
    link.secured = tls.facts_of(connection, credential)
    target.local.hold(link, credential)
    log.info("link.dialled", link=target.name, peer=str(credential.identity), group=tls.group_of(connection))
    return link


async def _connect(target: Target) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    found = await _resolve(target.address)
    failure: OSError | None = None
    for family, kind, protocol, _, where in found:
        raw = socket.socket(family, kind, protocol)
        try:
            raw.setblocking(False)
            _tune(raw, is_tunnel=target.is_tunnel)
            await loop.sock_connect(raw, where)
            return await _shake_hands(target.wrap(raw))
        except OSError as error:
            failure = error
            raw.close()
        except BaseException:
            raw.close()
            raise
    raise failure or OSError("the name has no address")


async def _resolve(address: Address, flags: int = 0) -> Sequence[AddressInfo]:
    """What a name stands for; a thread is needed only for what is not a number, for all threads may be waiting for libvirt."""
    try:
        return socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)


async def _shake_hands(connection: ssl.SSLSocket) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    try:
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            try:
                connection.do_handshake()
            except ssl.SSLWantReadError:
                watch, unwatch = loop.add_reader, loop.remove_reader
            except ssl.SSLWantWriteError:
                watch, unwatch = loop.add_writer, loop.remove_writer
            else:
                return connection
            watch(connection, _set, ready)
            try:
                await ready
            finally:
                unwatch(connection)
    except BaseException:
        connection.close()
        raise


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _tune(raw: socket.socket, *, is_tunnel: bool, holds_back: bool = False) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # BBR fills a line that loses packets, where others give up; not every kernel has it. Inside a site, its pacing only costs.
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"bbr" if is_tunnel else b"cubic")
    if holds_back:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WAITING_ON_LAN)
    unsent = UNSENT_ON_TUNNEL if is_tunnel else UNSENT_ON_LAN
    raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent)


class Listener:
    """Accepts links until it is closed. Owned by one event loop."""

    def __init__(
        self,
        server: socket.socket,
        local: LivingIdentity,
        access: Access,
        attach: Callable[[Link, Identity], None],
        *,
        is_tunnel: bool,
        holds_back: bool,
        on_refused: Callable[[Refused], None] | None,
    ) -> None:
        self._server = server
        self._on_refused = on_refused
        self._holds_back = holds_back
        self._local = local
        local.server_context()  # of what cannot be loaded, better now than at the first caller
        self._access = access
        self._attach = attach
        self._is_tunnel = is_tunnel
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._callers = Attempts(*CALLERS)
        self._refused = Attempts(*REFUSED)
        self._pausing: asyncio.TimerHandle | None = None
        self._loop.add_reader(server, self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.getsockname()[1]
        return port

    def _accept(self) -> None:
        try:
            raw, address = self._server.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                # The caller stays in the queue, and would have us called again and again.
                log.warning("link.refused", address="", reason=f"nothing can be accepted: {error.strerror}")
                self._loop.remove_reader(self._server)
                self._pausing = self._loop.call_later(EXHAUSTION_PAUSE, self._go_on)
            return
        caller, now = str(address[0]), self._loop.time()
        if self._refused.is_spent(caller, now) or not self._callers.take(caller, now):
            if self._callers.is_news(caller, now):
                log.warning("link.refused", address=caller, reason="it tries too often")
            raw.close()
            return
        if len(self._handshakes) >= HANDSHAKES:
            log.warning("link.refused", address=caller, reason="too many callers have not finished their handshake")
            raw.close()
            return
        task = self._loop.create_task(self._admit(raw, caller))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        # Also if it is cancelled before it begins; what TLS has taken over by then is not touched.
        task.add_done_callback(lambda ended: raw.close() if ended.cancelled() else None)

    def _go_on(self) -> None:
        self._pausing = None
        self._loop.add_reader(self._server, self._accept)

    async def _admit(self, raw: socket.socket, address: str) -> None:
        try:
            raw.setblocking(False)
            _tune(raw, is_tunnel=self._is_tunnel, holds_back=self._holds_back)
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                connection = await _shake_hands(tls.wrap(self._local.server_context(), raw))
        except TimeoutError:
            self._refuse(address, "it did not finish its handshake in time")
            raw.close()
            return
        except OSError as error:
            self._refuse(address, f"no TLS handshake: {error.strerror or error}")
            raw.close()
            return
        except BaseException:
            raw.close()
            raise
        peer = None
        try:
            credential = self._local.peer(connection)
            peer = credential.identity
            self._access.check(peer, "a stream")
        except LandbridgeError as error:
            self._refuse(address, error.message, peer)
            connection.close()
            return
        name = f"{peer.role} {peer.name} of site {peer.site}"
        log.info("link.accepted", link=name, group=tls.group_of(connection))
        link = Link(TlsConnection(connection), name, must_answer=self._is_tunnel)
        link.peer = peer.name
        link.secured = tls.facts_of(connection, credential)
        self._local.hold(link, credential)
        self._attach(link, peer)

    def _refuse(self, address: str, reason: str, who: Identity | None = None) -> None:
        log.warning("link.refused", address=address, reason=reason)
        if self._on_refused is not None:
            self._on_refused(Refused(who, address, "a stream", reason))
        self._refused.take(address, self._loop.time())

    def close(self) -> None:
        """Accept no more; links that were accepted live on."""
        if self._server.fileno() < 0:
            return
        if self._pausing is not None:
            self._pausing.cancel()
        self._loop.remove_reader(self._server)
        self._server.close()
        for task in list(self._handshakes):
            task.cancel()


async def listen(
    address: Address,
    local: LivingIdentity,
    access: Access,
    attach: Callable[[Link, Identity], None],
    *,
    is_tunnel: bool = False,
    holds_back: bool = False,
    on_refused: Callable[[Refused], None] | None = None,
) -> Listener:
    """Accept links from those whom `access` admits, before a byte of theirs is read. Raises ConfigError.

    `holds_back` for links that are not always read: little waits in their sockets then. `on_refused` is told of whoever is not admitted.
    """
    try:
        found = await _resolve(address, socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        server = socket.socket(family, kind, protocol)
        try:
            server.setblocking(False)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(where)
            server.listen(HANDSHAKES)
        except OSError:
            server.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"nothing can listen on {address} ({error.strerror}); see [listen] in the configuration"
        ) from error
    return Listener(server, local, access, attach, is_tunnel=is_tunnel, holds_back=holds_back, on_refused=on_refused)
