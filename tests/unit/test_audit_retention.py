"""Old entries go by whole bundles, on record first, and what is left verifies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from gateway.audit import retention as retention_module
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
    await add(journal, range(count))
    return journal


async def add(journal: Journal, numbers: Iterable[int]) -> None:
    """In this order, and in few groups: each entry alone would take six syncs."""
    made = [entry(number, time=NOON + timedelta(days=number)) for number in numbers]
    await asyncio.gather(*map(journal.append, made))


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
    made = [entry(number, time=NOON + timedelta(days=500 if number == 100 else 0)) for number in range(256)]
    await asyncio.gather(*map(journal.append, made))
    retention = Retention(journal, 100)
    assert await retention.look(NOON + timedelta(days=600)) == 0
    assert await retention.look(NOON + timedelta(days=600, seconds=1)) == 256
    await journal.close()


async def test_who_records_an_entry_waits_for_one_piece_of_the_work_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "REMOVED", 1)
    journal = await old_log(tmp_path, 256 * 4)
    pieces: list[str] = []
    look, prune = retention_module.next_bundle, Storage.prune

    def looks(storage: Storage, number: int, before: datetime) -> tuple[int, bool | None]:
        pieces.append("look")
        return look(storage, number, before)

    def prunes(storage: Storage, minimum: int, start: int = 0) -> int:
        pieces.append("prune")
        assert minimum - start <= 256
        return prune(storage, minimum, start)

    monkeypatch.setattr(retention_module, "next_bundle", looks)
    monkeypatch.setattr(Storage, "prune", prunes)
    looking = asyncio.create_task(Retention(journal, 1).look(NOON + timedelta(days=10_000)))
    between = []
    while not looking.done():
        await journal.record("access.denied")
        between.append(len(pieces))
    assert await looking == 256 * 4
    assert (pieces.count("look"), pieces.count("prune")) == (4, 4)
    # Entries came between them, and not only behind the last.
    assert len({count for count in between if 0 < count < 8}) >= 3
    await journal.close()
    assert verify(Directory(tmp_path)).findings == []


async def test_what_a_crash_left_of_a_pruned_log_goes_with_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "SKIPPED", 2)
    journal = await old_log(tmp_path, 256 * 6)
    kept = {number: tmp_path / TileName(None, number, 256).path for number in (3, 4)}
    raw = {number: path.read_bytes() for number, path in kept.items()}
    assert await Retention(journal, 1).look(NOON + timedelta(days=256 * 5 + 1)) == 256 * 5
    for number, path in kept.items():
        path.write_bytes(raw[number])
    assert await Retention(journal, 1).look(NOON + timedelta(days=256 * 5 + 1)) == 256 * 5
    assert not any(path.exists() for path in kept.values())
    assert await Retention(journal, 1).look(NOON + timedelta(days=256 * 5 + 1)) == 0
    await journal.close()
    assert verify(Directory(tmp_path)).findings == []


async def test_a_witness_that_knows_a_head_from_before_can_follow_the_log_still(tmp_path: Path) -> None:
    journal = await old_log(tmp_path, 100)
    known = journal.signed.checkpoint
    await add(journal, range(100, 300))
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
