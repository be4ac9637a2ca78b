"""A channel, seen from one of its two ends: sans-I/O, the clock is an argument.

A channel is a reliable, ordered, two-way byte stream between two agents. The I/O around it reads from a local socket
while `room` is positive and passes the bytes to `send_data`; it passes frames from the link to `receive_frame`, writes the
bytes of the Data events to its socket, and then says `delivered`. What both return or queue goes to the link, in order.

How much may be under way (theory):

QEMU takes the rate at which its local socket accepts bytes for the rate of the WAN, and stops the guest when what
remains fits its downtime limit at that rate. Each byte that waits on the way is then sent while the guest stands still.
So what is under way is bounded by time: `rate * (round trip + QUEUE_TARGET)`, with

    rate        the largest delivery rate seen in RATE_WINDOW; a sample is the bytes acknowledged between the sending of
                a byte and its acknowledgement, over the time between (BBR's estimator, draft-cardwell-iccrg-bbr-congestion-control);
    round trip  the least one seen in the channel's life, so that our own queue is not taken for distance.

While the path is not full, the delivered rate is window / round trip, and the window grows by
(1 + QUEUE_TARGET / round trip) per round trip; once it is full, the rate stays and so does the window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from landbridge.errors import ProtocolError
from landbridge.frame import Frame, FrameType, reason_of, reset

# Payload of one DATA frame: 2.6 ms at 200 Mbit/s, so that a small frame of another channel need not wait long.
SEGMENT = 64 << 10
# Less room than this is no room: a stream of crumbs would cost more in frames than it carries.
SMALLEST_SEGMENT = 16 << 10
# Seconds of queue that a channel aims to keep between the agents: enough to keep a link busy over the jitter of a
# loaded host's scheduler, and a tenth of the default downtime limit.
QUEUE_TARGET = 0.03
# Seconds a rate sample stays the largest one.
RATE_WINDOW = 2.0
# Bytes that may be under way before anything is known, and at least.
MIN_WINDOW = 256 << 10
# The memory ceiling of one direction of one channel.
MAX_WINDOW = 32 << 20


class ChannelState(Enum):
    """Where a channel is in its life, seen from this end."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The far end is connected."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes for the local socket; to be answered with `delivered` once they are written."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfData:
    """The far end sends no more; the local socket's write side can be shut."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The channel is over at once, for this reason."""

    reason: str


Event = Accepted | Data | EndOfData | Reset


@dataclass(slots=True)
class _Segment:
    end: int
    sent_at: float
    acknowledged_before: int
    acknowledged_before_at: float
    limited: bool


