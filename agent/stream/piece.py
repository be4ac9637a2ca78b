"""One piece of a stream while a reader goes over it, and the two ways in which a reader stops."""

from __future__ import annotations

import struct

from landbridge.hints import Run

BYTE = struct.Struct("!B")
HALF = struct.Struct("!H")
WORD = struct.Struct("!I")
LONG = struct.Struct("!Q")


class IncompleteError(Exception):
    """The record that begins here goes beyond the piece; nothing of it was consumed."""


class NotUnderstoodError(Exception):
    """The stream says what this reader does not know; its text is a sentence that tells what."""


class Piece:
    """Bytes of a stream, and the runs that were found in them."""

    __slots__ = ("data", "end", "runs")

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.end = len(data)
        self.runs: list[Run] = []

    def number(self, form: struct.Struct, at: int) -> int:
        """The number that stands at an offset. Raises IncompleteError."""
        if at + form.size > self.end:
            raise IncompleteError
        found: int = form.unpack_from(self.data, at)[0]
        return found

    def take(self, at: int, count: int) -> bytes:
        """So many bytes. Raises IncompleteError."""
        if at + count > self.end:
            raise IncompleteError
        return bytes(self.data[at : at + count])

    def name(self, at: int) -> bytes:
        """A name behind a byte that has its length; it takes `1 + len(name)` bytes. Raises IncompleteError."""
        return self.take(at + 1, self.number(BYTE, at))
