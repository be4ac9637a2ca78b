"""Exports: what each form says of an entry, and that it is what its readers expect."""

from __future__ import annotations

import csv
import io
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.entry import Entry, Recorded
from gateway.audit.export import ocsf, plain, report
from gateway.audit.findings import Report
from landbridge import events
from tests.unit.audit_day import day, one_of_each
from tests.unit.audit_logs import BRU, entry

SCHEMA = json.loads((Path(__file__).parents[1] / "vectors/ocsf/schema-1.8.0.json").read_text())


def recorded(entries: list[Entry]) -> list[Recorded]:
    return [Recorded.decode(each.encode(BRU, number)) for number, each in enumerate(entries)]


DAY = recorded(day())
EACH = recorded(one_of_each())


def test_json_lines_are_the_entries_as_they_were_recorded() -> None:
    lines = list(plain.jsonl(DAY))
    assert [line.encode() for line in lines] == [each.raw + b"\n" for each in DAY]


def test_a_table_has_a_row_for_each_entry_and_says_what_was_only_claimed() -> None:
    rows = list(csv.DictReader(io.StringIO("".join(plain.table(DAY)))))
    assert len(rows) == len(DAY)
    completed = next(row for row in rows if row["event"] == "migration.completed")
    assert completed["vm.name"] == "web-01"
    assert (completed["source.country"], completed["destination.country"]) == ("BE", "NL")
    assert (completed["bytes_ram"], completed["downtime_ms"]) == ("4096", "87")
    assert completed["claimed"] == "bytes_disk bytes_ram bytes_wan downtime_ms duration_ms"
    approved = next(row for row in rows if row["event"] == "migration.approved")
    assert [who.rpartition("/")[2] for who in approved["approvers"].split()] == ["bob", "carol"]


def test_a_table_has_why_and_by_what_right_and_says_which_part_of_a_fact_is_a_claim() -> None:
    seen = {"request": {"sha256": "a" * 64}, "purpose": "p", "legal_basis": "contract", "transfer_mechanism": "scc-eu"}
    told = entry(event="migration.requested", seen=seen, claimed={"request": {"purpose": "the cooling has failed"}})
    (row,) = csv.DictReader(io.StringIO("".join(plain.table(recorded([told])))))
    assert (row["request.purpose"], row["purpose"]) == ("the cooling has failed", "p")
    assert (row["legal_basis"], row["transfer_mechanism"]) == ("contract", "scc-eu")
    assert row["claimed"] == "request.purpose"


def test_a_move_has_its_purpose_as_the_comment_of_the_event() -> None:
    seen, asked = {"purpose": "by policy"}, {"request": {"purpose": "as asked"}}
    for claimed, comment in ((asked, "as asked"), ({}, "by policy")):
        (one,) = recorded([entry(event="migration.completed", seen=seen, claimed=claimed)])
        assert ocsf.event(one)["comment"] == comment


def test_a_report_names_a_mechanism_where_two_countries_differ_and_misses_one_that_is_not_recorded() -> None:
    def page(**facts: object) -> str:
        way = {"source": {"country": "BE"}, "destination": {"country": facts.pop("to")}}
        made = recorded([entry(event="migration.completed", migration="m-1", seen={**way, **facts})])
        return report.page(made, Report(), "all", "now")

    assert "<tr><th>transfer mechanism</th><td>scc-eu</td></tr>" in page(to="BR", transfer_mechanism="scc-eu")
    assert "<tr><th>to another country by</th><td>scc-eu: 1</td></tr>" in page(to="BR", transfer_mechanism="scc-eu")
    assert '<tr><th>transfer mechanism</th><td><span class="warn">not recorded</span></td></tr>' in page(to="BR")
    assert "transfer mechanism" not in page(to="BE")


def test_the_report_of_a_destination_has_its_own_policys_grounds_and_not_what_the_source_claims() -> None:
    theirs = {"legal_basis": "contract", "purpose": "payroll"}
    steps = [
        entry(event="migration.admitted", migration="m-1", claimed=theirs),
        entry(event="migration.permitted", migration="m-1", claimed=theirs),
        entry(event="migration.permitted", migration="m-1", seen={"legal_basis": "controller-instructions"}),
        entry(event="migration.completed", migration="m-1", claimed=theirs),
    ]
    page = report.page(recorded(steps), Report(), "all", "now")
    assert "<tr><th>legal basis</th><td>controller-instructions</td></tr>" in page
    assert "<tr><th>legal basis</th><td>controller-instructions: 1</td></tr>" in page
    assert '<td>payroll <span class="note">(claimed)</span></td>' in page


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_vms_name_is_never_a_formula(name: str) -> None:
    [heading, row] = csv.reader(io.StringIO("".join(plain.table(recorded([entry(seen={"vm": {"name": name}})])))))
    assert row[heading.index("vm.name")] == f"'{name}"


