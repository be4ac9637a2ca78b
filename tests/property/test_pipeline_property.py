"""Streams of any frames, between gateways that lose, repeat and reorder them, and lose their logs."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.stream.blob import MOST_BLOB, MOST_TOGETHER
from gateway.stream.compress import LEVELS, from_planes, from_steps, planes, steps
from gateway.stream.page_log import Pages
from gateway.stream.pipeline import Decoder, Encoder, Uncoded
from gateway.stream.skeleton import Skeleton, _Few, _Many
from landbridge import hints
from landbridge.errors import OutOfStep, ProtocolError
from landbridge.frame import MAX_PAYLOAD
from landbridge.hints import HEADERS, PAGE, SIZES, Kind, Run
from tests.unit.histories import MemoryHistory
from tests.unit.page_logs import Pair

ADDRESSES = 12
seeds = st.integers(0, 2**32)


def some_page(chance: random.Random, known: list[bytes]) -> bytes:
    """A page of any sort; often one that was there, or one that differs little from it."""
    sort = chance.randrange(6) if known else chance.randrange(3)
    match sort:
        case 0:
            return bytes(PAGE)
        case 1:
            found = chance.randbytes(PAGE)
        case 2:
            found = bytes(chance.choices(b"etaoin shrdlu", k=PAGE))
        case 3:
            return chance.choice(known)
        case _:
            changed = bytearray(chance.choice(known))
            for _ in range(chance.choice((1, 1, 5, 300))):
                changed[chance.randrange(PAGE)] ^= chance.randrange(1, 256)
            found = bytes(changed)
    known.append(found)
    del known[:-20]
    return found


def some_run(chance: random.Random, kind: Kind, number: int, count: int, known: list[bytes]) -> bytes:
    """The records of a run, sometimes not as its hint says."""
    parts = []
    for i in range(count):
        if HEADERS[kind]:
            parts.append(((number + i) * PAGE | kind).to_bytes(8))
        parts.append(b"\0" if kind is Kind.ZERO else some_page(chance, known))
    found = bytearray(b"".join(parts))
    if chance.random() < 0.1:
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def some_frame(chance: random.Random, known: list[bytes]) -> tuple[bytes, bytes]:
    """A payload and its hint section; either may be anything."""
    payload, runs = bytearray(), []
    for _ in range(chance.choice((0, 1, 1, 3, 12))):
        payload += chance.randbytes(chance.choice((0, 0, 1, 30, 5000)))
        kind = chance.choice(list(Kind))
        count = chance.choice((1, 1, 2, 5, 900 if kind is Kind.ZERO else 16))
        if len(payload) + count * SIZES[kind] > MAX_PAYLOAD:
            break
        number = chance.randrange(ADDRESSES)
        runs.append(Run(len(payload), count, kind, hints.space(b"ram") | number))
        payload += some_run(chance, kind, number + chance.choice((0, 0, 0, 1 << 39)), count, known)
    payload += chance.randbytes(chance.choice((0, 0, 7, 500)))
    payload = payload[:MAX_PAYLOAD]
    section = hints.encode(runs)
    match chance.randrange(12):
        case 0:
            section = chance.randbytes(chance.randrange(200))
        case 1:
            moved = [Run(max(run.offset + chance.randrange(-3, 4), 0), run.count, run.kind, run.key) for run in runs]
            section = hints.encode(moved)
        case 2:
            section = hints.encode(reversed(runs))
    return bytes(payload), section


def some_frames(chance: random.Random, known: list[bytes]) -> list[Uncoded]:
    """What is to be encoded together."""
    made = [some_frame(chance, known) for _ in range(chance.choice((1, 1, 2, 3, MOST_TOGETHER + 1)))]
    return [Uncoded(memoryview(payload), section) for payload, section in made]


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_whatever_becomes_of_frames_each_that_comes_out_is_the_one_that_went_in(seed: int) -> None:
    chance = random.Random(seed)
    histories = MemoryHistory(), MemoryHistory()
    encoders, decoders = [Encoder(each) for each in histories], [Decoder(each) for each in histories]
    known: list[bytes] = []
    under_way: list[tuple[int, bytes, bytes]] = []
    was_lost = False
    for _ in range(30):
        here = chance.randrange(2)
        given = some_frames(chance, known)
        level = chance.choice(list(LEVELS))
        vm, domain = chance.randrange(2), chance.randrange(2)
        for frame, coded in zip(
            given, encoders[here].encode_many(given, vm=vm, domain=domain, level=level), strict=True
        ):
            if coded is not None:
                assert coded.tally.stream.total == len(frame.payload)
                assert coded.tally.wire.total == len(coded.blob) <= MOST_BLOB
                under_way.append((here, bytes(frame.payload), coded.blob))
        chance.shuffle(under_way)
        for _ in range(chance.randrange(4)):
            if not under_way:
                break
            # Some arrive together, and perhaps a second time later; or they are lost.
            sender = under_way[-1][0]
            others = [each for each in under_way if each[0] != sender]
            mine = [each for each in under_way if each[0] == sender]
            taken, left = mine[: (count := chance.choice((1, 1, 2, MOST_TOGETHER + 1)))], mine[count:]
            under_way = others + left + [each for each in taken if chance.random() < 0.2]
            if chance.random() < 0.1:
                continue
            try:
                came = decoders[1 - sender].decode_many([memoryview(blob) for _, _, blob in taken])
                assert [each.payload for each in came] == [expected for _, expected, _ in taken]
            except OutOfStep:
                assert was_lost
            if chance.random() < 0.7:
                histories[sender].acknowledged(histories[1 - sender])
        if chance.random() < 0.02:
            chance.choice(histories).lose()
            was_lost = True
        histories[0].is_full = chance.random() < 0.1


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_page_logs_in_files_stay_in_step_however_small_and_whatever_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory), capacity=chance.choice((8, 64, 256, 2048)))
        ends = [pair.here, pair.there]
        coders = [(Encoder(each), Decoder(each)) for each in ends]
        known: list[bytes] = []
        for _ in range(40):
            here = chance.randrange(2)
            given = some_frames(chance, known)
            encoded = coders[here][0].encode_many(given, vm=1, domain=1, level=1)
            sent = [(f.payload, c.blob) for f, c in zip(given, encoded, strict=True) if c and chance.random() < 0.8]
            came = coders[1 - here][1].decode_many([memoryview(blob) for _, blob in sent])
            assert [each.payload for each in came] == [payload for payload, _ in sent]
            if chance.random() < 0.7:
                ends[here].acknowledged(ends[1 - here].take_received())
            if chance.random() < 0.1:
                pair.meet()
        pair.close()


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_what_is_taken_of_hints_is_what_they_say_and_the_bytes_bear_out(seed: int) -> None:
    chance = random.Random(seed)
    payload, section = some_frame(chance, [])
    try:
        runs = hints.decode(section, len(payload))
    except ProtocolError:
        runs = []
    true = [run for run in runs if bears_out(payload, run)]
    found = Skeleton.of(memoryview(payload), section)
    assert found.runs == len(true)
    assert found.keys.tolist() == [run.key + i for run in true if run.kind is not Kind.ZERO for i in range(run.count)]
    assert found.rest_size == len(payload) - sum(run.end - run.offset for run in true)
    again = Skeleton.decode(found.encode(), len(payload))
    assert again.payload(pages_of(found, payload), found.rest(memoryview(payload))) == payload
    assert again.keys.tolist() == found.keys.tolist()


def pages_of(skeleton: Skeleton, payload: bytes) -> Pages:
    pages = np.empty((len(skeleton.keys), PAGE), np.uint8)
    skeleton.copy_pages(memoryview(payload), pages)
    return pages


def bears_out(payload: bytes, run: Run) -> bool:
    """Whether the records of a run are as it says, record by record."""
    if not HEADERS[run.kind]:
        return True
    first = int.from_bytes(payload[run.offset : run.offset + 8])
    for i in range(run.count):
        at = run.offset + i * SIZES[run.kind]
        if payload[at : at + 8] != ((first + i * PAGE) % 2**64).to_bytes(8):
            return False
        if run.kind is Kind.ZERO and payload[at + 8]:
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_few_runs_one_at_a_time_are_the_same_as_many_at_once(seed: int) -> None:
    payload, section = some_frame(random.Random(seed), [])
    few, many = (way.true(memoryview(payload), section) for way in (_Few, _Many))
    told = few.encode()
    assert told == many.encode()
    assert (few.keys == many.keys).all()
    assert (few.length, few.runs, few.rest_size, few.zero_records) == (
        len(payload),
        many.runs,
        many.rest_size,
        many.zero_records,
    )
    pages, rest = pages_of(few, payload), few.rest(memoryview(payload))
    assert (pages == pages_of(many, payload)).all()
    for way in (_Few, _Many):
        assert way.told(told, len(payload)).payload(pages, rest) == payload


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_numbers_come_back_from_their_steps_in_planes(numbers: list[int]) -> None:
    array = np.array(numbers, np.uint64)
    assert from_steps(from_planes(planes(steps(array)), np.dtype("<u8"))).tolist() == numbers
