"""The direction of a channel that this end receives: what has arrived, and in which order it is given on. Sans-I/O.

A repetition is recognized by its position, for segments are never cut anew; whatever overlaps in another way is refused.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from blake3 import blake3

from landbridge.errors import AlteredError, ProtocolError
from landbridge.frame import DIGEST_SIZE, MAX_RANGES, Acknowledgement, Frame, FrameType, Payload

# Bytes that are sent and not acknowledged, and that wait for a gap to be filled: the memory of one direction of one channel, and
# more than 1 Gbit/s carries in a round trip of 250 ms.
CEILING = 32 << 20
# Segments that are not acknowledged, and that wait for a gap to be filled: their memory beside their bytes, should they be small.
MOST_SEGMENTS = 8192


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes for the local socket; to be answered with `delivered` once they are written."""

    data: Payload


@dataclass(frozen=True, slots=True)
class EndOfData:
    """The far end sends no more, and all that it has sent arrived unaltered; to be answered with `delivered_eof`."""


class Incoming:
    """One direction of a channel, at the end that receives it."""

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

    @property
    def has_all_been_delivered(self) -> bool:
        """Whether the stream has ended, and all of it was given on and handed to the local socket."""
        return self.is_ended and self.delivered == self.received

    def receive(self, frame: Frame) -> list[Data | EndOfData]:
        """Take a frame with bytes of the stream. Raises ProtocolError."""
        start = frame.position
        end = start + _length(frame)
        self.owes_acknowledgement = True
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

    def _accept(self, frame: Frame) -> Data | EndOfData:
        if self.is_ended:
            raise ProtocolError("bytes arrived after the end of their stream; the channel is closed")
        data, digest = _parts(frame)
        self._digest.update(data)
        self.received += len(data) or 1
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
    """Bytes of the stream in a frame; its end counts as one. Raises ProtocolError for a frame that has none, or no digest."""
    if frame.type is FrameType.FIN:
        if len(frame.payload) != DIGEST_SIZE:
            raise ProtocolError("the end of a stream arrived without its digest; the channel is closed")
        return 1
    length = len(frame.payload) - (DIGEST_SIZE if frame.type is FrameType.DATA_CHECKED else 0)
    if length <= 0:
        raise ProtocolError("a frame without bytes of the stream arrived; the channel is closed")
    return length


def _parts(frame: Frame) -> tuple[Payload, bytes]:
    payload = memoryview(frame.payload)
    if frame.type is FrameType.DATA:
        return payload, b""
    return payload[:-DIGEST_SIZE], bytes(payload[-DIGEST_SIZE:])