def test_syslog_messages_keep_the_grammar_of_rfc_5424() -> None:
    grammar = re.compile(
        r"<(?P<pri>\d{1,3})>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (?P<host>[!-~]{1,255}) landbridge - (?P<id>[!-~]{1,32}) "
        r'\[landbridge@32473( [!-~]+="([^"\\\]]|\\["\\\]])*")+\] \ufeff(?P<message>.*)\n'
    )
    hostile = entry(seen={"vm": {"name": 'a"]\\ \n<13>1 forged'}})
    for each in recorded([hostile, *day()]) + EACH:
        [line] = plain.syslog([each])
        match = grammar.fullmatch(line)
        assert match, line
        assert match["message"].encode() == each.raw
        assert match["id"] == each.event.code
        assert int(match["pri"]) // 8 == 13
    [line] = plain.syslog(recorded([hostile]))
    assert line.count("\n") == 1
    assert r'vm="a\"\]\\  <13>1 forged"' in line


# OCSF


def wrong(value: Any, attribute: dict[str, Any], path: str) -> list[str]:
    """What the schema has against a value."""
    if attribute.get("is_array"):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        single = {name: each for name, each in attribute.items() if name != "is_array"}
        return [each for at, below in enumerate(value) for each in wrong(below, single, f"{path}[{at}]")]
    kind = attribute["type"]
    if kind in SCHEMA["objects"]:
        return wrong_object(value, SCHEMA["objects"][kind], path, ())
    scalar = {
        "integer_t": int,
        "long_t": int,
        "timestamp_t": int,
        "boolean_t": bool,
        "object": dict,
        "json_t": object,
    }.get(kind, str if kind.endswith("_t") else None)
    if scalar is None:
        return [f"{path} is a {kind}, which is not in the kept part of the schema"]
    if not isinstance(value, scalar) or (isinstance(value, bool) and scalar is int):
        return [f"{path} is no {kind}"]
    if "enum" in attribute and str(value) not in attribute["enum"]:
        return [f"{path} is {value}, none of {attribute['enum']}"]
    return []


def wrong_object(value: Any, schema: dict[str, Any], path: str, profiles: tuple[str, ...]) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path} is no object"]
    known = {
        name: each
        for name, each in schema["attributes"].items()
        if each.get("profile") is None or each["profile"] in profiles or name.endswith("_dt")
    }
    found = [f"{path}.{name} is not in the schema" for name in value if name not in known]
    found += [
        f"{path}.{name} is missing"
        for name, each in known.items()
        if each["requirement"] == "required" and name not in value and each.get("profile") in (None, *profiles)
    ]
    if (one := schema["constraints"].get("at_least_one")) and not set(one) & set(value):
        found.append(f"{path} has none of {one}")
    for name, each in value.items():
        if name in known:
            found += wrong(each, known[name], f"{path}.{name}")
    return found


def test_every_event_is_valid_in_the_schema() -> None:
    seen = set()
    for each in EACH + DAY:
        event: dict[str, Any] = json.loads(next(ocsf.lines([each])))
        schema = SCHEMA["classes"][str(event["class_uid"])]
        assert set(event["metadata"]["profiles"]) <= set(schema["profiles"])
        assert wrong_object(event, schema, each.event.name, tuple(event["metadata"]["profiles"])) == []
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        seen.add((event["class_uid"], event["activity_id"]))
    assert {
        (3004, 5),
        (3004, 6),
        (3004, 7),
        (3004, 12),
        (3004, 13),
        (6003, 1),
        (4014, 1),
        (4014, 2),
        (1008, 3),
        (1008, 6),
    } <= seen
    assert SCHEMA["version"] == ocsf.VERSION


def test_the_judge_of_events_is_no_yes_man() -> None:
    event: dict[str, Any] = dict(ocsf.event(DAY[-2]))
    schema = SCHEMA["classes"][str(event["class_uid"])]
    for change, expected in (
        ({"colour": "red"}, "colour is not in the schema"),
        ({"activity_id": 55}, "activity_id is 55"),
        ({"time": "now"}, "time is no timestamp_t"),
        ({"entity": {"type_id": 1}}, "entity has none of"),
        ({"metadata": {"version": "1"}}, "metadata.product is missing"),
    ):
        assert any(
            expected in each for each in wrong_object({**event, **change}, schema, "event", ("datetime", "host"))
        ), change
    del event["severity_id"]
    assert wrong_object(event, schema, "event", ("datetime", "host")) == ["event.severity_id is missing"]


def test_a_completed_migration_is_a_move_from_a_place_to_a_place() -> None:
    event: dict[str, Any] = dict(ocsf.event(next(each for each in DAY if each.event.name == "migration.completed")))
    assert (event["class_uid"], event["activity_id"], event["status_id"]) == (3004, 5, 1)
    assert event["entity"]["device"]["region"] == "bru"
    assert event["entity_result"]["device"]["location"] == {"country": "NL"}
    assert event["actor"]["user"]["name"] == "alice"
    assert event["raw_data_hash"]["value"] == sha256(event["raw_data"].encode()).hexdigest()
    assert event["metadata"]["correlation_uid"] == "m-1"
    assert event["duration"] == 61_000


def test_every_event_that_is_mapped_exists() -> None:
    assert set(ocsf._KINDS) <= set(events.BY_NAME)
