"""Laws of a witness: whatever it is asked, in whatever order, and wherever it dies, all that it has ever cosigned is one history."""

from __future__ import annotations

import contextlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import cast
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.journal import Journal
from gateway.audit.note import Key
from gateway.audit.witness import Status, Submission, judge
from gateway.audit.witness_keeper import Witness
from gateway.audit.witness_records import Records
from landbridge import durable
from landbridge.errors import EvidenceFailed, NotRecorded
from tests.unit.audit_logs import AMS
from tests.unit.test_audit_witness import LOG, asked, head, tree

_HISTORIES = "abc"
_SIZES = st.integers(0, 12)
# What becomes of the file in which the record is kept: written; not written; written, and the system says no, or the machine stops.
_FATES = ("kept", "refused", "kept-and-refused", "killed-before", "killed-after", "lost")


class Killed(BaseException):
    """The process is gone."""


class Own:
    """A journal of which only the name is asked."""

    key = Key(AMS, LOG.key().type, bytes(32))


def written(fate: str) -> object:
    """The write of a file, with this fate."""
    write = durable.write

    def fated(path: Path, data: bytes) -> None:
        if fate == "refused":
            raise OSError(28, "No space left on device")
        if fate == "killed-before":
            raise Killed
        before = path.read_bytes() if path.exists() else None
        write(path, data)
        if fate == "lost":
            # The rename was not synced: after a loss of power, the old file is there again.
            path.unlink() if before is None else write(path, before)
            raise Killed
        if fate == "kept-and-refused":
            raise OSError(5, "Input/output error")
        if fate == "killed-after":
            raise Killed

    return fated


_STEPS = st.lists(
    st.tuples(st.sampled_from(_HISTORIES), _SIZES, st.none() | _SIZES, st.sampled_from(_FATES), st.booleans()),
    max_size=25,
)


# No deadline: it is the disk that takes its time.
@settings(deadline=None)
@given(_STEPS)
@example([("a", 5, 0, "kept", True), ("b", 9, 5, "kept", True), ("a", 5, 0, "kept", False)])
@example([("a", 5, 0, "kept-and-refused", True), ("b", 5, 0, "kept", True), ("b", 5, 5, "kept", True)])
@example([("a", 0, None, "kept", True), ("a", 0, None, "refused", False)])
@example([("a", 5, 0, "kept-and-refused", True), ("a", 5, None, "lost", True), ("b", 5, 0, "kept", True)])
def test_a_witness_never_cosigns_two_heads_that_do_not_fit_together(
    steps: list[tuple[str, int, int | None, str, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / ".state").mkdir()
        given_out: dict[int, tuple[str, bytes]] = {}
        witness, durable_head = opened(directory), None
        for history, size, old, fate, is_log in steps:
            submission = submitted(directory, history, size, old)
            try:
                with mock.patch.object(durable, "write", written(fate)), contextlib.suppress(NotRecorded):
                    answer = witness._decide(submission, LOG.key() if is_log else None, "")
                    if answer.status is Status.COSIGNED:
                        # Nothing is written again that is known to be durable.
                        assert fate == "kept" or durable_head == submission.signed.checkpoint
                        durable_head = submission.signed.checkpoint
                        root = durable_head.root
                        assert given_out.setdefault(size, (history, root))[1] == root
            except Killed:
                witness.close()
                witness, durable_head = opened(directory), None
        witness.close()
        for (small, (_, root)), (size, (history, _)) in pairwise(sorted(given_out.items())):
            assert tree(size, history).root(small) == root


def opened(directory: Path) -> Witness:
    records = Records(directory)
    return Witness(cast("Journal", Own()), records, records.signers(AMS, ml_dsa=False), {}, lambda: 1000.0)


def submitted(directory: Path, history: str, size: int, old: int | None) -> Submission:
    """A head with the best proof there is; None: from the size that is recorded, as who has been told it asks."""
    if old is None:
        record = Records(directory).of(LOG.name)
        old = record.latest.checkpoint.size if record and record.latest else 0
    return asked(old, size, history)


@settings(deadline=None)
@given(
    st.sampled_from(_HISTORIES), _SIZES, st.sampled_from(_HISTORIES), _SIZES, _SIZES, st.lists(st.binary(max_size=33))
)
def test_any_submission_has_an_answer_and_only_what_goes_on_is_cosigned(
    recorded: str, recorded_size: int, history: str, size: int, old: int, junk: list[bytes]
) -> None:
    before = head(recorded_size, recorded).checkpoint
    for proof in (asked(old, size, history).proof, tuple(each for each in junk if len(each) == 32)):
        submission = Submission(old, proof, head(size, history))
        answered = judge(submission, LOG.key(), before)
        goes_on = size >= recorded_size and tree(size, history).root(recorded_size) == before.root
        if answered.status is Status.COSIGNED:
            assert goes_on
        elif goes_on and old == recorded_size and proof == asked(old, size, history).proof:
            raise AssertionError(answered.reason)


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 1 << 64), st.lists(st.binary(min_size=32, max_size=32), max_size=3))
def test_a_request_is_read_as_it_was_written_or_refused(raw: bytes, old: int, proof: list[bytes]) -> None:
    with contextlib.suppress(EvidenceFailed):
        assert Submission.decode(raw).encode() == raw
    submission = Submission(old, tuple(proof), head(5))
    if old < 10**19:
        assert Submission.decode(submission.encode()) == submission
    assert Checkpoint.parse(submission.signed.note.text) == submission.signed.checkpoint
