"""The only file that moves bytes in a gateway: frames of a channel, from one link to another.

    1. OPEN arrives on a link; `Router` says whether the channel may exist, and on which link it goes on.
    2. The channel gets a number on that link; from here on each frame that comes under one number leaves under the other.
    3. The channel is over when both ends have sent and acknowledged all, when one end resets it, or when a link dies.

Nothing waits here except in the sockets' buffers: the agents' windows bound what is under way by time (see
`landbridge.channel`). A link that queues more than its high-water mark stops the link that feeds it from being read, so
an agent that ignores its window costs itself, not memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from landbridge.errors import LandbridgeError, ProtocolError
from landbridge.frame import Frame, FrameType, reset
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

log = structlog.get_logger()


class Router(Protocol):
    """Says where a channel goes on."""

    async def route(self, opening: ChannelOpen) -> Link:
        """The link that leads on. Raises an error of our tree if the channel may not exist or nobody answers."""
        ...


@dataclass(eq=False)
class _End:
    """One of a channel's two ends, as seen on one link."""

    link: Link
    number: int
    # Length of the stream that this end sends, once it has said so; and how much of it the other has acknowledged.
    length: int | None = None
    acknowledged: int = 0

    @property
    def done(self) -> bool:
        return self.length is not None and self.acknowledged >= self.length


@dataclass(eq=False)
class _Route:
    migration: str
    opener: _End
    acceptor: _End

    def other(self, end: _End) -> _End:
        return self.acceptor if end is self.opener else self.opener


@dataclass(eq=False)
class Port:
    """A link in service at this gateway."""

    link: Link
    # Where channels that are opened on it lead; None if none may be.
    router: Router | None
    # Whether it is part of a tunnel, so that its bytes count as WAN bytes.
    tunnel: bool
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    ends: dict[int, tuple[_Route, _End]] = field(default_factory=dict)
    # Channels opened on it whose way is being sought; a reset or the end of the link takes them out.
    opening: set[int] = field(default_factory=set)


class Pump:
    """All channels through this gateway. Owned by the event loop."""

    def __init__(self) -> None:
        self._ports: dict[Link, Port] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Bytes of frames on tunnel links per migration, both directions.
        self.wan_bytes: dict[str, int] = {}

    def attach(self, link: Link, *, router: Router | None = None, tunnel: bool = False) -> None:
        """Put a link in service; frames that come on it are handled until it ends."""
        port = Port(link, router, tunnel)
        self._ports[link] = port
        self._spawn(self._serve(port))

    async def _serve(self, port: Port) -> None:
        reason = ""
        try:
            async for frame in port.link.frames():
                if (found := port.ends.get(frame.channel)) is not None:
                    await self._forward(port, frame, *found)
                elif frame.type is FrameType.OPEN and frame.channel not in port.opening:
                    port.opening.add(frame.channel)
                    self._spawn(self._open(port, frame))
                elif frame.type is FrameType.RESET:
                    port.opening.discard(frame.channel)
        except LandbridgeError as error:
            reason = error.message
        log.info("link.down", link=port.link.name, reason=reason)
        del self._ports[port.link]
        port.opening.clear()
        for route, end in list(port.ends.values()):
            self._end(route)
            beyond = route.other(end)
            beyond.link.send(reset(beyond.number, reason))

    async def _open(self, port: Port, frame: Frame) -> None:
        try:
            if port.router is None:
                raise ProtocolError(f"{port.link.name} opened a channel on a link that takes none")
            opening = ChannelOpen.FromString(frame.payload)
            onward = self._ports[await port.router.route(opening)]
        except (LandbridgeError, DecodeError, KeyError) as error:
            reason = error.message if isinstance(error, LandbridgeError) else "the channel cannot be opened"
            log.warning("channel.refused", link=port.link.name, reason=reason)
            port.opening.discard(frame.channel)
            port.link.send(reset(frame.channel, reason))
            return
        if frame.channel not in port.opening:
            return
        port.opening.discard(frame.channel)
        route = _Route(opening.migration, _End(port.link, frame.channel), _End(onward.link, next(onward.numbers)))
        port.ends[frame.channel] = (route, route.opener)
        onward.ends[route.acceptor.number] = (route, route.acceptor)
        log.info(
            "channel.open",
            migration=opening.migration,
            kind=ChannelKind.Name(opening.kind),
            onward=onward.link.name,
        )
        await self._send(route, route.acceptor, frame)

    async def _forward(self, port: Port, frame: Frame, route: _Route, end: _End) -> None:
        if port.tunnel:
            self._count(route, frame)
        beyond = route.other(end)
        match frame.type:
            case FrameType.FIN:
                end.length = frame.position
            case FrameType.ACK:
                beyond.acknowledged = frame.position
            case FrameType.RESET:
                self._end(route)
        await self._send(route, beyond, frame)
        if end.done and beyond.done:
            self._end(route)

    async def _send(self, route: _Route, to: _End, frame: Frame) -> None:
        port = self._ports.get(to.link)
        if port is None:
            return
        if port.tunnel:
            self._count(route, frame)
        to.link.send(frame.on_channel(to.number))
        await to.link.drain()

    def _count(self, route: _Route, frame: Frame) -> None:
        self.wan_bytes[route.migration] = self.wan_bytes.get(route.migration, 0) + frame.size()

    def _end(self, route: _Route) -> None:
        for end in (route.opener, route.acceptor):
            if port := self._ports.get(end.link):
                port.ends.pop(end.number, None)

    def close_channels(self, migration: str, reason: str) -> None:
        """Reset every channel of a migration, in both directions."""
        for port in list(self._ports.values()):
            for route, end in list(port.ends.values()):
                if route.migration == migration and end is route.opener:
                    self._end(route)
                    for side in (route.opener, route.acceptor):
                        side.link.send(reset(side.number, reason))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all links."""
        for port in list(self._ports.values()):
            await port.link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
