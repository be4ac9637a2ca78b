"""Where a host's channels begin and end: sockets and gateways at the source, connections at the destination."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent import channels, farewell, relay
from agent.channels import Gateways, Incoming, LocalSockets, Way, make_directory
from agent.traffic import KINDS, Traffic
from certs.links import Target
from landbridge.errors import PermissionDenied, Unreachable
from landbridge.frame import Acknowledgement, Frame, FrameType, reason_of, reset
from landbridge.link import Link
from landbridge.ticket import is_good
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.unit.identities import nowhere
from tests.unit.locals import Local
from tests.unit.rpc_made import prepared
from tests.unit.wires import SECONDS, End, no_exceptions, nothing_left, settled, until, wire

OWNER = (os.getuid(), os.getgid())
SECRET = bytes(range(32))
WAY = Way("m-1", "fra", "fra-1", "ams", "ams-1", SECRET)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(channels, "FAREWELL", 0.05)
    monkeypatch.setattr(farewell, "FAREWELL", 0.02)
    monkeypatch.setattr(relay, "TICK", 0.01)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, as the paths of UNIX sockets have to be."""
    with tempfile.TemporaryDirectory(prefix="lb-") as name:
        yield Path(name)


def target(name: str) -> Target:
    return nowhere(name)


def said(kind: FrameType, channel: int, delivered: int = 0) -> Frame:
    return Acknowledgement(delivered, delivered).frame(kind, channel)


# Gateways.


class Site:
    """The gateways of this site, played by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dialled: list[str] = []
        self.away: set[str] = set()
        self.ends: asyncio.Queue[End] = asyncio.Queue()
        self._all: list[End] = []
        monkeypatch.setattr(channels, "dial", self._dial)

    async def _dial(self, to: Target) -> Link:
        self.dialled.append(to.name)
        if to.name in self.away:
            raise Unreachable(f"{to.name} is away")
        link, end = wire(to.name)
        self._all.append(end)
        self.ends.put_nowait(end)
        return link

    async def next(self) -> End:
        """The gateway's end of the next link."""
        async with asyncio.timeout(SECONDS):
            return await self.ends.get()

    def close(self) -> None:
        for end in self._all:
            end.link.abort("the test is over")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


async def test_the_first_gateway_that_answers_serves_and_is_tried_first_from_then_on(site: Site) -> None:
    gateways = Gateways([target("gw-1"), target("gw-2"), target("gw-3")])
    site.away = {"gw-1"}
    for link in [await gateways.dial(), await gateways.dial()]:
        assert link.name == "gw-2"
        link.abort("the test is over")
    assert site.dialled == ["gw-1", "gw-2", "gw-2"]
    site.away = {"gw-2", "gw-3"}
    (await gateways.dial()).abort("the test is over")
    assert site.dialled[3:] == ["gw-2", "gw-3", "gw-1"]
    site.close()


async def test_when_no_gateway_answers_it_is_said_of_each(site: Site) -> None:
    site.away = {"gw-1", "gw-2"}
    with pytest.raises(Unreachable, match="no gateway of this site answers: gw-1 is away; gw-2 is away"):
        await Gateways([target("gw-1"), target("gw-2")]).dial()
    with pytest.raises(Unreachable):
        await Gateways([]).dial()


# At the source.


class Source:
    """The sockets of a migration at its source."""

    def __init__(self, site: Site, sockets: LocalSockets, gateways: Gateways) -> None:
        self.site = site
        self.gateways = gateways
        self.sockets = sockets
        self.traffic = sockets.traffic
        self._locals: list[Local] = []

    async def connect(self, kind: str = "ram") -> Local:
        """Libvirt or QEMU."""
        self._locals.append(await Local.connect(self.sockets.path(kind)))
        return self._locals[-1]

    async def opened(self, kind: str = "ram") -> tuple[Local, End, int]:
        """A connection whose channel is accepted, its gateway, and its number."""
        local = await self.connect(kind)
        gateway = await self.site.next()
        frame = await gateway.next()
        assert frame.type is FrameType.OPEN
        gateway.send(said(FrameType.ACCEPT, frame.channel))
        await until(
            lambda: any(c.channel.has_been_open and c.channel.identity == frame.channel for c in self.traffic.carriers)
        )
        return local, gateway, frame.channel

    async def close(self) -> None:
        await self.sockets.close()
        await self.gateways.close()
        for local in self._locals:
            local.close()
        self.site.close()


