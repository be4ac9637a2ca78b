"""What became of a stream's bytes on their way through the encoder, and how many bytes that took on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes, by what became of them."""

    # Records of zero pages, and the contents of pages that are zero.
    zero: int = 0
    # Pages that are elsewhere in the frame, or in the page log.
    duplicate: int = 0
    # Pages of which only the changes were sent.
    delta: int = 0
    # Pages that were sent: those worth compressing, and those that look random.
    compressed: int = 0
    incompressible: int = 0
    # All else: what stands around pages, what no hint speaks of, and what the coding itself takes.
    rest: int = 0

    def __add__(self, other: Self) -> Counts:
        """Both together."""
        return Counts(
            self.zero + other.zero,
            self.duplicate + other.duplicate,
            self.delta + other.delta,
            self.compressed + other.compressed,
            self.incompressible + other.incompressible,
            self.rest + other.rest,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.zero + self.duplicate + self.delta + self.compressed + self.incompressible + self.rest


@dataclass(frozen=True, slots=True)
class Tally:
    """Bytes of the stream, as payloads of frames; and bytes on the wire, as blobs or as payloads that were sent as they are."""

    stream: Counts = Counts()
    wire: Counts = Counts()

    def __add__(self, other: Self) -> Tally:
        """Both together."""
        return Tally(self.stream + other.stream, self.wire + other.wire)

    def framed(self, size: int) -> Tally:
        """The same, in a frame that takes `size` bytes on the wire in all."""
        return Tally(self.stream, self.wire + Counts(rest=size - self.wire.total))
