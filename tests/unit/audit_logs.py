"""Logs to test with: of a few entries, of many, and copies of them in memory that can be tampered with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit import checkpoint as heads
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.entry import Entry
from gateway.audit.journal import commit
from gateway.audit.note import Key, KeyType, Signer
from gateway.audit.proof import Proof
from gateway.audit.receipt import Part, Proved, Receipt
from gateway.audit.storage import Storage

BRU, AMS = "example.org/site/bru", "example.org/site/ams"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MIGRATION = "0190a1b2-0000-7000-8000-000000000001"
WITNESS = Signer(AMS, Ed25519PrivateKey.from_private_bytes(b"w" * 32))
WITNESS_KEY = WITNESS.key(KeyType.COSIGNATURE)


def entry(number: int = 0, **fields: object) -> Entry:
    """An entry; another one for each number."""
    values: dict[str, object] = {
        "event": "migration.stepped",
        "id": f"id-{number}",
        "time": NOON + timedelta(seconds=number),
        "actor": {"id": "spiffe://example.org/site/bru/operator/alice", "role": "operator"},
        "migration": MIGRATION,
        "seen": {"state": {"from": "preparing", "to": "copying"}},
    }
    return Entry(**{**values, **fields})  # type: ignore[arg-type]  # any field may be replaced


def sent(digest: str = "a") -> dict[str, object]:
    """What a source says of a channel."""
    return {"kind": "ram", "label": "out", "sent_bytes": 4096, "sent_blake3": digest * 64}


def received(digest: str = "a") -> dict[str, object]:
    """What a destination says of the same."""
    return {"kind": "ram", "label": "out", "received_bytes": 4096, "received_blake3": digest * 64}


def written(directory: Path, count: int, origin: str = BRU, first: int = 0) -> Signed:
    """Begin a log, or go on with it, and return its newest checkpoint."""
    storage = Storage.open(directory, origin)
    try:
        for start in range(first, first + count, 1000):
            commit(storage, [entry(number) for number in range(start, min(start + 1000, first + count))])
        return storage.signed
    finally:
        storage.close()


def cosigned(directory: Path, time: int = 1_769_860_800) -> None:
    """Have the witness cosign the log's checkpoint."""
    storage = Storage.open(directory, BRU)
    storage.keep(storage.signed.added([heads.cosign(storage.signed.checkpoint, WITNESS, time)]))
    storage.close()


def signer(directory: Path, origin: str = BRU) -> Signer:
    """Who signs for a log: what an attacker has who has taken over the gateway."""
    storage = Storage.open(directory, origin)
    storage.close()
    return storage.signer


def resigned(checkpoint: Checkpoint, by: Signer) -> bytes:
    """A checkpoint file."""
    return heads.sign(checkpoint, by).encode()


def receipt(directory: Path, *indexes: int, origin: str = BRU, migration: str = MIGRATION) -> Receipt:
    """A receipt of these entries of one log."""
    return Receipt(migration, (part(directory, *indexes, origin=origin),))


def part(directory: Path, *indexes: int, origin: str = BRU) -> Part:
    """What one log adds to a receipt."""
    storage = Storage.open(directory, origin)
    tiles = storage.tiles()
    entries = tuple(
        Proved(next(storage.entries(index, index + 1)), Proof(index, tuple(tiles.inclusion(index)), storage.signed))
        for index in indexes
    )
    storage.close()
    return Part(storage.signer.key(), entries)


class Copy:
    """A log in memory, whose files can be changed."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    @classmethod
    def of(cls, directory: Path) -> Copy:
        """What a reader of the directory sees."""
        return cls(
            {
                str(path.relative_to(directory)): path.read_bytes()
                for path in directory.rglob("*")
                if path.is_file() and ".state" not in path.parts
            }
        )

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def paths(self) -> Iterator[str]:
        yield from sorted(self.files)

    def key(self) -> Key:
        return Key.parse(self.files["log.vkey"].decode().strip())
