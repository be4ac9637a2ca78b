"""The tree over a disk's blocks: what a root says, what it costs, and what is refused."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from landbridge import disk_tree
from landbridge.disk_tree import BLOCK, LEAF, MOST_NODES, NODE, OUT, PAD, ZERO, Builder, Run

DOCUMENT = Path(__file__).parents[2] / "docs/disk-proof.md"


def nodes_of(leaves: list[tuple[bytes, int]]) -> list[bytes]:
    builder = Builder(sum(count for _, count in leaves))
    for leaf, count in leaves:
        builder.add(leaf, count)
    return builder.nodes()


def plain_root(leaves: list[bytes]) -> bytes:
    """The root, made as the docstring says it and in no other way."""
    row = list(leaves)
    while len(row) & (len(row) - 1):
        row.append(PAD)
    while len(row) > 1:
        row = [blake3(row[at] + row[at + 1], key=NODE).digest() for at in range(0, len(row), 2)]
    return row[0]


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 8, 4095, 4096, 4097, 8192, 10_001, 20_000])
def test_the_root_is_that_of_all_leaves_however_they_were_given(blocks: int) -> None:
    chance = random.Random(blocks)
    runs, left = [], blocks
    while left:
        count = min(left, chance.choice([1, 1, 2, 5, 64, 1000, 5000]))
        runs.append((chance.choice([ZERO, OUT, chance.randbytes(32)]), count))
        left -= count
    leaves = [leaf for leaf, count in runs for _ in range(count)]
    nodes = nodes_of(runs)
    assert len(nodes) <= MOST_NODES
    assert nodes == nodes_of([(leaf, 1) for leaf in leaves])
    assert disk_tree.root_of(nodes, blocks) == plain_root(leaves)


def test_a_hole_of_a_pebibyte_costs_a_few_thousand_hashes() -> None:
    blocks = disk_tree.blocks_of(1 << 50)
    assert disk_tree.root_of(nodes_of([(ZERO, blocks)]), blocks) == disk_tree._subtree(ZERO, 34)


def test_a_block_of_zeros_is_the_same_whether_it_was_read_or_is_a_hole() -> None:
    assert disk_tree.leaf(bytes(BLOCK)) == ZERO
    assert disk_tree.leaf(memoryview(bytes(512))) == ZERO
    assert (
        disk_tree.leaf(b"a" + bytes(BLOCK - 1))
        == disk_tree.leaf(b"a")
        == blake3(b"a".ljust(BLOCK, b"\0"), key=LEAF).digest()
    )


def test_disks_of_other_sizes_and_other_left_out_blocks_have_other_roots() -> None:
    roots = {
        disk_tree.root_of(nodes_of(leaves), sum(count for _, count in leaves))
        for leaves in (
            [(ZERO, 3)],
            [(ZERO, 4)],
            [(ZERO, 3), (OUT, 1)],
            [(ZERO, 2), (OUT, 1)],
            [(ZERO, 3), (PAD, 0), (OUT, 2)],
        )
    }
    assert len(roots) == 5


def test_where_two_disks_differ_is_told_to_a_node() -> None:
    blocks = 3 * MOST_NODES
    ours = nodes_of([(ZERO, blocks)])
    theirs = nodes_of([(ZERO, 5), (OUT, 1), (ZERO, 2), (OUT, 1), (ZERO, blocks - 10), (OUT, 1)])
    assert disk_tree.differing(ours, theirs, blocks) == [Run(4, 8), Run(blocks - 4, 4)]
    assert disk_tree.differing(ours, ours, blocks) == []


def test_too_many_or_too_few_leaves_are_a_mistake() -> None:
    builder = Builder(2)
    builder.add(ZERO)
    with pytest.raises(ValueError, match="1 blocks of the disk are missing"):
        builder.nodes()
    with pytest.raises(ValueError, match="no more blocks"):
        builder.add(ZERO, 2)


def test_nodes_of_another_size_have_no_root() -> None:
    for nodes in ([], [ZERO, ZERO], [b"short"]):
        with pytest.raises(ValueError, match="not the nodes"):
            disk_tree.root_of(nodes, 1)
    assert disk_tree.root_of([], 0) == PAD


def test_runs_come_back_as_they_were_sent() -> None:
    runs = [Run(0, 2), Run(5, 1), Run(9, 1)]
    assert disk_tree.unpacked(list(disk_tree.packed(runs)), 10) == runs
    for wrong in ([1], [0, 0], [9, 2], [0, 1, 3, 7]):
        with pytest.raises(ValueError, match="of blocks"):
            disk_tree.unpacked(wrong, 10)


def test_runs_that_are_too_many_are_joined_over_the_narrowest_gaps_and_none_is_lost() -> None:
    runs = [Run(0, 1), Run(1, 1), Run(4, 2), Run(5, 3), Run(20, 1), Run(23, 1)]
    assert disk_tree.joined(runs, 9) == [Run(0, 2), Run(4, 4), Run(20, 1), Run(23, 1)]
    assert disk_tree.joined(runs, 3) == [Run(0, 8), Run(20, 4)]
    assert disk_tree.joined(runs, 1) == [Run(0, 24)]


def test_the_root_is_what_the_documentation_makes_of_a_raw_image(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    image = tmp_path / "vda.raw"
    image.write_bytes(random.Random(1).randbytes(5 * BLOCK + 77))
    done = subprocess.run([sys.executable, "-c", program, str(image)], capture_output=True, text=True, check=True)
    builder = Builder(6)
    for at in range(0, image.stat().st_size, BLOCK):
        builder.add(disk_tree.leaf(image.read_bytes()[at : at + BLOCK]))
    assert done.stdout.strip() == disk_tree.root_of(builder.nodes(), 6).hex()
