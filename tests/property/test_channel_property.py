"""Two ends of a channel over a hostile way: what is delivered is what was sent, always, and every run ends.

The way between the ends, as the state machine has it:

    opener ── link ──> wire: frames that are lost, repeated, reordered, kept for long ──> middle ── link ──> acceptor
    opener <── link ── middle <── wire ── link ── acceptor

The middle may forget the channel, as a gateway that was restarted: it lets no frame pass, and answers UNKNOWN, until an OPEN comes.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from landbridge.channel import Accepted, Channel, ChannelState, Event, Reset
from landbridge.errors import AlteredError, ProtocolError
from landbridge.frame import DIGEST_SIZE, Frame, FrameDecoder, FrameType
from landbridge.receiving import CEILING, MOST_SEGMENTS, Data, EndOfData

PATTERN = bytes(range(251)) * 4000  # its period is a prime number, so that no slip goes unseen
IDENTITY = 7
# Seconds, on a way that has become fair, within which a channel must end. Each loss before may cost one silence.
PATIENCE = 60.0
STEP = 0.02


@dataclass(eq=False)
class Side:
    """An end of the channel, with its agent and its socket."""

    channel: Channel
    # What its socket gives; how much of that was sent; and whether the socket ends when it has given all.
    source: bytes
    sent: int = 0
    # Whether it has a link.
    is_linked: bool = True
    # What it has to write to its socket, and what its socket was given.
    events: deque[Event] = field(default_factory=deque)
    received: bytearray = field(default_factory=bytearray)
    at_end: bool = False
    accepted: int = 0

    @property
    def has_ended(self) -> bool:
        return self.channel.state is ChannelState.FINISHED

    def read(self, most: int, now: float) -> None:
        """Read from the socket what there is room for."""
        room = min(self.channel.room, most)
        if data := self.source[self.sent : self.sent + room]:
            self.channel.send_data(data, now)
            self.sent += len(data)

    def end(self, now: float) -> None:
        """The socket gives no more, from now on."""
        if self.channel.state is ChannelState.OPEN:
            self.source = self.source[: self.sent]
            self.channel.send_eof(now)

    def take(self, frame: Frame, now: float) -> None:
        """A frame arrives."""
        events = self.channel.receive_frame(frame, now)
        if frame.type is FrameType.OPEN:
            self.channel.accept(now)
        self.events += events

    def write(self, most: int, now: float) -> None:
        """Hand bytes to the socket, at most so many."""
        while self.events and most > 0:
            match self.events.popleft():
                case Data(data):
                    assert not self.at_end
                    part, rest = data[:most], data[most:]
                    self.received += part
                    if rest:
                        self.events.appendleft(Data(rest))
                    self.channel.delivered(len(part))
                    most -= len(part)
                case EndOfData():
                    assert not self.at_end
                    self.at_end = True
                    self.channel.delivered_eof(now)
                case Accepted():
                    self.accepted += 1
                case Reset(reason):
                    raise AssertionError(reason)


class Way:
    """Two sides, the frames between them, and the time."""

    def __init__(self, there: bytes, back: bytes) -> None:
        self.now = 1000.0
        self.opener = Side(Channel(IDENTITY, self.now, opening=b"who"), there)
        self.acceptor = Side(Channel(IDENTITY, self.now), back)
        self.sides = (self.opener, self.acceptor)
        # Encoded frames on the way to each side, in the order in which they were sent.
        self.wires: dict[Side, list[bytes]] = {self.opener: [], self.acceptor: []}
        self.is_known = False
        self.opener.channel.connect(self.now)

    def other(self, side: Side) -> Side:
        return self.acceptor if side is self.opener else self.opener

    def send(self, side: Side, most: int = 1 << 30) -> None:
        """The side's link takes frames, at most so many."""
        while side.is_linked and most > 0 and (frame := side.channel.next_frame(self.now)) is not None:
            self.wires[self.other(side)].append(frame.encode())
            most -= 1

    def arrive(self, side: Side, index: int = 0, *, stays: bool = False) -> None:
        """A frame on the wire comes to a side; if it stays, it will come again."""
        wire = self.wires[side]
        raw = wire[index] if stays else wire.pop(index)
        [frame] = FrameDecoder().receive_data(raw)
        if self.passes_middle(side, frame) and side.is_linked:
            side.take(frame, self.now)

    def passes_middle(self, side: Side, frame: Frame) -> bool:
        """Whether the middle passes a frame on to this side; if not, it may have answered."""
        if frame.type is FrameType.OPEN:
            self.is_known = True
        if self.is_known or frame.type is FrameType.UNKNOWN:
            return True
        if frame.type not in {FrameType.RESET, FrameType.CLOSE}:
            self.wires[self.other(side)].append(Frame(FrameType.UNKNOWN, IDENTITY).encode())
        return False

    def forget(self) -> None:
        """The middle forgets the channel."""
        self.is_known = False

    def pass_time(self, seconds: float) -> None:
        """The clock goes on, and both ends are told if they have asked for it."""
        self.now += seconds
        for side in self.sides:
            at = side.channel.next_timeout()
            if side.is_linked and at is not None and at <= self.now:
                side.channel.timeout(self.now)
                again = side.channel.next_timeout()
                assert again is None or again > self.now, "a timer that never rests"

    def cut(self) -> None:
        """Both links are gone, and what was in them."""
        for side in self.sides:
            side.is_linked = False
            side.channel.disconnect()
            self.wires[side].clear()

    def connect(self) -> None:
        """There are links again; the opener opens the channel, if that is still to be done."""
        for side in self.sides:
            side.is_linked = True
        self.opener.channel.connect(self.now)

    def check(self) -> None:
        """What holds at every instant."""
        for side in self.sides:
            far = self.other(side)
            outgoing, incoming = side.channel.outgoing, side.channel.incoming
            assert far.received == side.source[: len(far.received)], "delivered bytes are not the sent prefix"
            assert outgoing.acknowledged <= far.channel.incoming.delivered
            assert outgoing.position == side.sent
            assert side.sent - outgoing.acknowledged <= CEILING
            assert incoming.delivered <= incoming.received
            assert len(incoming._waiting) <= MOST_SEGMENTS
            assert side.accepted <= 1
            assert len(side.channel._control) <= len(FrameType)
            if side.at_end:
                assert far.channel.outgoing.is_ended
                assert side.received == far.source
            if side.has_ended:
                assert side.at_end
                assert far.at_end

    def run_to_the_end(self) -> float:
        """From now on nothing is lost, and all sockets move; returns the seconds until both ends are finished."""
        if not self.opener.is_linked:
            self.connect()
        began = self.now
        while not all(side.channel.may_be_forgotten for side in self.sides):
            assert self.now - began < PATIENCE, [
                (side.channel.state, side.channel.outgoing.acknowledged, side.sent, side.at_end) for side in self.sides
            ]
            for side in self.sides:
                if side.sent == len(side.source):
                    side.end(self.now)
            self.turn(1 << 30)
        return self.now - began

    def turn(self, most: int, chance: random.Random | None = None, loss: float = 0.0) -> None:
        """Both sockets give and take at most so many bytes, and all frames arrive, but for a share that is lost."""
        for side in self.sides:
            side.read(most, self.now)
            side.write(most, self.now)
            self.send(side)
        self.pass_time(STEP)
        for side in self.sides:
            wire = self.wires[side]
            for _ in range(len(wire)):
                if chance is None:
                    self.arrive(side)
                elif chance.random() < loss:
                    wire.pop(0)
                else:
                    self.arrive(side, chance.randrange(min(len(wire), 3)))
        self.check()


