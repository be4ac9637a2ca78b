"""Links between two ends of one process, and what has come out of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from landbridge.errors import LandbridgeError
from landbridge.frame import Frame, FrameType
from landbridge.link import Link

SECONDS = 5.0


class End:
    """A link's far end: sends what the test says, and keeps what came."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.over: LandbridgeError | None = None
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for frame in self.link.frames():
                self._frames.put_nowait(frame)
                await self._reading.wait()
        except LandbridgeError as error:
            self.over = error

    def stop_reading(self) -> None:
        """Leave what comes in the socket."""
        self._reading.clear()

    def send(self, *frames: Frame) -> None:
        """Send frames, in one piece if they are small."""
        self.link._writer.write(b"".join(frame.encode() for frame in frames))

    async def next(self) -> Frame:
        """The next frame that comes."""
        async with asyncio.timeout(SECONDS):
            return await self._frames.get()

    async def data(self, count: int) -> bytes:
        """The next DATA frames, so many bytes of them in all."""
        found = b""
        while len(found) < count:
            frame = await self.next()
            assert frame.type is FrameType.DATA, frame
            found += frame.payload
        return found

    async def nothing_comes(self) -> bool:
        """Whether everything that came was looked at; what was sent before has had the time to come."""
        await settled()
        return self._frames.empty()

    async def ended(self) -> LandbridgeError | None:
        """Why the link has ended, once it has."""
        async with asyncio.timeout(SECONDS):
            await asyncio.shield(self._task)
        return self.over

    async def close(self) -> None:
        """End it."""
        self._reading.set()
        self.link.abort("the test is over")
        await asyncio.wait([self._task])


async def settled() -> None:
    """Return when the event loop has had nothing to do but wait, several times over."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def streams() -> tuple[
    tuple[asyncio.StreamReader, asyncio.StreamWriter], tuple[asyncio.StreamReader, asyncio.StreamWriter]
]:
    """The two ends of a connection."""
    one, other = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)


@asynccontextmanager
async def wire(near: str = "near", far: str = "far") -> AsyncIterator[tuple[Link, End]]:
    """A link for the code under test, and its far end for the test."""
    here, there = await streams()
    link, end = Link(*here, far), End(Link(*there, near))
    try:
        yield link, end
    finally:
        link.abort("the test is over")
        await end.close()
        await settled()
