"""A log says when it is opened and closed, and that it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit.entry import Recorded
from gateway.audit.files import Directory
from gateway.audit.keeper import keeping
from gateway.audit.reading import last
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from landbridge.errors import Conflict, NotRecorded
from tests.unit.audit_logs import BRU


def recorded(directory: Path) -> list[Recorded]:
    assert verify(Directory(directory)).findings == []
    return [entry for _, entry in last(Directory(directory), 100)]


async def test_start_and_stop_are_entries_and_name_the_tree_before_them(tmp_path: Path) -> None:
    for _ in range(2):
        async with keeping(tmp_path, BRU) as journal:
            await journal.record("access.denied", outcome="denied", reason="no role")
            with pytest.raises(Conflict):
                Storage.open(tmp_path, BRU)
    entries = recorded(tmp_path)
    assert [each.event.name for each in entries] == ["log.started", "access.denied", "log.stopped"] * 2
    assert [each.text("seen", "log", "size") for each in entries if each.event.name != "access.denied"] == [
        "0",
        "2",
        "3",
        "5",
    ]
    assert entries[0].text("seen", "program", "name") == "landbridge-gateway"


async def test_a_log_in_which_nothing_happens_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beaten = asyncio.Semaphore(0)
    loop, real = asyncio.get_running_loop(), Storage.commit

    def noted(self: Storage, entries: Sequence[bytes]) -> int:
        first = real(self, entries)
        loop.call_soon_threadsafe(beaten.release)
        return first

    monkeypatch.setattr(Storage, "commit", noted)
    async with keeping(tmp_path, BRU, idle=0.02), asyncio.timeout(10):
        for _ in range(3):
            await beaten.acquire()
    assert [each.event.name for each in recorded(tmp_path)][:3] == ["log.started", "log.idle", "log.idle"]


async def test_a_log_that_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded):
            async with keeping(tmp_path, BRU):
                pytest.fail("nothing may be done without a log")
    async with keeping(tmp_path, BRU) as journal:
        monkeypatch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded):
            await journal.record("access.denied")
    monkeypatch.undo()
    Storage.open(tmp_path, BRU).close()
