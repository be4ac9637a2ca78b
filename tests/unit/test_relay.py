"""A channel with its local socket: bytes both ways, whatever becomes of its links, and every way in which it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from blake3 import blake3

from agent import calls, farewell, relay
from agent.relay import Carrier
from agent.stream.hinter import Hinter
from agent.stream.libvirt_rpc import Keepalive, MessageType, Procedure, keepalive
from agent.traffic import Traffic
from landbridge import hints
from landbridge.channel import Channel
from landbridge.frame import Acknowledgement, Frame, FrameType, reason_of, reset
from landbridge.link import Link
from landbridge.receiving import CEILING
from landbridge.sending import UNSENT
from tests.unit.locals import Local
from tests.unit.nbd_made import DISCONNECT, STRUCTURED, WRITE, beginning, request
from tests.unit.rpc_made import prepared
from tests.unit.test_libvirt_rpc import EVENT, PREPARE, message
from tests.unit.test_return_path import PONG as ANSWERED
from tests.unit.test_return_path import SHUT
from tests.unit.test_return_path import message as answer
from tests.unit.test_rpc_end import CALL, CANCELLING_CALL
from tests.unit.wires import SECONDS, End, Plain, no_exceptions, nothing_left, settled, sockets, until, wire
from tests.vectors import load

OPENING = b"which channel it is"
PING, PONG = keepalive(Keepalive.PING), keepalive(Keepalive.PONG)


def said(kind: FrameType, delivered: int = 0, received: int | None = None, channel: int = 1) -> Frame:
    return Acknowledgement(delivered, delivered if received is None else received).frame(kind, channel)


def accept(delivered: int = 0) -> Frame:
    return said(FrameType.ACCEPT, delivered)


def ack(delivered: int, received: int | None = None) -> Frame:
    return said(FrameType.ACK, delivered, received)


def data(payload: bytes, position: int = 0) -> Frame:
    return Frame(FrameType.DATA, 1, position, payload)


def fin(stream: bytes) -> Frame:
    return Frame(FrameType.FIN, 1, len(stream), blake3(stream).digest())


class Side:
    """One channel at a host: libvirt or QEMU at one end of it, and the other agent at the other; both are the test."""

    def __init__(self, traffic: Traffic, kind: str, *, opens: bool) -> None:
        now = asyncio.get_running_loop().time()
        channel = Channel(1, now, opening=OPENING if opens else None)
        self.carrier = Carrier(channel, kind, traffic, name=f"the {kind} channel to host far")
        self._ours, theirs = sockets()
        self.local = Local(theirs)
        self._ends: list[End] = []
        self.far = self.relink()

    def relink(self) -> End:
        """Another link, whose other end is the test."""
        link, self.far = wire("gateway gw-1")
        self._ends.append(self.far)
        self.carrier.attach(link)
        link.start(self.carrier)
        return self.far

    def connect(self) -> None:
        """The local socket is there."""
        self.carrier.connect(self._ours)

    async def is_over(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.carrier.over.wait()
        await self.far.ended()

    def close(self) -> None:
        self.carrier.close()
        self.local.close()
        self._ours.close()
        for end in self._ends:
            end.link.abort("the test is over")


class Host:
    """A host of a migration."""

    def __init__(self) -> None:
        self.traffic = Traffic(firewall=prepared())
        self._sides: list[Side] = []

    def side(self, kind: str, *, opens: bool) -> Side:
        self._sides.append(Side(self.traffic, kind, opens=opens))
        return self._sides[-1]

    async def source(self, kind: str = "ram") -> Side:
        """A channel that was opened here and is accepted."""
        side = self.side(kind, opens=True)
        side.connect()
        assert (await side.far.next()).type is FrameType.OPEN
        side.far.send(accept())
        await until(lambda: side.carrier.channel.has_been_open)
        return side

    async def destination(self, kind: str = "ram") -> Side:
        """A channel that was opened by the other host and is accepted."""
        side = self.side(kind, opens=False)
        side.connect()
        side.far.send(Frame(FrameType.OPEN, 1, 0, OPENING))
        assert (await side.far.next()).type is FrameType.ACCEPT
        return side

    def close(self) -> None:
        for side in self._sides:
            side.close()


@pytest_asyncio.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    for module, name, seconds in ((farewell, "FAREWELL", 0.02), (relay, "LOST_GRACE", 0.05), (relay, "TICK", 0.01)):
        monkeypatch.setattr(module, name, seconds)
    with no_exceptions():
        async with nothing_left():
            made = Host()
            yield made
            made.close()


# Bytes.


def block(name: bytes, content: int) -> bytes:
    """The beginning of QEMU's stream, of one block of memory with one page in it."""
    head = b"QEVM\0\0\0\3" + b"\1" + bytes(4) + b"\3ram" + bytes(4) + b"\0\0\0\4"
    size = (hints.PAGE | 4).to_bytes(8, "big") + bytes([len(name)]) + name + hints.PAGE.to_bytes(8, "big")
    page = (0 | 8).to_bytes(8, "big") + bytes([len(name)]) + name + bytes([content]) * hints.PAGE
    return head + size + page


