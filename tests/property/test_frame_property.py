"""Frames from arbitrary bytes, and in arbitrary pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from landbridge.errors import ProtocolError
from landbridge.frame import HEADER, LINK_TYPES, MAX_PAYLOAD, PAYLOAD_TYPES, Frame, FrameDecoder, FrameType

numbers = st.integers(1, 2**32 - 1)
positions = st.integers(0, 2**64 - 1)
frames = st.one_of(
    st.builds(Frame, st.sampled_from(sorted(PAYLOAD_TYPES)), numbers, positions, st.binary(max_size=300)),
    st.builds(Frame, st.sampled_from(sorted(set(FrameType) - PAYLOAD_TYPES - LINK_TYPES)), numbers, positions),
    st.builds(Frame, st.sampled_from(sorted(LINK_TYPES)), st.just(0), positions),
)
# Headers that are nearly right, and anything else.
headers = st.builds(
    HEADER.pack,
    st.sampled_from([1, 1, 1, 0, 2]),
    st.integers(0, 9),
    st.sampled_from([0, 0, 0, 4]),
    st.integers(0, 3),
    positions,
    st.sampled_from([0, 1, 7, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**32 - 1]),
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
    """The frames that come before the first error, and the error."""
    decoder = FrameDecoder()
    found: list[Frame] = []
    try:
        for part in parts:
            found += decoder.receive_data(part)  # extend with what comes before an error, too
    except ProtocolError as error:
        return found, error.message
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


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_protocol_error_and_nothing_else(data: bytes) -> None:
    decoded([data])


@given(frames, st.data())
def test_a_frame_of_which_bytes_are_missing_is_not_delivered(frame: Frame, data: st.DataObject) -> None:
    wire = frame.encode()
    decoder = FrameDecoder()
    assert list(decoder.receive_data(wire[: data.draw(st.integers(1, len(wire) - 1))])) == []
    assert decoder.incomplete()
