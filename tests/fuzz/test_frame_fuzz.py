"""Fuzz targets of what is decoded from the wire: each documented error, and no other; and no more memory than is documented.

They run for FUZZ_SECONDS each, one if it is not set, from the seed FUZZ_SEED. A failure prints the seed of its input.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from landbridge.errors import ProtocolError
from landbridge.frame import (
    DIGEST_SIZE,
    HEADER,
    LINK_TYPES,
    MAX_HINTS,
    MAX_PAYLOAD,
    MAX_RANGES,
    MAX_REASON,
    VERSION,
    Acknowledgement,
    Frame,
    FrameDecoder,
    FrameType,
    reason_of,
    reset,
)

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

# The documented errors: one of them each time, and each of them at some time.
HEADER_ERRORS = (
    r"a frame of version \d+ arrived, and this end speaks version 2; update the older end",
    r"a frame of unknown type \d+ arrived; update the older end",
    r"a [A-Z_]+ frame with \d+ bytes of hints arrived; the link is closed",
    r"a [A-Z_]+ frame of \d+ bytes arrived, more than its type allows; the link is closed",
    r"a [A-Z_]+ frame arrived on channel \d+; the link is closed",
)
ACKNOWLEDGEMENT_ERRORS = (
    r"an acknowledgement of \d+ bytes arrived; the channel is closed",
    r"an acknowledgement contradicts itself; the channel is closed",
    r"bytes were acknowledged before they arrived; the channel is closed",
)


def rounds() -> Iterator[tuple[int, random.Random]]:
    """A seed and its source of randomness, until the time is over."""
    until = time.monotonic() + SECONDS
    seed = SEED << 32
    while time.monotonic() < until:
        seed += 1
        yield seed, random.Random(seed)


def a_number(chance: random.Random, bits: int) -> int:
    """A number of so many bits; often one at an edge."""
    edge = chance.choice((0, 1, (1 << bits) - 1, 1 << chance.randrange(bits), chance.getrandbits(bits)))
    return min(max(edge + chance.choice((-1, 0, 0, 1)), 0), (1 << bits) - 1)


def a_frame(chance: random.Random) -> Frame:
    """A frame that can be."""
    kind = chance.choice(list(FrameType))
    channel = 0 if kind in LINK_TYPES else a_number(chance, 64) or 1
    position = a_number(chance, 64)
    match kind:
        case FrameType.DATA | FrameType.DATA_CHECKED:
            hints = chance.randbytes(chance.choice((0, 0, 9, MAX_HINTS)))
            return Frame(kind, channel, position, chance.randbytes(chance.choice((0, 1, 100, 70_000))), hints)
        case FrameType.ACK | FrameType.ACCEPT:
            return an_acknowledgement(chance).frame(kind, channel)
        case FrameType.RESET:
            return reset(channel, "é" * chance.randrange(MAX_REASON))
        case FrameType.OPEN:
            return Frame(kind, channel, 0, chance.randbytes(100))
        case FrameType.FIN:
            return Frame(kind, channel, position, chance.randbytes(DIGEST_SIZE))
        case _:
            return Frame(kind, channel, position)


def an_acknowledgement(chance: random.Random) -> Acknowledgement:
    """An acknowledgement that can be."""
    offsets = sorted({a_number(chance, 64) for _ in range(2 + 2 * chance.randrange(MAX_RANGES))} | {0, 1})
    delivered, received, *rest = offsets
    return Acknowledgement(delivered, received, a_number(chance, 32), tuple(zip(rest[::2], rest[1::2], strict=False)))


def a_header(chance: random.Random) -> bytes:
    """A header that breaks a rule, or two, or none."""
    return HEADER.pack(
        chance.choice((VERSION, VERSION, VERSION, a_number(chance, 8))),
        chance.choice((*FrameType, *FrameType, a_number(chance, 8))),
        chance.choice((0, 0, 0, MAX_HINTS, MAX_HINTS + 1, a_number(chance, 16))),
        chance.choice((0, 12, 32, MAX_REASON + 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, a_number(chance, 32))),
        chance.choice((0, 1, a_number(chance, 64))),
        a_number(chance, 64),
    )


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same with a few bits, bytes or stretches changed."""
    found = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at = chance.randrange(len(found)) if found else 0
        match chance.randrange(4):
            case 0 if found:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                del found[at : at + chance.randrange(1, 30)]
            case 2:
                found[at:at] = chance.randbytes(chance.randrange(1, 30))
            case _:
                found[at:at] = found[at : at + chance.randrange(1, 60)]
    return bytes(found)


