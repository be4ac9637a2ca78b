"""The pump: channels go on under other numbers, and end at both ends for whatever reason they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway.tunnel.pump import Pump
from landbridge import link as link_module
from landbridge.errors import PermissionDenied
from landbridge.frame import Frame, FrameType, reason_of, reset
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.unit.wires import End, settled, wire

OPENING = ChannelOpen(
    migration="m-1", kind=ChannelKind.CHANNEL_KIND_RAM, index=0, destination_site="ams"
).SerializeToString()


@dataclass
class To:
    """Leads every channel to one link, when it is let; notes what it was asked for."""

    link: Link
    asked: list[ChannelOpen] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.ready.set()

    async def route(self, opening: ChannelOpen) -> Link:
        self.asked.append(opening)
        await self.ready.wait()
        return self.link


class Refusing:
    async def route(self, opening: ChannelOpen) -> Link:
        raise PermissionDenied(f"host h-1 is not the source of migration {opening.migration}")


@dataclass
class Middle:
    """A gateway's pump between an agent and the tunnel."""

    pump: Pump
    agent_link: Link
    agent: End
    tunnel_link: Link
    tunnel: End
    router: To

    def channels(self) -> int:
        """Ends of channels that the pump keeps."""
        return sum(len(port.ends) for port in self.pump._ports.values())

    async def open(self, number: int = 1) -> int:
        """An open channel; the number it has on the tunnel."""
        self.agent.send(Frame(FrameType.OPEN, number, 0, OPENING))
        opened = await self.tunnel.next()
        assert (opened.type, opened.payload) == (FrameType.OPEN, OPENING)
        self.tunnel.send(Frame(FrameType.ACCEPT, opened.channel))
        assert await self.agent.next() == Frame(FrameType.ACCEPT, number)
        return opened.channel


@pytest.fixture
async def middle() -> AsyncIterator[Middle]:
    async with wire("gw-1", "host h-1") as (agent_link, agent), wire("gw-1", "site ams") as (tunnel_link, tunnel):
        pump = Pump()
        router = To(tunnel_link)
        pump.attach(agent_link, router=router)
        pump.attach(tunnel_link, tunnel=True)
        yield Middle(pump, agent_link, agent, tunnel_link, tunnel, router)
        await pump.close()


async def test_a_channel_goes_on_under_a_number_of_the_other_link_and_back(middle: Middle) -> None:
    onward = await middle.open(number=7)
    assert middle.router.asked == [ChannelOpen.FromString(OPENING)]
    middle.agent.send(Frame(FrameType.DATA, 7, 0, b"call"))
    assert await middle.tunnel.next() == Frame(FrameType.DATA, onward, 0, b"call")
    middle.tunnel.send(Frame(FrameType.ACK, onward, 4), Frame(FrameType.DATA, onward, 0, b"reply"))
    assert await middle.agent.next() == Frame(FrameType.ACK, 7, 4)
    assert await middle.agent.next() == Frame(FrameType.DATA, 7, 0, b"reply")


async def test_channels_with_one_number_on_two_links_stay_apart(middle: Middle) -> None:
    async with wire("gw-1", "host h-2") as (link, other):
        middle.pump.attach(link, router=middle.router)
        first = await middle.open(number=1)
        other.send(Frame(FrameType.OPEN, 1, 0, OPENING))
        second = (await middle.tunnel.next()).channel
        assert first != second
        middle.tunnel.send(Frame(FrameType.DATA, second, 0, b"two"), Frame(FrameType.DATA, first, 0, b"one"))
        assert await other.next() == Frame(FrameType.DATA, 1, 0, b"two")
        assert await middle.agent.next() == Frame(FrameType.DATA, 1, 0, b"one")


async def test_many_bytes_arrive_in_order(middle: Middle) -> None:
    onward = await middle.open()
    data = bytes(range(256)) * 8192
    for at in range(0, len(data), 65_536):
        middle.agent.send(Frame(FrameType.DATA, 1, at, data[at : at + 65_536]))
    assert await middle.tunnel.data(len(data)) == data
    assert onward


