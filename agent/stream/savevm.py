"""QEMU's migration stream proper, the main channel: sections and commands, with the pages of memory among them.

    stream    "QEVM", be32 version 3, then records that begin with a byte: its type
    section   START: be32 section, name, be32 instance, be32 version; PART and END: be32 section; then the section's own
              records. FULL is like START, and has the state of a device.
    memory    the records of section `ram`: be64 address and flags, then what the flags say

What a device's state is made of only the device knows. So whatever follows the first FULL section cannot be told apart; with it
memory is over, unless it stands in a PACKAGED command, of which the length is known: then pages follow (post-copy). What stands
behind all devices, `description` finds.
(QEMU: migration/savevm.c, migration/ram.c)
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from agent.stream.description import Description
from agent.stream.piece import BYTE, HALF, LONG, WORD, NotUnderstoodError, Piece
from landbridge import hints
from landbridge.hints import PAGE, SIZES, Kind, Run

MAGIC = b"QEVM"
VERSION = 3
RAM_VERSION = 4
# Bounds what is remembered; a VM has a dozen.
MOST_BLOCKS = 4096
# What the count of a run has room for.
MOST_RECORDS = 0xFFFF


class Record(IntEnum):
    """Types of records: QEMU_VM_..."""

    EOF = 0
    SECTION_START = 1
    SECTION_PART = 2
    SECTION_END = 3
    SECTION_FULL = 4
    SUBSECTION = 5
    CONFIGURATION = 7
    COMMAND = 8
    SECTION_FOOTER = 0x7E


class Command(IntEnum):
    """MIG_CMD_..., as far as they are treated in a way of their own."""

    POSTCOPY_ADVISE = 3
    PACKAGED = 7
    ENABLE_COLO = 8
    LAST_KNOWN = 11


class Flag(IntEnum):
    """RAM_SAVE_FLAG_..."""

    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


# Bits of a page's address that are flags.
FLAGS = PAGE - 1
# The flags of a page of the same block as the one before, and what it is to whoever gets a hint.
KINDS = {Flag.PAGE | Flag.CONTINUE: Kind.PAGE, Flag.ZERO | Flag.CONTINUE: Kind.ZERO}
_SIZES = {flags: SIZES[kind] for flags, kind in KINDS.items()}
CONTINUED_XBZRLE = Flag.XBZRLE | Flag.CONTINUE
# Bytes before the data of such a page: address and flags, encoding, be16 length.
XBZRLE_SIZE = LONG.size + BYTE.size + HALF.size
XBZRLE_ENCODING = 1
# How many records are compared one by one, and by how many then at a time: few pages follow each other in a busy guest's
# memory, and many thousand in an empty one. Measured on one core: 0.15 us for a comparison, 5 us for a window and then 3 ns each.
ONE_BY_ONE = 32
WINDOW = 4096
_ADDRESSES = np.arange(WINDOW, dtype=np.uint64) * np.uint64(PAGE)
_unpack_long = LONG.unpack_from
_unpack_half = HALF.unpack_from


class SaveVm:
    """Reads the main channel."""

    def __init__(self) -> None:
        self._step: Callable[[Piece, int], int] = self._header
        self._records: dict[int, Callable[[Piece, int], int]] = {
            Record.EOF: self._eof,
            Record.SECTION_START: self._start,
            Record.SECTION_PART: self._part,
            Record.SECTION_END: self._end,
            Record.SECTION_FULL: self._full,
            Record.SUBSECTION: self._subsection,
            Record.CONFIGURATION: self._configuration,
            Record.COMMAND: self._command,
            Record.SECTION_FOOTER: self._footer,
        }
        # The number of the section that is memory, once it has begun.
        self._section = -1
        self._ended = False
        # Whether QEMU has said all that it has to say.
        self.is_over = False
        self._description = Description()
        # Names of blocks, and their lengths in bytes.
        self._blocks: dict[bytes, int] = {}
        # Bytes of memory whose blocks are still to be listed.
        self._unlisted = 0
        # The block to which records refer that go on; without one its length is 0.
        self._space = 0
        self._length = 0

    def read(self, piece: Piece, at: int) -> int:
        """Read what begins at an offset; the offset behind it, which may lie beyond the piece: then what is there is passed over.

        Raises IncompleteError and NotUnderstoodError.
        """
        return self._step(piece, at)

    def _header(self, piece: Piece, at: int) -> int:
        version = piece.number(WORD, at + len(MAGIC))
        if version != VERSION:
            raise NotUnderstoodError(f"the stream is of version {version}")
        self._step = self._record
        return at + len(MAGIC) + WORD.size

    # Sections and commands

    def _record(self, piece: Piece, at: int) -> int:
        kind = piece.number(BYTE, at)
        read = self._records.get(kind)
        if read is None:
            raise NotUnderstoodError(f"a record has type {kind}")
        return read(piece, at + BYTE.size)

    def _configuration(self, piece: Piece, at: int) -> int:
        """The name of a kind of machine; subsections may follow."""
        return at + WORD.size + piece.number(WORD, at)

    def _start(self, piece: Piece, at: int) -> int:
        section = piece.number(WORD, at)
        name = piece.name(at + WORD.size)
        at += WORD.size + 1 + len(name) + WORD.size
        version = piece.number(WORD, at)
        if name != b"ram":
            raise NotUnderstoodError(f"section {_shown(name)} is not memory")
        if version != RAM_VERSION or self._section >= 0:
            raise NotUnderstoodError(f"memory is of version {version}, or comes twice")
        self._section = section
        self._step = self._ram
        return at + WORD.size

    def _command(self, piece: Piece, at: int) -> int:
        command, size = piece.number(HALF, at), piece.number(HALF, at + HALF.size)
        at += 2 * HALF.size
        if not 0 < command <= Command.LAST_KNOWN or command == Command.ENABLE_COLO:
            raise NotUnderstoodError(f"command {command} is not known")
        if command == Command.PACKAGED:
            if size != WORD.size:
                raise NotUnderstoodError(f"a command with a package has {size} bytes")
            return at + WORD.size + piece.number(WORD, at)
        if command == Command.POSTCOPY_ADVISE and size:
            # What pages its host has, all sizes in one number, and then its guest's.
            self._check_page_size(piece.number(LONG, at + LONG.size))
        return at + size

    def _subsection(self, piece: Piece, at: int) -> int:
        """One of the configuration."""
        name = piece.name(at)
        at += 1 + len(name) + WORD.size
        match name:
            case b"configuration/target-page-bits":
                self._check_page_size(1 << min(piece.number(WORD, at), 63))
                return at + WORD.size
            case b"configuration/uuid":
                return at + 16
            case b"configuration/capabilities":
                count = piece.number(WORD, at)
                at += WORD.size
                for _ in range(count):
                    at += 1 + len(piece.name(at))
                return at
        raise NotUnderstoodError(f"the configuration has a part {_shown(name)}")

    @staticmethod
    def _check_page_size(size: int) -> None:
        if size != PAGE:
            raise NotUnderstoodError(f"pages have {size} bytes")

    def _part(self, piece: Piece, at: int) -> int:
        section = piece.number(WORD, at)
        if section != self._section:
            raise NotUnderstoodError(f"section {section} has a part, which is not memory")
        self._step = self._ram
        return at + WORD.size

    def _end(self, piece: Piece, at: int) -> int:
        behind = self._part(piece, at)
        self._ended = True
        return behind

    def _footer(self, piece: Piece, at: int) -> int:
        """The number of the section that is over."""
        piece.number(WORD, at)
        return at + WORD.size

    def _full(self, piece: Piece, at: int) -> int:
        if not self._ended:
            raise NotUnderstoodError("the state of a device comes before the end of memory")
        return self._eof(piece, at)

    def _eof(self, piece: Piece, at: int) -> int:
        self._step = self._rest
        return self._rest(piece, at)

    def _rest(self, piece: Piece, at: int) -> int:
        """The state of devices, and whatever else comes up to the end."""
        self.is_over = self._ended and self._description.is_whole(piece.data[at:])
        return piece.end

    # Memory

    def _ram(self, piece: Piece, at: int) -> int:
        """A record of memory; or all of those together that a migration has by the million."""
        behind = self._pages(piece, at)
        if behind > at:
            return behind
        word = piece.number(LONG, at)
        if word == Flag.EOS:
            self._step = self._record
            return at + LONG.size
        if word == Flag.MULTIFD_FLUSH:
            return at + LONG.size
        flags = word & FLAGS
        if flags == Flag.MEM_SIZE:
            self._blocks = {}
            self._unlisted = word - flags
            self._step = self._block
            return at + LONG.size
        return self._other_page(piece, at + LONG.size, word)

    def _pages(self, piece: Piece, at: int) -> int:
        """Whole pages that do not name their block; the offset behind them."""
        data, end, space, length = piece.data, piece.end, self._space, self._length
        append = piece.runs.append
        while at + LONG.size <= end:
            (word,) = _unpack_long(data, at)
            address = word & ~FLAGS
            if address >= length:
                break
            flags = word - address
            if flags == CONTINUED_XBZRLE and at + XBZRLE_SIZE <= end and data[at + LONG.size] == XBZRLE_ENCODING:
                at += XBZRLE_SIZE + _unpack_half(data, at + XBZRLE_SIZE - HALF.size)[0]
                continue
            kind = KINDS.get(flags)
            if kind is None:
                break
            size = _SIZES[flags]
            behind = at + size
            if behind > end:
                break
            count = 1
            if behind + LONG.size <= end and _unpack_long(data, behind)[0] == word + PAGE:
                most = min((end - at) // size, -(-(length - address) // PAGE), MOST_RECORDS)
                count = alike(data, at, word, size, most)
                behind = at + count * size
            append(Run(at, count, kind, hints.key(space, address)))
            at = behind
        return at

    def _other_page(self, piece: Piece, at: int, word: int) -> int:
        """A page that names its block, or one that is compressed."""
        flags = word & FLAGS
        kind = flags & ~Flag.CONTINUE
        if kind not in {Flag.PAGE, Flag.ZERO, Flag.XBZRLE, Flag.COMPRESS_PAGE}:
            raise NotUnderstoodError(f"a record of memory has flags {flags:#x}")
        space, length = self._space, self._length
        if not flags & Flag.CONTINUE:
            name = piece.name(at)
            at += 1 + len(name)
            if name not in self._blocks:
                raise NotUnderstoodError(f"a page is of block {_shown(name)}, which was not listed")
            space, length = hints.space(name), self._blocks[name]
        address = word & ~FLAGS
        if address >= length:
            raise NotUnderstoodError(f"a page has address {address:#x}, beyond its block")
        end = self._contents(piece, at, kind)
        if kind == Flag.PAGE:
            piece.runs.append(Run(at, 1, Kind.PLAIN, hints.key(space, address)))
        self._space, self._length = space, length
        return end

    @staticmethod
    def _contents(piece: Piece, at: int, kind: int) -> int:
        """Where a page's contents end."""
        match kind:
            case Flag.PAGE:
                piece.take(at + PAGE - 1, 1)
                return at + PAGE
            case Flag.ZERO:
                piece.number(BYTE, at)
                return at + BYTE.size
            case Flag.XBZRLE:
                encoding = piece.number(BYTE, at)
                if encoding != XBZRLE_ENCODING:
                    raise NotUnderstoodError(f"a page is in encoding {encoding} of XBZRLE")
                return at + BYTE.size + HALF.size + piece.number(HALF, at + BYTE.size)
            case _:
                return at + WORD.size + piece.number(WORD, at)

    def _block(self, piece: Piece, at: int) -> int:
        """One of the blocks that are listed: name, be64 length, and in some streams more."""
        if not self._unlisted:
            # Behind the last one stands what may stand behind any, or a record of memory, which has flags.
            if not piece.number(LONG, at) & FLAGS:
                return at + LONG.size
            self._step = self._ram
            return at
        # The size of its pages if they are huge and post-copy is on, or its address in the guest if shared memory is left out:
        # a number below 1 << 56, so it begins with a zero byte, which no name does.
        if self._blocks and not piece.number(BYTE, at):
            piece.number(LONG, at)
            return at + LONG.size
        name = piece.name(at)
        length = piece.number(LONG, at + 1 + len(name))
        if not name or length > self._unlisted or len(self._blocks) >= MOST_BLOCKS:
            raise NotUnderstoodError(f"block {_shown(name)} of {length} bytes has no place in the list of blocks")
        self._unlisted -= length
        self._blocks[name] = length
        return at + 1 + len(name) + LONG.size


def alike(data: bytes | memoryview, at: int, word: int, size: int, most: int) -> int:
    """How many records of `size` bytes, of `most`, have the heads `word`, `word + PAGE`, and so on; the first one has."""
    for count in range(1, min(most, ONE_BY_ONE)):
        if _unpack_long(data, at + count * size)[0] != word + count * PAGE:
            return count
    count = min(most, ONE_BY_ONE)
    while count < most:
        window = min(count, WINDOW, most - count)
        heads: np.ndarray[tuple[int], np.dtype[np.uint64]] = np.ndarray(
            (window,), ">u8", data, at + count * size, (size,)
        )
        wrong = heads - np.uint64(word + count * PAGE) != _ADDRESSES[:window]
        if wrong.any():
            return count + int(wrong.argmax())
        count += window
    return count


def _shown(name: bytes) -> str:
    """A name as it can be shown."""
    return repr(name.decode(errors="replace"))
