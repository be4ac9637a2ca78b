"""Signed notes (C2SP signed-note): a text, a blank line, and a line for each signature. Pure.

    — <key name> <base64(key id (4 bytes) || signature)>

A key is written as a vkey: <name>+<hex key id>+<base64(type || public key)>, the id being the first 4 bytes of
SHA-256(name || 0x0a || type || public key).
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from landbridge.errors import EvidenceFailed, UsageError

MOST_BYTES = 256 * 1024
MOST_SIGNATURES = 64  # signed-note demands at least 16

_ID_BYTES = 4
_DASH = "— "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NAME = re.compile(r"[^\s+]{1,255}")


class KeyType(enum.IntEnum):
    """The signature types of signed-note that are known here."""

    ED25519 = 1
    COSIGNATURE = 4  # Ed25519 with a time, see `checkpoint`
    ML_DSA_44 = 6  # the same for quantum computers to come: FIPS 204


# Of public keys, and of signatures, without the time of a cosignature.
KEY_BYTES = MappingProxyType({KeyType.ED25519: 32, KeyType.COSIGNATURE: 32, KeyType.ML_DSA_44: 1312})
SIGNATURE_BYTES = MappingProxyType({KeyType.ED25519: 64, KeyType.COSIGNATURE: 64, KeyType.ML_DSA_44: 2420})


@dataclass(frozen=True, slots=True)
class Key:
    """A public key: whose notes it verifies, and which kind of signature."""

    name: str
    type: KeyType
    public: bytes

    def __post_init__(self) -> None:
        size = KEY_BYTES[self.type]
        if not _NAME.fullmatch(self.name) or len(self.public) != size:
            raise UsageError(
                f"{ascii(self.name)[:80]} is no key: a name has neither spaces nor a plus, a key of its type {size} bytes"
            )

    @property
    def id(self) -> bytes:
        """The 4 bytes by which a signature names its key."""
        return sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A vkey. UsageError if it is none, or of a type that is not known here."""
        name, _, rest = text.partition("+")
        raw = _unbase64(rest.partition("+")[2])
        if not raw or raw[0] not in tuple(KeyType) or len(raw) != 1 + KEY_BYTES[KeyType(raw[0])]:
            raise UsageError(f"{ascii(text)[:120]} is no key of a log or witness: give it as NAME+ID+KEY, in one line")
        key = cls(name, KeyType(raw[0]), raw[1:])
        if str(key) != text:
            raise UsageError(f"{ascii(text)[:120]} is a key whose id is not {key.id.hex()}: it was not copied whole")
        return key

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the plain signature, without a time, is this key's. EvidenceFailed if that cannot be told on this machine."""
        kind = MLDSA44PublicKey if self.type is KeyType.ML_DSA_44 else Ed25519PublicKey
        try:
            kind.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        except UnsupportedAlgorithm as error:
            raise EvidenceFailed(
                f"a signature of {self.name} is of ML-DSA-44, which the OpenSSL here does not have: check it on another machine"
            ) from error
        return True


@dataclass(frozen=True, slots=True)
class Signature:
    """One line of a note: who signed, by name and id, and the bytes."""

    name: str
    key_id: bytes
    value: bytes

    def is_by(self, key: Key) -> bool:
        """Whether it claims to be by this key."""
        return (self.name, self.key_id) == (key.name, key.id)

    def encode(self) -> str:
        """The line."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.value)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures, in the order in which they were put."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(each.encode() for each in self.signatures)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """EvidenceFailed if it is no signed note, or has more than MOST_BYTES or MOST_SIGNATURES."""
        if len(raw) > MOST_BYTES:
            raise EvidenceFailed(f"it is a note of {len(raw)} bytes, more than {MOST_BYTES}")
        try:
            whole = raw.decode()
        except UnicodeDecodeError as error:
            raise EvidenceFailed("it is no signed note: not UTF-8") from error
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not text or not lines.endswith("\n") or _CONTROL.search(whole):
            raise EvidenceFailed("it is no signed note: no text, a blank line, and signatures")
        signatures = tuple(_signature(line) for line in lines[:-1].split("\n"))
        if len(signatures) > MOST_SIGNATURES:
            raise EvidenceFailed(f"it is a note with more than {MOST_SIGNATURES} signatures")
        return cls(f"{text}\n", signatures)


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _unbase64(encoded)
    if not line.startswith(_DASH) or not _NAME.fullmatch(name) or raw is None or len(raw) <= _ID_BYTES:
        raise EvidenceFailed(f"it is no signed note: {ascii(line)[:80]} is no signature")
    return Signature(name, raw[:_ID_BYTES], raw[_ID_BYTES:])


@dataclass(frozen=True)
class Signer:
    """A private key under a name: of Ed25519, or for cosignatures also of ML-DSA-44. The key stays out of logs."""

    name: str
    private: Ed25519PrivateKey | MLDSA44PrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.name!r})"

    def key(self, kind: KeyType = KeyType.ED25519) -> Key:
        """The public key that verifies its signatures of this kind."""
        return Key(self.name, kind, self.private.public_key().public_bytes_raw())

    @property
    def cosigning(self) -> Key:
        """The public key that verifies its cosignatures."""
        return self.key(KeyType.COSIGNATURE if isinstance(self.private, Ed25519PrivateKey) else KeyType.ML_DSA_44)

    def sign(self, text: str) -> Signature:
        """Sign a note's text."""
        return Signature(self.name, self.key().id, self.private.sign(text.encode()))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unbase64(text: str) -> bytes | None:
    """None unless it is the one spelling of these bytes: else, another spelling would pass as the same signature."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if _base64(raw) == text else None
