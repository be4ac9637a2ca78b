"""What a channel's receiving end gives on, in which order, what it says of the rest, and what it refuses."""

from __future__ import annotations

import pytest
from blake3 import blake3

from landbridge.errors import AlteredError, ProtocolError
from landbridge.frame import MAX_RANGES, Frame
from landbridge.receiving import CEILING, MOST_SEGMENTS, Data, Incoming
from landbridge.sending import CHECKPOINT
from tests.unit.channels import PIECE, K, carry, data, frames_of, give, pair, send, types


def test_frames_in_any_order_and_any_number_are_one_stream() -> None:
    opener, acceptor = pair()
    frames = send(opener, b"one", b"two", b"three", b"four")
    events = give([frames[i] for i in (2, 1, 2, 0, 0, 3, 1)], acceptor)
    assert events == [Data(b"one"), Data(b"two"), Data(b"three"), Data(b"four")]


def test_an_acknowledgement_says_which_bytes_are_behind_a_gap() -> None:
    incoming = Incoming()
    for position, content in ((10, b"ab"), (14, b"cd"), (0, b"x"), (12, b"ef"), (20, b"g"), (17, b"hij"), (5, b"k")):
        incoming.receive(data(position, content))
    assert incoming.acknowledgement().ranges == ((5, 6), (10, 16), (17, 21))
    incoming.receive(data(1, b"abcd"))
    assert incoming.received == 6
    assert incoming.acknowledgement().ranges == ((10, 16), (17, 21))
    incoming.receive(data(16, b"!"))
    assert incoming.acknowledgement().ranges == ((10, 21),)
    assert incoming.receive(data(6, b"1234")) == [
        Data(each) for each in (b"1234", b"ab", b"ef", b"cd", b"!", b"hij", b"g")
    ]
    assert incoming.acknowledgement().ranges == ()


def test_an_acknowledgement_names_only_so_many_gaps() -> None:
    incoming = Incoming()
    for position in range(2, 2 * MAX_RANGES + 40, 2):
        incoming.receive(data(position, b"x"))
    assert len(incoming.acknowledgement().ranges) == MAX_RANGES


def test_nothing_is_said_twice_of_what_has_not_changed() -> None:
    opener, acceptor = pair()
    opener.send_data(b"one", 0.0)
    carry(opener, acceptor)
    assert types(frames_of(acceptor)) == [K.ACK]
    assert frames_of(acceptor, 1.0) == []


def test_a_sender_who_ignores_the_ceiling_is_refused() -> None:
    incoming = Incoming()
    for position in range(PIECE, CEILING, PIECE):
        incoming.receive(data(position, bytes(PIECE)))
    incoming.receive(Frame(K.FIN, 7, CEILING, bytes(32)))
    with pytest.raises(ProtocolError, match="under way"):
        incoming.receive(data(CEILING + 1, b"x"))
    with pytest.raises(ProtocolError, match="under way"):
        incoming.receive(data(2**64 - 1, b"x"))


def test_a_sender_of_countless_gaps_fills_only_so_much_memory_and_still_gets_through() -> None:
    incoming = Incoming()
    for position in range(2, 4 * MOST_SEGMENTS, 2):
        assert incoming.receive(data(position, b"x")) == []
    assert len(incoming._waiting) == MOST_SEGMENTS
    for position in range(4 * MOST_SEGMENTS):
        incoming.receive(data(position, b"x"))
    assert incoming.received == 4 * MOST_SEGMENTS


@pytest.mark.parametrize(
    ("at", "found"),
    [
        (0, (0, CHECKPOINT)),
        (CHECKPOINT - 1, (0, CHECKPOINT)),
        (CHECKPOINT, (CHECKPOINT, 2 * CHECKPOINT)),
        (2 * CHECKPOINT, (2 * CHECKPOINT, 2 * CHECKPOINT + 100)),
    ],
)
def test_an_altered_byte_is_found_at_the_next_digest_and_the_error_says_between_which(
    at: int, found: tuple[int, int]
) -> None:
    opener, acceptor = pair()
    pieces = [bytes(PIECE)] * (2 * CHECKPOINT // PIECE) + [bytes(100)]
    frames = send(opener, *pieces)
    opener.send_eof(0.0)
    frames += frames_of(opener)
    number, offset = divmod(at, PIECE)
    frames[number] = altered(frames[number], offset)
    with pytest.raises(AlteredError, match=f"bytes {found[0]} to {found[1]} arrived altered") as caught:
        give(frames, acceptor)
    assert (caught.value.start, caught.value.end) == found


def altered(frame: Frame, at: int) -> Frame:
    content = bytearray(frame.payload)
    content[at] ^= 1
    return Frame(frame.type, frame.channel, frame.position, content)


@pytest.mark.parametrize(
    "frames",
    [
        [data(0, b"abcd"), data(2, b"cdef")],
        [data(10, b"abcd"), data(12, b"cdef")],
        [data(12, b"cdef"), data(10, b"abcd")],
        [data(10, b"abcdef"), data(12, b"c")],
        [data(2, b"abc"), data(0, b"abcdef")],
        [data(1, b"abc"), Frame(K.FIN, 7, 2, bytes(32))],
    ],
)
def test_bytes_that_overlap_others_are_refused(frames: list[Frame]) -> None:
    _, acceptor = pair()
    with pytest.raises(ProtocolError, match="cut in another way"):
        give(frames, acceptor)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0), (2, 1, 0)])
def test_bytes_after_the_end_of_their_stream_are_refused(order: tuple[int, ...]) -> None:
    _, acceptor = pair()
    frames = [Frame(K.FIN, 7, 0, blake3().digest()), data(1, b"x"), data(9, b"x")]
    with pytest.raises(ProtocolError, match="after the end"):
        give([frames[index] for index in order], acceptor)
