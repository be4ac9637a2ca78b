"""Links without TLS, with a test at their other end."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from landbridge.frame import Frame, FrameType, Payload
from landbridge.link import Link

# Nothing in a test takes as long.
SECONDS = 5.0


class Plain:
    """A socket as a link wants it, without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive_into(self, buffer: memoryview) -> int | None:
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None

    def send(self, data: Payload) -> int | None:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return None

    def set_receive_buffer(self, size: int) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def close(self) -> None:
        self.sock.close()


class End:
    """The receiver of a link, played by a test: it sends what it is told, and keeps what comes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        # Why the link was over, each time that this was said.
        self.reasons: list[str] = []
        self._out: deque[Frame] = deque()
        self._came: asyncio.Queue[Frame] = asyncio.Queue()

    def send(self, *frames: Frame) -> None:
        self._out.extend(frames)
        self.link.kick()

    @property
    def unsent(self) -> int:
        """Frames that the link has not asked for."""
        return len(self._out)

    async def next(self) -> Frame:
        """The next frame that comes; its payload as bytes."""
        async with asyncio.timeout(SECONDS):
            frame = await self._came.get()
        return Frame(frame.type, frame.channel, frame.position, bytes(frame.payload), bytes(frame.hints))

    async def next_of(self, kind: FrameType) -> Frame:
        """The next frame of a type; others are left aside."""
        while (frame := await self.next()).type is not kind:
            pass
        return frame

    async def data(self, count: int) -> bytes:
        """So many bytes of DATA; frames of other types are left aside."""
        data = b""
        while len(data) < count:
            data += bytes((await self.next_of(FrameType.DATA)).payload)
        return data

    async def nothing_comes(self) -> bool:
        await settled()
        return self._came.empty()

    async def ended(self) -> str:
        """Why the link is over, once it is."""
        async with asyncio.timeout(SECONDS):
            await self.link.closed.wait()
        return self.link.closed_because or ""

    def next_frame(self, link: Link) -> Frame | None:
        assert link is self.link
        return self._out.popleft() if self._out else None

    def frame_received(self, link: Link, frame: Frame) -> None:
        assert link is self.link
        self._came.put_nowait(frame)

    def link_closed(self, link: Link, reason: str) -> None:
        assert link is self.link
        self.reasons.append(reason)


def sockets(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection; `buffer` bounds what waits between them, in bytes."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return pair


def wire(name: str = "the other end", *, buffer: int | None = None) -> tuple[Link, End]:
    """A link that nobody has started yet, by the name of its other end; and that end, which works already."""
    here, there = sockets(buffer)
    end = End(Link(Plain(there), "the test's subject"))
    end.link.start(end)
    return Link(Plain(here), name), end


@asynccontextmanager
async def linked(name: str = "the other end", *, buffer: int | None = None) -> AsyncIterator[tuple[End, End]]:
    """Both ends of a link, for as long as the context is open."""
    link, there = wire(name, buffer=buffer)
    here = End(link)
    link.start(here)
    try:
        yield here, there
    finally:
        link.abort("the test is over")
        there.link.abort("the test is over")


async def settled() -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what tells nobody that it has happened."""
    async with asyncio.timeout(SECONDS):
        while not happened():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)


def _left() -> tuple[set[str], set[asyncio.Task[Any]], list[str]]:
    loop = asyncio.get_running_loop()
    timers = [repr(timer) for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    return set(os.listdir("/proc/self/fd")), tasks, timers  # noqa: PTH208 - it is no directory of files


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What happens in the context leaves no descriptor, task or timer behind."""
    gc.collect()  # what an earlier test has left must not go while it is counted
    files, tasks, timers = _left()
    while True:  # nor while threads of gRPC, which tell nobody, are still at it
        await asyncio.sleep(0.01)
        before, (files, tasks, timers) = files, _left()
        if files == before:
            break
    yield
    await settled()
    files_now, tasks_now, timers_now = _left()
    assert len(files_now) == len(files), f"then {sorted(files)}, now {sorted(files_now)}"
    assert tasks_now == tasks
    assert sorted(timers_now) == sorted(timers)


@contextmanager
def no_exceptions() -> Iterator[None]:
    """No callback raises: asyncio would only log it."""
    loop = asyncio.get_running_loop()
    raised: list[object] = []
    loop.set_exception_handler(lambda _, context: raised.append(context.get("exception") or context))
    yield
    loop.set_exception_handler(None)
    assert raised == []
