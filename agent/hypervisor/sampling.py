"""What a few pages of a VM's memory say of all of it: which to look at, and what they have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import zstandard

from landbridge.v1.types_pb2 import Measurement

PAGE = 4096
# Enough for shares that are right within some percent; a page takes QEMU and libvirt a millisecond or two.
SAMPLED = 64
_GIB = 2**30
# x86 machines keep addresses free below 4 GiB: how much memory lies there, 2 to 3 GiB, depends on the machine.
_LOW, _HOLE, _HIGH = 2 * _GIB, 3 * _GIB, 4 * _GIB
# As the tunnel compresses when it has time for little.
_LEVEL = 1


def addresses(memory: int, random: Random) -> list[int]:
    """Physical addresses of pages taken at random from the memory of an x86 VM, each at most once.

    What lies between 2 and 3 GiB is left out where there is more: it may be here or above 4 GiB.
    """
    pages = range(memory // PAGE)
    chosen = [number * PAGE for number in random.sample(pages, min(SAMPLED, len(pages)))]
    if memory <= _LOW:
        return chosen
    return [at if at < _LOW else at - _HOLE + _HIGH for at in chosen if not _LOW <= at < _HOLE]


def summarize(pages: Iterable[bytes]) -> Measurement:
    """What these pages have in common; the rate is left to who can measure it."""
    sample = list(pages)
    others = b"".join(page for page in sample if any(page))
    compressed = len(zstandard.ZstdCompressor(level=_LEVEL).compress(others)) if others else 0
    return Measurement(
        pages_sampled=len(sample),
        pages_zero=len(sample) - len(others) // PAGE,
        bytes_sampled=len(others),
        bytes_compressed=compressed,
    )
