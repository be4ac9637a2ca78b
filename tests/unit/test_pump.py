"""Channels through a gateway: from an agent's link into a tunnel and back, and what is said when there is no way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from ssl import PROTOCOL_TLS_CLIENT, SSLContext

import pytest
import pytest_asyncio

from certs.identity import Identity, Role
from certs.links import Target
from gateway.stream.tally import Counts, Tally
from gateway.tunnel import pump as module
from gateway.tunnel.pump import Pump
from gateway.tunnel.routes import SiteRoutes
from gateway.tunnel.tunnel import Tunnel
from landbridge.config import Address
from landbridge.errors import Unreachable
from landbridge.frame import Frame, FrameType, reason_of, reset
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from landbridge.v1.types_pb2 import Fate, Saving
from tests.unit.wires import End, no_exceptions, nothing_left, settled, until, wire

SMALL = 16 << 10


def opening(
    source: tuple[str, str] = ("fra", "fra-1"),
    destination: tuple[str, str] = ("ams", "ams-1"),
    kind: ChannelKind.ValueType = ChannelKind.CHANNEL_KIND_RAM,
    migration: str = "m-1",
) -> bytes:
    return ChannelOpen(
        migration=migration,
        kind=kind,
        source_site=source[0],
        source_host=source[1],
        destination_site=destination[0],
        destination_host=destination[1],
        ticket=b"opaque to a gateway",
    ).SerializeToString()


TO_AMS = opening()
TO_US = opening(("ams", "ams-1"), ("fra", "fra-1"))


def opens(channel: int, payload: bytes = TO_AMS) -> Frame:
    return Frame(FrameType.OPEN, channel, 0, payload)


def data(channel: int, payload: bytes, position: int = 0) -> Frame:
    return Frame(FrameType.DATA, channel, position, payload)


def accept(channel: int) -> Frame:
    return Frame(FrameType.ACCEPT, channel, 0, bytes(12))


class Middle:
    """A gateway of site "fra", which is joined with site "ams" by one that it dials, and others that dial."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ends: list[End] = []
        tunnels: dict[str, Tunnel] = {}
        hosts = {
            name: Target(name, Address("127.0.0.1", 1), SSLContext(PROTOCOL_TLS_CLIENT), name)
            for name in ("fra-1", "fra-2")
        }
        self.pump = Pump(SiteRoutes("fra", tunnels, hosts))
        self.outgoing = tunnels["ams"] = Tunnel("ams", "the gateway of site ams", self.pump)
        self._tunnels = [self.outgoing]
        # The other site, at the end of the tunnel that we dialled.
        self.ams = self.link_of(self.outgoing)
        # Agents that were dialled; and whether they can be.
        self.dialled: asyncio.Queue[End] = asyncio.Queue()
        self.may_dial = asyncio.Event()
        self.may_dial.set()
        self.dials = 0
        self.failure: Unreachable | None = None
        monkeypatch.setattr(module, "dial", self._dial)

    async def _dial(self, target: Target) -> Link:
        self.dials += 1
        await self.may_dial.wait()
        if self.failure is not None:
            raise self.failure
        link, end = wire(f"host {target.name}")
        self._ends.append(end)
        self.dialled.put_nowait(end)
        return link

    def link_of(self, tunnel: Tunnel, buffer: int | None = None) -> End:
        """Another link of a tunnel."""
        link, end = wire(tunnel.name, buffer=buffer)
        self._ends.append(end)
        tunnel.add(link)
        return end

    def incoming(self, site: str = "ams", gateway: str = "gw-1", buffer: int | None = None) -> End:
        """A tunnel that another site's gateway has dialled."""
        tunnel = Tunnel(site, f"gateway {gateway} of site {site}", self.pump)
        self._tunnels.append(tunnel)
        return self.link_of(tunnel, buffer)

    def agent(self, host: str = "fra-1", buffer: int | None = None) -> End:
        """A link that an agent of this site has dialled."""
        link, end = wire(f"host {host}", buffer=buffer)
        self._ends.append(end)
        self.pump.attach_agent(link, Identity("example.org", "fra", Role.HOST, host))
        return end

    async def opened(self, channel: int = 1, payload: bytes = TO_AMS) -> End:
        """An agent whose channel is open."""
        agent = self.agent()
        agent.send(opens(channel, payload))
        assert await self.ams.next() == opens(channel, payload)
        self.ams.send(accept(channel))
        assert await agent.next() == accept(channel)
        return agent

    async def arrived(self, site: End, channel: int = 1, payload: bytes = TO_US) -> End:
        """The agent to which a channel from another site leads."""
        site.send(opens(channel, payload))
        agent = await self.dialled.get()
        assert await agent.next() == opens(channel, payload)
        return agent

    @property
    def channels(self) -> int:
        return len(self.pump._routes)

    async def close(self) -> None:
        for tunnel in self._tunnels:
            tunnel.close()
        await self.pump.close()
        await settled()
        assert not self.pump._ports
        assert not self.pump._tasks
        for end in self._ends:
            end.link.abort("the test is over")


