"""A channel, seen from one of its two ends: sans-I/O, the clock is an argument.

A channel is a reliable, ordered, two-way byte stream between two agents, made of frames that may be lost, repeated and reordered
on the way: a link, a gateway or the whole WAN may die at any moment, and come back. The I/O around it reads from a local socket
while `room` is positive and passes the bytes to `send_data`; it passes the frames that arrive to `receive_frame`, writes the bytes
of the Data events to its socket, and then says `delivered`. Whenever its link to a gateway takes another frame, it asks
`next_frame`; when `next_timeout` has come, it calls `timeout`.

Reliability (theory):

A segment is kept until it is acknowledged as *delivered*: handed to QEMU or libvirtd, not merely received. Beside that position,
an acknowledgement says what was received, as an offset and a few ranges. There are three ways to learn that a segment is lost:

    overtaken   one that was sent later has arrived, and this one is overdue: more than `loss delay` has passed since it was
                sent (RACK, RFC 8985). The loss delay is the smoothed round trip and four deviations, as RFC 6298 computes
                them, so that a frame which waits for TCP to mend its link is not sent twice. It needs no back-off: what has
                overtaken tells how long the way takes now, and in a queue that keeps its order nothing is overtaken.
    probed      no segment was found to have arrived for a while although something is outstanding, whatever else is heard: a
                PROBE is sent, which keeps its place among the data. Its answer makes the segments before it overtaken.
    re-opened   the way has changed (a gateway has died, or has forgotten the channel): what was sent on the old one is lost. The
                end that opens hears what has arrived with the ACCEPT; the other one with the next ACK, and until then what it
                had sent counts as overtaken.

So recovery has one path: whatever has failed, segments are sent again from the least one that is missing, at most one window of
them. Segments are never cut anew, so that a receiver recognizes a repetition by its position; whatever overlaps in another way
is refused.

The end (theory):

An end is FINISHED when it has delivered all and everything of its own is delivered. The far end may not know that yet, for its
last acknowledgement can be lost, and with it the way: a finished end goes on to answer what is repeated. The end that opened says
CLOSE, and says it again, with an OPEN for a way that has forgotten the channel, until a CLOSE comes back, which the other end says
to each. Both then `may_be_forgotten`. An end that was RESET says so again, too, to whoever goes on.

As only one end can open a way, the other one may wait in vain for the end: while the opener `may_be_unknown`, which has finished or
given up and has heard no CLOSE or RESET since, it is to be kept, and given a link.

Work per frame does not depend on how much is under way: queues are taken from at their ends, and runs of segments that are
known to have arrived are passed over as one.

How much may be under way (theory):

QEMU takes the rate at which its local socket accepts bytes for the rate of the WAN, and stops the guest when what remains fits
its downtime limit at that rate. Each byte that then waits on the way is sent while the guest stands still. What waits is bounded
by time where the WAN begins: the gateway queues little and stops reading from the agent's link, and an agent holds only UNSENT
bytes ready for that link. CEILING bounds what is sent and not acknowledged, by memory only.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from blake3 import blake3

from landbridge.errors import AlteredError, ProtocolError
from landbridge.frame import (
    DIGEST_SIZE,
    HEADER,
    MAX_RANGES,
    RECORD,
    Acknowledgement,
    Frame,
    FrameType,
    Payload,
    reason_of,
    reset,
)

# Bytes of one DATA frame, chosen so that one takes SEGMENT_TIME at the present rate and a frame of another channel need not
# wait for long. With its header it fills whole records of TLS. Of these, 13 are what a UNIX socket of Linux holds (208 KiB): more
# does not come at once. At the upper end, the cost per frame in Python is a few percent of the cost of its bytes (docs/adr/0005).
SMALLEST_SEGMENT, LARGEST_SEGMENT = RECORD - HEADER.size, 13 * RECORD - HEADER.size
SEGMENT_TIME = 0.005
# Bytes that are sent and not acknowledged, and that wait for a gap to be filled: the memory of one direction of one channel, and
# more than 1 Gbit/s carries in a round trip of 250 ms.
CEILING = 32 << 20
# Segments that are not acknowledged, and that wait for a gap to be filled: their memory beside their bytes, should they be small.
MOST_SEGMENTS = 8192
# Bytes read from the local socket that may wait for the link to take them, or two segments if these are larger.
UNSENT = 128 << 10
# Bytes after which a digest goes with the data, so that an alteration is found early and located.
CHECKPOINT = 4 << 20
# Seconds: bounds of the loss delay, and of the silence after which a PROBE or another OPEN is sent. Much less than 0.5 s
# sends again what TCP is about to mend: on a line of 20 ms that loses 1 %, two round trips and 0.1 s took a third of the goodput. With 1 s,
# a move of 300 MB over 4 links sent 0 to 3 MB again instead of 3 to 21; but behind a link that has died, all would wait for so long.
LOSS_DELAY = (0.5, 10.0)
PROBE_DELAY = (0.5, 2.0)
# PROBEs of which an answer is still of use: more than are sent in the longest round trip that LOSS_DELAY can follow.
PROBES = 16
# Seconds of silence after which a PROBE is sent although nothing is outstanding, so that `heard_at` tells of a way that is lost.
KEEPALIVE = 2.0
# Seconds over which the rate is measured that chooses the size of segments.
RATE_INTERVAL = 0.1


class ChannelState(Enum):
    """Where a channel is in its life, seen from this end."""

    # Waits for the far end: for the first time, or again after its way was lost.
    OPENING = "opening"
    OPEN = "open"
    # Ended well: all bytes of both directions are delivered. Repeated frames are still answered.
    FINISHED = "finished"
    # Over at once, for a reason.
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The far end is connected, for the first time."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes for the local socket; to be answered with `delivered` once they are written."""

    data: Payload


