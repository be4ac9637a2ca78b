"""The history of two gateways: which page the other one has already, found by its contents or by its key.

A page is named by its reference, serial * 2 + ring; ring 0 is that of the gateway that sends the frame, 1 that of its receiver.

    sender     known_many -> references -> read_many     append: new pages, which can be referred to after
    receiver   read_many_from_peer <- references    store -> take_received ── acknowledgement ──> acknowledged

We refer to a page of OUT if the other gateway has acknowledged it, to one of IN if we hold it, and to neither if it is among the
oldest of its ring (MARGIN_SHARE): it might be overwritten before the frame arrives. The index knows only such pages. It is made anew
from the records in the file when the gateways meet.

In step (theory). Serials are never given out twice and belong to one generation (`page_log`), so a reference names the same bytes at
both ends, or nothing at one of them. That holds whatever becomes of states, acknowledgements and frames: they may be lost, late or
repeated. What is late can only make less usable: an acknowledgement of an older generation names serials that we no longer know, an
old state makes us forget. After a restart nothing is usable, and nothing is appended, until the other gateway has said what it holds.

The index knows hashes only; of a page that it leads to the domain is compared, and for an equal page the bytes are.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from gateway.stream.index import Index, Slots
from gateway.stream.log_state import MOST_CAPACITY, RingState, State
from gateway.stream.page_log import DIGEST, DOMAIN, KEY, SERIAL, PageLog, Pages, cut, stretches
from gateway.stream.ring import MARGIN_SHARE, SPAN, Kept, Numbers, Ring, runs
from landbridge.errors import ProtocolError
from landbridge.hints import PAGE

# In arrays of references: none. No serial is 0.
NONE = 0

# Ranges that wait to be acknowledged; of more, the oldest are not.
MOST_RECEIVED = 1024


class History:
    """The page log of one pair of gateways and its index. It has one owner, and one thread at a time; arrays are not kept."""

    def __init__(self, log: PageLog) -> None:
        self._log = log
        self._index = Index(log.kept, log.laps)
        # Pages of a ring that both gateways have room for.
        self._window = log.capacity
        self._has_met = False
        self._received: list[tuple[int, int]] = []

    # The sender of a frame

    @property
    def margin(self) -> int:
        """Pages of OUT that may be logged before the oldest that is referred to is overwritten."""
        return self._window // MARGIN_SHARE

    def known_many(self, domain: int, digests: Numbers, keys: Numbers, pages: Pages) -> tuple[Numbers, Numbers]:
        """For each page, references to what the receiver has of it within the domain, or NONE.

        The first ones are to equal pages, whose bytes were compared; the others to the last versions under the pages' keys.
        `digests` (n): xxh3-64 of each of `pages` (n, PAGE).
        """
        count = len(digests)
        found: Numbers = np.zeros(2 * count, np.uint64)
        rows, slots = self._index.look(np.concatenate((digests ^ np.uint64(domain), keys)))
        if not len(rows):
            return found[:count], found[count:]
        # The table knows hashes only. The record beside a page says whose it is: another domain's is never referred to.
        records = self._log.records_of(slots)
        good = (rows >= count) | (records[:, DIGEST] == digests[rows % count])
        references = self._references(slots) * (good & (records[:, DOMAIN] == domain))
        rows, slots, references = (part[references.nonzero()] for part in (rows, slots, references))
        equal = (rows < count).nonzero()[0]
        if len(equal):
            kept, wanted = self._log.pages(slots[equal]), pages if len(equal) == count else pages[rows[equal]]
            references[equal] *= (kept.view(np.uint64) == wanted.view(np.uint64)).all(axis=1)
        found[rows] = references
        return found[:count], found[count:]

    def find(self, domain: int, digest: int, page: bytes | memoryview) -> int | None:
        """The reference to an equal page."""
        pages, none = np.frombuffer(page, np.uint8).reshape(1, PAGE), np.zeros(1, np.uint64)
        return int(self.known_many(domain, np.array([digest], np.uint64), none, pages)[0][0]) or None

    def last(self, domain: int, key: int) -> int | None:
        """The reference to the last version of a page under a key."""
        pages, none = np.zeros((1, PAGE), np.uint8), np.zeros(1, np.uint64)
        return int(self.known_many(domain, none, np.array([key], np.uint64), pages)[1][0]) or None

    def read_many(self, references: Numbers) -> Pages | None:
        """A copy (n, PAGE) of the pages that we may refer to by these; None if there is one that we may not."""
        return self._read(references, (self._log.out, self._log.incoming), Kept.COMMON)

    def read(self, reference: int) -> memoryview | None:
        """The same for one reference."""
        pages = self.read_many(np.array([reference], np.uint64))
        return None if pages is None else memoryview(pages[0])

    def append(self, pages: Pages, rows: Slots, digests: Numbers, keys: Numbers, domain: int) -> int | None:
        """Log those of the pages as new that frames carry; returns the first one's serial, the others follow.

        `rows` (n): which, in order; `digests` and `keys` are theirs. None: they are not logged, because the disk is full, or the other
        gateway was not met yet.
        """
        out = self._log.out
        first, count = out.next, len(rows)
        if not self._has_met or count > self._log.capacity or first + count > out.first + SPAN:
            return None
        if not self._log.write(out, first, stretches(pages, rows), digests, keys, domain):
            return None
        out.next += count
        return first

    def remember_many(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under `keys` (n) are what we refer to by `references` (n)."""
        self._remember(keys, references, (self._log.out, self._log.incoming))

    def remember(self, key: int, reference: int) -> None:
        """The same for one key."""
        self.remember_many(np.array([key], np.uint64), np.array([reference], np.uint64))

    # The receiver of a frame

    def read_many_from_peer(self, references: Numbers) -> Pages | None:
        """A copy (n, PAGE) of the pages that the other gateway refers to by these; None if we do not have one of them."""
        return self._read(references, (self._log.incoming, self._log.out), Kept.HELD)

    def read_from_peer(self, reference: int) -> memoryview | None:
        """The same for one reference."""
        pages = self.read_many_from_peer(np.array([reference], np.uint64))
        return None if pages is None else memoryview(pages[0])

    def store(self, first: int, pages: Sequence[Pages], digests: Numbers, keys: Numbers, domain: int) -> None:
        """Log what frames of the other gateway carried as its serials from `first` on.

        `pages`: in stretches, one behind the other; `digests` and `keys` (n) are of all of them.
        Those of another generation, too old, or there already are left alone. Raises ProtocolError if they cannot be serials.
        """
        ring = self._log.incoming
        count = len(digests)
        if not 0 < first <= (1 << 62) - count:
            raise ProtocolError(f"a frame with pages {first} and following of the page log arrived, which cannot be")
        ours = ring.first <= first and first + count <= ring.first + SPAN and ring.generation.strip(b"\0")
        if not ours or not count or count > self._log.capacity:
            return
        ring.next = max(ring.next, first + count)
        serials = np.arange(first, first + count, dtype=np.uint64)
        held = ring.are(Kept.HELD, serials)
        new = (serials >= np.uint64(ring.oldest(ring.capacity))) & ~held
        if held.any():
            self._compare(ring, serials[held], digests[held])
            held = ring.are(Kept.HELD, serials)
        for start, end in runs(new):
            part = slice(start, end)
            if self._log.write(ring, first + start, cut(pages, part), digests[part], keys[part], domain):
                self._enter(ring, serials[part], digests[part], keys[part], np.uint64(domain))
                held[part] = True
        for start, end in runs(held):
            self._note(first + start, first + end)

    def remember_many_from_peer(self, keys: Numbers, references: Numbers) -> None:
        """The last versions under `keys` (n) are what the other gateway refers to by `references` (n)."""
        self._remember(keys, references, (self._log.incoming, self._log.out))

    def remember_from_peer(self, key: int, reference: int) -> None:
        """The same for one key."""
        self.remember_many_from_peer(np.array([key], np.uint64), np.array([reference], np.uint64))

    def take_received(self) -> list[tuple[int, int]]:
        """Serials that we hold and that arrived since this was asked last, as (first, behind the last), for an acknowledgement."""
        received, self._received = self._received, []
        return received

    # In step

    def state(self) -> State:
        """What to tell the other gateway when we meet."""
        told = [
            RingState(r.generation, r.next, tuple(r.ranges(Kept.HELD))) for r in (self._log.out, self._log.incoming)
        ]
        return State(self._log.was_torn, min(self._log.capacity, MOST_CAPACITY), told[0], told[1])

    def meet(self, peer: State) -> None:
        """The other gateway has said what it holds: keep what both have, and refer to nothing else. To be called on every meeting.

        A file that holds much takes its time: about 0.1 s for 1 GiB.
        """
        log = self._log
        self._window = min(log.capacity, peer.capacity)
        if peer.out.generation != log.incoming.generation:
            self.forget_from_peer(peer.out.generation)
        _agree(log.incoming, peer.out, is_torn=peer.is_torn)
        if peer.incoming.generation == log.out.generation:
            if peer.incoming.next > log.out.next:
                # This file was set back. Frames with serials that it does not know may still be under way.
                log.skip(peer.incoming.next + log.capacity // MARGIN_SHARE)
            _agree(log.out, peer.incoming, is_torn=peer.is_torn)
        else:
            np.minimum(log.out.kept, Kept.HELD, out=log.out.kept)
        self._has_met = True
        self._index_all()

    def acknowledged(self, ranges: list[tuple[int, int]]) -> None:
        """The other gateway holds these serials of OUT, each range as (first, behind the last)."""
        out = self._log.out
        for told, told_end in ranges:
            first, end = max(told, out.oldest(out.capacity)), min(told_end, out.next)
            if first >= end:
                continue
            serials = np.arange(first, end, dtype=np.uint64)
            new = out.are(Kept.HELD, serials) & ~out.are(Kept.COMMON, serials)
            for start, stop in runs(new):
                records = self._log.records_of(out.slots(serials[start:stop]) + out.base)
                records = records[records[:, SERIAL] == serials[start:stop]]
                self._enter(out, records[:, SERIAL], records[:, DIGEST], records[:, KEY], records[:, DOMAIN])

    def forget(self, generation: bytes) -> None:
        """Start OUT anew, with 16 random bytes, which the other gateway has to be told (`forget_from_peer`)."""
        self._log.begin(self._log.out, generation)

    def forget_from_peer(self, generation: bytes) -> None:
        """The other gateway starts its OUT anew, our IN, with this generation."""
        if generation != self._log.incoming.generation:
            self._log.begin(self._log.incoming, generation)
            self._received.clear()

    @property
    def out_generation(self) -> bytes:
        """Which log ours is."""
        return self._log.out.generation

    @property
    def in_generation(self) -> bytes:
        """Which log of the other gateway is held here."""
        return self._log.incoming.generation

    def close(self) -> None:
        """Write the log to the disk, and give the file back."""
        self._log.close()

    # Within

    def _references(self, slots: Slots) -> Numbers:
        """The references to slots, NONE for what is too old to be referred to."""
        incoming = slots >= self._log.capacity
        count = np.count_nonzero(incoming)
        if count in {0, len(slots)}:
            return self._references_to(int(count > 0), slots)
        references = np.empty(len(slots), np.uint64)
        for number, which in enumerate((~incoming, incoming)):
            references[which] = self._references_to(number, slots[which])
        return references

    def _references_to(self, number: int, slots: Slots) -> Numbers:
        """The same, for slots of one ring."""
        ring = (self._log.out, self._log.incoming)[number]
        serials = ring.serials(slots - ring.base)
        young = serials >= np.uint64(ring.oldest(self._window - self.margin))
        young &= ring.are(Kept.COMMON, serials)
        return (serials << np.uint64(1) | np.uint64(number)) * young

    def _locate(self, references: Numbers, rings: tuple[Ring, Ring], least: np.uint8) -> Slots:
        """The slots that references name, -1 where they name none."""
        slots = np.full(len(references), -1, np.intp)
        serials = references >> np.uint64(1)
        for number, ring in enumerate(rings):
            mine = (references & np.uint64(1) == number) & ring.are(least, serials)
            slots[mine] = ring.slots(serials[mine]) + ring.base
        return slots

    def _read(self, references: Numbers, rings: tuple[Ring, Ring], least: np.uint8) -> Pages | None:
        slots = self._locate(references, rings, least)
        return None if (slots < 0).any() else self._log.pages(slots)

    def _remember(self, keys: Numbers, references: Numbers, rings: tuple[Ring, Ring]) -> None:
        slots = self._locate(references, rings, Kept.COMMON)
        known = slots >= 0
        if known.any():
            self._index.put(keys[known], slots[known])

    def _enter(
        self, ring: Ring, serials: Numbers, digests: Numbers, keys: Numbers, domains: Numbers | np.uint64
    ) -> None:
        """These can be referred to from now on."""
        slots = ring.slots(serials)
        ring.kept[slots] = Kept.COMMON
        self._put(digests ^ domains, keys, slots + ring.base)

    def _put(self, hashes: Numbers, keys: Numbers, slots: Slots) -> None:
        self._index.put(np.concatenate((hashes, keys)), np.concatenate((slots, slots)))

    def _index_all(self) -> None:
        """Make the index anew, in the order in which the pages came."""
        self._index.clear()
        walks = (self._log.walk(ring, Kept.COMMON) for ring in (self._log.out, self._log.incoming))
        for slots, records in heapq.merge(*walks, key=lambda part: int(part[1][0, -2])):
            self._put(records[:, DIGEST] ^ records[:, DOMAIN], records[:, KEY], slots)

    def _compare(self, ring: Ring, serials: Numbers, digests: Numbers) -> None:
        """Forget pages that have come again as others: their sender's file was set back."""
        records = self._log.records(ring, int(serials[0]), int(serials[-1]) + 1)
        others = records[(serials - serials[0]).astype(np.intp), DIGEST] != digests
        self._log.drop(ring.slots(serials[others]) + ring.base)

    def _note(self, first: int, end: int) -> None:
        received = self._received
        if received and received[-1][1] == first:
            received[-1] = (received[-1][0], end)
        else:
            received.append((first, end))
            del received[:-MOST_RECEIVED]


def _agree(ring: Ring, peer: RingState, *, is_torn: bool) -> None:
    """Of a ring whose generation both gateways have: what the other one holds as well, and nothing else, can be referred to.

    What is newer than its word stays as it is, unless it may have lost that: frames and acknowledgements may have overtaken it.
    """
    oldest = ring.oldest(ring.capacity)
    held = ring.window(Kept.HELD)
    told = np.zeros(len(held), np.bool_)
    for first, end in peer.ranges:
        told[max(first - oldest, 0) : max(end - oldest, 0)] = True
    if not is_torn:
        held[max(peer.next - oldest, 0) :] = False
    for at, part in ring.parts(oldest, len(held)):
        kept = ring.kept[at - ring.base : at - ring.base + part.stop - part.start]
        kept[held[part]] = Kept.HELD
        kept[held[part] & told[part]] = Kept.COMMON
