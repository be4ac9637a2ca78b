"""What real clients and servers of NBD said, read three ways; and what is not understood."""

from __future__ import annotations

import struct

import pytest

from agent.stream.nbd import LONGEST_NAME, MOST_READS, NbdStream
from landbridge import hints
from landbridge.hints import PAGE, Kind, Run
from tests.unit.nbd_made import (
    ACK,
    BLOCK_STATUS,
    DISCONNECT,
    EXTENDED,
    READ,
    SIMPLE,
    STRUCTURED,
    WRITE,
    answer,
    beginning,
    client_flags,
    data_chunk,
    go,
    greeting,
    option,
    reply,
    request,
)
from tests.unit.nbd_reading import Blocks, Reading, blocks_of, in_bytes, joined, read
from tests.vectors.nbd_sessions import Session, fill, load, names

# Whole blocks in the recordings, written and read: as many as their commands in record_nbd.py say.
WRITTEN = {"copy_there": 175, "mirror": 223, "odd": 7, "simple": 16, "export_name": 16}
READ_THERE = {"copy_here": 175, "in_parallel": 175, "odd": 14, "simple": 45, "export_name": 16}
NAMES = {"old_style": b"", "listing": b"", "refused": b"other"}
UNDERSTOOD = [name for name in names() if name != "old_style"]
SPACE = hints.space(b"disk disk")


def export_of(name: str) -> bytes:
    return NAMES.get(name, b"drive-virtio-disk0")


def count(blocks: Blocks, *, client: bool) -> int:
    return sum(block[0] is client for block in blocks)


def stream_after(session: Session) -> NbdStream:
    return read(session).stream


# Recordings.


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_all_whole_blocks_of_a_real_session_are_found_and_have_what_belongs_there(name: str) -> None:
    session = load(name)
    reading = read(session, name=export_of(name))
    assert reading.stream.understood
    assert reading.blocks == blocks_of(session)
    assert count(reading.blocks, client=True) == WRITTEN.get(name, 0)
    assert count(reading.blocks, client=False) == READ_THERE.get(name, 0)
    said = {client: joined(session, client=client) for client in (True, False)}
    for client, at, number in reading.blocks:
        assert set(said[client][at : at + PAGE]) in ({fill(number)}, {0})


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_real_session_byte_by_byte_has_the_same_blocks(name: str) -> None:
    session = load(name)
    reading = read(in_bytes(session), name=export_of(name))
    assert reading.stream.understood
    assert reading.blocks == blocks_of(session)


@pytest.mark.parametrize("name", UNDERSTOOD)
@pytest.mark.parametrize("client", [True, False])
def test_bytes_behind_a_real_session_end_the_hints_and_change_none(name: str, client: bool) -> None:
    session = load(name)
    reading = read([*session, (client, b"\xff" * 100), *session])
    assert not reading.stream.understood
    assert reading.stream.lost_at is not None
    assert reading.stream.lost_at > len(joined(session, client=client))
    assert reading.blocks == blocks_of(session)


def test_a_server_that_does_not_haggle_is_not_understood() -> None:
    reading = read(load("old_style"))
    assert (reading.stream.understood, reading.stream.lost_at) == (False, 18)
    assert "takes options" in reading.stream.why
    assert not reading.blocks


# Pieces.


@pytest.mark.parametrize("mode", [SIMPLE, STRUCTURED, EXTENDED])
def test_an_extent_is_one_run_from_its_first_whole_block_to_its_last(mode: int) -> None:
    stream = stream_after(beginning(mode))
    piece = request(mode, WRITE, 1, 3 * PAGE - 100, 100 + 5 * PAGE + 7, bytes(100 + 5 * PAGE + 7))
    at = len(piece) - 7 - 5 * PAGE
    assert stream.feed_client(piece) == ([Run(at, 5, Kind.PLAIN, hints.key(SPACE, 3 * PAGE))], 0)


