"""The agent's relay against a gateway of the test: bytes both ways, and every way in which a channel ends."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext

import pytest

from agent import relay
from agent.relay import KINDS, Links, LocalSockets, Traffic
from agent.stream.libvirt_rpc import FinishWatch
from certs.links import Target
from landbridge.channel import MIN_WINDOW
from landbridge.config import Address
from landbridge.errors import Conflict, Unreachable
from landbridge.frame import Frame, FrameType, reason_of, reset
from landbridge.link import Link
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.unit.wires import SECONDS, End, settled, wire

RPC = ChannelOpen(migration="m-1", kind=ChannelKind.CHANNEL_KIND_RPC).SerializeToString()
OWNER = (os.getuid(), os.getgid())


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, as the paths of UNIX sockets have to be."""
    with tempfile.TemporaryDirectory(prefix="lb-") as name:
        yield Path(name)


class Local:
    """libvirt or QEMU: one end of a connection on this host."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, path: str) -> Local:
        sock = socket.socket(socket.AF_UNIX)
        local = cls(sock)
        await local._loop.sock_connect(sock, path)
        return local

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        data = b""
        async with asyncio.timeout(SECONDS):
            while len(data) < count:
                data += await self._loop.sock_recv(self.sock, count - len(data))
        return data

    async def is_closed(self) -> bool:
        """Whether the other side ends the connection, now or soon; without another byte."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._loop.sock_recv(self.sock, 1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.sock.close()


class Source:
    """The sockets of a migration at its source, with a gateway that the test plays."""

    def __init__(self, links: Links, sockets: LocalSockets, gateway: End) -> None:
        self.links = links
        self.sockets = sockets
        self.gateway = gateway
        self.locals: list[Local] = []

    async def connect(self, kind: str = "rpc") -> Local:
        self.locals.append(await Local.connect(self.sockets.path(kind)))
        return self.locals[-1]

    async def opened(self, kind: str = "rpc") -> tuple[Local, int]:
        """A connection whose channel is accepted, and the channel's number."""
        local = await self.connect(kind)
        number = (await self.gateway.next()).channel
        self.gateway.send(Frame(FrameType.ACCEPT, number))
        return local, number


def target(name: str) -> Target:
    """Not dialled: the tests give the link."""
    return Target(name, Address("127.0.0.1", 1), SSLContext(PROTOCOL_TLS_CLIENT), name)


@pytest.fixture
async def source(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Source]:
    async with wire("host fra-1", "gateway") as (link, gateway):

        async def dial(_: Target) -> Link:
            return link

        monkeypatch.setattr(relay, "dial", dial)
        monkeypatch.setattr(relay, "LOST_GRACE", 0.1)
        links = Links([target("gw-1")], refuse)
        sockets = LocalSockets(links, "m-1", "ams", directory / "m-1")
        relay.make_directory(sockets.directory, OWNER)
        sockets.listen(OWNER)
        made = Source(links, sockets, gateway)
        yield made
        for local in made.locals:
            local.close()
        await sockets.close()
        await links.close()


def refuse(opening: ChannelOpen) -> tuple[str, Traffic]:
    raise Conflict(f"migration {opening.migration} takes no channels here")


# At the source.


async def test_a_connection_becomes_a_channel_that_says_what_it_is(source: Source) -> None:
    for kind, number in (("rpc", 0), ("ram", 0), ("disk", 0), ("disk", 1)):
        await source.connect(kind)
        frame = await source.gateway.next()
        assert frame.type is FrameType.OPEN
        assert ChannelOpen.FromString(frame.payload) == ChannelOpen(
            migration="m-1", kind=KINDS[kind], index=number, destination_site="ams"
        )


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


async def test_the_sockets_are_for_their_owner_only(source: Source) -> None:
    for kind in KINDS:
        assert mode(source.sockets.directory / f"{kind}.sock") == "srw-------"
    assert mode(source.sockets.directory) == "drwx------"


async def test_bytes_go_both_ways_and_are_acknowledged_when_they_are_written(source: Source) -> None:
    local, number = await source.opened("ram")
    await local.send(b"pages")
    assert await source.gateway.next() == Frame(FrameType.DATA, number, 0, b"pages")
    source.gateway.send(Frame(FrameType.ACK, number, 5), Frame(FrameType.DATA, number, 0, b"thanks"))
    assert await local.receive(6) == b"thanks"
    assert await source.gateway.next() == Frame(FrameType.ACK, number, 6)
    assert source.sockets.traffic.read["ram"] == 5
    assert source.sockets.traffic.written["ram"] == 6


