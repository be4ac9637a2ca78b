"""Looking into a log: its entries in order, and those that somebody asks for. Pure; nothing is verified here, see `verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.audit.canonical import Value
from gateway.audit.checkpoint import Signed
from gateway.audit.entry import Recorded
from gateway.audit.tree import TILE, TileName, unbundle
from gateway.audit.walk import CHECKPOINT, Log
from landbridge.errors import EvidenceFailed, NotFound

# So many bundles may be missing before it is said that something is wrong: a hostile checkpoint may name any size.
_MOST_MISSING = 100_000


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are asked for; what is empty does not matter."""

    start: datetime | None = None
    end: datetime | None = None
    event: str = ""  # a name, a code, or the part of a name before its point
    migration: str = ""  # an id, or how it begins
    vm: str = ""  # a name or UUID
    site: str = ""
    actor: str = ""  # an identity, or its last part
    outcome: str = ""
    text: str = ""  # anywhere in the entry

    def accepts(self, entry: Recorded) -> bool:
        """Whether the entry is one of those."""
        return (
            (self.start is None or entry.time >= self.start)
            and (self.end is None or entry.time < self.end)
            and (
                not self.event or self.event in (entry.event.name, entry.event.code, entry.event.name.partition(".")[0])
            )
            and (not self.migration or entry.text("migration").startswith(self.migration))
            and (not self.outcome or entry.text("outcome") == self.outcome)
            and (not self.actor or self.actor in _names(entry.text("actor", "id")))
            and (not self.vm or self.vm in _said(entry, "vm", "name") | _said(entry, "vm", "uuid"))
            and (not self.site or self.site in _said(entry, "source", "site") | _said(entry, "destination", "site"))
            and (not self.text or self.text.encode() in entry.raw)
        )

    def words(self) -> str:
        """The question as it is recorded in the log."""
        asked = ((name, getattr(self, name)) for name in self.__slots__)
        return " ".join(f"{name}={value}" for name, value in asked if value) or "everything"


def _names(identity: str) -> set[str]:
    return {identity, identity.rpartition("/")[2]}


def _said(entry: Recorded, *path: str) -> set[str]:
    return {entry.text(facts, *path) for facts in ("seen", "claimed")}


def head(log: Log) -> Signed:
    """The newest checkpoint, unverified. NotFound if there is no log, EvidenceFailed if it is none."""
    raw = log.read(CHECKPOINT)
    if raw is None:
        raise NotFound("there is no log: its checkpoint is missing. Give the directory or URL that holds it.")
    try:
        return Signed.decode(raw)
    except EvidenceFailed as error:
        raise EvidenceFailed(f"the file {CHECKPOINT} cannot be used: {error.message}.") from error


def raw_entries(log: Log, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The entries from `start` to before `end`, each with its index; those that are pruned are left out.

    EvidenceFailed if a bundle is damaged. `end` is at most the log's size.
    """
    size = head(log).checkpoint.size
    missing = 0
    for number in range(start // TILE, -(-end // TILE)):
        first = number * TILE
        name = TileName(None, number, min(TILE, size - first))
        raw = log.read(name.path)
        if raw is None:
            raw = log.read(name._replace(width=TILE).path)
        if raw is None:
            missing += 1
            if missing > _MOST_MISSING:
                raise EvidenceFailed(f"{missing} bundles of entries are missing: see `landbridge audit verify`.")
            continue
        try:
            entries = unbundle(raw)
        except EvidenceFailed as error:
            raise EvidenceFailed(f"{name.path} is damaged, {error.message}: see `landbridge audit verify`.") from error
        for index, entry in enumerate(entries[: name.width], first):
            if start <= index < end:
                yield index, entry


def entries(log: Log, start: int, end: int) -> Iterator[tuple[int, Recorded]]:
    """The same, decoded. EvidenceFailed naming the first that is none."""
    for index, raw in raw_entries(log, start, end):
        try:
            yield index, Recorded.decode(raw)
        except EvidenceFailed as error:
            raise EvidenceFailed(
                f"entry {index} is damaged, {error.message}: see `landbridge audit verify`."
            ) from error


def select(log: Log, which: Filter) -> Iterator[tuple[int, Recorded]]:
    """All entries that are asked for, in their order."""
    return ((index, entry) for index, entry in entries(log, 0, head(log).checkpoint.size) if which.accepts(entry))


def last(log: Log, count: int) -> Iterator[tuple[int, Recorded]]:
    """The newest entries."""
    size = head(log).checkpoint.size
    return entries(log, max(0, size - count), size)


def summary(entry: Recorded) -> str:
    """What an entry is about, in one line: for people who look through many."""
    parts = [
        entry.text("reason"),
        _change(entry.facts("seen").get("state")),
        next((name for name in sorted(_said(entry, "vm", "name")) if name), ""),
        _way(entry),
    ]
    return "; ".join(part for part in parts if part)


def _change(state: Value) -> str:
    return f"{state.get('from', '')} to {state.get('to', '')}" if isinstance(state, Mapping) else ""


def _way(entry: Recorded) -> str:
    source, destination = (max(_said(entry, end, "site")) for end in ("source", "destination"))
    return f"{source} to {destination}" if source and destination else ""