@pytest_asyncio.fixture
async def source(directory: Path, site: Site) -> AsyncIterator[Source]:
    with no_exceptions():
        async with nothing_left():
            gateways = Gateways([target("gw-1"), target("gw-2")])
            sockets = LocalSockets(gateways, directory / "m-1", Traffic())
            sockets.way = WAY
            make_directory(sockets.directory, OWNER)
            sockets.listen(OWNER)
            made = Source(site, sockets, gateways)
            yield made
            await made.close()


async def test_each_connection_becomes_a_channel_of_its_own_on_a_link_of_its_own_with_a_ticket(source: Source) -> None:
    numbers = set()
    for kind, index in (("rpc", 0), ("ram", 0), ("disk", 0), ("disk", 1)):
        await source.connect(kind)
        frame = await (await source.site.next()).next()
        opening = ChannelOpen.FromString(bytes(frame.payload))
        assert is_good(SECRET, opening)
        assert opening == WAY.opening(kind, index)
        assert (opening.kind, opening.index) == (channels.NUMBERS[kind], index)
        numbers.add(frame.channel)
    assert len(numbers) == 4


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


async def test_the_sockets_are_for_their_owner_only(source: Source) -> None:
    for kind in KINDS:
        assert mode(source.sockets.directory / f"{kind}.sock") == "srw-------"
    assert mode(source.sockets.directory) == "drwx------"


async def test_a_channel_whose_link_dies_goes_on_through_a_gateway_that_answers(source: Source) -> None:
    local, gateway, number = await source.opened()
    await local.send(b"pages")
    assert (await gateway.next()).payload == b"pages"
    source.site.away = {"gw-1"}
    gateway.link.abort("it was killed")
    gateway = await source.site.next()
    assert (await gateway.next()).type is FrameType.OPEN
    gateway.send(said(FrameType.ACCEPT, number))
    assert (await gateway.next_of(FrameType.DATA)).payload == b"pages"
    assert source.site.dialled == ["gw-1", "gw-1", "gw-2"]


async def test_a_channel_waits_while_no_gateway_answers_and_knows_why(source: Source) -> None:
    source.site.away = {"gw-1", "gw-2"}
    await source.connect()
    await until(lambda: len(source.site.dialled) >= 6)
    assert source.traffic.carriers[0].trouble.startswith("no gateway of this site answers")
    assert source.traffic.failure is None
    source.site.away = set()
    assert (await (await source.site.next()).next()).type is FrameType.OPEN


async def test_a_channel_that_is_over_dials_no_more(source: Source) -> None:
    local, gateway, number = await source.opened()
    gateway.send(reset(number, "the disk is full"))
    assert await local.is_closed()
    await gateway.ended()
    await until(lambda: not source.sockets._keepers)
    assert source.site.dialled == ["gw-1"]


async def test_closing_ends_connections_resets_channels_and_removes_the_sockets(source: Source) -> None:
    waiting = await source.connect("ram")
    first = await source.site.next()
    local, second, _ = await source.opened("disk")
    await source.sockets.close()
    assert await local.is_closed()
    assert await waiting.is_closed()
    for gateway in (first, second):
        assert "was closed" in reason_of(await gateway.next_of(FrameType.RESET))
        await gateway.ended()
    assert not source.sockets.directory.exists()
    await source.sockets.close()


async def test_closing_does_not_wait_for_gateways_that_do_not_answer(source: Source) -> None:
    source.site.away = {"gw-1", "gw-2"}
    local = await source.connect()
    await until(lambda: len(source.site.dialled) >= 2)
    async with asyncio.timeout(1.0):
        await source.sockets.close()
    assert await local.is_closed()


async def given_up_without_a_link(source: Source) -> int:
    """A channel that was open, and is given up while no gateway answers, with all else of its migration; its number."""
    _, gateway, number = await source.opened()
    source.site.away = {"gw-1", "gw-2"}
    gateway.link.abort("it was killed")
    await until(lambda: len(source.site.dialled) >= 3)
    async with asyncio.timeout(1.0):
        await source.sockets.close()
    assert not source.sockets.directory.exists()
    return number


async def test_a_channel_that_is_given_up_while_no_gateway_answers_is_told_to_the_other_host_later(
    source: Source,
) -> None:
    number = await given_up_without_a_link(source)
    source.site.away = set()
    gateway = await source.site.next()
    assert (await gateway.next()).type is FrameType.OPEN
    gateway.send(said(FrameType.ACCEPT, number))
    assert "was closed" in reason_of(await gateway.next_of(FrameType.RESET))
    # Whether it was heard is asked, until the other host says that it knows of no such channel any more.
    assert (await gateway.next()).type is FrameType.OPEN
    gateway.send(reset(number, "the channel was given up"))
    await gateway.ended()
    await until(lambda: not source.gateways._telling)


