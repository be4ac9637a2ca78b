"""What a log says of one migration, with the proofs, out of its directory. Reads only; beside the journal, in any thread."""

from __future__ import annotations

from gateway.audit.checkpoint import Signed
from gateway.audit.entry import Recorded
from gateway.audit.proof import Proof
from gateway.audit.receipt import Part, Proved
from gateway.audit.storage import Storage
from gateway.audit.tree import TILE, TileName, Tiles, unbundle
from landbridge.errors import Conflict, EvidenceFailed, NotRecorded

# Of a migration that goes all ways there are, and back many times.
MOST_ENTRIES = 1000


def prove(storage: Storage, signed: Signed, migration: str) -> Part:
    """The entries about `migration` below a checkpoint of this log.

    Conflict if there are more than MOST_ENTRIES, NotRecorded if the log cannot be read. What was pruned is left out.
    """
    size = signed.checkpoint.size
    tiles = Tiles(size, storage.read)
    proved: list[Proved] = []
    for number in range(-(-size // TILE)):
        first = number * TILE
        name = TileName(None, number, min(TILE, size - first))
        if not storage.has(name):
            continue
        try:
            raw = storage.read(name)
        except NotRecorded:
            if not storage.has(name):  # it was pruned just now
                continue
            raise
        # Most bundles have nothing to do with it, and need not be taken apart.
        if migration.encode() not in raw:
            continue
        for index, entry in enumerate(unbundle(raw), first):
            if migration.encode() in entry and _is_about(entry, migration):
                proved.append(Proved(entry, Proof(index, tuple(tiles.inclusion(index)), signed)))
        if len(proved) > MOST_ENTRIES:
            raise Conflict(
                f"the log has more than {MOST_ENTRIES} entries about migration {migration}: export them as a bundle"
            )
    return Part(storage.signer.key(), tuple(proved))


def _is_about(raw: bytes, migration: str) -> bool:
    try:
        return Recorded.decode(raw).text("migration") == migration
    except EvidenceFailed:  # `landbridge audit verify` names it
        return False