async def test_nothing_is_read_from_the_socket_before_the_destination_has_accepted(source: Source) -> None:
    local = await source.connect()
    await local.send(b"early")
    number = (await source.gateway.next()).channel
    assert await source.gateway.nothing_comes()
    source.gateway.send(Frame(FrameType.ACCEPT, number))
    assert await source.gateway.data(5) == b"early"


async def test_no_more_is_read_than_the_window_lets_be_under_way(source: Source) -> None:
    local, number = await source.opened("ram")
    sending = asyncio.create_task(local.send(bytes(8 * MIN_WINDOW)))
    await source.gateway.data(MIN_WINDOW)
    assert await source.gateway.nothing_comes()
    assert not sending.done()
    source.gateway.send(Frame(FrameType.ACK, number, MIN_WINDOW))
    assert await source.gateway.data(1)
    sending.cancel()
    await asyncio.wait([sending])


async def test_each_direction_ends_by_itself_and_then_the_channel_is_over(source: Source) -> None:
    local, number = await source.opened()
    await local.send(b"call")
    local.sock.shutdown(socket.SHUT_WR)
    assert await source.gateway.data(4) == b"call"
    assert await source.gateway.next() == Frame(FrameType.FIN, number, 4)
    source.gateway.send(Frame(FrameType.ACK, number, 4), Frame(FrameType.DATA, number, 0, b"reply"))
    assert await local.receive(5) == b"reply"
    source.gateway.send(Frame(FrameType.FIN, number, 5))
    assert await local.is_closed()
    await settled()
    assert source.sockets.traffic.open_channels == 0
    assert source.sockets.traffic.failure is None


async def test_a_reset_closes_the_socket_and_its_reason_is_kept(source: Source) -> None:
    local, number = await source.opened()
    source.gateway.send(reset(number, "the disk is full"))
    assert await local.is_closed()
    assert source.sockets.traffic.failure == "the disk is full"


async def test_the_first_reason_is_the_cause(source: Source) -> None:
    first, one = await source.opened("disk")
    second, two = await source.opened("rpc")
    source.gateway.send(reset(one, "the disk is full"), reset(two, "the migration was stopped"))
    assert await first.is_closed()
    assert await second.is_closed()
    assert source.sockets.traffic.failure == "the disk is full"


async def test_whoever_wants_to_end_a_lost_channel_in_good_order_has_a_moment_for_it(source: Source) -> None:
    told = asyncio.Event()
    source.sockets.traffic.on_lost = told.set
    local, number = await source.opened("disk")
    source.gateway.send(reset(number, "the WAN is down"))
    async with asyncio.timeout(SECONDS):
        await told.wait()
    await local.send(b"still taken")
    assert await local.is_closed()


async def test_a_reset_closes_a_socket_whose_other_direction_had_ended(source: Source) -> None:
    local, number = await source.opened()
    source.gateway.send(Frame(FrameType.FIN, number, 0))
    assert await local.is_closed()  # to read from
    source.gateway.send(reset(number, "the WAN is down"))
    await settled()
    with pytest.raises(BrokenPipeError):
        await local.send(b"x")


async def test_a_reset_closes_a_socket_that_nobody_reads_from(source: Source) -> None:
    local, number = await source.opened()
    for n in range(32):
        source.gateway.send(Frame(FrameType.DATA, number, n << 16, bytes(1 << 16)))
    await settled()
    source.gateway.send(reset(number, "the WAN is down"))
    await settled()
    assert source.sockets.traffic.open_channels == 0
    with pytest.raises(BrokenPipeError):
        await local.send(b"x")


async def test_a_frame_that_breaks_the_rules_resets_the_channel(source: Source) -> None:
    local, number = await source.opened()
    source.gateway.send(Frame(FrameType.DATA, number, 99, b"a gap"))
    assert await local.is_closed()
    answer = await source.gateway.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, number)
    assert "99" in reason_of(answer)


