"""A log of 100,000 entries, as Go's own sumdb sees it: note and tlog of golang.org/x/mod, which Debian packages."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.audit.journal import commit
from gateway.audit.storage import Storage
from tests.unit.audit_logs import BRU, entry

PACKAGES = Path("/usr/share/gocode")
SIZE = 100_000

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("go") is None or not (PACKAGES / "src/golang.org/x/mod/sumdb/tlog").exists(),
        reason="Go, or its golang.org/x/mod, is not there: .ci/debian installs golang-go and golang-golang-x-mod-dev",
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(PACKAGES),
        "GOCACHE": str(room / "cache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    argv = ["go", "build", "-o", str(room / "tlog"), str(Path(__file__).with_name("tlog.go"))]
    subprocess.run(argv, env=environment, check=True, timeout=240)
    return room / "tlog"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("log")
    storage = Storage.open(directory, BRU)
    for start in range(0, SIZE, 5000):
        commit(storage, [entry(number) for number in range(start, start + 5000)])
    storage.close()
    return directory


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def run(program: Path, log: Path, vkey: str, proofs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, log, vkey, proofs], capture_output=True, text=True, check=False, timeout=120)


def test_go_agrees_on_the_checkpoint_the_tree_and_the_proofs(program: Path, log: Path, tmp_path: Path) -> None:
    storage = Storage.open(log, BRU)
    tiles, chance = storage.tiles(), random.Random(1)
    edges = [1, 2, 255, 256, 257, 65_535, 65_536, 65_537, SIZE - 1, SIZE]
    sizes = edges + [chance.randrange(1, SIZE) for _ in range(40)]
    proofs = {
        "inclusion": [
            {
                "index": index,
                "size": size,
                "root": text(tiles.root(size)),
                "proof": [text(each) for each in tiles.inclusion(index, size)],
            }
            for size in sizes
            for index in {0, size - 1, chance.randrange(size)}
        ],
        "consistency": [
            {
                "old": old,
                "size": size,
                "oldRoot": text(tiles.root(old)),
                "root": text(tiles.root(size)),
                "proof": [text(each) for each in tiles.consistency(old, size)],
            }
            for size in sizes
            for old in {1, size, chance.randrange(1, size + 1)}
        ],
    }
    vkey = str(storage.signer.key())
    storage.close()
    (tmp_path / "proofs.json").write_text(json.dumps(proofs))
    done = run(program, log, vkey, tmp_path / "proofs.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "entries": SIZE,
        "inclusion": len(proofs["inclusion"]),
        "consistency": len(proofs["consistency"]),
    }
    # And it is no program that agrees with everything.
    proofs["inclusion"][7]["proof"][0] = text(bytes(32))  # type: ignore[index]  # a list of texts
    (tmp_path / "wrong.json").write_text(json.dumps(proofs))
    done = run(program, log, vkey, tmp_path / "wrong.json")
    assert (done.returncode, "invalid" in done.stderr) == (1, True), done.stderr
    changed = tmp_path / "changed"
    shutil.copytree(log, changed)
    bundle = changed / "tile/entries/077"
    bundle.write_bytes(bundle.read_bytes().replace(b"copying", b"cOpying", 1))
    done = run(program, changed, vkey, tmp_path / "proofs.json")
    assert (done.returncode, "and the checkpoint signs" in done.stderr) == (1, True), done.stderr
