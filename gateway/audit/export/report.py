"""The report for people: one HTML page that stands alone and prints well. Pure.

    summary       which log, which time, how much of it, and whether it verifies
    exceptions    first what was denied, failed or disturbed
    requirements  of one framework, if one was asked for: what answers them here, and what does not
    transfers     each migration: who, by what right, from where to where, how protected, what arrived
    verify        how to check all of it without this page, and without us

Everything that comes from an entry is escaped; there is no script in it, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from gateway.audit.canonical import Value
from gateway.audit.entry import Recorded
from gateway.audit.export.controls import NAMES, Framework
from gateway.audit.export.plain import approvers, told
from gateway.audit.export.requirements import section
from gateway.audit.findings import Report
from gateway.audit.reading import summary
from landbridge.events import Severity

_STYLE = """
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 2px solid #1a1a1a; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; }
tr + tr > *, thead + tbody > tr > * { border-top: 1px solid #ddd; } th { font-weight: 600; }
table.facts th { width: 11rem; font-weight: 400; color: #555; }
table.exceptions td:last-child, table.requirements td { overflow-wrap: anywhere; } .short { white-space: nowrap; }
table.requirements { table-layout: fixed; } .requirements th:nth-child(1) { width: 24%; } .requirements th:nth-child(2) { width: 20%; }
.requirements th:nth-child(4) { width: 22%; }
code, .hash { font: .8em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { font: .8em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.good { color: #0a6b2d; font-weight: 600; } .bad { color: #a3130e; font-weight: 600; } .warn { color: #8a5a00; font-weight: 600; }
.note { color: #555; } section.transfer { break-inside: avoid; } a { color: inherit; } tr { break-inside: avoid; }
@media print {
  body { font-size: 9pt; margin: 0; max-width: none; padding: 0; } h2, h3 { break-after: avoid; } a { text-decoration: none; }
  .short { white-space: normal; } table.facts th { width: 7rem; }
}
@page { size: A4; margin: 18mm 15mm; @bottom-right { content: counter(page) " / " counter(pages); font: 8pt sans-serif; color: #555; } }
"""
_GOOD = frozenset({"migration.completed"})
_REFUSALS = frozenset({"migration.denied", "migration.refused"})
_ENDS = _GOOD | _REFUSALS | {"migration.failed", "migration.cancelled", "migration.returned"}


@dataclass
class _Transfer:
    """One migration, as its entries tell it."""

    migration: str
    entries: list[Recorded] = field(default_factory=list)

    def say(self, *path: str) -> tuple[Value, bool]:
        """The newest word on a fact that the gateway has seen, else the newest claim, and whether it was only claimed."""
        claim: Value = None
        for entry in reversed(self.entries):
            value, is_seen = told(entry, *path)
            if is_seen:
                return value, False
            claim = value if claim is None else claim
        return claim, claim is not None

    @property
    def end(self) -> Recorded | None:
        """How it ended, if it has."""
        return next((each for each in reversed(self.entries) if each.event.name in _ENDS), None)


def page(
    entries: Sequence[Recorded], report: Report, question: str, made: str, framework: Framework | None = None
) -> str:
    """The page on these entries; `report` is of the whole log, `question` how they were chosen, `made` a time as text."""
    transfers: dict[str, _Transfer] = {}
    for entry in entries:
        # What was refused before it became a migration has no id.
        if migration := entry.text("migration") or (f"entry-{entry.sequence}" if entry.event.name in _REFUSALS else ""):
            transfers.setdefault(migration, _Transfer(migration)).entries.append(entry)
    title = f"Audit report of {report.origin}"
    if framework is not None:
        title += f" for {NAMES[framework]}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">Made at {escape(made)}. Chosen: {escape(question)}.</p>',
        *_summary(entries, report, list(transfers.values())),
        *_exceptions(entries, transfers),
        *(section(framework, entries) if framework is not None else ()),
        "<h2>Transfers</h2>",
        *(part for each in transfers.values() for part in _transfer(each)),
        "" if transfers else "<p>There is no migration among these entries.</p>",
        _VERIFY.format(key=escape(report.key)),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _summary(entries: Sequence[Recorded], report: Report, transfers: Sequence[_Transfer]) -> list[str]:
    verdict = (
        '<span class="good">verified: this is what the site has signed</span>'
        if report.is_good
        else f'<span class="bad">NOT TO BE TRUSTED: {escape(report.findings[0].message)}</span>'
    )
    ends = Counter(each.end.event.name.partition(".")[2] if each.end else "not ended yet" for each in transfers)
    told = ", ".join(f"{count} {word}" for word, count in sorted(ends.items())) or "none"
    times = f"{entries[0].text('time')} to {entries[-1].text('time')}" if entries else "none"
    rows = [
        ("log", escape(report.origin)),
        ("the whole log", verdict),
        ("checkpoint", f'{report.size} entries, root <span class="hash">{report.root.hex()}</span>'),
        ("key", f'<span class="hash">{escape(report.key)}</span>'),
        (
            "witnesses",
            ", ".join(f"{escape(each.name)} up to {size} entries" for each, size in report.cosigned)
            or "none asked for",
        ),
        ("entries here", f"{len(entries)}, from {escape(times)}"),
        ("transfers", f"{len(transfers)}: {escape(told)}"),
        ("ways", escape(_counted(map(_way, transfers))) or "none"),
        ("legal basis", escape(_counted(_word(each.say("legal_basis")[0]) for each in transfers)) or "none"),
        ("to another country by", escape(_counted(map(_mechanism, filter(_is_abroad, transfers)))) or "none"),
    ]
    return ["<h2>Summary</h2>", _facts(rows)]


def _counted(values: Iterable[str]) -> str:
    return "; ".join(f"{value}: {count}" for value, count in Counter(values).most_common())


def _way(each: _Transfer) -> str:
    ends = (
        f"{_word(each.say(end, 'site')[0])} ({_word(each.say(end, 'country')[0])})" for end in ("source", "destination")
    )
    return " to ".join(ends)


def _mechanism(each: _Transfer) -> str:
    return _word(each.say("transfer_mechanism")[0])


def _is_abroad(each: _Transfer) -> bool:
    """Whether a transfer went to another country, as far as anybody has said where the two ends are."""
    source, destination = (each.say(end, "country")[0] for end in ("source", "destination"))
    return source != destination and None not in (source, destination)


def _exceptions(entries: Sequence[Recorded], transfers: Container[str]) -> list[str]:
    found = [each for each in entries if each.event.severity is not Severity.INFORMATION]
    if not found:
        return ["<h2>Exceptions</h2>", "<p>None: nothing was denied, failed or disturbed.</p>"]
    rows = [
        f'<tr><td>{each.sequence}</td><td class="short">{escape(_second(each))}</td>'
        f'<td class="{"bad" if each.event.severity is Severity.ERROR else "warn"}">{escape(each.event.name)}</td>'
        f"<td>{escape(_who(each).partition('://')[2] or _who(each))}</td><td>{_link(each.text('migration'), transfers)}</td>"
        f"<td>{escape(each.event.meaning)} {escape(summary(each))}</td></tr>"
        for each in found
    ]
    heading = "<tr><th>Entry</th><th>Time</th><th>Event</th><th>Who</th><th>Migration</th><th>What</th></tr>"
    return ["<h2>Exceptions</h2>", f'<table class="exceptions"><thead>{heading}</thead>{"".join(rows)}</table>']


def _link(migration: str, transfers: Container[str]) -> str:
    """Where on the page a migration is told of, by the beginning of its id."""
    name = f'<span class="short">{escape(migration[:8])}</span>'
    return f'<a href="#{escape(migration)}">{name}</a>' if migration in transfers else name


def _second(entry: Recorded) -> str:
    return entry.text("time")[:19].replace("T", " ") + "Z"


def _transfer(each: _Transfer) -> list[str]:
    end = each.end
    ended = (
        f'<span class="{"good" if end.event.name in _GOOD else "bad"}">{escape(end.event.name.partition(".")[2])}</span> '
        f"{escape(end.text('reason'))}"
        if end
        else '<span class="warn">not ended yet</span>'
    )
    first, last = each.entries[0], each.entries[-1]
    who = sorted({name for entry in each.entries for name in approvers(entry)})
    rows = [
        ("outcome", ended),
        ("when", escape(f"{_second(first)} to {_second(last)}")),
        ("asked for by", escape(_who(first))),
        ("approved by", escape(", ".join(who)) or "no approval recorded"),
        *_told(each),
        ("delivered", _delivered(each)),
        ("entries", escape(", ".join(str(entry.sequence) for entry in each.entries))),
    ]
    name = _word(each.say("vm", "name")[0])
    what = f"migration {each.migration}" if first.text("migration") else "asked for, and refused"
    head = f"<h3>{escape(name)}: {escape(what)}</h3>"
    return [f'<section class="transfer" id="{escape(each.migration)}">', head, _facts(rows), "</section>"]


# What else is said of a transfer: heading, and the facts, with a word between or behind them.
_TOLD: Sequence[tuple[str, Sequence[tuple[tuple[str, ...], str]]]] = (
    ("from", ((("source", "site"), ""), (("source", "host"), ""), (("source", "country"), ""))),
    ("to", ((("destination", "site"), ""), (("destination", "host"), ""), (("destination", "country"), ""))),
    ("VM", ((("vm", "name"), ""), (("vm", "uuid"), ""), (("vm", "owner"), ""), (("vm", "data_classes"), ""))),
    ("definition", ((("vm", "xml_sha256"), "(SHA-256)"),)),
    ("purpose, as asked for", ((("request", "purpose"), ""), (("request", "ticket"), ""))),
    ("purpose, by policy", ((("purpose",), ""),)),
    ("legal basis", ((("legal_basis",), ""),)),
    ("transfer mechanism", ((("transfer_mechanism",), ""),)),
    ("policy", ((("policy", "decision"), ""), (("policy", "ids"), ""))),
    ("protected by", ((("tls", "version"), ""), (("tls", "suite"), ""), (("tls", "group"), ""))),
    (
        "size",
        (
            (("bytes_ram",), "bytes of memory"),
            (("bytes_disk",), "bytes of disks"),
            (("bytes_wan",), "bytes over the WAN"),
        ),
    ),
    ("took", ((("duration_ms",), "ms"), (("downtime_ms",), "ms of them paused"))),
    ("disks compared", ((("verify", "method"), ""), (("verify", "result"), ""))),
    ("is now at", ((("location", "site"), ""), (("location", "host"), ""), (("location", "vm_state"), ""))),
)


# What an auditor asks for first of what was moved, and is to miss where it is not there.
_EXPECTED = frozenset({"from", "to", "legal basis", "protected by"})


def _told(each: _Transfer) -> list[tuple[str, str]]:
    rows = []
    for heading, facts in _TOLD:
        said, claimed = [], False
        for path, unit in facts:
            value, only_claimed = each.say(*path)
            if value is not None:
                said.append(f"{_word(value)} {unit}".strip())
                claimed |= only_claimed
        is_expected = heading in _EXPECTED or (heading == "transfer mechanism" and _is_abroad(each))
        if not said and is_expected and (each.end is None or each.end.event.name in _GOOD):
            rows.append((heading, '<span class="warn">not recorded</span>'))
        if said:
            rows.append(
                (
                    heading,
                    escape(", ".join(said)) + (' <span class="note">(claimed)</span>' if claimed else ""),
                )
            )
    return rows


def _delivered(each: _Transfer) -> str:
    ends: dict[tuple[str, str], dict[str, str]] = {}
    for entry in each.entries:
        for facts in ("seen", "claimed"):
            channels = entry.facts(facts).get("channels")
            for channel in channels if isinstance(channels, list) else ():
                if isinstance(channel, dict):
                    of = ends.setdefault((str(channel.get("kind")), str(channel.get("label", ""))), {})
                    of.update(
                        {
                            end: str(channel[f"{end}_blake3"])
                            for end in ("sent", "received")
                            if f"{end}_blake3" in channel
                        }
                    )
    lines = []
    for (kind, label), digests in ends.items():
        if len(digests) < 2:
            verdict = (
                f'<span class="note">{next(iter(digests), "told")} here; the other site\'s log has the other end</span>'
            )
        elif len(set(digests.values())) == 1:
            verdict = '<span class="good">both ends agree</span>'
        else:
            verdict = '<span class="bad">the two ends differ</span>'
        lines.append(
            f'{escape(f"{kind} {label}".strip())}: {verdict} <span class="hash">{escape(min(digests.values(), default=""))}</span>'
        )
    return "<br>".join(lines) or "nothing recorded"


_VERIFY = """<h2>How to verify</h2>
<p>This page proves nothing by itself. Each entry is a leaf of a Merkle tree (RFC 6962) whose root the site has signed. Ask the site
for its log, or for an export as a bundle, and compare its key with the one that the site has published:</p>
<pre>landbridge audit verify LOG --key '{key}'</pre>
<p>Any program that reads the C2SP formats tlog-tiles, tlog-checkpoint and signed-note can do the same; a bundle brings one of a
single file.</p>"""


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; the values are HTML."""
    return (
        '<table class="facts">'
        + "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
        + "</table>"
    )


def _who(entry: Recorded) -> str:
    return entry.text("actor", "id") or "the gateway"


def _word(value: Value) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(_word(each) for each in value) if isinstance(value, list) else str(value)
