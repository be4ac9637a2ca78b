"""Two ends of a channel over a way that cuts, delays and interleaves: what is sent is what arrives, and it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from landbridge.channel import (
    MAX_WINDOW,
    MIN_WINDOW,
    Accepted,
    Channel,
    ChannelState,
    Data,
    EndOfData,
    Event,
    Reset,
)
from landbridge.errors import ProtocolError
from landbridge.frame import Frame, FrameDecoder, FrameType

PATTERN = bytes(range(251)) * 3000  # its period is a prime number, so that no slip goes unseen


@dataclass
class Side:
    """An end of the channel, with its agent and its socket."""

    channel: Channel
    # What its socket gives, and how much of that was sent.
    source: bytes
    sent: int = 0
    # Bytes that are under way to the other side, and what this side makes of those that come.
    wire: bytearray = field(default_factory=bytearray)
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    events: list[Event] = field(default_factory=list)
    # What its socket was given.
    received: bytearray = field(default_factory=bytearray)
    at_end: bool = False

    def flush(self) -> None:
        for frame in self.channel.frames_to_send():
            self.wire += frame.encode()

    def send(self, most: int, now: float) -> None:
        """Read from the socket what there is room for, and its end."""
        room = min(self.channel.room, most)
        if data := self.source[self.sent : self.sent + room]:
            self.channel.send_data(data, now)
            self.sent += len(data)
        elif self.sent == len(self.source):
            self.channel.send_eof()
        self.flush()

    def take(self, other: Side, most: int, now: float) -> None:
        """Let bytes of the other side arrive."""
        part = bytes(other.wire[:most])
        del other.wire[:most]
        for frame in self.decoder.receive_data(part):
            self.events += self.channel.receive_frame(frame, now)
        self.flush()

    def write(self) -> None:
        """Hand the next event to the socket."""
        if self.events:
            match self.events.pop(0):
                case Data(data):
                    assert not self.at_end
                    self.received += data
                    self.channel.delivered(len(data))
                case EndOfData():
                    self.at_end = True
                    self.channel.delivered_eof()
                case Reset(reason):
                    raise AssertionError(reason)
        self.flush()


def check(side: Side, other: Side) -> None:
    """What holds at every instant."""
    window = side.channel.window
    assert window.sent == side.sent
    assert window.acknowledged <= len(other.received) <= window.sent <= len(side.source)
    assert window.sent - window.acknowledged <= MAX_WINDOW
    assert MIN_WINDOW <= window.size <= MAX_WINDOW
    assert other.received == side.source[: len(other.received)]
    if side.channel.state is ChannelState.CLOSED:
        assert side.at_end
        assert len(other.received) == len(side.source)


lengths = st.one_of(st.integers(0, 5000), st.integers(0, len(PATTERN)))
steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "take", "write"]),
        st.booleans(),
        st.one_of(st.integers(1, 100), st.integers(1, 400_000)),
        st.floats(0, 0.5),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=60)
@given(lengths, lengths, steps)
def test_whatever_happens_on_the_way_both_sides_get_exactly_what_the_other_sent(
    there: int, back: int, happens: list[tuple[str, bool, int, float]]
) -> None:
    one = Side(Channel(1, opened_by_us=True, open_payload=b"who"), PATTERN[:there])
    two = Side(Channel(1, opened_by_us=False), PATTERN[::-1][:back])
    one.flush()
    opening = FrameDecoder().receive_data(bytes(one.wire))
    assert [(frame.type, frame.payload) for frame in opening] == [(FrameType.OPEN, b"who")]
    one.wire.clear()
    two.channel.accept()
    two.flush()
    now = 0.0

    def step(verb: str, side: Side, other: Side, most: int) -> None:
        match verb:
            case "send":
                side.send(most, now)
            case "take":
                side.take(other, most, now)
            case "write":
                side.write()
        check(one, two)
        check(two, one)

    for verb, first, most, passes in happens:
        now += passes
        step(verb, *((one, two) if first else (two, one)), most)
    for _ in range(200):  # and then everything has its time
        if one.channel.state is two.channel.state is ChannelState.CLOSED and not one.wire and not two.wire:
            break
        now += 0.01
        for side, other in ((one, two), (two, one)):
            for verb in ("send", "take", *["write"] * 20):
                step(verb, side, other, 1 << 20)
    assert one.received == two.source
    assert two.received == one.source
    assert one.channel.state is two.channel.state is ChannelState.CLOSED
    assert one.channel.window.acknowledged == two.channel.delivered_bytes == there
    assert two.channel.window.acknowledged == one.channel.delivered_bytes == back
    assert not one.wire
    assert not two.wire


odd_frames = st.lists(
    st.builds(
        Frame,
        st.sampled_from(FrameType),
        st.just(1),
        st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1)),
        st.binary(max_size=5),
    ),
    max_size=12,
)


@given(st.booleans(), odd_frames)
def test_a_far_end_that_sends_anything_gets_protocol_errors_and_nothing_else(ours: bool, sent: list[Frame]) -> None:
    channel = Channel(1, opened_by_us=ours)
    channel.accept()
    received = 0
    for frame in sent:
        try:
            events = channel.receive_frame(frame, 0.0)
        except ProtocolError:
            channel.reset("it broke the rules")
            continue
        for event in events:
            assert isinstance(event, Accepted | Data | EndOfData | Reset)
            received += len(event.data) if isinstance(event, Data) else 0
    assert channel.received_bytes == received
    assert channel.window.acknowledged == channel.window.sent == 0
