"""Old entries go by whole bundles, on record first, and what is left verifies."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.proving import prove
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.retention import Retention
from gateway.audit.storage import Storage
from gateway.audit.tree import TileName, check_consistency
from gateway.audit.verify import verify
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU, NOON, entry


async def old_log(directory: Path, count: int) -> Journal:
    """Entries of one a day, the first at noon."""
    journal = await Journal.open(directory, BRU)
    for number in range(count):
        await journal.append(entry(number, time=NOON + timedelta(days=number)))
    return journal


async def test_bundles_that_are_old_as_a_whole_are_removed(tmp_path: Path) -> None:
    journal = await old_log(tmp_path, 600)
    retention = Retention(journal, 100)
    # The newest of the second bundle is of day 511.
    assert await retention.look(NOON + timedelta(days=611)) == 256
    assert await retention.look(NOON + timedelta(days=611, seconds=1)) == 512
    assert await retention.look(NOON + timedelta(days=611, seconds=1)) == 0
    await journal.close()
    report = verify(Directory(tmp_path))
    assert (report.findings, report.minimum) == ([], 512)
    pruned = [each for _, each in last(Directory(tmp_path), 2)]
    assert [each.facts("seen")["pruned"] for each in pruned] == [
        {"minimum": 256, "retention_days": 100},
        {"minimum": 512, "retention_days": 100},
    ]


async def test_a_clock_that_was_set_back_removes_nothing_that_is_wanted(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    for number in range(256):
        await journal.append(entry(number, time=NOON + timedelta(days=500 if number == 100 else 0)))
    retention = Retention(journal, 100)
    assert await retention.look(NOON + timedelta(days=600)) == 0
    assert await retention.look(NOON + timedelta(days=600, seconds=1)) == 256
    await journal.close()


async def test_a_witness_that_knows_a_head_from_before_can_follow_the_log_still(tmp_path: Path) -> None:
    journal = await old_log(tmp_path, 100)
    known = journal.signed.checkpoint
    for number in range(100, 300):
        await journal.append(entry(number, time=NOON + timedelta(days=number)))
    assert await Retention(journal, 1).look(NOON + timedelta(days=300)) == 256
    head, proof = journal.signed.checkpoint, journal.storage.tiles().consistency(known.size)
    check_consistency(known.size, known.root, head.size, head.root, proof)
    await journal.close()


async def test_a_receipt_from_before_verifies_still(tmp_path: Path) -> None:
    journal = await old_log(tmp_path, 300)
    migration = "aaaa1111"
    await journal.record("migration.requested", migration=migration)
    part = prove(journal.storage, journal.signed, migration)
    await Retention(journal, 1).look(NOON + timedelta(days=300))
    assert check(Receipt(migration, (part,)), [journal.key]) == []
    await journal.close()


async def test_what_cannot_be_recorded_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await old_log(tmp_path, 300)

    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    monkeypatch.setattr(Storage, "commit", full)
    with pytest.raises(NotRecorded):
        await Retention(journal, 1).look(NOON + timedelta(days=1000))
    assert journal.storage.has(TileName(None, 0, 256))
    await journal.close()


async def test_nothing_is_ever_removed_unless_the_configuration_says_so(tmp_path: Path) -> None:
    journal = await old_log(tmp_path, 1)
    retention = Retention(journal, 0)
    retention.start()
    assert retention._task is None
    await retention.close()
    await journal.close()