async def test_hints_say_where_pages_stand(host: Host) -> None:
    side = await host.source()
    sent = block(b"pc.ram", 7)
    await side.local.send(sent)
    frame = await side.far.next_of(FrameType.DATA)
    assert frame.payload == sent
    (run,) = hints.decode(frame.hints, len(sent))
    assert (run.offset, run.key) == (len(sent) - hints.PAGE, hints.space(b"pc.ram"))
    assert host.traffic.unhinted("ram") == (len(sent) - hints.PAGE, "")


async def test_a_page_is_sent_in_one_piece_if_its_end_comes_soon(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "TAIL_PATIENCE", 60.0)
    side = await host.source()
    sent = block(b"pc.ram", 7)
    await side.local.send(sent[:-1000])
    first = await side.far.next_of(FrameType.DATA)
    assert len(first.payload) <= len(sent) - hints.PAGE
    await side.local.send(sent[-1000:])
    second = await side.far.next_of(FrameType.DATA)
    assert bytes(first.payload) + bytes(second.payload) == sent
    assert [run.key for run in hints.decode(second.hints, len(second.payload))] == [hints.space(b"pc.ram")]


async def test_the_beginning_of_a_page_does_not_wait_for_ever_nor_behind_the_end(host: Host) -> None:
    side = await host.source()
    sent = block(b"pc.ram", 7)
    await side.local.send(sent[:-1000])
    assert await side.far.data(len(sent) - 1000) == sent[:-1000]
    other = await host.source()
    await other.local.send(sent[:-1000])
    other.local.sock.shutdown(socket.SHUT_WR)
    assert await other.far.data(len(sent) - 1000) == sent[:-1000]
    assert (await other.far.next_of(FrameType.FIN)).position == len(sent) - 1000


async def test_a_stream_that_is_not_understood_is_carried_all_the_same_and_told(host: Host) -> None:
    side = await host.source()
    await side.local.send(b"what is this?")
    assert await side.far.next() == data(b"what is this?")
    assert host.traffic.unhinted("ram") == (13, "from byte 0 on, the stream begins like none of QEMU's")


async def test_a_channel_is_opened_as_soon_as_there_is_a_link_and_not_read_before_it_is_accepted(host: Host) -> None:
    side = host.side("ram", opens=True)
    side.connect()
    await side.local.send(b"early")
    assert await side.far.next() == Frame(FrameType.OPEN, 1, 0, OPENING)
    assert await side.far.nothing_comes()
    side.far.send(accept())
    assert await side.far.next() == data(b"early")


async def test_bytes_go_both_ways_and_are_acknowledged_when_the_socket_has_them(host: Host) -> None:
    side = await host.source()
    await side.local.send(b"pages")
    assert await side.far.next() == data(b"pages")
    side.far.send(ack(5), data(b"thanks"))
    assert await side.local.receive(6) == b"thanks"
    assert await side.far.next() == ack(6)
    assert host.traffic.read["ram"] == 5
    assert host.traffic.written["ram"] == 6


