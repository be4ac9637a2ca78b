"""A tunnel: frames striped over links that come and go, and the dialler that keeps them up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from certs.links import Target
from gateway.tunnel import dial as module
from gateway.tunnel.dial import TunnelDialler
from gateway.tunnel.tunnel import MOST_URGENT, Cargo, Tunnel
from landbridge import link as link_module
from landbridge.errors import Unreachable
from landbridge.frame import Frame, FrameType
from landbridge.link import Link
from tests.unit.identities import nowhere
from tests.unit.wires import SECONDS, End, no_exceptions, nothing_left, settled, until, wire


class User:
    """Who hears of a tunnel's frames."""

    def __init__(self) -> None:
        self.came: list[Frame] = []
        self.released: list[int] = []

    def frame_from_tunnel(self, tunnel: Tunnel, frame: Frame, size: int) -> None:
        self.came.append(frame)

    def channels_released(self, channels: list[int]) -> None:
        self.released += channels


class Tunnelled:
    """A tunnel whose other end is the test."""

    def __init__(self) -> None:
        self.user = User()
        self.tunnel = Tunnel("ams", "gateway gw-1 of site ams", self.user)
        self.ends: list[End] = []
        # Sizes of frames that were taken by a link.
        self.sent: list[int] = []

    def add(self, buffer: int | None = None) -> End:
        link, end = wire(f"gateway gw-1, link {len(self.ends)}", buffer=buffer)
        self.ends.append(end)
        self.tunnel.add(link)
        return end

    def put(self, *frames: Frame, migration: str = "m-1", urgent: bool = False) -> bool:
        """Whether the sender of the last one is to be held back."""
        is_full = False
        for frame in frames:
            is_full = self.tunnel.put(frame, Cargo(migration, self.sent.append, urgent))
        return is_full

    def put_until_full(self, size: int = 16 << 10, channel: int = 1, *, urgent: bool = False) -> int:
        """Bytes that were put."""
        total, is_full = 0, False
        while not is_full:
            frame = data(size, total, channel)
            is_full = self.put(frame, urgent=urgent)
            total += size
        return total

    async def came(self, count: int) -> list[Frame]:
        """So many frames, from whatever link; in order of their positions."""
        frames: list[Frame] = []
        async with asyncio.timeout(SECONDS):
            while len(frames) < count:
                for end in self.ends:
                    while not end._came.empty():
                        frames.append(await end.next())
                await asyncio.sleep(0)
        return sorted(frames, key=lambda frame: frame.position)


@asynccontextmanager
async def tunnelled(*buffers: int | None) -> AsyncIterator[Tunnelled]:
    """A tunnel with a link for each of `buffers`."""
    with no_exceptions():
        async with nothing_left():
            made = Tunnelled()
            for buffer in buffers:
                made.add(buffer)
            await settled()
            yield made
            made.tunnel.close()
            for end in made.ends:
                end.link.abort("the test is over")


def data(size: int, position: int = 0, channel: int = 1) -> Frame:
    return Frame(FrameType.DATA, channel, position, bytes(size))


def ack(position: int = 0, channel: int = 1) -> Frame:
    return Frame(FrameType.ACK, channel, position, bytes(12))


# Striping.


async def test_each_frame_goes_once_and_all_links_carry_some() -> None:
    async with tunnelled(*[64 << 10] * 4) as t:
        frames = [data(50_000, n) for n in range(64)]
        t.put(*frames)
        assert await t.came(64) == frames
        assert all(end.link.bytes_received > 100_000 for end in t.ends)
        assert t.sent == [frame.size() for frame in frames]


async def test_a_link_that_drains_nothing_carries_no_more_than_its_socket_takes() -> None:
    async with tunnelled(16 << 10, 64 << 10) as t:
        slow, quick = t.ends
        slow.link.pause()
        t.put(*(data(10_000, n) for n in range(100)))
        await until(lambda: quick._came.qsize() >= 90)
        await settled()
        assert t.tunnel.scheduler.queued_bytes == 0


async def test_what_comes_on_any_link_is_passed_on() -> None:
    async with tunnelled(None, None) as t:
        for n, end in enumerate(t.ends):
            end.send(data(10, n))
        await until(lambda: len(t.user.came) == 2)
        assert {frame.position for frame in t.user.came} == {0, 1}


async def test_what_is_urgent_goes_before_bulk_that_waits() -> None:
    async with tunnelled(16 << 10) as t:
        t.ends[0].link.pause()
        t.put(*(data(60_000, n) for n in range(5)))
        await settled()
        t.put(ack(99))
        t.put(data(100, 98, channel=2), urgent=True)
        t.ends[0].link.resume()
        order = [(await t.ends[0].next()).position for _ in range(7)]
        assert order.index(99) < 3
        assert order.index(98) < 3


async def test_a_link_that_owes_an_answer_is_left_aside_while_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnelled(None, None) as t:
        suspect, other = t.ends
        monkeypatch.setattr(Link, "is_suspect", property(lambda link: link.name.endswith("link 0")))
        t.put(*(data(1000, n) for n in range(20)))
        for n in range(20):
            assert (await other.next()).position == n
        assert await suspect.nothing_comes()
        other.link.abort("it died")
        await until(lambda: len(t.tunnel.links) == 1)
        t.put(data(1000, 20))
        assert (await suspect.next()).position == 20