# Channels that may not be.


async def test_a_channel_that_the_router_refuses_is_reset_with_its_reason(middle: Middle) -> None:
    async with wire("gw-1", "host h-2") as (link, other):
        middle.pump.attach(link, router=Refusing())
        other.send(Frame(FrameType.OPEN, 3, 0, OPENING))
        assert await other.next() == reset(3, "host h-1 is not the source of migration m-1")
    assert await middle.tunnel.nothing_comes()
    assert middle.channels() == 0


async def test_a_link_that_takes_no_channels_resets_them(middle: Middle) -> None:
    middle.tunnel.send(Frame(FrameType.OPEN, 3, 0, OPENING))
    refusal = await middle.tunnel.next()
    assert (refusal.type, refusal.channel) == (FrameType.RESET, 3)
    assert "takes none" in reason_of(refusal)


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x0a\xff"])
async def test_an_opening_that_cannot_be_read_is_reset(middle: Middle, payload: bytes) -> None:
    middle.agent.send(Frame(FrameType.OPEN, 3, 0, payload))
    assert await middle.agent.next() == reset(3, "the channel cannot be opened")
    assert middle.channels() == 0


async def test_frames_of_no_channel_are_left_aside(middle: Middle) -> None:
    middle.agent.send(Frame(FrameType.DATA, 9, 0, b"late"), reset(9, "late"))
    await middle.open()
    assert await middle.tunnel.nothing_comes()


# The end of a channel.


async def test_a_reset_reaches_the_other_end_and_the_channel_is_forgotten(middle: Middle) -> None:
    onward = await middle.open()
    middle.tunnel.send(reset(onward, "the disk is full"), Frame(FrameType.DATA, onward, 0, b"late"))
    assert await middle.agent.next() == reset(1, "the disk is full")
    assert await middle.agent.nothing_comes()
    assert middle.channels() == 0


async def test_a_channel_is_forgotten_when_both_ends_have_ended_and_all_is_acknowledged(middle: Middle) -> None:
    onward = await middle.open()
    middle.agent.send(Frame(FrameType.DATA, 1, 0, b"call"), Frame(FrameType.FIN, 1, 4))
    middle.tunnel.send(Frame(FrameType.DATA, onward, 0, b"reply"), Frame(FrameType.FIN, onward, 5))
    for end in (middle.agent, middle.tunnel):
        assert (await end.next()).type is FrameType.DATA
        assert (await end.next()).type is FrameType.FIN
    assert middle.channels() == 2
    middle.agent.send(Frame(FrameType.ACK, 1, 5))
    assert (await middle.tunnel.next()).type is FrameType.ACK
    assert middle.channels() == 2
    middle.tunnel.send(Frame(FrameType.ACK, onward, 4))
    assert await middle.agent.next() == Frame(FrameType.ACK, 1, 4)
    assert middle.channels() == 0


async def test_one_direction_goes_on_after_the_other_has_ended(middle: Middle) -> None:
    onward = await middle.open()
    middle.agent.send(Frame(FrameType.FIN, 1, 0))
    assert (await middle.tunnel.next()).type is FrameType.FIN
    middle.tunnel.send(Frame(FrameType.DATA, onward, 0, b"still"))
    assert await middle.agent.next() == Frame(FrameType.DATA, 1, 0, b"still")


async def test_a_link_that_dies_resets_its_channels_beyond_with_the_reason(middle: Middle) -> None:
    onward = await middle.open()
    await middle.agent.close()
    frame = await middle.tunnel.next()
    assert (frame.type, frame.channel) == (FrameType.RESET, onward)
    assert "the link to host h-1 was closed" in reason_of(frame)
    assert middle.channels() == 0


