"""A frame's payload -> blob -> the same payload at the other gateway. A blob is decoded alone, whatever was lost or reordered.

    1  cut       hints, as far as the bytes agree with them, tell pages from the rest (skeleton)
    2  classify  each page is zero | the same as an earlier one here | one that the other gateway has | one that has hardly
                 changed since a version that it has | new, and compressible or not
    3  log       what is sent as a delta or whole gets serials; once acknowledged, it may be referred to
    4  pack      columns of like bytes, each compressed unless that does not help

What a blob is made of says `blob`.

What a decoder is given may be hostile. Before a column is expanded its size is known from what came before it, and all sizes follow
from a payload of at most MAX_PAYLOAD; every index is checked. A blob that breaks a rule raises ProtocolError. One that keeps them but
refers to what is not held here, or comes out with another checksum, raises OutOfStep: nothing of it is kept then.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.stream import delta
from gateway.stream.blob import HEAD, MOST_PAGES, MOST_TOGETHER, VERSION, Column, Head, What, checksum_of
from gateway.stream.classify import History, Rows, Share, Sorted, digests_of, keys_of, references_of, rows_of
from gateway.stream.compress import WORTH_TRYING, Compressor, Expander, from_planes, from_steps
from gateway.stream.page_log import Pages
from gateway.stream.ring import Numbers
from gateway.stream.skeleton import TOLD_SIZE, Skeleton
from gateway.stream.tally import Counts, Tally
from landbridge.errors import OutOfStep, ProtocolError
from landbridge.frame import Payload
from landbridge.hints import PAGE, SIZES, Kind

_NUMBER = np.dtype("<u8")
_NO_NUMBERS = np.empty(0, np.uint64)
# SHAPE is compressed if what else is sent is less than so many times as long.
SMALL_SHAPE = 256


@dataclass(frozen=True, slots=True)
class Coded:
    """What goes on the wire instead of a payload and its hints."""

    blob: bytes
    tally: Tally


@dataclass(frozen=True, slots=True)
class Decoded:
    """A payload again; and the serials of the other gateway's pages that came with it: the first one, and how many."""

    payload: memoryview
    first: int
    logged: int


# Encoding


class Uncoded(NamedTuple):
    """A payload of at most MAX_PAYLOAD bytes, its hints, and what is to stand before the blob, so that it need not be copied once more."""

    payload: memoryview
    hints: Payload
    ahead: bytes = b""


