"""libvirt's messages, read three ways; pings that are answered here; the gate; and the moment of release."""

from __future__ import annotations

import struct

import pytest

from agent.stream.libvirt_rpc import (
    KEEPALIVE_PROGRAM,
    MAX_LENGTH,
    REMOTE_PROGRAM,
    FinishWatch,
    Keepalive,
    Message,
    MessageReader,
    MessageType,
    Procedure,
    RpcEnd,
    Status,
    keepalive,
)
from landbridge.errors import ProtocolError

FINISH = Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS


def message(
    procedure: int, kind: int, serial: int, status: int = 0, payload: bytes = b"", program: int = REMOTE_PROGRAM
) -> bytes:
    return struct.pack("!IIIiiIi", 28 + len(payload), program, 1, procedure, kind, serial, status) + payload


def read(raw: bytes) -> Message:
    (only,) = MessageReader().receive_data(raw)
    return only


def finish(cancelled: int, kind: MessageType = MessageType.CALL) -> bytes:
    # No parameters, no cookie, flags, cancelled.
    return message(FINISH, kind, 9, payload=struct.pack("!IIIi", 0, 0, 0x243, cancelled))


CALL = finish(0)
CANCELLING_CALL = finish(1)
REPLY = message(FINISH, MessageType.REPLY, 9, payload=b"domain")
REFUSAL = message(FINISH, MessageType.REPLY, 9, Status.ERROR, b"an error")
PREPARE = message(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, MessageType.CALL, 3, payload=b"<domain/>")
EVENT = message(400, MessageType.MESSAGE, 0, payload=b"what happened")
PING, PONG = keepalive(Keepalive.PING), keepalive(Keepalive.PONG)

# Messages.


def test_messages_read_whole_byte_by_byte_and_with_trailing_bytes_are_the_same() -> None:
    wire = CALL + PING + REPLY
    whole = list(MessageReader().receive_data(wire))
    reader = MessageReader()
    assert [m for i in range(len(wire)) for m in reader.receive_data(wire[i : i + 1])] == whole
    assert list(MessageReader().receive_data(wire + CALL[:-1])) == whole
    assert whole[1] == Message(KEEPALIVE_PROGRAM, 1, Keepalive.PING, MessageType.MESSAGE, 0, Status.OK, PING)
    assert [m.raw for m in whole] == [CALL, PING, REPLY]


@pytest.mark.parametrize("length", [0, 27, MAX_LENGTH + 1, (32 << 20) + 4, 0xFFFFFFFF])
def test_a_length_that_cannot_be_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="none of libvirt's"):
        list(MessageReader().receive_data(struct.pack("!I", length)))


def test_the_longest_message_is_taken() -> None:
    raw = message(1, MessageType.CALL, 1, payload=bytes(MAX_LENGTH - 28))
    assert read(raw).raw == raw


# Pings.


def given(end: RpcEnd) -> list[bytes]:
    """What libvirtd is given now."""
    taken = []
    while (following := end.next_for_libvirtd()) is not None:
        taken.append(following.raw)
    return taken


def is_held(end: RpcEnd) -> bool:
    """Now: mypy would take the first answer for the last."""
    return end.is_held


@pytest.mark.parametrize("has_gate", [True, False])
def test_a_ping_is_answered_here_and_does_not_go_on(has_gate: bool) -> None:
    end = RpcEnd(has_gate=has_gate)
    assert [m.raw for m in end.from_libvirtd(PREPARE + PING + REPLY)] == [PREPARE, REPLY]
    assert given(end) == [PONG]


def test_an_answer_of_libvirtd_goes_nowhere() -> None:
    end = RpcEnd(has_gate=False)
    assert end.from_libvirtd(PONG) == []
    assert given(end) == []


def test_what_comes_from_afar_is_no_ping_to_us() -> None:
    end = RpcEnd(has_gate=False)
    end.from_channel(PING + REPLY + PONG)
    assert given(end) == [REPLY]


def test_a_message_is_given_only_when_it_is_whole_so_that_an_answer_never_lands_inside() -> None:
    end = RpcEnd(has_gate=False)
    end.from_channel(REPLY[:-1])
    end.from_libvirtd(PING)
    assert given(end) == [PONG]
    end.from_channel(REPLY[-1:])
    assert given(end) == [REPLY]


# The gate.


@pytest.mark.parametrize(
    "call",
    [
        finish(0, MessageType.CALL_WITH_FDS),
        *(message(old, MessageType.CALL, 9) for old in (63, 109, 217)),
        CALL + b"",
    ],
)
def test_a_call_that_would_go_round_the_gate_is_refused(call: bytes) -> None:
    end = RpcEnd(has_gate=True)
    if call == CALL:
        call = (
            struct.pack("!I", len(CALL) + 4) + CALL[4:] + bytes(4)
        )  # libvirt does not look at what follows the arguments
    with pytest.raises(ProtocolError, match=r"unchecked|more in it"):
        end.from_channel(call)
    assert given(end) == []


