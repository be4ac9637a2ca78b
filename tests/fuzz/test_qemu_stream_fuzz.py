"""Whatever a migration stream brings: no error, hints within the piece, little memory, and time by its length.

Runs for FUZZ_SECONDS, from the seed FUZZ_SEED, as the other fuzz targets do.
"""

from __future__ import annotations

import random
import time
from collections import Counter

from agent.stream.qemu import MOST_TAIL, QemuStream
from landbridge import hints
from tests.fuzz.test_frame_fuzz import a_number, mutated, rounds
from tests.vectors import load, names
from tests.vectors import qemu_made as made

STREAMS = [*(load("qemu", name) for name in names("qemu")), *(make() for make in made.MADE.values())]
# Far more than a byte takes on a slow machine that has other things to do: it is exceeded by loops only.
SECONDS_PER_BYTE = 50e-6
PATIENCE = 1.0


def a_stream(chance: random.Random) -> bytes:
    """What a source might send."""
    stream = chance.choice(STREAMS)
    match chance.randrange(4):
        case 0:
            beginning = chance.choice((made.HEADER, made.CHANNEL, b""))
            return beginning + chance.randbytes(chance.randrange(10_000))
        case 1:
            numbers = b"".join(a_number(chance, 64).to_bytes(8, "big") for _ in range(300))
            at = chance.randrange(min(len(stream), 20_000))
            return stream[:at] + numbers
        case _:
            # The beginning says the most.
            at, size = chance.choice((0, 0, chance.randrange(len(stream)))), chance.choice((300, 3000, 20_000))
            return stream[:at] + mutated(stream[at : at + size], chance) + stream[at + size : at + 100_000]


def read(stream: bytes, chance: random.Random) -> QemuStream:
    """Read a stream in pieces of any size; tails are held back or not."""
    reader, at, held = QemuStream(), 0, b""
    step = chance.choice((97, 1000, 5000, 1 << 18))
    while at < len(stream):
        fresh = stream[at : at + chance.randint(1, 2 * step)]
        at += len(fresh)
        piece = held + fresh
        runs, tail = reader.feed(piece)
        assert 0 <= tail <= len(piece)
        assert tail < MOST_TAIL
        assert hints.decode(hints.encode(runs), len(piece) - tail) == runs[: hints.MOST_RUNS]
        held = piece[len(piece) - tail :]
        if tail and chance.random() < 0.3:
            reader.skip_tail()
            held = b""
        assert len(reader._gone) < MOST_TAIL
    return reader


def test_no_stream_does_any_harm() -> None:
    ends: Counter[str] = Counter()
    for seed, chance in rounds():
        stream, begun = a_stream(chance), time.thread_time()
        try:
            reader = read(stream, chance)
        except Exception as problem:
            raise AssertionError(f"the stream of seed {seed} raises {problem!r}") from problem
        assert time.thread_time() - begun < PATIENCE + SECONDS_PER_BYTE * len(stream), f"seed {seed}"
        assert reader.understood == (not reader.why) == (reader.lost_at is None), f"seed {seed}"
        assert reader.understood or 0 <= (reader.lost_at or 0) <= len(stream), f"seed {seed}"
        ends[reader.why[:20]] += 1
    # Both happen: streams that are understood in spite of a changed page, and those that are lost.
    assert ends.pop("")
    assert len(ends) > 2
