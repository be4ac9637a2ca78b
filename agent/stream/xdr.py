"""XDR (RFC 4506), as much as libvirt's calls need of it: big-endian words, and bytes padded to whole words with zeros.

Everything is bounded by the payload, which is bounded by the frame. Text is UTF-8 without NUL: libvirt hands strings on to C,
which would read another one than was looked at here. Sources: libvirt's src/rpc/virnetprotocol.x, src/remote/remote_protocol.x.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from landbridge.errors import ProtocolError

WORD = 4
_INT, _UINT, _HYPER, _UHYPER, _DOUBLE = (struct.Struct(f"!{letter}") for letter in "iIqQd")
# REMOTE_STRING_MAX and REMOTE_DOMAIN_MIGRATE_PARAM_LIST_MAX.
STRING_MAX = 4 << 20
PARAMETERS_MAX = 64
# The names of parameters have up to 80 bytes (VIR_TYPED_PARAM_FIELD_LENGTH).
FIELD_MAX = 80


class ParameterType(IntEnum):
    """virTypedParameterType."""

    INT = 1
    UINT = 2
    LLONG = 3
    ULLONG = 4
    DOUBLE = 5
    BOOLEAN = 6
    STRING = 7


_NUMBERS = {
    ParameterType.INT: _INT,
    ParameterType.UINT: _UINT,
    ParameterType.LLONG: _HYPER,
    ParameterType.ULLONG: _UHYPER,
    ParameterType.DOUBLE: _DOUBLE,
    ParameterType.BOOLEAN: _INT,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A virTypedParameter."""

    field: str
    type: ParameterType
    value: int | float | str


class Reader:
    """Takes a payload apart, front to back. Every method raises ProtocolError for what is not there or is not allowed."""

    def __init__(self, payload: bytes | memoryview) -> None:
        self._payload = memoryview(payload)
        self._at = 0

    def _take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._payload):
            raise ProtocolError("its arguments are cut short")
        taken, self._at = self._payload[self._at : end], end
        return taken

    def word(self) -> int:
        """The next signed word."""
        return int(_INT.unpack(self._take(WORD))[0])

    def uint(self) -> int:
        """The next unsigned word."""
        return int(_UINT.unpack(self._take(WORD))[0])

    def opaque(self, most: int) -> bytes:
        """The next bytes, at most so many."""
        length = self.uint()
        if length > most:
            raise ProtocolError(f"it has {length} bytes where at most {most} may stand")
        data = bytes(self._take(length))
        if any(self._take(-length % WORD)):
            raise ProtocolError("bytes are padded with something else than zeros")
        return data

    def string(self, most: int = STRING_MAX) -> str:
        """The next string."""
        data = self.opaque(most)
        if b"\0" in data:
            raise ProtocolError("a string has a NUL in it")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ProtocolError("a string is not UTF-8") from None

    def optional(self) -> bool:
        """Whether what is optional follows."""
        there = self.uint()
        if there > 1:
            raise ProtocolError(f"{there} stands where 0 or 1 must stand")
        return bool(there)

    def parameters(self, most: int = PARAMETERS_MAX) -> tuple[Parameter, ...]:
        """The next typed parameters, at most so many."""
        count = self.uint()
        if count > most:
            raise ProtocolError(f"it has {count} parameters where at most {most} may stand")
        return tuple(self._parameter() for _ in range(count))

    def _parameter(self) -> Parameter:
        field, number = self.string(FIELD_MAX), self.word()
        try:
            kind = ParameterType(number)
        except ValueError:
            raise ProtocolError(f"parameter {field!r} has the unknown type {number}") from None
        if kind is ParameterType.STRING:
            return Parameter(field, kind, self.string())
        form = _NUMBERS[kind]
        return Parameter(field, kind, form.unpack(self._take(form.size))[0])

    def end(self) -> None:
        """Nothing may follow: libvirt does not look at it, so what it reads is not what was looked at here."""
        if self._at != len(self._payload):
            raise ProtocolError(f"{len(self._payload) - self._at} bytes follow its arguments")


def word(value: int) -> bytes:
    """A signed word."""
    return _INT.pack(value)


def uint(value: int) -> bytes:
    """An unsigned word."""
    return _UINT.pack(value)


def opaque(data: bytes) -> bytes:
    """Bytes or a string."""
    return _UINT.pack(len(data)) + data + bytes(-len(data) % WORD)


def optional(data: bytes | None) -> bytes:
    """A string, or none."""
    return uint(0) if data is None else uint(1) + opaque(data)


def parameters(values: Iterable[Parameter]) -> bytes:
    """Typed parameters."""
    items = [_packed(value) for value in values]
    return uint(len(items)) + b"".join(items)


def _packed(parameter: Parameter) -> bytes:
    text = parameter.value
    value = opaque(text.encode()) if isinstance(text, str) else _NUMBERS[parameter.type].pack(text)
    return opaque(parameter.field.encode()) + word(parameter.type) + value
