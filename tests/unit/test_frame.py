"""Frames: round trips, read three ways, and what a decoder refuses."""

import pytest

from landbridge.errors import ProtocolError
from landbridge.frame import HEADER, MAX_PAYLOAD, Frame, FrameDecoder, FrameType, reason_of, reset

FRAMES = [
    Frame(FrameType.OPEN, 1, 0, b"opening"),
    Frame(FrameType.ACCEPT, 1),
    Frame(FrameType.DATA, 1, 1 << 40, b"x" * 70_000),
    Frame(FrameType.ACK, 0xFFFFFFFF, 70_000),
    Frame(FrameType.FIN, 1, 70_000),
    reset(1, "the disk is full"),
    Frame(FrameType.PING, 0, 7),
    Frame(FrameType.PONG, 0, 7),
]
WIRE = b"".join(frame.encode() for frame in FRAMES)


def test_frames_read_whole_are_the_frames_that_were_sent() -> None:
    decoder = FrameDecoder()
    assert list(decoder.receive_data(WIRE)) == FRAMES
    assert not decoder.incomplete()


def test_frames_read_byte_by_byte_are_the_frames_that_were_sent() -> None:
    decoder = FrameDecoder()
    assert [frame for i in range(len(WIRE)) for frame in decoder.receive_data(WIRE[i : i + 1])] == FRAMES


def test_trailing_bytes_wait_for_the_rest_of_their_frame() -> None:
    decoder = FrameDecoder()
    assert list(decoder.receive_data(WIRE + FRAMES[0].encode()[:-1])) == FRAMES
    assert decoder.incomplete()
    assert list(decoder.receive_data(FRAMES[0].encode()[-1:])) == [FRAMES[0]]


def test_the_header_is_as_the_module_says() -> None:
    wire = Frame(FrameType.DATA, 0x01020304, 0x05060708090A0B0C, b"ab").encode()
    assert wire == bytes([1, 3, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 2]) + b"ab"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ((2, 3, 0, 1, 0, 0), "version 2"),
        ((1, 99, 0, 1, 0, 0), "type 99"),
        ((1, 3, 4, 1, 0, 8), "hints"),
        ((1, 3, 0, 1, 0, MAX_PAYLOAD + 1), "more than its type allows"),
        ((1, 4, 0, 1, 0, 1), "more than its type allows"),
        ((1, 3, 0, 0, 0, 1), "channel 0"),
        ((1, 7, 0, 1, 0, 0), "channel 1"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_before_its_payload_comes(
    header: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        list(FrameDecoder().receive_data(HEADER.pack(*header)))


def test_a_reason_is_cut_and_bytes_that_are_no_text_are_replaced() -> None:
    assert len(reset(1, "é" * 400).payload) == 512
    assert reason_of(Frame(FrameType.RESET, 1, 0, b"a\xff")) == "a\N{REPLACEMENT CHARACTER}"
