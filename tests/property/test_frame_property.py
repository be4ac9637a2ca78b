"""Frames from arbitrary bytes, and in arbitrary pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from landbridge.errors import ProtocolError
from landbridge.frame import (
    HEADER,
    LINK_TYPES,
    MAX_PAYLOAD,
    MAX_RANGES,
    Acknowledgement,
    Frame,
    FrameDecoder,
    FrameType,
)

HINTED = {FrameType.DATA, FrameType.DATA_CHECKED}
EMPTY = {FrameType.CLOSE, FrameType.UNKNOWN, FrameType.PROBE}

channels = st.integers(1, 2**64 - 1)
positions = st.integers(0, 2**64 - 1)
# Hypothesis makes up what is left out of a tuple.
NONE = st.just(b"")
frames = st.one_of(
    st.builds(
        Frame, st.sampled_from(sorted(HINTED)), channels, positions, st.binary(max_size=300), st.binary(max_size=40)
    ),
    st.builds(
        Frame,
        st.sampled_from(sorted(set(FrameType) - HINTED - EMPTY - LINK_TYPES)),
        channels,
        positions,
        st.binary(max_size=32),
        NONE,
    ),
    st.builds(Frame, st.sampled_from(sorted(EMPTY)), channels, positions, NONE, NONE),
    st.builds(Frame, st.sampled_from(sorted(LINK_TYPES)), st.just(0), positions, NONE, NONE),
)
# Headers that are nearly right.
headers = st.builds(
    HEADER.pack,
    st.sampled_from([2, 2, 2, 1, 3]),
    st.integers(0, 13),
    st.sampled_from([0, 0, 0, 1, 8]),
    st.sampled_from([0, 1, 7, 32, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**32 - 1]),
    st.integers(0, 3),
    positions,
)
noise = st.lists(st.one_of(headers, st.binary(max_size=40), frames.map(Frame.encode)), max_size=8).map(b"".join)
cuts = st.lists(st.integers(1, 400), max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data cut into pieces of these sizes, and a last one."""
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [*found, data[at:]]


def decoded(parts: list[bytes]) -> tuple[list[Frame], str | None]:
    """The frames that come before the first error, and the error; read as a link does, into the decoder's buffer."""
    decoder = FrameDecoder()
    found: list[Frame] = []
    for part in parts:
        rest = memoryview(part)
        while rest:
            buffer = decoder.buffer()
            count = min(len(buffer), len(rest))
            assert count > 0
            buffer[:count] = rest[:count]
            rest = rest[count:]
            try:
                frame = decoder.received(count)
            except ProtocolError as error:
                return found, error.message
            if frame is not None:
                found.append(frame)
    return found, None


@given(st.lists(frames, max_size=12), cuts)
def test_frames_come_back_however_their_bytes_are_cut(sent: list[Frame], sizes: list[int]) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    assert sum(frame.size() for frame in sent) == len(wire)
    decoder = FrameDecoder()
    assert [frame for part in pieces(wire, sizes) for frame in decoder.receive_data(part)] == sent
    assert not decoder.incomplete()


@given(noise, cuts)
def test_arbitrary_bytes_are_the_same_frames_and_the_same_error_however_they_are_cut(
    data: bytes, sizes: list[int]
) -> None:
    whole, error = decoded([data])
    assert decoded(pieces(data, sizes)) == (whole, error)
    # What was decoded is what a sender would have sent, and is where it began.
    assert data.startswith(b"".join(frame.encode() for frame in whole))


@given(frames, st.data())
def test_a_frame_of_which_bytes_are_missing_is_not_delivered(frame: Frame, data: st.DataObject) -> None:
    wire = frame.encode()
    decoder = FrameDecoder()
    assert decoder.receive_data(wire[: data.draw(st.integers(1, len(wire) - 1))]) == []
    assert decoder.incomplete()


@given(st.lists(positions, min_size=2, max_size=2 * MAX_RANGES + 2, unique=True), st.integers(0, 2**32 - 1))
def test_an_acknowledgement_of_anything_that_can_be_comes_back(offsets: list[int], probe: int) -> None:
    delivered, received, *rest = sorted(offsets)
    ranges = tuple(zip(rest[::2], rest[1::2], strict=False))
    said = Acknowledgement(delivered, received, probe, ranges)
    assert Acknowledgement.of(said.frame(FrameType.ACK, 1)) == said


@given(
    positions,
    st.one_of(
        st.binary(max_size=100),
        st.lists(positions, max_size=9).map(lambda n: b"\0\0\0\1" + b"".join(x.to_bytes(8) for x in n)),
    ),
)
def test_an_acknowledgement_of_anything_else_is_a_protocol_error(position: int, payload: bytes) -> None:
    try:
        said = Acknowledgement.of(Frame(FrameType.ACK, 1, position, payload))
    except ProtocolError:
        return
    at = said.received
    assert said.delivered == position <= at
    for start, end in said.ranges:
        assert at < start < end
        at = end
    assert bytes(said.frame(FrameType.ACK, 1).payload) == payload
