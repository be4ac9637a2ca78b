"""What a ram or disk channel carries: a stream of QEMU's, with hints to its pages.

The beginning of a page is kept back until its end comes, so that both go into one frame.
"""

from __future__ import annotations

from collections import deque

from agent.stream.hinter import Hinter
from agent.stream.nbd_flush import FlushHider
from agent.stream.return_path import TAKEN_IN, ReturnPath
from landbridge.channel import Channel
from landbridge.frame import Payload
from landbridge.link import POOL


class Pages:
    """Between QEMU's socket and its channel. Owned by the event loop."""

    def __init__(self, channel: Channel, kind: str, *, hides_flushes: bool) -> None:
        """`hides_flushes` at the destination of a disk, where the source's QEMU is to be kept from flushing."""
        self.hinter = Hinter(kind, is_client=channel.opened_by_us)
        # The beginning of a page, for whoever reads the socket to put before the next bytes.
        self.tail = b""
        self._channel = channel
        self._promise = FlushHider() if hides_flushes else None
        self._answers = ReturnPath() if kind == "ram" else None
        self._for_local: deque[Payload] = deque()
        # What is left of an answer of our own, behind all that, and whether there was one: then nothing follows it.
        self._answer: Payload = b""
        self._has_answered = False

    @property
    def has_hidden_flushes(self) -> bool:
        """Whether the source's QEMU was told that it need not flush: then somebody else must."""
        return self._promise is not None and self._promise.has_hidden

    @property
    def is_awaited(self) -> bool:
        """Whether the destination's QEMU is still to say what became of the memory that it was given."""
        return self._answers is not None and self._answers.is_awaited and not self._has_answered

    @property
    def has_failed(self) -> bool:
        """Whether it has said that it could not take it in."""
        return self._answers is not None and bool(self._answers.status)

    @property
    def room(self) -> int:
        """Bytes that may be read from the socket."""
        return self._channel.room - len(self.tail)

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """Take the tail and what QEMU has said, the first bytes of room of POOL.

        Returns whether it is answered here, or was the last word of a destination's.
        """
        if self._promise is not None:
            self._promise.edit(room[len(self.tail) : length])
        if self._answers is not None and not self._channel.opened_by_us:
            self._answers.read(room[len(self.tail) : length])
        data = POOL.keep(room, length)
        hints, tail = self.hinter.hold(data)
        self.tail = bytes(data[len(data) - tail :])
        if tail == len(data):
            POOL.give(data)
        else:
            self._channel.send_data(data[: len(data) - tail], now, hints)
        if self._answers is None:
            return False
        if self.hinter.is_over and self._answers.may_be_answered and not self._has_answered:
            # The source's QEMU has said all, and may go.
            self._answer, self._has_answered = TAKEN_IN, True
            return True
        return self._answers.status is not None

    def send_tail(self, now: float) -> None:
        """Nothing follows for now, and who wrote this may wait for an answer to it."""
        if self.tail:
            self.hinter.give_up_tail()
            tail, self.tail = self.tail, b""
            self._channel.send_data(tail, now)

    def from_channel(self, data: Payload, now: float) -> None:  # noqa: ARG002 - as Calls, which answers
        """Take what the other agent has sent."""
        self.hinter.pass_by(data)
        if self._has_answered:  # the source's QEMU listens no more
            self._channel.delivered(len(data))
            POOL.give(data)
            return
        if self._answers is not None and self._channel.opened_by_us:
            self._answers.read(data)
        self._for_local.append(data)

    def next_for_local(self) -> Payload | None:
        """What QEMU is to be given next."""
        return self._for_local[0] if self._for_local else self._answer or None

    def written(self, count: int) -> None:
        """Note that QEMU has taken so many bytes of it: they are delivered."""
        if not self._for_local:
            self._answer = self._answer[count:]
            return
        data = self._for_local[0]
        if count < len(data):
            self._for_local[0] = memoryview(data)[count:]
        else:
            self._for_local.popleft()
            POOL.give(data)
        self._channel.delivered(count)

    def forget_all(self) -> None:
        """The socket, or the channel, is of no more use."""
        self._for_local.clear()
        self.tail = self._answer = b""
