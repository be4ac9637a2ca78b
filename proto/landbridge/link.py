"""A link: one TLS connection that carries the frames of many channels. The I/O shell around `frame`.

Sending never waits: what is queued is bounded by the channels' windows (`channel.MAX_WINDOW` each), and whoever reads
frames from one link to send them on another awaits `drain` of the other, so that a sender who breaks its window is not
read from any further. Control frames and the small calls of libvirt are not held back behind bulk bytes by more than
what the windows allow to be under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from landbridge.errors import ProtocolError, Unreachable
from landbridge.frame import Frame, FrameDecoder, FrameType

# One read: large enough to take a few frames at a time.
READ_SIZE = 256 << 10
# Bytes queued in this process above which `drain` waits.
HIGH_WATER = 4 << 20
# Seconds between two PINGs on a link, and how long it may be silent before it counts as dead.
PING_INTERVAL = 2.0
SILENCE_LIMIT = 12.0
# Seconds that the other end gets to take what is queued when a link is closed.
CLOSE_PATIENCE = 1.0


class Link:
    """One connection, both sides authenticated by whoever made it. Owned by one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self._reader = reader
        self._writer = writer
        # For messages: who is at the other end, such as "gateway gw-1 of site west".
        self.name = name
        # Why it was closed; None while it is open.
        self.closed_because: str | None = None
        self.closed = asyncio.Event()
        # Seconds, by the last PING that was answered.
        self.round_trip: float | None = None
        self._pings: dict[int, float] = {}
        self._heard_at = asyncio.get_running_loop().time()
        self._writer.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._heart = asyncio.create_task(self._beat(), name=f"heartbeat of {name}")

    def send(self, frame: Frame) -> None:
        """Queue a frame; dropped if the link is closed."""
        if self.closed_because is None:
            self._writer.write(frame.encode())

    async def drain(self) -> None:
        """Wait until less than HIGH_WATER is queued. A link that dies meanwhile is seen by its reader."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def frames(self) -> AsyncIterator[Frame]:
        """The frames that arrive, PING and PONG aside, until the link ends. Raises Unreachable or ProtocolError then."""
        decoder = FrameDecoder()
        try:
            while data := await self._reader.read(READ_SIZE):
                self._heard_at = asyncio.get_running_loop().time()
                for frame in decoder.receive_data(data):
                    if frame.type is FrameType.PING:
                        self.send(Frame(FrameType.PONG, 0, frame.position))
                    elif frame.type is FrameType.PONG:
                        self._answered(frame.position)
                    else:
                        yield frame
            raise Unreachable(self.closed_because or f"the link to {self.name} was closed by the other end")
        except ProtocolError as error:
            self.abort(error.message)
            raise
        except OSError as error:
            why = self.closed_because or f"the link to {self.name} broke: {error.strerror or error}"
            raise Unreachable(why) from error
        finally:
            self.abort(self.closed_because or f"the link to {self.name} ended")

    def abort(self, reason: str) -> None:
        """Close at once; what is queued is lost."""
        if self.closed_because is None:
            self.closed_because = reason
            self.closed.set()
            self._heart.cancel()
            self._writer.transport.abort()

    async def close(self) -> None:
        """Close after what is queued was sent, or was not taken within CLOSE_PATIENCE."""
        if self.closed_because is None:
            self.closed_because = f"the link to {self.name} was closed by this end"
            self.closed.set()
            self._heart.cancel()
            self._writer.close()
            closing = asyncio.ensure_future(self._writer.wait_closed())
            taken, _ = await asyncio.wait({closing}, timeout=CLOSE_PATIENCE)
            if not taken:
                self._writer.transport.abort()
            with contextlib.suppress(OSError):
                await closing

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            number += 1
            self._pings[number] = loop.time()
            self.send(Frame(FrameType.PING, 0, number))
            await asyncio.sleep(PING_INTERVAL)
            silent = loop.time() - self._heard_at
            if silent > SILENCE_LIMIT:
                self.abort(f"the link to {self.name} has been silent for {silent:.0f} s")
                return

    def _answered(self, number: int) -> None:
        if (sent_at := self._pings.pop(number, None)) is not None:
            self.round_trip = asyncio.get_running_loop().time() - sent_at
            self._pings = {n: at for n, at in self._pings.items() if n > number}