def test_a_block_that_is_cut_makes_a_tail_and_is_found_when_it_comes_again_whole() -> None:
    stream = stream_after(beginning(STRUCTURED))
    wire = request(STRUCTURED, WRITE, 1, PAGE, 3 * PAGE, bytes(3 * PAGE))
    cut = len(wire) - PAGE - 1000
    assert stream.feed_client(wire[:cut]) == ([Run(28, 1, Kind.PLAIN, hints.key(SPACE, PAGE))], PAGE - 1000)
    rest = wire[cut - (PAGE - 1000) :]
    assert stream.feed_client(rest) == ([Run(0, 2, Kind.PLAIN, hints.key(SPACE, 2 * PAGE))], 0)


def test_a_block_whose_tail_was_not_held_gets_no_hint_and_the_next_one_does() -> None:
    stream = stream_after(beginning(STRUCTURED))
    wire = request(STRUCTURED, WRITE, 1, PAGE, 3 * PAGE, bytes(3 * PAGE))
    cut = len(wire) - PAGE - 1000
    stream.feed_client(wire[:cut])
    stream.skip_tail(client=True)
    assert stream.feed_client(wire[cut:]) == ([Run(1000, 1, Kind.PLAIN, hints.key(SPACE, 3 * PAGE))], 0)
    assert stream.understood


def test_a_tail_is_only_what_can_become_a_whole_block() -> None:
    stream = stream_after(beginning(STRUCTURED))
    wire = request(STRUCTURED, WRITE, 1, 100, 2 * PAGE, bytes(2 * PAGE))
    # The first block begins before the extent, the last one ends behind it.
    assert stream.feed_client(wire[: 28 + 50]) == ([], 0)
    assert stream.feed_client(wire[28 + 50 : -50]) == ([Run(PAGE - 150, 1, Kind.PLAIN, hints.key(SPACE, PAGE))], 0)
    assert stream.feed_client(wire[-50:]) == ([], 0)


def test_a_run_has_no_more_blocks_than_a_hint_can_say() -> None:
    stream = stream_after(beginning(STRUCTURED))
    wire = request(STRUCTURED, WRITE, 1, 0, 70_000 * PAGE) + bytes(70_000 * PAGE)
    runs, tail = stream.feed_client(wire)
    assert [(run.offset, run.count) for run in runs] == [(28, 65_535), (28 + 65_535 * PAGE, 70_000 - 65_535)]
    assert runs[1].key == runs[0].key + 65_535
    assert tail == 0


# What is not understood.

