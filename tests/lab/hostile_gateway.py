"""python -m tests.lab.hostile_gateway: the real gateway, but for one byte of one channel, which it flips on the way.

Links are TLS, so nobody but a gateway can alter a channel. This one is told by its environment:

    LANDBRIDGE_FLIP         ram or disk: the kind of the channel
    LANDBRIDGE_FLIP_FROM    bytes of it that stay as they are; it flips in the first large DATA frame after them that is fit

It flips once, and logs `hostile.flipped` with the channel and the position of the byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import structlog

from gateway.main import main
from gateway.tunnel.tunnel import Cargo, Tunnel
from landbridge.frame import Frame, FrameType
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

log = structlog.get_logger()

LARGE = 1024  # bytes: pages and blocks come in larger frames, answers on the same channel in smaller ones
# Bytes around the flipped one that must be mostly other than zero: between zero pages stands header after header, and a
# wrong header ends QEMU's job by itself, before anybody has compared a digest.
AROUND = 64


class Flipper:
    """Learns from OPEN frames which channels are of a kind; a frame in, the same or an altered one out."""

    def __init__(self, kind: str, start: int) -> None:
        self._kind = ChannelKind.Value(f"CHANNEL_KIND_{kind.upper()}")
        self._start = start
        self._channels: set[int] = set()
        self.flipped = False

    def __call__(self, frame: Frame) -> Frame:
        """What is sent in the place of a frame."""
        if frame.type is FrameType.OPEN:
            is_of_kind = ChannelOpen.FromString(bytes(frame.payload)).kind == self._kind
            (self._channels.add if is_of_kind else self._channels.discard)(frame.channel)
        elif not self.flipped and self._is_meant(frame):
            middle = len(frame.payload) // 2
            if frame.position >= self._start and _is_dense(bytes(frame.payload), middle):
                return self._flip(frame, middle)
        return frame

    def _is_meant(self, frame: Frame) -> bool:
        return frame.channel in self._channels and frame.type.name.startswith("DATA") and len(frame.payload) >= LARGE

    def _flip(self, frame: Frame, at: int) -> Frame:
        altered = bytearray(frame.payload)
        altered[at] ^= 0x01
        self.flipped = True
        log.warning("hostile.flipped", channel=frame.channel, position=frame.position + at)
        return frame._replace(payload=bytes(altered))


def _is_dense(payload: bytes, at: int) -> bool:
    return bytes(payload[at - AROUND // 2 : at + AROUND // 2]).count(0) < AROUND // 4


def install(alter: Callable[[Frame], Frame]) -> None:
    """The one hook: a frame that the gateway puts into a tunnel."""
    put = Tunnel.put

    def put_altered(self: Tunnel, frame: Frame, cargo: Cargo) -> bool:
        return put(self, alter(frame), cargo)

    Tunnel.put = put_altered  # type: ignore[method-assign]  # that is what it is for


if __name__ == "__main__":
    install(Flipper(os.environ["LANDBRIDGE_FLIP"], int(os.environ["LANDBRIDGE_FLIP_FROM"])))
    main()
