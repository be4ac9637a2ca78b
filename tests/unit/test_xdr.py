"""XDR: read as it is written, and everything that libvirt would read in another way is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from agent.stream import xdr
from agent.stream.xdr import Parameter, ParameterType, Reader
from landbridge.errors import ProtocolError

ONE_OF_EACH = (
    Parameter("i", ParameterType.INT, -1),
    Parameter("u", ParameterType.UINT, 2**32 - 1),
    Parameter("l", ParameterType.LLONG, -(2**63)),
    Parameter("ul", ParameterType.ULLONG, 2**64 - 1),
    Parameter("d", ParameterType.DOUBLE, 0.5),
    Parameter("b", ParameterType.BOOLEAN, 1),
    Parameter("s", ParameterType.STRING, "text"),
)


def test_what_is_written_is_read() -> None:
    wire = xdr.word(-7) + xdr.uint(7) + xdr.opaque(b"12345") + xdr.optional(None) + xdr.optional(b"x")
    reader = Reader(wire + xdr.parameters(ONE_OF_EACH))
    assert (reader.word(), reader.uint(), reader.opaque(5), reader.optional(), reader.optional()) == (
        -7,
        7,
        b"12345",
        False,
        True,
    )
    assert reader.string() == "x"
    assert reader.parameters() == ONE_OF_EACH
    reader.end()


def test_every_shorter_payload_is_cut_short_and_a_longer_one_has_something_left() -> None:
    wire = xdr.parameters(ONE_OF_EACH)
    for end in range(len(wire)):
        with pytest.raises(ProtocolError, match="cut short"):
            Reader(wire[:end]).parameters()
    reader = Reader(wire + b"\0")
    reader.parameters()
    with pytest.raises(ProtocolError, match="1 bytes follow"):
        reader.end()


@pytest.mark.parametrize(
    ("wire", "read", "says"),
    [
        (struct.pack("!I", 6) + bytes(8), lambda reader: reader.opaque(5), "6 bytes where at most 5"),
        (struct.pack("!i", -1) + bytes(8), lambda reader: reader.opaque(1 << 20), "4294967295 bytes where at most"),
        (struct.pack("!I", 1) + b"a\0\0b", lambda reader: reader.opaque(9), "padded"),
        (struct.pack("!I", 1) + b"\0\0\0\0", lambda reader: reader.string(), "NUL"),
        (struct.pack("!I", 1) + b"\xff\0\0\0", lambda reader: reader.string(), "not UTF-8"),
        (struct.pack("!I", 2), lambda reader: reader.optional(), "2 stands where 0 or 1"),
        (struct.pack("!I", 65), lambda reader: reader.parameters(), "65 parameters where at most 64"),
        (struct.pack("!i", -1), lambda reader: reader.parameters(), "4294967295 parameters"),
        (struct.pack("!II", 1, 81), lambda reader: reader.parameters(), "81 bytes where at most 80"),
        (struct.pack("!II4sI", 1, 1, b"a", 8), lambda reader: reader.parameters(), "'a' has the unknown type 8"),
    ],
)
def test_what_libvirt_would_not_write_is_refused(wire: bytes, read: Callable[[Reader], object], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read(Reader(wire))


def test_64_parameters_are_read() -> None:
    many = ONE_OF_EACH[:1] * 64
    assert Reader(xdr.parameters(many)).parameters() == many