@pytest_asyncio.fixture
async def middle(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Middle]:
    with no_exceptions():
        async with nothing_left():
            made = Middle(monkeypatch)
            yield made
            await made.close()


# From an agent.


async def test_a_channel_leads_to_the_other_site_and_back(middle: Middle) -> None:
    agent = await middle.opened()
    agent.send(data(1, b"call"))
    assert await middle.ams.next() == data(1, b"call")
    middle.ams.send(data(1, b"reply"))
    assert await agent.next() == data(1, b"reply")


async def test_hints_go_no_further_than_the_site(middle: Middle) -> None:
    agent = await middle.opened()
    agent.send(Frame(FrameType.DATA_CHECKED, 1, 7, bytes(40), b"a hint"))
    assert await middle.ams.next() == Frame(FrameType.DATA_CHECKED, 1, 7, bytes(40))


async def test_channels_do_not_mix(middle: Middle) -> None:
    one, two = await middle.opened(1), await middle.opened(2)
    middle.ams.send(data(2, b"two"), data(1, b"one"))
    assert await one.next() == data(1, b"one")
    assert await two.next() == data(2, b"two")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (opening(("fra", "fra-2")), "host fra-1 of site fra opened a channel as host fra-2"),
        (opening(destination=("par", "par-1")), "not joined with a site 'par'"),
        (opening()[:-3], "cannot be read"),
        (b"\xff\xff", "cannot be read"),
        (opening(kind=77), "unknown kind 77"),  # type: ignore[arg-type]  # any number travels
    ],
)
async def test_a_channel_that_may_not_be_is_reset_with_the_reason(middle: Middle, payload: bytes, says: str) -> None:
    agent = middle.agent()
    agent.send(opens(3, payload))
    answer = await agent.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, 3)
    assert says in reason_of(answer)
    assert await middle.ams.nothing_comes()
    assert middle.channels == 0


async def test_a_frame_of_another_channel_ends_the_link(middle: Middle) -> None:
    agent = await middle.opened(1)
    agent.send(data(2, b"x"))
    await agent.ended()
    assert await middle.ams.nothing_comes()


@pytest.mark.parametrize("frame", [data(1, b"x"), reset(1, "x"), Frame(FrameType.PROBE, 1, 1)])
async def test_a_link_that_does_not_begin_with_open_ends(middle: Middle, frame: Frame) -> None:
    agent = middle.agent()
    agent.send(frame)
    await agent.ended()


async def test_a_link_takes_no_second_channel(middle: Middle) -> None:
    agent = await middle.opened(1)
    agent.send(opens(2))
    await agent.ended()


async def test_the_number_of_another_channel_is_refused(middle: Middle) -> None:
    await middle.opened(1)
    second = middle.agent()
    second.send(opens(1, opening(migration="m-2")))
    assert "another channel has this number" in reason_of(await second.next())
    site = middle.incoming()
    site.send(opens(1, TO_US))
    assert "another channel has this number" in reason_of(await site.next())
    assert middle.channels == 1


async def test_another_host_cannot_take_a_channel_over_with_its_opening(middle: Middle) -> None:
    agent = await middle.opened(1)
    thief = middle.agent("fra-2")
    thief.send(opens(1))
    assert (await thief.next()).type is FrameType.RESET
    middle.ams.send(data(1, b"on"))
    assert await agent.next() == data(1, b"on")


async def test_a_channel_goes_on_with_another_link_and_the_former_one_is_ended(middle: Middle) -> None:
    former = await middle.opened(1)
    agent = middle.agent()
    agent.send(opens(1))
    assert await middle.ams.next() == opens(1)
    await former.ended()
    middle.ams.send(data(1, b"on"))
    assert await agent.next() == data(1, b"on")


async def test_a_former_link_that_is_held_back_is_ended_too(middle: Middle) -> None:
    former = await middle.opened(1)
    middle.ams.link.pause()
    await fill(former, lambda: len(middle.outgoing.scheduler._held) == 1)
    agent = middle.agent()
    agent.send(opens(1))
    await former.ended()
    await until(lambda: len(middle.pump._ports) == 1)


