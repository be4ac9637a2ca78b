"""A link: one authenticated connection that carries frames. The I/O shell around `frame`.

    out   the receiver is asked for the next frame whenever the socket takes one: nothing queues here but one frame, and PINGs
    in    each frame is read into the buffer in which it stays, and handed to the receiver at once

asyncio says when the socket is ready, and the socket is read and written directly: half the copies of asyncio's streams
(docs/adr/0005). All of it happens in callbacks of one event loop; nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from landbridge.errors import LandbridgeError
from landbridge.frame import HEADER, RECORD, Frame, FrameDecoder, FrameType, Payload, Pool

# Seconds between two PINGs, and for how long nothing may come before a link counts as dead. A frame that TCP has to send twice
# over a bad line is late by one or two of its timeouts, of 0.2 to 1 s each.
PING_INTERVAL = 0.5
SILENCE_LIMIT = 4.0
# Seconds for which a PING may go unanswered before other links are preferred, beside four round trips.
SUSPICION = 0.5
# Bytes of a frame that is not whole yet which count as a sign of life: fewer would let a peer of one byte a second live.
SIGN_OF_LIFE = 4096
# Bytes read or written before other callbacks of the loop have their turn.
TURN = 1 << 20


class Connection(Protocol):
    """What a link needs of a socket that does not block. Methods raise OSError when the connection has broken."""

    def fileno(self) -> int:
        """For the event loop."""
        ...

    def receive_into(self, buffer: memoryview) -> int | None:
        """Read what is there; 0 at the end, None if nothing is there now."""
        ...

    def send(self, data: Payload) -> int | None:
        """Write what fits; None if nothing does now: the same data must then be given again."""
        ...

    def set_receive_buffer(self, size: int) -> None:
        """Have the kernel hold so many bytes, and no more, that were not read yet."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


