"""The tree of RFC 6962 and its tiles: as others make them, and as they were published."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from gateway.audit.tree import (
    EMPTY_ROOT,
    TILE,
    Edge,
    TileName,
    Tiles,
    bundle,
    check_consistency,
    leaf_hash,
    node_hash,
    root_from_inclusion,
    tiles_of,
    unbundle,
)
from landbridge.errors import EvidenceFailed, UsageError

VECTORS = Path(__file__).parents[1] / "vectors" / "tlog"

# The entries of the reference tree of Certificate Transparency, and its roots from size 0 on (transparency-dev/merkle, testonly).
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def vectors(kind: str) -> list[pytest.param]:  # type: ignore[valid-type]  # pytest.param is a function
    return [pytest.param(each, id=each["name"]) for each in json.loads((VECTORS / f"{kind}.json").read_text())]


def raw(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(defined_root(leaves[:k]), defined_root(leaves[k:]))


def test_the_published_tree_has_the_published_roots() -> None:
    edge = Edge()
    for size, root in enumerate(ROOTS):
        assert edge.root().hex() == defined_root(LEAVES[:size]).hex() == root
        if size < len(LEAVES):
            edge.append(leaf_hash(LEAVES[size]))


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_a_published_proof_of_inclusion_is_judged_as_published(vector: dict[str, object]) -> None:
    proof = [raw(each) for each in vector["proof"] or ()]  # type: ignore[attr-defined]
    try:
        leaf = raw(vector["leafHash"])  # type: ignore[arg-type]
        root = root_from_inclusion(vector["leafIdx"], vector["treeSize"], leaf, proof)  # type: ignore[arg-type]
        refused = root != raw(vector["root"])  # type: ignore[arg-type]
    except EvidenceFailed:
        refused = True
    # A checkpoint never has an empty root, and no entry an empty hash: there, the vectors ask for less than ours checks before.
    if not raw(vector["leafHash"]):  # type: ignore[arg-type]
        return
    assert refused is vector["wantErr"]


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_a_published_proof_of_consistency_is_judged_as_published(vector: dict[str, object]) -> None:
    proof = [raw(each) for each in vector["proof"] or ()]  # type: ignore[attr-defined]
    old_root, root = raw(vector["root1"]), raw(vector["root2"])  # type: ignore[arg-type]
    try:
        check_consistency(vector["size1"], old_root, vector["size2"], root, proof)  # type: ignore[arg-type]
        refused = False
    except EvidenceFailed:
        refused = True
    # Any tree goes on from the empty one, as tlog-witness has it; the vectors refuse to answer.
    goes_on = vector["size1"] == 0 != vector["size2"] and old_root == EMPTY_ROOT and not proof
    assert refused is (vector["wantErr"] and not goes_on)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tile/0/000", TileName(0, 0, TILE)),
        ("tile/entries/x001/x234/067", TileName(None, 1234067, TILE)),
        ("tile/2/000.p/1", TileName(2, 0, 1)),
        ("tile/63/x999/999.p/255", TileName(63, 999_999, 255)),
    ],
)
def test_a_tile_has_the_path_of_the_specification(path: str, name: TileName) -> None:
    assert name.path == path
    assert TileName.parse(path) == name


@pytest.mark.parametrize(
    "path",
    ["tile/0/0", "tile/00/000", "tile/64/000", "tile/0/x000/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01",
     "tile/x/000", "tile/0/1234", "tile/0/x1/000", "tile/0/000.p/", "tile/0/000\n", "checkpoint", "tile/data/000"],
)  # fmt: skip
def test_another_path_is_no_tiles(path: str) -> None:
    assert TileName.parse(path) is None


def test_the_specifications_example_has_the_tiles_that_it_names() -> None:
    # tlog-tiles: 70,000 entries.
    names = list(tiles_of(70_000, entries=False))
    assert len([name for name in names if name.level == 0 and name.width == TILE]) == 273
    assert [name.path for name in names if name.level == 0][-1] == "tile/0/273.p/112"
    assert [name.path for name in names if name.level] == ["tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]
    assert [name.path for name in tiles_of(256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert list(tiles_of(0)) == []


def test_a_bundle_is_read_whole_or_refused() -> None:
    entries = [b"", b"a", b"b" * 65_535]
    whole = bundle(entries)
    assert unbundle(whole) == entries
    boundaries = {0: 0, 2: 1, 5: 2, len(whole): 3}
    for end in [*range(10), len(whole) - 1, len(whole)]:
        if end in boundaries:
            assert len(unbundle(whole[:end])) == boundaries[end]
        else:
            with pytest.raises(EvidenceFailed, match="ends inside its entry"):
                unbundle(whole[:end])
    with pytest.raises(EvidenceFailed, match="ends inside its entry 3"):
        unbundle(whole + b"\0")


def test_a_question_beyond_the_tree_is_refused() -> None:
    def never(name: TileName) -> bytes:
        raise AssertionError(name)

    tiles = Tiles(5, never)
    for ask in (
        lambda: tiles.root(6),
        lambda: tiles.inclusion(5),
        lambda: tiles.inclusion(0, 6),
        lambda: tiles.consistency(6),
    ):
        with pytest.raises(UsageError):
            ask()
