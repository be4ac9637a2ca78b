"""Recorded and hand-made streams, against which readers are tested.

qemu/   what a real QEMU sent when it migrated a tiny guest, one file per connection; `python -m tests.vectors.record qemu`
        makes them again
nbd/    what real clients and servers of NBD said to each other, one file per session, read by `nbd_sessions`; the same with `nbd`
"""

from __future__ import annotations

from pathlib import Path

import zstandard

HERE = Path(__file__).parent


def names(kind: str) -> list[str]:
    """The names of all recordings of a kind."""
    return sorted(path.stem for path in (HERE / kind).glob("*.zst"))


def load(kind: str, name: str) -> bytes:
    """The bytes of one recording."""
    return zstandard.decompress((HERE / kind / f"{name}.zst").read_bytes())


def save(kind: str, name: str, stream: bytes) -> None:
    """Keep a recording."""
    # Decompression in one go needs the size in the head, which compress() writes.
    (HERE / kind / f"{name}.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(stream))