async def test_when_all_links_owe_an_answer_they_are_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnelled(None, None) as t:
        monkeypatch.setattr(Link, "is_suspect", True)
        t.put(data(1000))
        assert await t.came(1) == [data(1000)]


# Links that come and go.


async def test_when_a_link_dies_the_others_carry_the_rest() -> None:
    async with tunnelled(*[16 << 10] * 3) as t:
        for end in t.ends:
            end.link.pause()
        t.put(*(data(30_000, n) for n in range(30)))
        await settled()
        t.ends[0].link.abort("it died")
        for end in t.ends[1:]:
            end.link.resume()
        await until(lambda: len(t.tunnel.links) == 2)
        came = await t.came(27)
        assert len({frame.position for frame in came}) >= 27
        await until(lambda: t.tunnel.scheduler.queued_bytes == 0)


async def test_without_a_link_bulk_waits_and_control_is_dropped() -> None:
    async with tunnelled(None) as t:
        changed = t.tunnel.changed
        t.ends.pop().link.abort("it died")
        async with asyncio.timeout(SECONDS):
            await changed.wait()
        assert t.tunnel.links == []
        assert t.tunnel.round_trip is None
        t.put(data(1000), ack(1))
        t.put(data(1000, 2, channel=2), urgent=True)
        end = t.add()
        assert t.tunnel.is_up
        assert await end.next() == data(1000)
        assert await end.nothing_comes()


async def test_the_round_trip_is_that_of_the_quickest_link() -> None:
    async with tunnelled(None, None) as t:
        await until(lambda: all(link.round_trip is not None for link in t.tunnel.links))
        t.tunnel.links[0].round_trip, t.tunnel.links[1].round_trip = 0.2, 0.1
        assert t.tunnel.round_trip == 0.1


async def test_links_that_end_while_a_tunnel_is_closed_leave_nothing() -> None:
    async with tunnelled(None, None, None) as t:
        t.tunnel.set_limit(1000)
        t.put(*(data(30_000, n) for n in range(30)))
        await settled()
        t.tunnel.close()
        assert t.tunnel.links == []
        t.put(ack())
        t.tunnel.set_limit(0)


# What is held back.


async def test_a_channel_that_fills_its_queue_is_held_back_and_released_when_it_has_drained() -> None:
    async with tunnelled(16 << 10) as t:
        t.ends[0].link.pause()
        t.put_until_full()
        await settled()
        assert t.user.released == []
        t.ends[0].link.resume()
        await until(lambda: t.user.released == [1])


async def test_urgent_frames_are_held_back_too_and_beyond_their_bound_dropped() -> None:
    async with tunnelled(16 << 10) as t:
        t.ends[0].link.pause()
        put = t.put_until_full(urgent=True)
        assert put <= MOST_URGENT
        for n in range(200):  # of one who does not care
            t.put(data(16 << 10, n), urgent=True)
        await settled()
        assert t.tunnel.scheduler.urgent_bytes <= MOST_URGENT + (17 << 10)
        assert t.user.released == []
        t.ends[0].link.resume()
        await until(lambda: t.user.released == [1])


async def test_a_bulk_channel_is_not_held_back_for_what_is_urgent() -> None:
    async with tunnelled(16 << 10) as t:
        t.ends[0].link.pause()
        t.put_until_full(urgent=True, channel=2)
        assert not t.put(data(1000))


async def test_what_waits_of_a_channel_is_dropped_and_the_channel_released() -> None:
    async with tunnelled(16 << 10) as t:
        t.ends[0].link.pause()
        t.put_until_full()
        t.tunnel.drop(1)
        assert t.tunnel.scheduler.queued_bytes == 0
        assert t.user.released == [1]


# Limits.


async def test_a_limit_spreads_frames_over_time_and_is_kept() -> None:
    async with tunnelled(None, None) as t:
        loop = asyncio.get_running_loop()
        t.tunnel.set_limit(1_000_000)
        assert t.tunnel.limit == 1_000_000
        began = loop.time()
        t.put(*(data(10_000, n) for n in range(20)))
        await t.came(20)
        assert 0.15 < loop.time() - began < 1.0


async def test_a_limit_on_a_migration_holds_for_it_and_for_no_other() -> None:
    async with tunnelled(None) as t:
        t.tunnel.set_migration_limit("m-1", 1000)
        t.put(*(data(10_000, n) for n in range(5)))
        t.put(*(data(10_000, 10 + n, channel=2) for n in range(5)), migration="m-2")
        assert [frame.position for frame in await t.came(6)] == [0, 10, 11, 12, 13, 14]
        await settled()
        assert t.tunnel.scheduler.queued(1) == 40_000 + 4 * 24


async def test_a_limit_that_is_raised_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PING_INTERVAL", 60.0)  # or the links ask for frames with each PING
    async with tunnelled(None) as t:
        t.tunnel.set_limit(1)
        t.put(*(data(10_000, n) for n in range(5)))
        await t.came(1)
        await settled()
        t.tunnel.set_limit(500_000)
        assert len(await t.came(4)) == 4