async def test_what_the_local_socket_does_not_take_is_not_acknowledged_as_delivered(host: Host) -> None:
    side = await host.destination()
    stream = bytes(1 << 20)
    side.far.send(*(data(stream[at : at + (1 << 16)], at) for at in range(0, len(stream), 1 << 16)))
    await until(lambda: side.carrier.channel.incoming.received == len(stream))
    assert side.carrier.channel.incoming.delivered < len(stream)
    assert await side.local.receive(len(stream)) == stream
    await until(lambda: side.carrier.channel.incoming.delivered == len(stream))


async def test_no_more_is_read_than_the_link_takes(host: Host) -> None:
    side = await host.source()
    side.far.link.pause()
    sending = asyncio.create_task(side.local.send(bytes(8 * UNSENT)))
    await settled()
    await settled()
    assert host.traffic.read["ram"] < 4 * UNSENT
    side.far.link.resume()
    await side.far.data(4 * UNSENT)
    sending.cancel()
    await asyncio.wait([sending])


# Links that come and go.


async def test_an_open_that_is_lost_is_said_again(host: Host) -> None:
    side = host.side("ram", opens=True)
    side.connect()
    assert await side.far.next() == await side.far.next() == Frame(FrameType.OPEN, 1, 0, OPENING)


async def test_so_is_one_on_a_later_link(host: Host) -> None:
    side = await host.source()
    side.far.link.abort("the gateway was killed")
    await until(lambda: side.carrier.link is None)
    side.relink()
    assert await side.far.next() == await side.far.next() == Frame(FrameType.OPEN, 1, 0, OPENING)


async def test_a_channel_goes_on_with_another_link_from_what_has_arrived(host: Host) -> None:
    side = await host.source()
    await side.local.send(b"one")
    assert await side.far.next() == data(b"one")
    side.far.link.abort("the gateway was killed")
    await until(lambda: side.carrier.link is None)
    assert side.carrier.trouble == "the link to gateway gw-1 was closed by the other end"
    await side.local.send(b"two")
    side.relink()
    assert (await side.far.next()).type is FrameType.OPEN
    side.far.send(accept(0))
    assert await side.far.next_of(FrameType.DATA) == data(b"one")
    assert await side.far.next_of(FrameType.DATA) == data(b"two", 3)
    assert host.traffic.repeated_bytes == 3


async def test_the_end_that_was_called_answers_on_whichever_link_the_channel_is_opened_again(host: Host) -> None:
    side = await host.destination()
    side.far.send(data(b"one"))
    assert await side.local.receive(3) == b"one"
    former = side.far
    side.relink()
    await former.ended()
    side.far.send(Frame(FrameType.OPEN, 1, 0, OPENING))
    assert await side.far.next_of(FrameType.ACCEPT) == accept(3)
    former.send(data(b"late", 3))
    side.far.send(data(b"two", 3))
    assert await side.local.receive(3) == b"two"


async def test_bytes_arrive_whole_and_in_order_however_often_the_links_between_two_hosts_die(host: Host) -> None:
    source, destination = host.side("ram", opens=True), host.side("ram", opens=False)
    source.connect()
    destination.connect()
    stream = bytes(range(256)) * (4 << 12)
    sending = asyncio.create_task(source.local.send(stream))
    arrived = bytearray()
    while len(arrived) < len(stream):
        between: list[Link] = []
        for carrier, sock in zip((source.carrier, destination.carrier), sockets(1 << 16), strict=True):
            between.append(Link(Plain(sock), "the other host"))
            carrier.attach(between[-1])
            between[-1].start(carrier)
        arrived += await destination.local.receive(min(1 << 20, len(stream) - len(arrived)))
        between[0].abort("a gateway was killed")
        await until(lambda: source.carrier.link is destination.carrier.link is None)
    await sending
    assert arrived == stream


