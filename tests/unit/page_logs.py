"""Pages, and two gateways' page logs, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gateway.stream.dedup import History
from gateway.stream.page_log import HEAD, RECORD, PageLog, Pages, digest
from gateway.stream.ring import Numbers
from landbridge.hints import PAGE

BOOT, ANOTHER_BOOT = b"the first boot..", b"the second boot."
DOMAIN = 77


def generation(number: int) -> bytes:
    """One that differs from those of other numbers in what its serials begin with."""
    return (number << 42).to_bytes(8) + number.to_bytes(8)


def size_for(capacity: int) -> int:
    """Bytes of a file with so many pages in each ring."""
    return HEAD + PAGE + 2 * capacity * (PAGE + RECORD)


def some_pages(*numbers: int) -> Pages:
    """Pages that are told apart by a number each."""
    return np.array([np.random.default_rng(number).integers(0, 256, PAGE, np.uint8) for number in numbers], np.uint8)


def digests_of(pages: Pages) -> Numbers:
    return np.array([digest(page.tobytes()) for page in pages], np.uint64)


def open_log(path: Path, capacity: int, number: int = 1, boot: bytes = BOOT) -> PageLog:
    return PageLog.open(path, size_for(capacity), boot, generation(number))


def numbers(*values: int) -> Numbers:
    return np.array(values, np.uint64)


def append(history: History, *pages: int, keys: tuple[int, ...] = (), domain: int = DOMAIN) -> int | None:
    """Append such pages; their keys are their numbers if none are given."""
    contents = some_pages(*pages)
    return history.append(contents, np.arange(len(pages)), digests_of(contents), numbers(*(keys or pages)), domain)


def store(history: History, first: int, *pages: int, keys: tuple[int, ...] = (), domain: int = DOMAIN) -> None:
    contents = some_pages(*pages)
    history.store(first, [contents], digests_of(contents), numbers(*(keys or pages)), domain)


def find(history: History, page: int, domain: int = DOMAIN) -> int | None:
    content = some_pages(page)[0].tobytes()
    return history.find(domain, digest(content), content)


class Pair:
    """Two gateways with a page log each, which have met."""

    def __init__(self, directory: Path, capacity: int = 16) -> None:
        self.paths = [directory / "here", directory / "there"]
        self.capacity = capacity
        self.here = History(open_log(self.paths[0], capacity, 1))
        self.there = History(open_log(self.paths[1], capacity, 2))
        self.meet()

    def meet(self) -> None:
        here, there = self.here.state(), self.there.state()
        self.here.meet(there)
        self.there.meet(here)

    def send(self, *pages: int, keys: tuple[int, ...] = (), domain: int = DOMAIN) -> int:
        """Pages go from here to there and are acknowledged; returns the first serial."""
        first = append(self.here, *pages, keys=keys, domain=domain)
        assert first is not None
        store(self.there, first, *pages, keys=keys, domain=domain)
        self.here.acknowledged(self.there.take_received())
        return first

    def close(self) -> None:
        self.here.close()
        self.there.close()
