"""Checkpoints (C2SP tlog-checkpoint): the head of a log's tree in a signed note, and what witnesses add to it (tlog-cosignature).

    <origin>                        the log
    <size>                          of the tree, in decimal
    <base64 root>                   RFC 6962

    — <origin> ...                  the log's Ed25519 signature over these three lines
    — <witness> ...                 a cosignature: time (u64), and Ed25519 over "cosignature/v1\\ntime <time>\\n" and the three lines;
                                    or ML-DSA-44 over a structure of witness, time, origin, size and root

Pure.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from gateway.audit.note import SIGNATURE_BYTES, Key, KeyType, Note, Signature, Signer
from gateway.audit.tree import HASH_BYTES
from landbridge.errors import EvidenceFailed

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_TIME_BYTES = 8
_LATEST = (1 << 63) - 1
_COSIGNS = (KeyType.COSIGNATURE, KeyType.ML_DSA_44)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """EvidenceFailed if the text of a note is no checkpoint; lines behind the third are refused, for we write none."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
            raise EvidenceFailed("it is no checkpoint: no origin, size and root, each in its line")
        try:
            root = base64.b64decode(lines[2], validate=True)
        except (binascii.Error, ValueError):
            root = b""
        checkpoint = cls(lines[0], int(lines[1]), root)
        if len(root) != HASH_BYTES or checkpoint.text != text:
            raise EvidenceFailed("it is no checkpoint: its third line is not the base64 of 32 bytes")
        return checkpoint


@dataclass(frozen=True, slots=True)
class Cosigned:
    """What one witness says: at `time`, seconds since the epoch, this was the newest head that it had seen."""

    name: str
    time: int


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint with the note that it came in."""

    checkpoint: Checkpoint
    note: Note

    def encode(self) -> bytes:
        """The note's bytes."""
        return self.note.encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read, not verified yet. EvidenceFailed if it is no checkpoint."""
        note = Note.decode(raw)
        return cls(Checkpoint.parse(note.text), note)

    def check(self, key: Key) -> None:
        """EvidenceFailed unless the log with this key has signed it, and it is that log's."""
        if self.checkpoint.origin != key.name:
            raise EvidenceFailed(
                f"the checkpoint is of the log {ascii(self.checkpoint.origin)[:120]}, not of {key.name}: it is another log's"
            )
        found = [each for each in self.note.signatures if each.is_by(key)]
        if not found:
            raise EvidenceFailed(f"the checkpoint is not signed by {key.name} with the key {key.id.hex()}")
        if not all(key.verifies(each.value, self.note.text.encode()) for each in found):
            raise EvidenceFailed(
                f"the signature of {key.name} under the checkpoint is wrong: its text was changed, or forged"
            )

    def cosigned(self, witnesses: Iterable[Key]) -> list[Cosigned]:
        """The cosignatures of these witnesses; EvidenceFailed if one of them is forged. Others are not looked at."""
        return [self._cosigned(each, key) for key in witnesses for each in self.note.signatures if each.is_by(key)]

    def _cosigned(self, signature: Signature, key: Key) -> Cosigned:
        time = int.from_bytes(signature.value[:_TIME_BYTES], "big")
        value = signature.value[_TIME_BYTES:]
        well_formed = key.type in _COSIGNS and len(value) == SIGNATURE_BYTES[key.type] and time <= _LATEST
        if not well_formed or not key.verifies(value, _message(key, self.checkpoint, time)):
            raise EvidenceFailed(f"the cosignature of the witness {key.name} is wrong: it was changed, or forged")
        return Cosigned(key.name, time)

    def added(self, signatures: Iterable[Signature]) -> Self:
        """With more signatures; a witness's earlier one gives way to its new one."""
        new = {(each.name, each.key_id): each for each in signatures}
        kept = [each for each in self.note.signatures if (each.name, each.key_id) not in new]
        return type(self)(self.checkpoint, Note(self.note.text, (*kept, *new.values())))


def sign(checkpoint: Checkpoint, signer: Signer) -> Signed:
    """The checkpoint as a log signs it; `signer` bears the log's origin as its name."""
    return Signed(checkpoint, Note(checkpoint.text, (signer.sign(checkpoint.text),)))


def cosign(checkpoint: Checkpoint, signer: Signer, time: int) -> Signature:
    """A witness's signature at `time`, seconds since the epoch. Whoever calls has checked that the log is consistent."""
    key = signer.cosigning
    value = signer.private.sign(_message(key, checkpoint, time))
    return Signature(signer.name, key.id, time.to_bytes(_TIME_BYTES, "big") + value)


def _message(key: Key, checkpoint: Checkpoint, time: int) -> bytes:
    """What a witness signs: tlog-cosignature, "Ed25519 signed message" and "ML-DSA-44 signed message"."""
    if key.type is KeyType.COSIGNATURE:
        return f"cosignature/v1\ntime {time}\n{checkpoint.text}".encode()
    name, origin = key.name.encode(), checkpoint.origin.encode()
    if max(len(name), len(origin)) > 255:
        raise EvidenceFailed(
            f"{checkpoint.origin[:80]} cannot be cosigned by ML-DSA-44: a name has more than 255 bytes"
        )
    whole_tree = struct.pack(">QQ", 0, checkpoint.size) + checkpoint.root
    return b"".join(
        (b"subtree/v1\n\0", bytes([len(name)]), name, struct.pack(">Q", time), bytes([len(origin)]), origin, whole_tree)
    )
