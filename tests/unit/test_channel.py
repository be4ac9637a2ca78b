"""A channel's two ends against each other, and against what an end must not believe."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from blake3 import blake3

from landbridge.channel import KEEPALIVE, PROBE_DELAY, Accepted, Channel, ChannelState, Event, Reset
from landbridge.errors import AlteredError, ProtocolError
from landbridge.estimator import LARGEST_SEGMENT, LOSS_DELAY, SMALLEST_SEGMENT, Estimator
from landbridge.frame import HEADER, MAX_RANGES, RECORD, Acknowledgement, Frame, FrameType, reason_of
from landbridge.receiving import CEILING, MOST_SEGMENTS, Data, EndOfData, Incoming
from landbridge.sending import CHECKPOINT, PROBES, UNSENT, Outgoing

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


def is_open(channel: Channel) -> bool:
    return channel.state is ChannelState.OPEN


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


def finish(opener: Channel, acceptor: Channel, now: float = 0.0) -> None:
    """End both directions, up to the opener's last words."""
    for one in (opener, acceptor):
        one.send_eof(now)
    for sender, receiver in ((opener, acceptor), (acceptor, opener)):
        assert carry(sender, receiver, now) == [EndOfData()]
        receiver.delivered_eof(now)


# Opening


def test_a_channel_is_open_when_the_far_end_says_that_it_is_connected() -> None:
    opener, acceptor = ends()
    assert (opener.room, acceptor.room) == (0, 0)
    opener.connect(0.0)
    [opening] = frames_of(opener)
    assert (opening.type, opening.channel, opening.payload) == (K.OPEN, 7, b"who")
    assert acceptor.receive_frame(opening, 0.0) == []
    assert frames_of(acceptor) == []
    acceptor.accept(0.0)
    assert acceptor.room == SMALLEST_SEGMENT
    assert carry(acceptor, opener) == [Accepted()]
    assert opener.room == SMALLEST_SEGMENT
    assert opener.state is acceptor.state is ChannelState.OPEN