class Receiver(Protocol):
    """Who uses a link."""

    def frame_received(self, link: Link, frame: Frame) -> None:
        """A frame has come. Raises an error of our tree if that ends the link."""
        ...

    def next_frame(self, link: Link) -> Frame | None:
        """The link takes a frame; None if there is none, until `Link.kick`."""
        ...

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is over; the last call."""
        ...


# For all links of a process.
POOL = Pool()


class Link:
    """One connection, both sides authenticated by whoever made it. Owned by one event loop."""

    def __init__(
        self, connection: Connection, name: str, *, must_answer: bool = False, silence_limit: float = SILENCE_LIMIT
    ) -> None:
        """`must_answer` on links that are always read: a PING without an answer then counts like silence."""
        # For messages: who is at the other end, such as "gateway gw-1 of site west".
        self.name = name
        # The name in the certificate of the other end.
        self.peer = ""
        # How it is protected, as whoever made it has seen (certs.tls.facts_of).
        self.secured: Mapping[str, str] = {}
        # Why it was closed; None while it is open.
        self.closed_because: str | None = None
        self.closed = asyncio.Event()
        # Seconds, by the last PING that was answered.
        self.round_trip: float | None = None
        # Whether nobody else has a frame once it is sent, so that its buffer can be used again.
        self.gives_back = False
        self.bytes_sent = 0
        self.bytes_received = 0
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._decoder = FrameDecoder(POOL)
        self._must_answer = must_answer
        self._silence_limit = silence_limit
        self._heard_at = self._loop.time()
        self._heard_bytes = 0
        self._own: deque[Frame] = deque()
        # What is being written, and not yet taken by the socket.
        self._chunks: deque[Payload] = deque()
        self._being_sent: Frame | None = None
        self._waits_for_socket = False
        self._flushing: asyncio.Handle | None = None
        self._reading: asyncio.Handle | None = None
        self._is_paused = False
        self._beating: asyncio.TimerHandle | None = None
        self._pings: dict[int, float] = {}
        self._beats = 0

    def start(self, receiver: Receiver) -> None:
        """Begin to carry frames."""
        self._receiver = receiver
        self._heard_at = self._loop.time()
        self._loop.add_reader(self._connection.fileno(), self._read)
        # TLS may have taken bytes from the socket already.
        self._reading = self._loop.call_soon(self._read)
        self._beat()
        self.kick()

    def hand_over(self, receiver: Receiver) -> None:
        """Have another receiver from now on."""
        self._receiver = receiver
        self.kick()

    # Out

    def kick(self) -> None:
        """There are frames to be had from the receiver; they are asked for once this turn of the loop is over."""
        if self._flushing is None and not self._waits_for_socket and self.closed_because is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self.closed_because is not None or self._receiver is None:
            return
        turn = 0
        try:
            while turn < TURN:
                if not self._chunks and self._being_sent is not None:
                    if self.gives_back:
                        POOL.give(self._being_sent.payload)
                    self._being_sent = None
                if not self._chunks and not self._next():
                    self._wait_for_socket(False)
                    return
                sent = self._connection.send(self._chunks[0])
                if sent is None:
                    self._wait_for_socket(True)
                    return
                turn += sent
                self.bytes_sent += sent
                chunk = self._chunks.popleft()
                if sent < len(chunk):
                    self._chunks.appendleft(memoryview(chunk)[sent:])
        except OSError as error:
            self.abort(f"the link to {self.name} broke: {error.strerror or error}")
            return
        self._wait_for_socket(False)
        self._flushing = self._loop.call_soon(self._flush)

    def _next(self) -> bool:
        frame: Frame | None = None
        if self._own:
            frame = self._own.popleft()
        elif self._receiver is not None:
            frame = self._receiver.next_frame(self)
        if frame is None:
            return False
        self._being_sent = frame
        room = max(RECORD - HEADER.size - len(frame.hints), 0)
        if len(frame.payload) <= room:
            self._chunks.append(frame.encode())
        else:
            # The head shares a record with the payload's first bytes, and the rest is written from where it is.
            payload = memoryview(frame.payload)
            self._chunks.append(b"".join((frame.header(), frame.hints, payload[:room])))
            self._chunks.append(payload[room:])
        return True

    def _wait_for_socket(self, wait: bool) -> None:
        if wait and not self._waits_for_socket:
            self._loop.add_writer(self._connection.fileno(), self._flush)
        elif not wait and self._waits_for_socket:
            self._loop.remove_writer(self._connection.fileno())
        self._waits_for_socket = wait

    @property
    def is_ready(self) -> bool:
        """Whether it would take a frame now: its socket has not said that it takes no more."""
        return self.closed_because is None and not self._waits_for_socket

    @property
    def is_suspect(self) -> bool:
        """Whether its other end is late with an answer; other links are the better choice then."""
        # A round trip is short beside the time between two PINGs: mostly none is unanswered.
        return bool(self._pings) and self._late(self._loop.time()) > SUSPICION + 4 * (self.round_trip or 0.0)

    def _late(self, now: float) -> float:
        """Seconds since the oldest PING that was not answered."""
        return now - next(iter(self._pings.values()), now)

    # In

    def set_receive_buffer(self, size: int) -> None:
        """Have at most about so many bytes wait in the socket."""
        if self.closed_because is None:
            self._connection.set_receive_buffer(size)

    def pause(self) -> None:
        """Read no more for now; the sockets' buffers fill, and the other end has to wait."""
        if not self._is_paused and self.closed_because is None:
            self._is_paused = True
            self._loop.remove_reader(self._connection.fileno())

    def resume(self) -> None:
        """Undo `pause`."""
        if self._is_paused and self.closed_because is None:
            self._is_paused = False
            self._heard_at = self._loop.time()
            self._loop.add_reader(self._connection.fileno(), self._read)
            if self._reading is None:
                self._reading = self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        turn = 0
        try:
            while not self._is_paused and self.closed_because is None:
                count = self._connection.receive_into(self._decoder.buffer())
                if count is None:
                    return
                if count == 0:
                    self.abort(f"the link to {self.name} was closed by the other end")
                    return
                turn += count
                self.bytes_received += count
                self._heard_bytes += count
                frame = self._decoder.received(count)
                if frame is not None or self._heard_bytes > SIGN_OF_LIFE:
                    self._heard_at, self._heard_bytes = self._loop.time(), 0
                if frame is not None:
                    self._received(frame)
                if turn > TURN:
                    # What TLS has decrypted already would not make the socket readable again.
                    self._reading = self._loop.call_soon(self._read)
                    return
        except LandbridgeError as error:
            self.abort(error.message)
        except OSError as error:
            self.abort(f"the link to {self.name} broke: {error.strerror or error}")

    def _received(self, frame: Frame) -> None:
        if frame.type is FrameType.PING:
            if len(self._own) < 8:
                self._own.append(Frame(FrameType.PONG, 0, frame.position))
            self.kick()
        elif frame.type is FrameType.PONG:
            self._answered(frame.position)
        elif self._receiver is not None:
            self._receiver.frame_received(self, frame)

    # Life

    def _beat(self) -> None:
        now = self._loop.time()
        silent = now - self._heard_at
        if silent > self._silence_limit and not self._is_paused:
            self.abort(f"the link to {self.name} has been silent for {silent:.0f} s")
            return
        late = self._late(now)
        if self._must_answer and late > self._silence_limit + 4 * (self.round_trip or 0.0):
            # It may trickle: TCP's estimate of a line that was stalled stays low for long after, and a new link starts afresh.
            self.abort(f"the link to {self.name} has not answered for {late:.0f} s")
            return
        if len(self._pings) < 64:
            self._beats += 1
            self._pings[self._beats] = now
            self._own.append(Frame(FrameType.PING, 0, self._beats))
            self.kick()
        self._beating = self._loop.call_later(PING_INTERVAL, self._beat)

    def _answered(self, number: int) -> None:
        if (sent_at := self._pings.pop(number, None)) is not None:
            self.round_trip = self._loop.time() - sent_at
            for older in [n for n in self._pings if n < number]:
                del self._pings[older]

    def abort(self, reason: str) -> None:
        """Close at once; what was not taken by the socket is lost."""
        if self.closed_because is not None:
            return
        self.closed_because = reason
        for handle in (self._flushing, self._reading, self._beating):
            if handle is not None:
                handle.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        # The receiver may be the one who closes, while it is asked for a frame.
        self._waits_for_socket = False
        self._connection.close()
        self._chunks.clear()
        self._own.clear()
        self.closed.set()
        if self._receiver is not None:
            self._receiver.link_closed(self, reason)

    def close(self) -> None:
        """Close after what the receiver still has was written, as far as the socket takes it now."""
        if self.closed_because is None and self._receiver is not None and not self._waits_for_socket:
            self._flush()
        self.abort(f"the link to {self.name} was closed by this end")
