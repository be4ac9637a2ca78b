"""The fields of entries: what is recorded of an event, and what each value looks like. Pure.

The union of what NIST SP 800-53 (AU-3, AU-8, AU-10, AC-4, SC-8), PCI DSS (10.2.2), ISO 27001 (A.5.14, A.8.15), HIPAA
(164.312), SOC 2 (CC6.7), GDPR (art. 30) and LGPD (art. 37) ask of the record of a transfer; docs/audit-controls.md says
which field answers which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeAlias

from certs.identity import Identity
from gateway.audit.canonical import MOST, Value

# Says what is wrong with a value, "" for nothing.
Kind: TypeAlias = Callable[[Value], str]

TEXT_CHARACTERS = 512
LIST_ITEMS = 32

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_HEX = re.compile(r"[0-9a-f]{64}")


def text(value: Value) -> str:
    """Any text that is not empty and not too long."""
    if isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS:
        return ""
    return f"no text of 1 to {TEXT_CHARACTERS} characters"


def count(value: Value) -> str:
    """A whole number from 0 on: bytes, milliseconds, entries."""
    return "" if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else "no count"


def offset(value: Value) -> str:
    """A whole number, also below 0."""
    return "" if isinstance(value, int) and not isinstance(value, bool) else "no whole number"


def flag(value: Value) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "neither true nor false"


def digest(value: Value) -> str:
    """256 bits in lower-case hex."""
    return "" if isinstance(value, str) and _HEX.fullmatch(value) else "no digest of 64 hex digits"


def moment(value: Value) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return "no time that exists"
        return ""
    return "no time such as 2026-01-31T12:00:00.000000Z"


def one_of(*words: str) -> Kind:
    """One of a few words."""

    def check(value: Value) -> str:
        return "" if value in words else f"none of {', '.join(words)}"

    return check


def listing(kind: Kind) -> Kind:
    """A list of values of one kind, not empty."""

    def check(value: Value) -> str:
        if not isinstance(value, list | tuple) or not 0 < len(value) <= LIST_ITEMS:
            return f"no list of 1 to {LIST_ITEMS}"
        return next((wrong for wrong in map(kind, value) if wrong), "")

    return check


def record(fields: Mapping[str, Kind]) -> Kind:
    """Named values, each of its kind; each may be absent, but not all."""

    def check(value: Value) -> str:
        if not isinstance(value, Mapping) or not value:
            return "no record with fields"
        for name, below in value.items():
            if name not in fields:
                return f"a record with the unknown field {ascii(name)[:80]}"
            if wrong := fields[name](below):
                return f"wrong at {name}: {wrong}"
        return ""

    return check


def stamp(when: datetime) -> str:
    """A moment as entries spell it; `when` is aware."""
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def certified(identity: Identity, address: str = "") -> Mapping[str, Value]:
    """An actor who has proved who they are."""
    actor: dict[str, Value] = {"id": str(identity), "method": "certificate", "role": str(identity.role)}
    return actor | ({"address": address} if address else {})


_END = record(
    {
        "site": text,
        "country": text,
        "host": text,
        "host_uuid": text,
        "agent": text,
        "gateway": text,
        "address": text,
    }
)

PERSON = record({"id": text, "method": text, "role": text, "on_behalf_of": text, "address": text})

_COUNTED = record({"what": text, "count": count, "since": moment})

OUTCOME = one_of("success", "failure", "denied", "unknown")

# What can be said of an event, under "seen" for what the gateway has seen itself, under "claimed" for what it was told.
FACTS: Mapping[str, Kind] = MappingProxyType(
    {
        # Who else.
        "approvers": listing(record({"id": text, "time": moment, "comment": text})),
        "request": record({"id": text, "sha256": digest, "method": text, "purpose": text, "ticket": text}),
        # What was refused, or done: once, or so many times since then.
        "refused": _COUNTED,
        "repeated": _COUNTED,
        # From where to where.
        "source": _END,
        "destination": _END,
        "location": record({"site": text, "host": text, "country": text, "vm_state": text}),
        # What.
        "vm": record(
            {
                "name": text,
                "uuid": text,
                "xml_sha256": digest,
                "owner": text,
                "tenant": text,
                "data_classes": listing(text),
                "controller": text,
                "processor": text,
            }
        ),
        # `digest`: as they stood at the switch-over, at the source; `stored_digest`: at the destination. See landbridge/disk_tree.py.
        "disks": listing(
            record(
                {
                    "target": text,
                    "capacity": count,
                    "digest": digest,
                    "stored_digest": digest,
                    "blocks": count,
                    "blocks_written": count,
                    "bytes_differing": count,
                    "differs_at": listing(count),
                }
            )
        ),
        # Why, and by what right, as a policy has it, in its words; `request.purpose` is what somebody says who asks.
        "purpose": text,
        "legal_basis": text,
        "transfer_mechanism": text,
        "retention_class": text,
        "policy": record(
            {"bundle_sha256": digest, "decision": one_of("permit", "deny", "approval"), "ids": listing(text)}
        ),
        # How protected.
        "tls": record(
            {
                "version": text,
                "suite": text,
                "group": text,
                "peer": text,
                "peer_cert_sha256": digest,
                "issuer": text,
                "serial": text,
                "not_after": moment,
            }
        ),
        # What was delivered, and whether it is what was sent.
        "channels": listing(
            record(
                {
                    "kind": one_of("rpc", "ram", "disk"),
                    "label": text,
                    "sent_bytes": count,
                    "sent_blake3": digest,
                    "received_bytes": count,
                    "received_blake3": digest,
                }
            )
        ),
        "verify": record(
            {
                "method": text,
                "digest": digest,
                "blocks": count,
                "blocks_written": count,
                "downtime_us": count,
                "duration_ms": count,
                "result": one_of("equal", "differs", "skipped"),
            }
        ),
        "bytes_ram": count,
        "bytes_disk": count,
        "bytes_wan": count,
        "duration_ms": count,
        "downtime_ms": count,
        "rollback": flag,
        "state": record({"from": text, "to": text}),
        # Changes of what rules.
        "change": record({"subject": text, "before_sha256": digest, "after_sha256": digest, "comment": text}),
        # Outages, and clocks.
        "outage": record({"what": text, "since": moment, "duration_ms": count}),
        "clock": record({"source": text, "offset_us": offset, "synchronised": flag}),
        # The log itself, and those of others.
        "log": record(
            {
                "origin": text,
                "size": count,
                "root": digest,
                # The signed head itself, as lines: evidence that verifies alone.
                "note": listing(text),
                "other_size": count,
                "other_root": digest,
                "other_note": listing(text),
            }
        ),
        "pruned": record({"minimum": count, "retention_days": count}),
        "query": record(
            {"filter": text, "format": text, "entries": count, "first": count, "last": count, "sha256": digest}
        ),
        "program": record({"name": text, "version": text}),
    }
)