async def test_an_open_that_is_said_again_is_passed_on_and_changes_nothing(middle: Middle) -> None:
    agent = await middle.opened(1)
    agent.send(opens(1), data(1, b"x"))
    assert await middle.ams.next() == opens(1)
    assert await middle.ams.next() == data(1, b"x")
    assert middle.channels == 1


# What nobody knows.


@pytest.mark.parametrize("frame", [data(9, b"x"), Frame(FrameType.ACK, 9, 0, bytes(12)), Frame(FrameType.PROBE, 9, 1)])
async def test_of_a_channel_that_it_does_not_know_a_gateway_says_so(middle: Middle, frame: Frame) -> None:
    middle.ams.send(frame)
    assert await middle.ams.next() == Frame(FrameType.UNKNOWN, 9)


@pytest.mark.parametrize(
    "frame",
    [reset(9, "x"), Frame(FrameType.CLOSE, 9), Frame(FrameType.UNKNOWN, 9), Frame(FrameType.UNKNOWN, 9, 0, b"x")],
)
async def test_last_words_of_a_channel_that_it_does_not_know_are_not_answered(middle: Middle, frame: Frame) -> None:
    middle.ams.send(frame)
    assert await middle.ams.nothing_comes()


async def test_an_agent_whose_channel_was_forgotten_is_told_and_may_open_it_again(middle: Middle) -> None:
    agent = await middle.opened(1)
    agent.send(reset(1, "x"))
    assert (await middle.ams.next()).type is FrameType.RESET
    agent.send(data(1, b"x"))
    assert await agent.next() == Frame(FrameType.UNKNOWN, 1)
    agent.send(Frame(FrameType.CLOSE, 1), opens(1))
    assert await middle.ams.next() == opens(1)


async def test_unknown_from_the_other_site_reaches_the_agent_that_opened(middle: Middle) -> None:
    agent = await middle.opened(1)
    middle.ams.send(Frame(FrameType.UNKNOWN, 1, 0, b"host ams-1 does not answer"))
    assert reason_of(await agent.next()) == "host ams-1 does not answer"
    assert middle.channels == 1


async def test_unknown_from_the_site_that_opened_does_not_reach_the_agent_here(middle: Middle) -> None:
    site = middle.incoming()
    agent = await middle.arrived(site)
    site.send(Frame(FrameType.UNKNOWN, 1), data(1, b"x"))
    assert await agent.next() == data(1, b"x")


async def test_a_close_from_the_opener_is_answered_before_the_channel_is_forgotten(middle: Middle) -> None:
    close = Frame(FrameType.CLOSE, 1)
    agent = await middle.opened(1)
    agent.send(close)
    assert await middle.ams.next() == close
    assert middle.channels == 1
    middle.ams.send(close)
    assert await agent.next() == close
    assert middle.channels == 0


async def test_a_close_from_the_other_site_is_answered_before_the_channel_is_forgotten(middle: Middle) -> None:
    close = Frame(FrameType.CLOSE, 1)
    site = middle.incoming()
    agent = await middle.arrived(site)
    site.send(close)
    assert await agent.next() == close
    assert middle.channels == 1
    agent.send(close)
    assert await site.next() == close
    assert middle.channels == 0


async def test_a_reset_reaches_the_other_end_and_the_channel_is_forgotten(middle: Middle) -> None:
    last = reset(1, "the disk is full")
    agent = await middle.opened(1)
    agent.send(last)
    assert await middle.ams.next() == last
    assert middle.channels == 0
    agent = await middle.opened(1)
    middle.ams.send(last)
    assert await agent.next() == last
    assert middle.channels == 0


# From a tunnel.


async def test_a_channel_from_another_site_leads_to_the_agent_of_the_host_that_it_names(middle: Middle) -> None:
    site = middle.incoming()
    agent = await middle.arrived(site)
    assert agent.link.name
    agent.send(accept(1), data(1, b"reply"))
    assert await site.next() == accept(1)
    assert await site.next() == data(1, b"reply")
    site.send(data(1, b"call"))
    assert await agent.next() == data(1, b"call")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (opening(("lon", "lon-1"), ("fra", "fra-1")), "site ams opened a channel from site lon"),
        (opening(("ams", "ams-1"), ("lon", "lon-1")), "to site lon"),
        (opening(("ams", "ams-1"), ("fra", "fra-9")), "site fra has no host 'fra-9'"),
        (opening(("ams", "ams-1"), ("fra", "fra-1"), kind=77), "unknown kind 77"),  # type: ignore[arg-type]  # as above
        (b"\xff", "cannot be read"),
    ],
)
async def test_a_channel_that_another_site_may_not_open_is_reset(middle: Middle, payload: bytes, says: str) -> None:
    site = middle.incoming()
    site.send(opens(3, payload))
    answer = await site.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, 3)
    assert says in reason_of(answer)
    assert middle.channels == middle.dials == 0


