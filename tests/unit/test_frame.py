"""Frames: round trips, read three ways, and what a decoder and an acknowledgement refuse."""

from __future__ import annotations

import pytest

from landbridge.errors import ProtocolError
from landbridge.frame import (
    DIGEST_SIZE,
    HEADER,
    LARGE,
    MAX_HINTS,
    MAX_PAYLOAD,
    MAX_RANGES,
    MAX_REASON,
    MAX_SMALL_PAYLOAD,
    SPARE,
    Acknowledgement,
    Frame,
    FrameDecoder,
    FrameType,
    Pool,
    reason_of,
    reset,
)

HIGHEST = 2**64 - 1
FRAMES = [
    Frame(FrameType.OPEN, 1, 0, b"opening"),
    Acknowledgement(0, 0).frame(FrameType.ACCEPT, 1),
    Frame(FrameType.DATA, 1, 1 << 40, b"x" * 70_000),
    Frame(FrameType.DATA, HIGHEST, HIGHEST, b"page", b"hints"),
    Frame(FrameType.DATA_CHECKED, 1, 70_000, b"page" + b"d" * DIGEST_SIZE, b"h"),
    Acknowledgement(70_000, 80_000, 7, ((90_000, 95_000),)).frame(FrameType.ACK, HIGHEST),
    Frame(FrameType.FIN, 1, 70_000, b"d" * DIGEST_SIZE),
    reset(1, "the disk is full"),
    Frame(FrameType.CLOSE, 1),
    Frame(FrameType.UNKNOWN, 1),
    Frame(FrameType.PROBE, 1, 7),
    Frame(FrameType.PING, 0, 7),
    Frame(FrameType.PONG, 0, 7),
    Frame(FrameType.CODED, 1, 70_000, b"coded"),
    Frame(FrameType.LOG_STATE, 0, 0, b"state"),
    Frame(FrameType.LOG_ACK, 0, 0, b"ranges"),
    Frame(FrameType.LOG_FORGET, 0, 0, b"out of step"),
]
WIRE = b"".join(frame.encode() for frame in FRAMES)


def test_the_vectors_have_every_type() -> None:
    assert {frame.type for frame in FRAMES} == set(FrameType)


def test_frames_read_whole_are_the_frames_that_were_sent() -> None:
    decoder = FrameDecoder()
    assert decoder.receive_data(WIRE) == FRAMES
    assert not decoder.incomplete()


def test_frames_read_byte_by_byte_are_the_frames_that_were_sent() -> None:
    decoder = FrameDecoder()
    assert [frame for i in range(len(WIRE)) for frame in decoder.receive_data(WIRE[i : i + 1])] == FRAMES
    assert not decoder.incomplete()


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 1, len(FRAMES[0].encode()) - 1])
def test_trailing_bytes_wait_for_the_rest_of_their_frame(cut: int) -> None:
    decoder, trailing = FrameDecoder(), FRAMES[0].encode()
    assert decoder.receive_data(WIRE + trailing[:cut]) == FRAMES
    assert decoder.incomplete()
    assert decoder.receive_data(trailing[cut:]) == [FRAMES[0]]
    assert not decoder.incomplete()


def test_bytes_that_are_written_into_the_buffer_are_the_payload_itself() -> None:
    decoder, wire = FrameDecoder(), FRAMES[2].encode()
    assert len(decoder.buffer()) == HEADER.size
    decoder.buffer()[:] = wire[: HEADER.size]
    assert decoder.received(HEADER.size) is None
    body = decoder.buffer()
    assert len(body) == 70_000
    body[:60_000] = wire[HEADER.size :][:60_000]
    assert decoder.received(60_000) is None
    assert len(decoder.buffer()) == 10_000
    decoder.buffer()[:] = wire[-10_000:]
    frame = decoder.received(10_000)
    assert frame == FRAMES[2]
    assert isinstance(frame.payload, memoryview)
    assert frame.payload.obj is body.obj
    assert len(decoder.buffer()) == HEADER.size


def test_a_frame_keeps_its_bytes_when_the_next_one_comes() -> None:
    decoder = FrameDecoder()
    [first] = decoder.receive_data(FRAMES[3].encode())
    decoder.receive_data(Frame(FrameType.DATA, 1, 0, b"PAGE", b"HINTS").encode())
    assert (bytes(first.hints), bytes(first.payload)) == (b"hints", b"page")


def test_a_pool_gives_large_buffers_again_and_keeps_only_so_many() -> None:
    pool = Pool()
    rooms = [pool.take(LARGE) for _ in range(SPARE + 5)]
    buffers = {id(room.obj) for room in rooms}
    for room in rooms:
        assert len(room) == LARGE
        pool.give(room)
    again = [pool.take(MAX_PAYLOAD) for _ in range(SPARE)]
    assert len(pool._spare) == 0
    assert {id(room.obj) for room in again} < buffers


def test_a_pool_takes_back_nothing_that_is_not_its_own() -> None:
    pool = Pool()
    for payload in (b"x" * MAX_PAYLOAD, bytearray(MAX_PAYLOAD), memoryview(b"x" * MAX_PAYLOAD), pool.take(LARGE - 1)):
        pool.give(payload)
    assert pool._spare == []


@pytest.mark.parametrize("length", [0, 1, LARGE - 1, LARGE, MAX_PAYLOAD])
@pytest.mark.parametrize("size", [1000, LARGE, MAX_PAYLOAD])
def test_what_is_kept_of_a_buffer_takes_at_most_twice_its_bytes(length: int, size: int) -> None:
    pool = Pool()
    room = pool.take(size)
    length = min(length, size)
    room[:length] = b"x" * length
    kept = pool.keep(room, length)
    assert kept == b"x" * length
    assert len(memoryview(kept.obj)) <= 2 * length
    assert len(pool._spare) == (size >= LARGE and kept.obj is not room.obj)


