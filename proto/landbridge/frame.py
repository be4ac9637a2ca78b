"""Frames: what travels on every link, between agent and gateway and between two gateways.

A frame is a header of 24 bytes, network byte order, and a payload:

    offset  size  field
    0       1     version, 2
    1       1     type, see FrameType
    2       2     length of the hint section at the head of the payload, at most MAX_HINTS; only in frames with bytes of a stream
    4       4     length of the payload, hints included, at most MAX_PAYLOAD
    8       8     channel: a random number that the opening agent chose, the same on every link of its way; 0 for the link itself
    16      8     position, see FrameType; 0 where it has no meaning

Links may lose, repeat and reorder frames; `landbridge.channel` makes a stream of them. Decoding is bounded: a header that breaks
a rule raises ProtocolError before a byte of its payload is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from landbridge.errors import ProtocolError

VERSION = 2
HEADER = struct.Struct("!BBHIQQ")
# A TLS record: what OpenSSL writes at once, and a small one costs nearly as much as a full one.
RECORD = 16 << 10
# Hints and all: 256 KiB of a stream, a digest, and the hints to it.
MAX_HINTS = 16 << 10
MAX_PAYLOAD = (256 << 10) + MAX_HINTS + 32
MAX_SMALL_PAYLOAD = 2048
MAX_REASON = 512
# Two rings of a page log, with a thousand ranges each.
MAX_LOG_STATE = 20 << 10

# A pool has buffers of one size. A smaller payload gets memory of its own: what is kept, behind a gap or until it is
# acknowledged, takes at most twice its bytes. And it keeps so many spare buffers at most: 8 MiB.
LARGE = MAX_PAYLOAD // 2
SPARE = 32

# Bytes of a digest of a stream: BLAKE3.
DIGEST_SIZE = 32

Payload = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """What a frame says, and what its position means."""

    # Enum's own is a call of Python code, several times for each frame.
    __hash__ = int.__hash__

    # A new channel, or the same one on a new way; payload: ChannelOpen.
    OPEN = 1
    # The far end of the channel is connected; bytes may flow. Payload and position as of ACK.
    ACCEPT = 2
    # Bytes of the stream; position: offset of the first of them.
    DATA = 3
    # The same, followed by the digest of the whole stream up to the end of these bytes.
    DATA_CHECKED = 4
    # All bytes before the position were handed to QEMU or libvirt; payload: Acknowledgement.
    ACK = 5
    # No bytes follow in this direction; position: the stream's length; payload: its digest.
    FIN = 6
    # The channel is over in both directions; payload: why, UTF-8.
    RESET = 7
    # From the opener: the channel has ended in both directions. The same comes back from the other end, for each; with that one,
    # the channel can be forgotten on the way.
    CLOSE = 8
    # Whoever says so knows nothing of the channel: its opener is to open it again. Payload: why, UTF-8, or nothing.
    UNKNOWN = 9
    # Which bytes have arrived? Answered by an ACK with the same number; position: the number. Keeps its place among data.
    PROBE = 10
    # Is the link alive? The answer is PONG with the same position. Channel 0.
    PING = 11
    PONG = 12
    # Between gateways: DATA or DATA_CHECKED, coded by the page log (`gateway.tunnel.codec`); position: as of what is coded.
    CODED = 13
    # Between gateways, of the page log that they have in common; channel 0. What it holds; what has arrived of it; and that a
    # frame did not fit it, with the reason.
    LOG_STATE = 14
    LOG_ACK = 15
    LOG_FORGET = 16


# Frames that carry bytes of a stream, and grow with it; they wait for each other on the way.
BULK_TYPES = frozenset({FrameType.DATA, FrameType.DATA_CHECKED, FrameType.FIN, FrameType.PROBE, FrameType.CODED})
# What may be coded.
CODED_TYPES = frozenset({FrameType.DATA, FrameType.DATA_CHECKED})
LOG_TYPES = frozenset({FrameType.LOG_STATE, FrameType.LOG_ACK, FrameType.LOG_FORGET})
LINK_TYPES = frozenset({FrameType.PING, FrameType.PONG}) | LOG_TYPES
_TYPES = {int(each): each for each in FrameType}
_MAX_PAYLOADS = {
    FrameType.OPEN: MAX_SMALL_PAYLOAD,
    FrameType.ACCEPT: MAX_SMALL_PAYLOAD,
    FrameType.DATA: MAX_PAYLOAD,
    FrameType.DATA_CHECKED: MAX_PAYLOAD,
    FrameType.ACK: MAX_SMALL_PAYLOAD,
    FrameType.FIN: DIGEST_SIZE,
    FrameType.RESET: MAX_REASON,
    FrameType.UNKNOWN: MAX_REASON,
    FrameType.CODED: MAX_PAYLOAD,
    FrameType.LOG_STATE: MAX_LOG_STATE,
    FrameType.LOG_ACK: MAX_SMALL_PAYLOAD,
    FrameType.LOG_FORGET: MAX_REASON,
}


class Frame(NamedTuple):
    """One frame; `position` as FrameType says, in bytes. `hints` is the section at the head of the payload, opaque here.

    A tuple, for a frozen dataclass takes three times as long to make.
    """

    type: FrameType
    channel: int
    position: int = 0
    payload: Payload = b""
    hints: Payload = b""

    def header(self) -> bytes:
        """The header as it goes on the wire; hints and payload follow it."""
        hints = len(self.hints)
        return HEADER.pack(VERSION, self.type, hints, hints + len(self.payload), self.channel, self.position)

    def encode(self) -> bytes:
        """The frame as it goes on the wire."""
        return b"".join((self.header(), self.hints, self.payload))

    def size(self) -> int:
        """Bytes on the wire."""
        return HEADER.size + len(self.hints) + len(self.payload)


def reset(channel: int, reason: str) -> Frame:
    """A RESET whose reason is cut to MAX_REASON bytes."""
    return Frame(FrameType.RESET, channel, 0, reason.encode()[:MAX_REASON])


def reason_of(frame: Frame) -> str:
    """The reason that a RESET carries; bytes that are not UTF-8 are replaced."""
    return bytes(frame.payload[:MAX_REASON]).decode(errors="replace")


# What an ACK carries beside its position.

_ACKNOWLEDGEMENT = struct.Struct("!QI")
_RANGE = struct.Struct("!QQ")
MAX_RANGES = 32


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What an end of a channel has of the other's stream, as offsets of bytes."""

    # All bytes before it were handed to QEMU or libvirt; the end of the stream counts as one byte.
    delivered: int
    # All bytes before it have arrived.
    received: int
    # The number of the last PROBE that has arrived.
    probe: int = 0
    # Bytes after `received` that have arrived: the first MAX_RANGES ranges, in order.
    ranges: tuple[tuple[int, int], ...] = ()

    def frame(self, kind: FrameType, channel: int) -> Frame:
        """The ACK or ACCEPT that says so."""
        parts = [_ACKNOWLEDGEMENT.pack(self.received, self.probe)]
        parts += [_RANGE.pack(*each) for each in self.ranges[:MAX_RANGES]]
        return Frame(kind, channel, self.delivered, b"".join(parts))

    @classmethod
    def of(cls, frame: Frame) -> Acknowledgement:
        """What an ACK or ACCEPT says. Raises ProtocolError."""
        payload = bytes(frame.payload)
        rest = len(payload) - _ACKNOWLEDGEMENT.size
        if rest < 0 or rest % _RANGE.size or rest // _RANGE.size > MAX_RANGES:
            raise ProtocolError(f"an acknowledgement of {len(payload)} bytes arrived; the channel is closed")
        received, probe = _ACKNOWLEDGEMENT.unpack_from(payload)
        ranges = tuple((start, end) for start, end in _RANGE.iter_unpack(payload[_ACKNOWLEDGEMENT.size :]))
        at = received
        for start, end in ranges:
            if not at < start < end:
                raise ProtocolError("an acknowledgement contradicts itself; the channel is closed")
            at = end
        if frame.position > received:
            raise ProtocolError("bytes were acknowledged before they arrived; the channel is closed")
        return cls(frame.position, received, probe, ranges)


