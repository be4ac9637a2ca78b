"""libvirt's RPC, as it passes on an `rpc` channel: message headers only, read incrementally.

A message is `uint32 length` (big-endian, of the whole message, itself included), a header of six 32-bit words (program,
version, procedure, type, serial, status) and a payload in XDR (libvirt: src/rpc/virnetprotocol.x).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from landbridge.errors import ProtocolError

LENGTH = struct.Struct("!I")
HEADER = struct.Struct("!IIiiIi")
# VIR_NET_MESSAGE_MAX, and the length word.
MAX_LENGTH = 33_554_432 + LENGTH.size
WORD = 4

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

    CONNECT_CLOSE = 2
    DOMAIN_MIGRATE_PREPARE3_PARAMS = 303
    DOMAIN_MIGRATE_FINISH3_PARAMS = 306


@dataclass(frozen=True, slots=True)
class Header:
    """One message's header; `length` is of the whole message."""

    length: int
    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    # The message's last four bytes: in a FINISH call, whether the source cancels.
    last_word: bytes

    def is_call_of(self, procedure: Procedure) -> bool:
        """Whether it calls a procedure of the remote program."""
        return (self.program, self.type, self.procedure) == (REMOTE_PROGRAM, MessageType.CALL, procedure)

    def is_reply_to(self, procedure: Procedure) -> bool:
        """Whether it answers a call of the remote program."""
        return (self.program, self.type, self.procedure) == (REMOTE_PROGRAM, MessageType.REPLY, procedure)


class MessageReader:
    """Bytes of one direction in, headers out. Keeps at most one incomplete header."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._header: Header | None = None
        self._tail = b""
        # Bytes of the present message that are still to come.
        self._left = 0

    def receive_data(self, data: bytes) -> Iterator[Header]:
        """Take bytes as they came; yields each message's header once its last byte is among them. Raises ProtocolError."""
        at, size = 0, LENGTH.size + HEADER.size
        while at < len(data):
            if self._header is None:
                taken = data[at : at + size - len(self._head)]
                self._head += taken
                at += len(taken)
                if len(self._head) < size:
                    return
                self._header = self._parse()
                self._left = self._header.length - size
                self._tail = bytes(self._head[-WORD:])
                self._head.clear()
            skipped = min(self._left, len(data) - at)
            self._tail = (self._tail + data[max(at, at + skipped - WORD) : at + skipped])[-WORD:]
            at += skipped
            self._left -= skipped
            if self._left == 0:
                header, self._header = self._header, None
                yield replace(header, last_word=self._tail)

    def _parse(self) -> Header:
        (length,) = LENGTH.unpack_from(self._head)
        if not LENGTH.size + HEADER.size <= length <= MAX_LENGTH:
            raise ProtocolError(f"a message of {length} bytes is none of libvirt's; the channel is closed")
        program, version, procedure, kind, serial, status = HEADER.unpack_from(self._head, LENGTH.size)
        return Header(length, program, version, procedure, kind, serial, status, b"")


class FinishWatch:
    """Watches a migration's calls at its source for the moment from which libvirt there will never run the guest again.

    That is when the daemon has been given a reply of success to a FINISH call in which it did not cancel: only on an error,
    or on a connection lost before that reply, does it let the guest run again (libvirt: qemuMigrationSrcPerformPeer2Peer3).
    """

    def __init__(self) -> None:
        self._calls = MessageReader()
        self._replies = MessageReader()
        self._finish: int | None = None

    def called(self, data: bytes) -> None:
        """Take bytes that the daemon has written. Raises ProtocolError."""
        for header in self._calls.receive_data(data):
            if header.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
                self._finish = header.serial if header.last_word == bytes(WORD) else None

    def replied(self, data: bytes) -> bool:
        """Take bytes that the daemon has been given; says whether that moment has come. Raises ProtocolError."""
        released = False
        for header in self._replies.receive_data(data):
            is_reply = header.is_reply_to(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS) and header.serial == self._finish
            released = released or (is_reply and header.status == Status.OK)
        return released
