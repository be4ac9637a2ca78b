"""Enrolment tokens: what an operator carries to a new host. Pure, but for the making of secrets.

    lb1.<hash of the root>.<id>.<secret>.<addresses>

The parts after "lb1" are base64url without padding. The hash is the SHA-256 of the root's SubjectPublicKeyInfo, by which the host
knows its gateway before it has any certificate; the id is how the gateway finds the token, of which it keeps a hash only; the
addresses, with commas between them, are where its site's gateways take enrolments.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from landbridge.config import Address, parse_address
from landbridge.errors import UsageError

VERSION = "lb1"
TOKEN_CHARACTERS = 1024
SECRET_BYTES = 32
ID_BYTES = 9


@dataclass(frozen=True)
class Token:
    """A token's parts. `str()` is the token."""

    root_hash: bytes
    id: str
    secret: str
    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        addresses = ",".join(map(str, self.addresses)).encode()
        return ".".join((VERSION, _encoded(self.root_hash), self.id, self.secret, _encoded(addresses)))

    def __repr__(self) -> str:
        return f"Token({self.id!r})"  # the secret stays out of logs

    def is_for(self, root: x509.Certificate) -> bool:
        """Whether this is the root that it was made under."""
        return hmac.compare_digest(root_hash(root), self.root_hash)


def make(root: x509.Certificate, addresses: Sequence[Address]) -> Token:
    """A new one."""
    id_, secret = _encoded(secrets.token_bytes(ID_BYTES)), _encoded(secrets.token_bytes(SECRET_BYTES))
    return Token(root_hash(root), id_, secret, tuple(addresses))


def parse(text: str) -> Token:
    """Read a token. Raises UsageError, which does not repeat it."""
    parts = text.strip().split(".")
    try:
        hash_, id_, secret, addresses = (_decoded(part) for part in parts[1:])
        where = tuple(parse_address(each) for each in addresses.decode("ascii").split(","))
        is_whole = parts[0] == VERSION and [len(hash_), len(id_), len(secret)] == [32, ID_BYTES, SECRET_BYTES]
    except (ValueError, binascii.Error):
        is_whole = False
    if not is_whole or len(text) > TOKEN_CHARACTERS:
        raise UsageError(
            f"That is no token ({VERSION}. and four more parts): give it whole, as `landbridge hosts enroll` has printed it."
        )
    return Token(hash_, parts[2], parts[3], where)


def secret_hash(secret: str) -> bytes:
    """What the gateway keeps of it: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def root_hash(root: x509.Certificate) -> bytes:
    """SHA-256 of the root's key."""
    return hashlib.sha256(root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encoded(data) != text:
        raise ValueError("a second spelling of the same bytes")
    return data
