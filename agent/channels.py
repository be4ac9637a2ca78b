"""Where this host's channels begin and end.

source        libvirtd and QEMU connect to DIRECTORY/{rpc,ram,disk}.sock (`LocalSockets`); each connection becomes a channel, with
              a link of its own to one of this site's gateways, the first that answers
destination   a gateway dials a link for a channel (`Incoming`); its first frame is OPEN, and the channel is connected to
              libvirtd's socket, or to the one on which QEMU listens. One that is open already goes on with the new link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from agent.farewell import FAREWELL
from agent.relay import Carrier
from agent.traffic import KINDS, Traffic
from certs.links import Target, dial
from landbridge.channel import Channel, ChannelState
from landbridge.errors import LandbridgeError, ProtocolError, Unreachable
from landbridge.frame import Frame, FrameType, reset
from landbridge.link import Link
from landbridge.ticket import ticket
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

log = structlog.get_logger()

NUMBERS = {
    "rpc": ChannelKind.CHANNEL_KIND_RPC,
    "ram": ChannelKind.CHANNEL_KIND_RAM,
    "disk": ChannelKind.CHANNEL_KIND_DISK,
}
NAMES = {kind: name for name, kind in NUMBERS.items()}
# Seconds between two attempts to reach a gateway: doubled from the first to the second, with jitter of a half.
BACK_OFF = (0.1, 2.0)
# Seconds in which a link that a gateway has dialled must say which channel it is for.
FIRST_FRAME = 10.0
# Seconds for which a channel that has ended is remembered, to tell those who ask for it again.
MEMORY = 60.0


class Gateways:
    """This site's gateways, as an agent dials them: the one that answered last is tried first."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = list(targets)
        self._first = 0
        # What keeps channels linked whose migration is over here, and of which the other agent is still to be told that.
        self._telling: set[asyncio.Task[None]] = set()

    async def dial(self) -> Link:
        """A link to a gateway. Raises Unreachable if none answers."""
        failures = []
        count = len(self._targets)
        for step in range(count):
            at = (self._first + step) % count
            try:
                link = await dial(self._targets[at])
            except Unreachable as error:
                failures.append(error.message)
                continue
            self._first = at
            return link
        self._first = (self._first + 1) % count if count else 0
        raise Unreachable(f"no gateway of this site answers: {'; '.join(failures)}")

    def let_tell(self, keeper: asyncio.Task[None], carrier: Carrier) -> None:
        """Let a channel that was given up be linked until that was told, or until `close`."""
        self._telling.add(keeper)
        keeper.add_done_callback(self._telling.discard)
        keeper.add_done_callback(lambda _: carrier.close())

    async def close(self) -> None:
        """The agent stops: nobody is told any more."""
        for keeper in list(self._telling):
            keeper.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)


@dataclass(frozen=True)
class Way:
    """What the channels of a migration have in common."""

    migration: str
    source_site: str
    source_host: str
    destination_site: str
    destination_host: str
    secret: bytes
    vm_uuid: str = ""
    vm_name: str = ""

    def opening(self, kind: str, index: int) -> ChannelOpen:
        """How a channel is opened, its ticket included."""
        opening = ChannelOpen(
            migration=self.migration,
            kind=NUMBERS[kind],
            index=index,
            source_site=self.source_site,
            source_host=self.source_host,
            destination_site=self.destination_site,
            destination_host=self.destination_host,
            vm_uuid=self.vm_uuid,
            vm_name=self.vm_name,
        )
        opening.ticket = ticket(self.secret, opening)
        return opening


class LocalSockets:
    """The three sockets of one migration at its source; whoever makes them calls `close`."""

    def __init__(self, gateways: Gateways, directory: Path, traffic: Traffic) -> None:
        self.directory = directory
        self.traffic = traffic
        # Set before anybody connects.
        self.way = Way(directory.name, "", "", "", "", b"")
        self._gateways = gateways
        self._servers: list[socket.socket] = []
        # Channels that go on to tell the other agent that they are over, when all else here is closed.
        self._telling: set[Carrier] = set()
        # Connections so far, per kind.
        self._accepted = dict.fromkeys(KINDS, 0)
        self._keepers: dict[asyncio.Task[None], Carrier] = {}

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
        try:
            connection, _ = server.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        connection.setblocking(False)
        opening = self.way.opening(kind, self._accepted[kind])
        self._accepted[kind] += 1
        number = 0
        while number == 0:
            number = secrets.randbits(64)
        channel = Channel(number, asyncio.get_running_loop().time(), opening=opening.SerializeToString())
        name = f"the {kind} channel to host {self.way.destination_host}"
        carrier = Carrier(channel, kind, self.traffic, name=name, index=opening.index)
        carrier.connect(connection)
        task = asyncio.get_running_loop().create_task(self._keep_linked(carrier), name=name)
        self._keepers[task] = carrier
        task.add_done_callback(lambda ended: self._keepers.pop(ended, None))

    async def _keep_linked(self, carrier: Carrier) -> None:
        """Give a channel a link, and another one whenever it has lost it, until it is over."""
        loop = asyncio.get_running_loop()
        pause = BACK_OFF[0]
        while not carrier.over.is_set():
            began = loop.time()
            try:
                link = await self._gateways.dial()
            except LandbridgeError as error:
                carrier.trouble = error.message
                log.warning("channel.no_link", migration=self.way.migration, kind=carrier.kind, reason=error.message)
            else:
                carrier.attach(link)
                link.start(carrier)
                await link.closed.wait()
                if loop.time() - began > BACK_OFF[1]:
                    pause = BACK_OFF[0]
            if carrier.over.is_set():
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, BACK_OFF[1])

    async def close(self) -> None:
        """Close the sockets and whatever is connected to them, and remove the directory."""
        for server in self._servers:
            asyncio.get_running_loop().remove_reader(server)
            server.close()
        self._servers.clear()
        for carrier in self.traffic.carriers:
            if not carrier.ended.is_set():
                carrier.abandon()
        if linked := [task for task, carrier in self._keepers.items() if carrier.link is not None]:
            # The last frames leave, so that the other host hears of the end from us.
            await asyncio.wait(linked, timeout=2.0)
        ending = []
        for task, carrier in list(self._keepers.items()):
            if carrier.over.is_set() or not carrier.channel.may_be_unknown:
                task.cancel()
                ending.append(task)
            else:
                del self._keepers[task]
                self._telling.add(carrier)
                self._gateways.let_tell(task, carrier)
        await asyncio.gather(*ending, return_exceptions=True)
        for carrier in self.traffic.carriers:
            if carrier not in self._telling:
                carrier.close()
        remove_directory(self.directory)