def test_an_open_that_is_not_answered_is_said_again_later_and_later() -> None:
    opener, acceptor = ends()
    opener.connect(0.0)
    at = [0.0]
    for _ in range(5):
        assert types(frames_of(opener, at[-1])) == [K.OPEN]
        at.append(wait(opener))
    assert [after - before for before, after in pairwise(at)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    carry(opener, acceptor)
    assert carry(acceptor, opener) == [Accepted()]


def test_what_waits_for_a_link_that_takes_nothing_is_bounded() -> None:
    opener, acceptor = ends()
    opener.connect(0.0)
    for _ in range(100):
        wait(opener)
        acceptor.accept(0.0)
    assert types(frames_of(opener)) == [K.OPEN]
    assert types(frames_of(acceptor)) == [K.ACCEPT]


def test_an_accept_that_comes_twice_opens_once_and_repeats_nothing() -> None:
    opener, acceptor = ends()
    opener.connect(0.0)
    carry(opener, acceptor)
    [accept] = frames_of(acceptor)
    assert give([accept], opener) == [Accepted()]
    send(opener, b"one")
    assert give([accept], opener) == []
    assert bytes_of(frames_of(opener)) == []


def test_an_open_that_comes_twice_repeats_nothing_that_may_still_arrive() -> None:
    opener, acceptor = pair()
    first = send(acceptor, b"one", now=5.0)
    give([Frame(K.OPEN, 7, 0, b"who")], acceptor, 5.01)
    assert types(frames_of(acceptor, 5.01)) == [K.ACCEPT]
    give(first, opener, 5.02)
    carry(opener, acceptor, 5.05)
    assert next_timeout(acceptor) > 5.05
    wait(acceptor)
    assert acceptor.outgoing.repeated_bytes == 0


def test_bytes_that_come_before_their_socket_is_connected_come_again() -> None:
    opener, acceptor = ends()
    assert give([data(0, b"early")], acceptor) == []
    assert acceptor.incoming.received == 0
    opener.connect(0.0)
    carry(opener, acceptor)
    carry(acceptor, opener)
    opener.send_data(b"early", 0.0)
    assert carry(opener, acceptor) == [Data(b"early")]


def test_bytes_may_overtake_the_accept() -> None:
    opener, acceptor = ends()
    opener.connect(0.0)
    carry(opener, acceptor)
    acceptor.send_data(b"quick", 0.0)
    accept, quick = frames_of(acceptor)
    assert give([quick, accept], opener) == [Data(b"quick"), Accepted()]


# Bytes


def test_bytes_arrive_in_order_and_are_acknowledged_only_when_they_were_handed_on() -> None:
    opener, acceptor = pair()
    opener.send_data(b"one", 0.0)
    opener.send_data(b"two", 0.0)
    assert carry(opener, acceptor) == [Data(b"one"), Data(b"two")]
    give(frames_of(acceptor), opener)
    assert opener.outgoing.acknowledged == 0
    acceptor.delivered(4, 1.0)
    give(frames_of(acceptor, 1.0), opener)
    assert opener.outgoing.acknowledged == 4
    assert opener.outgoing.is_outstanding
    acceptor.delivered(2, 1.0)
    give(frames_of(acceptor, 1.0), opener)
    assert not opener.outgoing.is_outstanding


def test_bytes_that_arrived_but_were_not_handed_on_are_not_sent_again() -> None:
    opener, acceptor = pair()
    opener.send_data(b"one", 0.0)
    carry(opener, acceptor)
    carry(acceptor, opener)
    opener.connect(5.0)
    carry(opener, acceptor, 5.0)
    carry(acceptor, opener, 5.0)
    assert bytes_of(frames_of(opener, 5.0)) == []
    assert opener.outgoing.acknowledged == 0


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


def test_hints_go_with_the_bytes_that_they_are_about_each_time() -> None:
    ours, _ = pair()
    ours.send_data(b"page", 0, b"hint")
    ours.send_data(b"more", 0)
    ours.send_data(bytes(CHECKPOINT - 8), 0, b"all zero")
    sent = [
        (bytes(frame.payload[:4]), frame.hints) for frame in frames_of(ours) if frame.type in {K.DATA, K.DATA_CHECKED}
    ]
    assert sent == [(b"page", b"hint"), (b"more", b""), (bytes(4), b"all zero")]
    ours.disconnect()
    ours.connect(1)
    assert [frame.hints for frame in frames_of(ours, 1) if frame.type is K.DATA][:1] in ([], [b"hint"])


def test_nothing_is_sent_for_no_bytes() -> None:
    opener, _ = pair()
    opener.send_data(b"", 0.0)
    opener.send_data(b"one", 0.0)
    assert bytes_of(frames_of(opener)) == [(0, b"one")]


# Bounds


def test_no_more_is_read_than_may_wait_for_the_link() -> None:
    opener, _ = pair()
    while room := opener.room:
        opener.send_data(bytes(room), 0.0)
    assert UNSENT <= opener.outgoing.position < UNSENT + SMALLEST_SEGMENT
    opener.next_frame(0.0)
    assert opener.room > 0


def test_no_more_is_under_way_than_the_ceiling_and_what_is_freed_is_used_in_whole_segments() -> None:
    opener, _ = pair()
    while room := opener.room:
        opener.send_data(bytes(room), 0.0)
        opener.next_frame(0.0)
    sent = opener.outgoing.position
    assert CEILING - SMALLEST_SEGMENT < sent <= CEILING
    gap = SMALLEST_SEGMENT - (CEILING - sent)
    opener.receive_frame(ack(gap - 1, sent), 1.0)
    assert opener.room == 0
    opener.receive_frame(ack(gap, sent), 1.0)
    assert opener.room == SMALLEST_SEGMENT


def test_the_number_of_segments_under_way_is_bounded_however_small_they_are() -> None:
    opener, _ = pair()
    while opener.room:
        opener.send_data(b"x", 0.0)
        opener.next_frame(0.0)
    assert opener.outgoing.position == MOST_SEGMENTS
    opener.receive_frame(ack(1, 1), 1.0)
    assert opener.room > 0


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


# Digests


def test_a_digest_goes_with_the_data_at_checkpoints_and_with_the_end() -> None:
    opener, acceptor = pair()
    sent, checked = blake3(), []
    for number in range(CHECKPOINT // PIECE + 1):
        piece = bytes([number]) * PIECE
        sent.update(piece)
        [frame] = send(opener, piece)
        if frame.type is K.DATA_CHECKED:
            checked.append(number)
            assert frame.payload == piece + sent.digest()
        assert give([frame], acceptor) == [Data(piece)]
    assert checked == [CHECKPOINT // PIECE - 1]
    opener.send_eof(0.0)
    [fin] = frames_of(opener)
    assert (fin.type, fin.position, fin.payload) == (K.FIN, CHECKPOINT + PIECE, sent.digest())
    assert give([fin], acceptor) == [EndOfData()]


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


# What is lost


def timed_pair() -> tuple[Channel, Channel]:
    """Two ends that are open, of which the opener knows the round trip: 2 * TRIP."""
    opener, acceptor = pair()
    for turn in range(40):
        now = float(turn) / 10
        opener.send_data(b"x", now)
        for event in carry(opener, acceptor, now):
            assert isinstance(event, Data)
            acceptor.delivered(len(event.data), now)
        give(frames_of(acceptor, now), opener, now + 2 * TRIP)
    assert opener.outgoing.estimator.round_trip == pytest.approx(2 * TRIP)
    assert opener.outgoing.estimator.loss_delay == OVERDUE
    assert not opener.outgoing.is_outstanding
    return opener, acceptor


def test_a_segment_that_was_overtaken_is_sent_again_when_it_is_overdue() -> None:
    opener, _ = timed_pair()
    send(opener, b"lost", now=5.0)
    send(opener, b"arrives", now=5.01)
    opener.receive_frame(ack(40, 40, 0, (44, 51)), 5.11)
    assert frames_of(opener, 5.11) == []
    assert next_timeout(opener) == pytest.approx(5.0 + OVERDUE)
    opener.timeout(5.15)
    assert frames_of(opener, 5.15) == []
    opener.timeout(5.0 + LATE)
    assert bytes_of(frames_of(opener, 5.0 + LATE)) == [(40, b"lost")]
    assert opener.outgoing.repeated_bytes == 4


def test_a_segment_that_is_only_late_is_not_sent_again() -> None:
    opener, _ = timed_pair()
    send(opener, b"late", now=5.0)
    send(opener, b"quick", now=5.01)
    opener.receive_frame(ack(40, 40, 0, (44, 49)), 5.11)
    opener.receive_frame(ack(40, 49), 5.15)
    for at in (5.0 + LATE, 6.0, 60.0):
        opener.timeout(at)
        assert bytes_of(frames_of(opener, at)) == []


def test_a_segment_that_nothing_has_overtaken_is_not_sent_again_however_long_it_takes() -> None:
    opener, _ = timed_pair()
    send(opener, b"arrives", now=5.0)
    send(opener, b"slow", now=5.01)
    opener.receive_frame(ack(40, 47), 5.11)
    for at in (5.5, 8.0, 60.0):
        opener.timeout(at)
        assert set(types(frames_of(opener, at))) <= {K.PROBE}


def test_segments_of_the_same_instant_overtake_each_other_too() -> None:
    opener, _ = timed_pair()
    send(opener, b"lost", b"arrives", now=5.0)
    opener.receive_frame(ack(40, 40, 0, (44, 51)), 5.1)
    opener.timeout(5.0 + LATE)
    assert bytes_of(frames_of(opener, 5.0 + LATE)) == [(40, b"lost")]


def test_what_is_lost_is_sent_again_from_the_least_position_on_before_anything_new() -> None:
    opener, _ = timed_pair()
    send(opener, b"aa", b"bb", b"cc", b"dd", now=5.0)
    opener.send_data(b"ee", 5.1)
    opener.receive_frame(ack(40, 40, 0, (46, 48)), 5.1)
    opener.timeout(5.0 + LATE)
    assert [position for position, _ in bytes_of(frames_of(opener, 5.0 + LATE))] == [40, 42, 44, 48]


def test_a_segment_that_waits_to_be_sent_again_and_then_arrives_is_not_sent() -> None:
    opener, _ = timed_pair()
    send(opener, b"aa", b"bb", now=5.0)
    opener.receive_frame(ack(40, 40, 0, (42, 44)), 5.1)
    opener.timeout(5.0 + LATE)
    opener.receive_frame(ack(40, 44), 5.0 + LATE)
    assert bytes_of(frames_of(opener, 5.0 + LATE)) == []
    assert opener.outgoing.repeated_bytes == 0


def test_a_segment_that_was_sent_again_and_is_lost_again_does_not_wait_for_silence() -> None:
    opener, _ = timed_pair()
    send(opener, b"aa", b"bb", b"cc", now=5.0)
    opener.receive_frame(ack(40, 40, 0, (44, 46)), 5.1)
    opener.timeout(5.0 + LATE)
    assert bytes_of(frames_of(opener, 5.0 + LATE)) == [(40, b"aa"), (42, b"bb")]
    # The first one is lost again, and the second one arrives: it must be the one that was sent again.
    opener.receive_frame(ack(40, 40, 0, (42, 46)), 5.0 + LATE + 2 * TRIP)
    opener.timeout(5.0 + 2 * LATE)
    assert bytes_of(frames_of(opener, 5.0 + 2 * LATE)) == [(40, b"aa")]


def test_one_that_is_lost_again_and_again_does_not_hold_up_the_others() -> None:
    opener, _ = timed_pair()
    send(opener, b"aa", now=5.0)
    send(opener, b"bb", now=5.0)
    now, received = 5.0, [(42, 44)]
    for _ in range(6):
        opener.receive_frame(ack(40, 40, 0, *received), now + 2 * TRIP)
        now += LATE
        opener.timeout(now)
        assert bytes_of(frames_of(opener, now)) == [(40, b"aa")]
        position = opener.outgoing.position
        send(opener, b"zz", now=now)
        received = [(42, position + 2)]
    send(opener, b"lost", now=now)
    send(opener, b"arrives", now=now)
    end = opener.outgoing.position
    opener.receive_frame(ack(40, 40, 0, received[0], (end - 7, end)), now + 2 * TRIP)
    opener.timeout(now + LATE)
    assert bytes_of(frames_of(opener, now + LATE)) == [(40, b"aa"), (end - 11, b"lost")]


def test_after_silence_a_probe_keeps_its_place_and_its_answer_tells_what_is_lost() -> None:
    opener, acceptor = timed_pair()
    send(opener, b"lost", now=5.0)
    at = wait(opener)
    assert at == pytest.approx(5.5)
    opener.send_data(b"more", at)
    frames = frames_of(opener, at)
    assert types(frames) == [K.DATA, K.PROBE]
    give(frames[1:], acceptor, at)
    carry(acceptor, opener, at + 2 * TRIP)
    assert bytes_of(frames_of(opener, at + 2 * TRIP)) == [(40, b"lost")]


def test_the_answer_to_any_of_the_last_probes_counts() -> None:
    opener, _ = pair()
    send(opener, b"lost", now=0.0)
    probes, now = [], 0.0
    for _ in range(3):
        now = wait(opener)
        probes += frames_of(opener, now)
    assert [(frame.type, frame.position) for frame in probes] == [(K.PROBE, 1), (K.PROBE, 2), (K.PROBE, 3)]
    # A round trip that is longer than the silence: the answer to the first comes when the third was sent.
    opener.receive_frame(ack(0, 0, 1), 5.0)
    opener.timeout(20.0)
    assert (0, b"lost") in bytes_of(frames_of(opener, 20.0))


def test_probes_that_nobody_answers_are_not_kept_for_ever() -> None:
    opener, _ = pair()
    send(opener, b"lost")
    for _ in range(4 * PROBES):
        frames_of(opener, wait(opener))
    assert len(opener.outgoing._probes) == PROBES


def test_data_is_released_when_no_link_can_be_at_work_on_it_whatever_the_far_end_says() -> None:
    opener, _ = pair()
    released: list[bytes] = []
    opener.outgoing.on_released = lambda payload: released.append(bytes(payload))
    send(opener, b"once", b"again", now=1.0)
    opener.connect(2.0)
    opener.receive_frame(Acknowledgement(0, 4).frame(K.ACCEPT, 7), 2.0)
    assert bytes_of(frames_of(opener, 2.0)) == [(4, b"again")]
    send(opener, b"fine", b"the link has it", now=2.0)
    opener.receive_frame(ack(28, 28), 2.1)
    assert released == [b"once", b"fine"]


def test_the_numbers_of_probes_begin_anew_when_they_no_longer_fit() -> None:
    outgoing = Outgoing()
    outgoing._probe = 2**32 - 2
    numbers = []
    for _ in range(3):
        outgoing.probe()
        frame = outgoing.next_frame(7, 0.0)
        assert frame is not None
        numbers.append(frame.position)
    assert numbers == [2**32 - 1, 1, 2]


def test_what_is_lost_is_found_although_the_other_direction_is_never_silent() -> None:
    opener, _ = timed_pair()
    send(opener, b"the last request", now=5.0)
    for turn in range(10):
        now = 5.0 + turn / 10
        opener.receive_frame(data(turn, b"x"), now)
        opener.timeout(now)
        if K.PROBE in types(frames_of(opener, now)):
            break
    else:
        raise AssertionError("no probe was sent")
    assert now < 5.0 + 2 * PROBE_DELAY[0]


def test_an_end_with_nothing_outstanding_asks_now_and_then_whether_its_way_works() -> None:
    for channel in timed_pair():
        at = next_timeout(channel)
        assert at - channel.heard_at == pytest.approx(KEEPALIVE)
        channel.timeout(at)
        assert types(frames_of(channel, at)) == [K.PROBE]
        assert next_timeout(channel) == pytest.approx(at + KEEPALIVE)


def test_a_silence_of_any_length_costs_a_probe_every_two_seconds() -> None:
    opener, _ = pair()
    send(opener, b"lost")
    probes = 0
    while (now := wait(opener)) < 900.0:
        probes += len(frames_of(opener, now))
    assert 400 < probes <= 455


def test_the_far_end_is_heard_by_what_it_says_itself() -> None:
    opener, acceptor = pair()
    opener.receive_frame(Frame(K.UNKNOWN, 7), 5.0)  # a gateway says so
    assert opener.heard_at == 0.0
    opener.connect(5.0)
    carry(opener, acceptor, 6.0)
    assert acceptor.heard_at == 6.0
    carry(acceptor, opener, 7.0)
    assert opener.heard_at == 7.0


# A way that is lost


def test_on_a_new_way_both_ends_send_again_what_has_not_arrived_and_nothing_else() -> None:
    opener, acceptor = pair()
    for end in (opener, acceptor):
        frames = [each for each in send(end, b"arrives", b"lost", b"kept back") if each.type is K.DATA]
        give([frames[0], frames[2]], acceptor if end is opener else opener)
    for end in (opener, acceptor):
        end.disconnect()
        assert end.next_timeout() is None
    assert opener.state is ChannelState.OPENING
    assert opener.room == 0
    opener.connect(60.0)
    frames = frames_of(opener, 60.0)
    assert types(frames) == [K.OPEN, K.ACK]
    give(frames[:1], acceptor, 60.0)
    frames = frames_of(acceptor, 60.0)
    assert types(frames) == [K.ACCEPT]
    assert give(frames, opener, 60.1) == []
    frames = frames_of(opener, 60.1)
    assert types(frames) == [K.ACK, K.DATA]
    assert bytes_of(frames) == [(7, b"lost")]
    assert give(frames, acceptor, 60.1) == [Data(b"lost"), Data(b"kept back")]
    frames = frames_of(acceptor, 60.1)
    assert bytes_of(frames) == [(7, b"lost")]
    assert give(frames, opener, 60.2) == [Data(b"lost"), Data(b"kept back")]


def test_on_a_new_way_the_end_that_was_called_waits_to_hear_what_has_arrived() -> None:
    opener, acceptor = pair()
    frames = send(acceptor, b"lost", b"late", b"arrives", b"lost too", now=1.0)
    give([frames[2]], opener, 1.05)
    carry(opener, acceptor, 1.1)
    give([frames[1]], opener, 1.1)
    opener.connect(1.1)
    give(frames_of(opener, 1.1)[:1], acceptor, 1.1)
    acceptor.timeout(next_timeout(acceptor))
    [accept, *rest] = frames_of(acceptor, 30.0)
    assert bytes_of(rest) == []
    give([accept], opener, 30.0)
    carry(opener, acceptor, 30.1)
    assert bytes_of(frames_of(acceptor, 30.1)) == [(0, b"lost"), (15, b"lost too")]


def test_unknown_makes_the_opener_open_again_and_only_the_first_of_many() -> None:
    opener, acceptor = pair()
    send(opener, b"lost")
    for _ in range(3):
        opener.receive_frame(Frame(K.UNKNOWN, 7), 5.0)
        assert opener.state is ChannelState.OPENING
    frames = frames_of(opener, 5.0)
    assert types(frames) == [K.OPEN]
    give(frames, acceptor, 5.0)
    carry(acceptor, opener, 5.0)
    assert bytes_of(frames_of(opener, 5.0)) == [(0, b"lost")]
    # What follows at once is an answer to what was under way before.
    opener.receive_frame(Frame(K.UNKNOWN, 7), 5.1)
    assert is_open(opener)


def test_unknown_says_nothing_to_the_end_that_was_called() -> None:
    _, acceptor = pair()
    assert acceptor.receive_frame(Frame(K.UNKNOWN, 7), 0.0) == []
    assert acceptor.state is ChannelState.OPEN
    assert frames_of(acceptor) == []


def test_an_accept_of_the_way_before_does_no_harm() -> None:
    opener, acceptor = pair()
    acceptor.accept(1.0)
    stale = frames_of(acceptor)
    send(opener, b"one", now=1.0)
    opener.connect(2.0)
    give(stale, opener, 2.0)
    frames = frames_of(opener, 2.0)
    assert K.OPEN in types(frames)
    assert give(frames, acceptor, 2.0) == [Data(b"one")]
    carry(acceptor, opener, 2.0)
    assert bytes_of(frames_of(opener, 2.0)) == []


def test_what_was_sent_before_a_cut_may_still_arrive_after_it() -> None:
    opener, acceptor = pair()
    old = send(opener, b"one", b"two")
    opener.connect(1.0)
    carry(opener, acceptor, 1.0)
    carry(acceptor, opener, 1.0)
    new = frames_of(opener, 1.0)
    assert give([old[0], *new, *old], acceptor, 1.0) == [Data(b"one"), Data(b"two")]


# The end


def test_both_ends_finish_when_both_have_ended_and_all_is_handed_on() -> None:
    opener, acceptor = pair()
    opener.send_data(b"call", 0.0)
    opener.send_eof(0.0)
    assert carry(opener, acceptor) == [Data(b"call"), EndOfData()]
    acceptor.delivered(4, 0.0)
    acceptor.send_eof(0.0)
    assert carry(acceptor, opener) == [EndOfData()]
    opener.delivered_eof(0.0)
    assert is_open(opener)  # its own end has arrived, and is not handed on yet
    acceptor.delivered_eof(0.0)
    carry(acceptor, opener)
    assert opener.state is ChannelState.FINISHED
    frames = frames_of(opener)
    assert types(frames) == [K.ACK, K.CLOSE]
    give(frames[:1], acceptor)
    assert acceptor.next_timeout() is None
    before = acceptor.may_be_forgotten
    give(frames[1:], acceptor)
    assert (before, acceptor.may_be_forgotten) == (False, True)
    assert (opener.may_be_forgotten, opener.may_be_unknown) == (False, True)
    frames = frames_of(acceptor)
    assert types(frames) == [K.CLOSE]
    give(frames, opener)
    assert (opener.may_be_forgotten, opener.may_be_unknown) == (True, False)
    assert opener.next_timeout() is None


def test_half_a_channel_goes_on_after_the_other_half_has_ended() -> None:
    opener, acceptor = pair()
    opener.send_eof(0.0)
    assert carry(opener, acceptor) == [EndOfData()]
    acceptor.delivered_eof(0.0)
    acceptor.send_data(b"answer", 0.0)
    assert carry(acceptor, opener) == [Data(b"answer")]
    assert opener.room == 0
    opener.send_data(b"too late", 0.0)
    opener.send_eof(0.0)
    assert bytes_of(frames_of(opener)) == []


def test_an_end_that_is_lost_is_found_by_a_probe() -> None:
    opener, acceptor = pair()
    opener.send_eof(0.0)
    assert types(frames_of(opener)) == [K.FIN]
    at = wait(opener)
    carry(opener, acceptor, at)
    carry(acceptor, opener, at)
    opener.timeout(at + 2.0)
    assert carry(opener, acceptor, at + 2.0) == [EndOfData()]


def test_close_alone_finishes_the_other_end() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    assert is_open(acceptor)
    give([frame for frame in frames_of(opener) if frame.type is K.CLOSE], acceptor)
    assert acceptor.state is ChannelState.FINISHED
    assert acceptor.may_be_forgotten


def test_an_end_that_has_finished_answers_what_is_repeated() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    frames_of(opener)  # all of it is lost
    assert opener.state is ChannelState.FINISHED
    at = wait(acceptor)
    assert carry(acceptor, opener, at) == []
    frames = frames_of(opener, at)
    assert types(frames) == [K.ACK]
    give(frames, acceptor, at)
    assert acceptor.state is ChannelState.FINISHED
    carry(opener, acceptor, at)
    assert frames_of(acceptor, at) == []


def test_an_opener_that_has_finished_opens_again_until_it_hears_that_the_other_end_knows() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    frames_of(opener)  # all of it is lost, and the way has forgotten the channel
    for _ in range(3):
        at = wait(opener)
        assert types(frames_of(opener, at)) == [K.OPEN, K.CLOSE]
    at = wait(opener)
    carry(opener, acceptor, at)
    assert acceptor.may_be_forgotten
    frames_of(acceptor)  # its answer is lost, too
    at = wait(opener)
    carry(opener, acceptor, at)
    carry(acceptor, opener, at)
    assert opener.may_be_forgotten
    assert opener.next_timeout() is None
    opener.connect(at)
    opener.receive_frame(Frame(K.UNKNOWN, 7), at + 9.0)
    assert frames_of(opener, at + 9.0) == []


def test_an_opener_that_has_finished_asks_nobody_who_has_given_up() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    frames_of(opener)  # all of it is lost
    acceptor.reset("nothing was heard")
    frames_of(acceptor)
    at = wait(opener)
    give([frame for frame in frames_of(opener, at) if frame.type is K.CLOSE], acceptor, at)
    carry(acceptor, opener, at)
    assert opener.state is ChannelState.FINISHED
    assert opener.may_be_forgotten


@pytest.mark.parametrize("learns", ["a new link", "unknown"])
def test_an_opener_that_has_finished_says_so_again_on_a_new_way(learns: str) -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    frames_of(opener)  # all of it is lost
    if learns == "unknown":
        opener.receive_frame(Frame(K.UNKNOWN, 7), 9.0)
    else:
        opener.disconnect()
        opener.connect(9.0)
    opening, close = frames_of(opener, 9.0)
    assert (opening.type, close.type) == (K.OPEN, K.CLOSE)
    # The last word is lost again, or comes before the way is open.
    give([opening], acceptor, 9.0)
    carry(acceptor, opener, 9.0)
    carry(opener, acceptor, 9.0)
    assert acceptor.state is ChannelState.FINISHED
    assert acceptor.may_be_forgotten


def test_a_finished_channel_is_not_reset_any_more() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    carry(acceptor, opener)
    carry(opener, acceptor)
    frames_of(acceptor)
    acceptor.reset("too late")
    assert frames_of(acceptor) == []
    assert opener.receive_frame(Frame(K.RESET, 7, 0, b"too late"), 0.0) == []
    assert opener.state is acceptor.state is ChannelState.FINISHED


def test_a_reset_ends_both_ends_at_once_with_its_reason() -> None:
    opener, acceptor = pair()
    send(opener, b"one")
    opener.reset("the host is on fire")
    assert carry(opener, acceptor) == [Reset("the host is on fire")]
    assert acceptor.state is opener.state is ChannelState.RESET
    assert acceptor.receive_frame(data(0, b"late"), 0.0) == []
    for end in (opener, acceptor):
        assert end.next_timeout() is None
        assert end.room == 0
        assert frames_of(end) == []


def test_an_opener_that_gives_up_without_a_link_opens_again_to_say_so_until_it_hears_the_same() -> None:
    opener, acceptor = pair()
    opener.disconnect()
    opener.reset("nobody waits for it any more")
    opener.connect(10.0)
    assert types(frames_of(opener, 10.0)) == [K.OPEN]
    # What was lost on the way is said again, ever more rarely.
    opened, now = 1, 10.0
    while now < 20.0:
        now = round(now + 0.1, 1)
        opener.timeout(now)
        opened += len(frames_of(opener, now))
    assert 5 < opened < 8
    # Whoever goes on hears that it is over; that, too, may be lost.
    opener.timeout(22.0)
    assert carry(opener, acceptor, 22.0) == []
    assert give(frames_of(acceptor, 22.0), opener, 22.0) == []
    assert types(frames_of(opener, 22.0)) == [K.RESET]
    opener.timeout(24.0)
    assert carry(opener, acceptor, 24.0) == []
    assert carry(acceptor, opener, 24.0) == []
    assert carry(opener, acceptor, 24.0) == [Reset("nobody waits for it any more")]
    opener.receive_frame(Frame(K.RESET, 7, 0, b"it was given up"), 25.0)
    assert not opener.may_be_unknown
    assert opener.next_timeout() is None
    opener.connect(26.0)
    assert frames_of(opener, 26.0) == []


def test_an_opener_that_gives_up_before_it_was_ever_linked_has_nobody_to_tell() -> None:
    opener, _ = ends()
    opener.reset("nobody waits for it any more")
    assert not opener.may_be_unknown


def test_what_the_other_end_has_given_up_need_not_be_told_to_it() -> None:
    opener, acceptor = pair()
    acceptor.reset("the disk is full")
    carry(acceptor, opener)
    assert not opener.may_be_unknown
    assert not acceptor.may_be_unknown


def test_an_end_that_was_reset_says_so_again_to_whoever_goes_on() -> None:
    opener, acceptor = pair()
    acceptor.reset("the disk is full")
    frames_of(acceptor)  # it is lost
    opener.send_data(b"one", 0.0)
    opener.send_data(b"two", 0.0)
    carry(opener, acceptor)
    [again] = frames_of(acceptor)
    assert reason_of(again) == "the disk is full"
    assert give([again], opener) == [Reset("the disk is full")]
    # They do not go on for ever.
    assert carry(opener, acceptor) == []
    give([again, Frame(K.UNKNOWN, 7)], acceptor)
    assert frames_of(acceptor) == []


def test_a_channel_can_be_given_up_before_it_was_open() -> None:
    opener, acceptor = ends()
    opener.connect(0.0)
    opener.reset("nobody waits for it any more")
    frames = frames_of(opener)
    assert types(frames) == [K.OPEN, K.RESET]
    assert give(frames, acceptor) == [Reset("nobody waits for it any more")]
    acceptor.accept(0.0)
    assert acceptor.state is ChannelState.RESET


# What an end must not believe


@pytest.mark.parametrize(
    "frame",
    [
        ack(0, 4),
        ack(4, 4),
        ack(0, 0, 0, (1, 4)),
        ack(2, 1),
        Frame(K.ACK, 7),
        data(3, b""),
        Frame(K.DATA_CHECKED, 7, 0, bytes(32)),
        Frame(K.FIN, 7, 0, bytes(31)),
        Frame(K.FIN, 7, 0, bytes(32)),
        data(CEILING, b"xx"),
        Frame(K.PING, 7),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_a_frame_that_cannot_be_is_refused(frame: Frame, which: int) -> None:
    end = pair()[which]
    send(end, b"abc")
    end.send_data(b"not sent yet", 0.0)
    with pytest.raises(ProtocolError):
        end.receive_frame(frame, 0.0)


@pytest.mark.parametrize("kind", [K.OPEN, K.CLOSE])
def test_the_opener_is_told_nothing_that_only_an_opener_says(kind: FrameType) -> None:
    opener, _ = pair()
    with pytest.raises(ProtocolError, match=kind.name):
        opener.receive_frame(Frame(kind, 7), 0.0)


def test_the_end_that_was_called_accepts_nobody_elses_accept() -> None:
    _, acceptor = pair()
    with pytest.raises(ProtocolError, match="ACCEPT"):
        acceptor.receive_frame(Acknowledgement(0, 0).frame(K.ACCEPT, 7), 0.0)


def not_sent(acceptor: Channel) -> None:
    acceptor.send_data(b"x", 0.0)
    acceptor.send_eof(0.0)


@pytest.mark.parametrize(
    "prepare",
    [
        Channel.disconnect,
        lambda acceptor: give([Frame(K.FIN, 7, 0, blake3().digest())], acceptor),
        not_sent,
    ],
)
def test_a_channel_is_not_closed_before_both_streams_have_ended(prepare: Callable[[Channel], object]) -> None:
    _, acceptor = pair()
    prepare(acceptor)
    with pytest.raises(ProtocolError, match="before its streams had ended"):
        acceptor.receive_frame(Frame(K.CLOSE, 7), 0.0)


def test_a_channel_is_not_closed_before_its_bytes_are_handed_on() -> None:
    _, acceptor = pair()
    acceptor.send_eof(0.0)
    frames_of(acceptor)
    give([data(0, b"x"), Frame(K.FIN, 7, 1, blake3(b"x").digest())], acceptor)
    with pytest.raises(ProtocolError, match="before its streams had ended"):
        acceptor.receive_frame(Frame(K.CLOSE, 7), 0.0)


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


def test_an_acknowledgement_that_is_old_or_comes_twice_takes_nothing_back() -> None:
    opener, acceptor = pair()
    said = []
    for piece in (b"one", b"two", b"three"):
        opener.send_data(piece, 0.0)
        carry(opener, acceptor)
        acceptor.delivered(len(piece), 0.0)
        said += frames_of(acceptor)
    give([said[2], said[0], said[1], said[2]], opener)
    assert opener.outgoing.acknowledged == 11
    assert not opener.outgoing.is_outstanding


# Estimates


def test_the_loss_delay_is_the_round_trip_and_four_deviations_within_its_bounds() -> None:
    estimator = Estimator()
    assert estimator.loss_delay == 1.0
    estimator.on_round_trip(0.4)
    assert estimator.loss_delay == pytest.approx(0.4 + 4 * 0.2)
    for _ in range(100):
        estimator.on_round_trip(0.6)
    assert estimator.loss_delay == pytest.approx(0.6, rel=1e-3)
    for _ in range(100):
        estimator.on_round_trip(0.001)
    assert estimator.loss_delay == LOSS_DELAY[0]
    estimator.on_round_trip(600.0)
    assert estimator.loss_delay == LOSS_DELAY[1]


def test_one_sample_of_a_way_that_has_become_slower_is_enough_to_wait_for_it() -> None:
    estimator = Estimator()
    for _ in range(100):
        estimator.on_round_trip(0.02)
    estimator.on_round_trip(1.0)
    assert estimator.loss_delay > 1.0


def test_a_segment_that_was_sent_twice_is_no_sample_and_a_probe_is_one() -> None:
    opener, _ = pair()
    send(opener, b"one", now=0.0)
    opener.connect(5.0)
    opener.receive_frame(Acknowledgement(0, 0).frame(K.ACCEPT, 7), 5.0)
    assert bytes_of(frames_of(opener, 5.0)) == [(0, b"one")]
    opener.receive_frame(ack(0, 3), 5.1)
    assert opener.outgoing.estimator.round_trip == 0.0
    opener.outgoing.probe()
    assert types(frames_of(opener, 6.0)) == [K.PROBE]
    opener.receive_frame(ack(0, 3, 1), 6.2)
    assert opener.outgoing.estimator.round_trip == pytest.approx(0.2)


def test_segments_grow_and_shrink_with_the_rate_at_which_bytes_are_delivered() -> None:
    estimator = Estimator()
    assert estimator.segment == SMALLEST_SEGMENT
    for step in range(20):
        estimator.on_delivered(step * 2_000_000, step / 10)
    assert estimator.rate == pytest.approx(20e6)
    assert estimator.segment == 6 * RECORD - HEADER.size  # whole records of TLS, in 100,000 bytes
    for step in range(20, 40):
        estimator.on_delivered(step * 20_000_000, step / 10)
    assert estimator.segment == LARGEST_SEGMENT
    for step in range(40, 60):
        estimator.on_delivered(800_000_000 + (step - 40) * 1000, step / 10)
    assert estimator.segment == SMALLEST_SEGMENT


def test_a_pause_is_not_taken_for_a_slow_way() -> None:
    estimator = Estimator()
    for step in range(20):
        estimator.on_delivered(step * 2_000_000, step / 10)
    rate = estimator.rate
    estimator.on_delivered(38_000_001, 60.0)
    assert estimator.rate == rate


# Work


def test_the_work_for_an_acknowledgement_does_not_grow_with_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    outgoing = Outgoing()
    count = 4000
    for _ in range(count):
        outgoing.take(b"x", b"")
        outgoing.next_frame(7, 0.0)
    looks = 0
    note_arrived = Outgoing._note_arrived

    def counted(self: Outgoing, segment: object, arrived: list[object]) -> None:
        nonlocal looks
        looks += 1
        note_arrived(self, segment, arrived)  # type: ignore[arg-type]  # the type of a segment is nobody's business

    monkeypatch.setattr(Outgoing, "_note_arrived", counted)
    # The first one is missing, and then every hundredth, which comes late.
    for end in range(2, count + 1):
        late = [at for at in range(100, end, 100) if at + 50 > end]
        ranges, start = [], 1
        for at in late:
            ranges.append((start, at))
            start = at + 1
        if start < end:
            ranges.append((start, end))
        outgoing.acknowledge(Acknowledgement(0, 0, 0, tuple(ranges)), 1.0)
    assert looks < 6 * count
