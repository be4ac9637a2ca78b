"""One entry's inclusion in a log, as a file that verifies offline (C2SP tlog-proof, named .tlog-proof). Pure.

c2sp.org/tlog-proof@v1
extra <base64>                  optional, and vouched for by nobody
index <n>
<base64 hash>                   the proof of inclusion, from the leaf's sibling up

<checkpoint>
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Self

from gateway.audit.checkpoint import Signed
from gateway.audit.note import Key
from gateway.audit.tree import HASH_BYTES, leaf_hash, root_from_inclusion
from landbridge.errors import EvidenceFailed

_HEAD = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")
MOST_BYTES = 512 * 1024
MOST_HASHES = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """That the entry `index` is in the tree of a checkpoint."""

    index: int
    hashes: tuple[bytes, ...]
    signed: Signed
    extra: bytes = b""

    def encode(self) -> bytes:
        """The file's bytes."""
        lines = [_HEAD, *([f"extra {_base64(self.extra)}"] if self.extra else []), f"index {self.index}"]
        lines += [_base64(each) for each in self.hashes]
        return "".join(f"{line}\n" for line in [*lines, ""]).encode() + self.signed.encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read, not verified yet. EvidenceFailed if it is no such file."""
        head, blank, checkpoint = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise EvidenceFailed("it is no tlog-proof: not in ASCII") from error
        if len(raw) > MOST_BYTES or not blank or lines[0] != _HEAD:
            raise EvidenceFailed(f"it is no tlog-proof: its first line is not {_HEAD}")
        extra = b""
        if len(lines) > 1 and lines[1].startswith("extra "):
            extra = _unbase64(lines.pop(1).removeprefix("extra "))
        match = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
        if not match:
            raise EvidenceFailed("it is no tlog-proof: it names no index")
        hashes = tuple(_unbase64(line) for line in lines[2:])
        if len(hashes) > MOST_HASHES or any(len(each) != HASH_BYTES for each in hashes):
            raise EvidenceFailed("it is no tlog-proof: a line of the proof is no hash of 32 bytes")
        return cls(int(match[1]), hashes, Signed.decode(checkpoint), extra)

    def check(self, entry: bytes, key: Key) -> None:
        """EvidenceFailed unless the log with this key has signed a tree with this entry at `index`."""
        self.signed.check(key)
        checkpoint = self.signed.checkpoint
        if root_from_inclusion(self.index, checkpoint.size, leaf_hash(entry), self.hashes) != checkpoint.root:
            raise EvidenceFailed(
                f"entry {self.index} is not in the tree that {checkpoint.origin} signed: it was changed, or never logged"
            )


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unbase64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if _base64(raw) != text:
        raise EvidenceFailed("it is no tlog-proof: a line is not base64")
    return raw
