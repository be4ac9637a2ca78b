"""Sessions of NBD that no program has sent: random, of every kind that is understood."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.vectors.nbd_sessions import Session

SIMPLE, STRUCTURED, EXTENDED = range(3)
READ, WRITE, DISCONNECT, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 4, 6, 7
ACK, INFO, SERVER, META_CONTEXT, UNSUPPORTED, UNKNOWN = 1, 3, 2, 4, 0x80000001, 0x80000006


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack("!II", number, len(data)) + data


def answer(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack("!QIII", 0x3E889045565A9, number, kind, len(data)) + data


def go(name: bytes, *infos: int) -> bytes:
    return option(7, struct.pack("!I", len(name)) + name + struct.pack(f"!H{len(infos)}H", len(infos), *infos))


def request(mode: int, command: int, cookie: int, offset: int, length: int, data: bytes = b"") -> bytes:
    if mode == EXTENDED:
        flags = 32 if data else 0
        return struct.pack("!IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length) + data
    return struct.pack("!IHHQQI", 0x25609513, 0, command, cookie, offset, length) + data


def reply(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack("!IIQ", 0x67446698, error, cookie) + data


def chunk(mode: int, kind: int, cookie: int, data: bytes = b"", *, is_last: bool = False) -> bytes:
    if mode == EXTENDED:
        return struct.pack("!IHHQQQ", 0x6E8A278C, is_last, kind, cookie, 0, len(data)) + data
    return struct.pack("!IHHQI", 0x668E33EF, is_last, kind, cookie, len(data)) + data


def data_chunk(mode: int, cookie: int, offset: int, data: bytes) -> bytes:
    return chunk(mode, 1, cookie, struct.pack("!Q", offset) + data)


def greeting(flags: int = 3) -> bytes:
    return b"NBDMAGICIHAVEOPT" + struct.pack("!H", flags)


def client_flags(flags: int = 3) -> bytes:
    return struct.pack("!I", flags)


def beginning(mode: int, name: bytes = b"disk", *, by_name: bool = False, has_zeroes: bool = False) -> Session:
    """Haggling, up to the first request."""
    session = [(False, greeting()), (True, client_flags(1 if has_zeroes else 3))]
    wanted = {SIMPLE: [], STRUCTURED: [8], EXTENDED: [8, 11]}[mode]
    for number in wanted:
        session += [(True, option(number)), (False, answer(number, ACK))]
    if by_name:
        return [
            *session,
            (True, option(1, name)),
            (False, struct.pack("!QH", 1 << 30, 1) + bytes(124 if has_zeroes else 0)),
        ]
    info = answer(7, INFO, struct.pack("!HQH", 0, 1 << 30, 1))
    return [*session, (True, go(name, 3)), (False, info), (False, answer(7, ACK))]


def _detours(chance: random.Random) -> Session:
    """Options that change nothing."""
    detours: list[Session] = [
        [
            (True, option(3)),
            (False, answer(3, SERVER, b"\0\0\0\4disk")),
            (False, answer(3, SERVER, b"\0\0\0\0")),
            (False, answer(3, ACK)),
        ],
        [
            (True, option(99, chance.randbytes(chance.randrange(300)))),
            (False, answer(99, UNSUPPORTED, b"what is that?")),
        ],
        [(True, go(b"another", 1, 2)), (False, answer(7, UNKNOWN))],
        [(True, option(5)), (False, answer(5, UNSUPPORTED))],
        [
            (True, option(10, chance.randbytes(40))),
            (False, answer(10, META_CONTEXT, b"\0\0\0\1base:allocation")),
            (False, answer(10, ACK)),
        ],
    ]
    return sum(chance.sample(detours, chance.randrange(len(detours))), Session())


def _extent(chance: random.Random) -> tuple[int, int]:
    offset = chance.choice((0, 1, 7, 1 << 31)) * 4096 + chance.choice((0, 0, 0, 512, chance.randrange(4096)))
    return offset, chance.choice((1, 512, 4096, 4096, 8192, 65536, chance.randrange(1, 20000)))


def _answers(chance: random.Random, mode: int, command: int, cookie: int, extent: tuple[int, int]) -> list[bytes]:
    """What the server says to a request: one or more parts, in this order."""
    offset, length = extent
    if chance.randrange(8) == 0:
        if mode == SIMPLE:
            return [reply(cookie, 5)]
        return [chunk(mode, 0x8001, cookie, struct.pack("!IH", 5, 3) + b"bad", is_last=True)]
    if command == READ and mode == SIMPLE:
        return [reply(cookie, 0, chance.randbytes(length))]
    if command == READ:
        middle = chance.randrange(length)
        parts = [data_chunk(mode, cookie, offset + middle, chance.randbytes(length - middle))]
        if middle:
            hole = struct.pack("!QI", offset, middle)
            first = data_chunk(mode, cookie, offset, chance.randbytes(middle))
            parts.append(chance.choice((first, chunk(mode, 2, cookie, hole))))
        chance.shuffle(parts)
        return [*parts, chunk(mode, 0, cookie, is_last=True)]
    if command == BLOCK_STATUS and mode != SIMPLE:
        return [chunk(mode, 5, cookie, chance.randbytes(12), is_last=True)]
    if mode == EXTENDED or (mode == STRUCTURED and chance.randrange(2)):
        return [chunk(mode, 0, cookie, is_last=True)]
    return [reply(cookie)]


def made(chance: random.Random) -> Session:
    """A session in which requests overtake each other's answers."""
    mode = chance.choice((SIMPLE, STRUCTURED, EXTENDED))
    by_name = mode != EXTENDED and chance.randrange(3) == 0
    session = beginning(mode, b"x" * chance.choice((0, 1, 4096)), by_name=by_name, has_zeroes=chance.randrange(2) == 0)
    session[2:2] = _detours(chance)
    waiting: list[list[bytes]] = []
    for cookie in range(chance.randrange(12)):
        command = chance.choice((READ, WRITE, WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS))
        offset, length = _extent(chance)
        data = chance.randbytes(length) if command == WRITE else b""
        session.append((True, request(mode, command, cookie, offset, length, data)))
        waiting.append(_answers(chance, mode, command, cookie, (offset, length)))
        _let_answer(chance, session, waiting, lambda: chance.randrange(2) == 0)
    _let_answer(chance, session, waiting, lambda: True)
    if chance.randrange(2):
        session.append((True, request(mode, DISCONNECT, 99, 0, 0)))
    return session


def _let_answer(
    chance: random.Random, session: Session, waiting: list[list[bytes]], goes_on: Callable[[], bool]
) -> None:
    while waiting and goes_on():
        parts = chance.choice(waiting)
        session.append((False, parts.pop(0)))
        if not parts:
            waiting.remove(parts)
