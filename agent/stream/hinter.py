"""Hints for what a local socket says on a channel of kind `ram` or `disk`: one `Hinter` for each channel, at each of its ends.

    socket ── piece ──> hold ── piece[:-tail], hints ──> channel         what is held back stands at the head of the next piece
    socket <── data <── pass_by <── data ── channel                      before the socket has it: what it says next may answer it

ram    The source's QEMU sends pages, on each of its connections; what the destination's sends back has none.
disk   The source's QEMU is NBD's client: it sends blocks. The destination's sends those that were asked for.

Nothing here raises: what is not understood gets no hints.
"""

from __future__ import annotations

from typing import Protocol

from agent.stream.nbd import NbdStream
from agent.stream.qemu import QemuStream
from landbridge import hints
from landbridge.frame import Payload
from landbridge.hints import Run


class Reader(Protocol):
    """What reads the pieces that a local socket gives."""

    def feed(self, data: bytes | memoryview) -> tuple[list[Run], int]:
        """Runs in a piece, and how many bytes at its end are to come again."""

    def skip_tail(self) -> None:
        """They will not."""


class _Silent:
    """The return path of a migration, which has no pages."""

    def feed(self, _data: bytes | memoryview) -> tuple[list[Run], int]:
        return [], 0

    def skip_tail(self) -> None:
        pass


class _Disk:
    """One end of an NBD session, by what its socket says."""

    def __init__(self, stream: NbdStream, *, is_client: bool) -> None:
        self.feed = stream.feed_client if is_client else stream.feed_server
        self._stream, self._is_client = stream, is_client

    def skip_tail(self) -> None:
        self._stream.skip_tail(client=self._is_client)


class Hinter:
    """Finds pages and blocks in what one local socket says. Owned by whoever moves its bytes."""

    def __init__(self, kind: str, *, is_client: bool) -> None:
        """`kind` of the channel: "ram" or "disk". `is_client` at the source, whose QEMU connects."""
        # Bytes that went with a hint, and without one.
        self.hinted_bytes = 0
        self.unhinted_bytes = 0
        self._tail = 0
        self._stream: NbdStream | QemuStream | None = None
        self._local: Reader = _Silent()
        self._far: Reader | None = None
        if kind == "disk":
            self._stream = nbd = NbdStream()
            self._local, self._far = _Disk(nbd, is_client=is_client), _Disk(nbd, is_client=not is_client)
        elif kind == "ram" and is_client:
            self._stream = self._local = QemuStream()
        elif kind != "ram":
            raise ValueError(f"a channel of kind {kind!r} has no pages")

    @property
    def understood(self) -> bool:
        """Whether hints may still come."""
        return self._stream is None or self._stream.understood

    @property
    def nbd(self) -> NbdStream:
        """Of a disk, what has read both its ends."""
        assert isinstance(self._stream, NbdStream), "memory does not travel with NBD"  # noqa: S101 - a defect of the caller's
        return self._stream

    @property
    def is_over(self) -> bool:
        """Whether the socket is known to have said all of a migration."""
        return isinstance(self._stream, QemuStream) and self._stream.is_over

    @property
    def lost_at(self) -> int | None:
        """Where it stopped to be understood, in bytes of what the one has said whom `why` names."""
        return None if self._stream is None else self._stream.lost_at

    @property
    def why(self) -> str:
        """Why it is not understood, if so."""
        return "" if self._stream is None else self._stream.why

    @property
    def not_understood(self) -> str:
        """From where on it is not understood, and why, as a clause; empty if it is."""
        if self.understood or isinstance(self._stream, NbdStream):
            return self.why
        return f"from byte {self.lost_at:,} on, {self.why}"

    def hold(self, piece: bytes | memoryview) -> tuple[bytes, int]:
        """Take what the socket said next, behind what was held back; a piece may go into one frame.

        Returns the hint section for it, and how many of its last bytes are better held back, less than 8192: as the head of the
        next piece, unless `give_up_tail` is called.
        """
        runs, self._tail = self._local.feed(piece)
        hinted = sum(run.end - run.offset for run in runs[: hints.MOST_RUNS])
        self.hinted_bytes += hinted
        self.unhinted_bytes += len(piece) - self._tail - hinted
        return hints.encode(runs), self._tail

    def give_up_tail(self) -> None:
        """What was held back goes without a hint: no more has come for a while, or it was the end."""
        self._local.skip_tail()
        self.unhinted_bytes += self._tail
        self._tail = 0

    def pass_by(self, data: Payload) -> None:
        """Take what the far end said next, before the socket has it."""
        if self._far is None:
            return
        _, tail = self._far.feed(memoryview(data))
        if tail:
            self._far.skip_tail()
