"""The proof of a migration's disks: who wants one, what two readings say, and when the source may go."""

from __future__ import annotations

import pytest

from gateway.authorization.request import asked, digest
from gateway.migration import proof as rules
from landbridge.disk_tree import BLOCK, OUT, ZERO, Builder, root_of
from landbridge.errors import Conflict, ProtocolError
from landbridge.v1.agent_pb2 import DiskRuns, HashedDisk
from landbridge.v1.decision_pb2 import Decision
from landbridge.v1.types_pb2 import DiskProof, Migration, Policy, Proof, ProofOutcome

EQUAL, DIFFERS = ProofOutcome.PROOF_OUTCOME_EQUAL, ProofOutcome.PROOF_OUTCOME_DIFFERS
NOT_PROVED = ProofOutcome.PROOF_OUTCOME_NOT_PROVED
OTHER = b"x" * 32


def disk(*leaves: bytes, target: str = "vda", size: int = 0) -> HashedDisk:
    builder = Builder(len(leaves))
    for leaf in leaves:
        builder.add(leaf)
    return HashedDisk(target=target, size=size or len(leaves) * BLOCK, nodes=builder.nodes())


def migration(**fields: object) -> Migration:
    made = Migration(
        id="3f2a91c4-d07e", vm="web-01", source_site="fra", source_host="host-a", destination_host="host-b"
    )
    made.MergeFrom(Migration(**fields))  # type: ignore[arg-type]  # the caller's keywords, checked by protobuf
    return made


def concluded(disks: list[DiskProof]) -> Proof:
    proof = Proof(disks=disks)
    rules.conclude(proof, migration())
    return proof


def test_either_who_asks_or_a_policy_wants_a_proof() -> None:
    assert not rules.is_wanted(migration(decisions=[Decision(site="fra"), Decision(site="ams")]))
    assert rules.is_wanted(migration(policy=Policy(verify_disks=True)))
    assert rules.is_wanted(migration(decisions=[Decision(site="fra"), Decision(site="ams", verify_disks=True)]))


def test_that_a_proof_is_asked_for_is_part_of_what_is_approved() -> None:
    plain, proved = migration(policy=Policy()), migration(policy=Policy(verify_disks=True))
    assert digest(plain) != digest(proved)
    assert digest(asked(proved)) == digest(proved)


def test_equal_disks_are_equal_and_what_was_left_out_is_counted() -> None:
    here = there = [disk(ZERO, OUT, OTHER, size=3 * BLOCK - 5)]
    (found,) = rules.compare(here, there, [DiskRuns(target="vda", runs=[1, 1])])
    assert (found.blocks_compared, found.blocks_written, list(found.differing)) == (2, 1, [])
    assert found.source_root == found.destination_root == root_of(here[0].nodes, 3).hex()
    assert concluded([found]).outcome == EQUAL
    assert concluded([]).outcome == EQUAL


def test_where_disks_differ_is_said_and_the_last_block_is_no_longer_than_the_disk() -> None:
    here = [disk(ZERO, ZERO, ZERO, size=3 * BLOCK - 5), disk(ZERO, target="vdb")]
    there = [disk(OTHER, target="vdb"), disk(ZERO, ZERO, OTHER, size=3 * BLOCK - 5)]
    found = rules.compare(here, there, [])
    assert [(each.offset, each.length) for each in found[0].differing] == [(2 * BLOCK, BLOCK - 5)]
    assert [each.bytes_differing for each in found] == [BLOCK - 5, BLOCK]
    proof = concluded(found)
    assert proof.outcome == DIFFERS
    assert (
        proof.reason
        == f"disk vda of web-01 differs between host-a and host-b, first at byte {2 * BLOCK} (and 1 more disks)"
    )


def test_only_the_first_of_many_differing_ranges_are_kept_and_all_are_counted() -> None:
    here, there = [disk(*[ZERO] * 40)], [disk(*[ZERO, OTHER] * 20)]
    (found,) = rules.compare(here, there, [])
    assert len(found.differing) == rules.MOST_RANGES
    assert found.bytes_differing == 20 * BLOCK


def test_a_disk_that_is_shorter_at_one_end_differs_behind_its_end() -> None:
    (found,) = rules.compare([disk(ZERO, ZERO)], [disk(ZERO)], [])
    assert [(each.offset, each.length) for each in found.differing] == [(BLOCK, BLOCK)]
    assert concluded([found]).outcome == DIFFERS


@pytest.mark.parametrize(
    ("there", "runs", "said"),
    [
        ([disk(ZERO, target="vdb")], [], "other disks: vda at the source, vdb at the destination"),
        ([], [], "none at the destination"),
        ([HashedDisk(target="vda", size=BLOCK, nodes=[b"short"])], [], "not the nodes"),
        ([disk(ZERO)], [0, 2], "beyond the disk"),
    ],
)
def test_what_cannot_be_compared_is_an_error_and_not_equal(there: list[HashedDisk], runs: list[int], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        rules.compare([disk(ZERO)], there, [DiskRuns(target="vda", runs=runs)])


WANTED = Policy(verify_disks=True)


@pytest.mark.parametrize(
    ("made", "waived", "refused"),
    [
        (migration(), "", ""),
        (migration(policy=WANTED, proof=Proof(outcome=EQUAL)), "", ""),
        (migration(policy=WANTED), "", "they were not compared"),
        (migration(policy=WANTED, proof=Proof(outcome=NOT_PROVED, reason="host-b is away")), "", "host-b is away"),
        (migration(policy=WANTED, proof=Proof(outcome=NOT_PROVED)), "checked by hand", ""),
        (migration(policy=WANTED, proof=Proof(outcome=DIFFERS, reason="disk vda differs")), "", "disk vda differs"),
        (migration(policy=WANTED, proof=Proof(outcome=DIFFERS)), "checked by hand", "only good copy"),
        (migration(proof=Proof(outcome=DIFFERS)), "", "only good copy"),
    ],
)
def test_the_source_goes_only_when_it_is_known_not_to_be_needed(made: Migration, waived: str, refused: str) -> None:
    if not refused:
        rules.require_settleable(made, waived)
        return
    with pytest.raises(Conflict, match=refused):
        rules.require_settleable(made, waived)