async def test_libvirtds_pings_are_answered_while_there_is_no_way_and_its_calls_wait(host: Host) -> None:
    side = await host.source("rpc")
    side.far.link.abort("all gateways are away")
    await until(lambda: side.carrier.link is None)
    await side.local.send(PING + EVENT + PING)
    assert await side.local.receive(2 * len(PONG)) == PONG * 2
    side.relink()
    await side.far.next_of(FrameType.OPEN)
    side.far.send(accept())
    assert await side.far.next_of(FrameType.DATA) == data(EVENT)


async def test_a_frame_of_another_channel_ends_the_link(host: Host) -> None:
    side = await host.source()
    side.far.send(Frame(FrameType.ACK, 2, 0, bytes(12)))
    await side.far.ended()
    assert "another channel" in side.carrier.trouble
    assert not side.carrier.ended.is_set()


async def test_a_link_that_comes_after_the_end_is_ended_too(host: Host) -> None:
    side = await host.source()
    side.far.send(reset(1, "the disk is full"))
    await side.is_over()
    side.relink()
    await side.far.ended()


# The end in good order.


async def test_each_direction_ends_by_itself_and_then_the_channel_is_over(host: Host) -> None:
    closed: list[str] = []
    host.traffic.on_close = closed.append
    side = await host.source()
    await side.local.send(b"call")
    side.local.sock.shutdown(socket.SHUT_WR)
    assert await side.far.next() == data(b"call")
    assert await side.far.next() == fin(b"call")
    side.far.send(ack(5), data(b"reply"))
    assert await side.local.receive(5) == b"reply"
    side.far.send(fin(b"reply"))
    assert await side.local.is_closed()
    assert closed == ["ram"]
    assert await side.far.next_of(FrameType.CLOSE)
    # Nobody has answered, so the other end may wait.
    assert await side.far.next_of(FrameType.OPEN)
    assert await side.far.next_of(FrameType.CLOSE)
    assert not side.carrier.over.is_set()
    side.far.send(Frame(FrameType.CLOSE, 1))
    await side.is_over()
    assert host.traffic.failure is None


async def test_the_end_that_was_called_answers_what_is_repeated_until_it_hears_close(host: Host) -> None:
    side = await host.destination()
    side.local.sock.shutdown(socket.SHUT_WR)
    side.far.send(data(b"call"), fin(b"call"))
    assert await side.local.receive(5) == b"call"
    assert await side.far.next_of(FrameType.FIN) == fin(b"")
    side.far.send(ack(1))
    await until(side.carrier.over.is_set)
    side.far.send(fin(b"call"))
    assert (await side.far.next_of(FrameType.ACK)).position == 5
    assert side.far.link.closed_because is None
    side.far.send(Frame(FrameType.CLOSE, 1))
    assert await side.far.next_of(FrameType.CLOSE)
    await side.is_over()


async def test_libvirtd_at_the_destination_that_closes_first_ends_the_stream_and_is_noted(host: Host) -> None:
    side = await host.destination("rpc")
    side.local.sock.shutdown(socket.SHUT_WR)
    assert await side.far.next_of(FrameType.FIN) == fin(b"")
    assert host.traffic.closed_here == {"rpc"}
    side.far.send(ack(1), fin(b""))
    assert await side.local.is_closed()
    assert side.carrier.ended.is_set()


async def test_a_far_end_that_closes_first_is_not_noted_as_closed_here(host: Host) -> None:
    side = await host.destination("rpc")
    side.far.send(fin(b""))
    assert await side.local.is_closed()
    side.local.close()
    await side.far.next_of(FrameType.FIN)
    assert host.traffic.closed_here == set()


async def test_closing_the_agent_resets_what_is_open_and_leaves_nothing(host: Host) -> None:
    side = await host.source()
    side.carrier.close()
    assert "was closed" in reason_of(await side.far.next_of(FrameType.RESET))
    assert await side.local.is_closed()
    await side.far.ended()


# Channels that are lost.


async def test_a_reset_closes_the_socket_and_its_reason_is_kept(host: Host) -> None:
    side = await host.source()
    side.far.send(reset(1, "the disk is full"))
    assert await side.local.is_closed()
    assert host.traffic.failure == "the disk is full"
    await side.is_over()


