"""What a disk channel carries: NBD, with writes that the source's QEMU need not wait for, and no flush.

Both are agreed on by flags of the export that the destination's agent changes (`agent.stream.nbd_export`), where the move's agent there
sees to it that all is stored before the guest may arrive.
"""

from __future__ import annotations

import os

from agent.pages import Pages
from agent.stream.nbd import Request
from agent.stream.nbd_export import SEND_FLUSH, WRITE_BEHIND, ExportFlags
from agent.stream.nbd_writes import Answering, Ordering
from landbridge.channel import Channel
from landbridge.errors import HypervisorError, ProtocolError
from landbridge.frame import Payload
from landbridge.link import POOL

# Bytes of the source's that the destination's agent reads ahead of what QEMU may be given: so many requests it remembers at most.
LOOK_AHEAD = 1 << 16
# Bytes of answers that QEMU may leave unread before its requests are not read any more; it has 16 requests under way at most.
MOST_UNREAD = 1 << 12


class SourceDisk(Pages):
    """Between QEMU's socket and a disk channel, at the source."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, "disk")
        self._export = ExportFlags(clear=WRITE_BEHIND)
        self._answering = Answering()
        # Answers for which there was no place yet between two of the server's.
        self._answers = b""
        self.hinter.nbd.on_request = self._requested

    @property
    def _is_behind(self) -> bool:
        return bool(self._export.said & WRITE_BEHIND) and _tells_reads(self)

    def _requested(self, request: Request) -> None:
        if self._is_behind:
            self._answering.request(request)

    @property
    def room(self) -> int:
        """See `Pages`."""
        return super().room if self._unread + len(self._answers) < MOST_UNREAD else 0

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """See `Pages`. Raises ProtocolError if what was answered is not understood any more."""
        super().from_local(room, length, now)
        if not self._is_behind:
            return False
        _require_understood(self)
        nbd = self.hinter.nbd
        self._answers += self._answering.answers(nbd.client_position, is_extended=nbd.is_extended)
        return self._say_answers()

    def from_channel(self, data: Payload, now: float) -> None:
        """See `Pages`. Raises ProtocolError as `from_local`."""
        if not self._export.is_over:
            edited = bytearray(data)
            POOL.give(data)
            self._export.edit(edited)
            data = edited
        super().from_channel(data, now)
        if self._is_behind:
            _require_understood(self)
            self._say_answers()

    def _say_answers(self) -> bool:
        if not self._answers or not self.hinter.nbd.is_between_replies:
            return False
        self._answer(self._answers)
        self._answers = b""
        return True


class DestinationDisk(Pages):
    """Between QEMU's socket and a disk channel, at the destination."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, "disk")
        self._export = ExportFlags(clear=SEND_FLUSH, add=WRITE_BEHIND)
        self._ordering = Ordering()
        # What may still become an answer that is for nobody.
        self._undecided = b""
        # Bytes of the source's that QEMU has, that it may be given, and that were read here.
        self._given = self._allowed = self._read = 0
        # Whether QEMU has ended, and whether it was given something after that.
        self._has_ended = self._is_in_vain = False
        self.hinter.nbd.on_request, self.hinter.nbd.on_reply = self._requested, self._ordering.reply

    @property
    def _is_behind(self) -> bool:
        return self._export.is_known and _tells_reads(self)

    def _requested(self, request: Request) -> None:
        if self._is_behind:
            self._ordering.request(request)

    @property
    def has_hidden_flushes(self) -> bool:
        """See `Pages`."""
        return bool(self._export.said & SEND_FLUSH)

    @property
    def is_awaited(self) -> bool:
        """Whether QEMU has not written all that it was given."""
        return self._ordering.is_awaited or self._is_in_vain

    @property
    def is_held(self) -> bool:
        """See `Pages`: nor does QEMU hear of the end before it has written all, for then it would not answer any more."""
        return super().is_held or (self._ordering.is_awaited and not self._has_ended)

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """See `Pages`. Raises HypervisorError if a write has failed, ProtocolError if they are not understood any more."""
        nbd = self.hinter.nbd
        self._export.edit(room[:length])
        position = nbd.server_position - len(self._undecided)
        said = self._undecided + room[:length]
        POOL.give(room)
        # No block is kept back for the next piece: the source reads none, but for a test.
        hints, _ = self.hinter.hold(said[len(self._undecided) :])
        self.hinter.give_up_tail()
        if not self._is_behind:
            self._channel.send_data(said, now, hints)
            return False
        _require_understood(self)
        end = nbd.server_position - nbd.undecided
        for piece in self._ordering.onward(said, position, end):
            # A hint goes by where it stands in what was read.
            self._channel.send_data(piece, now, hints if piece == said and not self._undecided else b"")
        self._undecided = said[end - position :]
        if self._ordering.error:
            raise HypervisorError(
                f"the destination could not write a disk ({os.strerror(self._ordering.error)}); see to its storage"
            )
        return True

    def from_channel(self, data: Payload, now: float) -> None:  # noqa: ARG002 - as Calls, which answers
        """See `Pages`."""
        self._keep(data)

    def next_for_local(self) -> Payload | None:
        """See `Pages`: what QEMU may be given by now. Raises ProtocolError as `from_local`."""
        data = super().next_for_local()
        if data is None or self._has_ended:
            return data
        if self._read == self._given:
            ahead = memoryview(data)[:LOOK_AHEAD]
            self.hinter.pass_by(ahead)
            if self._is_behind:
                _require_understood(self)
            self._read += len(ahead)
        if self._allowed == self._given:
            self._allowed = self._ordering.allowed(self._given, self._read)
        count = self._allowed - self._given
        return memoryview(data)[:count] if count else None

    def written(self, count: int) -> None:
        """See `Pages`."""
        self._given += count
        self._is_in_vain = self._is_in_vain or self._has_ended
        super().written(count)

    def local_ended(self) -> None:
        """QEMU says no more: it is of no use to hold anything from it."""
        self._has_ended = True


def _tells_reads(pages: Pages) -> bool:
    # A simple reply does not say what it answers but by its cookie; and those of writes are used again before they are answered.
    nbd = pages.hinter.nbd
    return nbd.is_structured or nbd.is_extended


def _require_understood(pages: Pages) -> None:
    # Writes were answered, or are to be: nobody else would answer them.
    if not pages.hinter.understood:
        raise ProtocolError(f"a disk's NBD session is not understood ({pages.hinter.why}); report this")
