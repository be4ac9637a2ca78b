"""Two ends of a channel, and the frames between them."""

from __future__ import annotations

import pytest

from landbridge.channel import Accepted, Channel, Event
from landbridge.estimator import LOSS_DELAY
from landbridge.frame import Acknowledgement, Frame, FrameType
from landbridge.receiving import Data, EndOfData

K = FrameType
# Seconds for a frame to reach the other end, and after which one that was overtaken counts as lost then.
TRIP = 0.05
OVERDUE = LOSS_DELAY[0]
# Later than that, and before there would be a PROBE.
LATE = OVERDUE + 0.01
# Bytes of a frame, of which several make a checkpoint.
PIECE = 256 << 10


def frames_of(channel: Channel, now: float = 0.0) -> list[Frame]:
    """All that a channel has to send now."""
    found = []
    while (frame := channel.next_frame(now)) is not None:
        found.append(frame)
    return found


def types(frames: list[Frame]) -> list[FrameType]:
    return [frame.type for frame in frames]


def bytes_of(frames: list[Frame]) -> list[tuple[int, bytes]]:
    """The bytes of a stream among frames, with their positions."""
    return [(frame.position, bytes(frame.payload)) for frame in frames if frame.type is K.DATA]


def give(frames: list[Frame], receiver: Channel, now: float = 0.0) -> list[Event]:
    """Let frames arrive, and answer each OPEN."""
    events: list[Event] = []
    for frame in frames:
        events += receiver.receive_frame(frame, now)
        if frame.type is K.OPEN:
            receiver.accept(now)
    return events


def carry(sender: Channel, receiver: Channel, now: float = 0.0) -> list[Event]:
    return give(frames_of(sender, now), receiver, now)


def ends() -> tuple[Channel, Channel]:
    return Channel(7, 0.0, opening=b"who"), Channel(7, 0.0)


def pair() -> tuple[Channel, Channel]:
    """Two ends that are open, with nothing under way."""
    opener, acceptor = ends()
    opener.connect(0.0)
    assert carry(opener, acceptor) == []
    assert carry(acceptor, opener) == [Accepted()]
    return opener, acceptor


def ack(delivered: int, received: int, probe: int = 0, *ranges: tuple[int, int]) -> Frame:
    return Acknowledgement(delivered, received, probe, ranges).frame(K.ACK, 7)


def data(position: int, content: bytes) -> Frame:
    return Frame(K.DATA, 7, position, content)


def send(channel: Channel, *pieces: bytes, now: float = 0.0) -> list[Frame]:
    """Send pieces, one segment each; the frames."""
    for piece in pieces:
        channel.send_data(piece, now)
    return frames_of(channel, now)


def next_timeout(channel: Channel) -> float:
    at = channel.next_timeout()
    assert at is not None
    return at


def wait(channel: Channel) -> float:
    """Let the time come that a channel waits for."""
    at = next_timeout(channel)
    channel.timeout(at)
    return at


def timed_pair() -> tuple[Channel, Channel]:
    """Two ends that are open, of which the opener knows the round trip: 2 * TRIP."""
    opener, acceptor = pair()
    for turn in range(40):
        now = float(turn) / 10
        opener.send_data(b"x", now)
        for event in carry(opener, acceptor, now):
            assert isinstance(event, Data)
            acceptor.delivered(len(event.data))
        give(frames_of(acceptor, now), opener, now + 2 * TRIP)
    assert opener.outgoing.estimator.round_trip == pytest.approx(2 * TRIP)
    assert opener.outgoing.estimator.loss_delay == OVERDUE
    assert not opener.outgoing.is_outstanding
    return opener, acceptor


def finish(opener: Channel, acceptor: Channel, now: float = 0.0) -> None:
    """End both directions, up to the opener's last words."""
    for one in (opener, acceptor):
        one.send_eof(now)
    for sender, receiver in ((opener, acceptor), (acceptor, opener)):
        assert carry(sender, receiver, now) == [EndOfData()]
        receiver.delivered_eof(now)
