"""What stands between QEMU's socket and its channel: whole pages out, and what is delivered when it was written."""

from __future__ import annotations

from agent.memory import Memory
from agent.pages import Pages
from landbridge import hints
from landbridge.channel import Channel
from landbridge.frame import RECORD, FrameType
from landbridge.link import POOL
from tests.unit.channels import bytes_of, frames_of, pair
from tests.unit.test_return_path import PONG, SHUT, message
from tests.vectors import load

# QEMU's stream: one block of memory, and the one page in it, with its head.
BLOCK = (
    b"QEVM\0\0\0\3\1" + bytes(4) + b"\3ram" + bytes(4) + b"\0\0\0\4"
    + (hints.PAGE | 4).to_bytes(8, "big") + b"\6pc.ram" + hints.PAGE.to_bytes(8, "big")
)  # fmt: skip
PAGE = (0 | 8).to_bytes(8, "big") + b"\6pc.ram" + bytes(range(256)) * 16
STREAM = BLOCK + PAGE


def read(pages: Pages, said: bytes, *, is_answered: bool = False) -> None:
    """Have the socket say something, as whoever reads it does: into a large buffer, behind the tail."""
    room = POOL.take(4 * RECORD)
    length = len(pages.tail) + len(said)
    room[:length] = pages.tail + said
    assert pages.from_local(room, length, 0.0) is is_answered


def opened() -> tuple[Pages, Channel]:
    """Between the socket of a source's QEMU and a ram channel that is open."""
    channel, _ = pair()
    frames_of(channel)
    return Memory(channel), channel


def sent(channel: Channel) -> list[tuple[int, bytes, int]]:
    """Frames with bytes: their position, the bytes, and how many of them have hints."""
    return [
        (frame.position, bytes(frame.payload), len(hints.decode(frame.hints, len(frame.payload))))
        for frame in frames_of(channel)
        if frame.type is FrameType.DATA
    ]


def test_the_beginning_of_a_page_waits_for_its_end_and_takes_of_the_room() -> None:
    pages, channel = opened()
    room = pages.room
    read(pages, STREAM[:-1000])
    assert sent(channel) == [(0, BLOCK, 0)]
    assert pages.tail == PAGE[:-1000]
    assert pages.room == room - len(pages.tail)
    read(pages, STREAM[-1000:])
    assert sent(channel) == [(len(BLOCK), PAGE, 1)]
    assert pages.tail == b""


def test_a_tail_that_waits_no_longer_goes_without_a_hint() -> None:
    pages, channel = opened()
    read(pages, STREAM[:-1000])
    frames_of(channel)
    pages.send_tail(0.0)
    pages.send_tail(0.0)
    read(pages, STREAM[-1000:])
    assert [count for _, _, count in sent(channel)] == [0, 0]
    assert pages.hinter.unhinted_bytes == len(STREAM)


def test_what_is_written_in_part_is_delivered_in_part() -> None:
    pages, channel = opened()
    for piece in (b"sector", b"more"):
        pages.from_channel(piece, 0.0)
    seen = []
    for count in (2, 4, 4):
        seen.append(bytes(pages.next_for_local() or b""))
        pages.written(count)
    assert seen == [b"sector", b"ctor", b"more"]
    assert pages.next_for_local() is None
    assert channel.incoming.delivered == 10


def test_what_was_lost_is_neither_written_nor_sent() -> None:
    pages, channel = opened()
    read(pages, STREAM[:-1000])
    pages.from_channel(b"sector", 0.0)
    frames_of(channel)
    pages.forget_all()
    pages.send_tail(0.0)
    assert pages.next_for_local() is None
    assert bytes_of(frames_of(channel)) == []


# What the destination's QEMU answers.

WHOLE = load("qemu", "plain")


def say_all(pages: Pages, channel: Channel, *, is_answered: bool) -> None:
    """Have a source's QEMU say all of a migration; the last byte comes alone."""
    for at in range(0, len(WHOLE) - 1, 2 * RECORD):
        read(pages, WHOLE[at : min(at + 2 * RECORD, len(WHOLE) - 1)])
        frames_of(channel)
    assert pages.next_for_local() is None
    read(pages, WHOLE[-1:], is_answered=is_answered)
    frames_of(channel)


def at_source() -> tuple[Pages, Channel]:
    """Where QEMU was answered as its stream began."""
    pages, channel = opened()
    pages.from_channel(PONG, 0.0)
    pages.written(len(PONG))
    return pages, channel


def test_a_source_that_has_said_all_is_answered_at_once_and_what_it_is_answered_later_is_delivered() -> None:
    pages, channel = at_source()
    say_all(pages, channel, is_answered=True)
    assert pages.next_for_local() == SHUT
    pages.written(3)
    assert pages.next_for_local() == SHUT[3:]
    pages.written(5)
    assert pages.next_for_local() is None
    assert channel.incoming.delivered == len(PONG)
    assert not pages.is_awaited
    pages.from_channel(SHUT[:5], 0.0)
    pages.from_channel(SHUT[5:], 0.0)
    assert pages.next_for_local() is None
    assert channel.incoming.delivered == len(PONG + SHUT)


def test_the_answer_stands_behind_what_was_not_written_yet() -> None:
    pages, channel = opened()
    pages.from_channel(PONG, 0.0)
    for at in range(0, len(WHOLE), 2 * RECORD):
        read(pages, WHOLE[at : at + 2 * RECORD], is_answered=at + 2 * RECORD >= len(WHOLE))
        frames_of(channel)
    seen = b""
    while (data := pages.next_for_local()) is not None:
        seen += data
        pages.written(len(data))
    assert seen == PONG + SHUT


def test_a_source_that_waits_for_no_answer_gets_none() -> None:
    pages, channel = opened()
    say_all(pages, channel, is_answered=False)
    assert pages.next_for_local() is None


def test_nothing_is_put_into_half_a_message() -> None:
    pages, channel = opened()
    pages.from_channel(PONG[:-1], 0.0)
    pages.written(len(PONG) - 1)
    say_all(pages, channel, is_answered=False)
    assert pages.next_for_local() is None


def test_a_source_that_goes_on_is_not_answered_twice() -> None:
    pages, channel = at_source()
    say_all(pages, channel, is_answered=True)
    pages.written(len(SHUT))
    read(pages, b"{}")
    assert pages.next_for_local() is None


def test_a_destination_is_awaited_until_it_has_answered() -> None:
    _, channel = pair()
    pages = Memory(channel)
    seen = [pages.is_awaited]
    for said_next in (PONG, SHUT[:-1]):
        read(pages, said_next)
        seen.append(pages.is_awaited)
    read(pages, SHUT[-1:], is_answered=True)
    seen.append(pages.is_awaited)
    assert (seen, pages.has_failed) == ([False, True, True, False], False)
    assert b"".join(content for _, content in bytes_of(frames_of(channel))) == PONG + SHUT


def test_a_destination_that_could_not_take_it_in_has_failed() -> None:
    _, channel = pair()
    pages = Memory(channel)
    read(pages, PONG + message(1, bytes(3) + b"\1"), is_answered=True)
    assert (pages.is_awaited, pages.has_failed) == (False, True)