@dataclass(frozen=True, slots=True)
class EndOfData:
    """The far end sends no more, and all that it has sent arrived unaltered; to be answered with `delivered_eof`."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The channel is over at once, for this reason."""

    reason: str


Event = Accepted | Data | EndOfData | Reset


@dataclass(slots=True, eq=False)
class _Segment:
    start: int
    # After its last byte; the end of the stream counts as one.
    end: int
    data: Payload
    # Of the stream up to its end; empty where there is no checkpoint.
    digest: bytes
    is_fin: bool
    # Hints to its bytes, for whoever codes them on the way.
    hints: Payload = b""
    # When it was last sent, and its place among all that was.
    sent_at: float = 0.0
    order: int = 0
    times_sent: int = 0
    has_arrived: bool = False
    # Once it has arrived: the segments up to this offset have, too, as far as was noted here.
    arrived_until: int = 0


class Estimator:
    """Round trip and rate of a channel, from its acknowledgements."""

    def __init__(self) -> None:
        # Seconds; 0 until one was measured.
        self.round_trip = 0.0
        self._deviation = 0.0
        # Bytes per second that are delivered; 0 until known. And bytes that the next segment should have.
        self.rate = 0.0
        self.segment = SMALLEST_SEGMENT
        self._interval: tuple[float, int] | None = None

    @property
    def longest(self) -> float:
        """Seconds that hardly any round trip exceeds; 0 until one was measured."""
        return self.round_trip + 4 * self._deviation

    @property
    def loss_delay(self) -> float:
        """Seconds after which a segment that was overtaken counts as lost."""
        return min(max(self.longest, LOSS_DELAY[0]), LOSS_DELAY[1]) if self.round_trip else 1.0

    def on_round_trip(self, sample: float) -> None:
        """Take a sample, in seconds, of a segment or a PROBE that was sent once (RFC 6298, section 2)."""
        if self.round_trip == 0.0:
            self.round_trip, self._deviation = sample, sample / 2
        else:
            self._deviation = 0.75 * self._deviation + 0.25 * abs(self.round_trip - sample)
            self.round_trip = 0.875 * self.round_trip + 0.125 * sample

    def on_delivered(self, position: int, now: float) -> None:
        """Note how many bytes of the stream were delivered by now."""
        if self._interval is None or now - self._interval[0] > 10 * RATE_INTERVAL:
            self._interval = (now, position)
        elif (elapsed := now - self._interval[0]) >= RATE_INTERVAL:
            sample = (position - self._interval[1]) / elapsed
            self.rate = sample if self.rate == 0.0 else (self.rate + sample) / 2
            self._interval = (now, position)
            size = int(self.rate * SEGMENT_TIME)
            self.segment = min(max(size - size % RECORD - HEADER.size, SMALLEST_SEGMENT), LARGEST_SEGMENT)


