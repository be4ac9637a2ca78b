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
from typing import NamedTuple, TypeVar

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

_T = TypeVar("_T")

_NUMBER = np.dtype("<u8")
_NO_NUMBERS, _NO_ROWS = np.empty(0, np.uint64), np.empty(0, np.intp)
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


def _parts(frames: Sequence[_T], history: History) -> list[Sequence[_T]]:
    """The same, so many together as may be worked on at once: the last of them may refer to what the first would overwrite."""
    count = max(min(MOST_TOGETHER, history.margin // MOST_PAGES), 1)
    return [frames[at : at + count] for at in range(0, len(frames), count)]


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
        return [coded for part in _parts(frames, self._history) for coded in self._encoded(part, (vm, domain), level)]

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


class _Opened(NamedTuple):
    """What a blob says, before the log is asked."""

    head: Head
    # As they came, and what they tell.
    runs: Payload
    skeleton: Skeleton
    # A What for each page.
    what: NDArray[np.uint8]
    rest: Payload
    # Of REFERENCE pages; of DELTA pages, and what these differ by; of REPEAT pages.
    references: Numbers
    bases: Numbers
    differences: Pages
    repeated: Rows
    # LITERAL and RAW pages.
    sent: dict[int, Pages]


class _Known(NamedTuple):
    """Its pages, and xxh3-64 and key of each."""

    pages: Pages
    digests: Numbers
    keys: Numbers


class Decoder:
    """Blobs in, payloads out. Its owner is the history's."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._zstd = Expander()

    def decode(self, blob: memoryview) -> Decoded:
        """The payload of a blob. Raises ProtocolError, or OutOfStep; see above."""
        return self.decode_many([blob])[0]

    def decode_many(self, blobs: Sequence[memoryview]) -> list[Decoded]:
        """The payloads of some blobs; raises as `decode`, whichever of them it is.

        What they refer to is looked up, and what came is logged, for up to MOST_TOGETHER at once.
        """
        return [decoded for part in _parts(blobs, self._history) for decoded in self._decoded(part)]

    def _decoded(self, blobs: Sequence[memoryview]) -> list[Decoded]:
        opened = [self._open(blob) for blob in blobs]
        known = self._known(opened)
        self._log(opened, known)
        return [
            Decoded(each.skeleton.payload(pages, each.rest), each.head.first, each.head.logged)
            for each, (pages, _, _) in zip(opened, known, strict=True)
        ]

    def _open(self, blob: memoryview) -> _Opened:
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
        bases, differences = _from_told(deltas[: 8 * count[What.DELTA]]), _as_pages(deltas[8 * count[What.DELTA] :])
        # Expanded before the log is asked, so that a blob that breaks a rule is told from one that is out of step.
        sent = {
            kind: _as_pages(head.column(self._zstd, column, PAGE * count[kind]))
            for kind, column in ((What.LITERAL, Column.LITERALS), (What.RAW, Column.RAWS))
        }
        return _Opened(head, runs, skeleton, what, rest, references, bases, differences, repeated, sent)

    def _shape(self, head: Head) -> tuple[Payload, Skeleton, NDArray[np.uint8]]:
        """The runs, as they came and as they are, and what became of each page."""
        shape = head.column(self._zstd, Column.SHAPE, TOLD_SIZE * head.runs + head.pages)
        runs = shape[: TOLD_SIZE * head.runs]
        skeleton = Skeleton.decode(runs, head.length)
        what = np.frombuffer(shape, np.uint8, offset=TOLD_SIZE * head.runs)
        if len(skeleton.keys) != len(what) or (what >= What.ALL).any() or head.logged > (what >= What.DELTA).sum():
            raise ProtocolError("a coded frame has pages that cannot be")
        return runs, skeleton, what

    def _known(self, opened: Sequence[_Opened]) -> list[_Known]:
        """All pages, with what the log has of them. One look into it for all takes hardly longer than one for each."""
        wanted = [part for each in opened for part in (each.references, each.bases)]
        held = self._read(np.concatenate(wanted))
        known, at = list[_Known](), 0
        for each in opened:
            middle = at + len(each.references)
            end = middle + len(each.bases)
            changed = delta.difference(each.differences, held[middle:end]) if middle < end else held[:0]
            pages = _joined(each, {**each.sent, What.REFERENCE: held[at:middle], What.DELTA: changed})
            digests = digests_of(pages)
            if checksum_of(each.head.length, each.runs, digests, each.rest) != each.head.checksum:
                raise OutOfStep("a coded frame came out with another checksum than it was sent with")
            known.append(_Known(pages, digests, keys_of(each.head.vm, each.skeleton.keys)))
            at = end
        return known

    def _read(self, references: Numbers) -> Pages:
        pages = self._history.read_many_from_peer(references) if len(references) else np.empty((0, PAGE), np.uint8)
        if pages is None:
            raise OutOfStep("a coded frame refers to pages that the page log does not have")
        return pages

    def _log(self, opened: Sequence[_Opened], known: Sequence[_Known]) -> None:
        """Log what came, under the sender's serials, and remember what need not come."""
        news, remembered = list[_New](), list[tuple[Numbers, Numbers]]()
        for each, (pages, digests, keys) in zip(opened, known, strict=True):
            head, logged = each.head, _NO_ROWS
            if head.logged:
                logged = (each.what >= What.DELTA).nonzero()[0][: head.logged]
                new = rows_of(pages, logged), rows_of(digests, logged), rows_of(keys, logged)
                news.append(_New(head.first, head.domain, *new))
            if len(each.references) or len(each.repeated):
                found = references_of(each.what, each.references, each.repeated, head.first, logged)
                rows = found.nonzero()[0]
                remembered.append((keys[rows], found[rows]))
        for row in _in_a_row(news):
            digests, keys = (
                _joined_numbers([each.digests for each in row]),
                _joined_numbers([each.keys for each in row]),
            )
            self._history.store(row[0].first, [each.pages for each in row], digests, keys, row[0].domain)
        if remembered:
            self._history.remember_many_from_peer(*map(np.concatenate, zip(*remembered, strict=True)))


class _New(NamedTuple):
    """Pages of a frame that are logged, and their first serial."""

    first: int
    domain: int
    pages: Pages
    digests: Numbers
    keys: Numbers


def _in_a_row(news: list[_New]) -> list[list[_New]]:
    """The same in the order of their serials, those together that can be logged at once."""
    together = list[list[_New]]()
    end = domain = -1
    for new in sorted(news, key=lambda each: each.first):
        if (new.first, new.domain) != (end, domain):
            together.append([])
        together[-1].append(new)
        end, domain = new.first + len(new.digests), new.domain
    return together


def _look_ahead(what: NDArray[np.uint8], repeated: Rows) -> bool:
    """Whether a REPEAT page is to be the same as one that is not before it, or is such a page itself."""
    return bool((repeated >= (what == What.REPEAT).nonzero()[0]).any() or (what[repeated] == What.REPEAT).any())


def _joined(opened: _Opened, sent: Mapping[int, Pages]) -> Pages:
    """All pages of a frame, of those that are there of each What; as they are, if they are of a single one."""
    what = opened.what
    pages: Pages = np.empty((len(what), PAGE), np.uint8)
    for kind, some in sent.items():
        if len(some) == len(what):
            return some
        if len(some):
            pages[what == kind] = some
    pages[what == What.ZERO] = 0
    if len(opened.repeated):
        pages[what == What.REPEAT] = pages[opened.repeated]
    return pages


def _as_pages(data: Payload) -> Pages:
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE)


def _from_told(data: Payload) -> Numbers:
    return from_steps(from_planes(data, _NUMBER)) if len(data) else _NO_NUMBERS
