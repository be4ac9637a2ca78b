"""One connection as a link: frames in order, a heartbeat, and an end with a reason."""

from __future__ import annotations

import asyncio

import pytest

from landbridge import link as module
from landbridge.errors import ProtocolError, Unreachable
from landbridge.frame import Frame, FrameType
from landbridge.link import Link
from tests.unit.wires import SECONDS, settled, streams, wire


async def test_frames_arrive_in_order_with_their_bytes() -> None:
    async with wire() as (link, end):
        sent = [Frame(FrameType.DATA, 1, n, bytes([n]) * (n * 1000)) for n in range(100)]
        for frame in sent:
            link.send(frame)
        assert [await end.next() for _ in sent] == sent


async def test_a_ping_is_answered_and_neither_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    async with wire() as (link, end):
        reading = asyncio.ensure_future(anext(link.frames()))
        async with asyncio.timeout(SECONDS):
            while link.round_trip is None or end.link.round_trip is None:  # noqa: ASYNC110 - a link tells nobody of it
                await asyncio.sleep(0.001)
        assert 0 <= link.round_trip < 1
        assert not reading.done()
        assert await end.nothing_comes()
        reading.cancel()
        await asyncio.wait([reading])


async def test_an_answer_to_no_ping_says_nothing_of_the_round_trip() -> None:
    async with wire() as (link, end):
        end.send(Frame(FrameType.PONG, 0, 77), Frame(FrameType.FIN, 1, 0))
        assert (await anext(link.frames())).type is FrameType.FIN
        assert link.round_trip is None


async def test_a_link_that_is_silent_for_too_long_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    monkeypatch.setattr(module, "SILENCE_LIMIT", 0.05)
    here, (_, writer) = await streams()
    link = Link(*here, "gateway gw-1")
    with pytest.raises(Unreachable, match="the link to gateway gw-1 has been silent for 0 s"):
        async with asyncio.timeout(SECONDS):
            await anext(link.frames())
    assert "silent" in (link.closed_because or "")
    writer.close()
    await settled()


async def test_a_link_on_which_anything_comes_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.01)
    monkeypatch.setattr(module, "SILENCE_LIMIT", 0.1)
    here, (_, writer) = await streams()
    link = Link(*here, "far")
    frames = link.frames()
    for n in range(20):  # for twice as long as it may be silent
        writer.write(Frame(FrameType.ACK, 1, n).encode())
        assert (await anext(frames)).position == n
        await asyncio.sleep(0.01)
    assert link.closed_because is None
    await frames.aclose()  # type: ignore[attr-defined]  # an async generator
    writer.close()
    await settled()


async def test_the_end_of_the_connection_ends_the_frames_with_unreachable() -> None:
    here, (_, writer) = await streams()
    link = Link(*here, "far")
    writer.write(Frame(FrameType.ACK, 1, 5).encode())
    writer.close()
    frames = link.frames()
    assert (await anext(frames)).position == 5
    with pytest.raises(Unreachable, match=r"the link to far (was closed by the other end|broke)"):
        await anext(frames)
    assert link.closed_because is not None
    await settled()


async def test_a_frame_that_is_torn_at_the_end_is_not_delivered() -> None:
    here, (_, writer) = await streams()
    link = Link(*here, "far")
    writer.write(Frame(FrameType.DATA, 1, 0, b"half of it").encode()[:-5])
    writer.close()
    with pytest.raises(Unreachable):
        await anext(link.frames())
    await settled()


async def test_bytes_that_are_no_frames_end_the_link_with_protocol_error() -> None:
    here, (_, writer) = await streams()
    link = Link(*here, "far")
    writer.write(b"GET / HTTP/1.1\r\nHost: landbridge\r\n\r\n")
    with pytest.raises(ProtocolError, match="version"):
        await anext(link.frames())
    assert "version" in (link.closed_because or "")
    writer.close()
    await settled()


async def test_closing_delivers_what_is_queued() -> None:
    async with wire() as (link, end):
        sent = [Frame(FrameType.DATA, 1, n << 20, bytes(1 << 20)) for n in range(3)]
        for frame in sent:
            link.send(frame)
        await link.close()
        assert [await end.next() for _ in sent] == sent
        assert isinstance(await end.ended(), Unreachable)


async def test_closing_does_not_wait_for_an_end_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_PATIENCE", 0.05)
    async with wire() as (link, end):
        end.stop_reading()
        for n in range(16):
            link.send(Frame(FrameType.DATA, 1, n << 20, bytes(1 << 20)))
        async with asyncio.timeout(SECONDS):
            await link.close()


async def test_after_an_abort_nothing_is_sent_and_the_first_reason_stays() -> None:
    async with wire() as (link, end):
        link.abort("the WAN is down")
        link.abort("something else")
        link.send(Frame(FrameType.ACK, 1, 1))
        await link.drain()
        await link.close()
        assert link.closed_because == "the WAN is down"
        await end.ended()
        assert await end.nothing_comes()


async def test_drain_waits_while_the_other_end_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HIGH_WATER", 256 << 10)
    here, (reader, writer) = await streams()
    link = Link(*here, "far")
    for n in range(16):
        link.send(Frame(FrameType.DATA, 1, n << 20, bytes(1 << 20)))
    draining = asyncio.create_task(link.drain())
    await settled()
    assert not draining.done()
    while not draining.done():
        await reader.read(1 << 20)
    await draining
    writer.transport.abort()
    link.abort("the test is over")
    await settled()


async def test_drain_returns_when_the_link_dies() -> None:
    here, (_, writer) = await streams()
    link = Link(*here, "far")
    for n in range(32):
        link.send(Frame(FrameType.DATA, 1, n << 20, bytes(1 << 20)))
    draining = asyncio.create_task(link.drain())
    await settled()
    writer.transport.abort()
    async with asyncio.timeout(SECONDS):
        await draining
    link.abort("the test is over")
    await settled()
