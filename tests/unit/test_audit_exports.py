"""That somebody exports is an entry, which says what they claim to export and who they are; what cannot be told of is refused."""

from __future__ import annotations

import fcntl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from certs.identity import Identity, Role
from gateway.audit.exports import ALLOWANCE, Exports
from gateway.audit.files import Directory, Still
from gateway.audit.journal import Journal
from gateway.audit.reading import last
from gateway.audit.storage import Storage, is_open
from gateway.audit.verify import verify
from landbridge.errors import Conflict, NotRecorded, UsageError
from landbridge.v1.audit_pb2 import RecordExportRequest

ADAM = Identity("example.org", "bru", Role.OPERATOR, "adam")
BRU, AMS = (f"example.org/site/{site}/gateway/gw-1" for site in ("bru", "ams"))
SHA256 = "ab" * 32


def export(**changes: object) -> RecordExportRequest:
    facts = {"log": BRU, "size": 9, "filter": "event=log", "format": "csv", "entries": 3, "first": 1, "last": 7}
    return RecordExportRequest(**{**facts, "sha256": SHA256, **changes})  # type: ignore[arg-type]  # the caller's keywords


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = await Journal.open(tmp_path, BRU)
    yield made
    await made.close()


async def test_who_exports_is_seen_and_what_is_claimed(journal: Journal, tmp_path: Path) -> None:
    answer = await Exports(journal, ADAM.home).record(export(), ADAM)
    log = Still(Directory(tmp_path))
    assert verify(log).findings == []
    ((index, told),) = last(log, 1)
    assert (answer.log, answer.index, told.event.name) == (BRU, index, "log.exported")
    assert told.text("actor", "id") == str(ADAM)
    query = {"filter": "event=log", "format": "csv", "entries": 3, "first": 1, "last": 7, "sha256": SHA256}
    assert told.facts("claimed") == {"log": {"origin": BRU, "size": 9}, "query": query}
    assert not told.facts("seen")


async def test_a_log_of_another_gateway_of_the_site_is_named_and_of_nothing_no_first_entry(
    journal: Journal, tmp_path: Path
) -> None:
    other = BRU.replace("gw-1", "gw-2")
    await Exports(journal, ADAM.home).record(export(log=other, entries=0), ADAM)
    ((_, told),) = last(Still(Directory(tmp_path)), 1)
    assert told.text("claimed", "log", "origin") == other
    assert told.facts("claimed")["query"] == {"filter": "event=log", "format": "csv", "entries": 0, "sha256": SHA256}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"log": AMS}, "is no log of site bru: ask a gateway of the site whose log it is"),
        ({"log": ""}, "is no log of site bru"),
        ({"log": BRU.replace("/site/bru", "/site/brussels")}, "is no log of site bru"),
        ({"log": BRU + "x" * 512}, "one of them is none"),
        ({"filter": ""}, "one of them is none"),
        ({"filter": "x" * 513}, "one of them is none"),
        ({"format": "x" * 513}, "one of them is none"),
        ({"size": 2**63}, "one of them is none"),
        ({"last": 2**63}, "one of them is none"),
        ({"sha256": "AB" * 32}, "one of them is none"),
    ],
)
async def test_what_cannot_be_told_of_is_refused(journal: Journal, change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await Exports(journal, ADAM.home).record(export(**change), ADAM)
    assert journal.signed.checkpoint.size == 0


async def test_an_auditor_who_exports_without_end_fills_no_log(journal: Journal) -> None:
    now = 0.0
    exports = Exports(journal, ADAM.home, lambda: now)
    for _ in range(ALLOWANCE):
        await exports.record(export(), ADAM)
    with pytest.raises(Conflict, match=f"has exported {ALLOWANCE} times: again in a minute"):
        await exports.record(export(), ADAM)
    # Which keeps nobody else from it, and them not for ever.
    await exports.record(export(), Identity("example.org", "bru", Role.OPERATOR, "eve"))
    now = 60.0
    await exports.record(export(), ADAM)
    assert journal.signed.checkpoint.size == ALLOWANCE + 2


async def test_while_the_log_cannot_be_written_nothing_is_exported(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise NotRecorded("no space")

    monkeypatch.setattr(Storage, "commit", refuse)
    with pytest.raises(NotRecorded):
        await Exports(journal, ADAM.home).record(export(), ADAM)


def test_it_can_be_told_whether_a_log_is_open_and_looking_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_open(tmp_path)
    storage = Storage.open(tmp_path, BRU)
    assert is_open(tmp_path)
    with pytest.raises(Conflict):
        Storage.open(tmp_path, BRU)
    storage.close()
    assert not is_open(tmp_path)
    # Somebody looks just as it is opened.
    with (tmp_path / ".state/lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        Storage.open(tmp_path, BRU).close()
    assert not is_open(tmp_path / ".state/lock")
