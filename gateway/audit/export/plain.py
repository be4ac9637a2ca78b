"""Entries as JSON lines, as a table for a spreadsheet, and as syslog messages. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from types import MappingProxyType

from gateway.audit.canonical import Value
from gateway.audit.entry import Recorded
from landbridge.events import Severity

# RFC 5424: log audit, and the severity of each letter (6 informational, 4 warning, 3 error).
_FACILITY = 13
_LEVELS = MappingProxyType({Severity.INFORMATION: 6, Severity.WARNING: 4, Severity.ERROR: 3})
# The enterprise number that RFC 5612 keeps for examples: Landbridge has none of its own.
_SD_ID = "landbridge@32473"

# What a table has of each entry: heading, and where it stands in the entry; facts are looked for under "seen", then "claimed".
_HEAD = ("sequence", "time", "code", "event", "outcome", "reason", "migration", "origin", "id")
_ACTOR = ("id", "role", "method", "on_behalf_of", "address")
_FACTS = (
    ("source", "site"), ("source", "country"), ("source", "host"),
    ("destination", "site"), ("destination", "country"), ("destination", "host"),
    ("vm", "name"), ("vm", "uuid"), ("vm", "xml_sha256"), ("vm", "owner"), ("vm", "data_classes"),
    ("request", "purpose"), ("request", "ticket"), ("purpose",), ("legal_basis",), ("transfer_mechanism",),
    ("policy", "decision"), ("policy", "ids"), ("policy", "bundle_sha256"),
    ("tls", "version"), ("tls", "suite"), ("tls", "group"), ("tls", "peer_cert_sha256"),
    ("bytes_ram",), ("bytes_disk",), ("bytes_wan",), ("duration_ms",), ("downtime_ms",), ("verify", "method"), ("verify", "result"),
    ("location", "site"), ("location", "host"), ("rollback",), ("state", "from"), ("state", "to"),
)  # fmt: skip


def fact(entry: Recorded, *path: str) -> Value:
    """A fact, as the gateway has seen it, else as it was claimed; None if nobody said it."""
    return told(entry, *path)[0]


def told(entry: Recorded, *path: str) -> tuple[Value, bool]:
    """The same, and whether the gateway has seen it."""
    for facts in ("seen", "claimed"):
        value: Value = entry.facts(facts)
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value, facts == "seen"
    return None, False


def _claimed(entry: Recorded) -> list[str]:
    """Which facts are only claimed; of one that is seen in part, which part is not."""
    seen, names = entry.facts("seen"), []
    for name, value in entry.facts("claimed").items():
        known = seen.get(name)
        if known is None:
            names.append(name)
        elif isinstance(value, dict) and isinstance(known, dict):
            names += [f"{name}.{below}" for below in value if below not in known]
    return sorted(names)


def jsonl(entries: Iterable[Recorded]) -> Iterator[str]:
    """The entries as they were recorded, a line each: canonical JSON, whose hash is in the log's tree."""
    for entry in entries:
        yield f"{entry.raw.decode()}\n"


def table(entries: Iterable[Recorded]) -> Iterator[str]:
    """CSV (RFC 4180) with a heading; the column `claimed` names the facts that the gateway has not seen itself."""
    return map(line, rows(entries))


def rows(entries: Iterable[Recorded]) -> Iterator[list[str]]:
    """The cells of that table."""
    yield [*_HEAD, *(f"actor.{name}" for name in _ACTOR), "approvers", *(".".join(path) for path in _FACTS), "claimed"]
    for entry in entries:
        yield [
            *(entry.text(name) for name in _HEAD),
            *(entry.text("actor", name) for name in _ACTOR),
            " ".join(approvers(entry)),
            *(_text(fact(entry, *path)) for path in _FACTS),
            " ".join(_claimed(entry)),
        ]


def approvers(entry: Recorded) -> list[str]:
    """Who has approved it."""
    found = fact(entry, "approvers")
    return [str(each.get("id", "")) for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(_text(each) for each in value)
    return str(value)


def line(cells: Iterable[str]) -> str:
    """A line of CSV, with its end."""
    written = io.StringIO()
    csv.writer(written).writerow([_harmless(cell) for cell in cells])
    return written.getvalue()


def _harmless(cell: str) -> str:
    """A spreadsheet takes a cell that begins like this for a formula, and a VM may be named like one."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def syslog(entries: Iterable[Recorded]) -> Iterator[str]:
    """RFC 5424, a message each, ended by a line feed: code as MSGID, the main facts as structured data, the entry as message."""
    for entry in entries:
        priority = _FACILITY * 8 + _LEVELS[entry.event.severity]
        data = {
            "origin": entry.origin,
            "sequence": str(entry.sequence),
            "event": entry.event.name,
            "outcome": entry.text("outcome"),
            "actor": entry.text("actor", "id"),
            "migration": entry.text("migration"),
            "vm": _text(fact(entry, "vm", "name")),
        }
        parts = " ".join(f'{name}="{_escaped(value)}"' for name, value in data.items() if value)
        host = entry.origin.replace("/", ".")[:255]
        head = f"<{priority}>1 {entry.text('time')} {_printable(host)} landbridge - {entry.event.code}"
        yield f"{head} [{_SD_ID} {parts}] \ufeff{entry.raw.decode()}\n"


def _escaped(value: str) -> str:
    # RFC 5424, 6.3.3. A control character is allowed there, but would break a line in two.
    for letter in '\\"]':
        value = value.replace(letter, f"\\{letter}")
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _printable(text: str) -> str:
    return "".join(letter if "!" <= letter <= "~" else "-" for letter in text) or "-"