# The dialler.


class Far:
    """The gateways of the other site, by name: each answers, refuses, hangs, or hangs up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dialled: list[str] = []
        self.ends: list[tuple[str, End]] = []
        self.behaviour: dict[str, Callable[[], Awaitable[None]]] = {}
        monkeypatch.setattr(module, "dial", self.dial)
        monkeypatch.setattr(module, "BACK_OFF", (0.01, 0.05))

    async def dial(self, target: Target) -> Link:
        self.dialled.append(target.name)
        if (behave := self.behaviour.get(target.name)) is not None:
            await behave()
        link, end = wire(target.name)
        self.ends.append((target.name, end))
        return link

    def kill(self, name: str) -> None:
        """A gateway dies, and answers no more."""
        self.behaviour[name] = refuse
        for to, end in self.ends:
            if to == name:
                end.link.abort("it was killed")

    @asynccontextmanager
    async def dialler(self, *names: str, links: int) -> AsyncIterator[TunnelDialler]:
        targets = [nowhere(n) for n in names]
        with no_exceptions():
            async with nothing_left():
                made = TunnelDialler(Tunnel("ams", "ams", User()), targets, links)
                made.keep_up()
                yield made
                await made.close()
                for _, end in self.ends:
                    end.link.abort("the test is over")


async def refuse() -> None:
    raise Unreachable("nobody answers")


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Far:
    return Far(monkeypatch)


def count(dialler: TunnelDialler) -> int:
    return len(dialler.tunnel.links)


async def test_as_many_links_are_dialled_as_are_wanted_and_no_more(far: Far) -> None:
    async with far.dialler("gw-1", "gw-2", links=4) as dialler:
        await until(lambda: count(dialler) == 4)
        await settled()
        assert far.dialled == ["gw-1"] * 4


async def test_a_link_that_dies_is_dialled_again(far: Far) -> None:
    async with far.dialler("gw-1", links=3) as dialler:
        await until(lambda: count(dialler) == 3)
        far.ends[1][1].link.abort("it died")
        await until(lambda: len(far.dialled) == 4 and count(dialler) == 3)


async def test_when_a_gateway_dies_the_next_one_is_dialled_and_back_again(far: Far) -> None:
    async with far.dialler("gw-1", "gw-2", links=2) as dialler:
        await until(lambda: count(dialler) == 2)
        far.kill("gw-1")
        await until(lambda: [link.name for link in dialler.tunnel.links] == ["gw-2"] * 2)
        del far.behaviour["gw-1"]
        far.kill("gw-2")
        await until(lambda: [link.name for link in dialler.tunnel.links] == ["gw-1"] * 2)


async def test_a_dial_that_hangs_does_not_hold_up_the_others(far: Far) -> None:
    calls = iter([hang, None, None])

    async def behave() -> None:
        if (how := next(calls)) is not None:
            await how()

    far.behaviour["gw-1"] = behave
    async with far.dialler("gw-1", links=3) as dialler:
        await until(lambda: count(dialler) == 2)
        dialler.tunnel.put(data(10), Cargo("m-1", lambda _: None))
        await until(lambda: any(not end._came.empty() for _, end in far.ends))


async def test_a_gateway_that_hangs_up_on_us_is_not_dialled_without_end_and_the_next_one_is(far: Far) -> None:
    async def hang_up() -> None:
        # Once it has been dialled.
        asyncio.get_running_loop().call_soon(lambda: far.ends[-1][1].link.abort("it may not dial"))

    far.behaviour["gw-1"] = hang_up
    async with far.dialler("gw-1", "gw-2", links=1) as dialler:
        await until(lambda: [link.name for link in dialler.tunnel.links] == ["gw-2"])
        assert far.dialled == ["gw-1", "gw-2"]


async def test_nobody_who_answers_is_dialled_ever_more_rarely(far: Far) -> None:
    far.behaviour["gw-1"] = refuse
    loop = asyncio.get_running_loop()
    async with far.dialler("gw-1", links=1):
        began = loop.time()
        await until(lambda: len(far.dialled) == 6)
        assert loop.time() - began > 0.05


async def test_a_tunnel_grows_and_shrinks_while_it_works(far: Far) -> None:
    async with far.dialler("gw-1", links=2) as dialler:
        await until(lambda: count(dialler) == 2)
        dialler.set_links(5)
        await until(lambda: count(dialler) == 5)
        dialler.set_links(1)
        assert count(dialler) == 1
        await settled()
        assert len(far.dialled) == 5


async def test_a_tunnel_that_shrinks_while_it_is_dialled_loses_no_link(far: Far) -> None:
    calls = iter([None, hang, hang, None])

    async def behave() -> None:
        if (how := next(calls)) is not None:
            await how()

    far.behaviour["gw-1"] = behave
    async with far.dialler("gw-1", links=3) as dialler:
        await until(lambda: count(dialler) == 1)
        dialler.set_links(2)
        await until(lambda: count(dialler) == 2)