async def test_another_site_has_no_say_in_a_channel_of_two_others(middle: Middle) -> None:
    agent = await middle.opened(1)
    lon = middle.incoming("lon")
    lon.send(data(1, b"x"), reset(1, "x"), opens(1))
    assert await lon.next() == Frame(FrameType.UNKNOWN, 1)
    assert (await lon.next()).type is FrameType.RESET
    assert await agent.nothing_comes()
    assert middle.channels == 1


async def test_a_host_that_does_not_answer_makes_the_channel_unknown_with_the_reason(middle: Middle) -> None:
    middle.failure = Unreachable("host fra-1 does not answer")
    site = middle.incoming()
    site.send(opens(1, TO_US))
    answer = await site.next()
    assert (answer.type, reason_of(answer)) == (FrameType.UNKNOWN, "host fra-1 does not answer")
    assert middle.channels == 0
    middle.failure = None
    await middle.arrived(site)


async def test_an_agent_is_dialled_once_however_often_its_channel_is_opened_meanwhile(middle: Middle) -> None:
    site = middle.incoming()
    middle.may_dial.clear()
    site.send(opens(1, TO_US), opens(1, TO_US))
    await until(lambda: middle.dials == 1)
    middle.may_dial.set()
    agent = await middle.dialled.get()
    assert [await agent.next(), await agent.next()] == [opens(1, TO_US)] * 2
    assert middle.dials == 1


async def test_a_channel_that_is_reset_while_its_agent_is_dialled_is_told_so(middle: Middle) -> None:
    site = middle.incoming()
    middle.may_dial.clear()
    site.send(opens(1, TO_US), reset(1, "never mind"))
    await until(lambda: middle.dials == 1 and middle.channels == 0)
    middle.may_dial.set()
    agent = await middle.dialled.get()
    assert [(await agent.next()).type, (await agent.next()).type] == [FrameType.OPEN, FrameType.RESET]


async def test_an_agent_whose_link_dies_makes_the_channel_unknown_and_is_dialled_again(middle: Middle) -> None:
    site = middle.incoming()
    agent = await middle.arrived(site)
    agent.link.abort("it was restarted")
    assert (await site.next()).type is FrameType.UNKNOWN
    assert middle.channels == 0
    await middle.arrived(site)


async def test_a_source_agent_whose_link_dies_is_forgotten_and_nobody_is_told(middle: Middle) -> None:
    agent = await middle.opened(1)
    agent.link.abort("its gateway is to be another one")
    await until(lambda: middle.channels == 0)
    assert await middle.ams.nothing_comes()


async def test_a_channel_that_is_opened_again_through_another_gateway_answers_there(middle: Middle) -> None:
    first, second = middle.incoming(gateway="gw-1"), middle.incoming(gateway="gw-2")
    agent = await middle.arrived(first)
    second.send(opens(1, TO_US))
    assert await agent.next() == opens(1, TO_US)
    agent.send(data(1, b"reply"))
    assert await second.next() == data(1, b"reply")
    assert await first.nothing_comes()
    first.send(data(1, b"late"))  # it was under way
    assert await agent.next() == data(1, b"late")


async def test_an_agent_that_was_held_back_for_a_gateway_that_has_left_goes_on_through_the_next(middle: Middle) -> None:
    first = middle.incoming(gateway="gw-1", buffer=SMALL)
    agent = await middle.arrived(first)
    first.link.pause()
    tunnel = middle._tunnels[-1]
    await fill(agent, lambda: len(tunnel.scheduler._held) == 1)
    first.link.abort("it was killed")
    await until(lambda: not tunnel.is_up)
    second = middle.incoming(gateway="gw-2")
    second.send(opens(1, TO_US))
    assert (await second.next()).type is FrameType.DATA


# What waits.


