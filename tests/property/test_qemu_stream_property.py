"""However a migration stream is cut into pieces, its hints point at the right pages."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import hypothesis.strategies as st
from hypothesis import given, settings

from agent.stream.qemu import MOST_TAIL, QemuStream
from landbridge import hints
from landbridge.hints import PAGE, SIZES
from tests.unit.test_qemu_stream import STREAMS, pages
from tests.vectors import qemu_made as made
from tests.vectors.qemu_pages import Hint, hints_of

EXPECTED = {name: hints_of(stream) for name, stream in STREAMS.items()}
# Bytes of a record before its page: an address, and the name of a block with its length.
LONGEST_HEAD = 8 + 1 + 255
PIECES = st.lists(
    st.one_of(st.integers(1, 40), st.integers(1, 9000), st.integers(1, 256 << 10)), min_size=1, max_size=12
)


def cut(stream: bytes, lengths: list[int], holds: Callable[[], bool]) -> tuple[list[Hint], list[int], QemuStream]:
    """What is found if pieces of these lengths arrive, over and over; `holds` says whether a tail is held back.

    Also the offsets at which a record was cut and its beginning gone.
    """
    reader, found, gone, held, at, turn = QemuStream(), list[Hint](), list[int](), b"", 0, 0
    while at < len(stream):
        piece = held + stream[at : at + lengths[turn % len(lengths)]]
        at += len(piece) - len(held)
        turn += 1
        runs, tail = reader.feed(memoryview(piece))
        assert 0 <= tail < MOST_TAIL
        assert tail <= len(piece)
        assert all(run.end <= len(piece) - tail for run in runs)
        assert hints.decode(hints.encode(runs), len(piece)) == runs[: hints.MOST_RUNS]
        found += pages(runs, at - len(piece))
        held = piece[len(piece) - tail :]
        if tail and not holds():
            reader.skip_tail()
            gone.append(at)
            held = b""
    return found, gone, reader


@given(st.sampled_from(list(STREAMS)), PIECES)
@settings(deadline=None, max_examples=60)
def test_a_stream_of_which_tails_are_held_back_has_all_its_hints(name: str, lengths: list[int]) -> None:
    # Shorter pieces are read in the tests of a stream that comes byte by byte.
    found, _, reader = cut(STREAMS[name], [length + 500 for length in lengths], lambda: True)
    assert found == EXPECTED[name]
    assert reader.understood
    assert reader.pages == len(found)


@given(st.sampled_from(list(STREAMS)), PIECES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_a_stream_of_which_tails_are_let_go_lacks_no_hint_but_theirs(
    name: str, lengths: list[int], chance: Random
) -> None:
    found, gone, reader = cut(STREAMS[name], [length + 500 for length in lengths], lambda: chance.random() < 0.5)
    assert reader.understood
    assert found == sorted(found)
    assert set(found) <= set(EXPECTED[name])
    lacking, before = set(EXPECTED[name]) - set(found), 0
    for hint in EXPECTED[name]:
        end = hint.offset + SIZES[hint.kind]
        # A record begins with its head, and that behind the page before.
        begin = max(hint.offset - LONGEST_HEAD, before)
        assert hint not in lacking or any(begin < at < end for at in gone)
        before = end


RECORDS = st.lists(
    st.tuples(st.sampled_from(("page", "zero", "xbzrle")), st.integers(0, 63), st.booleans()), max_size=60
)


@given(RECORDS, PIECES)
@settings(deadline=None)
def test_any_order_of_pages_has_their_hints(records: list[tuple[str, int, bool]], lengths: list[int]) -> None:
    form = {"page": made.page, "zero": made.zero, "xbzrle": lambda address, of: made.xbzrle(address, b"\0\1x", of)}
    names = [b"pc.ram" if named or not at else b"" for at, (_, _, named) in enumerate(records)]
    told = [form[kind](number * PAGE, name) for name, (kind, number, _) in zip(names, records, strict=True)]
    begin = made.HEADER + made.start(made.block(b"pc.ram", 64 * PAGE), total=64 * PAGE)
    stream = begin + made.part(*told[:30]) + made.part(*told[30:], kind=3) + made.DEVICES
    found, _, reader = cut(stream, lengths, lambda: True)
    assert found == hints_of(stream)
    assert reader.understood


@given(st.lists(st.lists(st.integers(0, 300), max_size=128), max_size=4), PIECES)
@settings(deadline=None, max_examples=50)
def test_any_packets_have_hints_for_their_pages(packets: list[list[int]], lengths: list[int]) -> None:
    stream = made.CHANNEL + b"".join(made.packet([number * PAGE for number in numbers]) for numbers in packets)
    found, _, reader = cut(stream, [length + 100 for length in lengths], lambda: True)
    assert found == hints_of(stream)
    assert reader.understood
