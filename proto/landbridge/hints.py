"""Hints: where in a frame's bytes a page of memory or a block of a disk stands, and which one it is.

The source agent writes them (`agent.stream`), the sending gateway codes by them (`gateway.stream`). A hint that is wrong costs
compression, never correctness: whoever uses one looks at the bytes.

A hint section is a row of runs, 16 bytes each, network byte order, in the order of their offsets:

    offset  size  field
    0       4     where the run begins, in bytes of the frame's payload
    4       2     count of records, at least 1
    6       1     kind, see Kind
    7       1     0
    8       8     key of the first record; that of the next one is greater by one

A key has a space in its upper 24 bits, what the page belongs to within its VM, and a number in the other 40: address or offset
divided by PAGE.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from landbridge.errors import ProtocolError
from landbridge.frame import MAX_HINTS

# Bytes of what has a key: a page of an x86 guest, and a block of a disk.
PAGE = 4096
RUN = struct.Struct("!IHBBQ")
MOST_RUNS = MAX_HINTS // RUN.size
NUMBER_BITS = 40
_MOST_NUMBER = (1 << NUMBER_BITS) - 1


class Kind(IntEnum):
    """What a run's records look like."""

    # PAGE bytes of contents each, and nothing between them: blocks of a disk, pages of a multifd packet.
    PLAIN = 1
    # A record of QEMU's: be64 address and flags, then PAGE bytes. Addresses go up by PAGE.
    PAGE = 2
    # A record of QEMU's: be64 address and flags, then one byte, for a page that is filled with it. Addresses go up by PAGE.
    ZERO = 3


# Bytes of a record before its contents, and in all.
HEADERS = {Kind.PLAIN: 0, Kind.PAGE: 8, Kind.ZERO: 8}
SIZES = {Kind.PLAIN: PAGE, Kind.PAGE: 8 + PAGE, Kind.ZERO: 9}


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one kind, one behind the other; `offset` in bytes of the payload."""

    offset: int
    count: int
    kind: Kind
    key: int

    @property
    def end(self) -> int:
        """The offset behind its last record."""
        return self.offset + self.count * SIZES[self.kind]


def space(name: bytes) -> int:
    """The space of keys for a block of memory or a disk, by its name: two of the same are told apart by their bytes only."""
    return (zlib.crc32(name) >> 8) << NUMBER_BITS


def key(of_space: int, address: int) -> int:
    """The key of the page that has `address` (in bytes) in a space."""
    return of_space | (address // PAGE & _MOST_NUMBER)


def encode(runs: Iterable[Run]) -> bytes:
    """The hint section of a frame: the first MOST_RUNS of `runs`."""
    packed = [RUN.pack(run.offset, run.count, run.kind, 0, run.key) for run in runs]
    return b"".join(packed[:MOST_RUNS])


def decode(section: bytes | bytearray | memoryview, length: int) -> list[Run]:
    """The runs of a hint section, for a payload of `length` bytes.

    Raises ProtocolError if it is not one: runs overlap, are out of order or go beyond the payload.
    """
    if len(section) % RUN.size:
        raise ProtocolError(f"a hint section of {len(section)} bytes arrived, which is no multiple of {RUN.size}")
    runs, at = list[Run](), 0
    for offset, count, kind, zero, first in RUN.iter_unpack(section):
        if kind not in SIZES or not count or zero or offset < at:
            raise ProtocolError(f"hint {len(runs)} of a frame breaks the rules of hints")
        run = Run(offset, count, Kind(kind), first)
        at = run.end
        if at > length:
            raise ProtocolError(f"hint {len(runs)} of a frame points behind its {length} bytes")
        runs.append(run)
    return runs