# Says where to connect a channel that a gateway brings, once for each. Raises an error of our tree if it is refused.
Admission = Callable[[ChannelOpen], tuple[str, Traffic]]


class Incoming:
    """The channels that come to this host."""

    def __init__(self, admit: Admission) -> None:
        self._admit = admit
        self._carriers: dict[int, tuple[Carrier, bytes]] = {}
        self._doormen: set[_Doorman] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def accept(self, link: Link) -> None:
        """Take a link that an authenticated gateway has dialled."""
        doorman = _Doorman(self, link)
        self._doormen.add(doorman)
        link.start(doorman)

    def forget_doorman(self, doorman: _Doorman) -> None:
        """Its link is another's, or over."""
        self._doormen.discard(doorman)

    def open(self, link: Link, frame: Frame) -> None:
        """A link's first frame: connect a new channel, or go on with one that is open. Raises an error of our tree."""
        known = self._carriers.get(frame.channel)
        if known is not None:
            carrier, opening_bytes = known
            if opening_bytes != frame.payload:
                raise ProtocolError("another channel has this number; begin a new migration")
            link.hand_over(carrier)
            carrier.attach(link)
            carrier.frame_received(link, frame)
            if carrier.channel.state is ChannelState.RESET:
                raise ProtocolError("the channel was given up; begin a new migration")
            log.info("channel.reopened", channel=carrier.name)
            return
        try:
            opening = ChannelOpen.FromString(bytes(frame.payload))
            kind = NAMES[opening.kind]
        except (DecodeError, KeyError):
            raise ProtocolError("the channel's description cannot be read; update the older end") from None
        path, traffic = self._admit(opening)
        loop = asyncio.get_running_loop()
        channel = Channel(frame.channel, loop.time())
        name = f"the {kind} channel from host {opening.source_host}"
        carrier = Carrier(channel, kind, traffic, name=name, index=opening.index)
        self._carriers[frame.channel] = (carrier, bytes(frame.payload))
        link.hand_over(carrier)
        carrier.attach(link)
        task = loop.create_task(self._connect(carrier, path))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, carrier: Carrier, path: str) -> None:
        loop = asyncio.get_running_loop()
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.setblocking(False)
        try:
            await loop.sock_connect(local, path)
        except OSError as error:
            local.close()
            carrier.lost(f"the destination host refused the channel: {error.strerror or error} ({path})")
        except BaseException:
            local.close()
            raise
        else:
            carrier.channel.accept(loop.time())
            carrier.connect(local)
        await carrier.over.wait()
        await asyncio.sleep(MEMORY)
        self._carriers.pop(carrier.channel.identity, None)

    async def close(self) -> None:
        """End every channel that came here."""
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for carrier, _ in list(self._carriers.values()):
            carrier.close()
        for doorman in list(self._doormen):
            doorman.link.abort("this agent stops")


class _Doorman:
    """Receives a link's first frame, and says what became of it if it is refused."""

    def __init__(self, incoming: Incoming, link: Link) -> None:
        self.link = link
        self._incoming = incoming
        self._answers: deque[Frame] = deque()
        self._loop = asyncio.get_running_loop()
        # Ends the link, if it does not say which channel it is for; and once it was told that it is refused.
        self._end = self._loop.call_later(FIRST_FRAME, link.abort, "it did not say which channel it is for")
        self._has_refused = False

    def next_frame(self, link: Link) -> Frame | None:
        """What the link asks."""
        del link
        return self._answers.popleft() if self._answers else None

    def frame_received(self, link: Link, frame: Frame) -> None:
        """The first frame."""
        if frame.type is not FrameType.OPEN or self._has_refused:
            return
        self._end.cancel()
        try:
            self._incoming.open(link, frame)
        except LandbridgeError as error:
            log.warning("channel.refused", link=link.name, reason=error.message)
            self._has_refused = True
            self._answers.append(reset(frame.channel, error.message))
            link.hand_over(self)
            self._end = self._loop.call_later(FAREWELL, link.close)
        else:
            self._incoming.forget_doorman(self)

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is over."""
        self._end.cancel()
        if not self._has_refused:
            log.warning("link.refused", link=link.name, reason=reason)
        self._incoming.forget_doorman(self)


def make_directory(directory: Path, owner: tuple[int, int]) -> None:
    """Make a migration's socket directory, for QEMU's user alone. One left by a killed agent is taken over."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    os.chown(directory, *owner)


def remove_directory(directory: Path) -> None:
    """Remove a migration's socket directory with whatever is in it; it may be gone already."""
    shutil.rmtree(directory, ignore_errors=True)
