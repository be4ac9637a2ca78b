"""A channel's two ends against each other, and against what an end must not believe."""

import pytest

from landbridge.channel import (
    MAX_WINDOW,
    MIN_WINDOW,
    QUEUE_TARGET,
    SEGMENT,
    Accepted,
    Channel,
    ChannelState,
    Data,
    EndOfData,
    Event,
    Reset,
    Window,
)
from landbridge.errors import ProtocolError
from landbridge.frame import Frame, FrameType


def pair() -> tuple[Channel, Channel]:
    opener = Channel(1, opened_by_us=True, open_payload=b"who")
    acceptor = Channel(1, opened_by_us=False)
    assert [f.type for f in opener.frames_to_send()] == [FrameType.OPEN]
    acceptor.accept()
    assert carry(acceptor, opener) == [Accepted()]
    return opener, acceptor


def carry(sender: Channel, receiver: Channel, now: float = 0.0) -> list[Event]:
    return [event for frame in sender.frames_to_send() for event in receiver.receive_frame(frame, now)]


def is_closed(channel: Channel) -> bool:
    return channel.state is ChannelState.CLOSED


def test_nothing_may_be_sent_before_the_far_end_has_accepted() -> None:
    assert Channel(1, opened_by_us=True).room == 0


def test_bytes_arrive_in_order_and_count_as_delivered_only_when_said_so() -> None:
    opener, acceptor = pair()
    opener.send_data(b"one", 0.0)
    opener.send_data(b"two", 0.0)
    assert carry(opener, acceptor) == [Data(b"one"), Data(b"two")]
    assert carry(acceptor, opener, 1.0) == []
    assert opener.window.acknowledged == 0
    acceptor.delivered(6)
    carry(acceptor, opener, 1.0)
    assert opener.window.acknowledged == 6


def test_both_ends_close_when_both_have_ended_and_all_is_acknowledged() -> None:
    opener, acceptor = pair()
    opener.send_data(b"call", 0.0)
    opener.send_eof()
    assert carry(opener, acceptor) == [Data(b"call"), EndOfData()]
    acceptor.delivered(4)
    acceptor.delivered_eof()
    acceptor.send_eof()
    assert acceptor.state is ChannelState.CLOSED
    assert carry(acceptor, opener) == [EndOfData()]
    assert not is_closed(opener)
    opener.delivered_eof()
    assert is_closed(opener)


def test_half_a_channel_goes_on_after_the_other_half_has_ended() -> None:
    opener, acceptor = pair()
    opener.send_eof()
    carry(opener, acceptor)
    acceptor.delivered_eof()
    acceptor.send_data(b"answer", 0.0)
    assert carry(acceptor, opener) == [Data(b"answer")]
    assert opener.room == 0


def test_a_reset_ends_both_ends_at_once_with_its_reason() -> None:
    opener, acceptor = pair()
    opener.reset("the host is on fire")
    assert carry(opener, acceptor) == [Reset("the host is on fire")]
    assert acceptor.state is opener.state is ChannelState.CLOSED
    assert acceptor.receive_frame(Frame(FrameType.DATA, 1, 0, b"late"), 0.0) == []


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.DATA, 1, 5, b"a gap"),
        Frame(FrameType.ACK, 1, 1),
        Frame(FrameType.FIN, 1, 9),
        Frame(FrameType.ACCEPT, 1),
        Frame(FrameType.OPEN, 1),
    ],
)
def test_a_frame_that_cannot_be_is_refused(frame: Frame) -> None:
    _, acceptor = pair()
    with pytest.raises(ProtocolError):
        acceptor.receive_frame(frame, 0.0)


def test_an_acknowledgement_cannot_be_taken_back() -> None:
    opener, acceptor = pair()
    opener.send_data(b"abcd", 0.0)
    carry(opener, acceptor)
    acceptor.delivered(4)
    carry(acceptor, opener)
    with pytest.raises(ProtocolError):
        opener.receive_frame(Frame(FrameType.ACK, 1, 3), 0.0)


def test_a_sender_who_ignores_every_window_is_refused_at_the_memory_ceiling() -> None:
    _, acceptor = pair()
    step = 1 << 20
    for sent in range(0, MAX_WINDOW, step):
        acceptor.receive_frame(Frame(FrameType.DATA, 1, sent, bytes(step)), 0.0)
    with pytest.raises(ProtocolError, match="under way"):
        acceptor.receive_frame(Frame(FrameType.DATA, 1, MAX_WINDOW, bytes(step)), 0.0)


class Path:
    """A simulated way: a rate in bytes per second, a round trip in seconds, one queue that never drops."""

    def __init__(self, rate: float, round_trip: float) -> None:
        self.rate = rate
        self.round_trip = round_trip
        self.busy_until = 0.0
        self.under_way: list[tuple[float, int]] = []

    def send(self, end: int, length: int, now: float) -> None:
        self.busy_until = max(self.busy_until, now) + length / self.rate
        self.under_way.append((self.busy_until + self.round_trip, end))


def transfer(window: Window, path: Path, seconds: float, start: float = 0.0) -> float:
    """Send as fast as the window allows; returns the bytes delivered per second in the last half."""
    now, step, marks = start, 0.001, []
    while now < start + seconds:
        while path.under_way and path.under_way[0][0] <= now:
            window.on_acknowledge(path.under_way.pop(0)[1], now)
        while length := min(window.room, SEGMENT):
            window.on_send(length, now)
            path.send(window.sent, length, now)
        marks.append((now, window.acknowledged))
        now += step
    half = marks[len(marks) // 2]
    return (window.acknowledged - half[1]) / (marks[-1][0] - half[0])


@pytest.mark.parametrize(("megabits", "round_trip"), [(200, 0.04), (100, 0.05), (1000, 0.02), (50, 0.1)])
def test_the_window_fills_the_path_and_keeps_what_waits_short(megabits: int, round_trip: float) -> None:
    rate = megabits * 125_000.0
    window = Window()
    assert transfer(window, Path(rate, round_trip), 8.0) > 0.9 * rate
    queued_seconds = (window.sent - window.acknowledged) / rate - round_trip
    assert queued_seconds < QUEUE_TARGET + 3 * SEGMENT / rate


def test_the_window_shrinks_when_the_path_becomes_slower() -> None:
    window, path = Window(), Path(25e6, 0.04)
    transfer(window, path, 4.0)
    path.rate = 5e6
    transfer(window, path, 8.0, start=4.0)
    assert (window.sent - window.acknowledged) / path.rate < 0.04 + 2 * QUEUE_TARGET + SEGMENT / path.rate


def test_a_sender_with_nothing_to_send_does_not_make_the_path_look_slow() -> None:
    window, path = Window(), Path(25e6, 0.04)
    transfer(window, path, 4.0)
    before = window.size
    window.on_acknowledge(window.sent, 4.2)
    window.on_send(100, 60.0)
    window.on_acknowledge(window.sent, 60.04)
    assert window.size >= before * 0.9


def test_the_window_never_leaves_its_bounds() -> None:
    window = Window()
    assert window.size == MIN_WINDOW
    transfer(window, Path(5e9, 0.2), 2.0)
    assert window.size <= MAX_WINDOW
