"""QEMU's multifd channels: packets of pages, each a list of addresses and then the pages themselves.

    channel   64 bytes (be32 magic, be32 version, uuid, channel id), then packets
    packet    be32 magic, be32 version, be32 flags, be32 pages_alloc, be32 normal_pages, be32 next_packet_size, be64 packet_num,
              32 bytes (be32 zero_pages since QEMU 9.0), block[256], be64 address[128]; then the normal_pages pages
    device    since QEMU 10.0, with a flag of its own: the same 12 bytes, block[256], be32 instance, be32 size; then its state

A page takes 8 KiB of addresses and 512 KiB of pages in all, so that 128 addresses mean pages of 4096 bytes. Compressed pages
are one stream for the life of a channel, and are passed over. (QEMU: migration/multifd.h, multifd.c, multifd-nocomp.c)
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.stream.piece import WORD, IncompleteError, NotUnderstoodError, Piece
from landbridge import hints
from landbridge.hints import NUMBER_BITS, PAGE, Kind, Run

MAGIC = b"\x11\x22\x33\x44"
VERSION = 1
INIT_SIZE = 64
START = struct.Struct("!4sII")
COUNTS = struct.Struct("!III")
BLOCK_AT = 64
BLOCK_SIZE = 256
ADDRESSES_AT = BLOCK_AT + BLOCK_SIZE
# What a packet has room for: MULTIFD_PACKET_SIZE, 512 KiB.
PAGES = (512 << 10) // PAGE
PACKET_SIZE = ADDRESSES_AT + 8 * PAGES
DEVICE_SIZE = START.size + BLOCK_SIZE + 2 * WORD.size

SYNC = 0x01
# Three bits in QEMU 7.2 for how pages are compressed, five since 9.2.
COMPRESSIONS = 0x3E
DEVICE_STATE = 0x40

_NO_KEYS: NDArray[np.unsignedinteger[Any]] = np.zeros(0, np.uint64)


class Multifd:
    """Reads one multifd channel."""

    def __init__(self) -> None:
        self._started = False
        # Keys of the pages of a packet whose bytes are still to come, the next one first.
        self._keys = _NO_KEYS

    def read(self, piece: Piece, at: int) -> int:
        """Read what begins at an offset; the offset behind it, which may lie beyond the piece: then what is there is passed over.

        Raises IncompleteError and NotUnderstoodError.
        """
        if len(self._keys):
            return self._pages(piece, at)
        magic, version, flags = START.unpack(piece.take(at, START.size))
        if (magic, version) != (MAGIC, VERSION):
            raise NotUnderstoodError(f"no multifd packet of version {VERSION} begins where one should")
        if not self._started:
            self._started = True
            return at + INIT_SIZE
        if flags & ~(SYNC | COMPRESSIONS | DEVICE_STATE):
            raise NotUnderstoodError(f"a multifd packet has flags {flags:#x}")
        if flags & DEVICE_STATE:
            return at + DEVICE_SIZE + piece.number(WORD, at + DEVICE_SIZE - WORD.size)
        return self._packet(piece, at, flags)

    def _packet(self, piece: Piece, at: int, flags: int) -> int:
        packet = piece.take(at, PACKET_SIZE)
        room, count, size = COUNTS.unpack_from(packet, START.size)
        behind = at + PACKET_SIZE
        # A packet that only synchronizes has zeros here since QEMU 9.2; up to then it has the size of the packet before.
        if not count and room in {0, PAGES}:
            return behind
        if room != PAGES:
            raise NotUnderstoodError(f"a multifd packet has room for {room} pages: pages are not of {PAGE} bytes")
        if count > PAGES:
            raise NotUnderstoodError(f"a multifd packet has {count} pages, more than it has room for")
        if flags & COMPRESSIONS:
            return behind + int(size)
        if size != count * PAGE:
            raise NotUnderstoodError(f"a multifd packet has {count} pages in {size} bytes")
        addresses = np.frombuffer(packet, ">u8", count, ADDRESSES_AT)
        if (addresses % PAGE).any():
            raise NotUnderstoodError(f"a multifd packet has pages at addresses that no page of {PAGE} bytes has")
        space = hints.space(packet[BLOCK_AT:ADDRESSES_AT].split(b"\0", 1)[0])
        self._keys = addresses // PAGE % (1 << NUMBER_BITS) + space
        return behind

    def _pages(self, piece: Piece, at: int) -> int:
        """All pages of the packet that are there whole."""
        count = min(len(self._keys), (piece.end - at) // PAGE)
        if not count:
            raise IncompleteError
        keys, self._keys = self._keys[:count], self._keys[count:]
        begins = np.flatnonzero(np.diff(keys, prepend=keys[:1]) != 1)
        ends = [*begins[1:].tolist(), count]
        for begin, end, key in zip(begins.tolist(), ends, keys[begins].tolist(), strict=True):
            piece.runs.append(Run(at + begin * PAGE, end - begin, Kind.PLAIN, key))
        return at + count * PAGE
