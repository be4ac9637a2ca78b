"""libvirt's RPC, as it passes on an `rpc` channel: whole messages of which the headers are read.

A message is `uint32 length` (big-endian, of the whole message, itself included), a header of six 32-bit words (program,
version, procedure, type, serial, status) and a payload in XDR (libvirt: src/rpc/virnetprotocol.x).

What an agent does with them (`RpcEnd`):

    keepalive    Both daemons ping each other every 5 s, and close after 30 s without an answer (src/rpc/virkeepalive.c). A PING is
                 answered here, and never goes on: a WAN that is silent for a while is no business of libvirt's.
    whole        The daemon is given whole messages only, so that an answer to a PING never lands inside another message.
    the gate     At the destination, the FINISH call that would let the guest arrive is held until somebody has seen that memory
                 and disks arrived unaltered; else it becomes a call that cancels, and the guest goes on at the source. Whatever
                 comes after it waits behind it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from landbridge.errors import ProtocolError

LENGTH = struct.Struct("!I")
HEADER = struct.Struct("!IIiiIi")
# libvirt allows 32 MiB (VIR_NET_MESSAGE_MAX). Those of a migration have kilobytes, and a message must fit well below what a
# channel may have under way.
MAX_LENGTH = 16 << 20
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
    DOMAIN_MIGRATE_FINISH = 63
    DOMAIN_MIGRATE_FINISH2 = 109
    DOMAIN_MIGRATE_FINISH3 = 217
    DOMAIN_MIGRATE_PREPARE3_PARAMS = 303
    DOMAIN_MIGRATE_FINISH3_PARAMS = 306


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

    def is_call_of(self, procedure: Procedure) -> bool:
        """Whether it calls a procedure of the remote program."""
        # libvirtd does not care whether files come along (virNetServerProgramDispatch).
        is_call = self.type in {MessageType.CALL, MessageType.CALL_WITH_FDS}
        return is_call and (self.program, self.procedure) == (REMOTE_PROGRAM, procedure)

    def is_reply_to(self, procedure: Procedure) -> bool:
        """Whether it answers a call of the remote program."""
        return (self.program, self.type, self.procedure) == (REMOTE_PROGRAM, MessageType.REPLY, procedure)

    @property
    def is_finish(self) -> bool:
        """Whether it is the FINISH call by which the guest arrives: one that does not cancel. Raises ProtocolError."""
        return self.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS) and not cancels(self)

    def cancelling(self) -> bytes:
        """A FINISH call with `cancelled` set, and nothing else changed."""
        return self.raw[:-WORD] + LENGTH.pack(1)


# The arguments of a FINISH call.
MAX_PARAMS = 64
STRING_PARAM = 7
# Bytes of a typed parameter's value by its type: int, unsigned int, hyper, unsigned hyper, double, bool.
PARAM_SIZES = {1: 4, 2: 4, 3: 8, 4: 8, 5: 8, 6: 4}
FLAGS_AND_CANCELLED = struct.Struct("!Ii")
CANCELLED = struct.Struct("!i")


def cancels(finish: Message) -> bool:
    """Whether a FINISH call says that the source keeps the VM: whether `cancelled`, its last word, is not zero.

    Raises ProtocolError for arguments with anything missing or left over. libvirt does not look at what follows them
    (virNetMessageDecodePayload), so the last word of a call that is too long is not the one that it goes by.

    struct remote_domain_migrate_finish3_params_args: {string field; union (int type) value} params<64>, opaque cookie_in<>,
    unsigned int flags, int cancelled (libvirt: src/remote/remote_protocol.x).
    """
    raw = finish.raw
    try:
        at = _after_opaque(raw, _after_params(raw, LENGTH.size + HEADER.size))
        _flags, cancelled = FLAGS_AND_CANCELLED.unpack_from(raw, at)
    except (struct.error, KeyError):
        raise ProtocolError("a FINISH call is cut short or malformed; the channel is closed") from None
    if at + FLAGS_AND_CANCELLED.size != len(raw):
        raise ProtocolError("a FINISH call has more in it than libvirt reads; the channel is closed")
    return bool(cancelled)


def _after_params(raw: bytes, at: int) -> int:
    """Where typed parameters that begin at `at` end."""
    (count,) = LENGTH.unpack_from(raw, at)
    if count > MAX_PARAMS:
        raise ProtocolError(f"a FINISH call has {count} parameters, more than libvirt takes; the channel is closed")
    at += LENGTH.size
    for _ in range(count):
        at = _after_opaque(raw, at)
        (kind,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        at = _after_opaque(raw, at) if kind == STRING_PARAM else at + PARAM_SIZES[kind]
    return at


def _after_opaque(raw: bytes, at: int) -> int:
    """Where bytes or a string that begin at `at` end, with their padding to whole words."""
    (length,) = LENGTH.unpack_from(raw, at)
    return int(at + LENGTH.size + length + -length % 4)


# What libvirtd takes for a call, and the calls that end a migration at its destination, the forms of old libvirts too.
CALLS = frozenset({MessageType.CALL, MessageType.CALL_WITH_FDS})
FINISHES = frozenset(
    {
        Procedure.DOMAIN_MIGRATE_FINISH,
        Procedure.DOMAIN_MIGRATE_FINISH2,
        Procedure.DOMAIN_MIGRATE_FINISH3,
        Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS,
    }
)


def keepalive(procedure: Keepalive) -> bytes:
    """A PING or a PONG."""
    size = LENGTH.size + HEADER.size
    return LENGTH.pack(size) + HEADER.pack(KEEPALIVE_PROGRAM, 1, procedure, MessageType.MESSAGE, 0, Status.OK)


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
            if not LENGTH.size + HEADER.size <= length <= MAX_LENGTH:
                raise ProtocolError(f"a message of {length} bytes is none of libvirt's; the channel is closed")
            if len(buffer) < length:
                return
            raw = bytes(buffer[:length])
            del buffer[:length]
            program, version, procedure, kind, serial, status = HEADER.unpack_from(raw, LENGTH.size)
            yield Message(program, version, procedure, kind, serial, status, raw)


class RpcEnd:
    """One end of an `rpc` channel: between libvirtd on this host, and the channel.

    Messages for libvirtd queue here; whoever owns this takes them with `next_for_libvirtd`, and lets no more come than can wait.
    """

    def __init__(self, *, has_gate: bool) -> None:
        """`has_gate` at the destination, whose libvirtd is the one that is called."""
        # Bytes of messages that wait for libvirtd, or for the gate.
        self.waiting_bytes = 0
        # Whether a FINISH call waits for `open_gate` or `cancel_gate`.
        self.is_held = False
        self._has_gate = has_gate
        self._for_libvirtd: deque[Message] = deque()
        self._from_libvirtd = MessageReader()
        self._from_channel = MessageReader()
        self._held: deque[Message] = deque()
        self._has_finished = False

    def from_libvirtd(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take bytes that libvirtd has written; returns the messages for the channel. Raises ProtocolError."""
        onward = []
        for message in self._from_libvirtd.receive_data(data):
            if message.program != KEEPALIVE_PROGRAM:
                onward.append(message)
            elif message.procedure == Keepalive.PING:
                self._queue(self._for_libvirtd, next(MessageReader().receive_data(keepalive(Keepalive.PONG))))
        return onward

    def from_channel(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that the other agent has sent. All of them may be acknowledged. Raises ProtocolError."""
        for message in self._from_channel.receive_data(data):
            if message.program == KEEPALIVE_PROGRAM:
                continue
            if self._has_gate and self._is_for_gate(message):
                self.is_held = True
            self._queue(self._held if self.is_held else self._for_libvirtd, message)

    def _is_for_gate(self, message: Message) -> bool:
        """Whether it is the FINISH call that is held. Raises ProtocolError for one that would go round the gate."""
        is_call = message.program == REMOTE_PROGRAM and message.type in CALLS
        if not is_call or message.procedure not in FINISHES:
            return False
        if message.type != MessageType.CALL or message.procedure != Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS:
            raise ProtocolError(
                f"a call of procedure {message.procedure}, type {message.type}, would finish the migration unchecked; "
                "libvirt at the source must be 1.1.0 or later"
            )
        if self._has_finished:
            raise ProtocolError("a second call to finish the migration arrived; the channel is closed")
        self._has_finished = True
        return message.is_finish

    def next_for_libvirtd(self) -> Message | None:
        """Take the message that libvirtd is to be given next."""
        if not self._for_libvirtd:
            return None
        message = self._for_libvirtd.popleft()
        self.waiting_bytes -= len(message.raw)
        return message

    def _queue(self, queue: deque[Message], message: Message) -> None:
        queue.append(message)
        self.waiting_bytes += len(message.raw)

    def open_gate(self) -> None:
        """Let the FINISH call through as it is: the guest has arrived whole."""
        self._release()

    def cancel_gate(self) -> None:
        """Turn the FINISH call into one that cancels: the guest goes on at the source."""
        if self.is_held:
            finish = self._held[0]
            raw = finish.cancelling()
            self._held[0] = next(MessageReader().receive_data(raw))
        self._release()

    def _release(self) -> None:
        self.is_held = False
        self._for_libvirtd.extend(self._held)
        self._held.clear()


class FinishWatch:
    """Watches a migration's calls at its source for the moment from which libvirt there will never run the guest again.

    That is when the daemon has been given a reply of success to a FINISH call in which it did not cancel: only on an error,
    or on a connection lost before that reply, does it let the guest run again (libvirt: qemuMigrationSrcPerformPeer2Peer3).
    """

    def __init__(self) -> None:
        self._finish: int | None = None

    def called(self, message: Message) -> None:
        """Take a message that the daemon has written."""
        if message.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
            self._finish = message.serial if message.is_finish else None

    def replied(self, message: Message) -> bool:
        """Take a message that the daemon has been given; says whether that moment has come."""
        is_reply = message.is_reply_to(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS) and message.serial == self._finish
        return is_reply and message.status == Status.OK
