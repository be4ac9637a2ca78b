"""One entry of the log: who did what, to what, from where, how it ended, and who says so. Pure.

    origin, sequence      which log it is of, and its index there: it cannot be moved unnoticed
    id, time              its own, given before it is written; time in UTC to the microsecond
    event, code           of landbridge.events
    outcome, reason       success, failure, denied or unknown; why, in a sentence
    actor                 the person or program that acted, as authenticated
    migration             the id of the migration that it is about
    seen                  facts that this gateway has seen itself
    claimed               facts that somebody else has told it: an agent, or the other site

An entry is stored as canonical JSON. Its `v` is the version of this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Self, TypeAlias, cast

from gateway.audit import canonical, fields
from gateway.audit.canonical import Value
from landbridge import events
from landbridge.errors import EvidenceFailed, InternalError

VERSION = 1
MOST_BYTES = 65_535  # tlog-tiles: a bundle spells the length of an entry in 16 bits

Facts: TypeAlias = Mapping[str, Value]
NOTHING: Facts = MappingProxyType({})

_TOP: Mapping[str, fields.Kind] = MappingProxyType(
    {
        "id": fields.text,
        "time": fields.moment,
        "outcome": fields.OUTCOME,
        "reason": fields.text,
        "actor": fields.PERSON,
        "migration": fields.text,
        "seen": fields.record(fields.FACTS),
        "claimed": fields.record(fields.FACTS),
        "origin": fields.text,
        "sequence": fields.count,
    }
)
_ALWAYS = ("id", "time", "outcome", "origin", "sequence", "event", "code", "v")


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that is to be recorded; where it stands in the log, the journal decides.

    InternalError at once if it is none: a name or a value that `fields` does not know, or too much of it.
    """

    event: str
    id: str
    time: datetime
    outcome: str = "success"
    reason: str = ""
    actor: Facts = field(default_factory=dict)
    migration: str = ""
    seen: Facts = field(default_factory=dict)
    claimed: Facts = field(default_factory=dict)
    _document: dict[str, Value] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.event not in events.BY_NAME:
            raise InternalError(f"no event has the name {self.event!r}")
        document: dict[str, Value] = {
            "v": VERSION,
            "event": self.event,
            "code": events.BY_NAME[self.event].code,
            "id": self.id,
            "time": fields.stamp(self.time),
            "outcome": self.outcome,
        }
        if self.reason:
            document["reason"] = clean(self.reason)
        for name in ("actor", "migration", "seen", "claimed"):
            if value := getattr(self, name):
                document[name] = _cleaned(value)
        object.__setattr__(self, "_document", document)
        # With the largest of what the journal adds, so that nothing can go wrong later.
        largest = {**document, "origin": "o" * fields.TEXT_CHARACTERS, "sequence": canonical.MOST}
        if wrong := _mistake(largest):
            raise InternalError(f"an entry for {self.event} is {wrong}")
        if len(canonical.encode(largest)) > MOST_BYTES:
            raise InternalError(f"an entry for {self.event} has more than {MOST_BYTES} bytes")

    def encode(self, origin: str, sequence: int) -> bytes:
        """Its bytes as the entry number `sequence` of the log `origin`; at most MOST_BYTES."""
        return canonical.encode({**self._document, "origin": origin, "sequence": sequence})


@dataclass(frozen=True, slots=True)
class Recorded:
    """An entry as it stands in a log."""

    document: Mapping[str, Value]
    raw: bytes

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """EvidenceFailed with what is wrong, as the end of a sentence, if these bytes are no entry."""
        document = canonical.decode(raw)
        if not isinstance(document, Mapping):
            raise EvidenceFailed("it is JSON, but no object")
        if wrong := _mistake(document):
            raise EvidenceFailed(f"it is {wrong}")
        return cls(MappingProxyType(dict(document)), raw)

    def text(self, *path: str) -> str:
        """The value at this path as text, "" if there is none."""
        value: Value = self.document
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return "" if value is None else str(value)

    def facts(self, name: str) -> Facts:
        """The facts under "seen" or "claimed", or another record of the entry."""
        found = self.document.get(name)
        return found if isinstance(found, Mapping) else NOTHING

    @property
    def sequence(self) -> int:
        """Its index in its log, as it says itself."""
        return cast(int, self.document["sequence"])

    @property
    def origin(self) -> str:
        """The log that it belongs to, as it says itself."""
        return self.text("origin")

    @property
    def event(self) -> events.Event:
        """What kind of event it is."""
        return events.BY_NAME[self.text("event")]

    @property
    def time(self) -> datetime:
        """When, as the gateway's clock said."""
        return datetime.fromisoformat(self.text("time"))


def clean(text: str) -> str:
    """Text from elsewhere as an entry can hold it: cut to what fits, and nothing that is no character."""
    kept = text.encode("utf-8", "replace").decode()
    return kept if len(kept) <= fields.TEXT_CHARACTERS else f"{kept[: fields.TEXT_CHARACTERS - 1]}…"


def _cleaned(value: Value) -> Value:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # From elsewhere, too: no figure of somebody else's may keep an entry from being written.
        return max(-canonical.MOST, min(canonical.MOST, value))
    if isinstance(value, Mapping):
        return {name: _cleaned(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(below) for below in value]
    return value


def _mistake(document: Mapping[str, Value]) -> str:
    """What is wrong with an entry, as the end of a sentence that begins with "it is"; "" for nothing."""
    if missing := [name for name in _ALWAYS if name not in document]:
        return f"without {missing[0]}"
    if document["v"] != VERSION:
        return f"of version {ascii(document['v'])[:40]}, and this program knows {VERSION}; update it"
    name = document["event"]
    event = events.BY_NAME.get(name) if isinstance(name, str) else None
    if event is None:
        return f"about the unknown event {ascii(name)[:80]}"
    if document["code"] != event.code:
        return f"about {event.name}, and its code is not {event.code}"
    return next((wrong for wrong in (_wrong(*pair) for pair in document.items()) if wrong), "")


def _wrong(name: str, value: Value) -> str:
    if name in ("v", "event", "code"):
        return ""
    if name not in _TOP:
        return f"with the unknown field {ascii(name)[:80]}"
    wrong = _TOP[name](value)
    return f"wrong at {name}: {wrong}" if wrong else ""