def a_wire(chance: random.Random) -> bytes:
    """What a link might bring."""
    parts: list[bytes] = []
    for _ in range(chance.randrange(1, 5)):
        match chance.randrange(6):
            case 0:
                parts.append(chance.randbytes(chance.randrange(80)))
            case 1:
                parts.append(a_header(chance) + bytes(chance.choice((0, 1, 300))))
            case 2 | 3:
                parts.append(mutated(a_frame(chance).encode(), chance))
            case _:
                parts.append(a_frame(chance).encode())
    return b"".join(parts)


def held_by(decoder: FrameDecoder) -> int:
    """Bytes that a decoder keeps between two calls."""
    return len(decoder._head) + (0 if decoder._frame is None else len(decoder._view))


def read(wire: bytes, chance: random.Random) -> tuple[list[Frame], ProtocolError | None]:
    """The frames of a wire that gives its bytes in pieces of any size."""
    decoder, frames, at = FrameDecoder(), list[Frame](), 0
    step = chance.choice((1, 7, 30, 5000, 1 << 20))
    while at < len(wire):
        buffer = decoder.buffer()
        count = min(len(buffer), len(wire) - at, chance.randint(1, step))
        assert count > 0, "the decoder takes no more bytes"
        buffer[:count] = wire[at : at + count]
        at += count
        try:
            frame = decoder.received(count)
        except ProtocolError as error:
            return frames, error
        finally:
            assert held_by(decoder) <= HEADER.size + MAX_PAYLOAD
        if frame is not None:
            frames.append(frame)
    return frames, None


def run(target: Callable[[random.Random], ProtocolError | None], documented: tuple[str, ...]) -> None:
    """Run a target until the time is over: it returns the error that it met."""
    met: Counter[str] = Counter()
    for seed, chance in rounds():
        try:
            error = target(chance)
        except Exception as foreign:
            foreign.add_note(f"the input of seed {seed}")
            raise
        if error is not None:
            [name] = [each for each in documented if re.fullmatch(each, error.message)] or [error.message]
            assert name in documented, f"an error that is not documented, with the input of seed {seed}: {name}"
            met[name] += 1
    assert set(met) == set(documented), "not every documented error was met"


def test_whatever_a_link_brings_is_frames_or_a_documented_error() -> None:
    def target(chance: random.Random) -> ProtocolError | None:
        wire = a_wire(chance)
        frames, error = read(wire, chance)
        # What was decoded is what stood there, and can be sent on as it is.
        assert wire.startswith(b"".join(frame.encode() for frame in frames))
        for frame in frames:
            reason_of(frame)
        return error

    run(target, HEADER_ERRORS)


def test_whatever_an_acknowledgement_brings_is_one_or_a_documented_error() -> None:
    def target(chance: random.Random) -> ProtocolError | None:
        frame = an_acknowledgement(chance).frame(FrameType.ACK, 1)
        position = chance.choice((frame.position, a_number(chance, 64)))
        payload = mutated(bytes(frame.payload), chance)
        try:
            said = Acknowledgement.of(Frame(FrameType.ACK, 1, position, payload))
        except ProtocolError as error:
            return error
        again = said.frame(FrameType.ACK, 1)
        assert (again.position, bytes(again.payload)) == (position, payload)
        return None

    run(target, ACKNOWLEDGEMENT_ERRORS)


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 2**32 - 1])
def test_no_memory_is_taken_for_a_payload_that_is_too_large(length: int) -> None:
    decoder = FrameDecoder()
    decoder.buffer()[:] = HEADER.pack(VERSION, FrameType.DATA, 0, length, 1, 0)
    with pytest.raises(ProtocolError):
        decoder.received(HEADER.size)
    assert held_by(decoder) == HEADER.size
