"""libvirt's messages, read three ways, and the moment of release."""

import struct

import pytest

from agent.stream.libvirt_rpc import (
    KEEPALIVE_PROGRAM,
    REMOTE_PROGRAM,
    FinishWatch,
    Header,
    MessageReader,
    MessageType,
    Procedure,
    Status,
)
from landbridge.errors import ProtocolError

FINISH = Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS


def message(
    procedure: int, kind: int, serial: int, status: int = 0, payload: bytes = b"", program: int = REMOTE_PROGRAM
) -> bytes:
    return struct.pack("!IIIiiIi", 28 + len(payload), program, 1, procedure, kind, serial, status) + payload


CALL = message(FINISH, MessageType.CALL, 9, payload=b"\0" * 40 + struct.pack("!Ii", 0x243, 0))
CANCELLING_CALL = message(FINISH, MessageType.CALL, 9, payload=b"\0" * 40 + struct.pack("!Ii", 0x243, 1))
REPLY = message(FINISH, MessageType.REPLY, 9, payload=b"domain")
REFUSAL = message(FINISH, MessageType.REPLY, 9, Status.ERROR, b"an error")
PING = message(1, MessageType.MESSAGE, 0, program=KEEPALIVE_PROGRAM)


def test_messages_read_whole_byte_by_byte_and_with_trailing_bytes_are_the_same() -> None:
    wire = CALL + PING + REPLY
    whole = list(MessageReader().receive_data(wire))
    reader = MessageReader()
    assert [h for i in range(len(wire)) for h in reader.receive_data(wire[i : i + 1])] == whole
    assert list(MessageReader().receive_data(wire + CALL[:-1])) == whole
    assert whole[1] == Header(28, KEEPALIVE_PROGRAM, 1, 1, MessageType.MESSAGE, 0, 0, bytes(4))
    assert [h.length for h in whole] == [len(CALL), len(PING), len(REPLY)]


@pytest.mark.parametrize("length", [0, 27, 33_554_437])
def test_a_length_that_cannot_be_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="none of libvirt's"):
        list(MessageReader().receive_data(struct.pack("!I", length) + bytes(24)))


def released(call: bytes, *replies: bytes) -> list[bool]:
    watch = FinishWatch()
    watch.called(call)
    return [watch.replied(reply) for reply in replies]


def test_a_success_to_a_finish_that_does_not_cancel_is_the_release() -> None:
    assert released(CALL, PING, REPLY) == [False, True]


def test_only_the_last_byte_of_the_reply_is_the_release() -> None:
    assert released(CALL, REPLY[:-1], REPLY[-1:]) == [False, True]


def test_an_error_a_cancelling_call_and_a_reply_to_nothing_release_nothing() -> None:
    assert released(CALL, REFUSAL) == [False]
    assert released(CANCELLING_CALL, REPLY) == [False]
    assert released(PING, REPLY) == [False]
    assert released(CALL, message(FINISH, MessageType.REPLY, 8)) == [False]
    assert released(CALL, message(303, MessageType.REPLY, 9)) == [False]
