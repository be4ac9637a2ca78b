"""Entries as events of the Open Cybersecurity Schema Framework, version 1.8.0. Pure.

    migrations, agents       Entity Management 3004: Move, Suspend, Resume, Enroll, Unenroll, Update
    requests and denials     API Activity 6003
    tunnels, outages         Tunnel Activity 4014: Open, Close, Other
    the log itself           Event Log Activity 1008: Start, Stop, Export, Delete, Other

Each event carries the entry as `raw_data`, and its SHA-256; where it stands in the log is in `metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

from gateway.audit.canonical import Value
from gateway.audit.entry import Recorded
from gateway.audit.export.plain import fact
from landbridge.events import Severity

VERSION = "1.8.0"

Event = dict[str, Value]


class _Kind(NamedTuple):
    """A class of events, by its number, and the category that it is in."""

    number: int
    name: str
    category: int
    category_name: str


_ENTITY = _Kind(3004, "Entity Management", 3, "Identity & Access Management")
_API = _Kind(6003, "API Activity", 6, "Application Activity")
_TUNNEL = _Kind(4014, "Tunnel Activity", 4, "Network Activity")
_LOG = _Kind(1008, "Event Log Activity", 1, "System Activity")

_CREATE, _READ, _UPDATE, _MOVE, _ENROLL, _UNENROLL, _SUSPEND, _RESUME, _OTHER = 1, 2, 3, 5, 6, 7, 12, 13, 99
_OPEN, _CLOSE = 1, 2
_DELETED, _EXPORTED, _STARTED, _STOPPED = 2, 3, 6, 7

# Which class and activity an event is; all others are updates of an entity.
_KINDS = MappingProxyType(
    {
        "log.started": (_LOG, _STARTED),
        "log.stopped": (_LOG, _STOPPED),
        "log.idle": (_LOG, _OTHER),
        "log.read": (_LOG, _OTHER),
        "log.exported": (_LOG, _EXPORTED),
        "log.pruned": (_LOG, _DELETED),
        "log.cosigned": (_LOG, _OTHER),
        "log.forked": (_LOG, _OTHER),
        "migration.requested": (_API, _CREATE),
        "migration.refused": (_API, _CREATE),
        "migration.denied": (_API, _CREATE),
        "migration.approved": (_API, _UPDATE),
        "migration.limited": (_API, _UPDATE),
        "migration.held": (_ENTITY, _SUSPEND),
        "migration.resumed": (_ENTITY, _RESUME),
        "migration.completed": (_ENTITY, _MOVE),
        "migration.failed": (_ENTITY, _MOVE),
        "migration.cancelled": (_ENTITY, _MOVE),
        "migration.returned": (_ENTITY, _MOVE),
        "access.denied": (_API, _OTHER),
        "identity.refused": (_API, _OTHER),
        "call.refused": (_API, _OTHER),
        "agent.joined": (_ENTITY, _ENROLL),
        "agent.left": (_ENTITY, _UNENROLL),
        "host.removed": (_ENTITY, _UNENROLL),
        "site.left": (_ENTITY, _UNENROLL),
        "tunnel.opened": (_TUNNEL, _OPEN),
        "tunnel.closed": (_TUNNEL, _CLOSE),
        "outage.began": (_TUNNEL, _OTHER),
        "outage.ended": (_TUNNEL, _OTHER),
    }
)
_SEVERITIES = MappingProxyType({Severity.INFORMATION: 1, Severity.WARNING: 3, Severity.ERROR: 4})
# success, failure, other
_STATUSES = MappingProxyType({"success": 1, "failure": 2, "denied": 2, "unknown": 0})
_DEVICE, _OTHER_ENTITY, _VIRTUAL, _SHA_256 = 1, 99, 6, 3


def lines(entries: Iterable[Recorded]) -> Iterator[str]:
    """One event in JSON on each line."""
    for entry in entries:
        yield f"{json.dumps(event(entry))}\n"


def event(entry: Recorded) -> Event:
    """The event that an entry is."""
    kind, activity = _KINDS.get(entry.event.name, (_ENTITY, _UPDATE))
    made: Event = {
        "class_uid": kind.number,
        "class_name": kind.name,
        "category_uid": kind.category,
        "category_name": kind.category_name,
        "activity_id": activity,
        "activity_name": entry.event.name,
        "type_uid": kind.number * 100 + activity,
        "time": int(entry.time.timestamp() * 1000),
        "time_dt": entry.text("time"),
        "severity_id": _SEVERITIES[entry.event.severity],
        "status_id": _STATUSES[entry.text("outcome")],
        "status": entry.text("outcome"),
        "status_code": entry.event.code,
        "message": entry.event.meaning,
        "metadata": _metadata(entry),
        "raw_data": entry.raw.decode(),
        "raw_data_hash": _hash(sha256(entry.raw).hexdigest()),
        "unmapped": {name: dict(entry.facts(name)) for name in ("seen", "claimed") if entry.facts(name)},
    }
    if reason := entry.text("reason"):
        made["status_detail"] = reason
    if entry.facts("actor"):
        made["actor"] = _actor(entry)
    if isinstance(took := fact(entry, "duration_ms"), int):
        made["duration"] = took
    return made | _OF_CLASS[kind](entry)


def _metadata(entry: Recorded) -> Event:
    return {
        "version": VERSION,
        "profiles": ["datetime", "host"],
        "product": {"name": "Landbridge", "vendor_name": "Landbridge"},
        "uid": entry.text("id"),
        "event_code": entry.event.code,
        "sequence": entry.sequence,
        "log_name": entry.origin,
        "log_provider": "landbridge",
        "original_time": entry.text("time"),
        **({"correlation_uid": entry.text("migration")} if entry.text("migration") else {}),
    }


def _actor(entry: Recorded) -> Event:
    who = entry.text("actor", "id")
    actor: Event = {
        "user": {"uid": who, "name": who.rpartition("/")[2] or who, "type": entry.text("actor", "role") or "unknown"}
    }
    if behalf := entry.text("actor", "on_behalf_of"):
        actor["invoked_by"] = behalf
    return actor


def _entity(entry: Recorded) -> Event:
    made: Event = {"entity": _moved(entry, "source")}
    if fact(entry, "destination") is not None:
        made["entity_result"] = _moved(entry, "destination")
    if comment := fact(entry, "request", "purpose") or fact(entry, "purpose"):
        made["comment"] = comment
    return made


def _moved(entry: Recorded, end: str) -> Event:
    """The VM at one end; or, where the entry is about something else, that."""
    uuid, name = fact(entry, "vm", "uuid"), fact(entry, "vm", "name")
    if uuid is None and name is None:
        what = (
            fact(entry, "change", "subject")
            or fact(entry, end, "agent")
            or fact(entry, end, "host")
            or entry.text("migration")
        )
        return {"name": str(what or entry.origin), "type_id": _OTHER_ENTITY, "type": entry.event.name.partition(".")[0]}
    device: Event = {
        "type_id": _VIRTUAL,
        "type": "Virtual",
        "uid": str(uuid or name),
        "name": str(name or uuid),
        "hypervisor": "QEMU",
        **_where(entry, end),
    }
    return {"type_id": _DEVICE, "type": "Device", "uid": str(uuid or name), "name": str(name or uuid), "device": device}


def _where(entry: Recorded, end: str) -> Event:
    site, country = fact(entry, end, "site"), fact(entry, end, "country")
    return {**({"region": site} if site else {}), **({"location": {"country": country}} if country else {})}


def _api(entry: Recorded) -> Event:
    who = entry.text("actor", "id") or "unknown"
    address = entry.text("actor", "address")
    made: Event = {
        "api": {"operation": entry.event.name, "service": {"name": "landbridge.v1.Gateway"}},
        "src_endpoint": {"name": who, **({"ip": address} if address else {})},
    }
    if not entry.facts("actor"):
        made["actor"] = {"app_name": "unknown"}
    return made


def _tunnel(entry: Recorded) -> Event:
    ends = {"src_endpoint": "source", "dst_endpoint": "destination"}
    made: Event = {
        name: {"name": str(fact(entry, end, "gateway") or site), "location": {"region": str(site)}}
        for name, end in ends.items()
        if (site := fact(entry, end, "site"))
    }
    if not made:
        made["src_endpoint"] = {"name": entry.origin}
    if isinstance(carried := fact(entry, "bytes_wan"), int):
        made["traffic"] = {"bytes": carried}
    if version := fact(entry, "tls", "version"):
        suite = fact(entry, "tls", "suite")
        made["tls"] = {"version": version, **({"cipher": suite} if suite else {})}
    return made


def _log(entry: Recorded) -> Event:
    return {"log_name": entry.origin, "log_provider": "landbridge"}


def _hash(value: str) -> Event:
    return {"algorithm_id": _SHA_256, "algorithm": "SHA-256", "value": value}


_OF_CLASS = MappingProxyType({_ENTITY: _entity, _API: _api, _TUNNEL: _tunnel, _LOG: _log})
