"""The table of requirements: what it names exists, the page is drawn from it, and reports go by it."""

from __future__ import annotations

import re
import sys
import urllib.request
from pathlib import Path

import pytest

from gateway.audit import fields
from gateway.audit.export import controls, pdf, requirements
from gateway.audit.export.controls import NAMES, TABLE, TITLES, Framework, answers, of
from landbridge import events
from landbridge.errors import ConfigError
from tests.unit.audit_day import day
from tests.unit.audit_logs import entry
from tests.unit.test_audit_export import recorded

DAY = recorded(day())
# Of every entry, beside the facts.
TOP = {"event", "code", "time", "outcome", "reason", "actor", "migration"}


def test_the_page_of_the_documentation_is_drawn_from_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/audit-controls.md").read_text()
    assert page == controls.page(), "python -m gateway.audit.export.controls > docs/audit-controls.md"
    for name in NAMES.values():
        assert f"## {name}\n" in page


def test_what_the_table_names_exists() -> None:
    for row in TABLE:
        assert {name.partition(".")[0] for name in row.facts} <= TOP | set(fields.FACTS), row.asked
        for pattern in row.events:
            assert any(re.fullmatch(pattern.replace(".*", r"\..*"), name) for name in events.BY_NAME), pattern
        for word in re.findall(r"`([^`]+)`", row.answered + row.left):
            known = word in TOP or word in fields.FACTS or word in events.BY_NAME
            assert known or word.startswith(("audit ", "landbridge ")), word
        for framework, asked in row.by.items():
            assert set(asked) <= set(TITLES[framework]), row.asked


def test_every_requirement_is_answered_or_said_to_be_not() -> None:
    for framework in Framework:
        for requirement, _, rows in of(framework):
            assert rows, (framework, requirement)
    for row in TABLE:
        assert bool(row.answered) == bool(row.facts or row.events) != bool(row.left), row.asked
    assert {framework for row in TABLE if row.left for framework in row.by} == set(Framework)


def test_an_entry_answers_what_it_holds() -> None:
    rows = {row.asked: row for row in TABLE}
    [bare] = recorded([entry(event="log.started", actor={}, migration="", seen={})])
    answered = {asked for asked, row in rows.items() if answers(row, bare)}
    assert {"when, in UTC", "how it ended", "start and stop of the log"} <= answered
    assert (
        not {"who, and on whose behalf", "from where, to where", "which rule decided", "synchronised clocks"} & answered
    )
    [claimed] = recorded([entry(claimed={"source": {"country": "BE"}})])
    assert answers(rows["from where, to where"], claimed)


@pytest.mark.parametrize("framework", Framework)
def test_a_section_has_each_requirement_once_and_names_its_entries(framework: Framework) -> None:
    section = "".join(requirements.section(framework, DAY))
    assert re.findall(r"<b>([^<]+)</b>", section) == list(TITLES[framework])
    assert section.count("<tr>") - 1 == sum(len(rows) for _, _, rows in of(framework))
    if framework is Framework.NIST:
        assert f"{len(DAY)} <span" in section
        assert "(0 to 19)" in section
        assert '<span class="warn">none</span>' in section
    # Nothing was recorded: all is asked for still.
    empty = "".join(requirements.section(framework, []))
    assert re.findall(r"<b>([^<]+)</b>", empty) == list(TITLES[framework])


def test_a_pdf_loads_nothing_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    opened: list[object] = []

    def note(_: object, url: object, data: object = None, timeout: object = None) -> None:
        opened.append(url)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", note)
    page = f'<img src="file://{tmp_path}/secret.png"><img src="http://127.0.0.1:9/x.png"><p>text</p>'
    assert pdf.made(page).startswith(b"%PDF-")
    assert opened == []


def test_who_asks_for_a_pdf_without_the_extra_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(ConfigError, match=r"landbridge\[pdf\].*install weasyprint"):
        pdf.made("<p>")