@pytest.mark.parametrize("kind", ["ram", "disk"])
async def test_a_defect_where_bytes_are_read_ends_the_channel_and_both_ends_are_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    side = await host.source(kind)
    monkeypatch.setattr(Hinter, "hold", None)
    await side.local.send(b"bytes")
    told = await side.far.next_of(FrameType.RESET)
    assert "a defect of the agent ended" in (reason_of(told) or "")
    await side.is_over()
    assert "TypeError" in (host.traffic.failure or "")


async def test_the_first_reason_is_the_cause(host: Host) -> None:
    first, second = await host.source("disk"), await host.source("rpc")
    first.far.send(reset(1, "the disk is full"))
    assert await first.local.is_closed()
    second.far.send(reset(1, "the migration was stopped"))
    assert await second.local.is_closed()
    assert host.traffic.failure == "the disk is full"


async def test_a_lost_channel_says_so_at_once_and_keeps_its_socket_for_a_moment(host: Host) -> None:
    lost = asyncio.Event()
    host.traffic.on_lost = lost.set
    side = await host.source("disk")
    side.far.send(reset(1, "the WAN is down"))
    async with asyncio.timeout(SECONDS):
        await lost.wait()
    assert side.local.has_nothing()
    assert await side.local.is_closed()


async def test_libvirtd_is_not_left_with_half_a_message_when_its_channel_is_lost(host: Host) -> None:
    host.traffic.on_lost = lambda: None
    side = await host.source("rpc")
    long = message(1, MessageType.REPLY, 1, payload=bytes(1 << 20))
    for at in range(0, len(long), 1 << 16):
        side.far.send(data(long[at : at + (1 << 16)], at))
    await until(lambda: side.carrier._is_writing)
    side.far.send(reset(1, "the WAN is down"))
    assert await side.local.receive(len(long)) == long


async def test_qemu_is_given_nothing_more_when_its_channel_is_lost(host: Host) -> None:
    host.traffic.on_lost = lambda: None
    side = await host.destination("disk")
    sectors = bytes(1 << 20)
    for at in range(0, len(sectors), 1 << 16):
        side.far.send(data(sectors[at : at + (1 << 16)], at))
    await until(lambda: side.carrier._is_writing)
    side.far.send(reset(1, "the WAN is down"))
    await until(lambda: host.traffic.failure is not None)
    assert len(await side.local.receive(len(sectors))) < len(sectors)


async def test_bytes_that_are_altered_end_the_channel_at_both_ends_with_their_range(host: Host) -> None:
    side = await host.destination("disk")
    side.far.send(data(b"sector"), Frame(FrameType.FIN, 1, 6, bytes(32)))
    answer = await side.far.next_of(FrameType.RESET)
    says = "bytes 0 to 6 of the disk channel to host far arrived altered: somebody on the way changed them"
    assert reason_of(answer) == host.traffic.failure == says


async def test_a_frame_that_breaks_the_rules_resets_the_channel(host: Host) -> None:
    side = await host.source()
    side.far.send(data(b"far away", 2 * CEILING))
    assert "more bytes arrived than a channel may have under way" in reason_of(await side.far.next_of(FrameType.RESET))
    assert await side.local.is_closed()


async def test_calls_that_cannot_be_followed_end_the_channel_at_both_ends(host: Host) -> None:
    side = await host.source("rpc")
    await side.local.send(bytes(28))
    answer = await side.far.next_of(FrameType.RESET)
    assert "none of libvirt's" in reason_of(answer)
    assert host.traffic.failure == reason_of(answer)


async def test_a_program_that_goes_away_with_bytes_on_the_way_resets_the_channel(host: Host) -> None:
    side = await host.destination("disk")
    side.local.close()
    assert (await side.far.next_of(FrameType.FIN)).position == 0
    side.far.send(data(b"too late"))
    assert "the disk socket of the other host was closed" in reason_of(await side.far.next_of(FrameType.RESET))
    assert host.traffic.closed_here == {"disk"}


