"""A disk's copy between two agents: a client that waits for no round trip, a server that does what is under way in any order."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.disk import LOOK_AHEAD, MOST_UNREAD, DestinationDisk, SourceDisk
from agent.pages import Pages
from agent.stream.nbd_export import SEND_FLUSH
from agent.stream.nbd_writes import FAST_ZERO, MOST_WRITES, MOST_ZEROES
from landbridge.errors import HypervisorError, ProtocolError
from landbridge.frame import RECORD
from landbridge.link import POOL
from landbridge.receiving import Data
from tests.unit.channels import carry, pair
from tests.unit.nbd_made import (
    DISCONNECT,
    EXTENDED,
    READ,
    SIMPLE,
    STRUCTURED,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    beginning,
    chunk,
    data_chunk,
    reply,
    request,
)
from tests.unit.nbd_reading import joined
from tests.unit.test_nbd_export import FLAGS, edited
from tests.unit.test_nbd_export import said as haggled
from tests.vectors.nbd_sessions import load

MODES = (STRUCTURED, EXTENDED)
FLUSH = 3
HEAD = {SIMPLE: struct.Struct("!IHHQQI"), STRUCTURED: struct.Struct("!IHHQQI"), EXTENDED: struct.Struct("!IHHQQQ")}
BLOCK = 4096


class Hosts:
    """Both agents' ends of a disk channel; the test is QEMU at either."""

    def __init__(self, mode: int = STRUCTURED) -> None:
        self.mode = mode
        self._out, self._into = pair()
        self.source, self.destination = SourceDisk(self._out), DestinationDisk(self._into)
        # What each QEMU was given and has not read yet.
        self.for_client = self.for_server = b""
        self.client_reads = True
        self._now = 0.0

    def haggle(self, flags: int = 1 | SEND_FLUSH) -> Hosts:
        """Agree on the mode, with such an export."""
        for is_client, data in beginning(self.mode):
            # The flags of the export that nbd_made gives: HAS_FLAGS.
            said = data.replace(struct.pack("!QH", 1 << 30, 1), struct.pack("!QH", 1 << 30, flags))
            (self.client_says if is_client else self.server_says)(said)
        self.for_client = self.for_server = b""
        return self

    def client_says(self, said: bytes) -> None:
        """QEMU at the source writes to its socket."""
        self._says(self.source, said)

    def server_says(self, said: bytes) -> None:
        """QEMU at the destination does."""
        self._says(self.destination, said)

    def _says(self, pages: Pages, said: bytes) -> None:
        for at in range(0, len(said), RECORD):
            piece = pages.tail + said[at : at + RECORD]
            room = POOL.take(4 * RECORD)
            room[: len(piece)] = piece
            try:
                pages.from_local(room, len(piece), self._now)
            finally:
                self.pass_on()

    def pass_on(self) -> None:
        """Carry what either end has for the other, and give each QEMU what it may have."""
        self._now += 1.0
        self.source.send_tail(self._now)
        self.destination.send_tail(self._now)
        for _ in range(2):
            for event in carry(self._out, self._into, self._now):
                assert isinstance(event, Data)
                self.destination.from_channel(event.data, self._now)
            for event in carry(self._into, self._out, self._now):
                assert isinstance(event, Data)
                self.source.from_channel(event.data, self._now)
            self.for_server += self._taken(self.destination)
            if self.client_reads:
                self.for_client += self._taken(self.source)

    @staticmethod
    def _taken(pages: Pages) -> bytes:
        taken = b""
        while (data := pages.next_for_local()) is not None:
            assert len(data)
            taken += data
            pages.written(len(data))
        return taken

    def read_client(self) -> bytes:
        """What QEMU at the source has been given since the last time."""
        said, self.for_client = self.for_client, b""
        return said

    def read_server(self) -> bytes:
        """The same at the destination."""
        said, self.for_server = self.for_server, b""
        return said


