"""What a ram or disk channel carries: a stream of QEMU's, with hints to its pages.

The beginning of a page is kept back until its end comes, so that both go into one frame. What is said besides, and is treated in
a way of its own, is the business of `agent.memory` and of `agent.disk`.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from agent.stream.hinter import Hinter
from landbridge.channel import Channel
from landbridge.frame import Payload
from landbridge.link import POOL


class _Piece(NamedTuple):
    """Something for QEMU; of the other agent's, or said by this one in its place."""

    data: Payload
    is_ours: bool


class Pages:
    """Between QEMU's socket and its channel. Owned by the event loop."""

    def __init__(self, channel: Channel, kind: str) -> None:
        """`kind` of the channel: "ram" or "disk"."""
        self.hinter = Hinter(kind, is_client=channel.opened_by_us)
        # The beginning of a page, for whoever reads the socket to put before the next bytes.
        self.tail = b""
        self._channel = channel
        self._for_local: deque[_Piece] = deque()
        # Bytes of our own answers among it.
        self._unread = 0

    @property
    def room(self) -> int:
        """Bytes that may be read from the socket."""
        return self._channel.room - len(self.tail)

    @property
    def has_hidden_flushes(self) -> bool:
        """Whether the source's QEMU was told that it need not flush: then somebody else must."""
        return False

    @property
    def is_awaited(self) -> bool:
        """Whether the destination's QEMU is still to say what became of what it was given."""
        return False

    @property
    def has_failed(self) -> bool:
        """Whether it has said that it could not take that in."""
        return False

    @property
    def is_held(self) -> bool:
        """Whether QEMU may not be told of the end yet: something that has come is not written."""
        return bool(self._for_local)

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """Take the tail and what QEMU has said, the first bytes of room of POOL.

        Returns whether it is answered here, or has changed what is awaited or held. Raises an error of our tree, which ends the channel.
        """
        data = POOL.keep(room, length)
        hints, tail = self.hinter.hold(data)
        self.tail = bytes(data[len(data) - tail :])
        if tail == len(data):
            POOL.give(data)
        else:
            self._channel.send_data(data[: len(data) - tail], now, hints)
        return False

    def send_tail(self, now: float) -> None:
        """Nothing follows for now, and who wrote this may wait for an answer to it."""
        if self.tail:
            self.hinter.give_up_tail()
            tail, self.tail = self.tail, b""
            self._channel.send_data(tail, now)

    def from_channel(self, data: Payload, now: float) -> None:  # noqa: ARG002 - as Calls, which answers
        """Take what the other agent has sent. Raises an error of our tree, which ends the channel."""
        self.hinter.pass_by(data)
        self._keep(data)

    def _keep(self, data: Payload) -> None:
        self._for_local.append(_Piece(data, is_ours=False))

    def _answer(self, data: bytes) -> None:
        """Have QEMU be given this, behind all that has come."""
        self._for_local.append(_Piece(data, is_ours=True))
        self._unread += len(data)

    def next_for_local(self) -> Payload | None:
        """What QEMU is to be given next. Raises an error of our tree, which ends the channel."""
        return self._for_local[0].data if self._for_local else None

    def written(self, count: int) -> None:
        """Note that QEMU has taken so many bytes of it: they are delivered."""
        data, is_ours = self._for_local[0]
        if count < len(data):
            self._for_local[0] = _Piece(memoryview(data)[count:], is_ours)
        else:
            self._for_local.popleft()
        if is_ours:
            self._unread -= count
        else:
            if count == len(data):
                POOL.give(data)
            self._channel.delivered(count)

    def local_ended(self) -> None:
        """QEMU says no more; what is held from it need not be."""

    def forget_all(self) -> None:
        """The socket, or the channel, is of no more use."""
        self._for_local.clear()
        self.tail = b""
