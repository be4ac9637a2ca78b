"""python -m tests.bench.relay: one process that passes bytes on from one socket to another; the plain thing to compare with.

It takes one connection, carries one direction, and ends with it. It says on standard output where it listens, and at the end
how many bytes it has carried and what CPU time that took, one JSON object each. The ways in which it can move them:

    streams    asyncio's streams, in reads of at most READ
    protocol   asyncio's transports with one buffer of READ (BufferedProtocol), without streams
    blocking   blocking sockets and one thread
    ready      non-blocking sockets, read and written when the event loop finds them ready; also with frames
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from certs import tls
from certs.identity import Role
from certs.store import StoredIdentity, load_identity

# As in a link: bytes queued in this process above which it waits.
HIGH_WATER = 4 << 20
# Seconds to be dialled, to dial, and to shake hands.
PATIENCE = 30.0
# Only its size matters here: version, type, hints, length, channel, position.
HEADER = struct.Struct("!BBHIQQ")


@dataclass(frozen=True)
class Wire:
    """A connected socket, and what makes it TLS; None leaves it in the clear."""

    sock: socket.socket
    context: ssl.SSLContext | None = None
    # Whom it was dialled to; None where it was accepted.
    server_name: str | None = None

    def wrapped(self) -> socket.socket:
        """The socket after its handshake."""
        if self.context is None:
            return self.sock
        accepted = self.server_name is None
        return self.context.wrap_socket(self.sock, server_side=accepted, server_hostname=self.server_name)


@dataclass
class Meter:
    """What this process has done since its first byte."""

    carried: int = 0
    _before: float | None = None

    def count(self, length: int) -> None:
        """Note bytes that were read."""
        if self._before is None:
            self._before = time.process_time()
        self.carried += length

    def report(self) -> dict[str, float]:
        """The last line of output."""
        return {"bytes": self.carried, "cpu_s": time.process_time() - (self._before or 0.0)}


# Blocking


def blocking(source: Wire, target: Wire, read: int, meter: Meter) -> None:
    """One thread: read, write."""
    reader, writer = source.wrapped(), target.wrapped()
    buffer = memoryview(bytearray(read))
    while count := reader.recv_into(buffer):
        meter.count(count)
        writer.sendall(buffer[:count])
    writer.shutdown(socket.SHUT_WR)


# asyncio's streams and transports


async def streams(source: Wire, target: Wire, read: int, meter: Meter) -> None:
    """As today's links do it."""
    reader, _ = await _opened(source)
    _, writer = await _opened(target)
    writer.transport.set_write_buffer_limits(high=HIGH_WATER)
    while data := await reader.read(read):
        meter.count(len(data))
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _opened(wire: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if wire.context is None or wire.server_name is not None:
        return await asyncio.open_connection(sock=wire.sock, ssl=wire.context, server_hostname=wire.server_name)
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, wire.sock, ssl=wire.context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Target(asyncio.Protocol):
    """Where bytes go; stops their source while it has more than it can send."""

    source: asyncio.ReadTransport | None = None

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        if self.source is not None:
            self.source.pause_reading()

    def resume_writing(self) -> None:
        if self.source is not None and not self.source.is_closing():
            self.source.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed.set_result(None)


class _Source(asyncio.BufferedProtocol):
    """Where bytes come from."""

    def __init__(self, target: asyncio.WriteTransport, read: int, meter: Meter) -> None:
        self._target = target
        self._buffer = memoryview(bytearray(read))
        self._meter = meter

    def get_buffer(self, _hint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._meter.count(count)
        self._target.write(self._buffer[:count])

    def eof_received(self) -> None:
        self._target.close()


async def protocol(source: Wire, target: Wire, read: int, meter: Meter) -> None:
    """One callback per read, without a task."""
    loop = asyncio.get_running_loop()
    transport, receiver = await loop.create_connection(
        _Target, sock=target.sock, ssl=target.context, server_hostname=target.server_name
    )
    transport.set_write_buffer_limits(high=HIGH_WATER)

    def make() -> _Source:
        return _Source(transport, read, meter)

    if source.context is None or source.server_name is not None:
        receiver.source, _ = await loop.create_connection(
            make, sock=source.sock, ssl=source.context, server_hostname=source.server_name
        )
    else:
        receiver.source, _ = await loop.connect_accepted_socket(make, source.sock, ssl=source.context)
    await receiver.closed


# Non-blocking sockets on the event loop

NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Taker:
    """Fills one buffer with whatever comes."""

    def __init__(self, sock: socket.socket, size: int, header: int = 0) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(header + size))
        self._room = self._buffer[header:]
        self.ended = False

    def take(self) -> memoryview:
        """What is there, up to the buffer's size; empty if nothing is."""
        count, room = 0, self._room
        while count < len(room):
            try:
                got = self._sock.recv_into(room[count:])
            except NOT_READY:
                break
            if not got:
                self.ended = True
                break
            count += got
        return room[:count]


class Framer(Taker):
    """Puts a header before what comes."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        super().__init__(sock, size, HEADER.size)
        self._position = 0

    def take(self) -> memoryview:
        """A whole frame."""
        data = super().take()
        if not data:
            return data
        HEADER.pack_into(self._buffer, 0, 2, 3, 0, len(data), 1, self._position)
        self._position += len(data)
        return self._buffer[: HEADER.size + len(data)]


class FrameTaker:
    """Reads frames, each into a buffer of its own: its header first, and then the payload to where it stays."""

    def __init__(self, sock: socket.socket, *, strip: bool) -> None:
        self._sock = sock
        self._strip = strip
        self._header = memoryview(bytearray(HEADER.size))
        self._frame = self._header[:0]
        self._filled = 0
        self.ended = False

    def take(self) -> memoryview:
        """The next frame, or its payload; empty until it is complete."""
        while True:
            in_header = not self._frame
            room = self._header if in_header else self._frame
            try:
                got = self._sock.recv_into(room[self._filled :])
            except NOT_READY:
                return self._header[:0]
            if not got:
                self.ended = True
                return self._header[:0]
            self._filled += got
            if self._filled < len(room):
                continue
            if in_header:
                *_, length, _channel, _position = HEADER.unpack(self._header)
                self._frame = memoryview(bytearray(HEADER.size + length))
                self._frame[: HEADER.size] = self._header
                continue
            frame, self._frame, self._filled = self._frame, self._header[:0], 0
            return frame[HEADER.size :] if self._strip else frame


class Ready:
    """Reads when the source is ready, writes when the target is; never holds more than one buffer or frame."""

    def __init__(self, taker: Taker | FrameTaker, source: socket.socket, target: socket.socket, meter: Meter) -> None:
        self._loop = asyncio.get_running_loop()
        self._taker = taker
        self._source = source
        self._target = target
        self._meter = meter
        self._held = memoryview(b"")
        self._waits_for_target = False
        self.done = self._loop.create_future()
        self._loop.add_reader(source, self._readable)

    def _readable(self) -> None:
        # Called once more than the socket asked for it, see the end of _write. What the target has not taken must stay as
        # it is: OpenSSL wants the same bytes again after it could not write them.
        if not self._waits_for_target and not self.done.done():
            self._guarded(self._read)

    def _writable(self) -> None:
        self._guarded(self._write)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._target)
            self.done.set_exception(error)

    def _read(self) -> None:
        self._held = self._taker.take()
        self._meter.count(len(self._held))
        self._write()

    def _write(self) -> None:
        while self._held:
            try:
                self._held = self._held[self._target.send(self._held) :]
            except NOT_READY:
                if not self._waits_for_target:
                    self._loop.remove_reader(self._source)
                    self._loop.add_writer(self._target, self._writable)
                    self._waits_for_target = True
                return
        if self._waits_for_target:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._readable)
            self._waits_for_target = False
        if self._taker.ended:
            self._loop.remove_reader(self._source)
            self.done.set_result(None)
        elif isinstance(self._source, ssl.SSLSocket) and self._source.pending():
            # Decrypted already, so that the socket will not announce it.
            self._loop.call_soon(self._readable)


async def ready(source: Wire, target: Wire, read: int, meter: Meter, *, frames: str = "") -> None:
    """`frames`: "add" headers to what comes, "keep" the frames that come, "strip" their headers, or "" for none."""
    reader, writer = source.wrapped(), target.wrapped()
    reader.setblocking(False)
    writer.setblocking(False)
    taker: Taker | FrameTaker
    match frames:
        case "add":
            taker = Framer(reader, read)
        case "keep" | "strip":
            taker = FrameTaker(reader, strip=frames == "strip")
        case _:
            taker = Taker(reader, read)
    await Ready(taker, reader, writer, meter).done
    writer.setblocking(True)
    writer.shutdown(socket.SHUT_WR)


# The program

WAYS: dict[str, Callable[[Wire, Wire, int, Meter], None]] = {
    "streams": lambda *rest: asyncio.run(streams(*rest)),
    "protocol": lambda *rest: asyncio.run(protocol(*rest)),
    "blocking": blocking,
    "ready": lambda *rest: asyncio.run(ready(*rest)),
}


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option("--way", type=click.Choice(list(WAYS)), default="blocking")
@click.option("--frames", type=click.Choice(["", "add", "keep", "strip"]), default="", help="With --way ready.")
@click.option("--from", "source", required=True, help="Where to listen: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT.")
@click.option("--to", "target", required=True, help="Where to dial; tls:HOST:PORT/ROLE/SITE says who must answer.")
@click.option("--identity", "directory", type=click.Path(path_type=Path), help="For TLS.")
@click.option("--read", default=256 << 10, show_default=True, help="Bytes per read, and per frame.")
@click.option("--buffers", default=0, help="SO_SNDBUF and SO_RCVBUF; 0 leaves them to the kernel.")
@click.option("--congestion", default="", help="TCP_CONGESTION of what is dialled.")
def main(
    way: str, frames: str, source: str, target: str, directory: Path | None, read: int, buffers: int, congestion: str
) -> None:
    """Listen, take one connection, dial, carry."""
    identity = load_identity(directory, datetime.now(UTC)) if directory else None
    listener = _listener(source, buffers)
    _say({"listening": _place(listener)})
    listener.settimeout(PATIENCE)
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE)
    dialled = _dial(target, identity, buffers, congestion)
    taken = Wire(accepted, tls.server_context(_given(identity)) if source.startswith("tls:") else None)
    for sock in (accepted, dialled.sock):
        sock.settimeout(None)
    meter = Meter()
    if frames:
        asyncio.run(ready(taken, dialled, read, meter, frames=frames))
    else:
        WAYS[way](taken, dialled, read, meter)
    _say(meter.report())


def _listener(endpoint: str, buffers: int) -> socket.socket:
    kind, _, place = endpoint.partition(":")
    if kind == "unix":
        with contextlib.suppress(FileNotFoundError):
            Path(place).unlink()
        listener = socket.socket(socket.AF_UNIX)
        _tune(listener, buffers)
        listener.bind(place)
    else:
        host, _, port = place.rpartition(":")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(listener, buffers)
        listener.bind((host, int(port)))
    listener.listen(1)
    return listener


def _dial(endpoint: str, identity: StoredIdentity | None, buffers: int, congestion: str) -> Wire:
    kind, _, place = endpoint.partition(":")
    sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    _tune(sock, buffers)
    if congestion:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    sock.settimeout(PATIENCE)
    if kind == "unix":
        sock.connect(place)
        return Wire(sock)
    address, _, peer = place.partition("/")
    host, _, port = address.rpartition(":")
    sock.connect((host, int(port)))
    if kind == "tcp":
        return Wire(sock)
    role, _, site = peer.partition("/")
    known = _given(identity)
    return Wire(sock, tls.client_context(known, site), tls.server_name(Role(role), site, known.identity.trust_domain))


def _tune(sock: socket.socket, buffers: int) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)


def _place(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _given(identity: StoredIdentity | None) -> StoredIdentity:
    if identity is None:
        raise click.UsageError("TLS needs an --identity")
    return identity


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
