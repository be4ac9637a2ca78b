"""The only file that moves bytes on a host: between the sockets of libvirt and QEMU, and the channels to the other host.

    source        libvirtd and QEMU connect to DIRECTORY/{rpc,ram,disk}.sock: `listen`
                  each connection becomes a channel on a link to a gateway:     `Links.to_gateway`
    destination   a gateway's link brings channels:                             `Links.accept`
                  each is connected to libvirtd's socket, or to the one on which QEMU listens

A channel whose local socket ends is closed; one whose link dies is reset, and its local socket is closed (at the source after
LOST_GRACE), so that libvirt sees a lost connection and lets the guest run on at the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from certs.links import Target, dial
from landbridge.channel import SEGMENT, Accepted, Channel, ChannelState, Data, EndOfData, Event, Reset
from landbridge.errors import LandbridgeError, ProtocolError, Unreachable
from landbridge.frame import Frame, FrameType, reset
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

log = structlog.get_logger()

KINDS = {
    "rpc": ChannelKind.CHANNEL_KIND_RPC,
    "ram": ChannelKind.CHANNEL_KIND_RAM,
    "disk": ChannelKind.CHANNEL_KIND_DISK,
}
NAMES = {kind: name for name, kind in KINDS.items()}

# Seconds to have a channel accepted by the destination.
ACCEPT_TIMEOUT = 20.0
# Seconds that libvirt gets to stop a move in good order after a channel was lost. If QEMU's connections break before it is
# told to stop, while the guest stands still for the switch-over, QEMU 7.2 goes on with a filter node that nobody owns on
# top of the disk, and refuses to copy this disk ever again ("Need a root block node").
LOST_GRACE = 3.0


@dataclass
class Traffic:
    """What one migration's channels have carried at this host, and how they ended. Owned by the event loop."""

    # Bytes per kind, read from and written to the local sockets.
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    # Why the first channel was reset from outside, if one was: the cause behind libvirt's "lost connection".
    failure: str | None = None
    # The kinds of channels whose local socket was closed on this host while the far end still had it open.
    closed_here: set[str] = field(default_factory=set)
    open_channels: int = 0
    # Called when a channel was lost; its socket then stays open for LOST_GRACE, unless somebody closes it before.
    on_lost: Callable[[], None] | None = None
    # Called with the kind when a channel has ended.
    on_close: Callable[[str], None] | None = None
    # Called with channel and bytes of an rpc channel: after they were read from libvirtd and before they go on, and after
    # libvirtd was given them. At the source, the former are calls and the latter replies; at the destination, vice versa.
    on_call: Callable[[int, bytes], None] | None = None
    on_reply: Callable[[int, bytes], None] | None = None


