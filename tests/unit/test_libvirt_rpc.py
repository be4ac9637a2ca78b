"""libvirt's messages, read three ways, and the moment of release."""

from __future__ import annotations

import struct

import pytest

from agent.stream.libvirt_rpc import (
    KEEPALIVE_PROGRAM,
    MAX_LENGTH,
    REMOTE_PROGRAM,
    Keepalive,
    Message,
    MessageReader,
    MessageType,
    Procedure,
    Status,
    keepalive,
)
from agent.stream.rpc_calls import FinishWatch
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
