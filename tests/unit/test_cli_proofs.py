"""What the command line says of the proof of a migration's disks."""

from __future__ import annotations

import pytest

from gateway.cli import proofs, summary
from gateway.cli.views import line
from landbridge.v1.types_pb2 import (
    MIGRATION_STATE_COMPLETED,
    MIGRATION_STATE_VERIFYING,
    PROOF_OUTCOME_DIFFERS,
    PROOF_OUTCOME_EQUAL,
    PROOF_OUTCOME_NOT_PROVED,
    PROOF_OUTCOME_UNDER_WAY,
    ByteRange,
    DiskProof,
    Proof,
    ProofOutcome,
)
from tests.unit.fake_gateway import MIB, completed, migration

DISK = DiskProof(
    target="vda", size=64 * MIB, source_root="ab", destination_root="ab", blocks_compared=1000, blocks_written=24
)
OTHER = DiskProof(
    target="vdb",
    size=MIB,
    source_root="ab",
    destination_root="cd",
    blocks_compared=16,
    differing=[ByteRange(offset=65536, length=65536)],
    bytes_differing=65536,
)


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (
            Proof(outcome=PROOF_OUTCOME_EQUAL, disks=[DISK], downtime_us=1234),
            "1 disk is equal at both ends: 62.5 MiB compared, 1.5 MiB written since are left out; 1.2 ms of the downtime",
        ),
        (Proof(outcome=PROOF_OUTCOME_EQUAL), "0 disks are equal at both ends: 0 B compared; 0.0 ms of the downtime"),
        (
            Proof(outcome=PROOF_OUTCOME_DIFFERS, reason="disk vdb differs"),
            "DIFFERS: disk vdb differs; the source is kept",
        ),
        (
            Proof(outcome=PROOF_OUTCOME_NOT_PROVED, reason="no\x1banswer"),
            "not proved: no\ufffdanswer; the source is kept",
        ),
        (Proof(outcome=PROOF_OUTCOME_UNDER_WAY, bytes_done=3, bytes_total=4), "under way, 75 %"),
        (Proof(outcome=PROOF_OUTCOME_UNDER_WAY, reason="ams waits"), "under way, 0 %, ams waits"),
    ],
)
def test_an_outcome_is_one_sentence(proof: Proof, said: str) -> None:
    assert proofs.sentence(proof) == said
    assert ("disk proof", said) in list(summary.pairs(completed(proof=proof)))


def test_each_disk_is_told_with_its_roots_and_where_it_differs() -> None:
    assert list(proofs.pairs(Proof(disks=[DISK, OTHER]))) == [
        ("disk vda", "64.0 MiB, root ab"),
        (
            "disk vdb",
            "1.0 MiB, 64.0 KiB may differ: bytes 65536 to 131071; root ab at the source, cd at the destination",
        ),
    ]


@pytest.mark.parametrize(("outcome", "offered"), [(PROOF_OUTCOME_EQUAL, True), (PROOF_OUTCOME_DIFFERS, False)])
def test_settling_is_offered_only_where_it_is_not_refused(
    outcome: ProofOutcome.ValueType, offered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    summary.show(completed(proof=Proof(outcome=outcome)))
    assert ("landbridge settle" in capsys.readouterr().out) is offered
    assert completed().state == MIGRATION_STATE_COMPLETED


def test_a_line_of_the_progress_says_how_far_the_proof_is() -> None:
    proof = Proof(outcome=PROOF_OUTCOME_UNDER_WAY, bytes_done=1, bytes_total=2)
    assert line(migration(MIGRATION_STATE_VERIFYING, proof=proof)).split() == ["0:00", "verifying", "50", "%"]
