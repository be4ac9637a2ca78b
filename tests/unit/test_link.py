"""One connection as a link: frames in order, a heartbeat, and an end with a reason."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from landbridge import link as module
from landbridge.errors import ProtocolError
from landbridge.frame import RECORD, Frame, FrameType, Payload
from landbridge.link import SIGN_OF_LIFE, TURN, Link
from tests.unit.wires import SECONDS, End, Plain, linked, no_exceptions, nothing_left, settled, sockets, until, wire


@pytest_asyncio.fixture(autouse=True)
async def clean() -> AsyncIterator[None]:
    """Each test leaves nothing behind, and no callback raises."""
    with no_exceptions():
        async with nothing_left():
            yield


def data(size: int, position: int = 0) -> Frame:
    return Frame(FrameType.DATA, 1, position, bytes([size % 251]) * size)


# Frames.


async def test_frames_arrive_in_order_with_their_bytes_whatever_their_size() -> None:
    async with linked() as (here, there):
        sizes = [1, 1000, RECORD - 24, RECORD - 23, RECORD, 100_000, 1 << 18, 2]
        sent = [data(size, n) for n, size in enumerate(sizes)]
        here.send(*sent)
        assert [await there.next() for _ in sent] == sent


@pytest.mark.parametrize("size", [10, RECORD])
async def test_hints_travel_with_their_frame(size: int) -> None:
    async with linked() as (here, there):
        frame = Frame(FrameType.DATA, 1, 7, bytes(size), b"a hint")
        here.send(frame)
        assert await there.next() == frame


async def test_more_than_a_turn_of_the_loop_carries_arrives_all_the_same() -> None:
    async with linked() as (here, there):
        sent = [data(1 << 18, n) for n in range(4 * TURN >> 18)]
        here.send(*sent)
        assert [await there.next() for _ in sent] == sent
        assert here.link.bytes_sent >= 4 * TURN
        assert there.link.bytes_received >= 4 * TURN


async def test_a_frame_is_asked_for_only_when_the_socket_takes_it() -> None:
    here, there = sockets(16 << 10)
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    end.send(*(data(1 << 16, n) for n in range(32)))
    await settled()
    assert end.unsent >= 30
    assert not end.link.is_ready
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SECONDS):
        while end.unsent:
            await loop.sock_recv(there, 1 << 20)
    end.link.abort("the test is over")
    there.close()


class Strict(Plain):
    """As TLS does, it insists on the same data after it has taken none."""

    refused: bytes | None = None
    refusals = 0

    def send(self, data: Payload) -> int | None:
        if self.refused is not None:
            assert bytes(data) == self.refused
        sent = super().send(memoryview(data)[:20_000])
        self.refused = bytes(data) if sent is None else None
        self.refusals += sent is None
        return sent


async def test_what_the_socket_did_not_take_is_given_again_and_nothing_else() -> None:
    here, there = sockets(16 << 10)
    connection = Strict(here)
    end, other = End(Link(connection, "far")), End(Link(Plain(there), "near"))
    end.link.start(end)
    other.link.start(other)
    sent = [data(size, n) for n, size in enumerate([100_000, 5, 9000, 1 << 18] * 8)]
    for frame in sent:
        end.send(frame)
        other.send(Frame(FrameType.ACK, 1, 0, bytes(12)))  # what is read must not disturb it
        await asyncio.sleep(0)
    assert [await other.next() for _ in sent] == sent
    assert connection.refusals
    end.link.abort("the test is over")
    other.link.abort("the test is over")


async def test_a_link_that_is_handed_over_asks_and_tells_the_next_receiver() -> None:
    async with linked() as (here, there):
        second = End(here.link)
        here.link.hand_over(second)
        second.send(data(5))
        assert await there.next() == data(5)
        there.send(data(6))
        assert await second.next() == data(6)
        assert await here.nothing_comes()


# Pausing.


async def test_a_paused_link_reads_nothing_and_holds_its_other_end_back_until_it_is_resumed() -> None:
    async with linked(buffer=16 << 10) as (here, there):
        here.link.pause()
        sent = [data(1 << 16, n) for n in range(16)]
        there.send(*sent)
        assert await here.nothing_comes()
        assert there.unsent >= 14
        here.link.resume()
        assert [await here.next() for _ in sent] == sent


async def test_a_receiver_that_pauses_its_link_gets_no_other_frame_of_those_that_have_come() -> None:
    class Pausing(End):
        def frame_received(self, link: Link, frame: Frame) -> None:
            super().frame_received(link, frame)
            link.pause()

    link, there = wire()
    here = Pausing(link)
    link.start(here)
    there.send(data(1), data(2))
    assert await here.next() == data(1)
    assert await here.nothing_comes()
    link.resume()
    assert await here.next() == data(2)
    link.abort("the test is over")
    there.link.abort("the test is over")


async def test_a_paused_link_is_not_silent_and_neither_is_one_that_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    here, there = sockets()
    end = End(Link(Plain(here), "far", silence_limit=0.05))
    end.link.start(end)
    end.link.pause()
    await until(lambda: end.link._beats > 15)
    assert end.link.closed_because is None
    end.link.resume()
    assert "silent" in await end.ended()
    there.close()


async def test_a_paused_link_whose_other_end_dies_is_over_when_it_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    async with linked() as (here, there):
        here.link.pause()
        there.link.abort("it died")
        assert "broke" in await here.ended()


# Life.


async def test_a_ping_is_answered_and_neither_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    async with linked() as (here, there):
        await until(lambda: here.link.round_trip is not None and there.link.round_trip is not None)
        assert 0 <= (here.link.round_trip or 0) < 1
        assert await here.nothing_comes()
        assert await there.nothing_comes()


async def test_an_answer_to_no_ping_says_nothing_of_the_round_trip() -> None:
    here, there = sockets()
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    there.send(Frame(FrameType.PONG, 0, 77).encode() + data(3).encode())
    assert await end.next() == data(3)
    assert end.link.round_trip is None
    end.link.abort("the test is over")
    there.close()


async def test_pings_in_a_flood_are_not_all_kept_for_an_answer() -> None:
    here, there = sockets(16 << 10)
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    end.send(data(1 << 18))  # which nobody takes, so that no answer leaves
    await settled()
    flood = b"".join(Frame(FrameType.PING, 0, n).encode() for n in range(100))
    for _ in range(100):
        await asyncio.get_running_loop().sock_sendall(there, flood)
    await settled()
    assert len(end.link._own) < 20
    end.link.abort("the test is over")
    there.close()


async def test_a_link_whose_other_end_owes_an_answer_is_suspect_until_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUSPICION", 0.02)
    here, there = sockets()
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    assert not end.link.is_suspect
    await until(lambda: end.link.is_suspect)
    there.send(Frame(FrameType.PONG, 0, 1).encode())
    await until(lambda: not end.link.is_suspect)
    end.link.abort("the test is over")
    there.close()


async def test_a_link_that_is_silent_for_too_long_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    here, there = sockets()
    end = End(Link(Plain(here), "gateway gw-1", silence_limit=0.05))
    end.link.start(end)
    assert await end.ended() == "the link to gateway gw-1 has been silent for 0 s"
    assert end.reasons == [end.link.closed_because]
    there.close()


async def test_a_peer_that_sends_a_byte_now_and_then_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    here, there = sockets()
    end = End(Link(Plain(here), "far", silence_limit=0.1))
    end.link.start(end)
    frame = iter(data(SIGN_OF_LIFE).encode())
    while end.link.closed_because is None:
        there.send(bytes([next(frame)]))
        await asyncio.sleep(0.005)
    assert "silent" in end.link.closed_because
    there.close()


async def test_a_long_frame_that_comes_slowly_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    here, there = sockets()
    end = End(Link(Plain(here), "far", silence_limit=0.1))
    end.link.start(end)
    encoded = data(1 << 18).encode()
    for at in range(0, len(encoded), 2 * SIGN_OF_LIFE):  # for three times as long as it may be silent
        there.send(encoded[at : at + 2 * SIGN_OF_LIFE])
        await asyncio.sleep(0.01)
    assert await end.next() == data(1 << 18)
    end.link.abort("the test is over")
    there.close()


async def test_a_link_that_waited_for_long_to_be_started_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 10.0)
    here, there = sockets()
    end = End(Link(Plain(here), "far", silence_limit=0.01))
    await asyncio.sleep(0.02)
    end.link.start(end)
    assert end.link.closed_because is None
    end.link.abort("the test is over")
    there.close()


# The end.


async def test_the_end_of_the_connection_ends_the_link_after_what_came_before() -> None:
    here, there = sockets()
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    there.send(data(5).encode())
    there.shutdown(socket.SHUT_WR)
    assert await end.next() == data(5)
    assert await end.ended() == "the link to far was closed by the other end"
    there.close()


async def test_a_frame_that_is_torn_at_the_end_is_not_delivered() -> None:
    here, there = sockets()
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    there.send(data(100).encode()[:-5])
    there.close()
    await end.ended()
    assert await end.nothing_comes()


async def test_bytes_that_are_no_frames_end_the_link() -> None:
    here, there = sockets()
    end = End(Link(Plain(here), "far"))
    end.link.start(end)
    there.send(b"GET / HTTP/1.1\r\nHost: landbridge\r\n\r\n")
    assert "version" in await end.ended()
    there.close()


async def test_a_receiver_that_finds_fault_with_a_frame_ends_the_link_and_sees_no_other() -> None:
    class Choosy(End):
        def frame_received(self, link: Link, frame: Frame) -> None:
            super().frame_received(link, frame)
            raise ProtocolError("it is of another channel")

    link, there = wire()
    here = Choosy(link)
    link.start(here)
    there.send(data(1), data(2))
    assert await here.ended() == "it is of another channel"
    assert await here.next() == data(1)
    assert await here.nothing_comes()
    await there.ended()


async def test_a_receiver_may_close_its_link_while_it_is_told_of_a_frame() -> None:
    class Closing(End):
        def frame_received(self, link: Link, frame: Frame) -> None:
            super().frame_received(link, frame)
            link.abort("that was all")

    link, there = wire()
    here = Closing(link)
    link.start(here)
    there.send(data(1), data(2))
    assert await here.ended() == "that was all"
    assert await here.next() == data(1)
    assert await here.nothing_comes()
    await there.ended()


@pytest.mark.parametrize("gives", [True, False])
@pytest.mark.parametrize("blocked", [True, False])
async def test_a_receiver_may_close_its_link_while_it_is_asked_for_a_frame(gives: bool, blocked: bool) -> None:
    class Closing(End):
        def next_frame(self, link: Link) -> Frame | None:
            if (frame := super().next_frame(link)) is None or frame.position == 99:
                link.abort("that was all")
                return frame if gives else None
            return frame

    here, there = sockets(16 << 10)
    end = Closing(Link(Plain(here), "far"))
    end.link.start(end)
    end.send(*([data(1 << 16)] if blocked else []), data(1, 99))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SECONDS):
        while await loop.sock_recv(there, 1 << 20):
            pass
    assert await end.ended() == "that was all"
    there.close()


async def test_closing_writes_what_the_receiver_still_has() -> None:
    async with linked() as (here, there):
        here.send(data(5), data(6))
        here.link.close()
        assert [await there.next(), await there.next()] == [data(5), data(6)]
        assert await there.ended() == "the link to the test's subject was closed by the other end"


async def test_closing_does_not_wait_for_an_end_that_takes_nothing() -> None:
    async with linked(buffer=16 << 10) as (here, there):
        there.link.pause()
        here.send(*(data(1 << 18, n) for n in range(16)))
        await settled()
        here.link.close()
        assert here.link.closed.is_set()


async def test_after_an_abort_nothing_is_sent_the_first_reason_stays_and_is_told_once() -> None:
    async with linked() as (here, there):
        here.link.abort("the WAN is down")
        here.link.abort("something else")
        here.link.close()
        here.send(data(1))
        here.link.pause()
        here.link.resume()
        assert here.reasons == ["the WAN is down"]
        await there.ended()
        assert await there.nothing_comes()
        assert here.unsent == 1


async def test_a_link_that_nobody_has_started_can_be_closed() -> None:
    link, there = wire()
    link.abort("nobody wants it")
    await there.ended()


async def test_the_descriptor_of_a_link_that_was_closed_is_not_watched_when_it_is_used_again() -> None:
    async with linked(buffer=16 << 10) as (here, _):
        here.link.pause()
        here.link.resume()
        number = here.link._connection.fileno()
        here.send(*(data(1 << 18, n) for n in range(4)))
        await settled()  # it waits to read and to write
        here.link.abort("it died")
        again = sockets()
        assert number in {sock.fileno() for sock in again}
        for sock in again:
            sock.send(b"x")
        await settled()
        assert here.reasons == ["it died"]
        for sock in again:
            sock.close()
