"""Writes of a disk's copy that the source's QEMU need not wait for: write-behind, with NBD, between two agents.

QEMU calls a copy complete, and libvirt goes on to the memory, in a moment in which nothing of it is under way. A request to write is under
way until it is answered, a round trip over the WAN at least: of a guest that writes to its disk more often than that, there is no such
moment, and its migration does not come to its memory.

    source's QEMU      request  ──>  Answering: answered once the agent has all of it  ──>  channel
    destination's QEMU request  <──  Ordering: held while it depends on what is under way   <──  channel
                       answer   ──>  Ordering: not passed on; an error ends the channel

What NBD demands stays true. A server may do requests that are under way together in any order, so a client sends none that depends on
another before that one is answered; which the source's QEMU believes. So the destination's agent holds a request that touches what is
being written, and any that does not write, until all before it is done: above all the request to disconnect, behind which the server
answers nothing any more. Whether all was written well is asked of the destination's agent before the guest may arrive, and not of the
source's QEMU.

Both ends have agreed on it by a flag of the export (`agent.stream.nbd_export`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from agent.stream.nbd import (
    DONE,
    EXTENDED_MAGIC,
    EXTENDED_REPLY,
    NO_CONTENT,
    REPLY,
    SIMPLE_MAGIC,
    Command,
    Reply,
    Request,
)

# With a request for zeroes: to be refused rather than done slowly. The client goes by the answer.
FAST_ZERO = 1 << 4
# Bytes of zeroes, or of a hole, that are answered before they are done. How little they are on the line says nothing of how long the
# destination's storage takes for them; and where a disk is empty, a mirror asks for 16 MiB at once.
MOST_ZEROES = 1 << 20
# Writes that may be under way before the next one waits until all are done: for each one, all of them are looked at.
MOST_WRITES = 256


def is_behind(request: Request) -> bool:
    """Whether it is answered before it is done."""
    match request.command:
        case Command.WRITE:
            return True
        case Command.TRIM | Command.WRITE_ZEROES:
            return request.length <= MOST_ZEROES and not request.flags & FAST_ZERO
        case _:
            return False


def _answer(request: Request, *, is_extended: bool) -> bytes:
    if is_extended:
        return EXTENDED_REPLY.pack(EXTENDED_MAGIC, DONE, NO_CONTENT, request.cookie, request.offset, 0)
    return REPLY.pack(SIMPLE_MAGIC, 0, request.cookie)


class Answering:
    """At the source: requests of QEMU's, and the answers to those that have come whole."""

    def __init__(self) -> None:
        self._coming: deque[Request] = deque()

    def request(self, request: Request) -> None:
        """Take the next one; its payload may not have come yet."""
        if is_behind(request):
            self._coming.append(request)

    def answers(self, position: int, *, is_extended: bool) -> bytes:
        """For those that end before that byte of what QEMU has said."""
        found = []
        while self._coming and self._coming[0].end <= position:
            found.append(_answer(self._coming.popleft(), is_extended=is_extended))
        return b"".join(found)


class Ordering:
    """At the destination: which requests QEMU may be given, and which of its answers are for nobody."""

    def __init__(self) -> None:
        # The error of a write that has failed; 0 while all are well.
        self.error = 0
        self._waiting: deque[Request] = deque()
        # Writes under way, by their cookies: the source's QEMU, which was answered, uses them again. And what was written since none was.
        self._under_way: Counter[int] = Counter()
        self._ranges: list[tuple[int, int]] = []
        self._kept: deque[Reply] = deque()

    @property
    def is_awaited(self) -> bool:
        """Whether QEMU has not answered all that it was given to write."""
        return bool(self._under_way)

    def request(self, request: Request) -> None:
        """Take the next one of the source's."""
        self._waiting.append(request)

    def allowed(self, position: int, end: int) -> int:
        """Up to which byte of what the source has said QEMU may be given it: it was given `position`, and `end` have come.

        What is allowed counts as given.
        """
        while self._waiting:
            request = self._waiting[0]
            if not self._may_begin(request):
                return max(request.start, position)
            self._waiting.popleft()
            if is_behind(request):
                self._under_way[request.cookie] += 1
                self._ranges.append((request.offset, request.offset + request.length))
        return end

    def _may_begin(self, request: Request) -> bool:
        if not self._under_way:
            self._ranges.clear()
            return True
        if not is_behind(request) or len(self._ranges) >= MOST_WRITES:
            return False
        first, last = request.offset, request.offset + request.length
        return all(last <= start or end <= first for start, end in self._ranges)

    def reply(self, reply: Reply) -> None:
        """Take the next one of QEMU's."""
        if reply.cookie not in self._under_way:
            return
        self.error = self.error or reply.error
        self._under_way[reply.cookie] -= 1
        if not self._under_way[reply.cookie]:
            del self._under_way[reply.cookie]
        self._kept.append(reply)

    def onward(self, said: bytes, position: int, end: int) -> Iterator[bytes]:
        """Of what QEMU has said from byte `position` on, whatever is for the source, up to `end`."""
        start = position
        while self._kept:
            reply = self._kept.popleft()
            if reply.start > start:
                yield said[start - position : reply.start - position]
            start = reply.end
        if end > start:
            yield said[start - position : end - position]