class Outgoing:
    """The direction that this end sends: what is kept, what is lost, what goes next."""

    def __init__(self) -> None:
        self.estimator = Estimator()
        # Offsets: bytes taken from the local socket, and bytes that the far end has delivered.
        self.position = 0
        self.acknowledged = 0
        self.is_ended = False
        # Bytes sent again, for whoever wants to know.
        self.repeated_bytes = 0
        # Told of data that is kept no longer, and that no link can still be at work on, whatever the far end says: it was sent
        # once, and the link has asked for more since.
        self.on_released: Callable[[Payload], None] | None = None
        self._digest = blake3()
        self._checked = 0
        # All that is not acknowledged, by start; the part of it that has not arrived, in order; and what was never sent.
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._missing: deque[_Segment] = deque()
        self._unsent: deque[_Segment] = deque()
        self._unsent_bytes = 0
        # In the order in which they were last sent; and those to be sent again, the least position first.
        self._flight: OrderedDict[int, _Segment] = OrderedDict()
        self._lost: list[tuple[int, _Segment]] = []
        # The number of the last PROBE; when, and in which place among the segments, the last few were sent, by number.
        self._probe = 0
        self._probes: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._probe_is_due = False
        # Segments and PROBEs that were sent; what was sent before `newest` is overtaken.
        self._order = 0
        self._newest = 0

    @property
    def end(self) -> int:
        """The offset after all that was given to this direction; the end of the stream counts as one byte."""
        return self.position + self.is_ended

    @property
    def digest(self) -> bytes:
        """BLAKE3 of all that was taken so far."""
        return self._digest.digest()

    @property
    def room(self) -> int:
        """Bytes that may be taken from the local socket now."""
        segment, unsent = self.estimator.segment, self._unsent_bytes
        if self.is_ended or (unsent >= UNSENT and unsent >= 2 * segment) or len(self._segments) >= MOST_SEGMENTS:
            return 0
        left = CEILING - self.position + self.acknowledged
        if left >= segment:
            return segment
        # Rather nothing than a small segment: acknowledgements come in any size, and would make many of them.
        return left if left >= SMALLEST_SEGMENT else 0

    @property
    def is_outstanding(self) -> bool:
        """Whether the far end has not acknowledged all."""
        return self.acknowledged < self.end

    def take(self, data: Payload, hints: Payload) -> None:
        """Take bytes from the local socket, at least one, and hints to them."""
        self._digest.update(data)
        start, self.position = self.position, self.position + len(data)
        digest = b""
        if self.position - self._checked >= CHECKPOINT:
            digest, self._checked = self._digest.digest(), self.position
        self._add(_Segment(start, self.position, data, digest, is_fin=False, hints=hints))

    def take_end(self) -> None:
        """The local socket gives no more."""
        self.is_ended = True
        self._add(_Segment(self.position, self.end, b"", self._digest.digest(), is_fin=True))

    def _add(self, segment: _Segment) -> None:
        self._segments[segment.start] = segment
        self._missing.append(segment)
        self._unsent.append(segment)
        self._unsent_bytes += len(segment.data)

    def next_frame(self, channel: int, now: float) -> Frame | None:
        """The next frame with bytes of the stream, or a PROBE."""
        while self._lost:
            _, segment = heapq.heappop(self._lost)
            if not segment.has_arrived:
                self.repeated_bytes += len(segment.data)
                return self._send(segment, channel, now)
        if self._unsent:
            segment = self._unsent.popleft()
            self._unsent_bytes -= len(segment.data)
            return self._send(segment, channel, now)
        if self._probe_is_due:
            return self._send_probe(channel, now)
        return None

    def _send(self, segment: _Segment, channel: int, now: float) -> Frame:
        self._order += 1
        segment.sent_at, segment.order = now, self._order
        segment.times_sent += 1
        self._flight[segment.start] = segment
        if segment.is_fin:
            return Frame(FrameType.FIN, channel, segment.start, segment.digest)
        if segment.digest:
            checked = b"".join((segment.data, segment.digest))
            return Frame(FrameType.DATA_CHECKED, channel, segment.start, checked, segment.hints)
        return Frame(FrameType.DATA, channel, segment.start, segment.data, segment.hints)

    def _send_probe(self, channel: int, now: float) -> Frame:
        self._probe_is_due = False
        self._order += 1
        # Numbers fit into an ACK; 0 is none.
        self._probe = self._probe % 0xFFFFFFFF + 1
        self._probes[self._probe] = (now, self._order)
        if len(self._probes) > PROBES:
            self._probes.popitem(last=False)
        return Frame(FrameType.PROBE, channel, self._probe)

    def probe(self) -> None:
        """Ask what has arrived, after all that waits to be sent."""
        self._probe_is_due = True

    def acknowledge(self, said: Acknowledgement, now: float) -> bool:
        """Take an acknowledgement, however old; returns whether it says of anything new that it has arrived.

        Raises ProtocolError if it is of bytes that were never sent.
        """
        end = self._unsent[0].start if self._unsent else self.end
        if max(said.received, *(until for _, until in said.ranges), 0) > end:
            raise ProtocolError(f"bytes were acknowledged beyond the {end} that were sent; the channel is closed")
        arrived: list[_Segment] = []
        while self._missing and self._missing[0].end <= said.received:
            self._note_arrived(self._missing.popleft(), arrived)
        for start, until in said.ranges:
            self._note_range(start, until, arrived)
        answered = self._probes.pop(said.probe, None)
        self._learn(arrived, answered, now)
        if said.delivered > self.acknowledged:
            self._forget(said.delivered)
            self.estimator.on_delivered(min(self.acknowledged, self.position), now)
        return bool(arrived) or answered is not None

    def _learn(self, arrived: list[_Segment], answered: tuple[float, int] | None, now: float) -> None:
        # Of a segment that was sent twice, it is not known which one arrived. It was not the last one if that is too young.
        youngest = now - self.estimator.round_trip / 2
        sent = [(each.sent_at, each.order) for each in arrived if each.times_sent == 1]
        again = [each.order for each in arrived if each.times_sent > 1 and each.sent_at <= youngest]
        if answered is not None:
            sent.append(answered)
        if sent:
            sent_at, order = max(sent)
            self._newest = max(self._newest, order)
            self.estimator.on_round_trip(max(now - sent_at, 1e-6))
        self._newest = max(self._newest, *again, 0)

    def _note_range(self, start: int, until: int, arrived: list[_Segment]) -> None:
        first = self._segments.get(start)
        at, segment = start, first
        while segment is not None and segment.end <= until:
            self._note_arrived(segment, arrived)
            at = max(segment.end, segment.arrived_until)
            segment = self._segments.get(at) if at < until else None
        if first is not None and first.has_arrived:
            first.arrived_until = max(first.arrived_until, at)

    def _note_arrived(self, segment: _Segment, arrived: list[_Segment]) -> None:
        if not segment.has_arrived:
            segment.has_arrived = True
            self._flight.pop(segment.start, None)
            arrived.append(segment)

    def _forget(self, delivered: int) -> None:
        self.acknowledged = delivered
        while self._segments and next(iter(self._segments.values())).end <= delivered:
            _, segment = self._segments.popitem(last=False)
            if self.on_released is not None and segment.times_sent == 1 and segment.order < self._order:
                self.on_released(segment.data)

    def find_lost(self, now: float) -> float | None:
        """Note which segments are lost by now; returns when the next one may be."""
        while self._flight:
            segment = next(iter(self._flight.values()))
            if segment.order >= self._newest:
                break
            due = segment.sent_at + self.estimator.loss_delay
            if due > now:
                return due
            self._lose_first()
        return None

    def overtake_all(self) -> None:
        """Note that all that is under way is overtaken."""
        self._newest = self._order + 1

    def lose_all(self) -> None:
        """Note that all that is under way is lost."""
        while self._flight:
            self._lose_first()

    def acknowledge_all(self) -> None:
        """The far end has said in another way that it has everything."""
        self.acknowledged = self.end
        for queue in (self._segments, self._missing, self._flight, self._lost):
            queue.clear()

    def forget_all(self) -> None:
        """The channel is over at once: nothing is sent any more."""
        for queue in (self._segments, self._missing, self._unsent, self._flight, self._lost):
            queue.clear()
        self._unsent_bytes = 0

    @property
    def has_all_been_sent(self) -> bool:
        """Whether nothing waits to be sent for the first time."""
        return not self._unsent

    def _lose_first(self) -> None:
        start, segment = self._flight.popitem(last=False)
        heapq.heappush(self._lost, (start, segment))


