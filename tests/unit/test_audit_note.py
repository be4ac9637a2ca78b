"""Signed notes, checkpoints, cosignatures and proofs: as published, and nothing that only looks like it."""

from __future__ import annotations

import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from gateway.audit import checkpoint as heads
from gateway.audit.checkpoint import Checkpoint, Cosigned, Signed
from gateway.audit.note import MOST_SIGNATURES, Key, KeyType, Note, Signature, Signer
from gateway.audit.proof import Proof
from gateway.audit.tree import leaf_hash, node_hash
from landbridge.errors import EvidenceFailed, UsageError
from tests.unit.audit_logs import WITNESS, WITNESS_KEY

# The example of C2SP signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()

# The first lines of the example of C2SP tlog-checkpoint.
TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

LOG = Signer("example.com/log", Ed25519PrivateKey.from_private_bytes(b"l" * 32))
HEAD = Checkpoint("example.com/log", 2, node_hash(leaf_hash(b"a"), leaf_hash(b"b")))
SIGNED = heads.sign(HEAD, LOG)


def test_the_published_note_is_verified_by_the_published_key() -> None:
    key, note = Key.parse(VKEY), Note.decode(NOTE)
    assert str(key) == VKEY
    assert note.text == "This is an example message.\n"
    [signature] = note.signatures
    assert signature.is_by(key)
    assert key.verifies(signature.value, note.text.encode())
    assert note.encode() == NOTE


def test_a_note_with_one_bit_changed_is_no_note_or_not_verified() -> None:
    key = Key.parse(VKEY)
    for at in range(len(NOTE)):
        for bit in range(8):
            changed = bytearray(NOTE)
            changed[at] ^= 1 << bit
            try:
                note = Note.decode(bytes(changed))
            except EvidenceFailed:
                continue
            assert not any(each.is_by(key) and key.verifies(each.value, note.text.encode()) for each in note.signatures)


def test_a_note_that_is_cut_off_or_goes_on_is_another_one_or_none() -> None:
    for end in range(len(NOTE)):
        with pytest.raises(EvidenceFailed):
            Note.decode(NOTE[:end])
    with pytest.raises(EvidenceFailed):
        Note.decode(NOTE + b"more")
    assert len(Note.decode(NOTE + NOTE.split(b"\n\n")[1]).signatures) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n\n",
        b"text\n\n",
        b"text\n\nno signature\n",
        "text\n\n— name\n".encode(),
        "text\n\n— na+me AAAAAAAA\n".encode(),
        "text\n\n— name AAAA\n".encode(),
        "text\n\n— name AAAAAAA\n".encode(),
        "te\rxt\n\n— name AAAAAAAA\n".encode(),
        "text\n\n— name AAAAAAAA\n".encode("utf-16"),
        b"x" * 300_000,
        ("text\n\n" + "— name AAAAAAAA\n" * (MOST_SIGNATURES + 1)).encode(),
    ],
)
def test_what_is_no_note_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceFailed, match=r"it is (no signed note|a note)"):
        Note.decode(raw)


@pytest.mark.parametrize(
    "text",
    ["", "name", "name+530d903a", "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", VKEY + "\n",
     VKEY.replace("example", "éxample"), "a b+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", VKEY.replace("Aek", "Bek")],
)  # fmt: skip
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is (no key|a key whose id)"):
        Key.parse(text)


def test_the_published_checkpoint_is_read_and_written_as_published() -> None:
    checkpoint = Checkpoint.parse(TEXT)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == TEXT


