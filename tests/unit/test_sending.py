"""What a channel's sending end keeps, finds lost, and sends next."""

from __future__ import annotations

import pytest
from blake3 import blake3

from landbridge.estimator import SMALLEST_SEGMENT
from landbridge.frame import Acknowledgement
from landbridge.receiving import CEILING, MOST_SEGMENTS, Data, EndOfData
from landbridge.sending import CHECKPOINT, PROBES, UNSENT, Outgoing
from tests.unit.channels import (
    LATE,
    OVERDUE,
    PIECE,
    TRIP,
    K,
    ack,
    bytes_of,
    carry,
    frames_of,
    give,
    next_timeout,
    pair,
    send,
    timed_pair,
    types,
    wait,
)


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


# What is lost


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


def test_what_is_lost_with_its_way_is_not_waited_for_any_more() -> None:
    outgoing = Outgoing()
    for _ in range(2):
        outgoing.take(b"x", b"")
        outgoing.next_frame(7, 0.0)
    outgoing.acknowledge(Acknowledgement(0, 0, 0, ((1, 2),)), 0.1)
    before = outgoing.loss_at
    outgoing.lose_all()
    assert before is not None
    assert outgoing.loss_at is None


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


def test_an_acknowledgement_that_is_old_or_comes_twice_takes_nothing_back() -> None:
    opener, acceptor = pair()
    said = []
    for piece in (b"one", b"two", b"three"):
        opener.send_data(piece, 0.0)
        carry(opener, acceptor)
        acceptor.delivered(len(piece))
        said += frames_of(acceptor)
    give([said[2], said[0], said[1], said[2]], opener)
    assert opener.outgoing.acknowledged == 11
    assert not opener.outgoing.is_outstanding


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
