"""What a destination's QEMU answers on a migration's main channel, and the answer that the source's QEMU is given without waiting for it.

    message   be16 type, be16 length, so many bytes
    PONG      answers the source's PING as the stream begins: from then on the source waits for a SHUT
    SHUT      be32 status, 0 if all was taken in: the last message. (QEMU: migration/migration.c, savevm.c)

Between two sites the wait for SHUT is a round trip in which the guest stands still, and it tells nobody anything: what says whether the
guest has arrived is the destination's libvirtd, which the source's asks next, by its FINISH call, and without whose yes the guest runs on
at the source. Before libvirt had QEMU answer at all, nothing else did. So once QEMU at the source has said all that it has to say, its
agent answers SHUT; the destination's agent holds FINISH until QEMU there has answered that all was taken in (`agent.traffic`).

Never before the stream is over: with SHUT QEMU 7.2 closes the connection, also to what it would still write.
"""

from __future__ import annotations

import struct
from enum import IntEnum


class Answer(IntEnum):
    """MIG_RP_MSG_..., as far as they are treated in a way of their own."""

    SHUT = 1
    PONG = 2


HEAD = struct.Struct(">HH")
STATUS = struct.Struct(">I")
TAKEN_IN = HEAD.pack(Answer.SHUT, STATUS.size) + STATUS.pack(0)


class ReturnPath:
    """Reads what the destination's QEMU says. Never raises, whatever the bytes are."""

    def __init__(self) -> None:
        # Whether a PONG was said: else the source does not wait for an answer.
        self.is_open = False
        # Of SHUT; None while that was not said.
        self.status: int | None = None
        # The beginning of a message, and how many bytes of one are passed over.
        self._head = bytearray()
        self._skip = 0

    @property
    def is_awaited(self) -> bool:
        """Whether QEMU is still to say what became of the guest."""
        return self.is_open and self.status is None

    @property
    def may_be_answered(self) -> bool:
        """Whether SHUT may come next."""
        return self.is_awaited and not self._head and not self._skip

    def read(self, data: bytes | bytearray | memoryview) -> None:
        """Take what was said next."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            wanted = self._wanted - len(self._head)
            self._head += data[at : at + wanted]
            at += min(wanted, len(data) - at)
            if len(self._head) == self._wanted:
                self._message()

    @property
    def _wanted(self) -> int:
        """How many bytes of a message say what it is: of SHUT all."""
        if len(self._head) < HEAD.size:
            return HEAD.size
        return HEAD.size + (STATUS.size if HEAD.unpack_from(self._head) == (Answer.SHUT, STATUS.size) else 0)

    def _message(self) -> None:
        kind, length = HEAD.unpack_from(self._head)
        if len(self._head) > HEAD.size:
            (self.status,) = STATUS.unpack_from(self._head, HEAD.size)
        elif (kind, length) == (Answer.SHUT, STATUS.size):
            return  # its status follows
        else:
            self.is_open = self.is_open or kind == Answer.PONG
            self._skip = length
        self._head.clear()
