"""Hashing a disk: what is read and what is not, and that the result says what is stored, however that is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import disk_hash
from agent.disk_hash import Meter, Stopped, hash_disk, written
from agent.hypervisor.base import Extent
from landbridge import disk_tree
from landbridge.disk_tree import BLOCK, OUT, Run

SECTOR = 512


class View:
    """A disk in memory, whose extents are as a test says; it counts what is read."""

    target = "vda"

    def __init__(self, data: bytes, extents: list[Extent]) -> None:
        self.data, self.size = data, len(data)
        self._extents = extents
        self.bytes_read = 0

    def extents(self) -> Iterator[Extent]:
        yield from self._extents

    def read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self.data[offset : offset + length]


def root(view: View, left_out: list[Run] | None = None) -> bytes:
    meter = Meter(0)
    hashed = hash_disk(view, left_out or [], meter)
    assert meter.done == hashed.size == view.size
    return disk_tree.root_of(hashed.nodes, disk_tree.blocks_of(view.size))


def plainly(data: bytes, left_out: list[Run]) -> bytes:
    """The root, block by block."""
    blocks = disk_tree.blocks_of(len(data))
    builder = disk_tree.Builder(blocks)
    out = {block for run in left_out for block in range(run.first, run.end)}
    for block in range(blocks):
        builder.add(OUT if block in out else disk_tree.leaf(data[block * BLOCK : (block + 1) * BLOCK]))
    return disk_tree.root_of(builder.nodes(), blocks)


@st.composite
def disks(draw: st.DrawFn) -> tuple[View, list[Run]]:
    """A disk whose holes and writes begin and end anywhere on sectors, and what is left out of it."""
    pieces = draw(st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.booleans()), min_size=1, max_size=12))
    data, extents = b"", []
    for sectors, zero, dirty in pieces:
        length = sectors * SECTOR
        extents.append(Extent(len(data), length, zero=zero, written=dirty))
        data += bytes(length) if zero else os.urandom(16).ljust(length, b"x")
    view = View(data, extents)
    return view, written(view, draw(st.integers(1, 4)))


@given(disks())
def test_the_root_is_that_of_the_content_whatever_is_said_of_its_holes(drawn: tuple[View, list[Run]]) -> None:
    view, left_out = drawn
    assert root(view, left_out) == plainly(view.data, left_out)
    assert root(View(view.data, [Extent(0, view.size)]), left_out) == plainly(view.data, left_out)


@given(disks())
def test_every_block_with_a_write_in_it_is_left_out(drawn: tuple[View, list[Run]]) -> None:
    view, left_out = drawn
    out = {block for run in left_out for block in range(run.first, run.end)}
    for extent in view.extents():
        if extent.written:
            assert set(range(extent.offset // BLOCK, disk_tree.blocks_of(extent.offset + extent.length))) <= out


def test_holes_and_what_is_left_out_are_not_read() -> None:
    data = bytes(2 * BLOCK) + os.urandom(3 * BLOCK)
    view = View(
        data, [Extent(0, BLOCK + 5, zero=True), Extent(BLOCK + 5, BLOCK - 5, zero=True), Extent(2 * BLOCK, 3 * BLOCK)]
    )
    assert root(view, [Run(3, 1)]) == plainly(data, [Run(3, 1)])
    assert view.bytes_read == 2 * BLOCK


def test_a_disk_is_read_in_pieces_and_its_last_block_may_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_hash, "PIECE", 2)
    data = os.urandom(5 * BLOCK + 1000)
    assert root(View(data, [Extent(0, len(data))])) == plainly(data, [])


def test_reading_is_held_to_its_rate() -> None:
    view = View(os.urandom(4 * BLOCK), [Extent(0, 4 * BLOCK)])
    began = time.monotonic()
    hash_disk(view, [], Meter(16 * BLOCK))
    assert time.monotonic() - began >= 0.25


def test_a_reading_that_waits_for_its_rate_is_stopped_at_once() -> None:
    meter = Meter(1)
    threading.Timer(0.05, meter.stop).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        hash_disk(View(os.urandom(BLOCK), [Extent(0, BLOCK)]), [], meter)
    assert meter.is_stopped
    assert time.monotonic() - began < 10