sides = st.sampled_from([0, 1])
lengths = st.one_of(st.integers(0, 3000), st.integers(200_000, len(PATTERN)), st.integers(200_000, len(PATTERN)))
amounts = st.one_of(st.integers(1, 100), st.integers(1, 1 << 20))


class HostileWay(RuleBasedStateMachine):
    """Anything may happen to a channel but an altered byte."""

    way: Way

    @initialize(there=lengths, back=lengths)
    def begin(self, there: int, back: int) -> None:
        self.way = Way(PATTERN[:there], PATTERN[::-1][:back])

    def side(self, which: int) -> Side:
        return self.way.sides[which]

    def has_frames(self) -> bool:
        return any(self.way.wires.values())

    @rule(turns=st.integers(1, 10), most=st.sampled_from([10_000, 1 << 20]))
    def all_goes_well_for_a_while(self, turns: int, most: int) -> None:
        for _ in range(turns):
            self.way.turn(most)

    # The ends

    @rule(which=sides, most=amounts)
    def a_socket_is_read(self, which: int, most: int) -> None:
        self.side(which).read(most, self.way.now)

    @rule(which=sides)
    def a_socket_has_ended(self, which: int) -> None:
        self.side(which).end(self.way.now)

    @rule(which=sides, most=amounts)
    def a_socket_takes_bytes(self, which: int, most: int) -> None:
        self.side(which).write(most, self.way.now)

    @rule(which=sides, most=st.one_of(st.integers(1, 5), st.just(1 << 30)))
    def a_link_takes_frames(self, which: int, most: int) -> None:
        self.way.send(self.side(which), most)

    @rule(seconds=st.one_of(st.floats(0, 0.3), st.floats(0, 20), st.just(900.0)))
    def time_passes(self, seconds: float) -> None:
        self.way.pass_time(seconds)

    # The way

    @precondition(has_frames)
    @rule(which=sides, count=st.integers(1, 20))
    def frames_arrive_in_order(self, which: int, count: int) -> None:
        side = self.side(which)
        for _ in range(min(count, len(self.way.wires[side]))):
            self.way.arrive(side)

    @precondition(has_frames)
    @rule(which=sides, data=st.data(), stays=st.booleans())
    def a_frame_overtakes_others_or_comes_twice(self, which: int, data: st.DataObject, stays: bool) -> None:
        side = self.side(which)
        if wire := self.way.wires[side]:
            self.way.arrive(side, data.draw(st.integers(0, len(wire) - 1)), stays=stays)

    @precondition(has_frames)
    @rule(which=sides, data=st.data())
    def a_frame_is_lost(self, which: int, data: st.DataObject) -> None:
        if wire := self.way.wires[self.side(which)]:
            del wire[data.draw(st.integers(0, len(wire) - 1))]

    @precondition(has_frames)
    @rule(which=sides, shares=st.integers(2, 5), offset=st.integers(0, 4))
    def many_frames_are_lost(self, which: int, shares: int, offset: int) -> None:
        del self.way.wires[self.side(which)][offset::shares]

    @rule()
    def all_links_are_cut(self) -> None:
        self.way.cut()

    @rule()
    def a_gateway_answers(self) -> None:
        self.way.connect()

    @rule(which=sides)
    def one_link_is_lost_and_found(self, which: int) -> None:
        self.side(which).channel.disconnect()
        if which == 0:
            self.way.connect()
        else:
            self.way.forget()

    @rule()
    def the_middle_forgets_the_channel(self) -> None:
        self.way.forget()

    @rule()
    def a_stale_unknown_arrives(self) -> None:
        if self.way.opener.is_linked:
            self.way.opener.take(Frame(FrameType.UNKNOWN, IDENTITY), self.way.now)

    @invariant()
    def what_is_delivered_is_what_was_sent(self) -> None:
        if hasattr(self, "way"):
            self.way.check()

    def teardown(self) -> None:
        if hasattr(self, "way"):
            note(f"the run ends after {self.way.run_to_the_end():.2f} s")
            for side in self.way.sides:
                assert side.received == self.way.other(side).source
                assert self.way.other(side).channel.outgoing.acknowledged == len(side.received) + 1