class Encoder:
    """Payloads in, blobs out. Its owner is the history's."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._zstd = Compressor()

    def encode(self, payload: memoryview, hints: Payload, *, vm: int, domain: int, level: int) -> Coded | None:
        """The blob of one payload."""
        return self.encode_many([Uncoded(payload, hints)], vm=vm, domain=domain, level=level)[0]

    def encode_many(self, frames: Sequence[Uncoded], *, vm: int, domain: int, level: int) -> list[Coded | None]:
        """The blobs of some payloads, at a level of compress.LEVELS; None: send the payload as it is.

        What becomes of pages is found out for up to MOST_TOGETHER at once; each blob is decoded alone. `vm` and `domain` are u64. Nothing
        of the payloads is kept. Pages of random bytes are logged as all others, though sending them as they are would take a fifth of
        the time: a guest that changes a word of one would have to send all of it again.
        """
        # The last of them may refer to what the first would overwrite.
        count = max(min(MOST_TOGETHER, self._history.margin // MOST_PAGES), 1)
        parts = [frames[at : at + count] for at in range(0, len(frames), count)]
        return [coded for part in parts for coded in self._encoded(part, (vm, domain), level)]

    def _encoded(self, frames: Sequence[Uncoded], whose: tuple[int, int], level: int) -> list[Coded | None]:
        """The same, for so many that this can be done at once."""
        cuts = [Skeleton.of(frame.payload, frame.hints) for frame in frames]
        ends = list(itertools.accumulate(len(cut.keys) for cut in cuts))
        pages: Pages = np.empty((ends[-1], PAGE), np.uint8)
        digests = []
        for frame, cut, end in zip(frames, cuts, ends, strict=True):
            part = pages[end - len(cut.keys) : end]
            cut.copy_pages(frame.payload, part)
            # Now, while its pages are near.
            digests.append(digests_of(part))
        vm, domain = whose
        keys = keys_of(vm, _joined_numbers([cut.keys for cut in cuts]))
        shares = Sorted(self._history, pages, _joined_numbers(digests), keys, domain, ends).log()
        told = [_told(*each) for each in zip(frames, cuts, shares, strict=True)]
        # One behind the other, and what is Python before and after: each finds the caches as its like has left them.
        packed = [self._packed(columns, level) for columns, _ in told]
        return [
            _blob(frame, cut, share, whose, checksum, *each)
            for frame, cut, share, (_, checksum), each in zip(frames, cuts, shares, told, packed, strict=True)
        ]

    def _packed(self, columns: list[Payload], level: int) -> tuple[int, list[Payload]]:
        """Which of the columns are compressed, as bits, and all of them as they are sent."""
        flags, parts = 0, columns.copy()
        for index in (Column.REST, Column.DUPLICATES, Column.DELTAS, Column.LITERALS, Column.RAWS, Column.SHAPE):
            column = columns[index]
            if len(column) < WORTH_TRYING:
                continue
            if index == Column.SHAPE and len(column) * SMALL_SHAPE <= sum(map(len, parts)):
                continue
            compress = self._zstd.compress_unlikely if index == Column.RAWS else self._zstd.compress
            if (small := compress(column, level)) is not None:
                flags |= 1 << index
                parts[index] = small
        return flags, parts


def _told(frame: Uncoded, cut: Skeleton, share: Share) -> tuple[list[Payload], int]:
    """What is told of a frame: its columns, and its checksum."""
    runs, rest = cut.encode(), cut.rest(frame.payload)
    return [runs + share.what, rest, *share.columns], checksum_of(cut.length, runs, share.digests, rest)


def _blob(
    frame: Uncoded,
    cut: Skeleton,
    share: Share,
    whose: tuple[int, int],
    checksum: int,
    flags: int,
    parts: Sequence[Payload],
) -> Coded | None:
    """A blob of columns as they are sent, some of them compressed; None if it is not worth it."""
    sizes = [len(part) for part in parts]
    if not share.logged and HEAD.size + sum(sizes) >= cut.length:
        return None
    counts = cut.runs, len(share.what), share.logged
    head = HEAD.pack(VERSION, flags, *counts, cut.length, checksum, *whose, share.first, *sizes)
    return Coded(b"".join([frame.ahead, head, *parts]), _tally(cut, share.counts, sizes))


def _joined_numbers(parts: list[Numbers]) -> Numbers:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tally(cut: Skeleton, counts: Sequence[int], sizes: Sequence[int]) -> Tally:
    """Of a blob whose columns have these sizes; `counts`: of its pages, by What."""
    zero_records = cut.zero_records * SIZES[Kind.ZERO]
    stream = Counts(
        zero=counts[What.ZERO] * PAGE + zero_records,
        duplicate=(counts[What.REPEAT] + counts[What.REFERENCE]) * PAGE,
        delta=counts[What.DELTA] * PAGE,
        compressed=counts[What.LITERAL] * PAGE,
        incompressible=counts[What.RAW] * PAGE,
        rest=cut.length - sum(counts) * PAGE - zero_records,
    )
    wire = Counts(
        duplicate=sizes[Column.DUPLICATES],
        delta=sizes[Column.DELTAS],
        compressed=sizes[Column.LITERALS],
        incompressible=sizes[Column.RAWS],
        rest=HEAD.size + sizes[Column.SHAPE] + sizes[Column.REST],
    )
    return Tally(stream, wire)


# Decoding


class Decoder:
    """Blobs in, payloads out. Its owner is the history's."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._zstd = Expander()

    def decode(self, blob: memoryview) -> Decoded:
        """The payload of a blob. Raises ProtocolError, or OutOfStep; see above."""
        head = Head.of(blob)
        runs, skeleton, what = self._shape(head)
        count = np.bincount(what, minlength=What.ALL).tolist()
        rest = head.column(self._zstd, Column.REST, skeleton.rest_size)
        duplicates = head.column(self._zstd, Column.DUPLICATES, 8 * count[What.REFERENCE] + count[What.REPEAT])
        references = _from_told(duplicates[: 8 * count[What.REFERENCE]])
        repeated = np.frombuffer(duplicates, np.uint8, offset=8 * count[What.REFERENCE]).astype(np.intp)
        if len(repeated) and _look_ahead(what, repeated):
            raise ProtocolError("a coded frame has pages that repeat what is not before them")
        deltas = head.column(self._zstd, Column.DELTAS, (8 + PAGE) * count[What.DELTA])
        bases = _from_told(deltas[: 8 * count[What.DELTA]])
        # Expanded before the log is asked, so that a blob that breaks a rule is told from one that is out of step.
        literals, raws = (
            head.column(self._zstd, column, PAGE * count[kind])
            for column, kind in ((Column.LITERALS, What.LITERAL), (Column.RAWS, What.RAW))
        )
        sent = {What.LITERAL: _as_pages(literals), What.RAW: _as_pages(raws)}
        if len(references) or len(bases):
            # Both at once, which takes hardly longer than one.
            held = self._read(np.concatenate((references, bases)))
            sent[What.REFERENCE], held = held[: len(references)], held[len(references) :]
            sent[What.DELTA] = delta.difference(_as_pages(deltas[8 * count[What.DELTA] :]), held)
        pages = _joined(what, sent)
        if len(repeated):
            pages[what == What.REPEAT] = pages[repeated]
        digests = digests_of(pages)
        if checksum_of(head.length, runs, digests, rest) != head.checksum:
            raise OutOfStep("a coded frame came out with another checksum than it was sent with")
        self._log(head, pages, digests, keys_of(head.vm, skeleton.keys), what, references, repeated)
        return Decoded(skeleton.payload(pages, rest), head.first, head.logged)

    def _shape(self, head: Head) -> tuple[Payload, Skeleton, NDArray[np.uint8]]:
        """The runs, as they came and as they are, and what became of each page."""
        shape = head.column(self._zstd, Column.SHAPE, TOLD_SIZE * head.runs + head.pages)
        runs = shape[: TOLD_SIZE * head.runs]
        skeleton = Skeleton.decode(runs, head.length)
        what = np.frombuffer(shape, np.uint8, offset=TOLD_SIZE * head.runs)
        if len(skeleton.keys) != len(what) or (what >= What.ALL).any() or head.logged > (what >= What.DELTA).sum():
            raise ProtocolError("a coded frame has pages that cannot be")
        return runs, skeleton, what

    def _read(self, references: Numbers) -> Pages:
        pages = self._history.read_many_from_peer(references)
        if pages is None:
            raise OutOfStep("a coded frame refers to pages that the page log does not have")
        return pages

    def _log(
        self,
        head: Head,
        pages: Pages,
        digests: Numbers,
        keys: Numbers,
        what: NDArray[np.uint8],
        references: Numbers,
        repeated: Rows,
    ) -> None:
        """Log what came, under the sender's serials, and remember what need not come."""
        if head.logged:
            sent = (what >= What.DELTA).nonzero()[0][: head.logged]
            new, digests, keys_of_new = rows_of(pages, sent), rows_of(digests, sent), rows_of(keys, sent)
            self._history.store(head.first, new, digests, keys_of_new, head.domain)
        if len(references) or len(repeated):
            found = references_of(what, references, repeated, head.first, head.logged)
            known = found.nonzero()[0]
            self._history.remember_many_from_peer(keys[known], found[known])


def _look_ahead(what: NDArray[np.uint8], repeated: Rows) -> bool:
    """Whether a REPEAT page is to be the same as one that is not before it, or is such a page itself."""
    return bool((repeated >= (what == What.REPEAT).nonzero()[0]).any() or (what[repeated] == What.REPEAT).any())


def _joined(what: NDArray[np.uint8], sent: Mapping[int, Pages]) -> Pages:
    """All pages of a frame, of those that are there of each What; as they are, if they are of a single one."""
    pages: Pages = np.empty((len(what), PAGE), np.uint8)
    for kind, some in sent.items():
        if len(some) == len(what):
            return some
        if len(some):
            pages[what == kind] = some
    pages[what == What.ZERO] = 0
    return pages


def _as_pages(data: Payload) -> Pages:
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE)


def _from_told(data: Payload) -> Numbers:
    return from_steps(from_planes(data, _NUMBER)) if len(data) else _NO_NUMBERS
