"""What the command line says of the proof of a migration's disks."""

from collections.abc import Iterator

from gateway.cli import words
from landbridge.v1.types_pb2 import (
    PROOF_OUTCOME_DIFFERS,
    PROOF_OUTCOME_EQUAL,
    PROOF_OUTCOME_NOT_PROVED,
    DiskProof,
    Migration,
    Proof,
)

# Bytes of a block.
BLOCK = 1 << 16


def holds_back(migration: Migration) -> bool:
    """Whether what is left at the source is not to be settled for now."""
    return migration.HasField("proof") and migration.proof.outcome != PROOF_OUTCOME_EQUAL


def sentence(proof: Proof) -> str:
    """What came of it."""
    if proof.outcome == PROOF_OUTCOME_EQUAL:
        compared = sum(disk.blocks_compared for disk in proof.disks)
        written = sum(disk.blocks_written for disk in proof.disks)
        count = f"{len(proof.disks)} disks are" if len(proof.disks) != 1 else "1 disk is"
        since = f", {words.size(written * BLOCK)} written since are left out" if written else ""
        cost = f"{proof.downtime_us / 1000:.1f} ms of the downtime"
        return f"{count} equal at both ends: {words.size(compared * BLOCK)} compared{since}; {cost}"
    if proof.outcome == PROOF_OUTCOME_DIFFERS:
        return f"DIFFERS: {words.safe(proof.reason)}; the source is kept"
    if proof.outcome == PROOF_OUTCOME_NOT_PROVED:
        return f"not proved: {words.safe(proof.reason)}; the source is kept"
    return f"under way, {progress(proof)}"


def progress(proof: Proof) -> str:
    """How far it is."""
    done = f"{words.percent(proof.bytes_done, proof.bytes_total)} %" if proof.bytes_total else "0 %"
    return f"{done}, {words.safe(proof.reason)}" if proof.reason else done


def pairs(proof: Proof) -> Iterator[tuple[str, str]]:
    """Each disk."""
    for disk in proof.disks:
        yield f"disk {words.safe(disk.target)}", _disk(disk)


def _disk(disk: DiskProof) -> str:
    if disk.source_root == disk.destination_root and not disk.differing:
        return f"{words.size(disk.size)}, root {disk.source_root}"
    ranges = ", ".join(f"{each.offset} to {each.offset + each.length - 1}" for each in disk.differing)
    return (
        f"{words.size(disk.size)}, {words.size(disk.bytes_differing)} may differ: bytes {ranges}; root {disk.source_root} "
        f"at the source, {disk.destination_root} at the destination"
    )