class Incoming:
    """The direction that this end receives: what has arrived, and in which order it is given on."""

    def __init__(self) -> None:
        # Offsets; the end of the stream counts as one byte.
        self.received = 0
        self.delivered = 0
        self.probe = 0
        self.is_ended = False
        # Something arrived, or was delivered, that the far end was not told of.
        self.owes_acknowledgement = False
        self._digest = blake3()
        self._checked = 0
        # Frames behind a gap, by position; and where the runs of them begin and end, in order.
        self._waiting: dict[int, Frame] = {}
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def digest(self) -> bytes:
        """BLAKE3 of all that was given on so far."""
        return self._digest.digest()

    def receive(self, frame: Frame) -> list[Event]:
        """Take a frame with bytes of the stream. Raises ProtocolError."""
        self.owes_acknowledgement = True
        start = frame.position
        end = start + _length(frame)
        if end > self.delivered + CEILING + 1:
            raise ProtocolError("more bytes arrived than a channel may have under way; the channel is closed")
        if end <= self.received or start in self._waiting:
            return []  # a repetition
        if self.is_ended:
            raise ProtocolError("bytes arrived after the end of their stream; the channel is closed")
        if start < self.received or self._overlaps(start, end):
            raise ProtocolError("bytes arrived again that were cut in another way; the channel is closed")
        if start > self.received:
            self._keep(start, end, frame)
            return []
        events = [self._accept(frame)]
        if self._starts and self._starts[0] == self.received:
            del self._starts[0], self._ends[0]
            while (following := self._waiting.pop(self.received, None)) is not None:
                events.append(self._accept(following))
        return events

    def _overlaps(self, start: int, end: int) -> bool:
        run = bisect_left(self._starts, end) - 1
        return run >= 0 and self._ends[run] > start

    def _keep(self, start: int, end: int, frame: Frame) -> None:
        if len(self._waiting) >= MOST_SEGMENTS:
            return  # it comes again
        self._waiting[start] = frame
        run = bisect_left(self._starts, start)
        joins_former = run > 0 and self._ends[run - 1] == start
        joins_next = run < len(self._starts) and self._starts[run] == end
        if joins_former and joins_next:
            self._ends[run - 1] = self._ends[run]
            del self._starts[run], self._ends[run]
        elif joins_former:
            self._ends[run - 1] = end
        elif joins_next:
            self._starts[run] = start
        else:
            self._starts.insert(run, start)
            self._ends.insert(run, end)

    def _accept(self, frame: Frame) -> Event:
        if self.is_ended:
            raise ProtocolError("bytes arrived after the end of their stream; the channel is closed")
        data, digest = _parts(frame)
        self._digest.update(data)
        self.received += _length(frame)
        if digest:
            if digest != self._digest.digest():
                raise AlteredError.between(self._checked, self.received - (frame.type is FrameType.FIN))
            self._checked = self.received
        if frame.type is FrameType.FIN:
            self.is_ended = True
            if self._starts:
                raise ProtocolError("bytes arrived after the end of their stream; the channel is closed")
            return EndOfData()
        return Data(data)

    def forget_all(self) -> None:
        """The channel is over at once: what waits for a gap to be filled is of no use."""
        for queue in (self._waiting, self._starts, self._ends):
            queue.clear()

    def acknowledgement(self) -> Acknowledgement:
        """What to tell the far end."""
        self.owes_acknowledgement = False
        ranges = tuple(zip(self._starts[:MAX_RANGES], self._ends[:MAX_RANGES], strict=True))
        return Acknowledgement(self.delivered, self.received, self.probe, ranges)


