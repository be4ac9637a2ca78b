"""What a ram channel carries: pages, and what the destination's QEMU answers, or its agent in its place (`agent.stream.return_path`)."""

from __future__ import annotations

from agent.pages import Pages
from agent.stream.return_path import TAKEN_IN, ReturnPath
from landbridge.channel import Channel
from landbridge.frame import Payload
from landbridge.link import POOL


class Memory(Pages):
    """Between QEMU's socket and a ram channel."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, "ram")
        self._answers = ReturnPath()
        # Whether there was an answer of our own: then nothing follows it.
        self._has_answered = False

    @property
    def is_awaited(self) -> bool:
        """Whether the destination's QEMU is still to say what became of the memory that it was given."""
        return self._answers.is_awaited and not self._has_answered

    @property
    def has_failed(self) -> bool:
        """Whether it has said that it could not take it in."""
        return bool(self._answers.status)

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """See `Pages`."""
        if not self._channel.opened_by_us:
            self._answers.read(room[len(self.tail) : length])
        super().from_local(room, length, now)
        if self.hinter.is_over and self._answers.may_be_answered and not self._has_answered:
            # The source's QEMU has said all, and may go.
            self._answer(TAKEN_IN)
            self._has_answered = True
            return True
        return self._answers.status is not None

    def from_channel(self, data: Payload, now: float) -> None:
        """See `Pages`."""
        if self._has_answered:  # the source's QEMU listens no more
            self.hinter.pass_by(data)
            self._channel.delivered(len(data))
            POOL.give(data)
            return
        if self._channel.opened_by_us:
            self._answers.read(data)
        super().from_channel(data, now)
