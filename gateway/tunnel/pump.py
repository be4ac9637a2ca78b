"""The only file that moves channels through a gateway: from an agent's link into a tunnel, and from a tunnel to an agent's link.

    agent's link ── OPEN ──> a route ── frames ──> scheduler of the tunnel ──> its links
    agent's link <── frames ── its route <── tunnel

    1. An agent has a link of its own for each channel. Its first frame is OPEN; `Routes` says whether this host may open it,
       and to which tunnel it leads.
    2. At the other site, OPEN comes out of a tunnel; `Routes` says whether that site may, and which host it leads to, whose
       agent is dialled.
    3. From then on frames pass by the channel's number. Nothing is remembered beyond the process, and nothing is needed: of a
       channel that it does not know, a gateway says UNKNOWN, and the agent that opened it opens it again.

What waits is bounded by time: when a tunnel has queued enough of a channel, the agent's link is not read any further. Towards an
agent, what waits is bounded by what the other agent may have under way; more is dropped, as any frame may be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from certs.identity import Identity
from certs.links import WAITING_ON_LAN, Target, dial
from gateway.stream.tally import Counts, Tally
from gateway.tunnel.codec import Subject
from gateway.tunnel.tunnel import Cargo, Tunnel
from landbridge.errors import LandbridgeError, ProtocolError
from landbridge.frame import BULK_TYPES, CODED_TYPES, MAX_REASON, Frame, FrameType, reset
from landbridge.link import Link
from landbridge.receiving import CEILING, MOST_SEGMENTS
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from landbridge.v1.types_pb2 import Fate, Saving

log = structlog.get_logger()

# Frames to which "I do not know this channel" is no answer.
_NO_ANSWER = frozenset({FrameType.OPEN, FrameType.RESET, FrameType.CLOSE, FrameType.UNKNOWN})
# Seconds of what a tunnel drains that may wait in an agent's socket, and bytes at most.
WAITING_TIME = 0.005
MOST_WAITING = 2 << 20
# Bytes that may wait for an agent: a whole window, and the frames' headers.
MOST_FOR_AGENT = CEILING + (CEILING >> 4)
# Frames that may: a whole window and its acknowledgements, and their memory beside their bytes.
MOST_FRAMES = 2 * MOST_SEGMENTS
# What became of bytes, as it is counted and as it is told.
_FATES = {each.name: Fate.Value(f"FATE_{each.name.upper()}") for each in fields(Counts)}
# Channels of a host here with another site, in each direction: more than its migrations have disks. And links that an agent may
# have dialled, before or after they say which channel they are for.
MOST_CHANNELS = 512
MOST_PORTS = 2 * MOST_CHANNELS
# Migrations whose bytes are counted: nothing is known here of when one is over that was never begun.
MOST_COUNTED = 4096


class Routes(Protocol):
    """Which channels may exist, and where they lead. Raises an error of our tree for one that may not."""

    def from_host(self, opening: ChannelOpen, host: str) -> Tunnel:
        """For a channel that a host of this site opens."""
        ...

    def from_site(self, opening: ChannelOpen, site: str) -> Target:
        """For a channel that comes from another site: the agent of a host here."""
        ...

    def subject(self, opening: ChannelOpen) -> Subject | None:
        """Whose pages the channel carries; None if it carries none."""
        ...


class Port:
    """An agent's end of one channel: its link, and the frames that wait for it."""

    def __init__(self, pump: Pump, host: str) -> None:
        self.host = host
        self.link: Link | None = None
        self.channel: int | None = None
        self._pump = pump
        self._waiting = WAITING_ON_LAN
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def attach(self, link: Link) -> None:
        """Its link is up."""
        self.link = link
        link.gives_back = True
        link.start(self)

    def widen(self, rate: float) -> None:
        """Let the agent's socket hold more if the tunnel drains it quickly: fewer and longer reads cost less."""
        size = min(max(int(rate * WAITING_TIME), WAITING_ON_LAN), MOST_WAITING)
        if self.link is not None and not self._waiting / 2 < size < self._waiting * 2:
            self._waiting = size
            self.link.set_receive_buffer(size)

    def put(self, frame: Frame) -> None:
        """Queue a frame for the agent; dropped if too much waits already, or nobody may take it yet."""
        if self._bytes + frame.size() > MOST_FOR_AGENT or len(self._frames) >= MOST_FRAMES:
            return
        if self.link is None and frame.type in BULK_TYPES:
            return
        self._frames.append(frame)
        self._bytes += frame.size()
        if self.link is not None:
            self.link.kick()

    def next_frame(self, link: Link) -> Frame | None:
        """What the link asks."""
        del link
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._bytes -= frame.size()
        return frame

    def frame_received(self, link: Link, frame: Frame) -> None:
        """A frame has come from the agent."""
        del link
        self._pump.frame_from_agent(self, frame)

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is over."""
        self._pump.port_closed(self, link, reason)


@dataclass(eq=False)
class _Route:
    migration: str
    # Whether the agent at this site opened the channel.
    is_outgoing: bool
    opening: bytes
    cargo: Cargo
    port: Port
    tunnel: Tunnel


@dataclass(slots=True)
class _Counted:
    """What became of the bytes of one kind of channel: of those that were coded, and of those that go as they are."""

    tally: Tally = field(default_factory=Tally)
    passed: int = 0
    passed_on_wire: int = 0

    @property
    def total(self) -> Tally:
        return self.tally + Tally(Counts(rest=self.passed), Counts(rest=self.passed_on_wire))


class Pump:
    """All channels through this gateway. Owned by the event loop."""

    def __init__(self, routes: Routes) -> None:
        self._routes_of = routes
        self._routes: dict[int, _Route] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports: set[Port] = set()
        # Bytes of frames on tunnel links per migration, both directions.
        self.wan_bytes: dict[str, int] = {}
        # What became of the bytes that were sent from here to a destination, by migration and kind of channel.
        self._counted: dict[str, dict[str, _Counted]] = {}

    def attach_agent(self, link: Link, peer: Identity) -> None:
        """Take a link that an agent of this site has dialled."""
        if sum(port.host == peer.name for port in self._ports) >= MOST_PORTS:
            link.abort(f"host {peer.name} has {MOST_PORTS} links already")
            return
        port = Port(self, peer.name)
        self._ports.add(port)
        port.attach(link)

    # Counting

    def count(self, migration: str, kind: str, tally: Tally | None, frame: Frame) -> None:
        """A frame goes to the destination, and this is what became of its bytes; of the last migrations, and no more."""
        kinds = self._counted.setdefault(migration, {})
        if (counted := kinds.get(kind)) is None:
            counted = kinds[kind] = _Counted()
        if tally is not None:
            counted.tally += tally.framed(frame.size())
        else:
            counted.passed += len(frame.payload) if frame.type in CODED_TYPES else 0
            counted.passed_on_wire += frame.size()
        if len(self._counted) > MOST_COUNTED:
            del self._counted[next(iter(self._counted))]

    def savings(self, migration: str) -> list[Saving]:
        """What was counted of a migration since this gateway began to carry it, by kind and fate."""
        return [
            Saving(kind=kind, fate=fate, bytes_stream=stream, bytes_wan=wan)
            for kind, counted in sorted(self._counted.get(migration, {}).items())
            for name, fate in _FATES.items()
            if (stream := getattr(counted.total.stream, name)) | (wan := getattr(counted.total.wire, name))
        ]

    def forget_counts(self, migration: str) -> None:
        """Nobody will ask for them any more."""
        self.wan_bytes.pop(migration, None)
        self._counted.pop(migration, None)

    # From an agent

    def frame_from_agent(self, port: Port, frame: Frame) -> None:
        """Pass a frame on. Raises ProtocolError, which ends the link, for one that is not of the link's channel."""
        if frame.type is FrameType.OPEN and port.channel in {None, frame.channel}:
            self._open_from_agent(port, frame)
            return
        if frame.channel != port.channel:
            raise ProtocolError(f"the agent of host {port.host} sent a frame of another channel than its link is for")
        route = self._routes.get(frame.channel)
        if route is None or route.port is not port:
            if frame.type not in _NO_ANSWER:
                port.put(Frame(FrameType.UNKNOWN, frame.channel))
            return
        self._send(route, frame)
        self._forget_if_last(frame, is_from_opener=route.is_outgoing)

    def _open_from_agent(self, port: Port, frame: Frame) -> None:
        try:
            opening = ChannelOpen.FromString(bytes(frame.payload))
            tunnel = self._routes_of.from_host(opening, port.host)
        except (LandbridgeError, DecodeError) as error:
            self._refuse(port.host, error, lambda answer: port.put(reset(frame.channel, answer)))
            return
        known = self._routes.get(frame.channel)
        if known is not None and (not known.is_outgoing or known.opening != frame.payload):
            port.put(reset(frame.channel, "another channel has this number; begin a new migration"))
            return
        if known is None and self._has_most(port.host, tunnel.site, is_outgoing=True):
            port.put(
                reset(frame.channel, f"host {port.host} has {MOST_CHANNELS} channels to site {tunnel.site} already")
            )
            return
        port.channel = frame.channel
        if known is None or known.port is not port:
            self._establish(frame, opening, port, tunnel, is_outgoing=True)
        if known is not None and known.port is not port and known.port.link is not None:
            # It may be paused, and then would never be seen to end.
            known.port.link.abort("another link has taken its place")
        self._send(self._routes[frame.channel], frame)

    def _has_most(self, host: str, site: str, *, is_outgoing: bool) -> bool:
        end = (host, site, is_outgoing)
        same = sum((r.port.host, r.tunnel.site, r.is_outgoing) == end for r in self._routes.values())
        return same >= MOST_CHANNELS

    def _establish(self, frame: Frame, opening: ChannelOpen, port: Port, tunnel: Tunnel, *, is_outgoing: bool) -> None:
        migration = opening.migration

        def on_sent(size: int) -> None:
            self.wan_bytes[migration] = self.wan_bytes.get(migration, 0) + size
            if len(self.wan_bytes) > MOST_COUNTED:
                del self.wan_bytes[next(iter(self.wan_bytes))]

        # Calls of libvirt are few, and everything waits for them.
        is_rpc = opening.kind == ChannelKind.CHANNEL_KIND_RPC
        cargo = Cargo(
            migration,
            on_sent,
            is_urgent=is_rpc,
            subject=self._routes_of.subject(opening),
            on_coded=partial(self.count, migration, _name(opening.kind)) if is_outgoing else None,
        )
        self._routes[frame.channel] = _Route(migration, is_outgoing, bytes(frame.payload), cargo, port, tunnel)
        log.info("channel.open", migration=migration, kind=ChannelKind.Name(opening.kind), site=tunnel.site)

    def _send(self, route: _Route, frame: Frame) -> None:
        route.port.widen(route.tunnel.scheduler.rate)
        is_full = route.tunnel.put(frame, route.cargo)
        if is_full and route.port.link is not None:
            route.port.link.pause()

    def channels_released(self, channels: list[int]) -> None:
        """These channels have room in their tunnel again."""
        for channel in channels:
            route = self._routes.get(channel)
            if route is not None and route.port.link is not None:
                route.port.link.resume()

    def port_closed(self, port: Port, link: Link, reason: str) -> None:
        """An agent's link is over."""
        log.info("channel.link_down", link=link.name, reason=reason)
        self._ports.discard(port)
        route = None if port.channel is None else self._routes.get(port.channel)
        if port.channel is None or route is None or route.port is not port:
            return
        del self._routes[port.channel]
        route.tunnel.drop(port.channel)
        if not route.is_outgoing:
            # Its opener is to find another way to the host, through here or elsewhere.
            self._say_unknown(route.tunnel, port.channel, reason, route.migration)

    # From a tunnel

    def frame_from_tunnel(self, tunnel: Tunnel, frame: Frame, size: int) -> None:
        """Pass a frame on to the agent whose channel it is; `size` is what it took on the wire."""
        if frame.type is FrameType.OPEN:
            self._open_from_tunnel(tunnel, frame)
            return
        route = self._routes.get(frame.channel)
        if route is None or route.tunnel.site != tunnel.site:
            if frame.type not in _NO_ANSWER:
                self._say_unknown(tunnel, frame.channel, "", "")
            return
        route.cargo.on_sent(size)
        if frame.type is FrameType.UNKNOWN and not route.is_outgoing:
            return  # the other site has lost it; its agent, who opened it, will do so again
        route.port.put(frame)
        self._forget_if_last(frame, is_from_opener=not route.is_outgoing)

    def _open_from_tunnel(self, tunnel: Tunnel, frame: Frame) -> None:
        try:
            opening = ChannelOpen.FromString(bytes(frame.payload))
            target = self._routes_of.from_site(opening, tunnel.site)
        except (LandbridgeError, DecodeError) as error:
            answer = f"site {tunnel.site}"
            self._refuse(answer, error, lambda why: self._answer(tunnel, reset(frame.channel, why), ""))
            return
        known = self._routes.get(frame.channel)
        if known is not None and (known.is_outgoing or known.opening != frame.payload):
            self._answer(tunnel, reset(frame.channel, "another channel has this number; begin a new migration"), "")
            return
        if known is not None:
            if known.tunnel is not tunnel:
                # The other site has several gateways. What waits for the one that has left would hold the agent back for ever.
                former, known.tunnel = known.tunnel, tunnel
                former.drop(frame.channel)
                if known.port.link is not None:
                    known.port.link.resume()
            known.port.put(frame)
            return
        if self._has_most(opening.destination_host, tunnel.site, is_outgoing=False):
            why = f"host {opening.destination_host} has {MOST_CHANNELS} channels from site {tunnel.site} already"
            self._answer(tunnel, reset(frame.channel, why), "")
            return
        port = Port(self, opening.destination_host)
        port.channel = frame.channel
        self._ports.add(port)
        self._establish(frame, opening, port, tunnel, is_outgoing=False)
        port.put(frame)
        task = asyncio.get_running_loop().create_task(self._dial(port, target, frame.channel, opening.migration))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, port: Port, target: Target, channel: int, migration: str) -> None:
        try:
            link = await dial(target)
        except LandbridgeError as error:
            log.warning("channel.host_unreachable", host=port.host, reason=error.message)
            self._ports.discard(port)
            route = self._routes.get(channel)
            if route is not None and route.port is port:
                del self._routes[channel]
                self._say_unknown(route.tunnel, channel, error.message, migration)
            return
        if port in self._ports:
            port.attach(link)
        else:
            link.abort("the channel is gone")

    # Both

    def _refuse(self, who: str, error: Exception, answer: Callable[[str], None]) -> None:
        reason = error.message if isinstance(error, LandbridgeError) else "the channel's description cannot be read"
        log.warning("channel.refused", who=who, reason=reason)
        answer(reason)

    def _answer(self, tunnel: Tunnel, frame: Frame, migration: str) -> None:
        tunnel.put(frame, Cargo(migration, lambda _: None, is_urgent=True))

    def _say_unknown(self, tunnel: Tunnel, channel: int, reason: str, migration: str) -> None:
        self._answer(tunnel, Frame(FrameType.UNKNOWN, channel, 0, reason.encode()[:MAX_REASON]), migration)

    def close_channels(self, migration: str, reason: str) -> None:
        """Reset every channel of a migration, in both directions."""
        for channel, route in list(self._routes.items()):
            if route.migration == migration:
                self._forget(channel)
                route.port.put(reset(channel, reason))
                self._answer(route.tunnel, reset(channel, reason), migration)

    def close_tunnel(self, tunnel: Tunnel, reason: str) -> None:
        """Reset every channel of a tunnel that is no more."""
        for channel, route in list(self._routes.items()):
            if route.tunnel is tunnel:
                self._forget(channel)
                tunnel.drop(channel)
                route.port.put(reset(channel, reason))

    def _forget_if_last(self, frame: Frame, *, is_from_opener: bool) -> None:
        # The end that was called answers each CLOSE by one, after which nobody needs the channel.
        if frame.type is FrameType.RESET or (frame.type is FrameType.CLOSE and not is_from_opener):
            self._forget(frame.channel)

    def _forget(self, channel: int) -> None:
        route = self._routes.pop(channel)
        if route.port.link is not None:
            route.port.link.resume()  # a link that is not read is not seen to end

    async def close(self) -> None:
        """End all links with agents."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for port in list(self._ports):
            if port.link is not None:
                port.link.close()
        self._ports.clear()


def _name(kind: ChannelKind.ValueType) -> str:
    """As operators know a kind of channel."""
    return ChannelKind.Name(kind).removeprefix("CHANNEL_KIND_").lower()