def test_an_end_that_the_middle_forgets_just_as_its_opener_has_finished_is_told() -> None:
    way = HostileWay()
    way.begin(there=0, back=200_000)
    way.all_goes_well_for_a_while(turns=1, most=10_000)
    way.a_gateway_answers()
    way.the_middle_forgets_the_channel()
    way.all_goes_well_for_a_while(turns=6, most=10_000)
    way.a_socket_has_ended(which=0)
    way.a_socket_has_ended(which=1)
    way.all_goes_well_for_a_while(turns=4, most=10_000)
    way.a_gateway_answers()
    way.time_passes(seconds=0.25)
    way.all_goes_well_for_a_while(turns=4, most=10_000)
    way.the_middle_forgets_the_channel()
    assert way.way.run_to_the_end() < PATIENCE


TestHostileWay = HostileWay.TestCase
TestHostileWay.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)


@settings(deadline=None, max_examples=30)
@given(lengths, lengths, st.floats(0.0, 0.5), st.integers(0, 2**32))
def test_a_channel_ends_on_a_way_that_loses_a_share_of_all_frames_for_ever(
    there: int, back: int, loss: float, seed: int
) -> None:
    way, chance = Way(PATTERN[:there], PATTERN[::-1][:back]), random.Random(seed)
    for _ in range(20_000):
        if all(side.has_ended for side in way.sides):
            break
        way.turn(1 << 30, chance, loss)
        for side in way.sides:
            if side.sent == len(side.source):
                side.end(way.now)
    assert [side.has_ended for side in way.sides] == [True, True]
    assert [side.received for side in way.sides] == [way.other(side).source for side in way.sides]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(PATTERN)), st.integers(0, len(PATTERN)), st.integers(0, 40), st.integers(0, 20))