async def test_calls_that_cannot_be_followed_end_the_channel_at_both_ends(source: Source) -> None:
    source.sockets.traffic.on_call = lambda _channel, data: FinishWatch().called(data)
    local, number = await source.opened()
    await local.send(bytes(28))
    answer = await source.gateway.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, number)
    assert "none of libvirt's" in reason_of(answer)
    assert await local.is_closed()
    assert source.sockets.traffic.failure == reason_of(answer)


async def test_a_lost_channel_keeps_its_socket_until_the_grace_is_over_and_says_so_at_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOST_GRACE", 0.5)
    lost = asyncio.Event()
    source.sockets.traffic.on_lost = lost.set
    local, number = await source.opened()
    source.gateway.send(reset(number, "the WAN is down"))
    async with asyncio.timeout(SECONDS):
        await lost.wait()
    with pytest.raises(BlockingIOError):
        local.sock.recv(1)
    assert await local.is_closed()


async def test_a_link_that_dies_closes_every_socket(source: Source) -> None:
    opened = [await source.opened(kind) for kind in KINDS]
    await source.gateway.close()
    for local, _ in opened:
        assert await local.is_closed()
    assert "gateway" in (source.sockets.traffic.failure or "")


async def test_a_program_that_goes_away_with_bytes_on_the_way_resets_the_channel(source: Source) -> None:
    local, number = await source.opened()
    local.close()
    assert await source.gateway.next() == Frame(FrameType.FIN, number, 0)
    source.gateway.send(Frame(FrameType.DATA, number, 0, b"too late"))
    answer = await source.gateway.next()
    assert answer.type is FrameType.RESET
    assert "the rpc socket of the other host was closed" in reason_of(answer)


async def test_closing_ends_connections_resets_channels_and_removes_the_sockets(source: Source) -> None:
    waiting = await source.connect("ram")
    opening = await source.gateway.next()
    local, number = await source.opened()
    await source.sockets.close()
    assert await local.is_closed()
    assert await waiting.is_closed()
    answers = [await source.gateway.next() for _ in range(2)]
    assert {(frame.type, frame.channel) for frame in answers} == {
        (FrameType.RESET, number),
        (FrameType.RESET, opening.channel),
    }
    assert not source.sockets.directory.exists()
    await source.sockets.close()


async def test_a_channel_that_nobody_accepts_is_given_up(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ACCEPT_TIMEOUT", 0.05)
    local = await source.connect()
    number = (await source.gateway.next()).channel
    answer = await source.gateway.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, number)
    assert await local.is_closed()
    assert source.sockets.traffic.failure == "the destination did not answer"


async def test_a_channel_that_is_refused_closes_the_connection(source: Source) -> None:
    local = await source.connect()
    source.gateway.send(reset((await source.gateway.next()).channel, "no migration m-1 is under way here"))
    assert await local.is_closed()
    assert source.sockets.traffic.failure == "no migration m-1 is under way here"


async def test_what_a_gateway_opens_on_a_link_that_the_agent_dialled_is_refused(source: Source) -> None:
    await source.opened()
    source.gateway.send(Frame(FrameType.OPEN, 99, 0, RPC))
    answer = await source.gateway.next()
    assert (answer.type, answer.channel) == (FrameType.RESET, 99)
    assert "accepts none" in reason_of(answer)


