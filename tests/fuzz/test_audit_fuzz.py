"""Fuzz targets of what an auditor is given: each is read, or refused with a documented error and no other."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.audit import canonical
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.entry import Recorded
from gateway.audit.note import Key, Note
from gateway.audit.proof import Proof
from gateway.audit.receipt import Receipt, check
from gateway.audit.tree import TileName, unbundle
from gateway.audit.verify import Trust, verify
from landbridge.errors import EvidenceFailed, UsageError
from tests.fuzz.test_frame_fuzz import mutated, rounds
from tests.unit.audit_logs import WITNESS_KEY, Copy, cosigned, receipt, written


@pytest.fixture(scope="module")
def log() -> Copy:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        written(directory, 6)
        cosigned(directory)
        copy = Copy.of(directory)
        copy.files["receipt"] = receipt(directory, 1, 5).encode()
        copy.files["proof"] = receipt(directory, 3).parts[0].entries[0].proof.encode()
        return copy


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda raw: read(raw.decode("utf-8", "replace"))


# What is read, from which file a seed is taken, and whether it can be written again alike.
TARGETS: dict[str, tuple[str, Callable[[bytes], object], type[Exception]]] = {
    "note": ("cosigned", Note.decode, EvidenceFailed),
    "signed": ("checkpoint", Signed.decode, EvidenceFailed),
    "checkpoint": ("checkpoint", text(Checkpoint.parse), EvidenceFailed),
    "key": ("log.vkey", text(lambda line: Key.parse(line.strip())), UsageError),
    "proof": ("proof", Proof.decode, EvidenceFailed),
    "receipt": ("receipt", lambda raw: check(Receipt.decode(raw)), EvidenceFailed),
    "bundle": ("tile/entries/000.p/6", unbundle, EvidenceFailed),
}


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_read_or_refused(log: Copy, name: str) -> None:
    path, read, refusal = TARGETS[name]
    seen: Counter[str] = Counter()
    for _, chance in rounds():
        raw = mutated(log.files[path], chance)
        try:
            read(raw)
        except refusal:
            seen["refused"] += 1
        else:
            seen["read"] += 1
    assert seen["refused"]


def test_an_entry_is_read_or_refused_and_only_the_canonical_one_is_read(log: Copy) -> None:
    entries = unbundle(log.files["tile/entries/000.p/6"])
    seen: Counter[str] = Counter()
    for seed, chance in rounds():
        raw = _changed(chance.choice(entries), chance)
        try:
            entry = Recorded.decode(raw)
        except EvidenceFailed:
            seen["refused"] += 1
        else:
            assert canonical.encode(dict(entry.document)) == raw, seed
            seen["read"] += 1
    assert set(seen) == {"refused", "read"}


def _changed(raw: bytes, chance: random.Random) -> bytes:
    """Changed anywhere, or only inside its words, so that some stay entries."""
    if chance.random() < 0.5:
        return mutated(raw, chance)
    at = raw.index(b"id-") + 3
    return raw[:at] + bytes([chance.choice(b'0123456789abcxyz"\\')]) + raw[at + 1 :]


def test_a_log_of_mutilated_files_is_judged_and_never_raises(log: Copy) -> None:
    files = {path: raw for path, raw in log.files.items() if path not in ("receipt", "proof")}
    seen: Counter[bool] = Counter()
    for _, chance in rounds():
        changed = dict(files)
        for path in chance.sample(sorted(files), chance.randint(1, 3)):
            if chance.random() < 0.1:
                del changed[path]
            else:
                changed[path] = mutated(changed[path], chance)
        issued = [mutated(log.files["receipt"], chance)]
        report = verify(Copy(changed), Trust(witnesses=(WITNESS_KEY,)), issued)
        seen[report.is_good] += 1
    assert seen[False]


def test_a_path_is_a_tiles_or_none(log: Copy) -> None:
    seeds = [b"tile/0/x001/234.p/7", b"tile/entries/000", b"tile/63/999.p/255"]
    for seed, chance in rounds():
        path = mutated(chance.choice(seeds), chance).decode("utf-8", "replace")
        name = TileName.parse(path)
        assert name is None or name.path == path, seed