def test_a_call_with_parameters_and_a_cookie_is_understood() -> None:
    words = struct.pack("!I", 2)  # parameters: an unsigned int and a string
    words += struct.pack("!I", 3) + b"abc\0" + struct.pack("!II", 2, 7)
    words += struct.pack("!I", 4) + b"name" + struct.pack("!II", 7, 5) + b"guest\0\0\0"
    words += struct.pack("!I", 6) + b"cookie\0\0" + struct.pack("!I", 0x243)
    end = RpcEnd(has_gate=True)
    end.from_channel(message(FINISH, MessageType.CALL, 9, payload=words + struct.pack("!i", 0)))
    assert end.is_held
    end.cancel_gate()
    assert given(end) == [message(FINISH, MessageType.CALL, 9, payload=words + struct.pack("!i", 1))]


def test_the_call_by_which_the_guest_arrives_waits_with_all_that_follows() -> None:
    call = CALL
    end = RpcEnd(has_gate=True)
    end.from_channel(PREPARE + call + EVENT)
    assert is_held(end)
    assert given(end) == [PREPARE]
    end.open_gate()
    assert not is_held(end)
    assert given(end) == [call, EVENT]


def test_a_gate_that_cancels_changes_the_last_word_of_the_call_and_nothing_else() -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(CALL + EVENT)
    end.cancel_gate()
    assert given(end) == [CANCELLING_CALL, EVENT]


def test_pings_are_answered_while_a_call_is_held() -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(CALL)
    end.from_libvirtd(PING)
    assert given(end) == [PONG]


def test_what_libvirtd_says_goes_on_while_a_call_is_held() -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(CALL)
    assert [m.raw for m in end.from_libvirtd(EVENT)] == [EVENT]


@pytest.mark.parametrize("cancelled", [1, 2, -1, 1 << 24])
def test_a_call_that_cancels_is_not_held(cancelled: int) -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(finish(cancelled))
    assert not end.is_held
    assert given(end) == [finish(cancelled)]


@pytest.mark.parametrize("first", [CALL, CANCELLING_CALL])
def test_a_second_call_to_finish_is_refused(first: bytes) -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(first)
    with pytest.raises(ProtocolError, match="a second call to finish"):
        end.from_channel(CALL)


def test_a_gate_that_is_opened_or_cancelled_with_nothing_held_does_nothing() -> None:
    end = RpcEnd(has_gate=True)
    end.open_gate()
    end.cancel_gate()
    end.from_channel(EVENT)
    assert given(end) == [EVENT]


@pytest.mark.parametrize("odd", [REPLY, message(FINISH, MessageType.CALL, 9, program=77, payload=bytes(8)), PREPARE])
def test_nothing_else_is_held(odd: bytes) -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(odd)
    assert given(end) == [odd]


def test_at_the_source_nothing_is_held() -> None:
    end = RpcEnd(has_gate=False)
    end.from_channel(CALL + CALL)
    assert given(end) == [CALL, CALL]


def test_what_waits_for_libvirtd_or_the_gate_is_counted_until_it_is_taken() -> None:
    end = RpcEnd(has_gate=True)
    end.from_channel(PREPARE + CALL + EVENT)
    assert end.waiting_bytes == len(PREPARE + CALL + EVENT)
    given(end)
    assert end.waiting_bytes == len(CALL + EVENT)
    end.cancel_gate()
    given(end)
    assert end.waiting_bytes == 0


# The release.


def released(call: bytes, *replies: bytes) -> list[bool]:
    watch = FinishWatch()
    watch.called(read(call))
    return [watch.replied(read(reply)) for reply in replies]


def test_a_success_to_a_finish_that_does_not_cancel_is_the_release() -> None:
    assert released(CALL, PING, REPLY) == [False, True]


def test_an_error_a_cancelling_call_and_a_reply_to_nothing_release_nothing() -> None:
    assert released(CALL, REFUSAL) == [False]
    assert released(CANCELLING_CALL, REPLY) == [False]
    assert released(PING, REPLY) == [False]
    assert released(CALL, message(FINISH, MessageType.REPLY, 8)) == [False]
    assert released(CALL, message(303, MessageType.REPLY, 9)) == [False]


def test_a_finish_that_is_called_again_to_cancel_releases_nothing() -> None:
    watch = FinishWatch()
    watch.called(read(CALL))
    watch.called(read(CANCELLING_CALL))
    assert not watch.replied(read(REPLY))