class Carrier:
    """Carries one channel: two tasks, one per direction."""

    def __init__(self, mux: Mux, channel: Channel, kind: str, traffic: Traffic) -> None:
        self.channel = channel
        self.accepted = asyncio.Event()
        self._mux = mux
        self._kind = kind
        self._traffic = traffic
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._room = asyncio.Event()
        self._connection: socket.socket | None = None
        # Cleared while the socket of a lost channel is not to be closed yet.
        self._let_go = asyncio.Event()
        self._let_go.set()
        self._far_end_closed = False

    def receive_frame(self, frame: Frame) -> None:
        """Take a frame that the link brought; a broken rule resets the channel."""
        try:
            events = self.channel.receive_frame(frame, self._mux.now())
        except ProtocolError as error:
            self.lost(error.message)
            return
        for event in events:
            if isinstance(event, Accepted):
                self.accepted.set()
            elif isinstance(event, Reset):
                self.lost(event.reason)
                return
            else:
                self._far_end_closed = self._far_end_closed or isinstance(event, EndOfData)
                self._events.put_nowait(event)
        self._room.set()

    def lost(self, reason: str) -> None:
        """The channel is gone: the far end has reset it, it has broken a rule, or its link has died."""
        self._traffic.failure = self._traffic.failure or reason
        self.channel.reset(reason)
        self._events.put_nowait(Reset(reason))
        self._room.set()
        self.accepted.set()
        if self._traffic.on_lost is None:
            self._wake()
        else:
            self._let_go.clear()
            asyncio.get_running_loop().call_later(LOST_GRACE, self._wake)
            self._traffic.on_lost()

    def _wake(self) -> None:
        self._let_go.set()
        if self._connection is not None:
            # Wake whoever reads from it, or writes to it, for bytes that never come or that nobody takes.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    async def run(self, connection: socket.socket) -> None:
        """Carry bytes both ways until the channel is closed; closes the socket."""
        self._connection = connection
        self._traffic.open_channels += 1
        up = asyncio.create_task(self._from_socket(connection))
        down = asyncio.create_task(self._to_socket(connection))
        try:
            await asyncio.gather(up, down)
            await self._let_go.wait()
        except OSError as error:
            # EPIPE and ECONNRESET: libvirt or QEMU went away with bytes on the way. The reason is read at the far end.
            if self.channel.state is ChannelState.OPEN:
                self._traffic.closed_here.add(self._kind)
            self.channel.reset(f"the {self._kind} socket of the other host was closed: {error.strerror or error}")
        except LandbridgeError as error:
            # What libvirt said on this host cannot be followed: better no move than one that nobody understands.
            self._traffic.failure = self._traffic.failure or error.message
            self.channel.reset(error.message)
        except asyncio.CancelledError:
            self.channel.reset(f"the {self._kind} socket of the other host was closed")
            raise
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self._flush()
            connection.close()
            self._mux.forget(self.channel.number)
            self._traffic.open_channels -= 1
            if self._traffic.on_close is not None:
                self._traffic.on_close(self._kind)

    async def _from_socket(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        channel = self.channel
        while channel.state is ChannelState.OPEN:
            self._room.clear()
            if channel.room == 0:
                await self._room.wait()
                continue
            data = await loop.sock_recv(connection, min(channel.room, SEGMENT))
            if not data:
                if not self._far_end_closed and channel.state is ChannelState.OPEN:
                    self._traffic.closed_here.add(self._kind)
                channel.send_eof()
                self._flush()
                return
            self._traffic.read[self._kind] += len(data)
            if self._kind == "rpc" and self._traffic.on_call is not None:
                self._traffic.on_call(channel.number, data)
            channel.send_data(data, self._mux.now())
            self._flush()

    async def _to_socket(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while self.channel.state is not ChannelState.CLOSED:
            match await self._events.get():
                case Data(data):
                    await loop.sock_sendall(connection, data)
                    self._traffic.written[self._kind] += len(data)
                    if self._kind == "rpc" and self._traffic.on_reply is not None:
                        self._traffic.on_reply(self.channel.number, data)
                    self.channel.delivered(len(data))
                    self._flush()
                case EndOfData():
                    connection.shutdown(socket.SHUT_WR)
                    self.channel.delivered_eof()
                    return
                case Reset():
                    return

    def _flush(self) -> None:
        for frame in self.channel.frames_to_send():
            self._mux.link.send(frame)


Incoming = Callable[[ChannelOpen], tuple[str, Traffic]]


class Mux:
    """The channels of one link."""

    def __init__(self, link: Link, incoming: Incoming | None = None) -> None:
        self.link = link
        self._incoming = incoming
        self._carriers: dict[int, Carrier] = {}
        self._next_number = 1
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def now() -> float:
        """The clock of the channels, in seconds."""
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Read frames until the link ends; then every channel of it is lost."""
        reason = "this agent stops"
        try:
            async for frame in self.link.frames():
                carrier = self._carriers.get(frame.channel)
                if carrier is not None:
                    carrier.receive_frame(frame)
                elif frame.type is FrameType.OPEN:
                    self._accept(frame)
        except LandbridgeError as error:
            reason = error.message
        finally:
            for carrier in list(self._carriers.values()):
                carrier.lost(reason)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def carry(self, connection: socket.socket, opening: ChannelOpen, traffic: Traffic) -> None:
        """Open a channel for a local connection and carry it to its end."""
        number = self._next_number
        self._next_number += 1
        channel = Channel(number, opened_by_us=True, open_payload=opening.SerializeToString())
        carrier = self._carriers[number] = Carrier(self, channel, NAMES[opening.kind], traffic)
        for frame in channel.frames_to_send():
            self.link.send(frame)
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT):
                await carrier.accepted.wait()
        except TimeoutError:
            channel.reset(f"the destination did not accept the channel within {ACCEPT_TIMEOUT:.0f} s")
            traffic.failure = traffic.failure or "the destination did not answer"
        except asyncio.CancelledError:
            self.link.send(reset(number, f"the {NAMES[opening.kind]} socket of the other host was closed"))
            self.forget(number)
            raise
        await carrier.run(connection)

    def _accept(self, frame: Frame) -> None:
        if self._incoming is None:
            self.link.send(reset(frame.channel, "this end opens channels and accepts none"))
            return
        try:
            opening = ChannelOpen.FromString(frame.payload)
            path, traffic = self._incoming(opening)
            carrier = Carrier(self, Channel(frame.channel, opened_by_us=False), NAMES[opening.kind], traffic)
        except (LandbridgeError, DecodeError, KeyError) as error:
            self._refuse(frame.channel, error)
            return
        # Registered before anything is awaited, so that a RESET that follows at once finds it.
        self._carriers[frame.channel] = carrier
        self._spawn(self._connect(carrier, path))

    async def _connect(self, carrier: Carrier, path: str) -> None:
        channel = carrier.channel
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, path)
        except OSError as error:
            connection.close()
            self.forget(channel.number)
            self._refuse(channel.number, error)
            return
        channel.accept()
        for answer in channel.frames_to_send():
            self.link.send(answer)
        await carrier.run(connection)

    def _refuse(self, number: int, error: Exception) -> None:
        self.link.send(reset(number, f"the destination host refused the channel: {error}"))

    def forget(self, number: int) -> None:
        """A channel has ended."""
        self._carriers.pop(number, None)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Links:
    """This host's links: the one to a gateway, dialled when a channel needs it, and those that gateways dial."""

    def __init__(self, gateways: Sequence[Target], incoming: Incoming) -> None:
        self._gateways = list(gateways)
        self._incoming = incoming
        self._dialled: Mux | None = None
        self._dialling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def to_gateway(self) -> Mux:
        """The link to a gateway, dialled if there is none. Raises Unreachable if no gateway answers."""
        async with self._dialling:
            if self._dialled is not None and self._dialled.link.closed_because is None:
                return self._dialled
            failures = []
            for gateway in self._gateways:
                try:
                    link = await dial(gateway)
                except Unreachable as error:
                    failures.append(error.message)
                    continue
                self._dialled = self._start(link, None)
                return self._dialled
            raise Unreachable(f"no gateway of this site answers: {'; '.join(failures)}")

    def accept(self, link: Link) -> None:
        """Take a link that an authenticated gateway has dialled."""
        self._start(link, self._incoming)

    def _start(self, link: Link, incoming: Incoming | None) -> Mux:
        mux = Mux(link, incoming)
        task = asyncio.create_task(mux.run(), name=f"link with {link.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return mux

    async def close(self) -> None:
        """End every link, and with them their channels."""
        if self._dialled is not None:
            self._dialled.link.abort("this agent stops")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class LocalSockets:
    """The three sockets of one migration at its source; whoever makes them calls `close`."""

    def __init__(self, links: Links, migration: str, destination_site: str, directory: Path) -> None:
        self.directory = directory
        self.traffic = Traffic()
        self._links = links
        self._migration = migration
        self._destination_site = destination_site
        self._servers: list[socket.socket] = []
        # Connections so far, per kind.
        self._accepted = dict.fromkeys(KINDS, 0)
        self._connections: set[asyncio.Task[None]] = set()

    def path(self, kind: str) -> str:
        """Where libvirtd or QEMU connects."""
        return str(self.directory / f"{kind}.sock")

    def listen(self, owner: tuple[int, int]) -> None:
        """Make the sockets, connectable by root and by `owner` (QEMU's user and group ids) only."""
        for kind in KINDS:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                Path(self.path(kind)).unlink()
            server.bind(self.path(kind))
            Path(self.path(kind)).chmod(0o600)
            if kind != "rpc":
                os.chown(self.path(kind), *owner)
            server.listen(64)
            asyncio.get_running_loop().add_reader(server, self._accept, kind, server)
            self._servers.append(server)

    def _accept(self, kind: str, server: socket.socket) -> None:
        # Not a task that accepts: to cancel it could lose a connection that has just been accepted.
        try:
            connection, _ = server.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        connection.setblocking(False)
        task = asyncio.create_task(self._carry(kind, self._accepted[kind], connection))
        self._accepted[kind] += 1
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # Also if it is cancelled before it begins.
        task.add_done_callback(lambda _: connection.close())

    async def _carry(self, kind: str, index: int, connection: socket.socket) -> None:
        opening = ChannelOpen(
            migration=self._migration, kind=KINDS[kind], index=index, destination_site=self._destination_site
        )
        try:
            mux = await self._links.to_gateway()
            await mux.carry(connection, opening, self.traffic)
        except LandbridgeError as error:
            self.traffic.failure = self.traffic.failure or error.message
            log.warning("channel.refused", migration=self._migration, kind=kind, reason=error.message)

    async def close(self) -> None:
        """Close the sockets and whatever is connected to them, and remove the directory."""
        for server in self._servers:
            asyncio.get_running_loop().remove_reader(server)
            server.close()
        self._servers.clear()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        remove_directory(self.directory)


def make_directory(directory: Path, owner: tuple[int, int]) -> None:
    """Make a migration's socket directory, for QEMU's user alone. One left by a killed agent is taken over."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    os.chown(directory, *owner)


def remove_directory(directory: Path) -> None:
    """Remove a migration's socket directory with whatever is in it; it may be gone already."""
    shutil.rmtree(directory, ignore_errors=True)
