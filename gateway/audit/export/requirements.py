"""Entries arranged by the requirements of a framework: a section of the report, and a table. Pure.

Which entries answer which requirement, `controls` says. A requirement that these entries do not answer is there all the same, and so
is one that Landbridge never answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from gateway.audit.entry import Recorded
from gateway.audit.export import plain
from gateway.audit.export.controls import NAMES, Framework, Row, answers, of

# Runs of entries that are named for a row.
_MOST_RUNS = 10
_ANSWERED, _NOT_HERE, _NOT_BY_US = "answered", "no such entry here", "not answered by Landbridge"


def section(framework: Framework, entries: Sequence[Recorded]) -> list[str]:
    """The part of the report that goes by a framework's requirements."""
    rows = [
        f"<tr>{_requirement(requirement, title, len(asked)) if not at else ''}<td>{escape(row.asked)}</td>"
        f"<td>{_html(row)}</td><td>{_found(row, entries)}</td></tr>"
        for requirement, title, asked in of(framework)
        for at, row in enumerate(asked)
    ]
    heading = "<tr><th>Requirement</th><th>Asked for</th><th>Answered with</th><th>Entries here</th></tr>"
    return [
        f"<h2>{escape(NAMES[framework])}, by requirement</h2>",
        f'<table class="requirements"><thead>{heading}</thead>{"".join(rows)}</table>',
    ]


def _requirement(requirement: str, title: str, rows: int) -> str:
    return f'<td rowspan="{rows}"><b>{escape(requirement)}</b><br><span class="note">{escape(title)}</span></td>'


def _html(row: Row) -> str:
    if not row.answered:
        return f'<span class="bad">not by Landbridge</span>: {_code(row.left)}'
    return _code(row.answered)


def _code(text: str) -> str:
    """The Markdown of `controls` as HTML: code, and nothing of links to other pages."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(re.sub(r" \(\[[^\]]+\]\([^)]+\)\)", "", text)))


def _found(row: Row, entries: Iterable[Recorded]) -> str:
    if not row.answered:
        return "-"
    found = [entry.sequence for entry in entries if answers(row, entry)]
    if not found:
        return '<span class="warn">none</span>'
    runs = [[number for _, number in run] for _, run in groupby(enumerate(found), lambda pair: pair[1] - pair[0])]
    named = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:_MOST_RUNS])
    more = " and others" if len(runs) > _MOST_RUNS else ""
    return f'{len(found)} <span class="note">({named}{more})</span>'


def table(framework: Framework, entries: Sequence[Recorded]) -> Iterator[str]:
    """CSV, with a line for each requirement and entry that answers it, and one for each that none answers."""
    heading, *lines = plain.rows(entries)
    yield plain.line(["framework", "requirement", "about", "asked for", "answer", *heading])
    for requirement, title, asked in of(framework):
        for row in asked:
            about = [NAMES[framework], requirement, title, row.asked]
            if not row.answered:
                yield plain.line([*about, f"{_NOT_BY_US}: {row.left}", *([""] * len(heading))])
                continue
            found = [line for entry, line in zip(entries, lines, strict=True) if answers(row, entry)]
            if not found:
                yield plain.line([*about, _NOT_HERE, *([""] * len(heading))])
            for line in found:
                yield plain.line([*about, _ANSWERED, *line])
