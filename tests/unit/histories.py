"""Page logs of two gateways in memory, with what a test wants to see; the rules of `gateway.stream.classify.History`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.stream.classify import Rows
from gateway.stream.page_log import Pages
from gateway.stream.ring import Numbers
from landbridge.errors import ProtocolError
from landbridge.hints import PAGE

# As of page_log: no serial is 0.
FIRST = 1 << 40


class MemoryHistory:
    """What one gateway holds. Pages of ours count once the test says that the other gateway has acknowledged them."""

    def __init__(self) -> None:
        self.out: dict[int, bytes] = {}
        self.incoming: dict[int, bytes] = {}
        self.is_full = False
        self.margin = 1 << 20
        # How many pages came with each call of `append`.
        self.appended: list[int] = []
        self._next = FIRST
        self._common: set[int] = set()
        self._records: dict[int, tuple[int, int, int]] = {}  # of a reference: domain, digest, key
        self._by_digest: dict[tuple[int, int], int] = {}
        self._by_key: dict[int, int] = {}

    def known_many(self, domain: int, digests: Numbers, keys: Numbers, pages: Pages) -> tuple[Numbers, Numbers]:
        found = np.zeros(len(digests), np.uint64)
        for row, digest in enumerate(digests.tolist()):
            reference = self._by_digest.get((domain, digest), 0)
            if reference and self._page(reference) == pages[row].tobytes():
                found[row] = reference
        last = [self._by_key.get(key, 0) for key in keys.tolist()]
        return found, np.array([self._of_domain(reference, domain) for reference in last], np.uint64)

    def read_many(self, references: Numbers) -> Pages | None:
        return _stacked([self._page(reference) for reference in references.tolist()])

    def append(self, pages: Pages, rows: Rows, digests: Numbers, keys: Numbers, domain: int) -> int | None:
        if self.is_full:
            return None
        first = self._next
        self.appended.append(len(rows))
        for number, row in enumerate(rows.tolist()):
            self.out[first + number] = pages[row].tobytes()
            self._records[(first + number) * 2] = (domain, int(digests[number]), int(keys[number]))
        self._next += len(rows)
        return first

    def remember_many(self, keys: Numbers, references: Numbers) -> None:
        for key, reference in zip(keys.tolist(), references.tolist(), strict=True):
            if reference in self._common:
                self._by_key[key] = reference

    def read_many_from_peer(self, references: Numbers) -> Pages | None:
        return _stacked([self._page(reference ^ 1) for reference in references.tolist()])

    def store(self, first: int, pages: Sequence[Pages], digests: Numbers, keys: Numbers, domain: int) -> None:
        if first < FIRST:
            raise ProtocolError("serials that cannot be")
        for row, page in enumerate(np.concatenate(pages)):
            self.incoming[first + row] = page.tobytes()
            self._records[(first + row) * 2 + 1] = (domain, int(digests[row]), int(keys[row]))
            self._enter((first + row) * 2 + 1)

    def remember_many_from_peer(self, keys: Numbers, references: Numbers) -> None:
        self.remember_many(keys, references ^ np.uint64(1))

    def acknowledged(self, peer: MemoryHistory) -> None:
        """The other gateway says which of our pages it has."""
        for serial in self.out.keys() & peer.incoming.keys():
            self._enter(serial * 2)

    def lose(self) -> None:
        """The file is gone."""
        self.out.clear()
        self.incoming.clear()
        self._common.clear()
        self._by_digest.clear()
        self._by_key.clear()

    def _enter(self, reference: int) -> None:
        if reference not in self._common:
            domain, digest, key = self._records[reference]
            self._common.add(reference)
            self._by_digest[domain, digest] = self._by_key[key] = reference

    def _of_domain(self, reference: int, domain: int) -> int:
        return reference if reference and self._records[reference][0] == domain else 0

    def _page(self, reference: int) -> bytes | None:
        return (self.incoming if reference & 1 else self.out).get(reference >> 1)


def _stacked(pages: list[bytes | None]) -> Pages | None:
    if None in pages:
        return None
    return np.frombuffer(b"".join(page for page in pages if page is not None), np.uint8).reshape(-1, PAGE)
