"""Where in QEMU's migration stream pages of memory stand: hints for the bytes that an agent relays.

A source opens one connection or several: the main channel (`savevm`) and those of multifd (`multifd`). Each has a reader of its
own, which knows what it is by the first bytes.

The stream comes in pieces, and a record may begin in one and end in the next. `feed` says how many bytes at the end of a piece
belong to such a record. Whoever holds them back, and gives them again at the head of the next piece, gets a hint for the record;
whoever must let them go says so, and does not.

    runs, tail = stream.feed(piece)         piece[:-tail] goes, with hints
    runs, tail = stream.feed(rest + more)   rest is what was held back of the last piece; or
    stream.skip_tail()                      if it went as well
    runs, tail = stream.feed(more)

At the end of a connection nothing is to be said: what is still held back then goes without hints.

A stream that says what is not known here is passed over from there on: `understood`, `lost_at` and `why` tell. Not known are, on
purpose: pages of another size than 4096 bytes, RDMA, COLO, the channel of post-copy's urgent pages, and a resumed post-copy.
"""

from __future__ import annotations

from dataclasses import replace

from agent.stream.multifd import MAGIC as MULTIFD_MAGIC
from agent.stream.multifd import Multifd
from agent.stream.piece import IncompleteError, NotUnderstoodError, Piece
from agent.stream.savevm import MAGIC, SaveVm
from landbridge.hints import SIZES, Run

# A record is cut into parts below this, and what has no pages is passed over as it comes.
MOST_TAIL = 8192


class QemuStream:
    """Finds the pages in one connection of a source QEMU. Never raises, whatever the bytes are."""

    def __init__(self, name: bytes = b"ram") -> None:
        # What the stream is called where one is shown; keys go by the names of the blocks in it.
        self.name = name
        # Pages that got a hint.
        self.pages = 0
        # From the first byte on that is not understood: its offset in the stream, and a sentence.
        self.lost_at: int | None = None
        self.why = ""
        self._reader: SaveVm | Multifd | None = None
        # Bytes of the stream that were consumed, and how many of those to come have nothing in them.
        self._at = 0
        self._pass_over = 0
        # The incomplete record at the end of the last piece, and one whose beginning has gone.
        self._tail = b""
        self._gone = b""

    @property
    def understood(self) -> bool:
        """Whether the stream can be followed up to here."""
        return self.lost_at is None

    @property
    def is_over(self) -> bool:
        """Whether this is the main channel, and QEMU has said all that it has to say; False where that cannot be known."""
        return self.understood and isinstance(self._reader, SaveVm) and self._reader.is_over

    def feed(self, data: bytes | memoryview) -> tuple[list[Run], int]:
        """The runs in a piece of the stream, at offsets from its beginning; and how many bytes at its end to give again."""
        if not self.understood:
            return [], 0
        gone = len(self._gone)
        piece = Piece(b"".join((self._gone, data)) if gone else data)
        self._tail = self._gone = b""
        at = self._go_over(piece)
        self._at += at
        runs = _behind(piece.runs, gone) if gone else piece.runs
        self.pages += sum(run.count for run in runs)
        if self.lost_at is not None:
            return runs, 0
        rest = bytes(piece.data[at:])
        if at < gone:
            # The record whose beginning has gone is not over yet: what came of it goes as well.
            self._gone = rest
            return runs, 0
        self._tail = rest
        return runs, len(rest)

    def skip_tail(self) -> None:
        """The bytes that were to be given again will not be: the next piece begins behind them."""
        self._gone += self._tail
        self._tail = b""

    def _go_over(self, piece: Piece) -> int:
        """Read all of a piece that can be read; the offset behind it."""
        at = 0
        try:
            while True:
                passed = min(self._pass_over, piece.end - at)
                self._pass_over -= passed
                at += passed
                if at == piece.end:
                    return at
                if self._reader is None:
                    self._reader = _reader_of(piece.take(at, len(MAGIC)))
                behind = self._reader.read(piece, at)
                self._pass_over = max(behind - piece.end, 0)
                at = min(behind, piece.end)
        except IncompleteError:
            if piece.end - at < MOST_TAIL:
                return at
            self._lose(at, "a record is longer than any that is known")
        except NotUnderstoodError as problem:
            self._lose(at, str(problem))
        return at

    def _lose(self, at: int, why: str) -> None:
        self.lost_at = self._at + at
        self.why = why


def _reader_of(magic: bytes) -> SaveVm | Multifd:
    """What reads a connection that begins so. Raises NotUnderstoodError."""
    if magic == MAGIC:
        return SaveVm()
    if magic == MULTIFD_MAGIC:
        return Multifd()
    raise NotUnderstoodError("the stream begins like none of QEMU's")


def _behind(runs: list[Run], gone: int) -> list[Run]:
    """The records of runs that begin behind so many bytes, at offsets from there."""
    kept = []
    for run in runs:
        size = SIZES[run.kind]
        before = min(max(-(-(gone - run.offset) // size), 0), run.count)
        if before < run.count:
            offset = run.offset + before * size - gone
            kept.append(replace(run, offset=offset, count=run.count - before, key=run.key + before))
    return kept
