"""zstd with its bounds enforced; and which pages are not worth it.

A level is what the caller turns: 0 means not to code at all, 1 is the quickest, 4 the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from landbridge.errors import ProtocolError
from landbridge.frame import Payload
from landbridge.hints import PAGE

# zstd's level for each of ours. One core did 0.54, 0.29, 0.20 and 0.07 GB/s with 256 KiB of machine code, and left 74, 56, 52 and 50 %.
LEVELS = {1: -5, 2: 1, 3: 3, 4: 6}
# Less is not tried: the head of a zstd frame alone takes about 12 bytes.
WORTH_TRYING = 48

# Of what looks random so much is tried first, and all of it if that is left with less than such a share.
_BEGINNING, _HELPED = 8 * PAGE, 0.95

# How a page is judged: by each 8th of its words of 8 bytes, some at each of some places, so that they are in few lines of the cache.
# Of random ones half of the bits are ones, also among the uppermost bits of the bytes alone. Of what may be so far from that, in bits:
# 4096 +- 5.4 of the deviations of random bits, and 512 +- 3.6.
_PLACES, _AT_EACH = 8, 8
_WORDS = _PLACES * _AT_EACH
_SAMPLED, _ENOUGH = 4, 3 / 16
_UPPERMOST = np.uint64(0x8080808080808080)
_MOST_OFF = 64 * _WORDS * 3 // 100
_MOST_OFF_UPPERMOST = 8 * _WORDS * 8 // 100


class Compressor:
    """One for each encoder: the memory of zstd is used again."""

    def __init__(self) -> None:
        self._levels = {
            level: zstandard.ZstdCompressor(level=of_zstd, write_checksum=False) for level, of_zstd in LEVELS.items()
        }

    def compress(self, data: Payload, level: int) -> bytes | None:
        """The data as one zstd frame that says its size; None if that is not smaller."""
        if len(data) < WORTH_TRYING:
            return None
        found = self._levels[level].compress(data)
        return found if len(found) < len(data) else None

    def compress_unlikely(self, data: Payload, level: int) -> bytes | None:
        """The same for what looks as if it would not help; a look at the beginning costs little."""
        begun = data[:_BEGINNING]
        if len(begun) < len(data) and len(self.compress(begun, level) or begun) > len(begun) * _HELPED:
            return None
        return self.compress(data, level)


class Expander:
    """One for each decoder."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def expand(self, data: memoryview, size: int) -> bytes:
        """What was compressed, which must have `size` bytes. No memory is taken for another size. Raises ProtocolError."""
        try:
            # zstandard allocates what the frame says, and does not look at max_output_size if it does.
            if zstandard.frame_content_size(bytes(data[:18])) == size:
                found = self._zstd.decompress(data, max_output_size=size, allow_extra_data=False)
                if len(found) == size:
                    return found
        except zstandard.ZstdError as error:
            raise ProtocolError("a coded frame has a part that zstd does not understand") from error
        raise ProtocolError(f"a coded frame has a part of another size than {size} bytes")


def look_random(pages: NDArray[np.uint8], rows: NDArray[np.intp] | None, ends: Sequence[int]) -> NDArray[np.bool_]:
    """Which of the pages, of the shape (n, PAGE), are not worth compressing: a quick look, right nearly always.

    `rows`: which pages to look at, in order; None: all of them. `ends`: for each frame, how many of these are in it and in those
    before. Of a frame with many, every 4th is looked at first, and all only if enough of these are such: to send a few apart takes
    longer than it is worth. That leaves out five of six frames of pages of files. Of frames with a quarter of random pages among
    text it takes four of five; with those apart from the text 11 % less is left of a frame.
    """
    words = pages.view(np.uint64).reshape(-1, _PLACES, PAGE // 8 // _PLACES)[:, :, :_AT_EACH]
    even = _are_even(words[::_SAMPLED] if rows is None else words[rows[::_SAMPLED]]).tolist()
    found = np.zeros(ends[-1], np.bool_)
    start = 0
    for end in ends:
        sample = even[-(-start // _SAMPLED) : -(-end // _SAMPLED)]
        if end > start and (end - start <= 4 * _SAMPLED or sum(sample) >= _ENOUGH * len(sample)):
            found[start:end] = _are_even(words[start:end] if rows is None else words[rows[start:end]])
        start = end
    return found


def _are_even(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the pages have about as many ones as zeros, by those of their words (n, _PLACES, _AT_EACH)."""
    near = np.ascontiguousarray(words).reshape(-1, _WORDS)
    ones, uppermost = (
        np.add.reduce(np.bitwise_count(each), axis=1, dtype=np.int64) for each in (near, near & _UPPERMOST)
    )
    found: NDArray[np.bool_] = abs(ones - 32 * _WORDS) <= _MOST_OFF
    found &= abs(uppermost - 4 * _WORDS) <= _MOST_OFF_UPPERMOST
    return found


# Numbers compress better with their upper bytes apart from their lower ones.


def planes(numbers: NDArray[Any]) -> bytes:
    """The numbers, or records of the same size, little-endian as they are: all first bytes, then all second ones, and so on."""
    return numbers.view(np.uint8).reshape(len(numbers), -1).T.tobytes() if len(numbers) else b""


def from_planes(data: Payload, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers, or records; `data` must be a whole number of them."""
    bytes_of = np.frombuffer(data, np.uint8)
    bytes_of = bytes_of.reshape(dtype.itemsize, len(bytes_of) // dtype.itemsize)
    return np.ascontiguousarray(bytes_of.T).reshape(-1).view(dtype)


def steps(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How each number differs from the one before it (the first from 0), small either way: 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4."""
    if not len(numbers):
        return numbers
    difference = numbers.astype("<i8")
    difference[1:] -= difference[:-1].copy()
    found: NDArray[np.uint64] = ((difference << 1) ^ (difference >> 63)).view("<u8")
    return found


def from_steps(found: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers again, modulo 1 << 64."""
    if not len(found):
        return found
    one = np.uint64(1)
    difference = (found >> one) ^ (np.uint64(0) - (found & one))
    return np.cumsum(difference, dtype=np.uint64)