class Pool:
    """Buffers for the payloads of large frames, used again: fresh memory costs about as much as decrypting into it.

    Whoever is done with a frame may give its payload back, once, and must not look at it afterwards. What is never given back is
    freed as anything is.
    """

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """Room for so many bytes, at most MAX_PAYLOAD; what is in it is left over from before."""
        if length < LARGE:
            return memoryview(bytearray(length))
        return memoryview(self._spare.pop() if self._spare else bytearray(MAX_PAYLOAD))[:length]

    def keep(self, room: memoryview, length: int) -> memoryview:
        """The first bytes of what was taken, of which no more is needed: in memory of their own, if they are few."""
        held = len(room) if len(room) < LARGE else MAX_PAYLOAD
        if 2 * length >= held:
            return room[:length]
        kept = memoryview(bytes(room[:length]))
        self.give(room)
        return kept

    def give(self, payload: Payload) -> None:
        """Take a payload back, if it is from a pool."""
        buffer = payload.obj if isinstance(payload, memoryview) else None
        if isinstance(buffer, bytearray) and len(buffer) == MAX_PAYLOAD and len(self._spare) < SPARE:
            self._spare.append(buffer)


class FrameDecoder:
    """Bytes in, frames out, each byte copied once: to where the frame keeps it. Owned by one reader.

    Write up to `len(buffer())` bytes into `buffer()`, say how many with `received`, and take the frame if they completed one.
    """

    def __init__(self, pool: Pool | None = None) -> None:
        self._pool = pool
        self._head = bytearray(HEADER.size)
        self._view = memoryview(self._head)
        self._have = 0
        self._frame: tuple[FrameType, int, int, int] | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._have :]

    def received(self, count: int) -> Frame | None:
        """Note that `count` bytes were written there. Raises ProtocolError; the link is then over."""
        self._have += count
        if self._have < len(self._view):
            return None
        if self._frame is None:
            version, kind, hints, length, channel, position = HEADER.unpack(self._head)
            frame_type = _checked_type(version, kind, hints, length, channel)
            if length == 0:
                self._have = 0
                return Frame(frame_type, channel, position)
            self._frame = (frame_type, channel, position, hints)
            self._view = memoryview(bytearray(length)) if self._pool is None else self._pool.take(length)
            self._have = 0
            return None
        frame_type, channel, position, hints = self._frame
        view, self._frame = self._view, None
        self._view, self._have = memoryview(self._head), 0
        return Frame(frame_type, channel, position, view[hints:], view[:hints])

    def receive_data(self, data: bytes) -> list[Frame]:
        """Take bytes as they came; the frames that they complete. Raises ProtocolError."""
        frames, at = [], 0
        while at < len(data):
            buffer = self.buffer()
            count = min(len(buffer), len(data) - at)
            buffer[:count] = data[at : at + count]
            at += count
            if (frame := self.received(count)) is not None:
                frames.append(frame)
        return frames

    def incomplete(self) -> bool:
        """Whether bytes of an unfinished frame are held: true at the end of input means a torn link."""
        return self._have > 0 or self._frame is not None


def _checked_type(version: int, kind: int, hints: int, length: int, channel: int) -> FrameType:
    if version != VERSION:
        raise ProtocolError(
            f"a frame of version {version} arrived, and this end speaks version {VERSION}; update the older end"
        )
    frame_type = _TYPES.get(kind)
    if frame_type is None:
        raise ProtocolError(f"a frame of unknown type {kind} arrived; update the older end")
    if hints > min(length, MAX_HINTS) or (hints and frame_type not in CODED_TYPES):
        raise ProtocolError(f"a {frame_type.name} frame with {hints} bytes of hints arrived; the link is closed")
    if length > _MAX_PAYLOADS.get(frame_type, 0):
        raise ProtocolError(
            f"a {frame_type.name} frame of {length} bytes arrived, more than its type allows; the link is closed"
        )
    if (channel == 0) is not (frame_type in LINK_TYPES):
        raise ProtocolError(f"a {frame_type.name} frame arrived on channel {channel}; the link is closed")
    return frame_type
