"""Two tunnels' ends with a page log in common: what is put in at one end comes out at the other, in order, and costs less each time."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest

from gateway.stream.blob import MOST_TOGETHER
from gateway.stream.dedup import History
from gateway.stream.page_log import PageLog
from gateway.stream.tally import Tally
from gateway.tunnel.codec import (
    MOST_ACKNOWLEDGED,
    MOST_HEARD,
    MOST_RANGES,
    MOST_STATES,
    Codec,
    Subject,
    _Coder,
)
from gateway.tunnel.tunnel import LEAST_CODING, Cargo, Tunnel, _most_coding
from landbridge import hints
from landbridge.errors import ProtocolError
from landbridge.frame import Frame, FrameType
from landbridge.hints import PAGE, Kind, Run
from landbridge.link import Link
from tests.unit.wires import Plain, no_exceptions, settled, sockets, until

WEB = Subject(1, 1)
RANDOM = random.Random(7)
PAGES = [RANDOM.randbytes(PAGE) for _ in range(16)]
BOOT = bytes(16)


def hinted(pages: list[bytes], first: int = 0, position: int = 0, channel: int = 1) -> Frame:
    """Blocks of a disk, beginning with block `first`."""
    section = hints.encode([Run(0, len(pages), Kind.PLAIN, hints.space(b"disk") | first)])
    return Frame(FrameType.DATA, channel, position, b"".join(pages), section)


class Gateway:
    """One end: a codec, a tunnel, and what came out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.came: list[Frame] = []
        self.wire_sizes: list[int] = []
        self.released: list[int] = []
        self.tally = Tally()
        self.codec = Codec("the other gateway", self.open)
        self.tunnel = Tunnel("ams", "ams", self, lambda *_: self.codec)

    def open(self) -> History:
        return History(PageLog.open(self.path, 64 << 20, BOOT, RANDOM.randbytes(16)))

    def frame_from_tunnel(self, tunnel: Tunnel, frame: Frame, size: int) -> None:
        self.came.append(Frame(frame.type, frame.channel, frame.position, bytes(frame.payload), bytes(frame.hints)))
        self.wire_sizes.append(size)

    def channels_released(self, channels: list[int]) -> None:
        self.released += channels

    def put(self, *frames: Frame, subject: Subject | None = WEB) -> bool:
        cargo = Cargo("m-1", lambda _: None, subject=subject, on_coded=self._coded)
        return [self.tunnel.put(frame, cargo) for frame in frames][-1]

    def _coded(self, tally: Tally | None, frame: Frame) -> None:
        if tally is not None:
            self.tally += tally.framed(frame.size())

    async def leave(self) -> None:
        self.tunnel.close()
        await self.codec.close()


