"""Tunnels that come, go and come back are on record, each change once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.reading import last
from gateway.audit.storage import Storage
from gateway.migration.outages import Outages
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU, NOON


async def test_each_change_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await Journal.open(tmp_path, BRU)
    up: set[str] = set()
    outages = Outages(journal, "bru", lambda: ("ams", "par"), up.__contains__)
    second = 0

    async def look() -> None:
        nonlocal second
        second += 1
        await outages.look(NOON + timedelta(seconds=second))

    await look()
    up.add("ams")
    await look()
    await look()
    up.clear()

    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded):
            await look()
    await look()
    await look()
    up.add("ams")
    await look()
    await look()
    await journal.close()
    entries = [entry for _, entry in last(Directory(tmp_path), 10)]
    assert [(each.event.name, each.text("seen", "destination", "site")) for each in entries] == [
        ("tunnel.opened", "ams"),
        ("outage.began", "ams"),
        ("outage.ended", "ams"),
    ]
    assert entries[1].text("seen", "outage", "since") == "2026-01-31T12:00:05.000000Z"
    assert entries[2].facts("seen")["outage"] == {
        "what": "the tunnel to site ams",
        "since": "2026-01-31T12:00:05.000000Z",
        "duration_ms": 2000,
    }


async def test_the_tunnel_to_a_site_that_was_left_is_closed_and_no_outage_also_when_it_is_joined_again(
    tmp_path: Path,
) -> None:
    journal = await Journal.open(tmp_path, BRU)
    sites, up = ["ams", "par"], {"ams", "par"}
    outages = Outages(journal, "bru", lambda: sites, up.__contains__)
    await outages.look(NOON)
    sites.remove("ams")
    up.remove("ams")
    for _ in range(2):
        await outages.look(NOON)
    sites.append("ams")  # its tunnel is not up at once
    await outages.look(NOON)
    up.add("ams")
    await outages.look(NOON)
    await journal.close()
    found = [(entry.event.name, entry.text("seen", "destination", "site")) for _, entry in last(Directory(tmp_path), 9)]
    assert found == [
        ("tunnel.opened", "ams"),
        ("tunnel.opened", "par"),
        ("tunnel.closed", "ams"),
        ("tunnel.opened", "ams"),
    ]
