"""Entries: what they hold, and what is refused before it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.audit import canonical, fields
from gateway.audit.entry import MOST_BYTES, Entry, Recorded
from landbridge import events
from landbridge.errors import EvidenceFailed, InternalError
from tests.unit.audit_logs import BRU, MIGRATION, NOON, entry


def test_an_entry_says_which_log_it_is_of_and_where_it_stands() -> None:
    raw = entry(7).encode(BRU, 41)
    assert raw == (
        b'{"actor":{"id":"spiffe://example.org/site/bru/operator/alice","role":"operator"},"code":"M007I",'
        b'"event":"migration.stepped","id":"id-7","migration":"0190a1b2-0000-7000-8000-000000000001",'
        b'"origin":"example.org/site/bru","outcome":"success",'
        b'"seen":{"state":{"from":"preparing","to":"copying"}},"sequence":41,"time":"2026-01-31T12:00:07.000000Z","v":1}'
    )
    recorded = Recorded.decode(raw)
    assert (recorded.origin, recorded.sequence, recorded.event.code) == (BRU, 41, "M007I")
    assert (recorded.text("seen", "state", "to"), recorded.text("migration")) == ("copying", MIGRATION)
    assert recorded.time.isoformat() == "2026-01-31T12:00:07+00:00"
    assert recorded.text("seen", "no", "such") == ""


def test_what_an_agent_claims_stands_apart_from_what_was_seen() -> None:
    made = entry(seen={"bytes_wan": 1}, claimed={"bytes_ram": 2})
    recorded = Recorded.decode(made.encode(BRU, 0))
    assert recorded.facts("seen") == {"bytes_wan": 1}
    assert recorded.facts("claimed") == {"bytes_ram": 2}


@pytest.mark.parametrize(
    ("fields_", "wrong"),
    [
        ({"event": "migration.vanished"}, "no event has the name"),
        ({"outcome": "perhaps"}, "wrong at outcome: none of success, failure, denied, unknown"),
        ({"seen": {"colour": "red"}}, "wrong at seen: a record with the unknown field 'colour'"),
        ({"seen": {"bytes_ram": -1}}, "wrong at bytes_ram: no count"),
        ({"seen": {"bytes_ram": True}}, "wrong at bytes_ram: no count"),
        ({"seen": {"vm": {"xml_sha256": "ABC"}}}, "no digest of 64 hex digits"),
        ({"seen": {"legal_basis": ""}}, "no text of 1 to 512"),
        ({"seen": {"disks": []}}, "no list of 1 to 32"),
        ({"seen": {"disks": [{"target": "vda"}] * 33}}, "no list of 1 to 32"),
        ({"seen": {"tls": {"not_after": "2026-02-30T00:00:00.000000Z"}}}, "no time that exists"),
        ({"seen": {"tls": {"not_after": "tomorrow"}}}, "no time such as"),
        ({"seen": {"rollback": 1}}, "neither true nor false"),
        ({"seen": {"clock": {"offset_us": 0.5}}}, "no whole number"),
        ({"seen": {"vm": "web-01"}}, "no record with fields"),
        ({"id": ""}, "wrong at id"),
    ],
)
def test_a_field_that_is_not_known_or_not_right_is_refused_before_it_is_written(
    fields_: dict[str, object], wrong: str
) -> None:
    with pytest.raises(InternalError, match=re.escape(wrong)):
        entry(0, **fields_)


def test_an_entry_that_is_too_large_is_refused_before_it_is_written() -> None:
    disks = [{"target": "€" * fields.TEXT_CHARACTERS}] * fields.LIST_ITEMS
    with pytest.raises(InternalError, match=f"more than {MOST_BYTES} bytes"):
        entry(seen={"disks": disks}, claimed={"disks": disks})


def test_text_from_elsewhere_never_stops_an_entry() -> None:
    made = entry(reason="\ud800\x00" + "x" * 10_000, seen={"vm": {"name": "y" * 10_000}})
    recorded = Recorded.decode(made.encode(BRU, 0))
    assert recorded.text("reason").startswith("?\x00xxx")
    assert len(recorded.text("reason")) == len(recorded.text("seen", "vm", "name")) == fields.TEXT_CHARACTERS


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"v": 2}, "of version 2, and this program knows 1"),
        ({"event": "migration.vanished"}, "about the unknown event"),
        ({"event": []}, "about the unknown event"),
        ({"code": "M001I"}, "its code is not M007I"),
        ({"colour": "red"}, "with the unknown field 'colour'"),
        ({"sequence": -1}, "wrong at sequence"),
        ({"time": "2026-01-31T12:00:00Z"}, "wrong at time"),
        ({"origin": None}, "wrong at origin"),
    ],
)
def test_an_entry_that_was_not_written_by_us_is_refused(change: dict[str, object], wrong: str) -> None:
    document = {**Recorded.decode(entry().encode(BRU, 0)).document, **change}
    with pytest.raises(EvidenceFailed, match=re.escape(wrong)):
        Recorded.decode(canonical.encode(document))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["id", "time", "outcome", "origin", "sequence", "event", "code", "v"])
def test_an_entry_without_what_each_has_is_refused(name: str) -> None:
    document = dict(Recorded.decode(entry().encode(BRU, 0)).document)
    del document[name]
    with pytest.raises(EvidenceFailed, match=f"without {name}"):
        Recorded.decode(canonical.encode(document))


def test_codes_and_names_are_used_once_and_codes_say_how_it_went() -> None:
    assert len(events.BY_NAME) == len(events.BY_CODE) == len(events._EVENTS)
    for event in events.BY_CODE.values():
        assert re.fullmatch(r"[LMSN]\d{3}[IWE]", event.code)
        assert re.fullmatch(r"[a-z]+\.[a-z]+", event.name)
        assert event.meaning.endswith(".")
        assert event.severity
        Entry(event.name, "id", NOON)


def test_the_page_of_events_is_drawn_from_the_table() -> None:
    assert (Path(__file__).parents[2] / "docs/audit-events.md").read_text() == events.page()


def test_a_figure_from_elsewhere_never_stops_an_entry() -> None:
    made = entry(seen={"downtime_ms": 1 << 60})
    assert Recorded.decode(made.encode(BRU, 0)).facts("seen") == {"downtime_ms": canonical.MOST}
