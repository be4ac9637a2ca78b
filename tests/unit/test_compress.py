"""What is worth compressing, and the bounds of what comes out again."""

from __future__ import annotations

import itertools
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


def of_one_frame(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return look_random(pages, None, [len(pages)])


def test_nearly_all_random_pages_look_random() -> None:
    assert of_one_frame(as_pages(random.Random(1).randbytes(1000 * PAGE))).mean() > 0.99


def test_a_few_random_pages_among_many_are_not_looked_for_and_a_quarter_of_them_is() -> None:
    chance = random.Random(6)
    pages = as_pages(bytes(64 * PAGE)).copy()
    pages[[0, 32]] = as_pages(chance.randbytes(2 * PAGE))
    assert not of_one_frame(pages).any()
    assert of_one_frame(pages[:16]).sum() == 1
    pages[::4] = as_pages(chance.randbytes(16 * PAGE))
    assert of_one_frame(pages).nonzero()[0].tolist() == list(range(0, 64, 4))


def test_text_and_pages_that_are_half_empty_do_not_look_random() -> None:
    chance = random.Random(2)
    text = bytes(chance.choices(range(32, 127), k=100 * PAGE))
    half = b"".join(chance.randbytes(PAGE // 2) + bytes(PAGE // 2) for _ in range(100))
    assert not of_one_frame(as_pages(text + half)).any()
    assert of_one_frame(as_pages(b"")).shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_judged_together_as_each_alone(seed: int) -> None:
    chance = random.Random(seed)
    frames = []
    for count in chance.choices((0, 3, 16, 17, 64), k=4):
        share = chance.choice((0.0, 0.3, 1.0))
        frames.append([chance.randbytes(PAGE) if chance.random() < share else bytes(PAGE) for _ in range(count)])
    pages = as_pages(b"".join(b"".join(each) for each in frames)).copy()
    ends = np.cumsum([len(each) for each in frames]).tolist()
    expected = [row for start, end in itertools.pairwise([0, *ends]) for row in looked_at(pages, start, end)]
    assert look_random(pages, None, ends).nonzero()[0].tolist() == expected
    # The same pages, scattered among others.
    rows = np.sort(np.array(chance.sample(range(2 * len(pages) + 1), len(pages)), np.intp))
    among = np.zeros((2 * len(pages) + 1, PAGE), np.uint8)
    among[rows] = pages
    assert look_random(among, rows, ends).nonzero()[0].tolist() == expected


def looked_at(pages: NDArray[np.uint8], start: int, end: int) -> list[int]:
    """The pages of a frame that look random, where every 4th of all is looked at first."""
    sampled = [row for row in range(start, end) if row % 4 == 0]
    even = (start + of_one_frame_each(pages[start:end]).nonzero()[0]).tolist()
    is_enough = end - start <= 16 or len(set(sampled) & set(even)) >= len(sampled) * 3 / 16
    return even if is_enough else []


def of_one_frame_each(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return look_random(pages, None, list(range(1, len(pages) + 1))) if len(pages) else np.zeros(0, np.bool_)


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
