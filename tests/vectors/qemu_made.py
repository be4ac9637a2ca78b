"""Streams as QEMU 10 lays them out, made by hand: after migration/multifd.h, savevm.c and ram.c of QEMU, not recorded from one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

PAGE = 4096
RAM = 2


def long(number: int) -> bytes:
    return struct.pack("!Q", number)


def word(number: int) -> bytes:
    return struct.pack("!I", number)


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def contents(number: int) -> bytes:
    """A page that no other number has."""
    return struct.pack("!I", number) * (PAGE // 4)


def block(text: bytes, length: int, *more: int) -> bytes:
    """A block in the list of blocks; `more` are what some capabilities add."""
    return name(text) + long(length) + b"".join(map(long, more))


def page(address: int, of: bytes = b"", filled: bytes = b"") -> bytes:
    """A page on the main channel, of the block before if none is named."""
    return long(address | 0x08 | (0 if of else 0x20)) + (name(of) if of else b"") + (filled or contents(address))


def zero(address: int, of: bytes = b"") -> bytes:
    return long(address | 0x02 | (0 if of else 0x20)) + (name(of) if of else b"") + b"\0"


def xbzrle(address: int, data: bytes, of: bytes = b"") -> bytes:
    flags = 0x40 | (0 if of else 0x20)
    return long(address | flags) + (name(of) if of else b"") + b"\1" + struct.pack("!H", len(data)) + data


FLUSH = long(0x200)
END_OF_PART = long(0x10)
FOOTER = b"\x7e" + word(RAM)
HEADER = b"QEVM" + word(3)
CONFIGURATION = b"\7" + word(9) + b"pc-i440fx"


def subsection(text: bytes, fields: bytes) -> bytes:
    """A subsection of the configuration."""
    return b"\5" + name(text) + word(1) + fields


CAPABILITIES = subsection(b"configuration/capabilities", word(2) + name(b"multifd") + name(b"return-path"))
UUID = subsection(b"configuration/uuid", bytes(range(16)))
PAGE_BITS = subsection(b"configuration/target-page-bits", word(12))


def command(number: int, data: bytes = b"") -> bytes:
    return b"\x08" + struct.pack("!HH", number, len(data)) + data


def start(*blocks: bytes, total: int) -> bytes:
    """The beginning of memory, with the list of its blocks."""
    head = b"\1" + word(RAM) + name(b"ram") + word(0) + word(4)
    return head + long(total | 0x04) + b"".join(blocks) + FLUSH + END_OF_PART + FOOTER


def part(*records: bytes, kind: int = 2) -> bytes:
    """A part of memory; kind 3 for the last one."""
    return bytes([kind]) + word(RAM) + b"".join(records) + END_OF_PART + FOOTER


DEVICES = b"\4" + word(5) + name(b"timer") + word(0) + word(2) + bytes(24) + b"\x7e" + word(5) + b"\0"


def main_channel() -> bytes:
    """Two blocks, several rounds, pages in any order, and what QEMU 8.1 to 10 has that 7.2 has not."""
    return b"".join(
        (
            HEADER + CONFIGURATION + PAGE_BITS + CAPABILITIES + UUID + command(1) + command(2, word(1)),
            start(block(b"pc.ram", 64 * PAGE), block(b"/rom@etc/acpi/tables", 2 * PAGE), total=66 * PAGE),
            part(page(0, b"pc.ram"), page(PAGE), page(2 * PAGE), zero(3 * PAGE), zero(4 * PAGE), FLUSH),
            part(*(page(n * PAGE) for n in (5, 6, 9, 8, 63)), zero(10 * PAGE), xbzrle(11 * PAGE, b"\0\1x")),
            part(zero(0, b"/rom@etc/acpi/tables"), zero(PAGE), xbzrle(0, b"\0\1y", b"pc.ram"), page(PAGE), FLUSH),
            command(11),
            part(*(zero(n * PAGE) for n in range(64)), kind=3),
            DEVICES,
        )
    )


def postcopy() -> bytes:
    """A guest with huge pages and shared memory, of which the list of blocks says more; pages follow the package of devices."""
    package = command(4) + DEVICES + command(5)
    sizes = long(0x201000) + long(PAGE)
    return b"".join(
        (
            HEADER + CONFIGURATION + command(3, sizes),
            start(block(b"huge", 8 * PAGE, 0x200000, 0x100000), block(b"small", PAGE, 0), block(b"last", PAGE, 0x200000, 0),
                  total=10 * PAGE),
            part(page(0, b"huge"), page(PAGE), page(0, b"small")),
            command(6, bytes(40)) + command(7, word(len(package))) + package,
            part(page(0, b"last"), page(2 * PAGE, b"huge"), page(3 * PAGE)),
            part(kind=3) + b"\0",
        )
    )  # fmt: skip


def packet(
    addresses: Sequence[int],
    of: bytes = b"pc.ram",
    *,
    zeros: Sequence[int] = (),
    flags: int = 0,
    number: int = 0,
    room: int = 128,
    payload: bytes | None = None,
    size: int | None = None,
) -> bytes:
    """A packet of pages on a multifd channel, and its pages."""
    if payload is None:
        payload = b"".join(map(contents, addresses))
    head = b"\x11\x22\x33\x44" + struct.pack(
        "!IIIIIQI28x", 1, flags, room, len(addresses), len(payload) if size is None else size, number, len(zeros)
    )
    # What an earlier packet left stands behind the addresses.
    listed = [*addresses, *zeros] + [0xDEAD000] * (128 - len(addresses) - len(zeros))
    return head + of.ljust(256, b"\0") + struct.pack("!128Q", *listed) + payload


def device_state(data: bytes) -> bytes:
    head = b"\x11\x22\x33\x44" + word(1) + word(0x40)
    return head + b"0000:00:03.0/vfio".ljust(256, b"\0") + word(0) + word(len(data)) + data


CHANNEL = b"\x11\x22\x33\x44" + word(1) + bytes(16) + b"\1" + bytes(39)


def multifd() -> bytes:
    """A channel of QEMU 10: zero pages in packets, packets that only synchronize, state of devices."""
    return b"".join(
        (
            CHANNEL,
            packet([n * PAGE for n in range(128)]),
            packet([PAGE, 2 * PAGE, 9 * PAGE], zeros=[3 * PAGE, 4 * PAGE], number=1),
            packet([], zeros=[5 * PAGE], number=2),
            packet([], b"", flags=1, room=0, number=3),
            device_state(b"\x11\x22\x33\x44" * 5000),
            packet([7 * PAGE, 6 * PAGE], b"pc.bios", number=4),
            packet([8 * PAGE], flags=0x10, payload=b"compressed", number=5),
            # QEMU 7.2: one packet has pages and synchronizes, and one has a size that an earlier one left.
            packet([10 * PAGE, 11 * PAGE], flags=1, number=6),
            packet([], flags=1, size=8192, payload=b"", number=7),
            packet([12 * PAGE], number=8),
        )
    )


MADE = {"main channel of QEMU 10": main_channel, "post-copy": postcopy, "multifd of QEMU 10": multifd}
