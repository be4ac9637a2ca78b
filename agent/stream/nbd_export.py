"""Changes what a server of NBD promises of its export: two flags of 16, on the way to the client.

SEND_FLUSH      The destination's agent takes it out, so that the source's QEMU asks for no flush over the WAN. In the switch-over, while
                the guest stands still, QEMU flushes the copy of each disk three times, one after the other: as it stops the guest, and as
                it takes the copy's two layers away. Each flush is a round trip between the sites. All that they are for is that the
                destination's host has on stable storage what the guest's own disk had; and that host can see to it by itself, once,
                before the guest may arrive (`agent.storing`). To a client, an export without the flag need not be flushed.
WRITE_BEHIND    One of ours, a bit that NBD leaves free: the destination's agent puts it in, and says with it that it keeps writes in
                their order, and answers none that were well (`agent.stream.nbd_writes`). The source's agent takes it out again.

Only the server's haggling is read: a greeting, answers to options, and in that to GO the export's flags. Whatever else comes, an encrypted
session or what is no NBD, passes as it is. Format: NetworkBlockDevice/nbd, doc/proto.md.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.stream.nbd import (
    ACK,
    EXPORT_INFO,
    GREETING,
    GREETING_MAGICS,
    INFO,
    INFO_EXPORT,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Option,
)

# What an answer with information begins with: its kind, which is INFO_EXPORT where the export's size and flags follow.
INFO_SIZE = 2
FLAGS_SIZE = 2
SEND_FLUSH = 1 << 2
WRITE_BEHIND = 1 << 15


class ExportFlags:
    """One export, as its server tells of it. Owned by whoever carries its bytes."""

    def __init__(self, *, clear: int, add: int = 0) -> None:
        """`clear` and `add` are flags."""
        # The flags as they came, and whether they have. Whether nothing is edited any more.
        self.said = 0
        self.is_known = False
        self.is_over = False
        self._clear, self._add = clear, add
        # Bytes that pass before the next header, and how many bytes of flags come then; and the bytes that follow those.
        self._skip = 0
        self._flags_left = 0
        self._after_flags = 0
        # Of the answer that is being read, without its header.
        self._length = 0
        self._head = bytearray()
        self._size = GREETING.size
        self._then: Callable[[bytes], None] = self._greeting

    def edit(self, data: bytearray | memoryview) -> None:
        """Take the next bytes that the server has said, and change them in place."""
        at = 0
        while at < len(data) and not self.is_over:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            elif self._flags_left:
                self._edit_flags(data, at)
                at += 1
            else:
                part = data[at : at + self._size - len(self._head)]
                self._head += part
                at += len(part)
                if len(self._head) == self._size:
                    whole, self._head = bytes(self._head), bytearray()
                    self._then(whole)

    def _edit_flags(self, data: bytearray | memoryview, at: int) -> None:
        self._flags_left -= 1
        shift = 8 * self._flags_left
        self.said = self.said & ~(0xFF << shift) | data[at] << shift
        data[at] = (data[at] & ~(self._clear >> shift) | self._add >> shift) & 0xFF
        if not self._flags_left:
            self.is_known = True
            self._skip = self._after_flags

    def _expect(self, size: int, then: Callable[[bytes], None]) -> None:
        self._size, self._then = size, then

    def _greeting(self, head: bytes) -> None:
        first, second, _flags = GREETING.unpack(head)
        self.is_over = (first, second) != GREETING_MAGICS
        self._expect(OPTION_REPLY.size, self._option_reply)

    def _option_reply(self, head: bytes) -> None:
        magic, option, kind, self._length = OPTION_REPLY.unpack(head)
        if magic != OPTION_REPLY_MAGIC or option == Option.STARTTLS or (option, kind) == (Option.GO, ACK):
            self.is_over = True
        elif option == Option.GO and kind == INFO and self._length >= INFO_SIZE + EXPORT_INFO.size:
            self._expect(INFO_SIZE, self._info)
        else:
            self._skip = self._length

    def _info(self, head: bytes) -> None:
        self._expect(OPTION_REPLY.size, self._option_reply)
        if int.from_bytes(head, "big") == INFO_EXPORT:
            self._skip, self._flags_left = EXPORT_INFO.size - FLAGS_SIZE, FLAGS_SIZE
            self._after_flags = self._length - INFO_SIZE - EXPORT_INFO.size
        else:
            self._skip = self._length - INFO_SIZE
