"""One writer for many callers: what is told to each of them, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit.fields import TEXT_CHARACTERS
from gateway.audit.journal import MOST_GROUP, Journal
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU, Copy, entry


async def test_an_entry_is_on_the_disk_before_its_index_is_told(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    for number in range(3):
        assert await journal.append(entry(number)) == number
        report = verify(Copy.of(tmp_path))
        assert (report.findings, report.entries) == ([], number + 1)
    await journal.close()


async def test_what_comes_while_a_group_is_written_is_the_next_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    real = Storage.commit

    def noted(self: Storage, entries: Sequence[bytes]) -> int:
        groups.append(len(entries))
        if len(groups) == 1:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(30)
        return real(self, entries)

    monkeypatch.setattr(Storage, "commit", noted)
    journal = await Journal.open(tmp_path, BRU)
    first = asyncio.create_task(journal.append(entry(0)))
    await begun.wait()
    others = [asyncio.create_task(journal.append(entry(number))) for number in range(1, MOST_GROUP + 11)]
    await asyncio.sleep(0)
    go_on.set()
    assert [await first, *(await asyncio.gather(*others))] == list(range(MOST_GROUP + 11))
    assert groups == [1, MOST_GROUP, 10]
    await journal.close()
    assert verify(Copy.of(tmp_path)).findings == []


async def test_who_cannot_be_recorded_hears_it_and_later_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Journal.open(tmp_path, BRU)

    def full(self: Storage, entries: Sequence[bytes]) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        failed = await asyncio.gather(*(journal.append(entry(number)) for number in range(3)), return_exceptions=True)
    assert [str(each) for each in failed] == ["the disk is full"] * 3
    assert await journal.append(entry(3)) == 0
    await journal.close()


async def test_a_defect_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await Journal.open(tmp_path, BRU)
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context["exception"]))

    def defect(self: Storage, entries: Sequence[bytes]) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", defect)
        with pytest.raises(NotRecorded):
            await journal.append(entry(0))
    assert await journal.append(entry(0)) == 0
    await journal.close()


async def test_a_caller_that_gives_up_takes_nothing_back(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    given_up = asyncio.create_task(journal.append(entry(0)))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await journal.append(entry(1)) == 1
    await journal.close()
    assert given_up.cancelled()


async def test_a_closed_log_records_nothing_and_can_be_opened_again(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    waiting = [asyncio.create_task(journal.append(entry(number))) for number in range(5)]
    await asyncio.sleep(0)
    await journal.close()
    assert await asyncio.gather(*waiting) == [0, 1, 2, 3, 4]
    with pytest.raises(NotRecorded, match="the audit log is closed"):
        await journal.append(entry(5))
    again = await Journal.open(tmp_path, BRU)
    assert again.signed.checkpoint.size == 5
    assert await again.read(lambda storage: list(storage.entries(4, 5))) == [entry(4).encode(BRU, 4)]
    await again.close()


async def test_of_many_migrations_the_newest_are_remembered_and_of_no_long_id_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.audit.journal.MOST_TOLD", 3)
    journal = await Journal.open(tmp_path, BRU)
    for number in (0, 1, 0, 2, 3):
        await journal.record("migration.stepped", migration=f"m{number}")
    # The one of which nothing was recorded for longest is forgotten.
    assert [journal.told(f"m{number}") for number in range(4)] == [[0, 2], [], [3], [4]]
    # Another site gives ids, too.
    await journal.record("migration.denied", migration="x" * 1_000_000)
    assert max(map(len, journal._told)) <= TEXT_CHARACTERS
    assert journal.told("x" * 1_000_000) == [5]
    await journal.close()