async def fill(agent: End, until_then: Callable[[], bool]) -> None:
    """An agent sends until it is held back."""
    position = 0
    while not until_then():
        if not agent.unsent:
            agent.send(data(1, bytes(SMALL), position))
            position += SMALL
        await asyncio.sleep(0)
    agent.send(*(data(1, bytes(SMALL), position + n) for n in range(100)))
    await settled()


@pytest.mark.parametrize("kind", [ChannelKind.CHANNEL_KIND_RAM, ChannelKind.CHANNEL_KIND_RPC])
async def test_a_tunnel_that_does_not_drain_holds_the_agent_back_until_it_does(
    middle: Middle, kind: ChannelKind.ValueType
) -> None:
    agent = await middle.opened(1, opening(kind=kind))
    middle.ams.link.pause()
    held = middle.outgoing.scheduler._held if kind == ChannelKind.CHANNEL_KIND_RAM else middle.outgoing._held
    await fill(agent, lambda: bool(held))
    port = next(iter(middle.pump._ports))
    assert port.link is not None
    assert port.link._is_paused
    middle.ams.link.resume()
    await until(lambda: port.link is not None and not port.link._is_paused and not agent.unsent)


async def test_one_channel_that_is_held_back_leaves_the_others_alone(middle: Middle) -> None:
    greedy, modest = await middle.opened(1), await middle.opened(2)
    middle.ams.link.pause()
    await fill(greedy, lambda: bool(middle.outgoing.scheduler._held))
    modest.send(data(2, b"modest"))
    middle.ams.link.resume()
    while (await middle.ams.next()).channel != 2:
        pass


async def test_an_agent_that_dies_while_it_is_held_back_is_forgotten_with_what_waited(middle: Middle) -> None:
    agent = await middle.opened(1)
    middle.ams.link.pause()
    await fill(agent, lambda: bool(middle.outgoing.scheduler._held))
    agent.link.abort("it died")
    middle.ams.link.resume()
    await until(lambda: middle.channels == 0 and not middle.pump._ports)
    assert middle.outgoing.scheduler.queued_bytes == 0


