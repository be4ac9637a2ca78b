"""Laws of the audit log: any tree's proofs hold, any history grows to the same tiles, and no change of a log goes unnoticed."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.audit import canonical
from gateway.audit.storage import Growth
from gateway.audit.tree import (
    EMPTY_ROOT,
    TILE,
    Edge,
    TileName,
    Tiles,
    bundle,
    check_consistency,
    leaf_hash,
    root_from_inclusion,
    tiles_of,
    unbundle,
)
from gateway.audit.verify import Trust, verify
from landbridge.errors import EvidenceFailed, InternalError
from tests.unit.audit_logs import Copy, written

_NAMES = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12)
_LEAVES = st.none() | st.booleans() | st.integers(-canonical.MOST, canonical.MOST) | st.text()
_VALUES = st.recursive(
    _LEAVES, lambda below: st.lists(below, max_size=4) | st.dictionaries(_NAMES, below, max_size=4), max_leaves=20
)

MOST = 70_000
LEAVES = [leaf_hash(number.to_bytes(4, "big")) for number in range(MOST)]


def grown(*ends: int) -> tuple[Growth, dict[TileName, bytes]]:
    """A tree that grew in groups, and the tiles that were written; of the partial ones, all."""
    growth = Growth(Edge(), [], [])
    written_tiles: dict[TileName, bytes] = {}
    for start, end in pairwise([0, *ends]):
        growth, tiles = growth.grown([number.to_bytes(4, "big") for number in range(start, end)])
        written_tiles |= tiles
    return growth, written_tiles


TREE, TREE_TILES = grown(MOST)


def read(name: TileName) -> bytes:
    """A tile of the large tree, also as it was when that was smaller."""
    found = TREE_TILES.get(name)
    if found is not None:
        return found
    longer = next(raw for other, raw in TREE_TILES.items() if other[:2] == name[:2])
    return longer[: name.width * 32]


@given(_VALUES)
def test_canonical_bytes_are_read_back_and_written_again_alike(value: canonical.Value) -> None:
    try:
        raw = canonical.encode(value)
    except InternalError:
        assume(False)
    assert canonical.decode(raw) == value
    assert canonical.encode(json.loads(raw)) == raw


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_gives_back_its_entries(entries: list[bytes]) -> None:
    assert unbundle(bundle(entries)) == entries


@given(st.data(), st.integers(1, MOST))
def test_every_proof_of_inclusion_leads_to_the_root_and_no_other_leaf_does(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    tiles = Tiles(size, read)
    proof, root = tiles.inclusion(index), tiles.root()
    assert root_from_inclusion(index, size, LEAVES[index], proof) == root
    assert len(proof) <= (size - 1).bit_length()
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert root_from_inclusion(index, size, LEAVES[other], proof) != root


@given(st.data(), st.integers(0, MOST))
def test_every_proof_of_consistency_holds_and_none_for_another_root(data: st.DataObject, size: int) -> None:
    old = data.draw(st.integers(0, size))
    tiles = Tiles(size, read)
    proof, root, old_root = tiles.consistency(old), tiles.root(), tiles.root(old)
    check_consistency(old, old_root, size, root, proof)
    for wrong in ((old, bytes(32), size, root), (old, old_root, size, bytes(32))):
        if old == 0 and wrong[1] == EMPTY_ROOT:
            continue  # the empty tree is the beginning of any
        with pytest.raises(EvidenceFailed):
            check_consistency(*wrong, proof)
    with pytest.raises(EvidenceFailed):
        check_consistency(old, old_root, size, root, [*proof, bytes(32)])


@given(st.lists(st.integers(0, 3 * TILE), max_size=6).map(sorted))
def test_however_a_log_grows_it_has_the_tiles_and_the_root_of_its_size(ends: list[int]) -> None:
    growth, tiles = grown(*ends)
    size = ends[-1] if ends else 0
    edge = Edge()
    for leaf in LEAVES[:size]:
        edge.append(leaf)
    assert growth.edge.root() == edge.root() == (Tiles(size, tiles.__getitem__).root() if size else EMPTY_ROOT)
    assert set(tiles_of(size)) <= set(tiles)
    assert all(len(raw) == name.width * 32 for name, raw in tiles.items() if name.level is not None)
    assert Tiles(size, tiles.__getitem__).edge().root() == edge.root()


@pytest.fixture(scope="module")
def log() -> Copy:
    """A log of a full bundle and a partial one."""
    with tempfile.TemporaryDirectory() as directory:
        written(Path(directory), 260)
        return Copy.of(Path(directory))


@given(st.data())
def test_no_change_of_any_file_goes_unnoticed(log: Copy, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(log.files)))
    raw = log.files[path]
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 64)))
    changed = raw[:start] + data.draw(st.binary(max_size=64)) + raw[end:]
    assume(changed != raw)
    report = verify(Copy({**log.files, path: changed}), Trust(key=log.key()))
    assert report.findings
    assert all(each.message and each.meaning for each in report.findings)


@given(st.data())
def test_no_file_that_is_taken_away_goes_unnoticed(log: Copy, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(log.files)))
    left = {name: raw for name, raw in log.files.items() if name != path}
    assert verify(Copy(left), Trust()).findings
