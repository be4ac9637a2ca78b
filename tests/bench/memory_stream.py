"""Migration streams of QEMU made for measuring: what is in the pages is as in a guest's page cache, the records are as QEMU 7.2's."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landbridge import hints
from landbridge.hints import PAGE, SIZES, Kind, Run

# What a Debian server has read: libraries, programs, Python, documentation. From each file at most so much, as guests read in part.
PLACES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/bin",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/share/doc",
    "/usr/share/man",
)
MOST_OF_FILE = 2 << 20
BLOCK = b"pc.ram"
FRAME = 256 << 10
_SECTION = 2
# Flags of records (migration/ram.c).
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20

# A page's number, and its contents; None: a zero page.
Record = tuple[int, bytes | None]


@dataclass(frozen=True, slots=True)
class HintedFrame:
    """What an agent puts into a frame: bytes of the stream, and the hints to them."""

    payload: bytes
    hints: bytes


def page_cache(pages: int, seed: int = 1) -> list[bytes]:
    """Pages of files of this machine, the files in any order, each beginning a page; other files for another seed."""
    chance = np.random.default_rng(seed)
    paths = sorted(
        path for place in PLACES for path in Path(place).rglob("*") if path.is_file() and not path.is_symlink()
    )
    found: list[bytes] = []
    for index in chance.permutation(len(paths)).tolist():
        with paths[index].open("rb") as file:
            contents = file.read(MOST_OF_FILE)
        found += [contents[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0, len(contents), PAGE)]
        if len(found) >= pages:
            return found[:pages]
    raise ValueError(f"this machine has files of {len(found)} pages only, and not of {pages}")


def random_pages(pages: int, seed: int = 1) -> list[bytes]:
    """Pages that nothing helps with."""
    whole = np.random.default_rng(seed).bytes(pages * PAGE)
    return [whole[at : at + PAGE] for at in range(0, len(whole), PAGE)]


def in_a_row(pages: Iterable[bytes]) -> list[Record]:
    """Each page behind the one before."""
    return list(enumerate(pages))


def among_zeros(pages: list[bytes], seed: int = 1) -> list[Record]:
    """The pages in stretches, between as many zero pages in all, as in a guest whose memory is half empty."""
    chance = np.random.default_rng(seed)
    found: list[Record] = []
    at = 0
    while at < len(pages):
        stretch = int(chance.integers(1, 400))
        number = len(found)
        found += [(number + i, page) for i, page in enumerate(pages[at : at + stretch])]
        at += stretch
        number = len(found)
        found += [(number + i, None) for i in range(int(chance.integers(1, 400)))]
    return found


def changed(records: list[Record], words: int, seed: int = 1) -> list[Record]:
    """The same pages, each with 1 to `words` words changed, as a running guest's; every third is not sent again."""
    chance = np.random.default_rng(seed)
    found: list[Record] = []
    for number, page in records:
        if page is None or chance.integers(3) == 0:
            continue
        contents = np.frombuffer(page, np.uint64).copy()
        at = chance.integers(0, len(contents), int(chance.integers(1, words + 1)))
        contents[at] += chance.integers(1, 1 << 32, len(at)).astype(np.uint64)
        found.append((number, contents.tobytes()))
    return found


def frames(records: Iterable[Record]) -> Iterator[HintedFrame]:
    """The records in frames, as an agent cuts and hints them."""
    space = hints.space(BLOCK)
    parts: list[bytes] = []
    runs: list[Run] = []
    size = 0
    for number, page in records:
        kind = Kind.ZERO if page is None else Kind.PAGE
        if size + SIZES[kind] > FRAME:
            yield HintedFrame(b"".join(parts), hints.encode(runs))
            parts, runs, size = [], [], 0
        parts.append(_record(number, page))
        last = runs[-1] if runs else None
        if last is not None and last.kind is kind and last.key + last.count == space | number:
            runs[-1] = Run(last.offset, last.count + 1, kind, last.key)
        else:
            runs.append(Run(size, 1, kind, space | number))
        size += SIZES[kind]
    if parts:
        yield HintedFrame(b"".join(parts), hints.encode(runs))


def stream(records: list[Record]) -> bytes:
    """The whole stream: all that QEMU's loader wants, but for the devices."""
    total = (1 + max(number for number, _ in records)) * PAGE
    name = bytes([len(BLOCK)]) + BLOCK
    start = b"\x01" + struct.pack("!IB", _SECTION, 3) + b"ram" + struct.pack("!II", 0, 4)
    sizes = struct.pack("!Q", total | _MEM_SIZE) + name + struct.pack("!Q", total)
    end = struct.pack("!Q", _EOS) + b"\x7e" + struct.pack("!I", _SECTION)
    part = b"\x02" + struct.pack("!I", _SECTION)
    # The first record of a section names its block.
    first = struct.pack("!Q", _ZERO) + name + b"\0"
    head = b"QEVM" + struct.pack("!I", 3) + start + sizes + end + part + first
    return head + b"".join(_record(*each) for each in records) + end + b"\0"


def _record(number: int, page: bytes | None) -> bytes:
    if page is None:
        return struct.pack("!QB", number * PAGE | _ZERO | _CONTINUE, 0)
    return struct.pack("!Q", number * PAGE | _PAGE | _CONTINUE) + page
