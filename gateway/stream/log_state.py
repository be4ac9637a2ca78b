"""What a gateway tells the other of its page log when they meet, so that both know what they have in common.

    offset  size       field
    0       1          version, 1
    1       1          1 if the log has ever survived a power failure, else 0
    2       4          capacity, in pages of each ring
    6       26 each    OUT, then IN: generation (16), next serial (8), count of ranges (2), each followed by its
            8 a range  ranges, the newest first: serials between it and what is newer (4), its length (4)

Network byte order. OUT and IN are those of the gateway that speaks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from gateway.stream.ring import GENERATION, NO_GENERATION, SPAN, first_of
from landbridge.errors import ProtocolError

# Of a ring with more ranges, the newest are told; what is in the others is not referred to any more.
MOST_RANGES = 1024
MOST_CAPACITY = (1 << 32) - 1
_START = struct.Struct("!BBI")
_RING = struct.Struct(f"!{GENERATION}sQH")
_RANGE = struct.Struct("!II")
_VERSION = 1
MOST_BYTES = _START.size + 2 * (_RING.size + MOST_RANGES * _RANGE.size)

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RingState:
    """One ring: its generation, the serial behind the newest, and the serials that are held, in order, as (first, behind the last)."""

    generation: bytes
    next: int
    ranges: Ranges

    def encode(self) -> bytes:
        """The ring as it is told, with its newest ranges."""
        told, at = [], self.next
        for first, end in self.ranges[: -MOST_RANGES - 1 : -1]:
            told.append(_RANGE.pack(at - end, end - first))
            at = first
        return _RING.pack(self.generation, self.next, len(told)) + b"".join(told)


@dataclass(frozen=True, slots=True)
class State:
    """A page log, as its gateway tells it."""

    # Whether pages newer than those it names may have been lost; else they are ones that it did not know of yet.
    is_torn: bool
    capacity: int
    out: RingState
    incoming: RingState

    def encode(self) -> bytes:
        """The message; at most MOST_BYTES."""
        return _START.pack(_VERSION, self.is_torn, self.capacity) + self.out.encode() + self.incoming.encode()

    @classmethod
    def decode(cls, raw: bytes | bytearray | memoryview) -> Self:
        """Raises ProtocolError if it is no state of a page log."""
        try:
            version, torn, capacity = _START.unpack_from(raw)
            if version != _VERSION:
                raise ProtocolError(f"the state of a page log came in version {version}; update the older gateway")
            out, at = _ring(raw, _START.size, capacity)
            incoming, at = _ring(raw, at, capacity)
        except struct.error as error:
            raise ProtocolError(f"the state of a page log ends after {len(raw)} bytes, before it is whole") from error
        if at != len(raw) or torn > 1 or not capacity or out.generation == NO_GENERATION:
            raise ProtocolError("the state of a page log contradicts itself")
        return cls(bool(torn), capacity, out, incoming)


def _ring(raw: bytes | bytearray | memoryview, at: int, capacity: int) -> tuple[RingState, int]:
    generation, following, count = _RING.unpack_from(raw, at)
    at += _RING.size
    first = 0 if generation == NO_GENERATION else first_of(generation)
    last = first if generation == NO_GENERATION else first + SPAN
    if not first <= following <= last or count > MOST_RANGES:
        raise ProtocolError("the state of a page log names serials that cannot be")
    ranges = []
    end = following
    for _ in range(count):
        gap, length = _RANGE.unpack_from(raw, at)
        at += _RANGE.size
        end -= gap
        ranges.append((end - length, end))
        end -= length
        if not length or end < max(first, following - capacity):
            raise ProtocolError("the state of a page log names serials that cannot be")
    return RingState(generation, following, tuple(reversed(ranges))), at