async def test_more_than_may_wait_for_an_agent_is_dropped(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FOR_AGENT", 1 << 20)
    agent = await middle.opened(1)
    agent.link.pause()
    middle.ams.send(*(data(1, bytes(1 << 16), n) for n in range(100)))
    await until(lambda: not middle.ams.unsent)
    await settled()
    port = next(iter(middle.pump._ports))
    assert (1 << 19) < port._bytes <= 1 << 20
    agent.link.resume()
    await until(lambda: port._bytes == 0)


async def test_so_are_more_frames_than_may_wait_for_an_agent(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FRAMES", 10)
    agent = await middle.opened(1)
    port = next(iter(middle.pump._ports))
    agent.link.pause()
    middle.ams.send(*(data(1, bytes(1 << 16), n) for n in range(20)))
    middle.ams.send(*(data(1, b"x", n) for n in range(20)))
    await until(lambda: not middle.ams.unsent)
    await settled()
    assert len(port._frames) == 10


async def test_before_its_agent_is_reached_no_bytes_are_kept_for_it(middle: Middle) -> None:
    site = middle.incoming()
    middle.may_dial.clear()
    site.send(opens(1, TO_US), *(data(1, bytes(1 << 16), n) for n in range(20)))
    await until(lambda: not site.unsent)
    middle.may_dial.set()
    agent = await middle.dialled.get()
    assert await agent.next() == opens(1, TO_US)
    assert await agent.nothing_comes()


async def test_answers_to_a_flood_that_the_flooder_does_not_take_are_bounded(middle: Middle) -> None:
    flooder = middle.incoming(buffer=SMALL)
    flooder.link.pause()
    tunnel = middle._tunnels[-1]
    for n in range(50):
        flooder.send(*(Frame(FrameType.PROBE, n * 1000 + m + 1) for m in range(1000)))
        await until(lambda: not flooder.unsent)
    await settled()
    assert 0 < tunnel.scheduler.urgent_bytes <= (1 << 20) + 1000


async def test_a_host_has_a_most_of_channels_and_of_links(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHANNELS", 2)
    monkeypatch.setattr(module, "MOST_PORTS", 3)
    one, _ = await middle.opened(1), await middle.opened(2)
    third = middle.agent()
    third.send(opens(3))
    assert "has 2 channels to site ams already" in reason_of(await third.next())
    await middle.agent().ended()
    other = middle.agent("fra-2")
    other.send(opens(4, opening(("fra", "fra-2"))))
    assert (await middle.ams.next()).channel == 4
    one.send(reset(1, "over"))
    assert (await middle.ams.next()).channel == 1
    third.send(opens(3))
    assert (await middle.ams.next()).channel == 3


async def test_a_site_has_a_most_of_channels_to_a_host(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHANNELS", 2)
    ams, lon = middle.incoming("ams"), middle.incoming("lon")
    for n in (1, 2):
        await middle.arrived(ams, n)
    ams.send(opens(3, TO_US))
    assert "has 2 channels from site ams already" in reason_of(await ams.next())
    await middle.arrived(lon, 4, opening(("lon", "lon-1"), ("fra", "fra-1")))
    assert middle.dials == 3


# Counting, and the end.


async def test_frames_on_the_tunnel_are_counted_by_migration_in_both_directions(middle: Middle) -> None:
    agent = await middle.opened()
    agent.send(data(1, bytes(1000)))
    middle.ams.send(data(1, bytes(500)))
    await middle.ams.next()
    await agent.next()
    assert middle.pump.wan_bytes == {"m-1": sum(24 + size for size in (len(TO_AMS), 12, 1000, 500))}


async def test_what_a_tunnel_has_not_taken_is_not_counted(middle: Middle) -> None:
    agent = await middle.opened()
    before = middle.pump.wan_bytes["m-1"]
    middle.ams.link.abort("it died")
    await until(lambda: not middle.outgoing.is_up)
    agent.send(data(1, bytes(1000)))
    await until(lambda: middle.outgoing.scheduler.queued_bytes > 0)
    assert middle.pump.wan_bytes["m-1"] == before


async def test_the_bytes_of_the_last_migrations_are_kept_and_no_more(
    middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_COUNTED", 3)
    for n in range(1, 6):
        await middle.opened(n, opening(migration=f"m-{n}"))
    assert list(middle.pump.wan_bytes) == ["m-3", "m-4", "m-5"]


async def test_savings_are_counted_by_migration_kind_and_fate(middle: Middle) -> None:
    pump = middle.pump
    assert pump.savings("m-1") == []
    coded = Frame(FrameType.CODED, 1, 0, bytes(1008))
    pump.count("m-1", "ram", Tally(Counts(zero=4096), Counts(zero=8)), coded)
    pump.count("m-1", "disk", Tally(Counts(compressed=4096), Counts(compressed=1000)), coded)
    pump.count("m-1", "ram", Tally(Counts(zero=8192), Counts(zero=16)), coded)
    pump.count("m-1", "ram", None, data(1, bytes(500)))
    pump.count("m-1", "ram", None, Frame(FrameType.PROBE, 1, 1))
    pump.count("m-2", "ram", None, data(1, b"x"))

    assert pump.savings("m-1") == [
        Saving(kind="disk", fate=Fate.FATE_COMPRESSED, bytes_stream=4096, bytes_wan=1000),
        Saving(kind="disk", fate=Fate.FATE_REST, bytes_stream=0, bytes_wan=32),
        Saving(kind="ram", fate=Fate.FATE_ZERO, bytes_stream=12288, bytes_wan=24),
        Saving(kind="ram", fate=Fate.FATE_REST, bytes_stream=500, bytes_wan=2 * 1032 - 24 + 524 + 24),
    ]
    pump.forget_counts("m-1")
    assert pump.savings("m-1") == []
    assert pump.savings("m-2") != []


async def test_the_savings_of_the_last_migrations_are_kept_and_no_more(
    middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_COUNTED", 3)
    for n in range(1, 6):
        middle.pump.count(f"m-{n}", "ram", None, data(1, b"x"))
    assert [n for n in range(1, 6) if middle.pump.savings(f"m-{n}")] == [3, 4, 5]


async def test_the_channels_of_a_migration_are_reset_both_ways_and_no_others(middle: Middle) -> None:
    agent, other = await middle.opened(1), await middle.opened(2, opening(migration="m-2"))
    middle.pump.close_channels("m-1", "the migration was stopped")
    assert await agent.next() == reset(1, "the migration was stopped")
    assert await middle.ams.next() == reset(1, "the migration was stopped")
    other.send(data(2, b"on"))
    assert await middle.ams.next() == data(2, b"on")


async def test_a_gateway_that_stops_ends_the_links_of_its_agents(middle: Middle) -> None:
    agent = await middle.opened(1)
    site = middle.incoming()
    called = await middle.arrived(site, 2)
    middle.may_dial.clear()
    site.send(opens(3, TO_US))
    await until(lambda: middle.dials == 2)
    await middle.pump.close()
    await agent.ended()
    await called.ended()