async def test_so_is_one_whose_gateway_has_lost_the_other_site(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell, "HEARD_LATELY", 0.0)
    _, gateway, _ = await source.opened()
    closing = asyncio.create_task(source.sockets.close())
    for _ in range(2):
        await gateway.next_of(FrameType.OPEN)
    gateway.send(reset(source.traffic.carriers[0].channel.identity, "the channel was given up"))
    await closing
    await gateway.ended()


async def test_the_other_host_is_not_told_for_longer_than_it_waits(source: Source) -> None:
    source.traffic.outage_limit = 0.5
    await given_up_without_a_link(source)
    await until(lambda: not source.gateways._telling)
    dialled = len(source.site.dialled)
    assert source.traffic.carriers[0].over.is_set()
    source.site.away = set()
    await settled()
    assert len(source.site.dialled) == dialled


async def test_an_agent_that_stops_tells_nobody_any_more(source: Source) -> None:
    await given_up_without_a_link(source)
    assert source.gateways._telling
    await source.gateways.close()
    assert not source.gateways._telling


# At the destination.


class Destination:
    """A host to which channels come; its libvirtd and the gateways are the test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "libvirt.sock"
        self.traffic = Traffic(firewall=prepared())
        self.admitted: list[ChannelOpen] = []
        self.incoming = Incoming(self._admit)
        self._connections: asyncio.Queue[Local] = asyncio.Queue()
        self._ends: list[End] = []
        self._locals: list[Local] = []
        self._server: socket.socket | None = None

    def _admit(self, opening: ChannelOpen) -> tuple[str, Traffic]:
        if not is_good(SECRET, opening):
            raise PermissionDenied("it comes without a ticket")
        self.admitted.append(opening)
        return str(self.path), self.traffic

    def listen(self) -> None:
        """Libvirtd is there."""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.setblocking(False)
        self._server.bind(str(self.path))
        self._server.listen()
        asyncio.get_running_loop().add_reader(self._server, self._accept, self._server)

    def _accept(self, server: socket.socket) -> None:
        self._locals.append(Local(server.accept()[0]))
        self._connections.put_nowait(self._locals[-1])

    async def connected(self) -> Local:
        """Libvirtd's end of the next connection."""
        async with asyncio.timeout(SECONDS):
            return await self._connections.get()

    def is_connected(self) -> bool:
        return not self._connections.empty()

    def gateway(self) -> End:
        """The gateway's end of a link that it has dialled."""
        link, end = wire("gateway gw-1")
        self._ends.append(end)
        self.incoming.accept(link)
        return end

    async def opened(self) -> tuple[End, Local]:
        """A channel that is accepted."""
        gateway = self.gateway()
        gateway.send(OPEN)
        assert await gateway.next() == said(FrameType.ACCEPT, 5)
        return gateway, await self.connected()

    async def close(self) -> None:
        await self.incoming.close()
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.close()
        for local in self._locals:
            local.close()
        for end in self._ends:
            end.link.abort("the test is over")


def opens(channel: int, opening: ChannelOpen) -> Frame:
    return Frame(FrameType.OPEN, channel, 0, opening.SerializeToString())


OPEN = opens(5, WAY.opening("ram", 0))


@pytest_asyncio.fixture
async def host(directory: Path) -> AsyncIterator[Destination]:
    with no_exceptions():
        async with nothing_left():
            made = Destination(directory)
            yield made
            await made.close()


async def test_a_channel_is_connected_and_only_then_accepted(host: Destination) -> None:
    host.listen()
    gateway, local = await host.opened()
    gateway.send(Frame(FrameType.DATA, 5, 0, b"call"))
    assert await local.receive(4) == b"call"
    await local.send(b"reply")
    assert (await gateway.next_of(FrameType.DATA)).payload == b"reply"
    assert host.admitted == [WAY.opening("ram", 0)]


async def test_one_that_is_open_goes_on_with_the_next_link_and_is_not_connected_again(host: Destination) -> None:
    host.listen()
    first, local = await host.opened()
    first.send(Frame(FrameType.DATA, 5, 0, b"call"))
    assert await local.receive(4) == b"call"
    second = host.gateway()
    second.send(OPEN)
    await first.ended()
    assert await second.next_of(FrameType.ACCEPT) == said(FrameType.ACCEPT, 5, 4)
    second.send(Frame(FrameType.DATA, 5, 4, b"more"))
    assert await local.receive(4) == b"more"
    assert not host.is_connected()
    assert len(host.admitted) == 1


