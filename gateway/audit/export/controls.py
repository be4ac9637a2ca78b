"""Which field answers which requirement, and what Landbridge does not answer: one table, for reports and for the documentation. Pure.

`python -m gateway.audit.export.controls` draws it as docs/audit-controls.md.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple

from gateway.audit.entry import Recorded
from gateway.audit.export.plain import fact


class Framework(enum.StrEnum):
    """Whose requirements, by the word of the command line."""

    NIST = "nist"
    PCI = "pci"
    ISO27001 = "iso27001"
    SOC2 = "soc2"
    HIPAA = "hipaa"
    GDPR = "gdpr"
    LGPD = "lgpd"


NAMES: Mapping[Framework, str] = MappingProxyType(
    {
        Framework.NIST: "NIST SP 800-53 r5",
        Framework.PCI: "PCI DSS v4",
        Framework.ISO27001: "ISO/IEC 27001:2022",
        Framework.SOC2: "SOC 2",
        Framework.HIPAA: "HIPAA (45 CFR 164)",
        Framework.GDPR: "GDPR",
        Framework.LGPD: "LGPD",
    }
)

# Requirements in the order of each framework, with what they are about.
TITLES: Mapping[Framework, Mapping[str, str]] = MappingProxyType(
    {
        Framework.NIST: {
            "AC-4": "information flow enforcement",
            "AU-3": "content of audit records",
            "AU-5": "response to failures of logging",
            "AU-6": "review, analysis and reporting",
            "AU-8": "time stamps",
            "AU-9": "protection of audit information",
            "AU-9(2)": "storage on separate systems",
            "AU-9(3)": "cryptographic protection",
            "AU-9(4)": "access by a subset of privileged users",
            "AU-10": "non-repudiation",
            "AU-11": "retention",
            "AU-12(1)": "time-correlated audit trail of the whole system",
            "CM-3": "configuration change control",
            "SC-8": "confidentiality and integrity of transmission",
            "SC-12": "keys: establishment and management",
            "SC-13": "cryptographic protection",
        },
        Framework.PCI: {
            "10.2.1.2": "actions of administrators",
            "10.2.1.3": "access to audit logs",
            "10.2.1.4": "invalid attempts at access",
            "10.2.1.5": "changes of credentials and rights",
            "10.2.1.6": "start, stop and pause of audit logs",
            "10.2.2": "details of each event",
            "10.3.1": "who may read audit logs",
            "10.3.2": "protection against modification",
            "10.3.3": "copies on a central server",
            "10.3.4": "detection of changes",
            "10.4": "review",
            "10.5.1": "retention for twelve months",
            "10.6": "synchronised clocks",
        },
        Framework.ISO27001: {
            "A.5.14": "information transfer",
            "A.5.28": "collection of evidence",
            "A.8.15": "logging",
            "A.8.16": "monitoring",
            "A.8.17": "synchronised clocks",
        },
        Framework.SOC2: {
            "CC6.1": "logical access",
            "CC6.7": "transmission and movement of information",
            "CC7.2": "monitoring",
            "CC8.1": "approval of changes",
        },
        Framework.HIPAA: {
            "164.310(d)(2)(iii)": "record of movements",
            "164.312(a)(2)(i)": "unique identification of users",
            "164.312(b)": "audit controls",
            "164.312(c)": "integrity",
            "164.312(d)": "authentication of persons and entities",
            "164.312(e)": "security of transmission",
            "164.316(b)(2)(i)": "retention for six years",
        },
        Framework.GDPR: {
            "art. 5(2)": "accountability",
            "art. 6": "lawfulness of processing",
            "art. 30(1)(b)": "purposes of the processing",
            "art. 30(1)(c)": "categories of data",
            "art. 30(1)(d)": "recipients, also in third countries",
            "art. 30(1)(e)": "transfers to third countries, and their safeguards",
            "art. 32": "security of processing",
            "art. 44-49": "legal mechanism of a transfer",
        },
        Framework.LGPD: {
            "art. 6": "principles of processing, purpose first",
            "art. 7": "legal bases of processing",
            "art. 33": "international transfer",
            "art. 37": "record of processing operations",
            "art. 46": "security measures",
            "Res. CD/ANPD 19/2024": "standard clauses, and transparency of transfers",
        },
    }
)


class Row(NamedTuple):
    """What is asked of the record, by which requirements, and with what it is answered (Markdown; "" if it is not).

    Entries that answer it have one of `facts`, or are one of `events`, which are patterns.
    """

    asked: str
    by: Mapping[Framework, tuple[str, ...]]
    answered: str
    facts: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    # What is left to whoever runs Landbridge.
    left: str = ""


_N, _P, _I, _S, _H, _G, _L = Framework

TABLE = (
    Row(
        "what happened, and a code for it",
        {_N: ("AU-3",), _P: ("10.2.2",), _I: ("A.8.15",), _S: ("CC7.2",), _H: ("164.312(b)",), _L: ("art. 37",)},
        "`event`, `code` ([list](audit-events.md))",
        facts=("event",),
    ),
    Row(
        "when, in UTC",
        {_N: ("AU-3", "AU-8"), _P: ("10.2.2",), _I: ("A.8.15",), _H: ("164.310(d)(2)(iii)",)},
        "`time`, to the microsecond; `clock` where it is known to be off",
        facts=("time",),
    ),
    Row(
        "who, and on whose behalf",
        {
            _N: ("AU-3", "AU-10"),
            _P: ("10.2.1.2", "10.2.2"),
            _I: ("A.8.15",),
            _S: ("CC6.1",),
            _H: ("164.310(d)(2)(iii)", "164.312(a)(2)(i)", "164.312(d)"),
        },
        "`actor` (identity from a certificate, method, role, address)",
        facts=("actor",),
    ),
    Row(
        "who approved it",
        {_N: ("AU-10", "CM-3"), _S: ("CC8.1",)},
        "`approvers`, and `migration.approved`",
        facts=("approvers",),
        events=("migration.approved",),
    ),
    Row(
        "from where, to where",
        {
            _N: ("AC-4", "AU-3"),
            _P: ("10.2.2",),
            _I: ("A.5.14",),
            _S: ("CC6.7",),
            _H: ("164.310(d)(2)(iii)",),
            _G: ("art. 30(1)(d)", "art. 30(1)(e)"),
            _L: ("art. 33", "art. 37", "Res. CD/ANPD 19/2024"),
        },
        "`source`, `destination`: site and host; country, where the policy file says it",
        facts=("source", "destination"),
    ),
    Row(
        "what was moved, and whose it is",
        {
            _P: ("10.2.2",),
            _I: ("A.5.14",),
            _H: ("164.310(d)(2)(iii)",),
            _G: ("art. 30(1)(c)",),
            _L: ("art. 37",),
        },
        "`vm` (name, UUID, hash of the definition, owner, data classes as labelled)",
        facts=("vm",),
    ),
    Row(
        "exactly what was asked for",
        {_N: ("AU-10",), _S: ("CC8.1",)},
        "`request`: SHA-256 of the canonical request, to which approvals are bound",
        facts=("request",),
    ),
    Row(
        "which rule decided",
        {_N: ("AC-4",), _I: ("A.5.14",), _S: ("CC6.1",)},
        "`policy`: decision, rules, hash of all rules",
        facts=("policy",),
    ),
    Row(
        "how it was protected on its way",
        {
            _N: ("SC-8", "SC-12", "SC-13"),
            _I: ("A.5.14",),
            _S: ("CC6.7",),
            _H: ("164.312(e)",),
            _G: ("art. 32",),
            _L: ("art. 46",),
        },
        "`tls`: version, suite, key exchange, certificate",
        facts=("tls",),
    ),
    Row(
        "that what arrived is what left",
        {
            _N: ("SC-8",),
            _I: ("A.5.14",),
            _S: ("CC6.7",),
            _H: ("164.312(c)", "164.312(e)"),
            _G: ("art. 32",),
            _L: ("art. 46",),
        },
        "`channels`: bytes and BLAKE3 of both ends, compared by `audit verify` (check 8)",
        facts=("channels",),
    ),
    Row(
        "that what is stored is what left, where that was wanted",
        {_I: ("A.5.14",), _H: ("164.312(c)",)},
        "`verify`, `disks` with the roots of both ends, as their hosts say ([disk-proof.md](disk-proof.md))",
        facts=("verify",),
    ),
    Row(
        "how it ended",
        {_N: ("AU-3",), _P: ("10.2.2",), _I: ("A.8.15",), _H: ("164.310(d)(2)(iii)",)},
        "`outcome`, `reason`, `location`",
        facts=("outcome",),
    ),
    Row(
        "denied and failed attempts",
        {_N: ("AC-4",), _P: ("10.2.1.4",), _S: ("CC6.1", "CC7.2"), _H: ("164.312(b)",)},
        "`migration.denied`, `migration.refused`, `access.denied`, `identity.refused`, `call.refused`",
        events=("migration.denied", "migration.refused", "access.denied", "identity.refused", "call.refused"),
    ),
    Row(
        "faults and outages",
        {_I: ("A.8.15",), _S: ("CC7.2",)},
        "`outage.began`, `outage.ended`, `agent.left`, `migration.held`, `migration.failed`, `clock.stepped`",
        events=("outage.*", "agent.left", "migration.held", "migration.failed", "clock.stepped"),
    ),
    Row(
        "changes of rules, roles and keys",
        {_N: ("CM-3", "SC-12"), _P: ("10.2.1.2", "10.2.1.5"), _S: ("CC6.1", "CC8.1")},
        "`policy.changed`, `role.changed`, `key.changed`, `trust.changed`, `configuration.changed`",
        events=("policy.changed", "role.changed", "key.changed", "trust.changed", "configuration.changed"),
    ),
    Row(
        "reading and export of the log",
        {_P: ("10.2.1.3",), _H: ("164.312(b)",)},
        "`log.read` of what a gateway hands out; `log.exported`, by the hash of the file, of a log that a gateway has open",
        events=("log.read", "log.exported"),
    ),
    Row(
        "start and stop of the log",
        {_P: ("10.2.1.6",), _H: ("164.312(b)",)},
        "`log.started`, `log.stopped`; and each hour in which nothing happened, `log.idle`",
        events=("log.started", "log.stopped", "log.idle"),
    ),
    Row(
        "that nothing was changed or removed",
        {
            _N: ("AU-9", "AU-9(3)", "AU-10"),
            _P: ("10.3.2", "10.3.4"),
            _I: ("A.5.28", "A.8.15"),
            _H: ("164.312(b)",),
            _G: ("art. 5(2)",),
        },
        "the tree and its signed checkpoints; `audit verify` says which entry",
        facts=("event",),
    ),
    Row(
        "a copy on another system",
        {_N: ("AU-9(2)",), _P: ("10.3.3",), _I: ("A.8.15",)},
        "what the other sites' witnesses have recorded and cosigned (`log.cosigned`); shipping to a SIEM; exports",
        events=("log.cosigned",),
    ),
    Row(
        "an alarm when the log is changed",
        {_N: ("AU-9",), _P: ("10.3.4",)},
        "`log.forked` with both signed heads, at both sites; `landbridge sites`",
        events=("log.forked",),
    ),
    Row(
        "one trail over both sites",
        {_N: ("AU-12(1)",), _I: ("A.5.28",)},
        "`migration`, the same id in the logs of both sites; `landbridge receipt` has the entries of both",
        facts=("migration",),
    ),
    Row(
        "retention",
        {_N: ("AU-11",), _P: ("10.5.1",), _H: ("164.316(b)(2)(i)",)},
        "as configured; pruning is an entry itself (`log.pruned`), and breaks no proof",
        events=("log.pruned",),
    ),
    Row(
        "that a step does not happen unrecorded",
        {_N: ("AU-5",), _G: ("art. 5(2)",)},
        "an entry is durable before its step; else the step waits",
        facts=("event",),
    ),
    Row(
        "why",
        {_I: ("A.5.14",), _G: ("art. 30(1)(b)",), _L: ("art. 6", "art. 37", "Res. CD/ANPD 19/2024")},
        "`purpose`, as a policy has it; and what who asks has said, in `request` as `purpose`, which is claimed",
        facts=("purpose", "request.purpose"),
    ),
    Row(
        "by what right",
        {_G: ("art. 6",), _L: ("art. 7", "art. 37")},
        "`legal_basis`, as the policy of the site has it whose entry it is, if it says so ([policy.md](policy.md))",
        facts=("legal_basis",),
    ),
    Row(
        "by what mechanism to another country",
        {_G: ("art. 30(1)(e)", "art. 44-49"), _L: ("art. 33", "Res. CD/ANPD 19/2024")},
        "`transfer_mechanism`, as a policy has it; reports name transfers to another country that have none",
        facts=("transfer_mechanism",),
    ),
    Row(
        "synchronised clocks",
        {_N: ("AU-8",), _P: ("10.6",), _I: ("A.8.17",)},
        "",
        left="use NTP or PTP; the log says what the gateway's clock said, and that it jumped (`clock.stepped`)",
    ),
    Row(
        "who may read the log's files, and their backups",
        {_N: ("AU-9(4)",), _P: ("10.3.1",)},
        "",
        left="that is the operating system's; the files are for the gateway's user alone, and reading them is not recorded",
    ),
    Row(
        "review of entries, and alarms",
        {_N: ("AU-5", "AU-6"), _P: ("10.4",), _I: ("A.8.16",), _S: ("CC7.2",)},
        "",
        left="ship them to your SIEM, and have somebody look",
    ),
    Row(
        "what data a VM holds, and whose",
        {_I: ("A.5.14",), _H: ("164.310(d)(2)(iii)",), _G: ("art. 30(1)(c)",), _L: ("art. 37",)},
        "",
        left="owner and classification are as you label them",
    ),
    Row(
        "whether a legal basis is right, and what data subjects are told",
        {_G: ("art. 6", "art. 44-49"), _L: ("art. 7", "art. 33", "Res. CD/ANPD 19/2024")},
        "",
        left="that is for lawyers: what is recorded is what the policy file says",
    ),
)


def of(framework: Framework) -> Iterator[tuple[str, str, list[Row]]]:
    """The requirements of a framework in their order: (requirement, what it is about, the rows that it asks for)."""
    for requirement, title in TITLES[framework].items():
        yield requirement, title, [row for row in TABLE if requirement in row.by.get(framework, ())]


def answers(row: Row, entry: Recorded) -> bool:
    """Whether an entry is among those that answer a row."""
    return any(fnmatchcase(entry.event.name, pattern) for pattern in row.events) or any(
        entry.document.get(name) is not None or fact(entry, *name.split(".")) is not None for name in row.facts
    )


_HEAD = """# Which field answers which requirement

For auditors. Drawn by `python -m gateway.audit.export.controls`; `landbridge audit export --framework` arranges reports and
tables by the same rows. A requirement is named by what it asks of the record of a transfer; the fields are those of
`gateway/audit/fields.py`, and `seen` and `claimed` are told apart in each entry. **What Landbridge does not answer is in bold**, and is
yours.
"""


def page() -> str:
    """The table as a page of the documentation."""
    parts = [_HEAD]
    for framework, name in NAMES.items():
        parts += [
            f"\n## {name}\n\n`--framework {framework.value}`\n",
            "\n| requirement | asked for | answered with |\n|---|---|---|\n",
        ]
        for requirement, title, rows in of(framework):
            for at, row in enumerate(rows):
                first = f"{requirement}, {title}" if not at else ""
                parts.append(f"| {first} | {row.asked} | {row.answered or f'**not by Landbridge**: {row.left}'} |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
