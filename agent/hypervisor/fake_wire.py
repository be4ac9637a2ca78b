"""libvirt's wire format, as much as a move needs of it, for the fake hypervisor: calls, replies, XDR.

Numbers and order are those of libvirt 9.0 (src/rpc/virnetprotocol.x, src/remote/remote_protocol.x), so that
what stands between two fakes, the agents' RPC firewall too, meets the calls of a real move.
"""

from __future__ import annotations

import socket
import struct
import uuid as uuids
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REMOTE, KEEPALIVE = 0x20008086, 0x6B656570
CALL, REPLY, MESSAGE = 0, 1, 2
OK, ERROR = 0, 1
PING, PONG = 1, 2
AUTH_LIST, SUPPORTS_FEATURE, OPEN, CLOSE = 66, 60, 1, 2
REGISTER_CLOSE, UNREGISTER_CLOSE = 360, 361
PREPARE, FINISH = 303, 306
FEATURES_BEFORE_OPEN, FEATURES_AFTER_OPEN, FEATURES_OF_MOVE = (10,), (14, 15), (4, 6, 13)
FRAME_LIMIT = 32 * 2**20

_HEADER = struct.Struct(">IIIiiIi")
_STRING = 7  # VIR_TYPED_PARAM_STRING


class WireError(ConnectionError):
    """The other side hung up, or sent what is no frame."""


@dataclass(frozen=True)
class Frame:
    """One message: program, procedure, type, serial, status, payload."""

    program: int
    procedure: int
    type: int
    serial: int
    status: int
    payload: bytes


def send(sock: socket.socket, frame: Frame) -> None:
    """Write one frame."""
    length = _HEADER.size + len(frame.payload)
    header = _HEADER.pack(length, frame.program, 1, frame.procedure, frame.type, frame.serial, frame.status)
    sock.sendall(header + frame.payload)


def receive(sock: socket.socket) -> Frame:
    """Read the next frame that is no keepalive; pings are answered on the way. WireError at the end."""
    while True:
        header = read(sock, _HEADER.size)
        length, program, _version, procedure, kind, serial, status = _HEADER.unpack(header)
        if not _HEADER.size <= length <= FRAME_LIMIT:
            raise WireError(f"a frame of {length} bytes")
        frame = Frame(program, procedure, kind, serial, status, read(sock, length - _HEADER.size))
        if program != KEEPALIVE:
            return frame
        if procedure == PING:
            send(sock, Frame(KEEPALIVE, PONG, MESSAGE, 0, OK, b""))


def read(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes; WireError if they do not come."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 65536))
        if not part:
            raise WireError("the other side hung up")
        data += part
    return bytes(data)


def opaque(data: bytes) -> bytes:
    """XDR: bytes or a string."""
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def number(value: int) -> bytes:
    """XDR: unsigned int."""
    return struct.pack(">I", value)


def parameters(pairs: Iterable[tuple[str, str]]) -> bytes:
    """XDR: virTypedParameters, all of them strings."""
    items = [opaque(k.encode()) + number(_STRING) + opaque(v.encode()) for k, v in pairs]
    return number(len(items)) + b"".join(items)


def domain(name: str, uuid: str) -> bytes:
    """XDR: remote_nonnull_domain; the running id is 1."""
    return opaque(name.encode()) + uuids.UUID(uuid).bytes + number(1)


def cookie(name: str, uuid: str, host: str, persistent: str = "") -> bytes:
    """A migration cookie; FINISH's carries the persistent definition."""
    host_uuid = uuids.uuid5(uuids.NAMESPACE_DNS, host)
    kept = f"  <feature name='persistent'/>\n{persistent}\n" if persistent else ""
    return (
        f"<qemu-migration>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <hostname>{host}</hostname>\n"
        f"  <hostuuid>{host_uuid}</hostuuid>\n{kept}</qemu-migration>\n\0"
    ).encode()


def error(message: str) -> bytes:
    """XDR: virNetMessageError; code, domain, *message, level, *dom, three *str, two int, *net."""
    text = number(1) + opaque(message.encode())
    return number(1) + number(0) + text + number(2) + number(0) * 4 + number(0) * 2 + number(0)


def error_text(payload: bytes) -> str:
    """The sentence of an error reply."""
    reader = Reader(payload)
    reader.number(), reader.number()
    return reader.opaque().decode() if reader.number() else "an error without a message"


class Reader:
    """Takes XDR apart, front to back; WireError where the payload ends too early."""

    def __init__(self, payload: bytes) -> None:
        self._rest = payload

    def _take(self, count: int) -> bytes:
        if len(self._rest) < count:
            raise WireError("a payload ends too early")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def number(self) -> int:
        """The next unsigned int."""
        return int.from_bytes(self._take(4), "big")

    def opaque(self) -> bytes:
        """The next bytes or string."""
        length = self.number()
        data = self._take(length)
        self._take(-length % 4)
        return data

    def parameters(self) -> list[tuple[str, str]]:
        """The next typed parameters; only strings are expected."""
        pairs = []
        for _ in range(self.number()):
            name, kind = self.opaque().decode(), self.number()
            if kind != _STRING:
                raise WireError(f"parameter {name} of type {kind}")
            pairs.append((name, self.opaque().decode()))
        return pairs


class Caller:
    """The calling end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._serial = 0

    def call(self, procedure: int, payload: bytes = b"") -> bytes:
        """Call and wait for the reply's payload; WireError with the other side's words if it refuses."""
        send(self._sock, Frame(REMOTE, procedure, CALL, self._serial, OK, payload))
        self._serial += 1
        reply = receive(self._sock)
        if reply.status != OK:
            raise WireError(error_text(reply.payload))
        return reply.payload

    def greet(self) -> None:
        """Everything that libvirt calls before a move."""
        self.call(AUTH_LIST)
        self._features(FEATURES_BEFORE_OPEN)
        self.call(OPEN, number(1) + opaque(b"qemu:///system") + number(0))
        self._features(FEATURES_AFTER_OPEN)
        self.call(REGISTER_CLOSE)
        self._features(FEATURES_OF_MOVE)

    def leave(self) -> None:
        """Everything that libvirt calls after one."""
        self.call(UNREGISTER_CLOSE)
        self.call(CLOSE)

    def _features(self, features: Sequence[int]) -> None:
        for feature in features:
            self.call(SUPPORTS_FEATURE, number(feature))