async def test_a_tunnel_that_dies_resets_its_channels_back_with_the_reason(middle: Middle) -> None:
    await middle.open(number=1)
    await middle.open(number=2)
    await middle.tunnel.close()
    resets = [await middle.agent.next(), await middle.agent.next()]
    assert {(frame.type, frame.channel) for frame in resets} == {(FrameType.RESET, 1), (FrameType.RESET, 2)}
    assert all("the link to site ams" in reason_of(frame) for frame in resets)
    assert middle.channels() == 0


async def test_a_channel_that_is_reset_before_its_way_is_known_is_not_opened(middle: Middle) -> None:
    middle.router.ready.clear()
    middle.agent.send(Frame(FrameType.OPEN, 1, 0, OPENING))
    await settled()
    middle.agent.send(reset(1, "libvirt hung up"))
    await settled()
    middle.router.ready.set()
    assert await middle.tunnel.nothing_comes()
    assert middle.channels() == 0


async def test_a_channel_whose_link_dies_before_its_way_is_known_is_not_opened(middle: Middle) -> None:
    middle.router.ready.clear()
    middle.agent.send(Frame(FrameType.OPEN, 1, 0, OPENING))
    await settled()
    await middle.agent.close()
    await settled()
    middle.router.ready.set()
    assert await middle.tunnel.nothing_comes()
    assert middle.channels() == 0


async def test_the_channels_of_a_migration_are_reset_both_ways_and_no_others(middle: Middle) -> None:
    onward = await middle.open(number=1)
    other = ChannelOpen(migration="m-2").SerializeToString()
    middle.agent.send(Frame(FrameType.OPEN, 2, 0, other))
    kept = (await middle.tunnel.next()).channel
    middle.pump.close_channels("m-1", "the migration was stopped")
    assert await middle.agent.next() == reset(1, "the migration was stopped")
    assert await middle.tunnel.next() == reset(onward, "the migration was stopped")
    middle.agent.send(Frame(FrameType.DATA, 2, 0, b"on"))
    assert await middle.tunnel.next() == Frame(FrameType.DATA, kept, 0, b"on")


# Bytes.


async def test_frames_on_the_tunnel_are_counted_by_migration_in_both_directions(middle: Middle) -> None:
    onward = await middle.open()
    middle.agent.send(Frame(FrameType.DATA, 1, 0, bytes(1000)))
    middle.tunnel.send(Frame(FrameType.DATA, onward, 0, bytes(500)))
    assert (await middle.tunnel.next()).type is FrameType.DATA
    assert (await middle.agent.next()).type is FrameType.DATA
    frames = [len(OPENING), 0, 1000, 500]  # OPEN, ACCEPT and twice DATA
    assert middle.pump.wan_bytes == {"m-1": sum(frames) + 20 * len(frames)}


async def test_frames_between_two_hosts_of_a_site_are_not_counted(middle: Middle) -> None:
    async with wire() as (here, one), wire() as (there, _):
        middle.pump.attach(here, router=To(there))
        middle.pump.attach(there)
        one.send(Frame(FrameType.OPEN, 1, 0, OPENING))
        await settled()
    assert middle.pump.wan_bytes == {}


async def test_who_sends_more_than_the_next_link_takes_is_not_read_from_any_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "HIGH_WATER", 64 << 10)
    monkeypatch.setattr(link_module, "CLOSE_PATIENCE", 0.05)
    async with wire("gw-1", "host") as (agent_link, agent), wire("gw-1", "site") as (tunnel_link, tunnel):
        pump = Pump()
        pump.attach(agent_link, router=To(tunnel_link))
        pump.attach(tunnel_link, tunnel=True)
        agent.send(Frame(FrameType.OPEN, 1, 0, OPENING))
        await tunnel.next()
        tunnel.stop_reading()
        for n in range(32):
            agent.send(Frame(FrameType.DATA, 1, n << 18, bytes(1 << 18)))
        await settled()
        assert pump.wan_bytes["m-1"] < 3 << 20
        await pump.close()
