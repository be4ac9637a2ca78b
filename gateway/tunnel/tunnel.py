"""A tunnel: what two gateways hold open between their sites; made of links, over which frames are striped.

Frames wait in one `Scheduler`. A link that takes a frame gets the next one, so that each carries as much as it drains, and a slow
one no more than that. A link whose other end is late with an answer is left aside while there are others; one that is silent for
too long ends itself (`landbridge.link`). What it had taken is lost, and is sent again by the agent from whom it came.

Frames of channels that carry pages pass the codec that this gateway has for the one at the other end, before they wait for a link:

    put ──> codec ──> scheduler ──> links ══> links ──> codec ──> user

What is put behind a frame that is being coded waits for it, so that the frames of a channel keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Protocol

import structlog

from gateway.stream.blob import MOST_TOGETHER
from gateway.stream.tally import Tally
from gateway.tunnel.codec import Codec, Subject
from gateway.tunnel.level import Level
from gateway.tunnel.schedule import Scheduler
from landbridge.errors import ProtocolError
from landbridge.frame import BULK_TYPES, CODED_TYPES, LOG_TYPES, MAX_PAYLOAD, Frame, FrameType
from landbridge.link import Link

log = structlog.get_logger()

# Bytes of urgent frames that may wait: those of one or two calls of libvirt. Whoever sends is held back at half of it, and what
# comes nevertheless is dropped, as any frame may be.
MOST_URGENT = 1 << 20
# Frames of a channel that may be with the codec: one at work and one to go on with; and more where more goes on in CODING_TIME (seconds),
# up to what the codec encodes together and as much to go on with. That is what the links would take as it is, or what passes the codec.
LEAST_CODING, MOST_CODING = 2, 2 * MOST_TOGETHER
CODING_TIME = 0.04
# Bytes of coded frames that may wait to be decoded, before the links are read no further.
MOST_DECODING = 4 << 20


@dataclass(frozen=True, slots=True)
class Cargo:
    """What a tunnel has to know of a channel.

    `on_sent` is told how many bytes a link has taken, `on_coded` what became of bytes before (None: they go as they are), and the frame
    as it goes.
    """

    migration: str
    on_sent: Callable[[int], None]
    # Everything waits for the calls of libvirt.
    is_urgent: bool = False
    # Whose pages it carries, if any.
    subject: Subject | None = None
    on_coded: Callable[[Tally | None, Frame], None] | None = None


@dataclass(slots=True)
class _Coding:
    """What of a channel is with the codec."""

    frames: int = 0
    # From how many on its sender is held back.
    most: int = LEAST_CODING
    # Whether its sender is held back until there is less.
    holds: bool = False
    is_dropped: bool = False


class TunnelUser(Protocol):
    """Who hears of a tunnel's frames."""

    def frame_from_tunnel(self, tunnel: Tunnel, frame: Frame, size: int) -> None:
        """A frame has come from the other site, where it took `size` bytes on the wire."""
        ...

    def channels_released(self, channels: list[int]) -> None:
        """These channels have room again."""
        ...


