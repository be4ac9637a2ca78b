"""What a verification finds wrong: which check, where, and what it means. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.audit.checkpoint import Cosigned

MOST_FINDINGS = 50


class Check(enum.IntEnum):
    """The steps of the recipe, by the numbers under which they are reported."""

    KEY = 1
    CHECKPOINT = 2
    ENTRIES = 3
    TREE = 4
    HISTORY = 5
    WITNESSES = 6
    RECEIPTS = 7
    DELIVERY = 8


MEANING = MappingProxyType(
    {
        Check.KEY: "Whose log this is cannot be told: nothing in it proves anything.",
        Check.CHECKPOINT: "The log's head is not what the site signed: somebody else has written or changed it.",
        Check.ENTRIES: "An entry is not what was recorded, or not where it was recorded: the record was tampered with.",
        Check.TREE: "The hashes that bind the entries together are not those that the site signed.",
        Check.HISTORY: "The log has shown another history before: entries were rewritten or taken away.",
        Check.WITNESSES: "Another site does not vouch for this history: it may be one that was made up later.",
        Check.RECEIPTS: "A receipt does not belong to this log, or is not what was issued.",
        Check.DELIVERY: "What arrived is not what was sent.",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `message` is a sentence without full stop; `entry` the index that it is about, if it is about one."""

    check: Check
    message: str
    entry: int | None = None

    @property
    def meaning(self) -> str:
        """What it means, in a sentence."""
        return MEANING[self.check]


@dataclass
class Report:
    """What a verification looked at, and what it found."""

    origin: str = ""
    key: str = ""
    # Whether whoever asks named the key, or it was taken from beside the log.
    key_is_given: bool = False
    size: int = 0
    root: bytes = b""
    # Entries below are pruned, as the entry number `pruned_by` says.
    minimum: int = 0
    pruned_by: int | None = None
    # Entries that were read.
    entries: int = 0
    first_time: str = ""
    last_time: str = ""
    # Up to which size the witnesses that were asked for have cosigned.
    cosigned: list[tuple[Cosigned, int]] = field(default_factory=list)
    receipts: int = 0
    # Of a receipt that was checked alone; and what it lacks, as it says itself, each in words.
    migration: str = ""
    missing: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    # Findings beyond MOST_FINDINGS.
    more: int = 0

    def add(self, check: Check, message: str, entry: int | None = None) -> None:
        """Report something that is wrong."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, message, entry))
        else:
            self.more += 1

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings
