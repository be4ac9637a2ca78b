"""The fake hypervisor's disks at one moment, and what is written to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from agent.hypervisor.base import Extent

# Bytes of which a bitmap knows whether something in them was written, as QEMU's do.
GRAIN = 1 << 16


class Bitmap:
    """What was written to some disks. Owner: its VM, under its hypervisor's lock."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._grains: dict[str, set[int]] = {target: set() for target in targets}

    def note(self, target: str, offset: int, length: int) -> None:
        """So many bytes were written there."""
        if target in self._grains:
            self._grains[target].update(range(offset // GRAIN, (offset + length - 1) // GRAIN + 1))

    def written(self, target: str) -> frozenset[int]:
        """Grains in which something was written."""
        return frozenset(self._grains[target])


class FakeView:
    """A disk. Implements `DiskView`; `enter` is called as "read_disk" before each read, and may hold or fail it."""

    def __init__(self, target: str, data: bytes, written: Collection[int], enter: Callable[[str], None]) -> None:
        self.target = target
        self.size = len(data)
        self._data = data
        self._written = written
        self._enter = enter

    def extents(self) -> Iterator[Extent]:
        """See `DiskView`."""
        for grain in range(-(-self.size // GRAIN)):
            data = self._data[grain * GRAIN : (grain + 1) * GRAIN]
            yield Extent(grain * GRAIN, len(data), zero=not any(data), written=grain in self._written)

    def read(self, offset: int, length: int) -> bytes:
        """See `DiskView`."""
        self._enter("read_disk")
        return self._data[offset : offset + length]
