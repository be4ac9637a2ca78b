"""The receipt of a migration: the entries about it from the logs of both sites, each with its proof, in one file. Pure.

Canonical JSON:

    {"landbridge-receipt": 1, "migration": id,
     "logs": [{"key": vkey, "entries": [{"entry": the entry's canonical JSON as text, "proof": a tlog-proof as text}]}],
     "missing": [{"log": origin, "entries": [index, ...]}]}

A site has a log for each of its gateways, and what a migration's entries stand in is all here. "missing", left out where nothing is, names
entries that are known to be in a log of the site that made the receipt, or of the other one, and could not be had: a gateway was lost.

The recipe of `check`, and what each step stops:

    1. each log's key is one that whoever checks knows, if any are given      a receipt of a log that was made up
    2. each proof leads to a checkpoint that this log signed                  entries that were never logged
    3. each entry is of this log and migration, and at its index              entries of another migration
    4. witnesses, if any are given, have cosigned the checkpoints             a history that only one site has seen
    5. what each end says of each channel is the same                         bytes altered on their way
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from gateway.audit import canonical
from gateway.audit.canonical import Value
from gateway.audit.entry import Recorded
from gateway.audit.fields import count
from gateway.audit.findings import Check, Finding
from gateway.audit.note import Key
from gateway.audit.proof import Proof
from landbridge.errors import EvidenceFailed, UsageError

VERSION = 1
MOST_BYTES = 64 * 1024 * 1024
_MARK = "landbridge-receipt"


@dataclass(frozen=True, slots=True)
class Proved:
    """An entry, and that it is in its log."""

    raw: bytes
    proof: Proof


@dataclass(frozen=True, slots=True)
class Part:
    """What one log says."""

    key: Key
    entries: tuple[Proved, ...]

    @property
    def cosigners(self) -> list[str]:
        """Who has signed its heads beside the log itself, by name; unverified."""
        signatures = (signature for each in self.entries for signature in each.proof.signed.note.signatures)
        return sorted({each.name for each in signatures if each.name != self.key.name})


@dataclass(frozen=True, slots=True)
class Missing:
    """Entries about the migration that are in a log, by its origin, and are not in the receipt."""

    log: str
    entries: tuple[int, ...]

    def __str__(self) -> str:
        """Which they are, in words."""
        numbers = ", ".join(map(str, self.entries))
        return f"{'entry' if len(self.entries) == 1 else 'entries'} {numbers} of the log {self.log}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """All of it."""

    migration: str
    parts: tuple[Part, ...]
    missing: tuple[Missing, ...] = ()

    def encode(self) -> bytes:
        """The file's bytes."""
        logs: list[Value] = [
            {
                "key": str(part.key),
                "entries": [
                    {"entry": each.raw.decode(), "proof": each.proof.encode().decode()} for each in part.entries
                ],
            }
            for part in self.parts
        ]
        missing: list[Value] = [{"log": each.log, "entries": list(each.entries)} for each in self.missing]
        lacks: dict[str, Value] = {"missing": missing} if missing else {}
        return canonical.encode({_MARK: VERSION, "migration": self.migration, "logs": logs, **lacks}) + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read, not checked yet. EvidenceFailed if it is no receipt, or has more than MOST_BYTES."""
        if len(raw) > MOST_BYTES:
            raise EvidenceFailed(f"it has {len(raw)} bytes, more than any receipt")
        if not raw.endswith(b"\n"):
            raise EvidenceFailed("it is cut off: its last line has no end")
        document = canonical.decode(raw[:-1])
        if not isinstance(document, Mapping) or document.get(_MARK) != VERSION:
            raise EvidenceFailed("it is no receipt of a migration, or one of another version")
        migration, logs = document.get("migration"), document.get("logs")
        if not isinstance(migration, str) or not isinstance(logs, list):
            raise EvidenceFailed("it names no migration, or holds no logs")
        missing = document.get("missing", [])
        if not isinstance(missing, list):
            raise EvidenceFailed("what is missing in it is no list")
        return cls(migration, tuple(_part(log) for log in logs), tuple(_missing(each) for each in missing))

    def entries(self) -> list[Recorded]:
        """The entries of all logs, in the order of their times. EvidenceFailed if one is none."""
        return sorted(
            (Recorded.decode(each.raw) for part in self.parts for each in part.entries), key=lambda each: each.time
        )


def _part(log: Value) -> Part:
    if not isinstance(log, Mapping) or not isinstance(log.get("key"), str) or not isinstance(log.get("entries"), list):
        raise EvidenceFailed("one of its logs has no key, or no entries")
    try:
        key = Key.parse(str(log["key"]))
    except UsageError as error:
        raise EvidenceFailed(f"one of its logs has no key: {error.message}") from error
    entries = log["entries"]
    return Part(key, tuple(_proved(each) for each in entries) if isinstance(entries, list) else ())


def _missing(each: Value) -> Missing:
    log, entries = (each.get("log"), each.get("entries")) if isinstance(each, Mapping) else (None, None)
    indexes = [index for index in entries if not count(index)] if isinstance(entries, list) else []
    if not isinstance(log, str) or not indexes or indexes != entries:
        raise EvidenceFailed("what is missing in it is of no log, or names no entries")
    return Missing(log, tuple(cast("list[int]", indexes)))


def _proved(each: Value) -> Proved:
    if (
        isinstance(each, Mapping)
        and isinstance(entry := each.get("entry"), str)
        and isinstance(proof := each.get("proof"), str)
    ):
        return Proved(entry.encode(), Proof.decode(proof.encode()))
    raise EvidenceFailed("an entry in it has no text, or no proof")


def check(receipt: Receipt, keys: Iterable[Key] = (), witnesses: Iterable[Key] = ()) -> list[Finding]:
    """All that is wrong with a receipt, by the recipe above. Without `keys`, those in the receipt are believed."""
    known = list(keys)
    findings = []
    entries: list[Recorded] = []
    if not receipt.parts:
        findings.append(Finding(Check.RECEIPTS, "it holds no log"))
    for part in receipt.parts:
        if known and part.key not in known:
            findings.append(Finding(Check.RECEIPTS, f"the log {part.key} is none of those that are known here"))
        for each in part.entries:
            try:
                each.proof.check(each.raw, part.key)
                entries.append(_of_this(receipt, part, each))
            except EvidenceFailed as error:
                findings.append(Finding(Check.RECEIPTS, f"{part.key.name}: {error.message}", each.proof.index))
        findings += _witnessed(part, list(witnesses))
    delivery = Delivery()
    findings += [Finding(Check.DELIVERY, wrong) for entry in entries for wrong in delivery.add(entry)]
    return findings


def _of_this(receipt: Receipt, part: Part, each: Proved) -> Recorded:
    entry = Recorded.decode(each.raw)
    if (entry.origin, entry.sequence) != (part.key.name, each.proof.index):
        raise EvidenceFailed(
            f"the entry says that it is number {entry.sequence} of {entry.origin}, and its proof says otherwise"
        )
    if entry.text("migration") != receipt.migration:
        raise EvidenceFailed(f"the entry is about another migration, {ascii(entry.text('migration'))[:80]}")
    return entry


def _witnessed(part: Part, witnesses: Sequence[Key]) -> list[Finding]:
    findings = []
    for witness in (each for each in witnesses if each.name != part.key.name):
        try:
            if not all(each.proof.signed.cosigned([witness]) for each in part.entries):
                findings.append(
                    Finding(Check.WITNESSES, f"{part.key.name}: {witness.name} has not cosigned its checkpoint")
                )
        except EvidenceFailed as error:
            findings.append(Finding(Check.WITNESSES, f"{part.key.name}: {error.message}"))
    return findings


class Delivery:
    """What both ends say of each channel, gathered entry by entry."""

    def __init__(self) -> None:
        # By migration, channel, and what is said of it.
        self._said: dict[tuple[str, str, str], Value] = {}

    def add(self, entry: Recorded) -> list[str]:
        """What in this entry contradicts itself or those before, each as a sentence."""
        wrong = []
        for facts in ("seen", "claimed"):
            for channel in _channels(entry.facts(facts).get("channels")):
                name = f"{channel.get('kind')} {channel.get('label', '')}".strip()
                for said, value in channel.items():
                    what = said.rpartition("_")[2]
                    if what in _SAID and self._said.setdefault((entry.text("migration"), name, what), value) != value:
                        wrong.append(f"the two ends of the channel {name} do not name the same {_SAID[what]}")
        return wrong


_SAID = {"bytes": "number of bytes", "blake3": "digest"}


def _channels(value: Value) -> list[Mapping[str, Value]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
