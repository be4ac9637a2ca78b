"""Recorded sessions of NBD, in nbd/: what the client and the server said, in the order in which it was said.

A file is compressed with zstd, and has pieces: `C` or `S` for the one who said it, its length (be32), its bytes. Block n of every
disk in them has nothing but `fill(n)` in it, or nothing but zeroes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import zstandard

HERE = Path(__file__).parent / "nbd"
PIECE = struct.Struct("!cI")
BLOCK = 4096
DISK_BLOCKS = 255
# Blocks that were never written, in the disks that are copied.
HOLE = range(64, 144)

# Whether the client said it, and what.
Session = list[tuple[bool, bytes]]


def fill(block: int) -> int:
    """The byte that a block is filled with, another for each block of a disk."""
    return block % DISK_BLOCKS + 1


def contents(offset: int, length: int) -> bytes:
    """What such a disk has there."""
    first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
    blocks = b"".join(bytes([fill(block)]) * BLOCK for block in range(first, last))
    return blocks[offset - first * BLOCK :][:length]


def names() -> list[str]:
    """The names of all recordings."""
    return sorted(path.stem for path in HERE.glob("*.zst"))


def load(name: str) -> Session:
    """One recording."""
    raw = zstandard.decompress((HERE / f"{name}.zst").read_bytes())
    session, at = Session(), 0
    while at < len(raw):
        who, length = PIECE.unpack_from(raw, at)
        at += PIECE.size + length
        session.append((who == b"C", raw[at - length : at]))
    return session


def save(name: str, session: Session) -> None:
    """Keep a recording."""
    raw = b"".join(PIECE.pack(b"C" if is_client else b"S", len(data)) + data for is_client, data in session)
    (HERE / f"{name}.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(raw))
