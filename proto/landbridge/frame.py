"""Frames: what travels on every link, between agent and gateway and between two gateways.

A frame is a header of 20 bytes, network byte order, and a payload:

    offset  size  field
    0       1     version, 1
    1       1     type, see FrameType
    2       2     length of the hint section at the head of the payload; 0 in this version
    4       4     channel, a number that the side which opened the channel chose, valid on this link only
    8       8     position, see FrameType; 0 where it has no meaning
    16      4     length of the payload, at most MAX_PAYLOAD

Decoding is bounded: a header that breaks a rule raises ProtocolError before a byte of its payload is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from landbridge.errors import ProtocolError

VERSION = 1
HEADER = struct.Struct("!BBHIQI")
MAX_PAYLOAD = 1 << 20
MAX_REASON = 512


class FrameType(IntEnum):
    """What a frame says, and what its position means."""

    # A new channel; payload: ChannelOpen.
    OPEN = 1
    # The far end of the channel is connected; bytes may flow.
    ACCEPT = 2
    # Bytes of the stream; position: offset of the first of them.
    DATA = 3
    # All bytes before the position were handed to QEMU or libvirt.
    ACK = 4
    # No bytes follow in this direction; position: the stream's length.
    FIN = 5
    # The channel is over in both directions; payload: why, UTF-8.
    RESET = 6
    # Is the link alive? The answer is PONG with the same position. Channel 0.
    PING = 7
    PONG = 8


PAYLOAD_TYPES = frozenset({FrameType.OPEN, FrameType.DATA, FrameType.RESET})
LINK_TYPES = frozenset({FrameType.PING, FrameType.PONG})


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `position` as FrameType says, in bytes."""

    type: FrameType
    channel: int
    position: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame as it goes on the wire."""
        return HEADER.pack(VERSION, self.type, 0, self.channel, self.position, len(self.payload)) + self.payload

    def on_channel(self, channel: int) -> Frame:
        """The same frame under the number that the channel has on another link."""
        return Frame(self.type, channel, self.position, self.payload)

    def size(self) -> int:
        """Bytes on the wire."""
        return HEADER.size + len(self.payload)


def reset(channel: int, reason: str) -> Frame:
    """A RESET whose reason is cut to MAX_REASON bytes."""
    return Frame(FrameType.RESET, channel, 0, reason.encode()[:MAX_REASON])


def reason_of(frame: Frame) -> str:
    """The reason that a RESET carries; bytes that are not UTF-8 are replaced."""
    return frame.payload[:MAX_REASON].decode(errors="replace")


class FrameDecoder:
    """Bytes in, frames out. Owned by one reader; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> Iterator[Frame]:
        """Take bytes as they came; yields each frame that they complete. Raises ProtocolError; the link is then over."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEADER.size:
                version, kind, hints, channel, position, length = HEADER.unpack_from(buffer, at)
                frame_type = _checked_type(version, kind, hints, channel, length)
                end = at + HEADER.size + length
                if len(buffer) < end:
                    break
                with memoryview(buffer) as view:
                    payload = bytes(view[at + HEADER.size : end])
                at = end
                yield Frame(frame_type, channel, position, payload)
        finally:
            del buffer[:at]

    def incomplete(self) -> bool:
        """Whether bytes of an unfinished frame are held: true at the end of input means a torn link."""
        return bool(self._buffer)


def _checked_type(version: int, kind: int, hints: int, channel: int, length: int) -> FrameType:
    if version != VERSION:
        raise ProtocolError(
            f"a frame of version {version} arrived, and this end speaks version {VERSION}; update the older end"
        )
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise ProtocolError(f"a frame of unknown type {kind} arrived; update the older end") from None
    if hints:
        raise ProtocolError("a frame with hints arrived, and this end knows none; update the older end")
    if length > MAX_PAYLOAD or (length and frame_type not in PAYLOAD_TYPES):
        raise ProtocolError(
            f"a {frame_type.name} frame of {length} bytes arrived, more than its type allows; the link is closed"
        )
    if (channel == 0) is not (frame_type in LINK_TYPES):
        raise ProtocolError(f"a {frame_type.name} frame arrived on channel {channel}; the link is closed")
    return frame_type