class Tunnel:
    """The links with one gateway of another site. Owned by the event loop."""

    def __init__(
        self, site: str, name: str, user: TunnelUser, codec_for: Callable[[str, str], Codec | None] | None = None
    ) -> None:
        """`codec_for` gives the codec for a gateway, by its site and name; without it, nothing is coded."""
        # The other site, and the gateway there for messages.
        self.site = site
        self.name = name
        self.scheduler: Scheduler[tuple[Frame, Callable[[int], None]]] = Scheduler()
        # Links with a live connection.
        self.links: list[Link] = []
        # How its newest link is protected, or was.
        self.secured: Mapping[str, str] = {}
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        # Channels that are held back for what is urgent, in that order.
        self._held: dict[int, None] = {}
        # Bytes per second; 0: no limit.
        self.limit = 0
        self.changed = asyncio.Event()
        self._codec_for = codec_for
        # The one for the gateway to which the links lead.
        self._codec: Codec | None = None
        self._level = Level(self._loop.time())
        # Channels with frames at the codec: of ours, and of the other site's.
        self._coding: dict[int, _Coding] = {}
        self._decoding: dict[int, int] = {}
        self._decoding_bytes = 0

    @property
    def is_up(self) -> bool:
        """Whether any of its links is."""
        return bool(self.links)

    @property
    def is_coded(self) -> bool:
        """Whether frames with pages are coded by a page log."""
        return self._codec is not None and self._codec.is_met

    @property
    def round_trip(self) -> float | None:
        """Seconds, of its quickest link."""
        return min((link.round_trip for link in self.links if link.round_trip is not None), default=None)

    def add(self, link: Link) -> None:
        """Put a link in service."""
        if self.links and link.peer != self.links[0].peer:
            link.abort(f"gateway {link.peer} answered, and the other links lead to gateway {self.links[0].peer}")
            return
        link.gives_back = True
        self.links.append(link)
        self.secured = link.secured
        link.start(self)
        if len(self.links) == 1 and self._codec_for is not None:
            self._codec = self._codec_for(self.site, link.peer)
            if self._codec is not None:
                self._codec.attach(self)
        log.info("link.up", link=link.name, links=len(self.links))
        self._changed()

    def set_limit(self, bytes_per_second: int) -> None:
        """Limit all that goes from here; 0: no limit."""
        self.limit = bytes_per_second
        self.scheduler.set_limit(bytes_per_second)
        self._kick()

    def set_migration_limit(self, migration: str, bytes_per_second: int) -> None:
        """Limit a migration's bulk; 0: no limit."""
        self.scheduler.set_migration_limit(migration, bytes_per_second)
        self._kick()

    # Out

    def put(self, frame: Frame, cargo: Cargo) -> bool:
        """Queue a frame.

        Says whether the channel's sender is to be held back now; `channels_released` then says when it may go on. Control
        frames are dropped while no link is up: their senders repeat them.
        """
        if not cargo.is_urgent and frame.type in BULK_TYPES:
            return self._put_bulk(frame, cargo)
        if not self.links or self.scheduler.urgent_bytes > MOST_URGENT:
            return False
        self.scheduler.put(frame.channel, cargo.migration, (frame, cargo.on_sent), frame.size(), urgent=True)
        self._kick()
        if self.scheduler.urgent_bytes > MOST_URGENT // 2:
            self._held[frame.channel] = None
            return True
        return False

    def say(self, frame: Frame) -> None:
        """Queue a frame of the link's own, about the page log; what is too much is dropped, and said again at the next meeting."""
        if self.scheduler.urgent_bytes > MOST_URGENT:
            return
        self.scheduler.put(0, "", (frame, _uncounted), frame.size(), urgent=True)
        self._kick()

    def _put_bulk(self, frame: Frame, cargo: Cargo) -> bool:
        codec, channel = self._codec, frame.channel
        coding = self._coding.get(channel)
        rate = min(self.scheduler.rate, self.limit or inf)
        level = self._level.decide(self._loop.time(), rate, was_measured=self.scheduler.full_rate > 0)
        if codec is None or not (coding or (level and self._is_to_be_coded(codec, frame, cargo))):
            self._queue(frame, cargo, None)
            return self.scheduler.is_full(channel)
        if coding is None:
            coding = self._coding[channel] = _Coding()
        coding.frames += 1

        def done(result: Frame, tally: Tally | None, seconds: float) -> None:
            self._coded(coding, result, cargo, tally, seconds)

        if level and cargo.subject is not None and self._is_to_be_coded(codec, frame, cargo):
            codec.encode(frame, cargo.subject, level, done)
        else:
            codec.pass_on(lambda: done(frame, None, 0.0))
        coding.most = _most_coding(max(rate, self._level.through))
        coding.holds = coding.frames >= coding.most
        return coding.holds or self.scheduler.is_full(channel)

    def _is_to_be_coded(self, codec: Codec, frame: Frame, cargo: Cargo) -> bool:
        return codec.is_met and cargo.subject is not None and frame.type in CODED_TYPES

    def _coded(self, coding: _Coding, frame: Frame, cargo: Cargo, tally: Tally | None, seconds: float) -> None:
        coding.frames -= 1
        if coding.frames == 0 and self._coding.get(frame.channel) is coding:
            del self._coding[frame.channel]
        if coding.is_dropped:
            return
        if seconds:
            stream = len(frame.payload) if tally is None else tally.stream.total
            self._level.coded(stream, frame.size(), seconds)
        self._queue(frame, cargo, tally)
        if coding.holds and coding.frames < coding.most:
            coding.holds = False
            if not self.scheduler.is_full(frame.channel):
                self._user.channels_released([frame.channel])

    def _queue(self, frame: Frame, cargo: Cargo, tally: Tally | None) -> None:
        if frame.hints:
            frame = Frame(frame.type, frame.channel, frame.position, frame.payload)  # of no use at the other end
        self._level.put(self.scheduler.queued_bytes, self.scheduler.limit)
        if cargo.on_coded is not None:
            cargo.on_coded(tally, frame)
        self.scheduler.put(frame.channel, cargo.migration, (frame, cargo.on_sent), frame.size(), urgent=False)
        self._kick()

    def drop(self, channel: int) -> None:
        """Forget what is queued of a channel."""
        self.scheduler.drop(channel)
        if (coding := self._coding.pop(channel, None)) is not None:
            coding.is_dropped = True
            if coding.holds:
                self._user.channels_released([channel])
        self._release()

    def _release(self) -> None:
        released = self.scheduler.released()
        if self._held and self.scheduler.urgent_bytes <= MOST_URGENT // 4:
            released += self._held
            self._held.clear()
        if released:
            self._user.channels_released(released)

    def _kick(self) -> None:
        """Have one more link ask for frames; each that gets one kicks the next."""
        count = len(self.links)
        for step in range(count):
            link = self.links[(self._turn + step) % count]
            if link.is_ready and not link.is_suspect:
                self._turn = (self._turn + step + 1) % count
                link.kick()
                return
        for link in self.links:
            if link.is_ready:
                link.kick()
                return

    def next_frame(self, link: Link) -> Frame | None:
        """What a link asks."""
        if link.is_suspect and any(not other.is_suspect for other in self.links):
            return None
        now = self._loop.time()
        found = self.scheduler.next(now)
        self._release()
        if found is None:
            ready_at = self.scheduler.ready_at(now)
            if ready_at is not None:
                self._wake_at(ready_at)
            return None
        frame, on_sent = found
        on_sent(frame.size())
        if self.scheduler.queued_bytes:
            self._kick()
        return frame

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()  # a limit was raised since
        self._timer = self._loop.call_at(when, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._kick()

    # In

    def frame_received(self, link: Link, frame: Frame) -> None:
        """A frame has come on one of the links. Raises ProtocolError, which ends the link."""
        codec, channel = self._codec, frame.channel
        if frame.type in LOG_TYPES:
            if codec is not None:
                codec.received(frame)
            return
        is_coded = frame.type is FrameType.CODED
        if is_coded and codec is None:
            raise ProtocolError(
                "a coded frame arrived, and there is no page log here; see [pages] in the configuration"
            )
        if codec is None or not (is_coded or (frame.type in BULK_TYPES and channel in self._decoding)):
            self._user.frame_from_tunnel(self, frame, frame.size())
            return
        size = frame.size()
        self._decoding[channel] = self._decoding.get(channel, 0) + 1
        self._decoding_bytes += size
        if self._decoding_bytes > MOST_DECODING:
            link.pause()

        def done(result: Frame | None) -> None:
            self._decoded(channel, size, result)

        if is_coded:
            codec.decode(frame, done)
        else:
            codec.pass_on(lambda: done(frame))

    def _decoded(self, channel: int, size: int, frame: Frame | None) -> None:
        self._decoding[channel] -= 1
        if not self._decoding[channel]:
            del self._decoding[channel]
        self._decoding_bytes -= size
        if self._decoding_bytes <= MOST_DECODING // 2:
            for link in self.links:
                link.resume()
        if frame is not None:
            self._user.frame_from_tunnel(self, frame, size)

    def link_closed(self, link: Link, reason: str) -> None:
        """A link is over."""
        if link not in self.links:
            return  # it was never in service
        self.links.remove(link)
        if not self.links and self._codec is not None:
            self._codec.detach(self)
        log.warning("link.down", link=link.name, reason=reason, links=len(self.links))
        self._changed()
        self._kick()

    def _changed(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        """End all links."""
        for link in list(self.links):
            link.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _most_coding(rate: float) -> int:
    """Frames of a channel that may be with the codec, where so many bytes go on per second."""
    return int(min(max(rate * CODING_TIME / MAX_PAYLOAD, LEAST_CODING), MOST_CODING))


def _uncounted(size: int) -> None:
    """What two gateways say of their log is no migration's."""
