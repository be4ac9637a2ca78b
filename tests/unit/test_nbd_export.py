"""What a server of NBD says of its export, with one promise less and one more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stream.nbd import (
    ACK,
    EXPORT_INFO,
    FIRST_ERROR,
    GREETING,
    GREETING_MAGICS,
    INFO,
    INFO_EXPORT,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Option,
)
from agent.stream.nbd_export import SEND_FLUSH, WRITE_BEHIND, ExportFlags
from tests.unit.nbd_reading import joined
from tests.vectors.nbd_sessions import load

# HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES.
FLAGS = 1 | SEND_FLUSH | 8 | 64
GREETED = GREETING.pack(*GREETING_MAGICS, 3)


def answer(option: int, kind: int, payload: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload


def export(flags: int, more: bytes = b"") -> bytes:
    return answer(Option.GO, INFO, INFO_EXPORT.to_bytes(2, "big") + EXPORT_INFO.pack(64 << 20, flags) + more)


def said(flags: int) -> bytes:
    """As QEMU answers: structured replies, a meta context, the block sizes, the export; then transmission."""
    return b"".join(
        (
            GREETED,
            answer(Option.STRUCTURED_REPLY, ACK),
            answer(10, 4, b"\0\0\0\1base:allocation"),
            answer(10, ACK),
            answer(Option.GO, INFO, b"\0\3" + bytes(12)),
            export(flags),
            answer(Option.GO, ACK),
            bytes(range(256)),
        )
    )


def edited(data: bytes, cuts: list[int] | None = None, add: int = 0) -> tuple[bytes, ExportFlags]:
    export, out, cuts = ExportFlags(clear=SEND_FLUSH, add=add), b"", sorted({0, *(cuts or ()), len(data)})
    for start, end in itertools.pairwise(cuts):
        piece = bytearray(data[start:end])
        export.edit(memoryview(piece))
        out += piece
    return out, export


@given(st.lists(st.integers(0, len(said(FLAGS))), max_size=20))
def test_only_the_promise_is_taken_out_however_the_bytes_are_cut(cuts: list[int]) -> None:
    out, export = edited(said(FLAGS), cuts)
    assert out == said(FLAGS & ~SEND_FLUSH)
    assert export.said & SEND_FLUSH


def test_byte_by_byte() -> None:
    out, export = edited(said(FLAGS), list(range(len(said(FLAGS)))))
    assert out == said(FLAGS & ~SEND_FLUSH)
    assert export.said & SEND_FLUSH


@given(st.lists(st.integers(0, len(said(FLAGS))), max_size=20))
def test_one_promise_is_taken_out_and_the_other_end_takes_ours_out_again(cuts: list[int]) -> None:
    out, export = edited(said(FLAGS), cuts, WRITE_BEHIND)
    assert out == said(FLAGS & ~SEND_FLUSH | WRITE_BEHIND)
    assert export.said == FLAGS
    other = ExportFlags(clear=WRITE_BEHIND)
    there = bytearray(out)
    other.edit(there)
    assert there == said(FLAGS & ~SEND_FLUSH)
    assert other.said & WRITE_BEHIND
    assert other.is_over


def test_a_server_that_promises_nothing_is_left_as_it_is() -> None:
    out, export = edited(said(FLAGS & ~SEND_FLUSH))
    assert out == said(FLAGS & ~SEND_FLUSH)
    assert not export.said & SEND_FLUSH


def test_an_export_that_says_more_than_its_flags_is_read_to_its_end() -> None:
    data = GREETED + export(FLAGS, b"more") + export(FLAGS) + answer(Option.GO, ACK) + export(FLAGS)
    out, _ = edited(data)
    assert out == GREETED + export(FLAGS & ~SEND_FLUSH, b"more") + export(FLAGS & ~SEND_FLUSH) + data[-52:]


@pytest.mark.parametrize(
    "data",
    [
        b"no NBD at all" * 9,
        GREETED + bytes(20) + export(FLAGS),
        GREETED + answer(Option.STARTTLS, ACK) + export(FLAGS),
        GREETED + answer(Option.GO, FIRST_ERROR | 6, b"unknown") + answer(Option.GO, INFO, b"\0\3" + bytes(12)),
        GREETED + answer(Option.GO, INFO, b"\0\0" + bytes(9)) + answer(Option.GO, ACK) + export(FLAGS),
    ],
    ids=["no NBD", "no answer", "encrypted", "refused", "too short"],
)
def test_whatever_else_is_said_passes_as_it_is(data: bytes) -> None:
    out, export = edited(data)
    assert out == data
    assert not export.said & SEND_FLUSH


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_greeting_keep_their_length_and_raise_nothing(data: bytes) -> None:
    out, _ = edited(GREETED + data)
    assert len(out) == len(GREETED + data)


@pytest.mark.parametrize("name", ["mirror", "copy_there", "odd"])
def test_of_a_session_that_was_recorded_from_qemu_one_bit_is_changed(name: str) -> None:
    server = joined(load(name), client=False)
    out, export = edited(server)
    assert export.said & SEND_FLUSH
    (changed,) = [at for at, (before, after) in enumerate(zip(server, out, strict=True)) if before != after]
    assert server[changed] ^ out[changed] == SEND_FLUSH
    assert edited(server, list(range(0, len(server), 7)))[0] == out
    assert not edited(out)[1].said & SEND_FLUSH


def test_an_export_that_is_asked_for_in_the_old_way_is_left_as_it_is() -> None:
    server = joined(load("export_name"), client=False)
    assert edited(server)[0] == server
