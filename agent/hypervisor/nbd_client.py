"""Disks through QEMU: the client's end of NBD, on a UNIX socket of this host. Reading one, as a `DiskView`, and flushing all.

    connect    haggle: structured replies, what the export knows of its blocks (meta contexts), the export
    extents    ask for the status of blocks, in each context, and lay the answers side by side
    read       bytes; what the server says is a hole comes as zeros
    flush      ask for the names of all exports, then each, in a session of its own, to flush

Blocking, one request at a time, for worker threads; `agent.stream.nbd` has the words of the protocol, and reads it as a listener.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import NoReturn

from agent.hypervisor.base import Extent
from agent.stream.nbd import (
    ACK,
    CHUNK_LENGTH,
    CHUNK_MAGIC,
    CLIENT_FLAGS,
    DATA_OFFSET,
    FIRST_ERROR,
    GREETING,
    GREETING_MAGICS,
    INFO,
    INFO_EXPORT,
    OFFSET_DATA,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REPLY,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_MAGIC,
    Command,
    Option,
)
from landbridge.errors import HypervisorError

# What a hole is, and what a dirty block, in the two contexts: the NBD protocol, and QEMU's docs/interop/nbd.txt.
ALLOCATION, DIRTY = "base:allocation", "qemu:dirty-bitmap:"
ZERO_FLAG, DIRTY_FLAG = 2, 1
SET_META_CONTEXT, META_CONTEXT = 10, 4
LIST, SERVER = 3, 2
# What a server calls a request to flush, and its answer.
FLUSH_COOKIE = 1
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
BLOCK_STATUS_COMMAND = 7
OFFSET_HOLE, BLOCK_STATUS, DONE_FLAG, ERROR_BIT = 2, 5, 1, 1 << 15
EXPORT = struct.Struct("!HQH")
Descriptors = list[tuple[int, int]]
LENGTH = struct.Struct("!I")
DESCRIPTOR = struct.Struct("!II")
# Bytes of a chunk, at least, by its type.
_SHORTEST = {OFFSET_DATA: DATA_OFFSET.size, OFFSET_HOLE: DATA_OFFSET.size + LENGTH.size, BLOCK_STATUS: LENGTH.size}
# Of one question for the status of blocks; a request holds a length of 32 bits, and QEMU answers as much of it as it likes.
MOST_ASKED = 1 << 30
# Of one reply's chunk, in bytes: more than QEMU ever sends, and a bound for what a broken server can make us hold.
MOST_CHUNK = 64 << 20
# Seconds for an answer: a disk that does not answer for so long is broken, or its storage is.
PATIENCE_S = 60.0


class NbdSession:
    """A connection to a server, up to what both have agreed on; every failure is a HypervisorError that names the disk."""

    # What was to be done to the disk.
    deed = "read"

    def __init__(self, path: str, target: str) -> None:
        """Connect, and greet."""
        self.target = target
        self._cookie = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(PATIENCE_S)
            self._socket.connect(path)
            self._greet()
            self._haggle()
        except OSError as error:
            self.close()
            raise HypervisorError(f"Disk {target} cannot be {self.deed}: {error.strerror or error}.") from error
        except HypervisorError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _greet(self) -> None:
        magic, option_magic, _flags = GREETING.unpack(self._take(GREETING.size))
        if (magic, option_magic) != GREETING_MAGICS:
            self._broken("it greets in a way that is not NBD's")
        self._socket.sendall(CLIENT_FLAGS.pack(FIXED_NEWSTYLE | NO_ZEROES))

    def _haggle(self) -> None:
        """Agree on what is needed."""

    def _ask(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Its answers to an option, up to the last."""
        self._socket.sendall(OPTION.pack(OPTION_MAGIC, option, len(data)) + data)
        while True:
            magic, _option, kind, length = OPTION_REPLY.unpack(self._take(OPTION_REPLY.size))
            if magic != OPTION_REPLY_MAGIC or length > MOST_CHUNK:
                self._broken("its answer to an option is none")
            answer = self._take(length)
            if kind & FIRST_ERROR:
                self._broken(f"it refuses option {option}: {answer.decode('utf-8', 'replace') or hex(kind)}")
            if kind == ACK:
                return
            yield kind, answer

    def _go(self, export: str) -> Iterator[tuple[int, bytes]]:
        name = export.encode()
        return self._ask(Option.GO, LENGTH.pack(len(name)) + name + b"\0\0")

    def _take(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                self._broken("its QEMU hung up")
            view = view[got:]
        return bytes(data)

    def _broken(self, why: str) -> NoReturn:
        raise HypervisorError(f"Disk {self.target} cannot be {self.deed}: {why}.")


class _Flushing(NbdSession):
    """A session in which an export is flushed; or, before that, one in which the exports are named."""

    deed = "flushed"

    def exports(self) -> list[str]:
        """Their names."""
        found = [answer for kind, answer in self._ask(LIST, b"") if kind == SERVER]
        return [each[LENGTH.size : LENGTH.size + LENGTH.unpack_from(each)[0]].decode() for each in found]

    def flush(self, export: str) -> None:
        """Returns when all that was written to it before is on stable storage."""
        list(self._go(export))
        self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, Command.FLUSH, FLUSH_COOKIE, 0, 0))
        magic, error, cookie = REPLY.unpack(self._take(REPLY.size))
        if magic != SIMPLE_MAGIC or cookie != FLUSH_COOKIE:
            self._broken("its answer does not fit what was asked")
        if error:
            self._broken(f"it answers with error {error}")
        self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0))


