"""Agents that come and go, and a clock that jumps, are on record."""

from __future__ import annotations

from pathlib import Path

from certs.identity import parse
from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.presence import GRACE, Presence
from gateway.audit.reading import last
from tests.unit.audit_logs import BRU

HOST = parse("spiffe://example.org/site/bru/host/host-a")


def names(directory: Path) -> list[str]:
    return [entry.event.name for _, entry in last(Directory(directory), 100)]


async def test_an_agent_that_comes_back_soon_was_here_all_the_time(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    now = 1000.0
    presence = Presence(journal, lambda: now, lambda: now)
    with presence.of(HOST):
        await presence.look()
        with presence.of(HOST):
            await presence.look()
    now += GRACE / 2
    await presence.look()
    with presence.of(HOST):
        now += GRACE
        await presence.look()
    assert names(tmp_path) == ["agent.joined"]
    now += GRACE
    await presence.look()
    await presence.look()
    assert names(tmp_path) == ["agent.joined", "agent.left"]
    # One that was hardly here is told of, too, and only once it is seen.
    with presence.of(HOST):
        pass
    now += GRACE
    await presence.look()
    assert names(tmp_path) == ["agent.joined", "agent.left"]
    await journal.close()


async def test_a_clock_that_jumps_is_on_record_and_one_that_is_slewed_is_not(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    steady, ahead = 0.0, 0.0
    presence = Presence(journal, lambda: steady + ahead, lambda: steady)
    for _ in range(100):
        steady, ahead = steady + 1, ahead + 0.01
        await presence.look()
    assert names(tmp_path) == []
    ahead -= 3600
    await presence.look()
    await presence.look()
    await journal.close()
    ((_, entry),) = last(Directory(tmp_path), 10)
    assert entry.event.name == "clock.stepped"
    assert entry.facts("seen")["clock"] == {"source": "this machine", "offset_us": -3_600_000_000}