class Pair:
    """Two gateways, and links between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fra = Gateway(directory / "fra.pages")
        self.ams = Gateway(directory / "ams.pages")

    async def connect(self) -> None:
        here, there = sockets()
        for gateway, sock, peer in ((self.fra, here, "gw-ams"), (self.ams, there, "gw-fra")):
            link = Link(Plain(sock), peer)
            link.peer = peer
            gateway.tunnel.add(link)
        await until(lambda: self.fra.codec.is_met and self.ams.codec.is_met)

    def cut(self) -> None:
        for gateway in (self.fra, self.ams):
            for link in list(gateway.tunnel.links):
                link.abort("the line is cut")

    async def send(self, *frames: Frame, subject: Subject | None = WEB, back: bool = False) -> list[int]:
        """Put frames, have them come out at the other end as they were, without their hints; their sizes on the wire."""
        source, destination = (self.ams, self.fra) if back else (self.fra, self.ams)
        seen = len(destination.came)
        for frame in frames:
            source.put(frame, subject=subject)
        await until(lambda: len(destination.came) == seen + len(frames))
        plain = [Frame(f.type, f.channel, f.position, bytes(f.payload)) for f in frames]
        assert destination.came[seen:] == plain
        await self.acknowledged()
        return destination.wire_sizes[seen:]

    async def acknowledged(self) -> None:
        """Wait until both ends have heard what the other one said so far: both threads have had their turn, twice."""
        for _ in range(2):
            for gateway in (self.fra, self.ams):
                await settled()
                passed = asyncio.Event()
                gateway.codec.pass_on(passed.set)
                await passed.wait()
                await settled()

    async def restart(self, name: str) -> None:
        """One gateway ends in good order and comes back with its file."""
        self.cut()
        former: Gateway = getattr(self, name)
        await former.leave()
        setattr(self, name, Gateway(former.path))
        await self.connect()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    with no_exceptions():
        async with _pair(tmp_path) as made:
            await made.connect()
            yield made


@asynccontextmanager
async def _pair(directory: Path) -> AsyncIterator[Pair]:
    made = Pair(directory)
    try:
        yield made
    finally:
        await made.fra.leave()
        await made.ams.leave()


async def test_what_was_sent_once_is_not_sent_again(pair: Pair) -> None:
    [first] = await pair.send(hinted(PAGES))
    assert first > 16 * PAGE
    [again] = await pair.send(hinted(PAGES, first=100))
    assert again < 200


async def test_a_page_that_has_changed_a_little_costs_little(pair: Pair) -> None:
    await pair.send(hinted(PAGES))
    changed = [page[:100] + b"word" + page[104:] for page in PAGES]
    [size] = await pair.send(hinted(changed))
    assert size < 16 * 40
    assert pair.fra.tally.stream.delta == 16 * PAGE


async def test_the_way_back_begins_with_what_the_way_out_has_brought(pair: Pair) -> None:
    await pair.send(hinted(PAGES))
    [back] = await pair.send(hinted(PAGES), back=True)
    assert back < 200


async def test_pages_of_another_domain_are_not_looked_at(pair: Pair) -> None:
    await pair.send(hinted(PAGES), subject=Subject(1, 1))
    [stranger] = await pair.send(hinted(PAGES), subject=Subject(2, 2))
    assert stranger > 16 * PAGE
    [sibling] = await pair.send(hinted(PAGES), subject=Subject(3, 1))
    assert sibling < 200


async def test_a_channel_without_a_subject_and_types_that_are_never_coded_go_as_they_are(pair: Pair) -> None:
    zeros = Frame(FrameType.DATA, 1, 0, bytes(10 * PAGE))
    assert await pair.send(zeros, subject=None) == [zeros.size()]
    assert await pair.send(Frame(FrameType.FIN, 1, 7, bytes(32))) == [24 + 32]


async def test_what_follows_a_frame_that_is_being_coded_stays_behind_it(pair: Pair) -> None:
    frames = [
        hinted(PAGES[:8], position=0),
        Frame(FrameType.PROBE, 1, 1),
        Frame(FrameType.DATA_CHECKED, 1, 8 * PAGE, bytes(5 * PAGE) + bytes(range(32))),
        Frame(FrameType.FIN, 1, 13 * PAGE, bytes(32)),
    ]
    await pair.send(*frames)


async def test_a_sender_with_enough_at_the_codec_is_held_back_and_released(pair: Pair) -> None:
    held = [pair.fra.put(hinted(PAGES, position=n * 16 * PAGE)) for n in range(LEAST_CODING)]
    assert held == [False] * (LEAST_CODING - 1) + [True]
    await until(lambda: pair.fra.released == [1])
    await until(lambda: len(pair.ams.came) == LEAST_CODING)


async def test_quick_links_let_more_frames_of_a_channel_wait_for_the_codec_than_slow_ones() -> None:
    most = [_most_coding(rate) for rate in (0.0, 12e6, 60e6, 100e6, 1e12, inf)]
    assert most[:2] == [LEAST_CODING] * 2
    assert most == sorted(most)
    assert most[2] < most[3] < most[4] == most[5] == 2 * MOST_TOGETHER


async def test_where_much_passes_the_codec_more_frames_of_a_channel_may_wait_for_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = pair.fra.tunnel._level
    monkeypatch.setattr(level, "decide", lambda *_, **__: 1)
    level.through = 60e6
    most = _most_coding(60e6)
    held = [pair.fra.put(hinted(PAGES, position=n * 16 * PAGE)) for n in range(most)]
    assert most > LEAST_CODING
    assert held == [False] * (most - 1) + [True]
    await until(lambda: len(pair.ams.came) == most)


async def test_frames_that_wait_for_the_codec_are_encoded_together_if_they_are_alike(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, together = _Coder.encode, list[int]()

    def counted(coder: _Coder, frames: list[Frame], *args: Any) -> Any:
        together.append(len(frames))
        return encode(coder, frames, *args)

    monkeypatch.setattr(_Coder, "encode", counted)
    came: list[int] = []
    given = [(WEB, 2)] * (MOST_TOGETHER + 2) + [(WEB, 1), (Subject(2, 1), 1), (Subject(2, 1), 1)]
    with _busy(pair.fra.codec):
        for number, (subject, level) in enumerate(given):
            frame = hinted(PAGES[:2], position=number)
            pair.fra.codec.encode(frame, subject, level, lambda coded, *_: came.append(coded.position))
        pair.fra.codec.pass_on(lambda: came.append(-1))
        pair.fra.codec.encode(hinted(PAGES), WEB, 1, lambda coded, *_: came.append(coded.position))
    await until(lambda: len(came) == len(given) + 2)
    assert came == [*range(len(given)), -1, 0]
    assert together == [MOST_TOGETHER, 2, 1, 2, 1]


async def test_frames_that_cannot_be_encoded_go_as_they_are_in_order(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(_Coder, "encode", broken)
    with _busy(pair.fra.codec):
        frames = [hinted(PAGES[:3], position=number * 3 * PAGE) for number in range(3)]
        for frame in frames:
            pair.fra.put(frame)
    await until(lambda: len(pair.ams.came) == 3)
    assert [frame.position for frame in pair.ams.came] == [frame.position for frame in frames]
    assert {frame.type for frame in pair.ams.came} == {FrameType.DATA}
    monkeypatch.undo()
    await pair.send(hinted(PAGES))


async def _coded(codec: Codec, *frames: Frame) -> list[Frame]:
    """What the codec makes of frames, without their being sent."""
    coded = list[Frame]()
    for frame in frames:
        codec.encode(frame, WEB, 1, lambda result, *_: coded.append(result))
    await until(lambda: len(coded) == len(frames))
    return coded


async def test_coded_frames_that_wait_are_decoded_together_in_order(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, together = _Coder.decode, list[int]()

    def counted(coder: _Coder, frames: list[Frame]) -> list[Frame | None]:
        together.append(len(frames))
        return decode(coder, frames)

    monkeypatch.setattr(_Coder, "decode", counted)
    frames = [hinted(PAGES[n : n + 2], position=n * PAGE) for n in range(MOST_TOGETHER + 3)]
    coded = await _coded(pair.fra.codec, *frames)
    came = list[int]()
    with _busy(pair.ams.codec):
        for frame in coded[:-1]:
            pair.ams.codec.decode(frame, lambda result: came.append(result.position if result else -1))
        pair.ams.codec.pass_on(lambda: came.append(-2))
        pair.ams.codec.decode(coded[-1], lambda result: came.append(result.position if result else -1))
    await until(lambda: len(came) == len(frames) + 1)
    assert came == [*(frame.position for frame in frames[:-1]), -2, frames[-1].position]
    assert together == [MOST_TOGETHER, 2, 1]


async def test_one_that_cannot_be_decoded_takes_none_of_those_before_it_along(pair: Pair) -> None:
    frames = [hinted(PAGES[n : n + 2], position=n * PAGE) for n in range(4)]
    coded = await _coded(pair.fra.codec, *frames)
    broken = bytearray(coded[2].payload)
    broken[-1] ^= 1
    coded[2] = Frame(FrameType.CODED, 1, coded[2].position, bytes(broken))
    came = list[Frame | None]()
    with _busy(pair.ams.codec):
        for frame in coded:
            pair.ams.codec.decode(frame, came.append)
    await until(lambda: len(came) == len(frames))
    # Those behind it were of a log that both ends have begun anew by then.
    assert [each and bytes(each.payload) for each in came] == [*(bytes(f.payload) for f in frames[:2]), None, None]
    assert pair.ams.codec.undecoded == 2
    await pair.acknowledged()
    await pair.send(hinted(PAGES))


async def test_frames_that_no_memory_is_left_to_decode_are_lost_and_the_codec_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = await _coded(pair.fra.codec, *(hinted(PAGES[n : n + 2], position=n * PAGE) for n in range(3)))
    came = list[Frame | None]()

    def broken(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(_Coder, "decode", broken)
        for frame in coded:
            pair.ams.codec.decode(frame, came.append)
        await until(lambda: len(came) == len(coded))
    assert came == [None] * len(coded)
    assert pair.ams.codec.undecoded == len(coded)
    await pair.send(hinted(PAGES))


async def test_frames_of_an_older_log_among_others_are_lost_alone(pair: Pair) -> None:
    [old] = await _coded(pair.fra.codec, hinted(PAGES[:2]))
    await pair.restart("ams")
    pair.ams.codec.received(Frame(FrameType.LOG_FORGET, 0, 0, b"as a test wants it"))
    await pair.acknowledged()
    new = await _coded(pair.fra.codec, hinted(PAGES[2:4]), hinted(PAGES[4:6]))
    came = list[Frame | None]()
    with _busy(pair.ams.codec):
        for frame in (new[0], old, new[1]):
            pair.ams.codec.decode(frame, came.append)
    await until(lambda: len(came) == 3)
    assert [each and bytes(each.payload) for each in came] == [b"".join(PAGES[2:4]), None, b"".join(PAGES[4:6])]


async def test_a_channel_that_is_dropped_leaves_nothing_behind(pair: Pair) -> None:
    while not pair.fra.put(hinted(PAGES)):
        pass
    pair.fra.tunnel.drop(1)
    assert pair.fra.released == [1]
    await pair.acknowledged()
    assert pair.ams.came == []
    await pair.send(hinted(PAGES, channel=2))


@pytest.mark.parametrize("name", ["fra", "ams"])
async def test_the_log_outlives_a_restart(pair: Pair, name: str) -> None:
    await pair.send(hinted(PAGES))
    await pair.restart(name)
    [again] = await pair.send(hinted(PAGES, first=100))
    assert again < 200


@pytest.mark.parametrize("name", ["fra", "ams"])
async def test_a_log_that_one_end_has_lost_is_begun_anew(pair: Pair, name: str) -> None:
    await pair.send(hinted(PAGES))
    getattr(pair, name).path.unlink()
    await pair.restart(name)
    [size] = await pair.send(hinted(PAGES))
    assert size > 16 * PAGE
    [again] = await pair.send(hinted(PAGES))
    assert again < 200


async def test_frames_that_were_lost_are_not_referred_to(pair: Pair) -> None:
    pair.ams.tunnel.links[0].pause()
    pair.fra.put(hinted(PAGES))
    passed = asyncio.Event()
    pair.fra.codec.pass_on(passed.set)
    await passed.wait()
    pair.cut()
    await pair.connect()
    [size] = await pair.send(hinted(PAGES))
    assert size > 16 * PAGE
    assert pair.ams.codec.undecoded == 0


def _write(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


async def test_a_log_whose_bytes_have_changed_on_the_disk_costs_its_contents_and_one_frame(pair: Pair) -> None:
    await pair.send(hinted(PAGES))
    first = pair.ams.path.read_bytes().index(PAGES[0])
    for number in range(len(PAGES)):
        _write(pair.ams.path, first + number * PAGE, b"rotten")
    changed = [page[:100] + b"word" + page[104:] for page in PAGES]
    pair.fra.put(hinted(changed))
    await until(lambda: pair.ams.codec.undecoded == 1)
    await pair.acknowledged()
    assert pair.ams.came[1:] == []
    # It is sent again by the agent, like any frame that was lost; this time it comes whole.
    await pair.send(hinted(changed))
    [again] = await pair.send(hinted(changed))
    assert again < 200


@pytest.mark.parametrize("payload", [b"", b"12345678", b"12345678\x05", b"12345678\x03nothing", bytes(9) + b"x" * 100])
async def test_a_coded_frame_that_is_none_is_dropped(pair: Pair, payload: bytes) -> None:
    pair.fra.tunnel.say(Frame(FrameType.CODED, 1, 0, payload))
    await until(lambda: pair.ams.codec.undecoded == 1)
    assert pair.ams.came == []
    await pair.acknowledged()
    await pair.send(hinted(PAGES))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.LOG_STATE, 0, 0, b"nothing"),
        Frame(FrameType.LOG_ACK, 0, 0, b"123"),
        Frame(FrameType.LOG_ACK, 0, 0, b"1234" + bytes(15)),
        Frame(FrameType.LOG_ACK, 0, 0, b"1234" + bytes(16)),
        Frame(FrameType.LOG_ACK, 0, 0, b"1234" + struct.pack("!QQ", 1, MOST_ACKNOWLEDGED + 2)),
        Frame(FrameType.LOG_ACK, 0, 0, b"1234" + struct.pack("!QQ", 1, 2) * (MOST_RANGES + 1)),
    ],
)
async def test_what_is_said_of_logs_against_the_rules_ends_the_link(pair: Pair, frame: Frame) -> None:
    pair.fra.tunnel.say(frame)
    await until(lambda: not pair.ams.tunnel.links)


async def test_an_end_that_says_more_of_logs_than_can_be_heard_is_cut_off_and_acknowledgements_are_dropped(
    pair: Pair,
) -> None:
    state, log_ack = _state_of(pair.fra), Frame(FrameType.LOG_ACK, 0, 0, b"1234")
    with _busy(pair.ams.codec):
        for _ in range(10 * MOST_HEARD):
            pair.ams.codec.received(log_ack)
        for _ in range(MOST_STATES):
            pair.ams.codec.received(state)
        for frame in (state, Frame(FrameType.LOG_FORGET, 0, 0, b"again")):
            with pytest.raises(ProtocolError, match="more often than it can be heard"):
                pair.ams.codec.received(frame)
    await pair.acknowledged()
    pair.ams.codec.received(state)
    await pair.send(hinted(PAGES))
    [again] = await pair.send(hinted(PAGES))
    assert again < 200


def _state_of(gateway: Gateway) -> Frame:
    """What a gateway says when it meets another."""
    said: list[Frame] = []
    done = threading.Event()

    def job(coder: _Coder) -> Callable[[], None]:
        said.append(coder.state())
        done.set()
        return lambda: None

    gateway.codec._jobs.put((job, lambda: None))
    assert done.wait(10)
    return said[0]


@contextmanager
def _busy(codec: Codec) -> Iterator[None]:
    """The codec's thread does something else meanwhile."""
    may_go_on = threading.Event()

    def job(_: _Coder) -> Callable[[], None]:
        may_go_on.wait()
        return lambda: None

    codec._jobs.put((job, lambda: None))
    try:
        yield
    finally:
        may_go_on.set()


