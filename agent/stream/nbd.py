"""NBD, as QEMU copies a disk with it: where in the bytes of a `disk` channel the blocks of the disk stand.

The source's QEMU is the client, the destination's the server. Blocks travel with requests to write, from client to server, and with
answers to requests to read, from server to client. Both directions are read: what an answer looks like depends on what was
agreed and asked.

    haggling       server: greeting     client: flags, then options, one at a time     server: answers to each
                   It ends with the option GO (accepted by the server) or EXPORT_NAME (which has no answer but the export's size).
    transmission   client: requests     server: answers in any order; each in one piece ("simple"), or, if that was agreed, in
                   chunks; or both with 32 bytes of header and lengths of 64 bits ("extended", QEMU 8.2 and later)

All numbers are big-endian. Format: NetworkBlockDevice/nbd, doc/proto.md; extended headers: the same, branch extension-ext-header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from landbridge import hints
from landbridge.errors import ProtocolError
from landbridge.hints import PAGE, Kind, Run

Data = bytes | bytearray | memoryview
# What understands a header: it begins at that offset of the data.
Step = Callable[[Data, int], None]

# Haggling.
GREETING = struct.Struct("!QQH")
GREETING_MAGICS = (0x4E42444D41474943, 0x49484156454F5054)
CLIENT_FLAGS = struct.Struct("!I")
NO_ZEROES = 2
OPTION = struct.Struct("!QII")
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY = struct.Struct("!QIII")
OPTION_REPLY_MAGIC = 0x3E889045565A9
EXPORT_INFO = struct.Struct("!QH")
EXPORT_ZEROES = 124
NAME_LENGTH = struct.Struct("!I")
LONGEST_NAME = 4096


class Option(IntEnum):
    """Options that matter here; of the others only their length does."""

    EXPORT_NAME = 1
    STARTTLS = 5
    GO = 7
    STRUCTURED_REPLY = 8
    EXTENDED_HEADERS = 11


# Answers; and of those with information, the one with an export's size and flags.
ACK, INFO, INFO_EXPORT = 1, 3, 0
FIRST_ERROR = 1 << 31

# Transmission: magic, flags, type, cookie, offset, length.
REQUEST = struct.Struct("!IHHQQI")
EXTENDED_REQUEST = struct.Struct("!IHHQQQ")
REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC = 0x25609513, 0x21E41C71
PAYLOAD_LENGTH = 1 << 5
# Magic, error, cookie; in a chunk there are flags and type instead of the error, and the length of what follows after them.
REPLY = struct.Struct("!IIQ")
CHUNK_LENGTH = struct.Struct("!I")
EXTENDED_REPLY = struct.Struct("!IHHQQQ")
SIMPLE_MAGIC, CHUNK_MAGIC, EXTENDED_MAGIC = 0x67446698, 0x668E33EF, 0x6E8A278C
DONE = 1 << 0
NO_CONTENT, OFFSET_DATA, ERROR_CHUNK = 0, 1, 1 << 15
ERROR_NUMBER = struct.Struct("!I")
DATA_OFFSET = struct.Struct("!Q")
MOST_OFFSET = 1 << 63


class Command(IntEnum):
    """What a client may request."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


_COMMANDS = frozenset(Command)


class Request(NamedTuple):
    """One request: its header as it was read, and from which byte of what the client has said to which it goes, payload and all."""

    flags: int
    command: Command
    cookie: int
    offset: int
    length: int
    start: int
    end: int


class Reply(NamedTuple):
    """An answer, or the last chunk of one, without data: the error, 0 if there was none, and which bytes of the server's it is."""

    error: int
    cookie: int
    start: int
    end: int


# Requests to read that may wait for a simple reply; QEMU sends 16 at most (MAX_NBD_REQUESTS).
MOST_READS = 4096
_MOST_COUNT = (1 << 16) - 1


