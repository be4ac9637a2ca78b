"""The direction of a channel that this end sends: what is kept, what is lost, what goes next. Sans-I/O.

What is lost (theory):

A segment is kept until it is acknowledged as *delivered*: handed to QEMU or libvirtd, not merely received. Beside that position,
an acknowledgement says what was received, as an offset and a few ranges. There are three ways to learn that a segment is lost:

    overtaken   one that was sent later has arrived, and this one is overdue: more than `loss delay` has passed since it was
                sent (RACK, RFC 8985). The loss delay is the smoothed round trip and four deviations, as RFC 6298 computes
                them, and at least three round trips, so that a frame which waits for TCP to mend its link is not sent twice. It
                needs no back-off: what has overtaken tells how long the way takes now, and in a queue that keeps its order
                nothing is overtaken.
    probed      no segment was found to have arrived for a while although something is outstanding, whatever else is heard: a
                PROBE is sent, which keeps its place among the data. Its answer makes the segments before it overtaken.
    re-opened   the way has changed (a gateway has died, or has forgotten the channel): what was sent on the old one is lost. The
                end that opens hears what has arrived with the ACCEPT; the other one with the next ACK, and until then what it
                had sent counts as overtaken.

So recovery has one path: whatever has failed, segments are sent again from the least one that is missing, at most one window of
them. Segments are never cut anew, so that a receiver recognizes a repetition by its position.

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
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from landbridge.errors import ProtocolError
from landbridge.estimator import SMALLEST_SEGMENT, Estimator
from landbridge.frame import Acknowledgement, Frame, FrameType, Payload
from landbridge.receiving import CEILING, MOST_SEGMENTS

# Bytes read from the local socket that may wait for the link to take them, or two segments if these are larger.
UNSENT = 128 << 10
# Bytes after which a digest goes with the data, so that an alteration is found early and located.
CHECKPOINT = 4 << 20
# PROBEs of which an answer is still of use: more than are sent in the longest round trip that LOSS_DELAY can follow.
PROBES = 16


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


class Outgoing:
    """One direction of a channel, at the end that sends it."""

    def __init__(self) -> None:
        self.estimator = Estimator()
        # Offsets: bytes taken from the local socket, and bytes that the far end has delivered.
        self.position = 0
        self.acknowledged = 0
        self.is_ended = False
        # When the next segment is lost, as far as is known.
        self.loss_at: float | None = None
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
        return self.acknowledged < self.position + self.is_ended

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
        self.find_lost(now)
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

    def find_lost(self, now: float) -> None:
        """Note which segments are lost by now."""
        self.loss_at = None
        while self._flight:
            segment = next(iter(self._flight.values()))
            if segment.order >= self._newest:
                break
            due = segment.sent_at + self.estimator.loss_delay
            if due > now:
                self.loss_at = due
                break
            self._lose_first()

    def overtake_all(self) -> None:
        """Note that all that is under way is overtaken: when it is lost is seen at the next acknowledgement."""
        self._newest = self._order + 1
        self.loss_at = None

    def lose_all(self) -> None:
        """Note that all that is under way is lost."""
        while self._flight:
            self._lose_first()
        self.loss_at = None

    def acknowledge_all(self) -> None:
        """The far end has said in another way that it has everything."""
        self.acknowledged = self.end
        self.forget_all()

    def forget_all(self) -> None:
        """Nothing is sent any more."""
        for queue in (self._segments, self._missing, self._unsent, self._flight, self._lost):
            queue.clear()
        self._unsent_bytes = 0

    @property
    def has_all_been_sent(self) -> bool:
        """Whether the stream has ended, and all of it was sent at least once."""
        return self.is_ended and not self._unsent

    def _lose_first(self) -> None:
        start, segment = self._flight.popitem(last=False)
        heapq.heappush(self._lost, (start, segment))
