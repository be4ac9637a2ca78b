"""A channel's life: how it is opened, on one way after another, how long it waits, and every way in which it ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from blake3 import blake3

from landbridge.channel import KEEPALIVE, PROBE_DELAY, Accepted, Channel, ChannelState, Reset
from landbridge.errors import ProtocolError
from landbridge.estimator import SMALLEST_SEGMENT
from landbridge.frame import Acknowledgement, Frame, FrameType, reason_of
from landbridge.receiving import CEILING, Data, EndOfData
from tests.unit.channels import (
    K,
    ack,
    bytes_of,
    carry,
    data,
    ends,
    finish,
    frames_of,
    give,
    next_timeout,
    pair,
    send,
    timed_pair,
    types,
    wait,
)


def is_open(channel: Channel) -> bool:
    return channel.state is ChannelState.OPEN


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
    acceptor.delivered(4)
    give(frames_of(acceptor, 1.0), opener)
    assert opener.outgoing.acknowledged == 4
    assert opener.outgoing.is_outstanding
    acceptor.delivered(2)
    give(frames_of(acceptor, 1.0), opener)
    assert not opener.outgoing.is_outstanding


# Patience


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


def test_while_there_is_no_way_nothing_is_waited_for() -> None:
    opener, _ = timed_pair()
    send(opener, b"lost", b"arrives", now=5.0)
    opener.receive_frame(ack(40, 40, 0, (44, 51)), 5.1)
    opener.disconnect()
    assert opener.next_timeout() is None


# The end


def test_both_ends_finish_when_both_have_ended_and_all_is_handed_on() -> None:
    opener, acceptor = pair()
    opener.send_data(b"call", 0.0)
    opener.send_eof(0.0)
    assert carry(opener, acceptor) == [Data(b"call"), EndOfData()]
    acceptor.delivered(4)
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
    """All has come, and what goes has ended, but was not sent."""
    give([Frame(K.FIN, 7, 0, blake3().digest())], acceptor)
    acceptor.delivered_eof(0.0)
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