async def test_the_number_of_a_channel_with_another_opening_is_refused_and_changes_nothing(host: Destination) -> None:
    host.listen()
    gateway, local = await host.opened()
    thief = host.gateway()
    thief.send(opens(5, WAY.opening("ram", 1)))
    assert "another channel has this number" in reason_of(await thief.next())
    await thief.ended()
    gateway.send(Frame(FrameType.DATA, 5, 0, b"call"))
    assert await local.receive(4) == b"call"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\xff", "cannot be read"),
        (ChannelOpen(migration="m-1").SerializeToString(), "cannot be read"),
        (ChannelOpen(kind=ChannelKind.CHANNEL_KIND_RAM).SerializeToString(), "without a ticket"),
    ],
)
async def test_a_channel_that_may_not_be_is_refused_with_the_reason_and_its_link_ended(
    host: Destination, payload: bytes, says: str
) -> None:
    gateway = host.gateway()
    gateway.send(Frame(FrameType.OPEN, 5, 0, payload))
    answer = await gateway.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, 5)
    assert says in reason_of(answer)
    await gateway.ended()
    assert not host.incoming._doormen


async def test_a_link_that_was_refused_takes_no_other_channel(host: Destination) -> None:
    host.listen()
    gateway = host.gateway()
    gateway.send(opens(5, ChannelOpen(kind=ChannelKind.CHANNEL_KIND_RAM)), *[OPEN] * 100)
    assert (await gateway.next()).type is FrameType.RESET
    await gateway.ended()
    assert await gateway.nothing_comes()
    assert not host.is_connected()


async def test_a_link_that_does_not_say_what_it_is_for_is_ended_in_time(
    host: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "FIRST_FRAME", 0.05)
    gateway = host.gateway()
    gateway.send(Frame(FrameType.DATA, 5, 0, b"x"), Frame(FrameType.CLOSE, 5))
    await gateway.ended()
    assert await gateway.nothing_comes()


async def test_a_socket_on_which_nobody_listens_refuses_the_channel(host: Destination) -> None:
    gateway = host.gateway()
    gateway.send(OPEN)
    answer = await gateway.next()
    assert answer.type is FrameType.RESET
    assert "the destination host refused the channel: No such file or directory" in reason_of(answer)
    await gateway.ended()


async def test_a_channel_that_is_reset_as_soon_as_it_is_opened_leaves_no_connection(host: Destination) -> None:
    host.listen()
    gateway = host.gateway()
    gateway.send(OPEN, reset(5, "never mind"))
    await gateway.ended()
    await settled()
    if host.is_connected():
        assert await (await host.connected()).is_closed()


async def test_a_channel_that_was_given_up_is_said_to_be_when_it_is_opened_again(host: Destination) -> None:
    host.listen()
    gateway, local = await host.opened()
    gateway.send(reset(5, "never mind"))
    assert await local.is_closed()
    await gateway.ended()
    again = host.gateway()
    again.send(OPEN)
    assert "given up" in reason_of(await again.next_of(FrameType.RESET))
    await again.ended()
    assert not host.is_connected()


async def test_one_that_has_ended_is_forgotten_after_a_while(
    host: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MEMORY", 0.1)
    host.listen()
    gateway, _ = await host.opened()
    gateway.send(reset(5, "never mind"))
    await until(lambda: not host.incoming._carriers and not host.incoming._connecting)


async def test_a_channel_whose_link_never_comes_back_ends_with_the_outage_limit(
    host: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MEMORY", 0.1)
    host.traffic.outage_limit = 0.05
    host.listen()
    gateway, local = await host.opened()
    gateway.link.abort("the WAN is down")
    assert await local.is_closed()
    await until(lambda: not host.incoming._carriers and not host.incoming._connecting)


async def test_an_agent_that_stops_ends_what_came_to_it_and_waits_for_nobody(host: Destination) -> None:
    host.listen()
    gateway, local = await host.opened()
    silent, refused = host.gateway(), host.gateway()
    refused.send(opens(6, ChannelOpen()))
    assert (await refused.next()).type is FrameType.RESET
    await host.incoming.close()
    assert await local.is_closed()
    assert (await gateway.next_of(FrameType.RESET)).channel == 5
    for end in (gateway, silent, refused):
        await end.ended()
