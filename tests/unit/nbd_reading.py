"""How tests read sessions of NBD: piece by piece with the product's reader, and at once with a plain one of their own."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from agent.stream.nbd import NbdStream
from landbridge import hints
from landbridge.hints import PAGE, Kind
from tests.vectors.nbd_sessions import Session

# Whole blocks: where each begins in what the client, or the server, has said, and its number on the disk.
Blocks = set[tuple[bool, int, int]]


def joined(session: Session, *, client: bool) -> bytes:
    """All that an end has said."""
    return b"".join(data for is_client, data in session if is_client is client)


class Reading:
    """A session as the product reads it."""

    def __init__(self, *, holds: bool = True, name: bytes | None = None) -> None:
        """`holds`: whether tails are held back, and put at the head of the next piece. `name` of the export, if it is to be checked."""
        self.stream = NbdStream()
        self.blocks: Blocks = set()
        self._holds, self._name = holds, name
        self._tails = {True: b"", False: b""}
        self._at = {True: 0, False: 0}

    def feed(self, client: bool, data: bytes) -> None:
        """Read one piece; what it finds is added to `blocks`."""
        piece = self._tails[client] + data
        feed = self.stream.feed_client if client else self.stream.feed_server
        runs, tail = feed(memoryview(piece))
        assert tail < min(PAGE, len(piece) + 1)
        hints.decode(hints.encode(runs), len(piece) - tail)
        for run in runs:
            assert run.kind is Kind.PLAIN
            if self._name is not None:
                assert run.key >> hints.NUMBER_BITS == hints.space(b"disk " + self._name) >> hints.NUMBER_BITS
            number = run.key & ((1 << hints.NUMBER_BITS) - 1)
            self.blocks |= {(client, self._at[client] + run.offset + i * PAGE, number + i) for i in range(run.count)}
        if not self._holds:
            self.stream.skip_tail(client=client)
            tail = 0
        self._at[client] += len(piece) - tail
        self._tails[client] = piece[len(piece) - tail :]


def read(pieces: Iterable[tuple[bool, bytes]], *, holds: bool = True, name: bytes | None = None) -> Reading:
    """Read a session."""
    reading = Reading(holds=holds, name=name)
    for client, data in pieces:
        reading.feed(client, data)
    return reading


def in_bytes(session: Session) -> Session:
    """The same, one byte at a time."""
    return [(client, data[i : i + 1]) for client, data in session for i in range(len(data))]


# The plain reader. It has all bytes, and expects that the session has no mistakes.


def blocks_of(session: Session) -> Blocks:
    """Every whole block of the disk."""
    return {
        (client, at + i, (offset + i) // PAGE)
        for client, at, offset, length in extents_of(session)
        for i in range(-offset % PAGE, length - PAGE + 1, PAGE)
    }


def extents_of(session: Session) -> list[tuple[bool, int, int, int]]:
    """Bytes of the disk: who said them, where they begin in what was said, where on the disk they belong, how many."""
    client, server = joined(session, client=True), joined(session, client=False)
    c, s, agreed, has_zeroes = 4, 18, set[int](), not client[3] & 2
    option = 0
    while c < len(client):
        option, length = struct.unpack_from("!II", client, c + 8)
        c += 16 + length
        if option == 1:
            s += 134 if has_zeroes else 10
            break
        kind = 0
        while kind != 1 and kind < 1 << 31 and s < len(server):
            _, kind, length = struct.unpack_from("!III", server, s + 8)
            s += 20 + length
        agreed |= {option} if kind == 1 else set()
        if 7 in agreed:
            break
    requests = _requests(client, c, is_extended=11 in agreed)
    written = [(True, at, offset, length) for command, _, offset, length, at in requests if command == 1]
    # What a simple reply brings. A cookie may be used again once its request is answered.
    asked: dict[int, list[tuple[int, int]]] = {}
    for command, cookie, offset, length, _ in requests:
        is_read = command == 0 and not agreed & {8, 11}
        asked.setdefault(cookie, []).append((offset, length if is_read else 0))
    return written + _answered(server, s, asked)


def _requests(client: bytes, at: int, *, is_extended: bool) -> list[tuple[int, int, int, int, int]]:
    """Command, cookie, offset and length of each, and where what follows its header begins."""
    layout = struct.Struct("!IHHQQQ" if is_extended else "!IHHQQI")
    requests = []
    while at < len(client):
        _, _flags, command, cookie, offset, length = layout.unpack_from(client, at)
        at += layout.size
        requests.append((command, cookie, offset, length, at))
        at += length if command == 1 else 0
    return requests


def _answered(server: bytes, at: int, asked: dict[int, list[tuple[int, int]]]) -> list[tuple[bool, int, int, int]]:
    extents = []
    while at < len(server):
        if server[at : at + 4] == b"\x67\x44\x66\x98":
            error, cookie = struct.unpack_from("!IQ", server, at + 4)
            at += 16
            offset, length = asked[cookie].pop(0)
            if not error:
                extents.append((False, at, offset, length))
                at += length
            continue
        is_extended = server[at : at + 4] == b"\x6e\x8a\x27\x8c"
        (kind,) = struct.unpack_from("!H", server, at + 6)
        (length,) = struct.unpack_from(*(("!Q", server, at + 24) if is_extended else ("!I", server, at + 16)))
        at += 32 if is_extended else 20
        if kind == 1:
            (offset,) = struct.unpack_from("!Q", server, at)
            extents.append((False, at + 8, offset, length - 8))
        at += length
    return extents
