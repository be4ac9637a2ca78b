"""An rpc channel's end: however its messages are mixed and cut, the other daemon gets the others, and each PING one PONG."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from agent.stream.libvirt_rpc import (
    HEADER,
    LENGTH,
    MAX_LENGTH,
    REMOTE_PROGRAM,
    Keepalive,
    MessageReader,
    MessageType,
    keepalive,
)
from agent.stream.rpc_end import RpcEnd
from landbridge.errors import ProtocolError
from tests.unit.rpc_made import finish, opened, prepared

PING, PONG = keepalive(Keepalive.PING), keepalive(Keepalive.PONG)


def encoded(procedure: int, kind: int, serial: int, payload: bytes) -> bytes:
    return LENGTH.pack(28 + len(payload)) + HEADER.pack(REMOTE_PROGRAM, 1, procedure, kind, serial, 0) + payload


others = st.builds(
    encoded,
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from(MessageType),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=60),
)
keepalives = st.sampled_from([PING, PONG])
mixed = st.lists(st.one_of(others, keepalives), max_size=30)
cuts = st.lists(st.integers(1, 90), min_size=1)


def pieces(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = step = 0
    while at < len(stream):
        size = sizes[step % len(sizes)]
        yield stream[at : at + size]
        at, step = at + size, step + 1


def taken(end: RpcEnd) -> list[bytes]:
    messages = []
    while (message := end.next_for_libvirtd()) is not None:
        messages.append(message.raw)
    return messages


@given(mixed, mixed, cuts, cuts, st.lists(st.booleans(), min_size=1))
def test_each_daemon_gets_the_others_messages_in_order_and_a_pong_for_each_ping_of_its_own(
    ours: list[bytes],
    theirs: list[bytes],
    our_cuts: list[int],
    their_cuts: list[int],
    turns: list[bool],
) -> None:
    end = RpcEnd(None)
    from_libvirtd, from_channel = pieces(b"".join(ours), our_cuts), pieces(b"".join(theirs), their_cuts)
    onward: list[bytes] = []
    for_libvirtd: list[bytes] = []
    step = idle = 0
    while idle < 2:
        piece = next(from_libvirtd if (turn := turns[step % len(turns)] ^ bool(idle)) else from_channel, None)
        if piece is None:
            idle += 1
            continue
        step, idle = step + 1, 0
        if turn:
            onward += [message.raw for message in end.from_libvirtd(piece)]
        else:
            end.from_channel(piece)
        for_libvirtd += taken(end)
    assert onward == [message for message in ours if message not in {PING, PONG}]
    assert [message for message in for_libvirtd if message != PONG] == [m for m in theirs if m not in {PING, PONG}]
    assert for_libvirtd.count(PONG) == ours.count(PING)
    # Whole messages, one after the other: what libvirtd reads is what was given.
    assert [m.raw for m in MessageReader().receive_data(b"".join(for_libvirtd))] == for_libvirtd
    assert end.waiting_bytes == 0


@given(st.lists(keepalives, max_size=9), st.booleans(), cuts, st.integers(0, 20))
def test_however_a_finish_call_comes_nothing_passes_it_and_only_its_last_word_may_change(
    before: list[bytes], whole: bool, sizes: list[int], pings: int
) -> None:
    call = finish()
    end = RpcEnd(prepared())
    for piece in pieces(b"".join([*before, call]), sizes):
        end.from_channel(piece)
    end.from_libvirtd(PING * pings)
    assert end.is_held
    assert taken(end) == [PONG] * pings
    (end.open_gate if whole else end.cancel_gate)()
    assert taken(end) == [call if whole else call[:-4] + struct.pack("!i", 1)]


@given(st.booleans(), st.booleans(), st.lists(st.one_of(st.binary(max_size=60), others)))
def test_any_bytes_are_messages_or_a_protocol_error_and_nothing_else(
    is_destination: bool, local: bool, hostile: list[bytes]
) -> None:
    end = RpcEnd(opened() if is_destination else None)
    for piece in hostile:
        try:
            if local:
                end.from_libvirtd(piece)
            else:
                end.from_channel(piece)
        except ProtocolError:
            return


@given(st.one_of(st.integers(0, 27), st.integers(MAX_LENGTH + 1, 2**32 - 1)), mixed, cuts)
def test_a_length_that_cannot_be_is_refused_after_what_came_before_it(
    length: int, before: list[bytes], sizes: list[int]
) -> None:
    end = RpcEnd(None)
    refused = False
    for piece in pieces(b"".join(before) + LENGTH.pack(length), sizes):
        try:
            end.from_channel(piece)
        except ProtocolError:
            refused = True
    assert refused
    assert taken(end) == [message for message in before if message not in {PING, PONG}]
