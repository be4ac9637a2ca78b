"""What a witness answers, by the rules of tlog-witness; with the exchange by which another implementation tests itself."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit import checkpoint as heads
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.note import Key, KeyType, Note, Signature, Signer
from gateway.audit.tree import Tiles
from gateway.audit.witness import (
    LATE,
    MOST_BYTES,
    MOST_HASHES,
    Alarm,
    Kind,
    Status,
    Submission,
    by_its_log,
    judge,
    lines,
    suspect,
)
from landbridge.errors import EvidenceFailed
from tests.unit.audit_logs import BRU, WITNESS

LOG = Signer(BRU, Ed25519PrivateKey.from_private_bytes(b"b" * 32))
MALLORY = Signer(BRU, Ed25519PrivateKey.from_private_bytes(b"m" * 32))


def tree(size: int, history: str = "a") -> Tiles:
    """The tree of one of several histories, of which "c" begins as "a" does; up to 256 entries."""
    whose = ["a" if history == "c" and number < 4 else history for number in range(size)]
    leaves = b"".join(f"{name} {number}".encode().ljust(32, b"\0") for number, name in enumerate(whose))
    return Tiles(size, lambda name: leaves[: name.width * 32])


def head(size: int, history: str = "a", by: Signer = LOG) -> Signed:
    return heads.sign(Checkpoint(BRU, size, tree(size, history).root()), by)


def asked(old: int, size: int, history: str = "a", by: Signer = LOG) -> Submission:
    proof = tuple(tree(size, history).consistency(old)) if old <= size else ()
    return Submission(old, proof, head(size, history, by))


def status(submission: Submission, recorded: Signed | None = None) -> Status:
    return judge(submission, LOG.key(), recorded.checkpoint if recorded else None).status


def test_a_head_that_goes_on_from_the_recorded_one_is_cosigned() -> None:
    assert status(asked(0, 5)) is Status.COSIGNED
    assert status(asked(5, 5), head(5)) is Status.COSIGNED
    assert status(asked(5, 200), head(5)) is Status.COSIGNED
    assert status(asked(0, 0)) is Status.COSIGNED
    assert status(asked(0, 7), head(0)) is Status.COSIGNED


def test_a_log_that_is_not_known_is_404() -> None:
    judged = judge(asked(0, 5), None, None)
    assert judged.status is Status.UNKNOWN
    assert BRU in judged.reason


def test_a_head_that_the_log_has_not_signed_is_403() -> None:
    assert status(asked(0, 5, by=MALLORY)) is Status.UNTRUSTED
    signed = head(5)
    # Under the log's name and key id, but wrong: also beside one that is right.
    wrong = Signature(BRU, LOG.key().id, bytes(64))
    for signatures in ((wrong,), (*signed.note.signatures, wrong), ()):
        note = Note(signed.note.text, signatures)
        assert status(Submission(0, (), Signed(signed.checkpoint, note))) is Status.UNTRUSTED
    # What others have signed does not matter.
    assert status(Submission(0, (), signed.added([heads.cosign(signed.checkpoint, WITNESS, 1)]))) is Status.COSIGNED


def test_an_old_size_above_the_new_one_is_400() -> None:
    assert status(asked(6, 5), head(6)) is Status.MALFORMED


def test_an_old_size_that_is_not_the_recorded_one_is_409() -> None:
    assert status(asked(3, 5), head(4)) is Status.CONFLICT
    assert status(asked(0, 5), head(4)) is Status.CONFLICT
    assert status(asked(3, 5)) is Status.CONFLICT


@pytest.mark.parametrize(
    ("submission", "recorded"),
    [
        (Submission(0, (), heads.sign(Checkpoint(BRU, 0, bytes(32)), LOG)), None),  # an empty tree of another root
        (Submission(0, (bytes(32),), head(5)), None),  # a proof where there is nothing to prove
        (Submission(5, (bytes(32),), head(5)), head(5)),
        (Submission(3, (), head(5)), head(3)),  # no proof
        (Submission(3, asked(3, 5).proof[:-1], head(5)), head(3)),
        (Submission(3, (*asked(3, 5).proof, bytes(32)), head(5)), head(3)),
        (Submission(3, tuple(reversed(asked(3, 5).proof)), head(5)), head(3)),
        (asked(3, 5, "b"), head(3)),  # another history
        (asked(5, 5, "b"), head(5)),  # the same size, another root
    ],
)
def test_what_is_not_proved_to_go_on_from_the_recorded_head_is_422(
    submission: Submission, recorded: Signed | None
) -> None:
    assert status(submission, recorded) is Status.INCONSISTENT


# The body of a request.


def test_a_request_is_read_as_it_was_written() -> None:
    for submission in (asked(0, 5), asked(3, 5), asked(5, 5)):
        assert Submission.decode(submission.encode()) == submission


EXAMPLE = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""


def test_the_published_request_is_read() -> None:
    submission = Submission.decode(EXAMPLE.encode())
    assert (submission.old, len(submission.proof), submission.signed.checkpoint.size) == (20852014, 4, 20852163)
    assert submission.encode() == EXAMPLE.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 5\n",
        EXAMPLE.encode().replace(b"old 2", b"old 02"),
        EXAMPLE.encode().replace(b"old 2", b"old -2"),
        EXAMPLE.encode().replace(b"old 2", b"older 2"),
        EXAMPLE.encode().replace(b"PlRN", b"PlR"),
        EXAMPLE.encode().replace(b"kaw=\n", b"kax=\n"),  # bits that no byte has
        EXAMPLE.encode().replace(b"\n\nexample", b"\nexample"),
        EXAMPLE.encode().replace(b"20852163\n", b"20852163\n\n"),
        asked(0, 5)
        .encode()
        .replace(b"old 0\n", b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * (MOST_HASHES + 1)),
        EXAMPLE.encode() + b"x" * MOST_BYTES,
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(EvidenceFailed):
        Submission.decode(body)


# What filippo.io/torchwood, cmd/litewitness/testdata/litewitness.txt, has as requests and answers (one log, in this order).

SIGSUM = "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562"
SIGSUM_KEY = Key(
    SIGSUM, KeyType.ED25519, bytes.fromhex("ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f")
)
LEAF = [base64.b64encode(bytes([42, number]) + bytes(30)).decode() for number in range(5)]
TO_3, TO_5 = [LEAF[1], LEAF[2]], [LEAF[2], LEAF[3], "wgiIFdZfYNv6WU1OllBKsWnLYIS/DBMqt8Uh/S4OukE=", LEAF[4]]
HEAD_1 = (
    1,
    LEAF[0],
    "UgIom7fPZTqpxWWhyjWduBvTvGVqsokMbqTArsQilegKoFBJQjUFAmQ0+YeSPM3wfUQMFSzVnnNuWRTYrajXpNUbIQY=",
)
HEAD_3 = (
    3,
    "RcCI1Nk56ZcSmIEfIn0SleqtV7uvrlXNccFx595Iwl0=",
    "UgIom2VbtIcdFbwFAy1n7s6IkAxIY6J/GQOTuZF2ORV39d75cbAj2aQYwyJre36kezNobZs4SUUdrcawfAB8WVrx6go=",
)
HEAD_5 = (
    5,
    "QrtXrQZCCvpIgsSmOsah7HdICzMLLyDfxToMql9WTjY=",
    "UgIomw/EOJmWi0i1FQsOj+etB7F8IccFam/jgd6wzRns4QPVmyEZtdvl1U2KEmLOZ/ASRcWJi0tW90dJWAShei7sDww=",
)
LITEWITNESS = [
    (0, [], HEAD_1, 200),
    (1, TO_3, (3, HEAD_3[1], HEAD_3[2].replace("rx6go=", "rx6gx=")), 403),
    (1, [], HEAD_3, 422),
    (1, [LEAF[1], LEAF[2].replace("AAA=", "ABA=")], HEAD_3, 422),
    (1, TO_3, HEAD_3, 200),
    (1, [LEAF[1], "+fUDV+k970B4I3uKrqJM4aP1lloPZP8mvr2Z4wRw2LI=", LEAF[4]], HEAD_5, 409),
    (3, TO_5, HEAD_5, 200),
    (0, [], HEAD_5, 409),
]


def test_another_implementations_exchange_is_answered_alike() -> None:
    recorded: Checkpoint | None = None
    for old, proof, (size, root, signature), expected in LITEWITNESS:
        # The one spelling of a signature's bytes that the third byte from the end allows.
        raw = base64.b64decode(signature)
        body = "\n".join(
            [f"old {old}", *proof, "", SIGSUM, str(size), root, "", f"— {SIGSUM} {base64.b64encode(raw).decode()}", ""]
        )
        submission = Submission.decode(body.encode())
        judged = judge(submission, SIGSUM_KEY, recorded)
        assert (judged.status, bool(judged.reason)) == (expected, expected != 200)
        if judged.status is Status.COSIGNED:
            recorded = submission.signed.checkpoint


# What does not fit.


def suspicion(submission: Submission, recorded: Signed, *, age: float = 0, is_log: bool = True) -> Kind | None:
    alarm = suspect(submission, recorded, age, 7, is_log=is_log)
    return alarm.kind if alarm else None


def test_two_roots_of_one_size_raise_the_alarm_whoever_brings_them() -> None:
    for old in (0, 3, 5):
        submission = Submission(old, (), head(5, "b"))
        assert suspicion(submission, head(5), is_log=False) is Kind.REWRITTEN


def test_a_log_that_cannot_prove_that_it_goes_on_raises_the_alarm_and_a_stranger_with_a_wrong_proof_does_not() -> None:
    assert suspicion(asked(3, 5, "b"), head(3)) is Kind.REWRITTEN
    assert suspicion(asked(3, 5, "b"), head(3), is_log=False) is None
    # It does not know yet from where it is to go on.
    assert suspicion(asked(2, 5, "b"), head(3)) is None
    assert suspicion(asked(3, 5), head(3)) is None


def test_an_old_head_raises_the_alarm_unless_it_may_have_been_held_up_on_its_way() -> None:
    assert suspicion(asked(3, 3), head(5), age=LATE + 1) is Kind.ROLLED_BACK
    assert suspicion(asked(3, 3), head(5), age=LATE) is None
    assert suspicion(asked(3, 3), head(5), age=LATE + 1, is_log=False) is None


def test_an_alarm_names_both_heads_and_holds_them_as_evidence() -> None:
    alarm = Alarm(Kind.REWRITTEN, 7, head(3), head(5, "b"))
    sentence = alarm.sentence("site bru")
    assert sentence.startswith(
        f"site bru has shown two histories: its log {BRU} was rewritten; recorded were 3 entries"
    )
    for signed in (alarm.recorded, alarm.shown):
        assert f"{signed.checkpoint.size} entries with the root {signed.checkpoint.root.hex()}" in sentence
        text, signatures = lines(signed)[:3], lines(signed)[3:]
        assert "\n".join([*text, "", *signatures, ""]).encode() == signed.encode()
    both = alarm.shown.added([heads.cosign(alarm.shown.checkpoint, WITNESS, 1)])
    assert by_its_log(both, LOG.key()) == alarm.shown
