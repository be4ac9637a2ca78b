"""What is found in QEMU's migration stream: in recorded ones, in some made by hand, and in what is not understood."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest

from agent.stream.qemu import QemuStream
from landbridge import hints
from landbridge.hints import HEADERS, PAGE, SIZES, Kind, Run
from tests.vectors import load, names
from tests.vectors import qemu_made as made
from tests.vectors.qemu_pages import Hint, hints_of

STREAMS = {name: load("qemu", name) for name in names("qemu")} | {name: make() for name, make in made.MADE.items()}
PC_RAM = hints.space(b"pc.ram")
OPENED = made.HEADER + made.start(made.block(b"pc.ram", 1 << 20), total=1 << 20)

each_stream = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


def pages(runs: list[Run], offset: int = 0) -> Iterator[Hint]:
    """Page by page what runs say."""
    for run in runs:
        for n in range(run.count):
            yield Hint(offset + run.offset + n * SIZES[run.kind], run.kind, run.key + n)


def read(*parts: bytes) -> tuple[QemuStream, list[Run]]:
    stream = QemuStream()
    runs, tail = stream.feed(b"".join(parts))
    assert not tail
    return stream, runs


@each_stream
def test_a_stream_that_comes_whole_has_a_hint_for_each_page(stream: bytes) -> None:
    reader = QemuStream()
    runs, tail = reader.feed(stream)
    assert list(pages(runs)) == hints_of(stream)
    assert (tail, reader.understood, reader.why, reader.lost_at) == (0, True, "", None)
    assert reader.pages == len(hints_of(stream))
    assert hints.decode(hints.encode(runs), len(stream)) == runs[: hints.MOST_RUNS]


@pytest.mark.parametrize("name", ["plain", "rounds", "xbzrle", "postcopy", "multifd-1", "multifd-2"])
def test_hints_of_recorded_streams_point_at_what_the_guest_has_written_there(name: str) -> None:
    filled = {n for n in range(0x10, 0x4C) if not n & 4}
    runs, _ = QemuStream().feed(STREAMS[name])
    seen = set()
    for hint in pages(runs):
        number = hint.key - PC_RAM
        if number in filled and hint.kind != Kind.ZERO:
            at = hint.offset + HEADERS[hint.kind]
            # The guest fills a page with the number of its segment, and changes the word at 16.
            assert STREAMS[name][at + 18 : at + PAGE] == struct.pack("<H", number << 8) * 2039
            seen.add(number)
    assert len(seen) >= len(filled) // 3


@each_stream
def test_neighbouring_pages_are_one_run(stream: bytes) -> None:
    runs, _ = QemuStream().feed(stream)
    for one, other in itertools.pairwise(runs):
        follows = (one.end, one.kind, one.key + one.count) == (other.offset, other.kind, other.key)
        assert not follows or one.kind == Kind.PLAIN or one.count == 0xFFFF


@each_stream
def test_a_stream_that_comes_byte_by_byte_has_the_same_hints_if_tails_are_held_back(stream: bytes) -> None:
    stream = stream[:20_000]
    reader, found, held = QemuStream(), list[Hint](), b""
    for at in range(len(stream)):
        piece = held + stream[at : at + 1]
        runs, tail = reader.feed(piece)
        found += pages(runs, at + 1 - len(piece))
        held = piece[len(piece) - tail :]
        assert tail < 8192
    assert found == [hint for hint in hints_of_all(stream) if hint.offset + SIZES[hint.kind] <= len(stream)]
    assert reader.understood


def hints_of_all(beginning: bytes) -> list[Hint]:
    """The hints of the stream that begins so."""
    (whole,) = (stream for stream in STREAMS.values() if stream.startswith(beginning))
    return hints_of(whole)


@each_stream
def test_a_stream_that_comes_byte_by_byte_has_no_hints_if_tails_are_let_go_and_is_still_understood(
    stream: bytes,
) -> None:
    reader = QemuStream()
    for at in range(min(len(stream), 20_000)):
        runs, tail = reader.feed(stream[at : at + 1])
        assert not runs
        assert tail <= 1
        reader.skip_tail()
    assert reader.understood
    runs, _ = reader.feed(stream[20_000:])
    assert set(pages(runs, 20_000)) == {hint for hint in hints_of(stream) if hint.offset >= 20_000}


@each_stream
def test_bytes_behind_the_end_change_nothing(stream: bytes) -> None:
    reader = QemuStream()
    runs, tail = reader.feed(stream + b"\xff" * 5000)
    assert list(pages(runs)) == hints_of(stream)
    assert not tail
    # Behind the state of devices, or the end, everything is as good; behind a packet there should be another one.
    assert reader.lost_at == (len(stream) if stream[:4] == made.CHANNEL[:4] else None)


def test_the_first_page_of_a_block_has_its_hint_behind_its_name() -> None:
    _, runs = read(OPENED, made.part(made.page(PAGE, b"pc.ram"), made.page(2 * PAGE)))
    at = len(OPENED) + 5 + 8 + 7
    assert runs == [Run(at, 1, Kind.PLAIN, PC_RAM + 1), Run(at + PAGE, 1, Kind.PAGE, PC_RAM + 2)]


def test_a_page_that_changes_its_kind_or_leaves_the_order_begins_a_run() -> None:
    records = [made.zero(n * PAGE) for n in (1, 2, 4, 3, 5)] + [made.page(n * PAGE) for n in (6, 7)]
    _, runs = read(OPENED, made.part(made.zero(0, b"pc.ram"), *records))
    assert [(run.kind, run.key - PC_RAM, run.count) for run in runs] == [
        (Kind.ZERO, 1, 2), (Kind.ZERO, 4, 1), (Kind.ZERO, 3, 1), (Kind.ZERO, 5, 1), (Kind.PAGE, 6, 2),
    ]  # fmt: skip


def test_more_zero_pages_than_a_hint_can_count_are_several_runs() -> None:
    size = 200_000 * PAGE
    begin = made.HEADER + made.start(made.block(b"pc.ram", size), total=size)
    zeros = (made.zero(n * PAGE) for n in range(1, 200_000))
    whole = begin + made.part(made.zero(0, b"pc.ram"), *zeros)
    stream, runs = read(whole)
    assert [run.count for run in runs] == [0xFFFF, 0xFFFF, 0xFFFF, 199_999 - 3 * 0xFFFF]
    assert stream.pages == 199_999
    assert hints.decode(hints.encode(runs), len(whole)) == runs


def test_a_run_of_zero_pages_ends_where_the_order_does_however_long_it_is() -> None:
    size = 30_000 * PAGE
    begin = made.HEADER + made.start(made.block(b"pc.ram", size), total=size)
    for count in (1, 2, 31, 32, 33, 63, 64, 65, 4095, 4097, 9000):
        addresses = [*range(1, count + 1), count + 2, count + 3]
        _, runs = read(begin, made.part(made.zero(0, b"pc.ram"), *(made.zero(n * PAGE) for n in addresses)))
        assert [run.count for run in runs] == [count, 2]


def test_pages_of_a_multifd_packet_have_hints_as_they_come() -> None:
    stream, packet = QemuStream(), made.packet([n * PAGE for n in (1, 2, 3, 7, 8)])
    assert stream.feed(made.CHANNEL + packet[: 1344 + PAGE + 100]) == ([Run(64 + 1344, 1, Kind.PLAIN, PC_RAM + 1)], 100)
    rest = packet[1344 + PAGE :]
    assert stream.feed(rest) == ([Run(0, 2, Kind.PLAIN, PC_RAM + 2), Run(2 * PAGE, 2, Kind.PLAIN, PC_RAM + 7)], 0)


def test_a_record_whose_beginning_has_gone_has_no_hint_and_the_next_one_has() -> None:
    stream, two = QemuStream(), made.page(PAGE) + made.page(2 * PAGE)
    assert stream.feed(OPENED + b"\2" + made.word(2) + made.zero(0, b"pc.ram") + two[:1000]) == ([], 1000)
    stream.skip_tail()
    assert stream.feed(two[1000:2000]) == ([], 0)
    assert stream.feed(two[2000:]) == ([Run(8 + PAGE - 2000, 1, Kind.PAGE, PC_RAM + 2)], 0)


NOT_UNDERSTOOD = {
    b"GET / HTTP": "the stream begins like none of QEMU's",
    b"QEVM" + made.word(4): "the stream is of version 4",
    made.HEADER + made.subsection(b"configuration/target-page-bits", made.word(14)): "pages have 16384 bytes",
    made.HEADER + made.subsection(b"configuration/more", b""): "the configuration has a part 'configuration/more'",
    made.HEADER + made.command(3, made.long(0x10000) + made.long(0x10000)): "pages have 65536 bytes",
    made.HEADER + made.command(12): "command 12 is not known",
    made.HEADER + made.command(8): "command 8 is not known",
    made.HEADER + made.command(7, bytes(8)): "a command with a package has 8 bytes",
    made.HEADER + b"\x09": "a record has type 9",
    made.HEADER + made.DEVICES: "the state of a device comes before the end of memory",
    OPENED + made.DEVICES: "the state of a device comes before the end of memory",
    made.HEADER
    + b"\1"
    + made.word(3)
    + made.name(b"0000:00:03.0/vfio")
    + bytes(8): "section '0000:00:03.0/vfio' is not memory",
    made.HEADER
    + b"\1"
    + made.word(3)
    + made.name(b"ram")
    + made.word(0)
    + made.word(5): "memory is of version 5, or comes twice",
    OPENED + b"\2" + made.word(7): "section 7 has a part, which is not memory",
    OPENED + made.part(made.page(0)): "a page has address 0x0, beyond its block",
    OPENED + made.part(made.page(1 << 20, b"pc.ram")): "a page has address 0x100000, beyond its block",
    OPENED + made.part(made.page(0, b"other")): "a page is of block 'other', which was not listed",
    OPENED + made.part(made.long(0x80)): "a record of memory has flags 0x80",
    OPENED + made.part(made.long(0x0A)): "a record of memory has flags 0xa",
    OPENED + made.part(made.long(0x40), made.name(b"pc.ram"), b"\2\0\0"): "a page is in encoding 2 of XBZRLE",
    made.HEADER
    + made.start(made.block(b"a", 8192), total=4096): "block 'a' of 8192 bytes has no place in the list of blocks",
    made.CHANNEL
    + b"\x11\x22\x33\x44"
    + made.word(2)
    + bytes(4): "no multifd packet of version 1 begins where one should",
    made.CHANNEL + made.packet([0], flags=0x80): "a multifd packet has flags 0x80",
    made.CHANNEL + made.packet([0], room=32): "a multifd packet has room for 32 pages: pages are not of 4096 bytes",
    made.CHANNEL + made.packet([0], size=5): "a multifd packet has 1 pages in 5 bytes",
    made.CHANNEL + made.packet([5]): "a multifd packet has pages at addresses that no page of 4096 bytes has",
}


@pytest.mark.parametrize("stream", NOT_UNDERSTOOD, ids=NOT_UNDERSTOOD.values())
def test_what_is_not_understood_is_passed_over_and_said(stream: bytes) -> None:
    reader = QemuStream()
    assert reader.feed(stream)[1] == 0
    assert (reader.understood, reader.why) == (False, NOT_UNDERSTOOD[stream])
    assert reader.lost_at is not None
    assert 0 <= reader.lost_at < len(stream)
    assert reader.feed(made.main_channel()) == ([], 0)


def test_hints_up_to_what_is_not_understood_count_and_its_offset_is_of_the_whole_stream() -> None:
    reader = QemuStream()
    good = OPENED + made.part(made.page(0, b"pc.ram"), made.page(PAGE))
    assert len(reader.feed(good[:1000])[0]) == 0
    reader.skip_tail()
    assert len(reader.feed(good[1000:] + b"\x55more")[0]) == 1
    assert (reader.understood, reader.lost_at, reader.pages) == (False, len(good), 1)


def test_a_list_of_blocks_without_end_is_given_up() -> None:
    blocks = (made.block(struct.pack("!I", n), 0) for n in range(5000))
    reader, _ = read(made.HEADER, made.start(*blocks, total=PAGE))
    assert "has no place in the list of blocks" in reader.why