@pytest.mark.parametrize(
    "text",
    [
        TEXT[:-1],
        TEXT + "extension\n",
        TEXT.replace("20852163", "020852163"),
        TEXT.replace("20852163", "-1"),
        TEXT.replace("20852163", "٣"),
        TEXT.replace("20852163", "9" * 20),
        TEXT.replace("q2I=", "q2J="),
        TEXT.replace("q2I=", "q2I"),
        TEXT.replace("CsUY", ""),
        "\n" + TEXT.split("\n", 1)[1],
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(EvidenceFailed, match="it is no checkpoint"):
        Checkpoint.parse(text)


def test_a_signed_checkpoint_is_checked_against_the_logs_key() -> None:
    signed = Signed.decode(SIGNED.encode())
    signed.check(LOG.key())
    other = Signer("example.com/log", Ed25519PrivateKey.from_private_bytes(b"o" * 32))
    with pytest.raises(EvidenceFailed, match=r"is not signed by example\.com/log with the key"):
        signed.check(other.key())
    with pytest.raises(EvidenceFailed, match="it is another log's"):
        signed.check(WITNESS.key())
    forged = Signed(
        Checkpoint(HEAD.origin, 3, HEAD.root), Note(SIGNED.note.text.replace("\n2\n", "\n3\n"), SIGNED.note.signatures)
    )
    with pytest.raises(EvidenceFailed, match="its text was changed, or forged"):
        forged.check(LOG.key())


def test_a_cosignature_covers_the_checkpoint_and_its_time() -> None:
    signature = heads.cosign(HEAD, WITNESS, 1_679_315_147)
    cosigned = Signed.decode(SIGNED.added([signature]).encode())
    cosigned.check(LOG.key())
    assert cosigned.cosigned([WITNESS_KEY]) == [Cosigned(WITNESS.name, 1_679_315_147)]
    assert SIGNED.cosigned([WITNESS_KEY]) == []
    # tlog-cosignature: the message begins with these two lines.
    message = b"cosignature/v1\ntime 1679315147\n" + HEAD.text.encode()
    assert WITNESS_KEY.verifies(signature.value[8:], message)
    for at in range(len(signature.value)):
        changed = bytearray(signature.value)
        changed[at] ^= 1
        forged = SIGNED.added([signature.__class__(signature.name, signature.key_id, bytes(changed))])
        with pytest.raises(EvidenceFailed, match=re.escape(f"the cosignature of the witness {WITNESS.name} is wrong")):
            forged.cosigned([WITNESS_KEY])


# The example of C2SP tlog-cosignature; its keys are not published, its time is.
COSIGNED = (
    TEXT
    + "\n— example.com/behind-the-sofa "
    + "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    + "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_the_published_cosignature_is_read_and_has_the_published_time() -> None:
    signed = Signed.decode(COSIGNED.encode())
    assert signed.encode() == COSIGNED.encode()
    cosignature = signed.note.signatures[1]
    assert (cosignature.name, cosignature.key_id.hex()) == ("witness.example.com/w1", "8d66cf3f")
    assert len(cosignature.value) == 8 + 64
    assert int.from_bytes(cosignature.value[:8], "big") == 1_679_315_147


POST_QUANTUM = Signer("example.com/w2", MLDSA44PrivateKey.from_seed_bytes(b"q" * 32))


def test_a_cosignature_of_ml_dsa_signs_the_published_structure() -> None:
    key = POST_QUANTUM.cosigning
    assert key.type is KeyType.ML_DSA_44
    assert Key.parse(str(key)) == key
    signature = heads.cosign(HEAD, POST_QUANTUM, 1_679_315_147)
    assert (len(signature.value), signature.value[:8]) == (8 + 2420, (1_679_315_147).to_bytes(8, "big"))
    # tlog-cosignature, "ML-DSA-44 signed message", field by field.
    message = (
        b"subtree/v1\n\x00"
        b"\x0eexample.com/w2"
        + bytes.fromhex("00000000641850cb")
        + b"\x0fexample.com/log"
        + bytes.fromhex("0000000000000000" + "0000000000000002")
        + HEAD.root
    )
    MLDSA44PublicKey.from_public_bytes(key.public).verify(signature.value[8:], message)
    both = Signed.decode(SIGNED.added([signature, heads.cosign(HEAD, WITNESS, 7)]).encode())
    assert both.cosigned([key, WITNESS_KEY]) == [Cosigned("example.com/w2", 1_679_315_147), Cosigned(WITNESS.name, 7)]
    # Of another time, or of another witness's name, it is forged.
    later = Signature(signature.name, signature.key_id, bytes(8) + signature.value[8:])
    renamed = Key("example.com/w3", key.type, key.public)
    for forged, by in ((later, key), (Signature(renamed.name, renamed.id, signature.value), renamed)):
        with pytest.raises(EvidenceFailed, match="is wrong: it was changed, or forged"):
            SIGNED.added([forged]).cosigned([by])


def test_a_key_of_ml_dsa_of_another_length_is_none() -> None:
    with pytest.raises(UsageError, match="a key of its type 1312 bytes"):
        Key("example.com/w2", KeyType.ML_DSA_44, bytes(32))
    with pytest.raises(UsageError, match="is no key of a log or witness"):
        Key.parse(str(POST_QUANTUM.cosigning)[:-8])


def test_a_logs_signature_does_not_pass_as_a_cosignature() -> None:
    key = LOG.key(KeyType.COSIGNATURE)
    assert SIGNED.cosigned([key]) == []
    assert key.id != LOG.key().id


def test_a_newer_cosignature_takes_the_place_of_the_witnesss_old_one() -> None:
    once = SIGNED.added([heads.cosign(HEAD, WITNESS, 1)])
    twice = once.added([heads.cosign(HEAD, WITNESS, 2)])
    assert [each.time for each in twice.cosigned([WITNESS_KEY])] == [2]
    assert len(twice.note.signatures) == 2


def test_a_proof_is_a_file_that_verifies_alone() -> None:
    proof = Proof(1, (leaf_hash(b"a"),), SIGNED, b"extra")
    raw = proof.encode()
    assert raw.startswith(b"c2sp.org/tlog-proof@v1\nextra ZXh0cmE=\nindex 1\n")
    assert Proof.decode(raw) == proof
    proof.check(b"b", LOG.key())
    with pytest.raises(EvidenceFailed, match=r"entry 1 is not in the tree that example\.com/log signed"):
        proof.check(b"a", LOG.key())
    bare = Proof(0, (), SIGNED)
    assert Proof.decode(bare.encode()) == bare
    with pytest.raises(EvidenceFailed, match="too few hashes"):
        bare.check(b"a", LOG.key())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@v1", b"@v2"),
        (b"index 1\n", b"index 01\n"),
        (b"index 1\n", b""),
        (b"extra ZXh0cmE=", b"extra ZXh0cmF="),
        (b"\n\n", b"\n"),
        (b"index 1\n", b"index 1\nAAAA\n"),
        (b"index 1\n", "index 1\né\n".encode()),
        (b"index 1\n", b"index 1\n" + b"A" * 600_000 + b"\n"),
    ],
)
def test_what_is_no_proof_is_refused(old: bytes, new: bytes) -> None:
    raw = Proof(1, (leaf_hash(b"a"),), SIGNED, b"extra").encode()
    with pytest.raises(EvidenceFailed):
        Proof.decode(raw.replace(old, new, 1))