class Window:
    """How many bytes may be under way in one direction; see the theory above."""

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque()
        self._rates: deque[tuple[float, float]] = deque()
        self._acknowledged_at = 0.0
        self.acknowledged = 0
        self.sent = 0
        # Seconds; infinite until the first acknowledgement.
        self.round_trip = float("inf")

    @property
    def rate(self) -> float:
        """Bytes per second: the largest recent delivery rate, 0 until one is known."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def size(self) -> int:
        """Bytes that may be under way."""
        if not self._rates:
            return MIN_WINDOW
        return min(max(int(self.rate * (self.round_trip + QUEUE_TARGET)), MIN_WINDOW), MAX_WINDOW)

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        room = self.size - (self.sent - self.acknowledged)
        return room if room >= SMALLEST_SEGMENT else 0

    def on_send(self, length: int, now: float) -> None:
        """Note that `length` more bytes are under way."""
        if self.sent == self.acknowledged:
            self._acknowledged_at = now
        self.sent += length
        limited = self.room >= SEGMENT
        self._segments.append(_Segment(self.sent, now, self.acknowledged, self._acknowledged_at, limited))

    def on_acknowledge(self, position: int, now: float) -> None:
        """Note that all bytes before `position` were delivered. Raises ProtocolError if they were never sent."""
        if not self.acknowledged <= position <= self.sent:
            raise ProtocolError(f"bytes up to {position} were acknowledged, of {self.sent} sent; the channel is closed")
        self.acknowledged = position
        self._acknowledged_at = now
        while self._segments and self._segments[0].end <= position:
            segment = self._segments.popleft()
            self.round_trip = min(self.round_trip, max(now - segment.sent_at, 1e-6))
            took = max(now - segment.acknowledged_before_at, self.round_trip)
            self._sample((position - segment.acknowledged_before) / took, now, limited=segment.limited)

    def _sample(self, rate: float, now: float, *, limited: bool) -> None:
        rates = self._rates
        if limited and rate <= self.rate:
            return  # the sender had nothing to send: this says nothing about the path
        while rates and (rates[0][0] < now - RATE_WINDOW or rates[-1][1] <= rate):
            if rates[0][0] < now - RATE_WINDOW:
                rates.popleft()
            else:
                rates.pop()
        rates.append((now, rate))


class Channel:
    """One end of a channel. Not thread-safe: owned by the task or loop that moves its bytes."""

    def __init__(self, number: int, *, opened_by_us: bool, open_payload: bytes = b"") -> None:
        self.number = number
        self.state = ChannelState.OPENING
        self.window = Window()
        # Bytes handed to the local socket, and bytes that arrived for it.
        self.delivered_bytes = 0
        self.received_bytes = 0
        self._sent_fin = False
        self._received_fin = False
        self._fin_delivered = False
        self._opened_by_us = opened_by_us
        self._outgoing: list[Frame] = []
        if opened_by_us:
            self._outgoing.append(Frame(FrameType.OPEN, number, 0, open_payload))

    @property
    def room(self) -> int:
        """How many bytes may be read from the local socket now; 0 once the channel is not open or our end was closed."""
        if self.state is not ChannelState.OPEN or self._sent_fin:
            return 0
        return min(self.window.room, SEGMENT)

    def accept(self) -> None:
        """Say that our local socket is connected; only at the end that did not open the channel."""
        if self.state is ChannelState.OPENING and not self._opened_by_us:
            self.state = ChannelState.OPEN
            self._outgoing.append(Frame(FrameType.ACCEPT, self.number))

    def send_data(self, data: bytes, now: float) -> None:
        """Send bytes that were read from the local socket, at most `room` of them."""
        if self.state is ChannelState.CLOSED:
            return
        self._outgoing.append(Frame(FrameType.DATA, self.number, self.window.sent, data))
        self.window.on_send(len(data), now)

    def send_eof(self) -> None:
        """Say that the local socket gives no more bytes."""
        if self.state is ChannelState.OPEN and not self._sent_fin:
            self._sent_fin = True
            self._outgoing.append(Frame(FrameType.FIN, self.number, self.window.sent))
            self._close_if_done()

    def reset(self, reason: str) -> None:
        """End the channel at once, in both directions."""
        if self.state is not ChannelState.CLOSED:
            self.state = ChannelState.CLOSED
            self._outgoing.append(reset(self.number, reason))

    def receive_frame(self, frame: Frame, now: float) -> list[Event]:
        """Take a frame of this channel. Raises ProtocolError if it breaks the rules; the caller then resets the channel."""
        if self.state is ChannelState.CLOSED:
            return []
        match frame.type:
            case FrameType.ACCEPT if self._opened_by_us and self.state is ChannelState.OPENING:
                self.state = ChannelState.OPEN
                return [Accepted()]
            case FrameType.DATA if self.state is ChannelState.OPEN and not self._received_fin:
                return self._receive_data(frame)
            case FrameType.ACK if self.state is ChannelState.OPEN:
                self.window.on_acknowledge(frame.position, now)
                self._close_if_done()
                return []
            case FrameType.FIN if self.state is ChannelState.OPEN and not self._received_fin:
                if frame.position != self.received_bytes:
                    raise ProtocolError(
                        f"the stream ended at {frame.position}, and {self.received_bytes} bytes of it arrived; the channel is closed"
                    )
                self._received_fin = True
                return [EndOfData()]
            case FrameType.RESET:
                self.state = ChannelState.CLOSED
                return [Reset(reason_of(frame))]
            case _:
                raise ProtocolError(
                    f"a {frame.type.name} frame arrived on a channel that is {self.state.value}; the channel is closed"
                )

    def delivered(self, length: int) -> None:
        """Say that `length` bytes of Data events were handed to the local socket: they are acknowledged now."""
        self.delivered_bytes += length
        if self.state is ChannelState.OPEN:
            self._outgoing.append(Frame(FrameType.ACK, self.number, self.delivered_bytes))

    def delivered_eof(self) -> None:
        """Say that the local socket was told the end of the stream."""
        self._fin_delivered = True
        self._close_if_done()

    def frames_to_send(self) -> list[Frame]:
        """The frames for the link that have come together since the last call, in order."""
        frames, self._outgoing = self._outgoing, []
        return frames

    def _receive_data(self, frame: Frame) -> list[Event]:
        if frame.position != self.received_bytes:
            raise ProtocolError(
                f"bytes from {frame.position} on arrived where {self.received_bytes} was next; the channel is closed"
            )
        self.received_bytes += len(frame.payload)
        if self.received_bytes - self.delivered_bytes > MAX_WINDOW + SEGMENT:
            raise ProtocolError("more bytes arrived than a channel may have under way; the channel is closed")
        return [Data(frame.payload)]

    def _close_if_done(self) -> None:
        if self._sent_fin and self._fin_delivered and self.window.acknowledged == self.window.sent:
            self.state = ChannelState.CLOSED