class _Direction:
    """Bytes that one end has sent: headers, put together here if they come in parts, and what is between them."""

    def __init__(self, who: str, size: int, then: Step) -> None:
        self.who = who
        # Bytes read so far, and how many at the end of the last piece are to come again.
        self.position = 0
        self.tail = 0
        self._head = bytearray()
        # Bytes that come before the next header: those that mean nothing here, then those of an extent of the disk.
        self._skip = 0
        self._left = 0
        self._offset = 0
        self._space = 0
        # What the piece that was fed last has.
        self.runs: list[Run] = []
        self.expect(size, then)

    def expect(self, size: int, then: Step) -> None:
        """The next header has `size` bytes, at least 1; so have those after it, until this is called again."""
        self._size, self._then = size, then

    def skip(self, count: int) -> None:
        """So many bytes come before the next header."""
        self._skip = count

    def extent(self, space: int, offset: int, length: int) -> None:
        """Bytes of the disk come before the next header. Raises ProtocolError if no disk can have them."""
        if offset + length > MOST_OFFSET:
            raise ProtocolError(f"{length} bytes at {offset} are on no disk")
        self._space, self._offset, self._left = space, offset, length

    @property
    def begun(self) -> int:
        """Bytes that have come of a header that is not complete."""
        return len(self._head)

    @property
    def is_between(self) -> bool:
        """Whether a header begins with the next byte."""
        return not (self._head or self._skip or self._left)

    def awaits(self, *steps: Step) -> bool:
        """Whether one of these is to read the next header."""
        return self._then in steps

    def feed(self, data: Data) -> None:
        """Read the next bytes: sets `runs` and `tail`. Raises ProtocolError; what was found before stays in `runs`."""
        self.tail = at = 0
        self.runs = []
        while at < len(data) and not self.tail:
            before = self.position
            if self._skip:
                self._advance(min(self._skip, len(data) - at))
            elif self._left:
                self._read_extent(at, len(data))
            else:
                self._read_header(data, at)
            at += self.position - before

    def _advance(self, count: int) -> None:
        self._skip -= count
        self.position += count

    def _read_header(self, data: Data, at: int) -> None:
        missing = self._size - len(self._head)
        part = min(missing, len(data) - at)
        self.position += part
        if not self._head and part == missing:
            self._then(data, at)
            return
        self._head += data[at : at + part]
        if part == missing:
            whole, self._head = self._head, bytearray()
            self._then(whole, 0)

    def _read_extent(self, at: int, end: int) -> None:
        count = min(self._left, end - at)
        start, stop = self._offset, self._offset + count
        before = -start % PAGE
        blocks = (count - before) // PAGE
        while blocks > 0:
            several = min(blocks, _MOST_COUNT)
            self.runs.append(Run(at + before, several, Kind.PLAIN, hints.key(self._space, start + before)))
            before += several * PAGE
            blocks -= several
        # A block of which only the beginning is here, and which will come whole.
        begun = stop % PAGE
        if begun <= count and stop - begun + PAGE <= start + self._left:
            self.tail = begun
        self._pass(count - self.tail)

    def _pass(self, count: int) -> None:
        self._offset += count
        self._left -= count
        self.position += count

    def skip_tail(self) -> None:
        """The tail will not come again."""
        self._pass(self.tail)
        self.tail = 0


