"""A tunnel: what two gateways hold open between their sites; made of links, over which frames are striped.

Frames wait in one `Scheduler`. A link that takes a frame gets the next one, so that each carries as much as it drains, and a slow
one no more than that. A link whose other end is late with an answer is left aside while there are others; one that is silent for
too long ends itself (`landbridge.link`). What it had taken is lost, and is sent again by the agent from whom it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from gateway.tunnel.schedule import Scheduler
from landbridge.frame import BULK_TYPES, Frame
from landbridge.link import Link

log = structlog.get_logger()

# Bytes of urgent frames that may wait: those of one or two calls of libvirt. Whoever sends is held back at half of it, and what
# comes nevertheless is dropped, as any frame may be.
MOST_URGENT = 1 << 20


class TunnelUser(Protocol):
    """Who hears of a tunnel's frames."""

    def frame_from_tunnel(self, tunnel: Tunnel, frame: Frame) -> None:
        """A frame has come from the other site."""
        ...

    def channels_released(self, channels: list[int]) -> None:
        """These channels have room again."""
        ...


class Tunnel:
    """The links with one gateway of another site. Owned by the event loop."""

    def __init__(self, site: str, name: str, user: TunnelUser) -> None:
        # The other site, and the gateway there for messages.
        self.site = site
        self.name = name
        self.scheduler: Scheduler[tuple[Frame, Callable[[int], None]]] = Scheduler()
        # Links with a live connection.
        self.links: list[Link] = []
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        # Channels that are held back for what is urgent, in that order.
        self._held: dict[int, None] = {}
        # Bytes per second; 0: no limit.
        self.limit = 0
        self.changed = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether any of its links is."""
        return bool(self.links)

    @property
    def round_trip(self) -> float | None:
        """Seconds, of its quickest link."""
        return min((link.round_trip for link in self.links if link.round_trip is not None), default=None)

    def add(self, link: Link) -> None:
        """Put a link in service."""
        link.gives_back = True
        self.links.append(link)
        link.start(self)
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

    def put(self, frame: Frame, migration: str, on_sent: Callable[[int], None], *, urgent: bool) -> bool:
        """Queue a frame; `on_sent` is told its size when a link has taken it.

        Says whether the channel's sender is to be held back now; `channels_released` then says when it may go on. Control
        frames are dropped while no link is up: their senders repeat them.
        """
        is_urgent = urgent or frame.type not in BULK_TYPES
        if is_urgent and (not self.links or self.scheduler.urgent_bytes > MOST_URGENT):
            return False
        self.scheduler.put(frame.channel, migration, (frame, on_sent), frame.size(), urgent=is_urgent)
        self._kick()
        if not is_urgent:
            return self.scheduler.is_full(frame.channel)
        if self.scheduler.urgent_bytes > MOST_URGENT // 2:
            self._held[frame.channel] = None
            return True
        return False

    def drop(self, channel: int) -> None:
        """Forget what is queued of a channel."""
        self.scheduler.drop(channel)
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
        """A frame has come on one of the links."""
        del link
        self._user.frame_from_tunnel(self, frame)

    def link_closed(self, link: Link, reason: str) -> None:
        """A link is over."""
        self.links.remove(link)
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
