"""Sessions of NBD that are random or altered: never an error, never more memory or work than the bytes are worth.

They run for FUZZ_SECONDS each, one if it is not set, from the seed FUZZ_SEED. A failure prints the seed of its input.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from agent.stream.nbd import LONGEST_NAME, MOST_READS
from tests.fuzz.test_frame_fuzz import mutated, rounds
from tests.unit.nbd_made import made
from tests.unit.nbd_reading import Reading, blocks_of
from tests.vectors.nbd_sessions import Session, load, names


def run(target: Callable[[random.Random], Reading]) -> dict[bool, int]:
    """Run a target until the time is over: how often its session was understood, and how often not."""
    met = {True: 0, False: 0}
    for seed, chance in rounds():
        try:
            reading = target(chance)
            stream = reading.stream
            assert stream.understood is (stream.lost_at is None) is (stream.why == "")
            assert len(stream._reads) <= MOST_READS
            assert max(len(stream._client._head), len(stream._server._head)) <= LONGEST_NAME
        except Exception as foreign:
            foreign.add_note(f"the input of seed {seed}")
            raise
        met[stream.understood] += 1
    return met


def read(session: Session, chance: random.Random) -> Reading:
    """Read it in pieces of any size. It ends: each byte comes once, and again at most as long as its block is not whole."""
    reading, holds = Reading(holds=chance.randrange(2) == 0), chance.choice((5, 500, 1 << 18))
    for client, data in session:
        at = 0
        while at < len(data):
            size = chance.randint(1, holds)
            reading.feed(client, data[at : at + size])
            at += size
    return reading


def test_random_bytes_are_read_without_an_error() -> None:
    def target(chance: random.Random) -> Reading:
        noise = [
            (chance.randrange(2) == 0, chance.randbytes(chance.randrange(200))) for _ in range(chance.randrange(20))
        ]
        start = made(chance)
        return read([*start[: chance.randrange(len(start))], *noise], chance)

    assert min(run(target).values()) > 0


def test_altered_sessions_are_read_without_an_error() -> None:
    recorded = [load(name) for name in names()]

    def target(chance: random.Random) -> Reading:
        session = list(made(chance) if chance.randrange(4) else chance.choice(recorded))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(session))
            client, data = session[at]
            match chance.randrange(4):
                case 0:
                    del session[at]
                case 1:
                    session.insert(chance.randrange(len(session)), (client, data))
                case 2:
                    session[at] = (not client, data)
                case _:
                    # Its header, mostly: what follows it is the disk's.
                    session[at] = (client, mutated(data[:60], chance) + data[60:])
            if not session:
                break
        return read(session, chance)

    assert min(run(target).values()) > 0


def test_sessions_that_are_not_altered_are_understood() -> None:
    def target(chance: random.Random) -> Reading:
        session = made(chance)
        reading = read(session, chance)
        assert reading.blocks <= blocks_of(session)
        return reading

    assert run(target)[False] == 0