def _length(frame: Frame) -> int:
    if frame.type is FrameType.FIN:
        return 1
    return len(frame.payload) - (DIGEST_SIZE if frame.type is FrameType.DATA_CHECKED else 0)


def _parts(frame: Frame) -> tuple[Payload, bytes]:
    payload = memoryview(frame.payload)
    if frame.type is FrameType.DATA:
        return payload, b""
    return payload[:-DIGEST_SIZE], bytes(payload[-DIGEST_SIZE:])


class Channel:
    """One end of a channel. Not thread-safe: owned by the loop that moves its bytes."""

    def __init__(self, identity: int, now: float, *, opening: bytes | None = None) -> None:
        """`identity` is the same at both ends; `opening` is the payload of OPEN at the end that opens, None at the other."""
        self.identity = identity
        self.state = ChannelState.OPENING
        self.outgoing = Outgoing()
        self.incoming = Incoming()
        # When the far end was last heard.
        self.heard_at = now
        # Whether this end opened it, and opens it again when its way is lost.
        self.opened_by_us = opening is not None
        self._opening = opening or b""
        self._has_been_open = False
        self._opened_at = float("-inf")
        # The RESET that this end has sent; and whether the other end has said that it knows of the end.
        self._farewell: Frame | None = None
        self._is_end_known = False
        self._has_said_open = False
        self._control: deque[Frame] = deque()
        # When to open again or to probe, if there is no progress; and how long to wait the next time.
        self._patience_ends: float | None = None
        self._patience = PROBE_DELAY[0]
        self._loss_at: float | None = None

    @property
    def may_be_forgotten(self) -> bool:
        """Whether it has ended well, and the far end knows."""
        return self.state is ChannelState.FINISHED and self._is_end_known

    @property
    def may_be_unknown(self) -> bool:
        """Whether the channel, which this end has opened, has ended here, and the other end may not know that."""
        has_given_up = self.state is ChannelState.RESET and self._farewell is not None
        is_over = has_given_up or self.state is ChannelState.FINISHED
        return is_over and self.opened_by_us and self._has_said_open and not self._is_end_known

    @property
    def room(self) -> int:
        """How many bytes may be read from the local socket now; 0 while the channel is not open or our direction has ended."""
        return self.outgoing.room if self.state is ChannelState.OPEN else 0

    # Verbs of the I/O around it

    def connect(self, now: float) -> None:
        """There is a link to a gateway, a new one: (re-)open the channel on it. Only at the end that opens."""
        is_over = self.state in {ChannelState.RESET, ChannelState.FINISHED}
        if not self.opened_by_us or (is_over and not self.may_be_unknown):
            return
        self._control.clear()
        self._reopen(now)

    def disconnect(self) -> None:
        """The link is gone; nothing more is known of what is under way."""
        if self.state is ChannelState.OPEN and self.opened_by_us:
            self.state = ChannelState.OPENING
        self._control.clear()
        self._rest()

    def accept(self, now: float) -> None:
        """Say that our local socket is connected, now or since long; at the end that does not open, after each OPEN."""
        if self.opened_by_us or self.state is ChannelState.RESET:
            return
        self._say(self.incoming.acknowledgement().frame(FrameType.ACCEPT, self.identity))
        if self.state is ChannelState.OPENING:
            self.state = ChannelState.OPEN
        self._has_been_open = True
        self.outgoing.overtake_all()
        self._loss_at = None
        self._heard(now)
        self._progressed(now)

    def send_data(self, data: Payload, now: float, hints: Payload = b"") -> None:
        """Send bytes that were read from the local socket, at most `room` of them, with hints to them (`landbridge.hints`).

        They must not be changed afterwards.
        """
        if data and self._takes:
            was_outstanding = self.outgoing.is_outstanding
            self.outgoing.take(data, hints)
            if not was_outstanding:
                self._progressed(now)

    def send_eof(self, now: float) -> None:
        """Say that the local socket gives no more bytes."""
        if self._takes:
            was_outstanding = self.outgoing.is_outstanding
            self.outgoing.take_end()
            if not was_outstanding:
                self._progressed(now)

    def delivered(self, length: int, now: float) -> None:
        """Say that `length` bytes of Data events were handed to the local socket: they are acknowledged now."""
        del now
        self.incoming.delivered += length
        self.incoming.owes_acknowledgement = True

    def delivered_eof(self, now: float) -> None:
        """Say that the local socket was told the end of the stream."""
        self.incoming.delivered += 1
        self.incoming.owes_acknowledgement = True
        self._finish_if_done(now)

    def reset(self, reason: str) -> None:
        """End the channel at once, in both directions."""
        if self.state not in {ChannelState.RESET, ChannelState.FINISHED}:
            self._end_at_once()
            self._farewell = reset(self.identity, reason)
            self._say(self._farewell)

    def receive_frame(self, frame: Frame, now: float) -> list[Event]:
        """Take a frame of this channel. Raises ProtocolError if it breaks the rules; the caller then resets the channel."""
        if self.state is ChannelState.RESET:
            if frame.type is FrameType.RESET:
                self._end_is_known()
            if self._farewell is not None and frame.type not in _LAST_WORDS:
                self._say(self._farewell)
            return []
        match frame.type:
            case FrameType.DATA | FrameType.DATA_CHECKED | FrameType.FIN:
                self._heard(now)
                if self.state is ChannelState.OPENING and not self.opened_by_us:
                    return []  # there is no socket for them yet; they come again
                return self.incoming.receive(_checked(frame))
            case FrameType.ACK:
                self._acknowledged(frame, now)
            case FrameType.PROBE:
                self._heard(now)
                self.incoming.probe = frame.position & 0xFFFFFFFF
                self.incoming.owes_acknowledgement = True
            case FrameType.RESET:
                return self._was_reset(frame)
            case _ if self.opened_by_us:
                return self._heard_about_opening(frame, now)
            case _:
                self._heard_from_opener(frame, now)
        return []

    def next_frame(self, now: float) -> Frame | None:
        """The next frame for the link, or None if there is nothing to send. What it returns counts as sent."""
        if self._control:
            return self._control.popleft()
        if self.state is ChannelState.RESET or (self.state is ChannelState.OPENING and not self._has_been_open):
            return None
        if self.incoming.owes_acknowledgement:
            return self.incoming.acknowledgement().frame(FrameType.ACK, self.identity)
        if self.state is not ChannelState.OPEN:
            return None
        return self.outgoing.next_frame(self.identity, now)

    def next_timeout(self) -> float | None:
        """When to call `timeout`, if nothing happens before."""
        patience_ends, loss_at = self._patience_ends, self._loss_at
        if patience_ends is None or loss_at is None:
            return loss_at if patience_ends is None else patience_ends
        return min(patience_ends, loss_at)

    def timeout(self, now: float) -> None:
        """Act on silence; may be called at any time."""
        if self._loss_at is not None and self._loss_at <= now:
            self._loss_at = self.outgoing.find_lost(now)
        if self._patience_ends is None or self._patience_ends > now:
            return
        if (self.state is ChannelState.OPENING and self.opened_by_us) or self.may_be_unknown:
            self._open(now)
        elif self.state is ChannelState.OPEN:
            self.outgoing.probe()
            self._wait_longer(now)
        else:
            self._patience_ends = None

    # What is behind them

    @property
    def _takes(self) -> bool:
        return self.state in {ChannelState.OPEN, ChannelState.OPENING} and not self.outgoing.is_ended

    def _say(self, frame: Frame) -> None:
        # A newer one takes the place of one that was not sent yet: what waits here is bounded.
        if any(waiting.type is frame.type for waiting in self._control):
            self._control = deque(waiting for waiting in self._control if waiting.type is not frame.type)
        self._control.append(frame)

    def _rest(self) -> None:
        """Wait for nothing."""
        self._patience_ends = self._loss_at = None

    def _reopen(self, now: float) -> None:
        self._patience = PROBE_DELAY[0]
        if self.state in {ChannelState.OPEN, ChannelState.OPENING}:
            self.state = ChannelState.OPENING
        self._open(now)

    def _open(self, now: float) -> None:
        self._has_said_open = True
        self._say(Frame(FrameType.OPEN, self.identity, 0, self._opening))
        # One that was given up is opened to be asked for, and answers that it is over.
        if self.state is ChannelState.FINISHED:
            self._say(Frame(FrameType.CLOSE, self.identity))
        self._wait_longer(now)

    def _heard_about_opening(self, frame: Frame, now: float) -> list[Event]:
        match frame.type:
            case FrameType.ACCEPT:
                return self._accepted(frame, now)
            case FrameType.UNKNOWN:
                # Each of the frames that were under way may be answered so: what follows an ACCEPT at once is old.
                is_old = now - self._opened_at <= self.outgoing.estimator.loss_delay
                if self.state is not ChannelState.OPENING and not is_old and not self.may_be_forgotten:
                    self._reopen(now)
                return []
            case FrameType.CLOSE if self.state is ChannelState.FINISHED:
                self._end_is_known()
                return []
            case _:
                raise _misplaced(frame)

    def _heard_from_opener(self, frame: Frame, now: float) -> None:
        match frame.type:
            case FrameType.CLOSE:
                self._close(now)
            case FrameType.OPEN | FrameType.UNKNOWN:
                pass  # the caller answers the one with `accept`, and the end that opens answers the other with an OPEN
            case _:
                raise _misplaced(frame)

    def _was_reset(self, frame: Frame) -> list[Event]:
        if self.state is ChannelState.FINISHED:
            # The other end had given up before it could hear that all was well, or remembers nothing any more.
            self._end_is_known()
            return []
        self._end_at_once()
        return [Reset(reason_of(frame))]

    def _end_is_known(self) -> None:
        self._is_end_known = True
        self._control.clear()
        self._rest()

    def _end_at_once(self) -> None:
        # Whoever has a record of the channel keeps none of its bytes.
        self.state = ChannelState.RESET
        self._rest()
        self.outgoing.forget_all()
        self.incoming.forget_all()

    def _accepted(self, frame: Frame, now: float) -> list[Event]:
        if self.state is not ChannelState.OPENING:
            self._acknowledged(frame, now)  # an answer to an OPEN that was sent twice
            if self.may_be_unknown:
                self._say(Frame(FrameType.CLOSE, self.identity))
            return []
        self.state = ChannelState.OPEN
        is_first, self._has_been_open, self._opened_at = not self._has_been_open, True, now
        self._acknowledged(frame, now)
        self.outgoing.lose_all()
        self._loss_at = None
        self._progressed(now)
        # The other end waits for it, to know what it has to send again.
        self.incoming.owes_acknowledgement |= not is_first
        return [Accepted()] if is_first else []

    def _acknowledged(self, frame: Frame, now: float) -> None:
        self._heard(now)
        if self.outgoing.acknowledge(Acknowledgement.of(frame), now):
            self._progressed(now)
        self._loss_at = self.outgoing.find_lost(now)
        self._finish_if_done(now)

    def _close(self, now: float) -> None:
        outgoing, incoming = self.outgoing, self.incoming
        has_sent_all = outgoing.is_ended and outgoing.has_all_been_sent
        if not (has_sent_all and incoming.is_ended and incoming.delivered == incoming.received):
            raise ProtocolError("the other end closed the channel before its streams had ended")
        self._is_end_known = True
        outgoing.acknowledge_all()
        self._finish_if_done(now)
        self._say(Frame(FrameType.CLOSE, self.identity))

    def _finish_if_done(self, now: float) -> None:
        outgoing, incoming = self.outgoing, self.incoming
        is_done = outgoing.is_ended and not outgoing.is_outstanding
        if (
            self.state is ChannelState.OPEN
            and is_done
            and incoming.is_ended
            and incoming.delivered == incoming.received
        ):
            self.state = ChannelState.FINISHED
            self._rest()
            if self.opened_by_us:
                # After the last acknowledgement, which the other end need not wait for then.
                self._say(incoming.acknowledgement().frame(FrameType.ACK, self.identity))
                self._say(Frame(FrameType.CLOSE, self.identity))
                self._patience = PROBE_DELAY[0]
                self._wait_longer(now)

    def _heard(self, now: float) -> None:
        self.heard_at = now
        # While something is outstanding, only progress counts: the other direction may be busy when the last of ours is lost.
        if self.state is ChannelState.OPEN and not self.outgoing.is_outstanding:
            self._patience_ends = now + KEEPALIVE

    def _progressed(self, now: float) -> None:
        """Something outstanding has arrived, or is the first that is outstanding: be patient anew."""
        if self.state is not ChannelState.OPEN:
            return
        self._patience = PROBE_DELAY[0]
        least = min(2 * self.outgoing.estimator.longest, PROBE_DELAY[1])
        self._patience_ends = now + (max(self._patience, least) if self.outgoing.is_outstanding else KEEPALIVE)

    def _wait_longer(self, now: float) -> None:
        if self.state is ChannelState.OPEN and not self.outgoing.is_outstanding:
            self._patience_ends = now + KEEPALIVE
            return
        self._patience_ends = now + self._patience
        self._patience = min(self._patience * 2, PROBE_DELAY[1])


# Frames that an end which is over does not answer.
_LAST_WORDS = frozenset({FrameType.RESET, FrameType.UNKNOWN})


def _misplaced(frame: Frame) -> ProtocolError:
    return ProtocolError(f"a {frame.type.name} frame arrived where none may come; the channel is closed")


def _checked(frame: Frame) -> Frame:
    if frame.type is FrameType.FIN:
        if len(frame.payload) != DIGEST_SIZE:
            raise ProtocolError("the end of a stream arrived without its digest; the channel is closed")
    elif _length(frame) <= 0:
        raise ProtocolError("a frame without bytes of the stream arrived; the channel is closed")
    return frame
