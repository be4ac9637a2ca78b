"""libvirt's RPC, as it passes on an `rpc` channel: whole messages of which the headers are read.

A message is `uint32 length` (big-endian, of the whole message, itself included), a header of six 32-bit words (program,
version, procedure, type, serial, status) and a payload in XDR (libvirt: src/rpc/virnetprotocol.x).

`rpc_end` is what an agent does with them, `firewall` what it lets pass.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from landbridge.errors import ProtocolError

LENGTH = struct.Struct("!I")
HEADER = struct.Struct("!IIiiIi")
# libvirt allows 32 MiB (VIR_NET_MESSAGE_MAX). Those of a migration have kilobytes, and a message must fit well below what a
# channel may have under way.
MAX_LENGTH = 16 << 20
# Bytes before the payload.
HEADER_SIZE = LENGTH.size + HEADER.size

REMOTE_PROGRAM = 0x20008086
KEEPALIVE_PROGRAM = 0x6B656570


class MessageType(IntEnum):
    """virNetMessageType."""

    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    """virNetMessageStatus."""

    OK = 0
    ERROR = 1
    CONTINUE = 2


class Procedure(IntEnum):
    """Procedures of the remote program that matter here (libvirt: src/remote/remote_protocol.x)."""

    CONNECT_OPEN = 1
    CONNECT_CLOSE = 2
    CONNECT_SUPPORTS_FEATURE = 60
    DOMAIN_MIGRATE_FINISH = 63
    AUTH_LIST = 66
    DOMAIN_MIGRATE_FINISH2 = 109
    DOMAIN_MIGRATE_FINISH3 = 217
    DOMAIN_MIGRATE_PREPARE3_PARAMS = 303
    DOMAIN_MIGRATE_FINISH3_PARAMS = 306
    CONNECT_REGISTER_CLOSE_CALLBACK = 360
    CONNECT_UNREGISTER_CLOSE_CALLBACK = 361
    CONNECT_EVENT_CONNECTION_CLOSED = 362


class Keepalive(IntEnum):
    """Procedures of the keepalive program (libvirt: src/rpc/virkeepaliveprotocol.x)."""

    PING = 1
    PONG = 2


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `raw` is all of it, with its length."""

    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    raw: bytes

    @property
    def payload(self) -> memoryview:
        """What follows the header."""
        return memoryview(self.raw)[HEADER_SIZE:]

    def is_call_of(self, procedure: Procedure) -> bool:
        """Whether it calls a procedure of the remote program."""
        # libvirtd does not care whether files come along (virNetServerProgramDispatch).
        is_call = self.type in {MessageType.CALL, MessageType.CALL_WITH_FDS}
        return is_call and (self.program, self.procedure) == (REMOTE_PROGRAM, procedure)

    def is_reply_to(self, procedure: Procedure) -> bool:
        """Whether it answers a call of the remote program."""
        return (self.program, self.type, self.procedure) == (REMOTE_PROGRAM, MessageType.REPLY, procedure)


def message(
    program: int, procedure: int, kind: int, serial: int, status: int, payload: bytes = b"", *, version: int = 1
) -> bytes:
    """A message as it travels."""
    length = HEADER_SIZE + len(payload)
    return LENGTH.pack(length) + HEADER.pack(program, version, procedure, kind, serial, status) + payload


def keepalive(procedure: Keepalive) -> bytes:
    """A PING or a PONG."""
    return message(KEEPALIVE_PROGRAM, procedure, MessageType.MESSAGE, 0, Status.OK)


class MessageReader:
    """Bytes of one direction in, messages out. Keeps at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Take bytes as they came; yields each message that they complete. Raises ProtocolError."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer)
            if not HEADER_SIZE <= length <= MAX_LENGTH:
                raise ProtocolError(f"a message of {length} bytes is none of libvirt's; the channel is closed")
            if len(buffer) < length:
                return
            raw = bytes(buffer[:length])
            del buffer[:length]
            program, version, procedure, kind, serial, status = HEADER.unpack_from(raw, LENGTH.size)
            yield Message(program, version, procedure, kind, serial, status, raw)
