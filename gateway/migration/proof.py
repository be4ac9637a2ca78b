"""The proof of a migration's disks: who wants one, what two readings say, and what it means for what was left at the source. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from landbridge import disk_tree
from landbridge.disk_tree import BLOCK
from landbridge.errors import Conflict, ProtocolError
from landbridge.v1.agent_pb2 import DiskRuns, HashedDisk
from landbridge.v1.types_pb2 import ByteRange, DiskProof, Migration, Proof, ProofOutcome

# Of one disk.
MOST_RANGES = 8


def is_wanted(migration: Migration) -> bool:
    """Whether whoever asked for the migration, or the policy of either site, wants its disks compared."""
    return migration.policy.verify_disks or any(decision.verify_disks for decision in migration.decisions)


def compare(here: Sequence[HashedDisk], there: Sequence[HashedDisk], left_out: Sequence[DiskRuns]) -> list[DiskProof]:
    """Each disk, as the source and the destination have hashed it. Raises ProtocolError for what cannot be compared."""
    theirs = {disk.target: disk for disk in there}
    runs = {each.target: each.runs for each in left_out}
    if set(theirs) != {disk.target for disk in here}:
        raise ProtocolError(
            f"the hosts have read other disks: {_names(here)} at the source, {_names(there)} at the destination"
        )
    return [_compare(disk, theirs[disk.target], runs.get(disk.target, ())) for disk in here]


def _compare(here: HashedDisk, there: HashedDisk, runs: Sequence[int]) -> DiskProof:
    proof = DiskProof(target=here.target, size=here.size)
    try:
        blocks, others = disk_tree.blocks_of(here.size), disk_tree.blocks_of(there.size)
        proof.source_root = disk_tree.root_of(here.nodes, blocks).hex()
        proof.destination_root = disk_tree.root_of(there.nodes, others).hex()
        proof.blocks_written = sum(run.count for run in disk_tree.unpacked(runs, others))
    except ValueError as error:
        raise ProtocolError(f"disk {here.target} was not read in a way that can be compared: {error}") from error
    proof.blocks_compared = min(blocks, others) - min(proof.blocks_written, blocks, others)
    if here.size != there.size:
        shorter, longer = sorted((here.size, there.size))
        proof.differing.append(ByteRange(offset=shorter, length=longer - shorter))
        proof.bytes_differing = longer - shorter
        return proof
    for run in disk_tree.differing(here.nodes, there.nodes, blocks):
        length = min(run.end * BLOCK, here.size) - run.first * BLOCK
        proof.bytes_differing += length
        if len(proof.differing) < MOST_RANGES:
            proof.differing.append(ByteRange(offset=run.first * BLOCK, length=length))
    return proof


def conclude(proof: Proof, migration: Migration) -> None:
    """Take the outcome from the disks."""
    wrong = [disk for disk in proof.disks if disk.differing or disk.source_root != disk.destination_root]
    if not wrong:
        proof.outcome, proof.reason = ProofOutcome.PROOF_OUTCOME_EQUAL, ""
        return
    proof.outcome = ProofOutcome.PROOF_OUTCOME_DIFFERS
    first = wrong[0]
    where = f" at byte {first.differing[0].offset}" if first.differing else ""
    more = f" (and {len(wrong) - 1} more disks)" if len(wrong) > 1 else ""
    proof.reason = (
        f"disk {first.target} of {migration.vm} differs between {migration.source_host} and {migration.destination_host}, "
        f"first{where}{more}"
    )


def require_settleable(migration: Migration, without_proof: str) -> None:
    """Raises Conflict where the source must stay: its disks differ, or the proof that was wanted is not there and not waived."""
    proof = migration.proof
    source, id_ = f"{migration.source_site}/{migration.source_host}", migration.id[:8]
    if proof.outcome == ProofOutcome.PROOF_OUTCOME_DIFFERS:
        raise Conflict(
            f"{proof.reason}: what is left at {source} may be the only good copy, and is not removed; compare the two "
            f"(landbridge show {id_}), and remove the wrong one by hand"
        )
    if not is_wanted(migration) or proof.outcome == ProofOutcome.PROOF_OUTCOME_EQUAL or without_proof:
        return
    why = proof.reason or "they were not compared"
    raise Conflict(
        f"the disks of {migration.vm} were to be proved equal, and are not ({why}): what is left at {source} is not removed; "
        f"an admin may say why it can be all the same, with landbridge settle {id_} --without-proof REASON"
    )


def _names(disks: Sequence[HashedDisk]) -> str:
    return ", ".join(sorted(disk.target for disk in disks)) or "none"
