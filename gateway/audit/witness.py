"""What a witness answers to a log that wants a head cosigned (C2SP tlog-witness, add-checkpoint). Pure.

    old <size>               of the newest head that the witness has recorded, as far as the log knows
    <base64 hash> ...        that the new head goes on from there (RFC 6962, 2.1.2); none if that size is 0

    <checkpoint>             the new head, signed by the log

The rules of `judge`, in this order, and the attack that each one stops:

    1. 404  the log is one of those that are witnessed here          a witness made to vouch for anything
    2. 403  its signature is of the key that is known of it          heads that the log never signed
    3. 400  the old size is not above the new one                    a log that shrinks
    4. 409  the old size is that of the recorded head                two heads that go on from one and the same
    5. 422  an empty tree has the empty root; the proof holds;       another history
            the same size has the same root

A witness that goes by them, and makes its record durable before it answers, never signs two heads of a log that do not fit together.
What a log shows that does not fit to the record is an `Alarm`, if it cannot be the doing of anybody else.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass
from typing import Self

from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.note import Key
from gateway.audit.tree import EMPTY_ROOT, HASH_BYTES, check_consistency
from landbridge.errors import EvidenceFailed

MOST_HASHES = 63
MOST_BYTES = 64 * 1024  # a checkpoint with the signatures of its log; not those of witnesses

# Seconds after which a head that is smaller than the recorded one was not just held up on its way: twice the deadline of a call.
LATE = 20

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


class Status(enum.IntEnum):
    """The answers, by their numbers in HTTP."""

    COSIGNED = 200
    MALFORMED = 400
    UNTRUSTED = 403
    UNKNOWN = 404
    CONFLICT = 409
    INCONSISTENT = 422


@dataclass(frozen=True, slots=True)
class Submission:
    """A head that is to be cosigned, and the proof that it goes on from one of `old` entries."""

    old: int
    proof: tuple[bytes, ...]
    signed: Signed

    def encode(self) -> bytes:
        """The body of a request."""
        lines = [f"old {self.old}", *(base64.b64encode(each).decode() for each in self.proof), ""]
        return "".join(f"{line}\n" for line in lines).encode() + self.signed.encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """EvidenceFailed if it is no such body, or has more than MOST_BYTES."""
        head, blank, checkpoint = raw.partition(b"\n\n")
        lines = head.decode("ascii", "replace").split("\n")
        match = _OLD.fullmatch(lines[0])
        if len(raw) > MOST_BYTES or not blank or not match:
            raise EvidenceFailed("it is no request for a cosignature: its first line is not an old size")
        return cls.checked(int(match[1]), tuple(_hash(line) for line in lines[1:]), checkpoint)

    @classmethod
    def checked(cls, old: int, proof: tuple[bytes, ...], checkpoint: bytes) -> Self:
        """Of parts that came from elsewhere. EvidenceFailed if they cannot be what they should."""
        if len(proof) > MOST_HASHES or any(len(each) != HASH_BYTES for each in proof) or len(checkpoint) > MOST_BYTES:
            raise EvidenceFailed(
                f"a proof has at most {MOST_HASHES} hashes of {HASH_BYTES} bytes, and one of them is none"
            )
        return cls(old, proof, Signed.decode(checkpoint))


def _hash(line: str) -> bytes:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    return raw if base64.b64encode(raw).decode() == line else b""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a submission is answered; `reason` is a sentence without full stop, empty if it is cosigned."""

    status: Status
    reason: str = ""


def judge(asked: Submission, key: Key | None, recorded: Checkpoint | None) -> Judgement:
    """By the rules above. `key` is what is known of the log, None if nothing; `recorded` the newest head that was cosigned."""
    head = asked.signed.checkpoint
    if key is None:
        return Judgement(Status.UNKNOWN, f"the log {ascii(head.origin)[:120]} is none of those that are witnessed here")
    try:
        asked.signed.check(key)
    except EvidenceFailed as error:
        return Judgement(Status.UNTRUSTED, error.message)
    if asked.old > head.size:
        return Judgement(Status.MALFORMED, f"a head of {head.size} entries does not go on from one of {asked.old}")
    size = recorded.size if recorded else 0
    if asked.old != size:
        return Judgement(Status.CONFLICT, f"the newest head that was cosigned has {size} entries, not {asked.old}")
    if not head.size and head.root != EMPTY_ROOT:
        return Judgement(Status.INCONSISTENT, "an empty tree has the hash of nothing as its root")
    wrong = unproved(asked, recorded or Checkpoint(head.origin, 0, EMPTY_ROOT))
    return Judgement(Status.INCONSISTENT, wrong) if wrong else Judgement(Status.COSIGNED)


def unproved(asked: Submission, recorded: Checkpoint) -> str:
    """Why the head does not go on from the recorded one, as a sentence; "" if it does."""
    head = asked.signed.checkpoint
    try:
        check_consistency(recorded.size, recorded.root, head.size, head.root, asked.proof)
    except EvidenceFailed as error:
        return error.message
    return ""


# Logs that show what does not fit.


class Kind(enum.StrEnum):
    """In which way."""

    # The recorded head is not the beginning of the one that was shown.
    REWRITTEN = "rewritten"
    # A smaller head was shown, after the recorded one.
    ROLLED_BACK = "rolled-back"
    # The head is signed by another key.
    REKEYED = "rekeyed"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Two heads of one log that do not fit together, each as its log has signed it: evidence that verifies."""

    kind: Kind
    # Seconds since the epoch.
    time: int
    recorded: Signed
    shown: Signed

    def sentence(self, whose: str) -> str:
        """For operators, without full stop; `whose` is "site fra", or "this site"."""
        old, new = self.recorded.checkpoint, self.shown.checkpoint
        return (
            f"{whose} has shown two histories: its log {old.origin} {_SHOWN[self.kind]}; "
            f"recorded were {_head(old)}, shown {_head(new)}"
        )


_SHOWN = {
    Kind.REWRITTEN: "was rewritten",
    Kind.ROLLED_BACK: "was rolled back to an older state",
    Kind.REKEYED: "is signed by another key than before",
}


def _head(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.size} entries with the root {checkpoint.root.hex()}"


def lines(signed: Signed) -> list[str]:
    """A signed note as an entry holds it: its lines, but the blank one. None of them is longer than an entry's text may be."""
    return [line for line in signed.encode().decode().split("\n") if line]


def by_its_log(signed: Signed, key: Key) -> Signed:
    """The head with its log's own signature alone."""
    note = signed.note
    return Signed(signed.checkpoint, type(note)(note.text, tuple(each for each in note.signatures if each.is_by(key))))


def suspect(asked: Submission, recorded: Signed, age: float, now: int, *, is_log: bool) -> Alarm | None:
    """What a submission shows that cannot be so if the log is honest. Its signature has been checked.

    `is_log`: it was brought by the log itself, as its connection proves. Of strangers, only what proves itself counts: heads are
    public, and anybody can put a wrong proof beside one. `age` is how many seconds ago `recorded` was brought first.
    """
    old, new = recorded.checkpoint, asked.signed.checkpoint
    if old.size == new.size and old.root != new.root:
        return Alarm(Kind.REWRITTEN, now, recorded, asked.signed)
    if is_log and asked.old == old.size < new.size and unproved(asked, old):
        return Alarm(Kind.REWRITTEN, now, recorded, asked.signed)
    if is_log and new.size < old.size and age > LATE:
        return Alarm(Kind.ROLLED_BACK, now, recorded, asked.signed)
    return None