def test_one_cut_costs_little_time_and_repeats_at_most_what_was_not_acknowledged_then(
    there: int, back: int, turns: int, arrived: int
) -> None:
    way = Way(PATTERN[:there], PATTERN[::-1][:back])
    for _ in range(turns):
        way.turn(50_000)
    for side in way.sides:
        for _ in range(10):
            side.read(50_000, way.now)
        way.send(side)
        for _ in range(min(arrived, len(way.wires[way.other(side)]))):
            way.arrive(way.other(side))
    way.cut()
    way.pass_time(40.0)
    windows = [side.channel.outgoing.position - side.channel.outgoing.acknowledged for side in way.sides]
    # One silence at most, and what the bytes themselves take.
    assert way.run_to_the_end() < 3.0
    for side, window in zip(way.sides, windows, strict=True):
        assert side.channel.outgoing.repeated_bytes <= window


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 600_000), st.data())
def test_a_byte_that_is_changed_on_the_way_is_found_no_later_than_at_the_end(length: int, data: st.DataObject) -> None:
    way = Way(PATTERN[:length], b"")
    way.send(way.opener)
    way.arrive(way.acceptor)
    way.send(way.acceptor)
    way.arrive(way.opener)
    while way.opener.sent < length:
        way.opener.read(1 << 30, way.now)
        way.send(way.opener)
    way.opener.end(way.now)
    way.send(way.opener)
    frames = [FrameDecoder().receive_data(raw)[0] for raw in way.wires[way.acceptor]]
    assert frames[-1].type is FrameType.FIN
    at = data.draw(st.integers(0, length - 1))
    [hit] = [f for f in frames[:-1] if f.position <= at < f.position + len(f.payload)]
    assert isinstance(hit.payload, memoryview)
    hit.payload[at - hit.position] ^= 1 << data.draw(st.integers(0, 7))
    order = data.draw(st.permutations(range(len(frames))))

    def arrive() -> None:
        for index in order:
            assert EndOfData() not in way.acceptor.channel.receive_frame(frames[index], way.now)

    with pytest.raises(AlteredError) as caught:
        arrive()
    assert caught.value.start <= at < caught.value.end


odd_frames = st.lists(
    st.one_of(
        st.builds(
            Frame,
            st.sampled_from(FrameType),
            st.just(IDENTITY),
            st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1)),
            st.binary(max_size=5),
            st.just(b""),
        ),
        st.builds(
            Frame,
            st.sampled_from([FrameType.DATA_CHECKED, FrameType.FIN]),
            st.just(IDENTITY),
            st.integers(0, 9),
            st.binary(min_size=DIGEST_SIZE, max_size=DIGEST_SIZE + 3),
            st.just(b""),
        ),
        st.builds(
            lambda kind, position, numbers: Frame(
                kind, IDENTITY, position, b"".join(number.to_bytes(8) for number in numbers) + bytes(4)
            ),
            st.sampled_from([FrameType.ACK, FrameType.ACCEPT]),
            st.integers(0, 4),
            st.lists(st.integers(0, 9), min_size=1, max_size=5).map(lambda numbers: numbers[len(numbers) % 2 - 1 :]),
        ),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(st.booleans(), odd_frames)
def test_a_far_end_that_sends_anything_gets_protocol_errors_and_nothing_else(ours: bool, sent: list[Frame]) -> None:
    channel = Channel(IDENTITY, 0.0, opening=b"who" if ours else None)
    channel.connect(0.0)
    channel.accept(0.0)
    now, received = 0.0, 0
    for frame in sent:
        now += 0.3
        channel.timeout(now)
        channel.send_data(b"abc", now)
        try:
            events = channel.receive_frame(frame, now)
        except ProtocolError:
            channel.reset("it broke the rules")
            events = []
        for event in events:
            if isinstance(event, Data):
                received += len(event.data)
                channel.delivered(len(event.data))
            elif isinstance(event, EndOfData):
                channel.delivered_eof(now)
        assert channel.incoming.delivered == received + channel.incoming.is_ended or channel.state is ChannelState.RESET
        for _ in range(20):
            if (answer := channel.next_frame(now)) is None:
                break
            answer.encode()
        else:
            raise AssertionError("it never stops answering")