def answer(mode: int, cookie: int, offset: int = 0) -> bytes:
    """As the source's QEMU is answered to a write."""
    if mode == EXTENDED:
        return struct.pack("!IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0)
    return reply(cookie)


def done(mode: int, cookie: int) -> bytes:
    """As the destination's QEMU answers a request that was well and has no data."""
    return chunk(mode, 0, cookie, is_last=True) if mode == EXTENDED else reply(cookie)


def failed(mode: int, cookie: int, error: int) -> bytes:
    """As it answers one that was not."""
    return chunk(mode, 0x8001, cookie, struct.pack("!IH", error, 3) + b"bad", is_last=True)


def write(mode: int, cookie: int, block: int, blocks: int = 1) -> bytes:
    return request(mode, WRITE, cookie, block * BLOCK, blocks * BLOCK, bytes([cookie % 255 + 1]) * blocks * BLOCK)


@pytest.fixture(params=MODES, ids=("structured", "extended"))
def hosts(request: pytest.FixtureRequest) -> Hosts:
    return Hosts(request.param).haggle()


# The source.


def test_a_write_is_answered_as_soon_as_all_of_it_has_come(hosts: Hosts) -> None:
    said = write(hosts.mode, 7, 3)
    hosts.client_says(said[:-1])
    assert hosts.read_client() == b""
    hosts.client_says(said[-1:])
    assert hosts.read_client() == answer(hosts.mode, 7, 3 * BLOCK)
    assert hosts.read_server() == said


def test_zeroes_and_holes_are_answered_too(hosts: Hosts) -> None:
    for cookie, command in ((1, WRITE_ZEROES), (2, TRIM)):
        hosts.client_says(request(hosts.mode, command, cookie, cookie * BLOCK, BLOCK))
        assert hosts.read_client() == answer(hosts.mode, cookie, cookie * BLOCK)


@pytest.mark.parametrize("command", [WRITE_ZEROES, TRIM])
def test_more_zeroes_than_are_soon_written_are_waited_for(hosts: Hosts, command: int) -> None:
    little, much = (request(hosts.mode, command, 1, 0, length) for length in (MOST_ZEROES, MOST_ZEROES + BLOCK))
    hosts.client_says(little)
    assert hosts.read_client() == answer(hosts.mode, 1)
    hosts.client_says(much)
    assert (hosts.read_client(), hosts.read_server()) == (b"", little)
    hosts.server_says(done(hosts.mode, 1))
    assert (hosts.read_client(), hosts.read_server()) == (b"", much)
    hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_client() == done(hosts.mode, 1)


def test_whoever_asks_for_zeroes_only_if_they_are_cheap_waits_for_the_answer(hosts: Hosts) -> None:
    asked = bytearray(request(hosts.mode, WRITE_ZEROES, 5, 0, BLOCK))
    asked[5] |= FAST_ZERO
    hosts.client_says(bytes(asked))
    assert (hosts.read_client(), hosts.read_server()) == (b"", bytes(asked))
    hosts.server_says(failed(hosts.mode, 5, 95))
    assert hosts.read_client() == failed(hosts.mode, 5, 95)


def test_what_is_read_and_flushed_is_answered_by_the_server(hosts: Hosts) -> None:
    hosts.client_says(request(hosts.mode, READ, 1, 0, BLOCK) + request(hosts.mode, FLUSH, 2, 0, 0))
    assert hosts.read_client() == b""
    page = bytes(range(256)) * 16
    block, last = data_chunk(hosts.mode, 1, 0, page), chunk(hosts.mode, 0, 1, is_last=True)
    for said in (block, last, done(hosts.mode, 2)):
        hosts.server_says(said)
    assert hosts.read_client() == block + last + done(hosts.mode, 2)


def test_no_answer_is_put_into_one_of_the_servers(hosts: Hosts) -> None:
    hosts.client_says(request(hosts.mode, READ, 1, 0, BLOCK))
    page = bytes(range(256)) * 16
    block = data_chunk(hosts.mode, 1, 0, page)
    hosts.server_says(block[:-9])
    hosts.client_says(write(hosts.mode, 2, 5))
    assert hosts.read_client() == block[:-9]
    hosts.server_says(block[-9:])
    assert hosts.read_client() == block[-9:] + answer(hosts.mode, 2, 5 * BLOCK)


def test_whoever_reads_no_answers_is_not_asked_for_more(hosts: Hosts) -> None:
    hosts.client_reads = False
    asked = 0
    while hosts.source.room > 0:
        hosts.client_says(request(hosts.mode, TRIM, 1, 0, BLOCK))
        asked += 1
    answers = answer(hosts.mode, 1) * asked
    assert MOST_UNREAD <= len(answers) < MOST_UNREAD + 32
    hosts.client_reads = True
    hosts.pass_on()
    assert (hosts.read_client(), hosts.source.room > 0) == (answers, True)


# The destination.


def test_no_more_requests_are_remembered_than_are_read_ahead(hosts: Hosts) -> None:
    hosts.client_says(write(hosts.mode, 1, 0) + request(hosts.mode, TRIM, 1, 0, BLOCK) * 2_000)
    waiting = len(hosts.destination._ordering._waiting)
    assert 100 < waiting < LOOK_AHEAD / HEAD[hosts.mode].size
    for _ in range(2_001):
        hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_server() == write(hosts.mode, 1, 0) + request(hosts.mode, TRIM, 1, 0, BLOCK) * 2_000


def test_the_servers_answers_to_writes_are_for_nobody(hosts: Hosts) -> None:
    hosts.client_says(write(hosts.mode, 1, 0) + write(hosts.mode, 2, 1))
    hosts.read_client()
    both = done(hosts.mode, 2) + done(hosts.mode, 1)
    seen = [hosts.destination.is_awaited]
    for byte in both:
        hosts.server_says(bytes([byte]))
        seen.append(hosts.destination.is_awaited)
    assert seen == [True] * len(both) + [False]
    assert hosts.read_client() == b""


def test_a_write_of_what_is_being_written_waits_and_one_of_anything_else_does_not(hosts: Hosts) -> None:
    first, beside, over, behind = (write(hosts.mode, 1, block) for block in (0, 1, 0, 9))
    hosts.client_says(first + beside + over + behind)
    assert hosts.read_server() == first + beside
    hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_server() == b""
    hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_server() == over + behind


@pytest.mark.parametrize("command", [READ, FLUSH, DISCONNECT])
def test_whatever_does_not_write_waits_for_all_that_does(hosts: Hosts, command: int) -> None:
    asked = request(hosts.mode, command, 9, 64 * BLOCK, 0 if command == FLUSH else BLOCK)
    hosts.client_says(write(hosts.mode, 1, 0))
    hosts.read_server()
    hosts.client_says(asked[:5])
    hosts.client_says(asked[5:])
    assert hosts.read_server() == asked[:5]  # which could have been anything
    assert hosts.destination.is_held
    hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_server() == asked[5:]
    assert not hosts.destination.is_held


def test_so_many_writes_and_no_more_are_under_way(hosts: Hosts) -> None:
    all_of_them = b"".join(write(hosts.mode, 1, block) for block in range(MOST_WRITES + 1))
    hosts.client_says(all_of_them)
    assert len(hosts.read_server()) == len(all_of_them) * MOST_WRITES // (MOST_WRITES + 1)
    for _ in range(MOST_WRITES):
        hosts.server_says(done(hosts.mode, 1))
    assert hosts.read_server() == write(hosts.mode, 1, MOST_WRITES)


def test_a_write_that_fails_ends_the_channel_with_the_reason(hosts: Hosts) -> None:
    hosts.client_says(write(hosts.mode, 1, 0))
    with pytest.raises(HypervisorError, match=r"could not write a disk.*No space left on device"):
        hosts.server_says(failed(hosts.mode, 1, 28))


def test_when_qemu_has_ended_nothing_is_held_from_it(hosts: Hosts) -> None:
    hosts.client_says(write(hosts.mode, 1, 0) + request(hosts.mode, DISCONNECT, 2, 0, 0))
    hosts.read_server()
    hosts.server_says(done(hosts.mode, 1)[:-1])
    hosts.destination.local_ended()
    assert hosts.destination.next_for_local() is not None
    assert hosts.destination.is_awaited


def test_a_qemu_that_has_ended_has_not_written_what_it_is_given_then(hosts: Hosts) -> None:
    hosts.destination.local_ended()
    hosts.client_says(write(hosts.mode, 1, 0))
    assert hosts.read_server() == write(hosts.mode, 1, 0)
    assert hosts.destination.is_awaited


def test_the_end_is_told_once_all_is_written(hosts: Hosts) -> None:
    hosts.client_says(write(hosts.mode, 1, 0))
    seen = [hosts.destination.is_held]
    hosts.server_says(done(hosts.mode, 1))
    assert [*seen, hosts.destination.is_held] == [True, False]


def test_an_export_without_any_promise_is_written_behind_as_well() -> None:
    hosts = Hosts().haggle(flags=0)
    hosts.client_says(write(STRUCTURED, 1, 0))
    hosts.server_says(done(STRUCTURED, 1))
    assert hosts.read_client() == answer(STRUCTURED, 1)
    assert not hosts.destination.has_hidden_flushes


# Haggling.


def test_of_the_flags_however_they_come_qemu_sees_neither_the_promise_to_flush_nor_ours() -> None:
    hosts, server_said = Hosts(), haggled(FLAGS)
    for at in range(0, len(server_said), 7):
        hosts.server_says(server_said[at : at + 7])
    assert hosts.read_client() == edited(server_said)[0] != server_said
    assert hosts.destination.has_hidden_flushes


@pytest.mark.parametrize("disk", [SourceDisk, DestinationDisk])
def test_where_nothing_was_written_nothing_is_awaited(disk: type[Pages]) -> None:
    hosts = Hosts()
    pages = hosts.source if disk is SourceDisk else hosts.destination
    (hosts.client_says if disk is SourceDisk else hosts.server_says)(b"anything")
    assert (pages.is_awaited, pages.has_failed) == (False, False)


# Where it was not agreed on.


@pytest.mark.parametrize("name", ["export_name", "old_style", "refused"])
def test_a_session_whose_export_was_not_told_of_passes_as_it_is(name: str) -> None:
    session, hosts = load(name), Hosts()
    for is_client, data in session:
        (hosts.client_says if is_client else hosts.server_says)(data)
    assert hosts.read_server() == joined(session, client=True)
    assert hosts.read_client() == joined(session, client=False)
    assert not hosts.destination.has_hidden_flushes
    assert not hosts.destination.is_awaited


def test_what_is_no_nbd_passes_as_it_is() -> None:
    hosts = Hosts()
    hosts.client_says(b"sectors" * 1000)
    hosts.server_says(b"taken" * 1000)
    assert (hosts.read_server(), hosts.read_client()) == (b"sectors" * 1000, b"taken" * 1000)


def test_where_an_answer_tells_what_it_answers_by_its_cookie_only_all_are_waited_for() -> None:
    hosts = Hosts(SIMPLE).haggle()
    hosts.client_says(write(SIMPLE, 1, 0) + write(SIMPLE, 2, 0))
    assert hosts.read_client() == b""
    assert hosts.read_server() == write(SIMPLE, 1, 0) + write(SIMPLE, 2, 0)
    hosts.server_says(reply(2) + reply(1, 28))
    assert hosts.read_client() == reply(2) + reply(1, 28)
    assert not hosts.destination.is_awaited
    assert hosts.destination.has_hidden_flushes


def test_a_session_that_is_not_understood_any_more_ends_the_channel_at_either_end(hosts: Hosts) -> None:
    with pytest.raises(ProtocolError, match="not understood"):
        hosts.client_says(b"\xff" * 100)
    with pytest.raises(ProtocolError, match="not understood"):
        hosts.server_says(b"\xff" * 100)


@given(st.sampled_from(MODES), st.lists(st.tuples(st.booleans(), st.binary(max_size=80)), max_size=6))
def test_whatever_else_comes_raises_only_what_ends_the_channel(mode: int, says: list[tuple[bool, bytes]]) -> None:
    hosts = Hosts(mode).haggle()
    hosts.client_says(write(mode, 1, 0))
    for is_client, said in says:
        with contextlib.suppress(ProtocolError, HypervisorError):
            (hosts.client_says if is_client else hosts.server_says)(said)


# All together.


class Server:
    """As QEMU's: does what is under way in any order, and answers nothing behind a request to disconnect."""

    def __init__(self, mode: int, chance: random.Random) -> None:
        self.disk: dict[int, int] = {}
        self.has_left = False
        self._mode, self._chance = mode, chance
        self._said = b""
        self._under_way: list[tuple[int, int, range, int]] = []

    def take(self, said: bytes) -> None:
        """Begin with what has come; fails if the client could have known better."""
        self._said += said
        head = HEAD[self._mode]
        while len(self._said) >= head.size and not self.has_left:
            _, _, command, cookie, offset, length = head.unpack_from(self._said)
            size = head.size + (length if command == WRITE else 0)
            if len(self._said) < size:
                return
            content = self._said[head.size] if command == WRITE else 0
            self._said = self._said[size:]
            blocks = range(offset // BLOCK, (offset + length) // BLOCK)
            if command not in {WRITE, WRITE_ZEROES, TRIM}:
                assert not any(other[0] != READ for other in self._under_way), "it did not wait"
            for _, _, others, _ in self._under_way:
                assert max(blocks.start, others.start) >= min(blocks.stop, others.stop), "two at once"
            if command == DISCONNECT:
                self.has_left = True
            else:
                self._under_way.append((command, cookie, blocks, content))

    def answers(self) -> Iterator[bytes]:
        """Do some of what is under way."""
        while self._under_way and self._chance.randrange(3):
            command, cookie, blocks, content = self._under_way.pop(self._chance.randrange(len(self._under_way)))
            if command == READ:
                content = self.disk.get(blocks.start, 0)
                page = bytes([content]) * BLOCK
                yield data_chunk(self._mode, cookie, blocks.start * BLOCK, page)
                yield chunk(self._mode, 0, cookie, is_last=True)
            else:
                self.disk.update(dict.fromkeys(blocks, content))
                yield done(self._mode, cookie)


class Client:
    """As QEMU's mirror: a few cookies, used again as soon as they are answered; nothing touches what was not answered."""

    def __init__(self, mode: int, chance: random.Random) -> None:
        self.disk: dict[int, int] = {}
        self._mode, self._chance = mode, chance
        self._waiting: dict[int, tuple[int, range, int]] = {}
        self._said = b""

    def say(self) -> bytes:
        """Another request, if there may be one."""
        cookie = self._chance.randrange(4)
        start = self._chance.randrange(12)
        command = self._chance.choice((WRITE, WRITE, WRITE, WRITE_ZEROES, READ))
        blocks = range(start, start + (1 if command == READ else self._chance.randrange(1, 4)))
        others = [other for _, other, _ in self._waiting.values()]
        if cookie in self._waiting or any(set(blocks) & set(other) for other in others):
            return b""
        content = self._chance.randrange(1, 256) if command == WRITE else 0
        expected = self.disk.get(start, 0)
        if command != READ:
            self.disk.update(dict.fromkeys(blocks, content))
        self._waiting[cookie] = (command, blocks, expected)
        payload = bytes([content]) * BLOCK * len(blocks) if command == WRITE else b""
        return request(self._mode, command, cookie, start * BLOCK, len(blocks) * BLOCK, payload)

    def take(self, said: bytes) -> None:
        """Read answers; fails if one is for nothing, or has not what was written before."""
        self._said += said
        while len(self._said) >= 16:
            magic, flags, _, cookie = struct.unpack_from("!IHHQ", self._said)
            size = length = {0x67446698: 16, 0x668E33EF: 20, 0x6E8A278C: 32}[magic]
            if len(self._said) < size:
                return
            if size > 16:
                length += int.from_bytes(self._said[size - 4 : size], "big")
            if len(self._said) < length:
                return
            content, self._said = self._said[size + 8 : length], self._said[length:]
            _, _, expected = self._waiting[cookie] if size > 16 and not flags & 1 else self._waiting.pop(cookie)
            assert content in {b"", bytes([expected]) * BLOCK}

    @property
    def waits(self) -> bool:
        """Whether something was not answered yet."""
        return bool(self._waiting)


@given(st.integers(0, 2**32), st.sampled_from(MODES))
def test_whatever_a_disks_copy_writes_is_there_in_the_end(seed: int, mode: int) -> None:
    chance = random.Random(seed)
    hosts = Hosts(mode).haggle()
    client, server = Client(mode, chance), Server(mode, chance)
    to_say = answers = b""
    for turn in range(150):
        if turn < 100:
            to_say += client.say()
        elif turn == 120 and not client.waits:
            to_say += request(mode, DISCONNECT, 99, 0, 0)
        cut = chance.choice((len(to_say), chance.randrange(len(to_say) + 1)))
        hosts.client_says(to_say[:cut])
        to_say = to_say[cut:]
        server.take(hosts.read_server())
        answers += b"".join(server.answers())
        cut = chance.choice((len(answers), chance.randrange(len(answers) + 1)))
        hosts.server_says(answers[:cut])
        answers = answers[cut:]
        client.take(hosts.read_client())
    for _ in range(50):
        hosts.client_says(to_say)
        server.take(hosts.read_server())
        hosts.server_says(answers + b"".join(server.answers()))
        client.take(hosts.read_client())
        to_say = answers = b""
    assert not client.waits
    assert not hosts.destination.is_awaited
    assert server.disk == client.disk