async def test_a_qemu_that_ends_with_writes_under_way_has_not_taken_the_disk_in(host: Host) -> None:
    side, position = await host.destination("disk"), 0
    for is_client, what in beginning(STRUCTURED):
        if is_client:
            side.far.send(data(what, position))
            position += len(what)
            assert await side.local.receive(len(what)) == what
        else:
            await side.local.send(what)
            await side.far.next_of(FrameType.DATA)
    write = request(STRUCTURED, WRITE, 1, 0, 4096, bytes(4096))
    side.far.send(data(write + request(STRUCTURED, DISCONNECT, 2, 0, 0), position))
    assert await side.local.receive(len(write)) == write
    assert side.carrier.pages is not None
    assert side.carrier.pages.is_held
    side.local.close()
    assert "the disk socket of the other host was closed" in reason_of(await side.far.next_of(FrameType.RESET))
    assert host.traffic.closed_here == {"disk"}
    assert host.traffic.is_whole() is False


async def test_a_channel_that_is_reset_before_its_socket_is_connected_closes_it_then(host: Host) -> None:
    side = host.side("rpc", opens=False)
    side.far.send(reset(1, "never mind"))
    await until(side.carrier.ended.is_set)
    side.connect()
    assert await side.local.is_closed()


async def test_of_a_channel_that_was_given_up_no_bytes_are_kept_by_whoever_remembers_it(host: Host) -> None:
    side = await host.source()
    await side.local.send(bytes(1 << 17))
    await side.far.data(1 << 17)
    side.far.send(data(b"behind a gap", 100), reset(1, "over"))
    await until(side.carrier.over.is_set)
    assert not side.carrier.channel.outgoing._segments
    assert not side.carrier.channel.incoming._waiting


# Patience.


