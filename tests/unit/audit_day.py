"""A day of two sites, as its log has it: three migrations, one denied, one approved by two people, and one outage."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from gateway.audit.entry import Entry
from gateway.audit.journal import commit
from gateway.audit.storage import Storage
from landbridge import events
from tests.unit.audit_logs import BRU, NOON, entry

ALICE = {
    "id": "spiffe://example.org/site/bru/operator/alice",
    "role": "operator",
    "method": "mtls",
    "address": "192.0.2.7",
}
BOB, CAROL = (f"spiffe://example.org/site/bru/operator/{name}" for name in ("bob", "carol"))
SOURCE = {"site": "bru", "country": "BE", "host": "host-a", "agent": "spiffe://example.org/site/bru/host/host-a"}
DESTINATION = {"site": "ams", "country": "NL", "host": "host-b", "agent": "spiffe://example.org/site/ams/host/host-b"}
TLS = {"version": "TLSv1.3", "suite": "TLS_AES_256_GCM_SHA384", "group": "X25519", "peer_cert_sha256": "c" * 64}
WAY = {"source": SOURCE, "destination": DESTINATION}


def vm(name: str) -> dict[str, object]:
    return {"name": name, "uuid": f"00000000-0000-4000-8000-{sum(name.encode()):012}", "xml_sha256": "d" * 64}


def day() -> list[Entry]:
    """The entries, in order."""
    made: list[Entry] = []

    def add(event: str, migration: str = "", **fields: object) -> None:
        number = len(made)
        made.append(entry(number, event=event, migration=migration, time=NOON + timedelta(minutes=number), **fields))

    add("log.started", actor={}, seen={"program": {"name": "landbridge-gateway", "version": "0.1.0"}})
    add("tunnel.opened", actor={}, seen={**WAY, "tls": TLS})
    for name, machine in (("m-1", "web-01"), ("m-2", "db-01"), ("m-3", "files-01")):
        about = {**WAY, "vm": vm(machine)}
        request = {"purpose": "maintenance of host-a", "ticket": "CHG-7", "method": "mtls"}
        add("migration.requested", name, actor=ALICE, seen=about, claimed={"request": request})
        if name == "m-2":
            denied = {"decision": "deny", "ids": ["no-databases-abroad"], "bundle_sha256": "e" * 64}
            add(
                "migration.denied",
                name,
                actor=ALICE,
                outcome="denied",
                reason="rule no-databases-abroad <script>alert(1)</script>",
                seen={**about, "policy": denied},
            )
            continue
        if name == "m-3":
            approvers = [{"id": who, "time": "2026-01-31T12:05:00.000000Z"} for who in (BOB, CAROL)]
            add("migration.approved", name, actor={"id": BOB}, seen={"approvers": approvers, **about})
        add(
            "migration.permitted",
            name,
            actor=ALICE,
            seen={**about, "policy": {"decision": "permit", "ids": ["eu"]}, "legal_basis": "legitimate-interests"},
        )
        add("migration.stepped", name, actor=ALICE, seen={"state": {"from": "preparing", "to": "copying"}})
        if name == "m-3":
            add("outage.began", actor={}, outcome="failure", seen={"outage": {"what": "tunnel to ams"}, **WAY})
            add("migration.held", name, actor=ALICE, outcome="failure", reason="no way to ams", seen=about)
            add("outage.ended", actor={}, seen={"outage": {"what": "tunnel to ams", "duration_ms": 60_000}, **WAY})
            add("migration.resumed", name, actor=ALICE, seen=about)
        channels = [{"kind": "ram", "label": "out", "sent_bytes": 7, "sent_blake3": "a" * 64}]
        arrived = [{"kind": "ram", "label": "out", "received_bytes": 7, "received_blake3": "a" * 64}]
        add("migration.delivered", name, actor=ALICE, seen={"channels": channels}, claimed={"channels": arrived})
        numbers = {"bytes_ram": 4096, "bytes_disk": 8192, "bytes_wan": 5000, "duration_ms": 61_000, "downtime_ms": 87}
        add(
            "migration.completed",
            name,
            actor=ALICE,
            seen={**about, "tls": TLS, "location": {"site": "ams", "host": "host-b"}},
            claimed=numbers,
        )
    add("log.stopped", actor={})
    return made


def one_of_each() -> list[Entry]:
    """An entry of every event that there is, and once more with all that can be said of one."""
    bare = [entry(number, event=name, actor={}, seen={}, migration="") for number, name in enumerate(events.BY_NAME)]
    about = {
        **WAY,
        "vm": vm("web-01"),
        "tls": TLS,
        "bytes_wan": 5,
        "duration_ms": 6,
        "request": {"purpose": "p"},
        "change": {"subject": "s"},
    }
    full = [
        entry(number, event=name, actor=ALICE, reason="why", seen=about) for number, name in enumerate(events.BY_NAME)
    ]
    return bare + full


def written_day(directory: Path) -> list[Entry]:
    """The day as a log."""
    entries = day()
    storage = Storage.open(directory, BRU)
    commit(storage, entries)
    storage.close()
    return entries
