"""Whatever is done to a log, the verifier says what, where, and what it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit import canonical
from gateway.audit import checkpoint as heads
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.findings import MOST_FINDINGS, Check, Report
from gateway.audit.journal import commit
from gateway.audit.note import Key, KeyType, Signature, Signer
from gateway.audit.receipt import Receipt
from gateway.audit.storage import Growth, Storage
from gateway.audit.tree import TILE, Edge, TileName, bundle, unbundle
from gateway.audit.verify import Trust, verify
from tests.unit.audit_logs import (
    AMS,
    BRU,
    WITNESS,
    WITNESS_KEY,
    Copy,
    cosigned,
    entry,
    part,
    receipt,
    received,
    resigned,
    sent,
    signer,
    written,
)

FEW, MANY = 5, 300


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of a few entries, cosigned."""
    directory = tmp_path_factory.mktemp("few")
    written(directory, FEW)
    cosigned(directory)
    return directory


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a full bundle and a partial one."""
    directory = tmp_path_factory.mktemp("many")
    written(directory, MANY)
    return directory


def found(log: Copy, trust: Trust | None = None, *issued: bytes) -> list[tuple[int, int | None, str]]:
    """What is found, as (check, entry, message)."""
    report = verify(log, trust or Trust(), issued)
    return [(each.check, each.entry, each.message) for each in report.findings]


def only(findings: list[tuple[int, int | None, str]]) -> tuple[int, int | None, str]:
    """The one finding."""
    [finding] = findings
    return finding


def rewritten(log: Copy, entries: list[bytes], by: Signer | None = None) -> Copy:
    """The log with other entries and with all hashes to fit; with a fitting signature too, if the attacker has the key."""
    growth, tiles = Growth(Edge(), [], []).grown(entries)
    files = {path: raw for path, raw in log.files.items() if not path.startswith("tile/")}
    files |= {name.path: raw for name, raw in tiles.items()}
    if by:
        files["checkpoint"] = resigned(Checkpoint(by.name, growth.edge.size, growth.edge.root()), by)
    return Copy(files)


def entries_of(log: Copy, size: int) -> list[bytes]:
    names = [TileName(None, number, min(TILE, size - number * TILE)) for number in range(-(-size // TILE))]
    return [each for name in names for each in unbundle(log.files[name.path])]


def test_a_log_that_nobody_touched_is_good(few: Path, many: Path) -> None:
    report = verify(Copy.of(few), Trust(witnesses=(WITNESS_KEY,)))
    assert (report.findings, report.size, report.entries, report.origin) == ([], FEW, FEW, BRU)
    assert [(each.name, size) for each, size in report.cosigned] == [(AMS, FEW)]
    assert report.first_time == "2026-01-31T12:00:00.000000Z"
    assert report.last_time == "2026-01-31T12:00:04.000000Z"
    assert not report.key_is_given
    log = Copy.of(many)
    assert verify(log, Trust(key=log.key())).key_is_given
    assert found(log) == []


def test_each_byte_that_is_changed_is_found(few: Path) -> None:
    log = Copy.of(few)
    trust = Trust(key=log.key(), witnesses=(WITNESS_KEY,))
    expected = {
        "checkpoint": {Check.CHECKPOINT},
        "cosigned": {Check.WITNESSES},
        "log.vkey": {Check.KEY},
        f"tile/0/000.p/{FEW}": {Check.TREE},
        f"tile/entries/000.p/{FEW}": {Check.ENTRIES, Check.TREE},
    }
    assert set(log.files) == set(expected)
    for path, raw in log.files.items():
        for at in range(len(raw)):
            changed = bytearray(raw)
            changed[at] ^= 1 << (at % 8)
            checks = {check for check, _, _ in found(Copy({**log.files, path: bytes(changed)}), trust)}
            assert checks, (path, at)
            assert checks <= expected[path], (path, at)


def test_a_changed_byte_of_an_entry_names_the_entry(few: Path) -> None:
    log = Copy.of(few)
    path, tile = f"tile/entries/000.p/{FEW}", f"tile/0/000.p/{FEW}"
    at = 0
    for index, raw in enumerate(unbundle(log.files[path])):
        for offset in range(len(raw)):
            changed = bytearray(log.files[path])
            changed[at + 2 + offset] ^= 1
            findings = found(Copy({**log.files, path: bytes(changed)}))
            expected = (
                Check.ENTRIES,
                index,
                f"entry {index} is not the one that was recorded: its hash is not that in {tile}, which the site signed",
            )
            assert expected in findings
            assert {entry for _, entry, _ in findings} == {index}
        at += 2 + len(raw)


def test_a_changed_hash_names_its_tile_and_says_that_the_entries_are_right(many: Path) -> None:
    log = Copy.of(many)
    for path in ("tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"):
        changed = bytearray(log.files[path])
        changed[31] ^= 1
        check, _, message = only(found(Copy({**log.files, path: bytes(changed)})))
        assert check == Check.TREE
        assert message == f"the file {path} is not what the entries lead to: it was changed, and the entries were not"


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda entries: entries[:2] + entries[3:], 2),
        (lambda entries: [*entries[:2], entry(99).encode(BRU, 2), *entries[2:]], 3),
        (lambda entries: [entries[1], entries[0], *entries[2:]], 0),
        (lambda entries: entries[1:], 0),
        (lambda entries: [entries[0], *entries], 1),
    ],
    ids=["dropped", "inserted", "reordered", "first dropped", "doubled"],
)
def test_entries_that_are_dropped_inserted_or_moved_are_found_even_if_all_hashes_fit(
    few: Path, change: Callable[[list[bytes]], list[bytes]], first: int
) -> None:
    log = Copy.of(few)
    entries = change(entries_of(log, FEW))
    # With the site's key, the attacker can sign the new tree too: only the entries themselves and the witness know better.
    findings = found(rewritten(log, entries, signer(few)), Trust(witnesses=(WITNESS_KEY,)))
    said = f"entry {first} says that it is entry {entry_number(entries[first])}"
    message = f"{said}: entries were dropped, inserted or put in another order"
    assert (Check.ENTRIES, first, message) in findings
    assert Check.HISTORY in {check for check, _, _ in findings}
    # Without it, nothing fits any more.
    findings = found(rewritten(log, entries), Trust(witnesses=(WITNESS_KEY,)))
    assert {Check.ENTRIES, Check.TREE} & {check for check, _, _ in findings}


def entry_number(raw: bytes) -> object:
    document = canonical.decode(raw)
    assert isinstance(document, dict)
    return document["sequence"]


def test_entries_that_are_cut_off_are_found(few: Path, many: Path) -> None:
    log = Copy.of(few)
    path = f"tile/entries/000.p/{FEW}"
    short = Copy({**log.files, path: bundle(unbundle(log.files[path])[:3])})
    assert (
        Check.ENTRIES,
        3,
        f"the bundle {path} has 3 entries, and {FEW} were signed: some were dropped or added",
    ) in found(short)
    damaged = Copy({**log.files, path: log.files[path][:-1]})
    assert any("is damaged: it ends inside its entry 4" in message for _, _, message in found(damaged))
    gone = Copy.of(many)
    del gone.files["tile/entries/000"]
    check, index, message = only(found(gone))
    assert (check, index) == (Check.ENTRIES, 0)
    assert message == "entries from 0 to 255 are missing, and no entry says that they were pruned"
    del gone.files["tile/0/000"]
    assert only(found(gone))[2] == message
    del gone.files["tile/1/000.p/1"]
    assert {check for check, _, _ in found(gone)} == {Check.ENTRIES, Check.TREE}
    del log.files[f"tile/0/000.p/{FEW}"]
    assert only(found(log)) == (Check.TREE, None, f"the hashes tile/0/000.p/{FEW} are missing, or not whole")


def test_an_old_state_of_the_whole_log_is_found_by_who_knows_a_newer_one(tmp_path: Path) -> None:
    written(tmp_path, 3)
    old = Copy.of(tmp_path)
    newest = written(tmp_path, 2, first=3)
    assert found(old) == []
    check, entry, message = only(found(old, Trust(known=(newest,))))
    assert (check, entry) == (Check.HISTORY, 3)
    assert message == (
        "the log had 5 entries before, and its checkpoint speaks of 3: an old checkpoint is shown again, or entries were cut off"
    )


def test_an_old_checkpoint_in_the_new_ones_place_is_found_by_the_cosigned_one(tmp_path: Path) -> None:
    written(tmp_path, 3)
    old = (tmp_path / "checkpoint").read_bytes()
    written(tmp_path, 2, first=3)
    cosigned(tmp_path)
    log = Copy.of(tmp_path)
    log.files["checkpoint"] = old
    assert (Check.HISTORY, 3) in {(check, entry) for check, entry, _ in found(log)}


def test_a_fork_is_found_by_who_knows_the_other_branch(few: Path) -> None:
    log = Copy.of(few)
    by = signer(few)
    other = [*entries_of(log, FEW)[:3], *(entry(number).encode(BRU, number - 95) for number in (98, 99))]
    fork = rewritten(log, other, by)
    del fork.files["cosigned"]
    assert found(fork) == []
    known = Signed.decode(log.files["checkpoint"])
    expected = "the first 5 entries are not those of a checkpoint that the site has signed: it has two histories"
    assert only(found(fork, Trust(known=(known,)))) == (Check.HISTORY, None, expected)
    # The witness's copy says the same.
    fork.files["cosigned"] = log.files["cosigned"]
    assert only(found(fork, Trust(witnesses=(WITNESS_KEY,)))) == (Check.HISTORY, None, expected)


def test_a_fork_is_found_by_what_entries_say_of_those_before_them(tmp_path: Path) -> None:
    written(tmp_path, 4)
    storage = Storage.open(tmp_path, BRU)
    log = {"origin": BRU, "size": 4, "root": storage.signed.checkpoint.root.hex()}
    commit(storage, [entry(4, event="log.started", seen={"log": log}), entry(5)])
    storage.close()
    assert found(Copy.of(tmp_path)) == []
    entries = entries_of(Copy.of(tmp_path), 6)
    entries[1] = entry(77).encode(BRU, 1)
    assert only(found(rewritten(Copy.of(tmp_path), entries, signer(tmp_path)))) == (
        Check.HISTORY,
        4,
        "entry 4 speaks of another history before it: entries below were rewritten",
    )


def test_entries_of_another_site_are_found(tmp_path: Path) -> None:
    for origin, name in ((BRU, "bru"), (AMS, "ams")):
        written(tmp_path / name, 3, origin=origin)
    bru, ams = Copy.of(tmp_path / "bru"), Copy.of(tmp_path / "ams")
    # The whole log, under the other's name.
    check, _, message = only(found(ams, Trust(key=bru.key())))
    assert check == Check.KEY
    assert message == f"the log has the key {ams.key()}, and {bru.key()} was expected"
    # The other's checkpoint.
    check, _, message = only(found(Copy({**bru.files, "checkpoint": ams.files["checkpoint"]})))
    assert check == Check.CHECKPOINT
    assert f"the checkpoint is of the log {AMS!r}, not of {BRU}: it is another log's" in message
    # The other's entry, signed anew.
    entries = entries_of(bru, 3)
    entries[1] = entries_of(ams, 3)[1]
    assert only(found(rewritten(bru, entries, signer(tmp_path / "bru")))) == (
        Check.ENTRIES,
        1,
        f"entry 1 says that it is of the log {AMS!r}: it was taken from there",
    )


def test_a_forged_checkpoint_is_found(few: Path) -> None:
    log = Copy.of(few)
    mallory = Signer(BRU, Ed25519PrivateKey.generate())
    forged = Copy({**log.files, "checkpoint": resigned(Signed.decode(log.files["checkpoint"]).checkpoint, mallory)})
    check, _, message = only(found(forged))
    assert check == Check.CHECKPOINT
    assert f"the checkpoint is not signed by {BRU} with the key {log.key().id.hex()}" in message
    forged.files["log.vkey"] = f"{mallory.key()}\n".encode()
    assert Check.KEY in {check for check, _, _ in found(forged, Trust(key=log.key()))}


def test_a_forged_or_missing_cosignature_is_found(few: Path) -> None:
    log = Copy.of(few)
    signed = Signed.decode(log.files["cosigned"])
    trust = Trust(witnesses=(WITNESS_KEY,))
    mallory = Signer(AMS, Ed25519PrivateKey.generate())
    by_mallory = heads.cosign(signed.checkpoint, mallory, 1)
    under_the_witnesss_key = Signature(AMS, WITNESS_KEY.id, by_mallory.value)
    log.files["cosigned"] = signed.added([under_the_witnesss_key]).encode()
    assert (
        Check.WITNESSES,
        None,
        f"the cosignature of the witness {AMS} is wrong: it was changed, or forged",
    ) in found(log, trust)
    # Of another checkpoint, made by the witness itself.
    other = heads.cosign(Checkpoint(BRU, 4, bytes(32)), WITNESS, 1)
    log.files["cosigned"] = signed.added([other]).encode()
    assert f"the cosignature of the witness {AMS} is wrong: it was changed, or forged" in [
        each for _, _, each in found(log, trust)
    ]
    # A key that nobody asked for is no witness, whatever its name.
    log.files["cosigned"] = signed.added([by_mallory]).encode()
    assert found(log, trust) == []
    del log.files["cosigned"]
    assert only(found(log, trust)) == (
        Check.WITNESSES,
        None,
        f"the witness {AMS} has cosigned no checkpoint of this log",
    )


def test_files_that_are_no_part_of_a_log_are_found(few: Path) -> None:
    log = Copy.of(few)
    log.files["tile/0/7"] = b""
    assert only(found(log)) == (Check.TREE, None, "the file 'tile/0/7' is no part of a log")


def test_an_old_partial_tile_that_was_changed_is_found(tmp_path: Path) -> None:
    written(tmp_path, 3)
    written(tmp_path, 2, first=3)
    log = Copy.of(tmp_path)
    for path in ("tile/entries/000.p/3", "tile/0/000.p/3"):
        changed = Copy({**log.files, path: log.files[path][:-1] + b"\0"})
        assert only(found(changed))[2].startswith(f"the file {path} is not what the entries lead to")


def test_a_changed_entry_is_named_once_whatever_is_left_of_earlier_partial_tiles(tmp_path: Path) -> None:
    for number in range(6):
        written(tmp_path, 1, first=number)
    log = Copy.of(tmp_path)
    assert {"tile/entries/000.p/3", "tile/0/000.p/3"} <= set(log.files)
    bundle_ = log.files["tile/entries/000.p/6"]
    log.files["tile/entries/000.p/6"] = bundle_.replace(b"id-1", b"id-9")
    check, index, message = only(found(log))
    assert (check, index) == (Check.ENTRIES, 1)
    assert "its hash is not that in tile/0/000.p/6" in message
    log.files["tile/entries/000.p/6"] = log.files["tile/entries/000.p/6"].replace(b"id-3", b"id-8")
    assert [index for _, index, _ in found(log)] == [1, 3]
    log.files["tile/entries/000.p/4"] = bundle_[:-1]
    assert found(log)[-1] == (
        Check.TREE,
        None,
        "the file tile/entries/000.p/4 is not what the site signed: it was changed, too",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no key was given, and there is no log.vkey beside the log"),
        ({"log.vkey": b"no key\n"}, "the file log.vkey beside the log is no key"),
        ({"log.vkey": f"{WITNESS.key()}\n".encode()}, "the log has no checkpoint"),
    ],
)
def test_what_is_no_log_is_said_to_be_none(files: dict[str, bytes], message: str) -> None:
    assert only(found(Copy(files)))[2].startswith(message)


def test_a_hostile_size_costs_nothing(few: Path) -> None:
    by = signer(few)
    huge = Copy({**Copy.of(few).files, "checkpoint": resigned(Checkpoint(BRU, 10**18, bytes(32)), by)})
    assert {check for check, _, _ in found(huge)} == {Check.ENTRIES, Check.TREE}


def test_the_number_of_findings_is_bounded(many: Path) -> None:
    log = Copy.of(many)
    entries = entries_of(log, MANY)
    report = verify(rewritten(log, entries[1:], signer(many)))
    assert len(report.findings) == MOST_FINDINGS
    assert report.more == MANY - 1 - MOST_FINDINGS
    assert not report.is_good


def test_each_check_has_a_meaning() -> None:
    for check in Check:
        report = Report()
        report.add(check, "something")
        assert report.findings[0].meaning.endswith(".")


# Delivery and receipts.


def test_two_ends_of_a_channel_that_disagree_are_found(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, BRU)
    commit(storage, [entry(0, seen={"channels": [sent()]}), entry(1, claimed={"channels": [received()]})])
    commit(storage, [entry(2, migration="other", claimed={"channels": [received("b")]})])
    storage.close()
    assert found(Copy.of(tmp_path)) == []
    storage = Storage.open(tmp_path, BRU)
    commit(storage, [entry(3, claimed={"channels": [{**received("b"), "received_bytes": 1}]})])
    storage.close()
    assert found(Copy.of(tmp_path)) == [
        (Check.DELIVERY, 3, "entry 3: the two ends of the channel ram out do not name the same digest"),
        (Check.DELIVERY, 3, "entry 3: the two ends of the channel ram out do not name the same number of bytes"),
    ]


def test_a_receipt_is_checked_against_the_log(few: Path, many: Path) -> None:
    log = Copy.of(few)
    good = receipt(few, 1, 3).encode()
    report = verify(log, issued=[good])
    assert (report.findings, report.receipts) == ([], 1)
    # Another log's of the same name: its proof is right, and its key is not this log's.
    other = receipt(many, 299).encode()
    check, _, message = only(found(log, None, other))
    assert check == Check.RECEIPTS
    assert message.endswith("is none of those that are known here")


def test_a_receipt_whose_entry_is_another_one_in_the_log_is_found(tmp_path: Path) -> None:
    written(tmp_path, 3)
    issued = receipt(tmp_path, 1).encode()
    log = Copy.of(tmp_path)
    entries = entries_of(log, 3)
    entries[1] = entry(50).encode(BRU, 1)
    fork = rewritten(log, entries, signer(tmp_path))
    assert only(found(fork, None, issued)) == (Check.RECEIPTS, 1, "entry 1 is another one in the log than in a receipt")
    shorter = rewritten(log, entries_of(log, 3)[:1], signer(tmp_path))
    assert only(found(shorter, None, issued)) == (
        Check.RECEIPTS,
        1,
        "a receipt proves entry 1, and the log does not hold it",
    )
    assert re.match("the receipt 1 cannot be read: it is no JSON", only(found(log, None, b"no receipt\n"))[2])


def test_keys_of_other_logs_let_a_receipt_of_both_sites_pass(tmp_path: Path) -> None:
    for origin, name in ((BRU, "bru"), (AMS, "ams")):
        written(tmp_path / name, 3, origin=origin)
    both = Receipt(
        receipt(tmp_path / "bru", 0).migration,
        (part(tmp_path / "bru", 0), part(tmp_path / "ams", 1, origin=AMS)),
    ).encode()
    bru, ams = Copy.of(tmp_path / "bru"), Copy.of(tmp_path / "ams")
    assert found(bru, Trust(others=(ams.key(),)), both) == []
    check, _, message = only(found(bru, None, both))
    assert check == Check.RECEIPTS
    assert f"the log {ams.key()} is none of those that are known here" in message


def test_keys_are_told_apart_by_their_kind() -> None:
    key = WITNESS.key()
    assert str(key) != str(WITNESS_KEY)
    assert Key.parse(str(WITNESS_KEY)).type is KeyType.COSIGNATURE
