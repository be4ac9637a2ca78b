"""What is worth compressing, and the bounds of what comes out again."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from gateway.stream.compress import LEVELS, WORTH_TRYING, Compressor, Expander, look_random
from landbridge.errors import ProtocolError
from landbridge.hints import PAGE


def as_pages(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE)


def test_nearly_all_random_pages_look_random() -> None:
    assert look_random(as_pages(random.Random(1).randbytes(1000 * PAGE))).mean() > 0.99


def test_a_few_random_pages_among_many_are_not_looked_for_and_a_quarter_of_them_is() -> None:
    chance = random.Random(6)
    pages = as_pages(bytes(64 * PAGE)).copy()
    pages[[0, 32]] = as_pages(chance.randbytes(2 * PAGE))
    assert not look_random(pages).any()
    assert look_random(pages[:16]).sum() == 1
    pages[::4] = as_pages(chance.randbytes(16 * PAGE))
    assert look_random(pages).nonzero()[0].tolist() == list(range(0, 64, 4))


def test_text_and_pages_that_are_half_empty_do_not_look_random() -> None:
    chance = random.Random(2)
    text = bytes(chance.choices(range(32, 127), k=100 * PAGE))
    half = b"".join(chance.randbytes(PAGE // 2) + bytes(PAGE // 2) for _ in range(100))
    assert not look_random(as_pages(text + half)).any()
    assert look_random(as_pages(b"")).shape == (0,)


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_compressed_comes_out_again(level: int) -> None:
    data = b"landbridge " * 1000
    packed = Compressor().compress(data, level)
    assert packed is not None
    assert Expander().expand(memoryview(packed), len(data)) == data


def test_what_would_not_be_smaller_is_not_compressed() -> None:
    assert Compressor().compress(random.Random(3).randbytes(5000), 4) is None
    assert Compressor().compress(bytes(WORTH_TRYING - 1), 4) is None


def test_what_looks_random_is_compressed_if_its_beginning_shows_that_it_is_not() -> None:
    once = random.Random(4).randbytes(PAGE)
    packed = Compressor().compress_unlikely(once * 40, 2)
    assert packed is not None
    assert len(packed) < 2 * PAGE
    assert Expander().expand(memoryview(packed), 40 * PAGE) == once * 40
    assert Compressor().compress_unlikely(random.Random(5).randbytes(40 * PAGE), 2) is None
    assert Compressor().compress_unlikely(b"", 2) is None


@pytest.mark.parametrize(
    "packed",
    [
        zstandard.compress(bytes(1001)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)),
        zstandard.compress(bytes(1000))[:-1],
        zstandard.compress(bytes(1000)) + b"more",
        b"(\xb5/\xfd\xe0" + (1 << 62).to_bytes(8, "little") + b"\3\0\0",
        b"P*M\x18\4\0\0\0skip",
        b"not zstd",
        b"",
    ],
    ids=["another size", "no size", "torn", "more behind it", "a bomb", "a skippable frame", "no zstd", "nothing"],
)
def test_anything_else_than_the_expected_size_is_refused(packed: bytes) -> None:
    with pytest.raises(ProtocolError):
        Expander().expand(memoryview(packed), 1000)