async def test_a_channel_that_nobody_accepts_is_given_up_with_what_is_known_of_the_way(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ACCEPT_TIMEOUT", 0.1)
    side = host.side("ram", opens=True)
    side.connect()
    side.far.send(Frame(FrameType.UNKNOWN, 1, 0, b"host far does not answer"))
    answer = await side.far.next_of(FrameType.RESET)
    assert reason_of(answer).startswith("the ram channel to host far was not accepted within")
    assert reason_of(answer).endswith(": host far does not answer")
    assert await side.local.is_closed()


async def test_one_that_was_accepted_has_the_outage_limit_even_if_it_has_carried_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ACCEPT_TIMEOUT", 0.02)
    side = await host.source()
    side.far.link.abort("the gateway was killed")
    await until(lambda: side.carrier.link is None)
    side.relink()
    for _ in range(2):  # half a second apart
        await side.far.next_of(FrameType.OPEN)
    assert host.traffic.failure is None


async def test_one_that_opens_while_the_line_is_down_has_the_outage_limit_once_another_was_accepted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ACCEPT_TIMEOUT", 0.02)
    await host.source("rpc")
    side = host.side("ram", opens=True)
    side.connect()
    for _ in range(2):
        side.far.link.abort("the gateway was killed")
        await until(lambda: side.carrier.link is None)
        side.relink()
        assert (await side.far.next_of(FrameType.OPEN)).payload == OPENING
        await asyncio.sleep(0.1)
    assert host.traffic.failure is None


async def test_and_is_given_up_when_that_is_over(host: Host) -> None:
    host.traffic.outage_limit = 0.5
    rpc = await host.source("rpc")
    side = host.side("ram", opens=True)
    side.connect()
    while not side.carrier.ended.is_set():
        rpc.far.send(ack(0))
        await asyncio.sleep(0.1)
    says = host.traffic.failure or ""
    assert says.startswith("nothing was heard on the ram channel to host far for")


@pytest.mark.parametrize("opens", [True, False])
async def test_a_channel_of_which_nothing_is_heard_is_given_up_when_the_outage_limit_is_over(
    host: Host, opens: bool
) -> None:
    host.traffic.outage_limit = 0.1
    side = await (host.source() if opens else host.destination())
    side.far.link.abort("the WAN is down")
    assert await side.local.is_closed()
    says = host.traffic.failure or ""
    assert says.startswith("nothing was heard on the ram channel to host far for 0 s (")
    await side.is_over()


async def test_a_channel_of_which_something_is_heard_is_not(host: Host) -> None:
    host.traffic.outage_limit = 0.1
    side = await host.source()
    for _ in range(30):
        side.far.send(ack(0))
        await asyncio.sleep(0.01)
    assert host.traffic.failure is None


async def test_silence_is_told_when_it_is_long_and_only_while_a_channel_waits(host: Host) -> None:
    side = await host.source()
    heard_at = side.carrier.channel.heard_at
    assert host.traffic.silent(heard_at + 1.0) is None
    assert host.traffic.silent(heard_at + 7.0) == 7.0
    side.far.send(reset(1, "over"))
    await until(side.carrier.over.is_set)
    assert host.traffic.silent(heard_at + 7.0) is None


# Messages of libvirt, and the gate.


async def test_whoever_watches_is_told_of_each_message_in_either_direction(host: Host) -> None:
    wrote: list[int] = []
    got: list[int] = []
    host.traffic.on_message_from_libvirtd = lambda each: wrote.append(each.procedure)
    host.traffic.on_message_to_libvirtd = lambda each: got.append(each.procedure)
    side = await host.source("rpc")
    await side.local.send(PREPARE + PING)
    side.far.send(data(EVENT + EVENT[:5]))
    assert len(await side.local.receive(len(PONG + EVENT))) == len(PONG + EVENT)
    await until(lambda: len(got) == 2)
    assert wrote == [Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS]
    assert sorted(got) == [Keepalive.PONG, 400]


async def test_more_messages_than_may_wait_for_libvirtd_hold_the_other_agent_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MOST_WAITING", 1 << 20)
    side = await host.source("rpc")
    each = message(1, MessageType.REPLY, 1, payload=bytes((1 << 16) - 28))
    stream = each * 64
    for at in range(0, len(stream), len(each)):
        side.far.send(data(each, at))
    await until(lambda: side.carrier.channel.incoming.received == len(stream))
    assert side.carrier.channel.incoming.delivered < 3 << 20
    assert await side.local.receive(len(stream)) == stream
    await until(lambda: side.carrier.channel.incoming.delivered == len(stream))


class Gated:
    """A destination to which memory, a disk and libvirt's calls come."""

    def __init__(self, rpc: Side, ram: Side, disk: Side) -> None:
        self.rpc, self.ram, self.disk = rpc, ram, disk

    @classmethod
    async def on(cls, host: Host) -> Gated:
        made = cls(await host.destination("rpc"), await host.destination("ram"), await host.destination("disk"))
        made.rpc.far.send(data(CALL))
        await until(lambda: made.rpc.carrier.channel.incoming.received == len(CALL))
        await settled()
        assert made.rpc.local.has_nothing()
        return made


async def test_the_guest_arrives_only_when_memory_and_disks_have_arrived_and_are_written(host: Host) -> None:
    gated = await Gated.on(host)
    gated.ram.far.send(data(b"pages"), fin(b"pages"))
    assert await gated.ram.local.receive(6) == b"pages"
    await settled()
    assert gated.rpc.local.has_nothing()
    sectors = bytes(1 << 20)
    for at in range(0, len(sectors), 1 << 16):
        gated.disk.far.send(data(sectors[at : at + (1 << 16)], at))
    gated.disk.far.send(fin(sectors))
    await until(lambda: gated.disk.carrier.channel.incoming.is_ended)
    await settled()
    assert gated.rpc.local.has_nothing()  # QEMU has not taken them
    assert await gated.disk.local.receive(len(sectors)) == sectors
    assert await gated.rpc.local.receive(len(CALL)) == CALL


async def test_a_call_that_comes_after_everything_has_arrived_is_not_held(host: Host) -> None:
    rpc, ram = await host.destination("rpc"), await host.destination("ram")
    ram.far.send(data(b"pages"), fin(b"pages"))
    assert await ram.local.receive(6) == b"pages"
    rpc.far.send(data(CALL))
    assert await rpc.local.receive(len(CALL)) == CALL


async def test_a_stream_that_arrived_altered_cancels_the_call(host: Host) -> None:
    gated = await Gated.on(host)
    gated.ram.far.send(data(b"pages"), fin(b"pages"))
    gated.disk.far.send(data(b"sector"), Frame(FrameType.FIN, 1, 6, bytes(32)))
    assert await gated.rpc.local.receive(len(CALL)) == CANCELLING_CALL
    assert "arrived altered" in (host.traffic.failure or "")


async def test_a_stream_that_is_lost_cancels_the_call(host: Host) -> None:
    gated = await Gated.on(host)
    gated.disk.far.send(reset(1, "the disk socket of the other host was closed"))
    assert await gated.rpc.local.receive(len(CALL)) == CANCELLING_CALL


async def test_a_qemu_that_goes_away_cancels_the_call(host: Host) -> None:
    gated = await Gated.on(host)
    gated.ram.local.close()
    gated.ram.far.send(data(b"pages"))
    assert await gated.rpc.local.receive(len(CALL)) == CANCELLING_CALL


async def test_the_guest_arrives_only_when_qemu_has_taken_its_memory_in(host: Host) -> None:
    gated = await Gated.on(host)
    await gated.ram.local.send(ANSWERED)
    for side in (gated.ram, gated.disk):
        side.far.send(fin(b""))
    await until(lambda: gated.ram.carrier.channel.incoming.has_all_been_delivered)
    await settled()
    assert gated.rpc.local.has_nothing()
    await gated.ram.local.send(SHUT)
    assert await gated.rpc.local.receive(len(CALL)) == CALL


@pytest.mark.parametrize("last", [b"", SHUT[:-1], answer(1, b"\0\0\0\1")], ids=["nothing", "half of it", "no"])
async def test_a_qemu_that_does_not_take_its_memory_in_cancels_the_call_and_is_noted(host: Host, last: bytes) -> None:
    gated = await Gated.on(host)
    await gated.ram.local.send(ANSWERED)
    for side in (gated.ram, gated.disk):
        side.far.send(fin(b""))
    await until(lambda: gated.ram.carrier.channel.incoming.has_all_been_delivered)
    await gated.ram.local.send(last)
    gated.ram.local.close()
    assert await gated.rpc.local.receive(len(CALL)) == CANCELLING_CALL
    await until(gated.ram.carrier.ended.is_set)
    assert host.traffic.closed_here == {"ram"}


async def test_a_source_that_has_said_all_is_answered_while_the_other_end_still_takes_it_in(host: Host) -> None:
    side = await host.source()
    side.far.send(data(ANSWERED))
    assert await side.local.receive(len(ANSWERED)) == ANSWERED
    stream = load("qemu", "plain")
    await side.local.send(stream)
    assert await side.local.receive(len(SHUT)) == SHUT
    side.local.sock.shutdown(socket.SHUT_WR)
    side.far.send(data(SHUT, len(ANSWERED)), fin(ANSWERED + SHUT))
    assert await side.local.is_closed()
    await until(lambda: side.carrier.channel.incoming.has_all_been_delivered)


async def test_without_a_stream_of_memory_nothing_has_arrived_and_the_call_is_cancelled(host: Host) -> None:
    rpc = await host.destination("rpc")
    rpc.far.send(data(CALL))
    assert await rpc.local.receive(len(CALL)) == CANCELLING_CALL


async def test_a_call_that_is_held_is_given_before_the_end_of_its_stream(host: Host) -> None:
    gated = await Gated.on(host)
    gated.rpc.far.send(Frame(FrameType.FIN, 1, len(CALL), blake3(CALL).digest()))
    await settled()
    assert gated.rpc.local.has_nothing()
    for side in (gated.ram, gated.disk):
        side.far.send(fin(b""))
    assert await gated.rpc.local.receive(len(CALL)) == CALL
    assert await gated.rpc.local.is_closed()


async def test_a_libvirtd_that_has_gone_is_given_nothing_when_the_gate_opens(host: Host) -> None:
    gated = await Gated.on(host)
    gated.rpc.local.close()
    for side in (gated.ram, gated.disk):
        side.far.send(fin(b""))
    await until(gated.rpc.carrier.ended.is_set)
