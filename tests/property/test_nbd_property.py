"""NBD: however a session is cut, the same blocks are found; and without held tails those that came in one piece."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from landbridge.hints import PAGE
from tests.unit.nbd_made import made
from tests.unit.nbd_reading import blocks_of, joined, read
from tests.vectors.nbd_sessions import Session

seeds = st.integers(0, 2**32).map(random.Random)
cuts = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 20_000), st.just(1 << 18)), min_size=1)


def merged(session: Session) -> Session:
    """The same, with what one end says in a row in one piece."""
    whole: Session = []
    for client, data in session:
        if whole and whole[-1][0] is client:
            whole[-1] = (client, whole[-1][1] + data)
        else:
            whole.append((client, data))
    return whole


def cut(session: Session, sizes: list[int]) -> Session:
    pieces: Session = []
    for client, data in session:
        at = 0
        while at < len(data):
            size = sizes[len(pieces) % len(sizes)]
            pieces.append((client, data[at : at + size]))
            at += size
    return pieces


@settings(max_examples=50, deadline=None)  # pieces of one byte take a second
@given(seeds, st.booleans(), cuts)
def test_all_whole_blocks_are_found_however_the_session_is_cut(
    chance: random.Random, merge: bool, sizes: list[int]
) -> None:
    session = made(chance)
    reading = read(cut(merged(session) if merge else session, sizes))
    assert reading.stream.understood, reading.stream.why
    assert reading.blocks == blocks_of(session)


@settings(max_examples=50, deadline=None)
@given(seeds, cuts)
def test_without_held_tails_the_blocks_that_came_in_one_piece_are_found(
    chance: random.Random, sizes: list[int]
) -> None:
    session = made(chance)
    pieces = cut(merged(session), sizes)
    reading = read(pieces, holds=False)
    assert reading.stream.understood, reading.stream.why
    ends = {True: [0], False: [0]}
    for client, data in pieces:
        ends[client].append(ends[client][-1] + len(data))
    cut_at = {client: set(each) for client, each in ends.items()}
    whole = {
        (client, at, number)
        for client, at, number in blocks_of(session)
        if not any(end in cut_at[client] for end in range(at + 1, at + PAGE))
    }
    assert reading.blocks == whole


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1 << 17))
def test_a_session_that_breaks_off_anywhere_is_understood_up_to_there(chance: random.Random, length: int) -> None:
    session = made(chance)
    broken: Session = []
    for client, data in session:
        broken.append((client, data[:length]))
        length -= len(data)
        if length <= 0:
            break
    reading = read(broken)
    assert reading.stream.understood, reading.stream.why
    said = {client: len(joined(broken, client=client)) for client in (True, False)}
    assert reading.blocks == {block for block in blocks_of(session) if block[1] + PAGE <= said[block[0]]}