async def test_without_a_log_at_one_end_nothing_is_coded_and_all_arrives(tmp_path: Path) -> None:
    (tmp_path / "fra.pages").mkdir()
    with no_exceptions():
        async with _pair(tmp_path) as pair:
            here, there = sockets()
            for gateway, sock in ((pair.fra, here), (pair.ams, there)):
                gateway.tunnel.add(Link(Plain(sock), "peer"))
            [size] = await pair.send(hinted([bytes(PAGE)] * 16))
            assert size == 24 + 16 * PAGE


async def test_a_gateway_without_page_logs_ends_a_link_on_which_coded_frames_come() -> None:
    user = Gateway.__new__(Gateway)
    user.came = []
    tunnel = Tunnel("ams", "ams", user)
    here, there = sockets()
    link = Link(Plain(here), "peer")
    tunnel.add(link)
    with pytest.raises(ProtocolError, match="no page log"):
        tunnel.frame_received(link, Frame(FrameType.CODED, 1, 0, b"coded"))
    tunnel.close()
    there.close()


async def test_a_link_to_another_gateway_than_the_others_is_not_taken(pair: Pair) -> None:
    here, there = sockets()
    link = Link(Plain(here), "the gateway of site ams")
    link.peer = "gw-2"
    pair.fra.tunnel.add(link)
    assert link.closed_because == "gateway gw-2 answered, and the other links lead to gateway gw-ams"
    there.close()