async def test_a_gateway_that_cannot_be_reached_closes_the_connection(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dial(to: Target) -> Link:
        raise Unreachable(f"{to.name} is away")

    monkeypatch.setattr(relay, "dial", dial)
    local = await source.connect()
    assert await local.is_closed()
    assert source.sockets.traffic.failure == "no gateway of this site answers: gw-1 is away"


async def test_gateways_are_tried_in_order_and_one_link_serves_all_channels_while_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled = []
    async with wire() as (first, _), wire() as (second, _):
        given = [first, second]

        async def dial(to: Target) -> Link:
            dialled.append(to.name)
            if to.name == "gw-1":
                raise Unreachable("gw-1 is away")
            return given.pop(0)

        monkeypatch.setattr(relay, "dial", dial)
        links = Links([target("gw-1"), target("gw-2")], refuse)
        muxes = await asyncio.gather(links.to_gateway(), links.to_gateway())
        assert [mux.link for mux in muxes] == [first, first]
        assert dialled == ["gw-1", "gw-2"]
        first.abort("it died")
        assert (await links.to_gateway()).link is second
        await links.close()


# At the destination.


@asynccontextmanager
async def destination(path: Path) -> AsyncIterator[tuple[End, Traffic, Links]]:
    """A host that takes channels of m-1 to `path`, and the gateway that brings them."""
    traffic = Traffic()

    def incoming(opening: ChannelOpen) -> tuple[str, Traffic]:
        if opening.migration != "m-1":
            raise Conflict(f"nobody expects a migration {opening.migration}")
        return str(path), traffic

    async with wire("host ams-1", "gateway") as (link, gateway):
        links = Links([], incoming)
        links.accept(link)
        yield gateway, traffic, links
        await links.close()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[asyncio.Queue[Local]]:
    """A libvirtd of the test: what connects to it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    server.setblocking(False)
    connections: asyncio.Queue[Local] = asyncio.Queue()
    accepted = []

    async def accept() -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            accepted.append(Local(sock))
            connections.put_nowait(accepted[-1])

    task = asyncio.create_task(accept())
    yield connections
    task.cancel()
    await asyncio.wait([task])
    server.close()
    for local in accepted:
        local.close()


async def test_a_channel_is_connected_and_only_then_accepted(directory: Path) -> None:
    path = directory / "libvirt.sock"
    async with listening(path) as connections, destination(path) as (gateway, traffic, _):
        closed: list[str] = []
        traffic.on_close = closed.append
        gateway.send(Frame(FrameType.OPEN, 5, 0, RPC))
        assert await gateway.next() == Frame(FrameType.ACCEPT, 5)
        local = await connections.get()
        gateway.send(Frame(FrameType.DATA, 5, 0, b"call"))
        assert await local.receive(4) == b"call"
        assert await gateway.next() == Frame(FrameType.ACK, 5, 4)
        await local.send(b"reply")
        assert await gateway.next() == Frame(FrameType.DATA, 5, 0, b"reply")
        gateway.send(Frame(FrameType.ACK, 5, 5), Frame(FrameType.FIN, 5, 4))
        assert await local.is_closed()
        local.close()
        assert await gateway.next() == Frame(FrameType.FIN, 5, 5)
        await settled()
        assert closed == ["rpc"]


async def test_a_channel_of_a_migration_that_nobody_expects_is_refused_with_the_reason(directory: Path) -> None:
    async with destination(directory / "nobody") as (gateway, _, _):
        gateway.send(Frame(FrameType.OPEN, 5, 0, ChannelOpen(migration="m-9").SerializeToString()))
        answer = await gateway.next()
        assert (answer.type, answer.channel) == (FrameType.RESET, 5)
        assert reason_of(answer).endswith("nobody expects a migration m-9")


@pytest.mark.parametrize("payload", [b"\xff\xff", ChannelOpen(migration="m-1").SerializeToString()])
async def test_an_opening_that_says_nothing_is_refused(directory: Path, payload: bytes) -> None:
    async with destination(directory / "nobody") as (gateway, _, _):
        gateway.send(Frame(FrameType.OPEN, 5, 0, payload))
        assert (await gateway.next()).type is FrameType.RESET


async def test_a_socket_on_which_nobody_listens_refuses_the_channel(directory: Path) -> None:
    async with destination(directory / "nobody") as (gateway, _, _):
        gateway.send(Frame(FrameType.OPEN, 5, 0, RPC))
        answer = await gateway.next()
        assert answer.type is FrameType.RESET
        assert "the destination host refused the channel" in reason_of(answer)


async def test_a_channel_that_is_reset_as_soon_as_it_is_opened_leaves_no_connection(directory: Path) -> None:
    path = directory / "libvirt.sock"
    async with listening(path) as connections, destination(path) as (gateway, traffic, _):
        gateway.send(Frame(FrameType.OPEN, 5, 0, RPC), reset(5, "never mind"))
        await settled()
        if not connections.empty():
            assert await connections.get_nowait().is_closed()
        assert traffic.open_channels == 0


async def test_an_agent_that_stops_ends_its_channels_and_does_not_wait_for_anybody(directory: Path) -> None:
    path = directory / "libvirt.sock"
    async with listening(path) as connections, destination(path) as (gateway, traffic, links):
        gateway.send(Frame(FrameType.OPEN, 5, 0, RPC))
        await gateway.next()
        local = await connections.get()
        async with asyncio.timeout(SECONDS):
            await links.close()
        assert await local.is_closed()
        assert traffic.failure == "this agent stops"
