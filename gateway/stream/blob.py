"""What goes on the wire for a coded frame: a blob, which is decoded alone.

A blob is HEAD, then the columns in the order of Column. HEAD, network byte order:

    offset  size  field
    0       1     version, 2
    1       1     which columns are compressed: bit 0 for the first one
    2       2     count of runs
    4       2     count of pages
    6       2     count of pages that are logged: the first so many of those that are sent as a delta or whole
    8       4     length of the payload
    12      8     checksum of the payload, see checksum_of
    20      8     vm: whose keys these are
    28      8     domain: within which the pages may be found
    36      8     serial of the first logged page; the others follow
    44      4 x 6 bytes of each column in the blob

A reference to a logged page is serial * 2 + ring, ring 0: of the gateway that sends the frame, 1: of the one that receives it.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from gateway.stream.compress import Expander
from gateway.stream.skeleton import TOLD_SIZE
from landbridge.errors import ProtocolError
from landbridge.frame import MAX_PAYLOAD, Payload
from landbridge.hints import MOST_RUNS, PAGE

VERSION = 2
HEAD = struct.Struct("!BBHHHIQQQQ6I")
MOST_PAGES = MAX_PAYLOAD // PAGE
# Frames that are encoded together. All but zstd takes two thirds, for each of eight, of what it takes for one (ADR 8, "Speed").
MOST_TOGETHER = 8
# A blob is longer than its payload only if pages are logged with it: by its head, and by what runs and references take at worst.
MOST_BLOB = MAX_PAYLOAD + HEAD.size + MOST_RUNS * TOLD_SIZE + MOST_PAGES * 9
# Of what is behind the last serial of a blob: a reference to it fits into a u64.
_MOST_FIRST = 1 << 63
_CUT = struct.Struct("<IHH")
_digest = xxhash.xxh3_64_digest


def checksum_of(length: int, runs: Payload, digests: NDArray[np.uint64], rest: Payload) -> int:
    """What a payload is verified by: xxh3-64 of all that it follows from, instead of its bytes, of which each page's were hashed already.

    That is its length (4 bytes), how many bytes its runs take and how many pages they have (2 each), the runs as in SHAPE, xxh3-64 of
    each page (8 each), and xxh3-64 of REST (8, network byte order); all others little-endian.
    """
    told = _CUT.pack(length, len(runs), len(digests)), runs, digests.astype("<u8", copy=False).data, _digest(rest)
    return xxhash.xxh3_64_intdigest(b"".join(told))


class What:
    """What became of a page. Plain numbers, here and below: those of an enum take numpy longer to look up than to work with."""

    ZERO = 0
    # The same as an earlier page of the frame.
    REPEAT = 1
    # The same as a logged page.
    REFERENCE = 2
    # The XOR with a logged page is sent.
    DELTA = 3
    # Sent whole; as RAW those that look random, which would spoil how well the others compress.
    LITERAL = 4
    RAW = 5
    ALL = 6


class Column:
    """The columns of a blob, and what is in them."""

    # Runs, see skeleton; then What for each page.
    SHAPE = 0
    # Bytes outside of the runs.
    REST = 1
    # Of REFERENCE pages: references, as steps, in planes. Of REPEAT pages: which page of the frame, 1 byte each.
    DUPLICATES = 2
    # Of DELTA pages: references to the other version, as steps, in planes; then the XORs.
    DELTAS = 3
    # Of LITERAL and RAW pages: the pages.
    LITERALS = 4
    RAWS = 5


@dataclass(frozen=True, slots=True)
class Head:
    """What HEAD says, and the columns after it, as they came."""

    flags: int
    runs: int
    pages: int
    logged: int
    length: int
    checksum: int
    vm: int
    domain: int
    first: int
    columns: tuple[memoryview, ...]

    @classmethod
    def of(cls, blob: memoryview) -> Self:
        """Raises ProtocolError."""
        if not HEAD.size <= len(blob) <= MOST_BLOB:
            raise ProtocolError(f"a coded frame of {len(blob)} bytes arrived, which cannot be")
        version, flags, runs, pages, logged, length, checksum, vm, domain, first, *sizes = HEAD.unpack_from(blob)
        if version != VERSION:
            raise ProtocolError(
                f"a coded frame of version {version} arrived, and this end speaks version {VERSION}; update the older end"
            )
        is_bounded = runs <= MOST_RUNS and pages <= MOST_PAGES and logged <= pages and length <= MAX_PAYLOAD
        if (
            not is_bounded
            or flags >> Column.RAWS + 1
            or HEAD.size + sum(sizes) != len(blob)
            or first + logged > _MOST_FIRST
        ):
            raise ProtocolError("a coded frame has a head that contradicts itself")
        ends = itertools.accumulate(sizes, initial=HEAD.size)
        columns = tuple(blob[start:end] for start, end in itertools.pairwise(ends))
        return cls(flags, runs, pages, logged, length, checksum, vm, domain, first, columns)

    def column(self, zstd: Expander, which: int, size: int) -> Payload:
        """A column of so many bytes. Raises ProtocolError if it has not."""
        data = self.columns[which]
        if self.flags >> which & 1:
            return zstd.expand(data, size)
        if len(data) != size:
            raise ProtocolError(f"a coded frame has a part of another size than {size} bytes")
        return data
