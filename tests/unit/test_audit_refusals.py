"""Refusals are on record, however many, and never wait for the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from certs.guard import Refused
from certs.identity import parse
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.reading import last
from gateway.audit.refusals import MOST_CALLERS, MOST_KINDS, MOST_OF_ONE, WINDOW, Refusals
from gateway.audit.storage import Storage
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU

ALICE = parse("spiffe://example.org/site/bru/operator/alice")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = await Journal.open(tmp_path, BRU)
    yield made
    await made.close()


def recorded(tmp_path: Path) -> list[Recorded]:
    return [entry for _, entry in last(Directory(tmp_path), 1000)]


def counts(tmp_path: Path) -> list[str]:
    return [each.text("seen", "refused", "count") for each in recorded(tmp_path)]


async def settle(refusals: Refusals) -> None:
    for task in list(refusals._writing):
        await task


async def test_the_first_of_a_kind_is_an_entry_at_once_and_the_others_are_counted(
    journal: Journal, tmp_path: Path
) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)
    for _ in range(500):
        refusals.refused(Refused(ALICE, "192.0.2.7", "/landbridge.v1.Gateway/Revoke", "it takes the role admin"))
    await settle(refusals)
    assert counts(tmp_path) == ["500"]
    await refusals.look()
    assert len(recorded(tmp_path)) == 1
    clock.now += WINDOW
    refusals.refused(Refused(ALICE, "192.0.2.7", "/landbridge.v1.Gateway/Revoke", "it takes the role admin"))
    await refusals.look()
    assert sum(map(int, counts(tmp_path))) == 501
    first = recorded(tmp_path)[0]
    assert (first.event.name, first.text("outcome")) == ("access.denied", "denied")
    assert first.facts("actor") == {
        "id": str(ALICE),
        "role": "operator",
        "method": "certificate",
        "address": "192.0.2.7",
    }
    # Two windows without any: what comes then is news again.
    clock.now += 2 * WINDOW
    await refusals.look()
    refusals.refused(Refused(ALICE, "192.0.2.7", "/landbridge.v1.Gateway/Revoke", "it takes the role admin"))
    await settle(refusals)
    assert sum(map(int, counts(tmp_path))) == 502


async def test_whoever_comes_from_many_addresses_does_not_fill_the_log(journal: Journal, tmp_path: Path) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)
    for number in range(10_000):
        refusals.refused(
            Refused(None, f"2001:db8:{number // 65536:x}:{number % 65536:x}::7", "a stream", "no TLS handshake")
        )
    # Somebody else's is told apart all the same.
    refusals.refused(Refused(ALICE, "192.0.2.7", "/landbridge.v1.Gateway/Revoke", "it takes the role admin"))
    await settle(refusals)
    clock.now += WINDOW
    await refusals.look()
    found = recorded(tmp_path)
    strangers = [each for each in found if each.event.name == "identity.refused"]
    assert len(strangers) <= 2 * (MOST_KINDS + 1)
    assert sum(int(each.text("seen", "refused", "count")) for each in strangers) == 10_000
    assert [each.event.name for each in found].count("access.denied") == 1


async def test_who_is_denied_many_things_hides_nobody_elses_and_stays_named(journal: Journal, tmp_path: Path) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)
    mallory = parse("spiffe://example.org/site/fra/gateway/gw-1")
    for number in range(1000):
        refusals.refused(Refused(mallory, f"192.0.2.{number % 250}", f"/made.up/Call{number}", "there is none"))
    refusals.refused(Refused(ALICE, "192.0.2.7", "/landbridge.v1.Gateway/Revoke", "it takes the role admin"))
    await settle(refusals)
    clock.now += WINDOW
    await refusals.look()
    found = recorded(tmp_path)
    (alices,) = [each for each in found if each.text("actor", "id") == str(ALICE)]
    assert alices.text("seen", "refused", "what") == "/landbridge.v1.Gateway/Revoke"
    mallorys = [each for each in found if each.text("actor", "id") == str(mallory)]
    assert len(mallorys) == len(found) - 1 <= 2 * (MOST_OF_ONE + 1)
    assert sum(int(each.text("seen", "refused", "count")) for each in mallorys) == 1000
    # A caller whose kinds are over, but for the rest, is told apart again.
    clock.now += WINDOW
    await refusals.look()
    refusals.refused(Refused(mallory, "192.0.2.1", "/made.up/Call", "there is none"))
    await settle(refusals)
    assert recorded(tmp_path)[-1].text("seen", "refused", "what") == "/made.up/Call"


async def test_many_callers_do_not_fill_the_log(journal: Journal, tmp_path: Path) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)
    for number in range(10_000):
        who = parse(f"spiffe://example.org/site/fra/gateway/gw-{number % 100}")
        refusals.refused(Refused(who, "192.0.2.7", f"/made.up/Call{number}", "there is none"))
    await settle(refusals)
    clock.now += WINDOW
    await refusals.look()
    assert len(recorded(tmp_path)) == MOST_CALLERS * (MOST_OF_ONE + 1) + 1
    assert sum(map(int, counts(tmp_path))) == 10_000


async def test_nobody_is_named_for_what_others_were_denied_as_well(journal: Journal, tmp_path: Path) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)
    for number in range(MOST_OF_ONE + 2):
        actor = {"id": f"person-{number}", "method": "as site fra says"}
        refusals.tell("migration.denied", "fra", f"migrate web-{number}", actor=actor)
    await settle(refusals)
    clock.now += WINDOW
    await refusals.look()
    assert recorded(tmp_path)[-1].facts("actor") == {"method": "as site fra says"}


async def test_what_is_refused_while_the_log_is_full_is_counted_and_told_later(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    refusals = Refusals(journal, clock)

    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        for _ in range(3):
            refusals.tell("migration.denied", str(ALICE), "migrate web-01", reason="forbidden")
        await settle(refusals)
        clock.now += WINDOW
        await refusals.look()
    assert recorded(tmp_path) == []
    clock.now += WINDOW
    await refusals.look()
    assert counts(tmp_path) == ["3"]
    assert recorded(tmp_path)[0].text("reason") == "forbidden"


async def test_what_was_counted_is_told_when_the_gateway_stops(journal: Journal, tmp_path: Path) -> None:
    refusals = Refusals(journal)
    refusals.start()
    refusals.tell("call.refused", "host-a", "a call")
    await settle(refusals)
    refusals.tell("call.refused", "host-a", "a call")
    await refusals.close()
    assert counts(tmp_path) == ["1", "1"]


async def test_what_is_no_entry_does_not_end_the_counting(journal: Journal, tmp_path: Path) -> None:
    refusals = Refusals(journal)
    refusals.tell("call.refused", "host-a", "a call", seen={"nonsense": 1})
    refusals.tell("call.refused", "host-b", "a call")
    await settle(refusals)
    assert counts(tmp_path) == ["1"]