def test_a_decoder_with_a_pool_reads_large_frames_into_it() -> None:
    pool = Pool()
    large = Frame(FrameType.DATA, 1, 0, b"y" * (MAX_PAYLOAD - 5), b"hints")
    decoder = FrameDecoder(pool)
    buffers = set()
    for _ in range(3):
        [frame] = decoder.receive_data(large.encode())
        assert frame == large
        pool.give(frame.payload)
        buffers |= {id(buffer) for buffer in pool._spare}
        assert decoder.receive_data(FRAMES[2].encode()) == [FRAMES[2]]
    assert len(buffers) == 1


def test_the_header_is_as_the_module_says() -> None:
    wire = Frame(FrameType.DATA, 0x0102030405060708, 0x1112131415161718, b"abc", b"hi").encode()
    header = "02 03 0002 00000005 0102030405060708 1112131415161718"
    assert wire == bytes.fromhex(header) + b"hi" + b"abc"
    assert len(wire) == Frame(FrameType.DATA, 1, 0, b"abc", b"hi").size()


def test_a_frame_may_be_as_large_as_its_type_allows() -> None:
    limits = {
        FrameType.DATA: MAX_PAYLOAD,
        FrameType.OPEN: MAX_SMALL_PAYLOAD,
        FrameType.ACK: MAX_SMALL_PAYLOAD,
        FrameType.FIN: DIGEST_SIZE,
        FrameType.RESET: MAX_REASON,
    }
    for kind, limit in limits.items():
        [frame] = FrameDecoder().receive_data(Frame(kind, 1, 0, bytes(limit)).encode())
        assert len(frame.payload) == limit
        with pytest.raises(ProtocolError, match="more than its type allows"):
            FrameDecoder().receive_data(Frame(kind, 1, 0, bytes(limit + 1)).encode()[: HEADER.size])


def test_the_hints_may_be_all_of_a_payload_up_to_their_limit() -> None:
    [frame] = FrameDecoder().receive_data(Frame(FrameType.DATA, 1, 0, b"", bytes(MAX_HINTS)).encode())
    assert len(frame.hints) == MAX_HINTS
    assert frame.payload == b""


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ((1, 3, 0, 0, 1, 0), "version 1"),
        ((3, 3, 0, 0, 1, 0), "version 3"),
        ((2, 0, 0, 0, 1, 0), "type 0"),
        ((2, 17, 0, 0, 1, 0), "type 17"),
        ((2, 3, 5, 4, 1, 0), "5 bytes of hints"),
        ((2, 3, MAX_HINTS + 1, MAX_PAYLOAD, 1, 0), "bytes of hints"),
        ((2, 5, 1, 12, 1, 0), "ACK frame with 1 bytes of hints"),
        ((2, 3, 0, MAX_PAYLOAD + 1, 1, 0), "more than its type allows"),
        ((2, 3, 0, 2**32 - 1, 1, 0), "more than its type allows"),
        ((2, 10, 0, 1, 1, 0), "more than its type allows"),
        ((2, 3, 0, 0, 0, 0), "DATA frame arrived on channel 0"),
        ((2, 11, 0, 0, 1, 0), "PING frame arrived on channel 1"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_before_its_payload_comes(
    header: tuple[int, ...], complaint: str
) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError, match=complaint):
        decoder.receive_data(HEADER.pack(*header))
    with pytest.raises(ProtocolError, match=complaint):
        decoder.receive_data(FRAMES[0].encode())


def test_a_reason_is_cut_and_bytes_that_are_no_text_are_replaced() -> None:
    assert len(reset(1, "é" * 400).payload) == MAX_REASON
    assert reason_of(Frame(FrameType.RESET, 1, 0, b"a\xff")) == "a\N{REPLACEMENT CHARACTER}"
    assert reason_of(reset(1, "x" + "é" * 400)).startswith("xéé")


def test_an_acknowledgement_comes_back_from_its_frame() -> None:
    ranges = tuple((at, at + 5) for at in range(20, 20 + 10 * MAX_RANGES, 10))
    for said in (
        Acknowledgement(0, 0),
        Acknowledgement(3, 9, 2**32 - 1, ((10, 11),)),
        Acknowledgement(3, 9, 7, ranges),
    ):
        assert Acknowledgement.of(said.frame(FrameType.ACK, 1)) == said


def test_an_acknowledgement_says_the_first_ranges_if_there_are_more_than_fit() -> None:
    ranges = tuple((at, at + 5) for at in range(20, 20 + 10 * MAX_RANGES + 10, 10))
    assert Acknowledgement.of(Acknowledgement(0, 0, 0, ranges).frame(FrameType.ACK, 1)).ranges == ranges[:MAX_RANGES]


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.ACCEPT, 1),
        Frame(FrameType.ACK, 1, 0, bytes(11)),
        Frame(FrameType.ACK, 1, 0, bytes(13)),
        Frame(FrameType.ACK, 1, 0, bytes(12 + 16 * (MAX_RANGES + 1))),
        Acknowledgement(10, 9).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((9, 10),)).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((8, 10),)).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((11, 11),)).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((12, 11),)).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((11, 13), (13, 14))).frame(FrameType.ACK, 1),
        Acknowledgement(0, 9, 0, ((15, 16), (11, 12))).frame(FrameType.ACK, 1),
    ],
)
def test_an_acknowledgement_that_contradicts_itself_is_refused(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        Acknowledgement.of(frame)
