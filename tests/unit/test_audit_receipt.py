"""Receipts: one file that proves a migration, and every part of it that does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gateway.audit import canonical
from gateway.audit import checkpoint as heads
from gateway.audit.findings import Check
from gateway.audit.journal import commit
from gateway.audit.proof import Proof
from gateway.audit.receipt import Missing, Part, Proved, Receipt, check
from gateway.audit.storage import Storage
from landbridge.errors import EvidenceFailed
from tests.unit.audit_logs import (
    AMS,
    BRU,
    MIGRATION,
    WITNESS,
    WITNESS_KEY,
    entry,
    part,
    received,
    sent,
    signer,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of two sites, with what each says of one migration."""
    directory = tmp_path_factory.mktemp("both")
    for name, origin, channel in (("bru", BRU, sent()), ("ams", AMS, received())):
        storage = Storage.open(directory / name, origin)
        commit(storage, [entry(0, migration="another"), entry(1), entry(2, seen={"channels": [channel]})])
        storage.close()
    return directory


@pytest.fixture
def receipt(both: Path) -> Receipt:
    """What both say."""
    return Receipt(MIGRATION, (part(both / "bru", 1, 2), part(both / "ams", 1, 2, origin=AMS)))


def wrong(receipt: Receipt, *keys: object) -> list[tuple[int, str]]:
    return [(each.check, each.message) for each in check(receipt, keys)]  # type: ignore[arg-type]


def test_a_receipt_is_a_file_that_proves_itself(both: Path, receipt: Receipt) -> None:
    read = Receipt.decode(receipt.encode())
    assert read == receipt
    assert check(read) == []
    assert check(read, [each.key for each in receipt.parts]) == []
    assert [each.origin for each in read.entries()] == [BRU, AMS, BRU, AMS]


def test_what_a_receipt_lacks_it_says_and_what_it_has_is_proved_all_the_same(receipt: Receipt) -> None:
    lacking = dataclasses.replace(receipt, missing=(Missing(f"{BRU}/gateway/gw-2", (3, 9)), Missing(AMS, (1,))))
    read = Receipt.decode(lacking.encode())
    assert read == lacking
    assert check(read) == []
    assert [str(each) for each in read.missing] == [
        f"entries 3, 9 of the log {BRU}/gateway/gw-2",
        f"entry 1 of the log {AMS}",
    ]
    assert b"missing" not in receipt.encode()


@pytest.mark.parametrize(
    "missing",
    [{}, "all", [1], [{}], [{"log": BRU}], [{"log": BRU, "entries": []}], [{"log": 1, "entries": [1]}]]
    + [[{"log": BRU, "entries": [index]}] for index in (-1, "1", True, None)]
    + [[{"log": BRU, "entries": [1, "2"]}]],
    ids=str,
)
def test_what_is_said_to_be_missing_names_logs_and_entries(receipt: Receipt, missing: object) -> None:
    document = canonical.decode(receipt.encode()[:-1])
    assert isinstance(document, dict)
    with pytest.raises(EvidenceFailed, match="what is missing in it is"):
        Receipt.decode(canonical.encode({**document, "missing": missing}) + b"\n")  # type: ignore[dict-item]


def test_each_byte_that_is_changed_is_found(receipt: Receipt) -> None:
    keys = [each.key for each in receipt.parts]
    raw = receipt.encode()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        try:
            assert check(Receipt.decode(bytes(changed)), keys), at
        except EvidenceFailed:
            continue


def test_a_receipt_of_a_log_that_is_not_known_is_refused(both: Path, receipt: Receipt) -> None:
    bru = receipt.parts[0].key
    [(number, message)] = wrong(receipt, bru)
    assert number == Check.RECEIPTS
    assert message == f"the log {receipt.parts[1].key} is none of those that are known here"


def test_an_entry_of_another_migration_is_refused(both: Path) -> None:
    other = Receipt(MIGRATION, (part(both / "bru", 0),))
    assert wrong(other) == [(Check.RECEIPTS, f"{BRU}: the entry is about another migration, 'another'")]


def test_an_entry_under_another_proof_is_refused(receipt: Receipt) -> None:
    first, second = receipt.parts[0].entries
    swapped = Part(receipt.parts[0].key, (Proved(first.raw, second.proof),))
    [(number, message)] = wrong(Receipt(MIGRATION, (swapped,)))
    assert number == Check.RECEIPTS
    assert "entry 2 is not in the tree" in message


def test_ends_that_do_not_agree_are_found(tmp_path: Path, both: Path) -> None:
    storage = Storage.open(tmp_path, AMS)
    commit(storage, [entry(0, seen={"channels": [received("b")]})])
    storage.close()
    differing = Receipt(MIGRATION, (part(both / "bru", 2), part(tmp_path, 0, origin=AMS)))
    assert wrong(differing) == [(Check.DELIVERY, "the two ends of the channel ram out do not name the same digest")]


def test_witnesses_that_are_asked_for_must_have_cosigned(both: Path, receipt: Receipt) -> None:
    bru = dataclasses.replace(receipt, parts=receipt.parts[:1])
    assert [each.message for each in check(bru, witnesses=[WITNESS_KEY])] == [
        f"{BRU}: {AMS} has not cosigned its checkpoint"
    ]

    def with_cosignature(each: Proved, time: int) -> Proved:
        signed = each.proof.signed
        cosigned = signed.added([heads.cosign(signed.checkpoint, WITNESS, time)])
        return Proved(each.raw, Proof(each.proof.index, each.proof.hashes, cosigned))

    good = Receipt(
        MIGRATION, (Part(bru.parts[0].key, tuple(with_cosignature(each, 1) for each in bru.parts[0].entries)),)
    )
    assert check(Receipt.decode(good.encode()), witnesses=[WITNESS_KEY]) == []
    assert signer(both / "bru").key() == bru.parts[0].key


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b'{"landbridge-receipt":1}\n',
        b'{"landbridge-receipt":2,"logs":[],"migration":"m"}\n',
        b'{"landbridge-receipt":1,"logs":[1],"migration":"m"}\n',
        b'{"landbridge-receipt":1,"logs":[{"entries":[],"key":"k"}],"migration":"m"}\n',
        canonical.encode(
            {"landbridge-receipt": 1, "migration": "m", "logs": [{"key": str(WITNESS_KEY), "entries": [{}]}]}
        )
        + b"\n",
        b'{"landbridge-receipt":1,"logs":[],"migration":"m"}',
        b" " * (64 * 1024 * 1024 + 1),
    ],
)
def test_what_is_no_receipt_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceFailed):
        Receipt.decode(raw)


def test_a_receipt_without_logs_proves_nothing() -> None:
    assert wrong(Receipt("m", ())) == [(Check.RECEIPTS, "it holds no log")]