def flush(path: str) -> None:
    """Have the server at a socket flush all of its exports; returns when that is done. Raises HypervisorError."""
    try:
        with closing(_Flushing(path, "at " + path)) as session:
            exports = session.exports()
        for export in exports:
            with closing(_Flushing(path, export)) as session:
                session.flush(export)
    except OSError as error:
        raise HypervisorError(f"The disks at {path} cannot be flushed: {error.strerror or error}.") from error


class NbdView(NbdSession):
    """One export of one server. Implements `DiskView`; every failure is a HypervisorError that names the disk."""

    def __init__(self, path: str, export: str, target: str, bitmap: str = "") -> None:
        """Connect; `bitmap` is the dirty bitmap's name at the export, empty for none."""
        self.size = 0
        self._export = export
        self._contexts: dict[int, str] = {}
        self._bitmap = DIRTY + bitmap
        self._wanted = {ALLOCATION, self._bitmap} if bitmap else {ALLOCATION}
        super().__init__(path, target)

    # Haggling.

    def _haggle(self) -> None:
        list(self._ask(Option.STRUCTURED_REPLY, b""))
        name = self._export.encode()
        queries = b"".join(LENGTH.pack(len(each)) + each for each in (text.encode() for text in sorted(self._wanted)))
        question = LENGTH.pack(len(name)) + name + LENGTH.pack(len(self._wanted)) + queries
        for kind, data in self._ask(SET_META_CONTEXT, question):
            if kind == META_CONTEXT and len(data) >= LENGTH.size:
                self._contexts[LENGTH.unpack_from(data)[0]] = data[4:].decode("utf-8", "replace")
        if missing := self._wanted - set(self._contexts.values()):
            self._broken(f"it does not know {min(missing)}")
        for kind, data in self._go(self._export):
            if kind == INFO and len(data) >= EXPORT.size and EXPORT.unpack_from(data)[0] == INFO_EXPORT:
                self.size = EXPORT.unpack_from(data)[1]

    # Transmission.

    def extents(self) -> Iterator[Extent]:
        """See `DiskView`."""
        at = 0
        while at < self.size:
            told = self._status(at, min(MOST_ASKED, self.size - at))
            began = at
            for extent in _side_by_side(at, told[ALLOCATION], told.get(self._bitmap, [(self.size, 0)])):
                yield extent
                at = extent.offset + extent.length
            if at == began:
                self._broken("it says nothing of its blocks")

    def _status(self, offset: int, length: int) -> dict[str, Descriptors]:
        found: dict[str, Descriptors] = {}
        for kind, data in self._request(BLOCK_STATUS_COMMAND, offset, length):
            if kind == BLOCK_STATUS:
                (context,) = LENGTH.unpack_from(data)
                whole = len(data) - (len(data) - LENGTH.size) % DESCRIPTOR.size
                found[self._contexts.get(context, "")] = list(DESCRIPTOR.iter_unpack(data[LENGTH.size : whole]))
        if set(found) != self._wanted:
            self._broken("it does not tell of its blocks")
        return found

    def read(self, offset: int, length: int) -> bytearray:
        """See `DiskView`."""
        got, data = 0, bytearray(length)
        for kind, chunk in self._request(Command.READ, offset, length):
            (at,) = DATA_OFFSET.unpack_from(chunk)
            if kind == OFFSET_DATA:
                content = memoryview(chunk)[DATA_OFFSET.size :]
                data[at - offset : at - offset + len(content)] = content
                got += len(content)
            elif kind == OFFSET_HOLE:
                got += LENGTH.unpack_from(chunk, DATA_OFFSET.size)[0]
        if got != length or len(data) != length:
            self._broken("it sent other bytes than it was asked for")
        return data

    def _request(self, command: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """The chunks of the answer, until the last. The caller takes all of them."""
        self._cookie += 1
        try:
            self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, self._cookie, offset, length))
            done = False
            while not done:
                magic, word, cookie = REPLY.unpack(self._take(REPLY.size))
                if magic == SIMPLE_MAGIC and word:
                    self._broken(f"it answers with error {word}")
                if magic != CHUNK_MAGIC or cookie != self._cookie:
                    self._broken("its answer does not fit what was asked")
                flags, kind = word >> 16, word & 0xFFFF
                (size,) = CHUNK_LENGTH.unpack(self._take(CHUNK_LENGTH.size))
                if size > MOST_CHUNK:
                    self._broken(f"it sends {size} bytes at once")
                chunk = self._take(size)
                if size < _SHORTEST.get(kind, LENGTH.size if kind & ERROR_BIT else 0):
                    self._broken("its answer is too short")
                if kind & ERROR_BIT:
                    self._broken(f"it answers with error {LENGTH.unpack_from(chunk)[0]}")
                done = bool(flags & DONE_FLAG)
                if kind:
                    yield kind, chunk
        except OSError as error:
            raise HypervisorError(f"Disk {self.target} cannot be read any more: {error}.") from error


def _side_by_side(at: int, zeros: Descriptors, dirty: Descriptors) -> Iterator[Extent]:
    """Two lists of lengths with flags, from `at` on, as one; as far as both tell."""
    left, right = deque(zeros), deque(dirty)
    while left and right:
        step = min(left[0][0], right[0][0])
        if step:
            yield Extent(at, step, zero=bool(left[0][1] & ZERO_FLAG), written=bool(right[0][1] & DIRTY_FLAG))
        at += step
        for each in (left, right):
            size, flags = each.popleft()
            if size > step:
                each.appendleft((size - step, flags))
