"""Fuzz target of coded frames: the payload that was sent, or a documented error, and no other; in bounded memory and time.

It runs for FUZZ_SECONDS, see test_frame_fuzz.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import tracemalloc

from gateway.stream.blob import HEAD, VERSION
from gateway.stream.pipeline import Decoder, Encoder
from landbridge.errors import LandbridgeError, OutOfStep, ProtocolError
from landbridge.frame import MAX_PAYLOAD
from tests.fuzz.test_frame_fuzz import SECONDS, SEED, a_number, mutated
from tests.property.test_pipeline_property import some_frame
from tests.unit.histories import FIRST, MemoryHistory

DOCUMENTED: dict[str, type[LandbridgeError]] = {
    r"a coded frame of \d+ bytes arrived, which cannot be": ProtocolError,
    r"a coded frame of version \d+ arrived, and this end speaks version 2; update the older end": ProtocolError,
    r"a coded frame has a head that contradicts itself": ProtocolError,
    r"a coded frame has a part that zstd does not understand": ProtocolError,
    r"a coded frame has a part of another size than \d+ bytes": ProtocolError,
    r"a coded frame has runs that cannot be": ProtocolError,
    r"a coded frame has runs that go beyond its end": ProtocolError,
    r"a coded frame has pages that cannot be": ProtocolError,
    r"a coded frame has pages that repeat what is not before them": ProtocolError,
    r"serials that cannot be": ProtocolError,
    r"a coded frame refers to pages that the page log does not have": OutOfStep,
    r"a coded frame came out with another checksum than it was sent with": OutOfStep,
}
# What a frame may take: its columns, its pages and its payload, each of them twice at most.
MOST_MEMORY = 12 * MAX_PAYLOAD
MOST_SECONDS = 1.0


def blobs_of(chance: random.Random) -> tuple[MemoryHistory, list[tuple[bytes, bytes]]]:
    """Blobs of a stream with their payloads, and the log of the gateway that had some of them."""
    here, there = MemoryHistory(), MemoryHistory()
    encoder, decoder = Encoder(here), Decoder(there)
    known: list[bytes] = []
    found = []
    for _ in range(12):
        payload, section = some_frame(chance, known)
        coded = encoder.encode(memoryview(payload), section, vm=1, domain=1, level=2)
        if coded is not None:
            found.append((coded.blob, payload))
            decoder.decode(memoryview(coded.blob))
            here.acknowledged(there)
    return there, found


def hostile(blob: bytes, chance: random.Random) -> bytes:
    """A blob with changes in its head, or in its columns with a head that fits their sizes, or anywhere."""
    if chance.random() < 0.2:
        return mutated(blob, chance)
    head, columns = list(HEAD.unpack_from(blob)), []
    at = HEAD.size
    for size in head[-6:]:
        columns.append(blob[at : at + size])
        at += size
    which = chance.randrange(len(columns))
    if chance.random() < 0.7:
        columns[which] = mutated(columns[which], chance)
    elif chance.random() < 0.3:
        head[1] ^= 1 << which
    else:
        field = chance.choice((0, 2, 3, 4, 5, 6, 9))
        bits = (8, 8, 16, 16, 16, 32, 64, 64, 64, 64)[field]
        head[field] = chance.choice((a_number(chance, bits), max(head[field] + chance.choice((-1, 1)), 0)))
        head[field] = min(head[field], (1 << bits) - 1)
    head[-6:] = [len(column) for column in columns]
    return HEAD.pack(*head) + b"".join(columns)


def decoded(history: MemoryHistory, wire: bytes, seed: int) -> tuple[memoryview, LandbridgeError | None]:
    """The payload of a blob, or the error that it met."""
    try:
        return Decoder(history).decode(memoryview(wire)).payload, None
    except (ProtocolError, OutOfStep) as error:
        return memoryview(b""), error
    except Exception as foreign:
        foreign.add_note(f"the input of seed {seed}")
        raise


def test_whatever_a_coded_frame_is_it_is_a_payload_or_a_documented_error() -> None:
    met: set[str] = set()
    until = time.monotonic() + SECONDS
    seed = SEED << 32
    while time.monotonic() < until or met != set(DOCUMENTED):
        assert time.monotonic() < until + 60, f"not every documented error was met: {set(DOCUMENTED) - met}"
        seed += 1
        chance = random.Random(seed)
        history, blobs = blobs_of(chance)
        if chance.random() < 0.1:
            history.lose()
        for blob, payload in blobs * 10:
            wire = hostile(blob, chance)
            started = time.process_time()
            came_out, error = decoded(history, wire, seed)
            if error is None:
                assert came_out == payload, f"other bytes came out, with the input of seed {seed}"
            else:
                [name] = [each for each in DOCUMENTED if re.fullmatch(each, error.message)] or [error.message]
                assert type(error) is DOCUMENTED.get(name), f"not documented, with the input of seed {seed}: {name}"
                met.add(name)
            assert time.process_time() - started < MOST_SECONDS


def test_a_hostile_frame_takes_no_more_memory_than_a_good_one() -> None:
    chance = random.Random(SEED)
    history, blobs = blobs_of(chance)
    wires = [hostile(blob, chance) for blob, _ in blobs for _ in range(10)]
    # All that a head can promise.
    wires.append(HEAD.pack(VERSION, 31, 1024, 68, 68, MAX_PAYLOAD, 0, 0, 0, FIRST, *[2**32 - 1] * 6) + bytes(1000))
    wires.append(HEAD.pack(VERSION, 31, 1024, 68, 68, MAX_PAYLOAD, 0, 0, 0, FIRST, 1000, *[0] * 5) + bytes(1000))
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x03\0\0"
    wires.append(HEAD.pack(VERSION, 2, 0, 0, 0, MAX_PAYLOAD, 0, 0, 0, 0, 0, len(bomb), 0, 0, 0, 0) + bomb)
    decoder = Decoder(history)
    tracemalloc.start()
    try:
        for wire in wires:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(ProtocolError, OutOfStep):
                decoder.decode(memoryview(wire))
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < MOST_MEMORY
    finally:
        tracemalloc.stop()