BAD_GREETING = b"NBDMAGICIHAVEOPS\0\3"
LOST: dict[str, tuple[Session, bool, bytes, str]] = {
    "no server of NBD": ([], False, BAD_GREETING, "begins as no server"),
    "no option": (
        [(False, greeting()), (True, client_flags())],
        True,
        b"IHAVEOPS" + bytes(8),
        "an option begins with 0x49484156454f5053",
    ),
    "options one upon the other": (
        [(False, greeting()), (True, client_flags()), (True, option(8))],
        True,
        option(11),
        "option 11 came before the answer to option 8",
    ),
    "no answer": ([(False, greeting()), (True, client_flags()), (True, option(8))], False, bytes(20), "an answer"),
    "an answer to nothing": ([(False, greeting()), (True, client_flags())], False, answer(8, ACK), "nobody waits for"),
    "a long name": (
        [(False, greeting()), (True, client_flags())],
        True,
        go(bytes(LONGEST_NAME + 1)),
        "the name of an export has 4097 bytes",
    ),
    "a name longer than its option": (
        [(False, greeting()), (True, client_flags())],
        True,
        option(7, struct.pack("!IH", 3, 0)),
        "a name of 3 bytes is longer",
    ),
    "encryption": (
        [(False, greeting()), (True, client_flags()), (True, option(5))],
        False,
        answer(5, ACK),
        "encrypted",
    ),
    "a client that does not wait": (
        [(False, greeting()), (True, client_flags()), (True, go(b"disk")), (True, b"\x25")],
        False,
        answer(7, ACK),
        "did not wait",
    ),
    "an extended request that was not agreed": (
        beginning(STRUCTURED),
        True,
        request(EXTENDED, READ, 1, 0, 4096),
        "a request begins with 0x21e41c71, not with 0x25609513",
    ),
    "a short request where long ones were agreed": (
        beginning(EXTENDED),
        True,
        request(SIMPLE, READ, 1, 0, 4096) + bytes(4),
        "a request begins with 0x25609513",
    ),
    "an unknown request": (beginning(SIMPLE), True, request(SIMPLE, 8, 1, 0, 0), "request 8 is unknown"),
    "a disk without end": (beginning(SIMPLE), True, request(SIMPLE, WRITE, 1, 2**63, 1), "are on no disk"),
    "a chunk that was not agreed": (
        [*beginning(SIMPLE), (True, request(SIMPLE, READ, 1, 0, 1))],
        False,
        data_chunk(STRUCTURED, 1, 0, b"x"),
        "a reply begins with 0x668e33ef",
    ),
    "a chunk without offset": (
        beginning(STRUCTURED),
        False,
        struct.pack("!IHHQI", 0x668E33EF, 1, 1, 1, 7),
        "a chunk of data has 7 bytes",
    ),
    "a cookie used twice": (
        [*beginning(SIMPLE), (True, request(SIMPLE, READ, 1, 0, 1))],
        True,
        request(SIMPLE, READ, 1, 0, 1),
        "the same cookie",
    ),
    "too many reads": (
        [*beginning(SIMPLE), *((True, request(SIMPLE, READ, i, 0, 1)) for i in range(MOST_READS))],
        True,
        request(SIMPLE, READ, MOST_READS, 0, 1),
        "too many wait",
    ),
    "words after the last": (
        [*beginning(SIMPLE), (True, request(SIMPLE, DISCONNECT, 1, 0, 0))],
        True,
        b"\x25",
        "bytes follow",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_not_understood_ends_the_hints_of_both_directions_and_says_why(name: str) -> None:
    before, client, blamed, why = LOST[name]
    reading = read(before)
    assert reading.stream.understood
    reading.feed(client, blamed)
    stream = reading.stream
    assert not stream.understood
    assert why in stream.why
    assert ("client" if client else "server") in stream.why
    assert stream.lost_at is not None
    said = len(joined(before, client=client))
    assert said < stream.lost_at <= said + len(blamed)
    lost_at = stream.lost_at
    for is_client, data in [*beginning(SIMPLE), (True, request(SIMPLE, WRITE, 9, 0, PAGE, bytes(PAGE)))]:
        reading.feed(is_client, data)
    assert not reading.blocks
    assert stream.lost_at == lost_at


def test_blocks_that_came_before_what_is_not_understood_are_found() -> None:
    reading = Reading()
    for client, data in beginning(SIMPLE):
        reading.feed(client, data)
    reading.feed(True, request(SIMPLE, WRITE, 1, 0, PAGE, bytes(PAGE)) + bytes(28))
    assert not reading.stream.understood
    assert len(reading.blocks) == 1


def test_an_error_answers_a_read_without_data_and_its_cookie_is_free_again() -> None:
    wire = [
        *beginning(SIMPLE),
        (True, request(SIMPLE, READ, 1, 0, PAGE)),
        (False, reply(1, 5)),
        (True, request(SIMPLE, READ, 1, PAGE, PAGE)),
        (False, reply(1, 0, bytes(PAGE))),
    ]
    reading = read(wire)
    assert reading.stream.understood
    assert {(client, number) for client, _, number in reading.blocks} == {(False, 1)}


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_a_request_for_status_brings_bytes_only_if_they_are_announced_in_an_extended_header(mode: int) -> None:
    stream = stream_after(beginning(mode))
    announced = bytearray(request(mode, BLOCK_STATUS, 1, 0, 24))
    announced[5] = 32
    stream.feed_client(bytes(announced) + (b"\xff" * 24 if mode == EXTENDED else b""))
    runs, tail = stream.feed_client(request(mode, WRITE, 2, 0, PAGE, bytes(PAGE)))
    assert ([run.count for run in runs], tail) == ([1], 0)
