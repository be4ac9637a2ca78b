"""What the destination's QEMU answers, however its bytes come, and when an answer of our own may stand among them."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stream.return_path import TAKEN_IN, ReturnPath

# As QEMU 7.2 has said it: an answer to PING 1, and that all was taken in.
PONG = bytes.fromhex("0002 0004 00000001")
SHUT = bytes.fromhex("0001 0004 00000000")


def message(kind: int, data: bytes) -> bytes:
    return struct.pack(">HH", kind, len(data)) + data


def read(data: bytes, cuts: list[int] | None = None) -> ReturnPath:
    path = ReturnPath()
    for start, end in itertools.pairwise(sorted({0, *(cuts or ()), len(data)})):
        path.read(data[start:end])
    return path


def test_nothing_is_awaited_of_who_says_nothing() -> None:
    path = ReturnPath()
    path.read(b"")
    assert (path.is_open, path.is_awaited, path.may_be_answered, path.status) == (False, False, False, None)


@given(st.lists(st.integers(0, 40), max_size=20))
def test_what_qemu_says_last_is_read_however_it_is_cut(cuts: list[int]) -> None:
    told = PONG + message(4, bytes(20)) + SHUT
    path = read(told, [cut for cut in cuts if cut < len(told)])
    assert (path.is_awaited, path.status) == (False, 0)
    path = read(told[:-1], [cut for cut in cuts if cut < len(told) - 1])
    assert (path.is_awaited, path.status) == (True, None)


def test_the_answer_is_the_one_that_qemu_gives() -> None:
    assert TAKEN_IN == SHUT


@pytest.mark.parametrize("status", [1, 0xFFFFFFFF])
def test_an_error_is_one(status: int) -> None:
    assert read(PONG + message(1, status.to_bytes(4, "big"))).status == status


def test_another_message_may_stand_only_between_two() -> None:
    told = PONG + message(9, bytes(300)) + message(5, b"")
    ends = {len(PONG), len(PONG) + 304, len(told)}
    assert not read(told[len(PONG) :]).may_be_answered
    assert {at for at in range(len(told) + 1) if read(told[:at]).may_be_answered} == ends
    assert not read(told + SHUT).may_be_answered


def test_a_shut_of_another_length_says_nothing() -> None:
    assert read(message(1, bytes(8)) + message(1, b"")).status is None
    assert not read(bytes(8)).is_awaited
    assert read(message(1, bytes(8)) + SHUT).status == 0


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_any_bytes_are_read(data: bytes, cuts: list[int]) -> None:
    whole, cut = read(data), read(data, [cut for cut in cuts if cut < len(data)])
    assert (whole.is_open, whole.status, whole.may_be_answered) == (cut.is_open, cut.status, cut.may_be_answered)
