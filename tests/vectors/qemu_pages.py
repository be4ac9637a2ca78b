"""Which hints a migration stream is to have, found in the plainest way: all of it at once, one page after the other.

Independent of `agent.stream`: it shares nothing with it but the meaning of a hint.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from landbridge.hints import Kind, space


class Hint(NamedTuple):
    """One page: where its record, or its contents, begin."""

    offset: int
    kind: Kind
    key: int


def hints_of(stream: bytes) -> list[Hint]:
    """All of a well-formed stream."""
    return of_multifd(stream) if stream[:4] == b"\x11\x22\x33\x44" else of_main(stream)


def u(stream: bytes, at: int, size: int) -> int:
    return int.from_bytes(stream[at : at + size], "big")


def of_main(stream: bytes) -> list[Hint]:
    hints: list[Hint] = []
    # The block of the page before, over all parts.
    block = [b""]
    at = 8
    while stream[at] not in {0, 4}:
        kind, at = stream[at], at + 1
        match kind:
            case 7:
                at += 4 + u(stream, at, 4)
            case 5:
                text, at = _name(stream, at)
                at += 4
                if text.endswith(b"capabilities"):
                    count, at = u(stream, at, 4), at + 4
                    for _ in range(count):
                        _text, at = _name(stream, at)
                else:
                    at += 16 if text.endswith(b"uuid") else 4
            case 8:
                number, size = u(stream, at, 2), u(stream, at + 2, 2)
                at += 4 + size + (u(stream, at + 4, 4) if number == 7 else 0)
            case 1:
                at = _memory(stream, at + 4 + 4 + 8, hints, block)
            case 2 | 3:
                at = _memory(stream, at + 4, hints, block)
            case 0x7E:
                at += 4
            case _:
                raise AssertionError(f"type {kind} at {at}")
    return hints


def _name(stream: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + stream[at]
    return stream[at + 1 : end], end


def _memory(stream: bytes, at: int, hints: list[Hint], block: list[bytes]) -> int:
    while True:
        begin, word = at, u(stream, at, 8)
        at += 8
        address, flags = word - word % 4096, word % 4096
        match flags & ~0x20:
            case 0x10:
                return at
            case 0x200:
                continue
            case 0x04:
                at = _blocks(stream, at, address)
                continue
        if not flags & 0x20:
            block[0], at = _name(stream, at)
        key = space(block[0]) + address // 4096
        match flags & ~0x20:
            case 0x08:
                hints.append(Hint(begin, Kind.PAGE, key) if flags & 0x20 else Hint(at, Kind.PLAIN, key))
                at += 4096
            case 0x02:
                if flags & 0x20:
                    hints.append(Hint(begin, Kind.ZERO, key))
                at += 1
            case 0x40:
                at += 3 + u(stream, at + 1, 2)
            case 0x100:
                at += 4 + u(stream, at, 4)
            case _:
                raise AssertionError(f"flags {flags:#x} at {begin}")


def _blocks(stream: bytes, at: int, total: int) -> int:
    while total:
        _text, at = _name(stream, at)
        total -= u(stream, at, 8)
        at += 8
        while u(stream, at, 8) % 4096 == 0 and stream[at] == 0:
            at += 8
    return at


def of_multifd(stream: bytes) -> list[Hint]:
    hints: list[Hint] = []
    at = 64
    while at < len(stream):
        flags, _room, count, size = struct.unpack_from("!IIII", stream, at + 8)
        if flags & 0x40:
            at += 276 + u(stream, at + 272, 4)
            continue
        block = space(stream[at + 64 : at + 320].rstrip(b"\0"))
        addresses = struct.unpack_from(f"!{count}Q", stream, at + 320)
        at += 320 + 1024
        if count and not flags & 0x3E:
            hints += (Hint(at + n * 4096, Kind.PLAIN, block + a // 4096) for n, a in enumerate(addresses))
        at += size if count else 0
    return hints