class NbdStream:
    """One NBD session: pieces of both directions in, hints out. Whoever owns it feeds what an end says before what it answers to.

    What is not understood is no error: there are no hints from there on. Keeps at most MOST_READS requests, and headers.
    """

    def __init__(self) -> None:
        # Whether hints may still come; if not, why, and behind which bytes of the end that `why` names.
        self.understood = True
        self.lost_at: int | None = None
        self.why = ""
        self._client = _Direction("client", CLIENT_FLAGS.size, self._client_flags)
        self._server = _Direction("server", GREETING.size, self._greeting)
        # Haggling: whether zeroes follow the export's size, the option that waits for its answer, how long it and its name are.
        self._has_zeroes = True
        self._asked: int | None = None
        self._option_length = self._name_length = 0
        # What was agreed: answers to requests to read in chunks; and headers with lengths of 64 bits.
        self.is_structured = self.is_extended = False
        self._space = 0
        self._request, self._request_magic = REQUEST, REQUEST_MAGIC
        # The chunk whose length or offset comes next.
        self._chunk_type = self._data_length = 0
        # Requests to read that wait for a simple reply, by their cookies: offset and length.
        self._reads: dict[int, tuple[int, int]] = {}
        # Where the reply begins whose chunk's length is expected, and its cookie and flags.
        self._reply = Reply(0, 0, 0, 0)
        self._chunk_flags = 0
        # Called with each request as its header is complete, and with each reply.
        self.on_request: Callable[[Request], None] | None = None
        self.on_reply: Callable[[Reply], None] | None = None

    @property
    def client_position(self) -> int:
        """Bytes of the client's that were read, without a tail."""
        return self._client.position

    @property
    def server_position(self) -> int:
        """The same, of the server's."""
        return self._server.position

    @property
    def undecided(self) -> int:
        """How many of the server's last bytes may still become a reply."""
        if self._server.awaits(self._take_chunk_length):
            return self._server.position - self._reply.start
        return self._server.begun

    @property
    def is_between_replies(self) -> bool:
        """Whether a server's reply may begin with its next byte."""
        return self._server.is_between and self._server.awaits(self._take_reply, self._extended_reply)

    def feed_client(self, data: Data) -> tuple[list[Run], int]:
        """Read the next bytes that the client has sent.

        Returns runs of whole blocks, of kind PLAIN, and how many of the last bytes belong to a block that is not complete, less
        than PAGE. These count as not read: they come again at the head of the next piece, or else `skip_tail` is called.
        """
        return self._feed(self._client, data)

    def feed_server(self, data: Data) -> tuple[list[Run], int]:
        """The same, for bytes that the server has sent."""
        return self._feed(self._server, data)

    def skip_tail(self, *, client: bool) -> None:
        """The last piece's tail will not come again: the next piece goes on behind it, and that block gets no hint."""
        (self._client if client else self._server).skip_tail()

    def _feed(self, direction: _Direction, data: Data) -> tuple[list[Run], int]:
        if not self.understood:
            return [], 0
        try:
            direction.feed(data)
        except ProtocolError as error:
            self.understood, self.lost_at = False, direction.position
            self.why = f"in what the {direction.who} sent, before byte {direction.position}: {error.message}"
            self._reads.clear()
            direction.tail = 0
        return direction.runs, direction.tail

    # Haggling: what the client says

    def _client_flags(self, data: Data, at: int) -> None:
        (flags,) = CLIENT_FLAGS.unpack_from(data, at)
        self._has_zeroes = not flags & NO_ZEROES
        self._client.expect(OPTION.size, self._option)

    def _option(self, data: Data, at: int) -> None:
        magic, option, length = OPTION.unpack_from(data, at)
        _check(magic, OPTION_MAGIC, "an option")
        if self._asked is not None:
            raise ProtocolError(f"option {option} came before the answer to option {self._asked}")
        self._asked, self._option_length = option, length
        if option == Option.EXPORT_NAME:
            self._take_name(length)
        elif option == Option.GO and length >= NAME_LENGTH.size:
            self._client.expect(NAME_LENGTH.size, self._go)
        else:
            self._client.skip(length)

    def _go(self, data: Data, at: int) -> None:
        (length,) = NAME_LENGTH.unpack_from(data, at)
        if NAME_LENGTH.size + length > self._option_length:
            raise ProtocolError(f"a name of {length} bytes is longer than the option that has it")
        self._take_name(length)

    def _take_name(self, length: int) -> None:
        if length > LONGEST_NAME:
            raise ProtocolError(f"the name of an export has {length} bytes")
        self._name_length = length
        if length:
            self._client.expect(length, self._name)
        else:
            self._name(b"", 0)

    def _name(self, data: Data, at: int) -> None:
        self._space = hints.space(b"disk " + bytes(data[at : at + self._name_length]))
        if self._asked == Option.EXPORT_NAME:
            # Nothing but the export's size answers it.
            self._asked = None
            self._server.expect(EXPORT_INFO.size, self._export_info)
            self._expect_request()
        else:
            self._client.skip(self._option_length - NAME_LENGTH.size - self._name_length)
            self._client.expect(OPTION.size, self._option)

    # Haggling: what the server says

    def _greeting(self, data: Data, at: int) -> None:
        first, second, _flags = GREETING.unpack_from(data, at)
        if (first, second) != GREETING_MAGICS:
            raise ProtocolError("it begins as no server of NBD does that takes options")
        self._server.expect(OPTION_REPLY.size, self._option_reply)

    def _option_reply(self, data: Data, at: int) -> None:
        magic, option, kind, length = OPTION_REPLY.unpack_from(data, at)
        _check(magic, OPTION_REPLY_MAGIC, "an answer to an option")
        if option != self._asked:
            raise ProtocolError(f"option {option} is answered, which nobody waits for")
        self._server.skip(length)
        if kind == ACK or kind >= FIRST_ERROR:
            self._asked = None
        if kind == ACK:
            self._agree(option)

    def _agree(self, option: int) -> None:
        match option:
            case Option.STARTTLS:
                raise ProtocolError("the session goes on encrypted")
            case Option.STRUCTURED_REPLY:
                self.is_structured = True
            case Option.EXTENDED_HEADERS:
                self.is_extended = True
            case Option.GO:
                if self._client.begun:
                    raise ProtocolError("the client did not wait for this answer")
                self._expect_request()
                self._expect_reply()

    def _export_info(self, _data: Data, _at: int) -> None:
        self._server.skip(EXPORT_ZEROES if self._has_zeroes else 0)
        self._expect_reply()

    # Transmission: what the client says

    def _expect_request(self) -> None:
        self._request = EXTENDED_REQUEST if self.is_extended else REQUEST
        self._request_magic = EXTENDED_REQUEST_MAGIC if self.is_extended else REQUEST_MAGIC
        self._client.expect(self._request.size, self._take_request)

    def _take_request(self, data: Data, at: int) -> None:
        magic, flags, command, cookie, offset, length = self._request.unpack_from(data, at)
        _check(magic, self._request_magic, "a request")
        payload = 0
        if command == Command.WRITE:
            payload = length
            self._client.extent(self._space, offset, length)
        elif command not in _COMMANDS:
            raise ProtocolError(f"request {command} is unknown, and so is how long it is")
        elif self.is_extended and flags & PAYLOAD_LENGTH:
            payload = length
            self._client.skip(length)
        elif command == Command.READ and not (self.is_structured or self.is_extended):
            self._remember(cookie, offset, length)
        elif command == Command.DISCONNECT:
            self._client.expect(1, self._after_disconnect)
        if self.on_request is not None:
            end = self._client.position
            start = end - self._request.size
            self.on_request(Request(flags, Command(command), cookie, offset, length, start, end + payload))

    def _remember(self, cookie: int, offset: int, length: int) -> None:
        if cookie in self._reads or len(self._reads) == MOST_READS:
            raise ProtocolError("two requests have the same cookie, or too many wait for an answer")
        self._reads[cookie] = (offset, length)

    def _after_disconnect(self, _data: Data, _at: int) -> None:
        raise ProtocolError("bytes follow the request to disconnect")

    # Transmission: what the server says

    def _expect_reply(self) -> None:
        if self.is_extended:
            self._server.expect(EXTENDED_REPLY.size, self._extended_reply)
        else:
            self._server.expect(REPLY.size, self._take_reply)

    def _take_reply(self, data: Data, at: int) -> None:
        magic, error, cookie = REPLY.unpack_from(data, at)
        end = self._server.position
        self._reply = Reply(error, cookie, end - REPLY.size, end)
        if magic == CHUNK_MAGIC and self.is_structured:
            # Flags and type stand where an error would be.
            self._chunk_flags, self._chunk_type = error >> 16, error & 0xFFFF
            self._server.expect(CHUNK_LENGTH.size, self._take_chunk_length)
            return
        _check(magic, SIMPLE_MAGIC, "a reply")
        read = self._reads.pop(cookie, None)
        if read is not None and not error:
            self._server.extent(self._space, *read)
        self._replied(error)

    def _take_chunk_length(self, data: Data, at: int) -> None:
        (length,) = CHUNK_LENGTH.unpack_from(data, at)
        self._reply = self._reply._replace(end=self._server.position)
        self._chunk(self._chunk_flags, self._chunk_type, length)

    def _extended_reply(self, data: Data, at: int) -> None:
        magic, flags, kind, cookie, _offset, length = EXTENDED_REPLY.unpack_from(data, at)
        _check(magic, EXTENDED_MAGIC, "a reply")
        end = self._server.position
        self._reply = Reply(0, cookie, end - EXTENDED_REPLY.size, end)
        self._chunk(flags, kind, length)

    def _chunk(self, flags: int, kind: int, length: int) -> None:
        if kind == OFFSET_DATA:
            if length < DATA_OFFSET.size:
                raise ProtocolError(f"a chunk of data has {length} bytes, less than its offset")
            self._data_length = length - DATA_OFFSET.size
            self._server.expect(DATA_OFFSET.size, self._chunk_data)
            return
        if kind & ERROR_CHUNK and length >= ERROR_NUMBER.size:
            self._data_length = length - ERROR_NUMBER.size
            self._server.expect(ERROR_NUMBER.size, self._chunk_error)
            return
        self._server.skip(length)
        self._expect_reply()
        if kind == NO_CONTENT and flags & DONE and not length:
            self._replied(0)

    def _chunk_error(self, data: Data, at: int) -> None:
        (error,) = ERROR_NUMBER.unpack_from(data, at)
        self._server.skip(self._data_length)
        self._expect_reply()
        self._replied(error)

    def _replied(self, error: int) -> None:
        if self.on_reply is not None:
            self.on_reply(self._reply._replace(error=error))

    def _chunk_data(self, data: Data, at: int) -> None:
        (offset,) = DATA_OFFSET.unpack_from(data, at)
        self._server.extent(self._space, offset, self._data_length)
        self._expect_reply()


def _check(magic: int, expected: int, what: str) -> None:
    if magic != expected:
        raise ProtocolError(f"{what} begins with {magic:#x}, not with {expected:#x}")
