"""A witness with its records: nothing is answered that is not durable, nothing that was seen is forgotten, and alarms are raised once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from certs.identity import Identity, Role
from gateway.audit import witness_keeper
from gateway.audit.checkpoint import Signed
from gateway.audit.files import Directory, Still
from gateway.audit.journal import Journal
from gateway.audit.note import Key, KeyType, Note
from gateway.audit.reading import last
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from gateway.audit.witness import Alarm, Kind, Status, Submission
from gateway.audit.witness_keeper import Answer, Witness, log_key
from gateway.audit.witness_records import Record, Records
from gateway.config import AuditSettings, GatewayConfig, WitnessSettings
from gateway.main import keep_witness
from landbridge import durable
from landbridge.errors import ConfigError, NotRecorded, PermissionDenied, UsageError
from landbridge.v1.audit_pb2 import AddCheckpointRequest
from tests.unit.audit_logs import AMS, BRU, WITNESS_KEY
from tests.unit.test_audit_witness import LOG, MALLORY, asked, head

KEY = LOG.key()


class Clock:
    """Time that stands still unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = await Journal.open(tmp_path, AMS)
    yield made
    await made.close()


@pytest.fixture
async def witness(journal: Journal, tmp_path: Path, clock: Clock) -> AsyncIterator[Witness]:
    made = opened(journal, tmp_path, clock)
    yield made
    made.close()


def opened(journal: Journal, directory: Path, clock: Clock, *known: Key, ml_dsa: bool = False) -> Witness:
    records = Records(directory)
    return Witness(journal, records, records.signers(AMS, ml_dsa=ml_dsa), {each.name: each for each in known}, clock)


def good(answer: Answer, submission: Submission, keys: list[Key]) -> bool:
    """Whether an answer is a cosignature by each of these keys of what was submitted."""
    note = Note(submission.signed.note.text, answer.cosignatures)
    found = Signed(submission.signed.checkpoint, note).cosigned(keys)
    return answer.status is Status.COSIGNED and len(found) == len(keys)


def events(directory: Path) -> list[str]:
    return [entry.event.name for _, entry in last(Still(Directory(directory)), 99)]


async def test_a_head_is_cosigned_with_a_key_that_is_published_beside_the_log(witness: Witness, tmp_path: Path) -> None:
    assert good(await witness.add(asked(0, 5), KEY), asked(0, 5), witness.keys)
    assert good(await witness.add(asked(5, 9), KEY), asked(5, 9), witness.keys)
    assert (tmp_path / "witness.vkey").read_text() == f"{witness.keys[0]}\n"
    assert witness.keys[0].type is KeyType.COSIGNATURE
    assert witness.keys[0].public != log_key((tmp_path / "log.vkey").read_text().strip()).public
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / ".state/witness").iterdir()} == {0o600}
    # The first contact is on record, and no cosignature after it.
    assert events(tmp_path) == ["log.cosigned"]
    assert verify(Still(Directory(tmp_path))).findings == []


async def test_what_was_cosigned_is_remembered_by_the_next_process(
    witness: Witness, journal: Journal, tmp_path: Path, clock: Clock
) -> None:
    await witness.add(asked(0, 5), KEY)
    again = opened(journal, tmp_path, clock)
    assert again.keys == witness.keys
    answer = await again.add(asked(0, 5, "b"), KEY)
    assert (answer.status, answer.recorded) == (Status.CONFLICT, head(5))
    assert (await again.add(asked(5, 9, "b"), KEY)).status is Status.INCONSISTENT
    assert good(await again.add(asked(5, 9), KEY), asked(5, 9), again.keys)
    again.close()


async def test_a_witness_with_ml_dsa_cosigns_with_both_keys(journal: Journal, tmp_path: Path, clock: Clock) -> None:
    witness = opened(journal, tmp_path, clock, ml_dsa=True)
    assert [key.type for key in witness.keys] == [KeyType.COSIGNATURE, KeyType.ML_DSA_44]
    assert good(await witness.add(asked(0, 5), KEY), asked(0, 5), witness.keys)
    assert (tmp_path / "witness-ml-dsa-44.vkey").read_text() == f"{witness.keys[1]}\n"
    assert verify(Still(Directory(tmp_path))).findings == []
    witness.close()


async def test_nothing_is_cosigned_that_cannot_be_kept(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    await witness.add(asked(0, 5), KEY)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        with pytest.raises(NotRecorded, match="No space left on device"):
            await witness.add(asked(5, 9), KEY)
    assert (await witness.add(asked(9, 9), KEY)).status is Status.CONFLICT
    assert good(await witness.add(asked(5, 9), KEY), asked(5, 9), witness.keys)


async def test_a_record_that_is_damaged_is_an_error_and_never_a_first_contact(witness: Witness, tmp_path: Path) -> None:
    await witness.add(asked(0, 5), KEY)
    (path,) = (tmp_path / ".state/witness").glob("*.json")
    for damaged in (
        b"",
        path.read_bytes()[:-1],
        b"{}",
        b'{"v":1}',
        path.read_bytes().replace(b'"time":1000', b'"time":"x"'),
    ):
        path.write_bytes(damaged)
        with pytest.raises(NotRecorded, match="is damaged"):
            await witness.add(asked(0, 5, "b"), KEY)
        assert "is damaged" in (await witness.alarms())[""][0]


def test_a_key_that_is_missing_while_there_are_records_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".state").mkdir()
    records = Records(tmp_path)
    first = records.signers(AMS, ml_dsa=False)
    assert [each.key() for each in records.signers(AMS, ml_dsa=False)] == [each.key() for each in first]
    records.save(Record(KEY, head(5), 1))
    (tmp_path / ".state/witness/ed25519.pem").unlink()
    with pytest.raises(ConfigError, match=r"ed25519\.pem, is missing: restore it"):
        records.signers(AMS, ml_dsa=False)


async def test_many_at_once_cosign_one_history(witness: Witness) -> None:
    await witness.add(asked(0, 5), KEY)
    both = [asked(5, size, history) for size in range(6, 30) for history in "ab"]
    answers = await asyncio.gather(*(witness.add(each, KEY) for each in both))
    assert [answer.status for answer in answers].count(Status.COSIGNED) == 1


async def test_who_gives_up_waiting_leaves_nothing_half_done(witness: Witness) -> None:
    asking = asyncio.create_task(witness.add(asked(0, 5), KEY))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    statuses = {(await witness.add(asked(0, 5), KEY)).status, (await witness.add(asked(5, 5), KEY)).status}
    assert statuses <= {Status.COSIGNED, Status.CONFLICT}
    assert Status.COSIGNED in statuses


# Whose logs.

FRA = Identity("example.org", "fra", Role.GATEWAY, "gw-1")
FRA_ORIGIN = "example.org/site/fra/gateway/gw-1"


async def test_strangers_bring_only_logs_that_are_known(journal: Journal, tmp_path: Path, clock: Clock) -> None:
    witness = opened(journal, tmp_path, clock, KEY)
    assert (await witness.add(asked(0, 5))).status is Status.COSIGNED
    other = opened(journal, tmp_path, clock)
    # Known by its record now, and by that key.
    assert (await other.add(asked(5, 6))).status is Status.COSIGNED
    assert (await other.add(asked(6, 7, by=MALLORY))).status is Status.UNTRUSTED
    unknown = Submission(0, (), head(5))
    (path,) = (tmp_path / ".state/witness").glob("*.json")
    path.unlink()
    assert (await other.add(unknown)).status is Status.UNKNOWN
    for each in (witness, other):
        each.close()


async def test_the_configured_key_of_a_log_goes_before_the_one_that_it_offers(
    journal: Journal, tmp_path: Path, clock: Clock
) -> None:
    witness = opened(journal, tmp_path, clock, KEY)
    assert (await witness.add(asked(0, 5, by=MALLORY), MALLORY.key())).status is Status.UNTRUSTED
    assert (await witness.add(asked(0, 5), KEY)).status is Status.COSIGNED
    witness.close()


async def test_a_peer_brings_its_own_log_in_its_own_name_alone(witness: Witness) -> None:
    request = AddCheckpointRequest(key=str(KEY), checkpoint=head(5).encode())
    with pytest.raises(PermissionDenied, match=f"may bring the log {FRA_ORIGIN}, and no other one"):
        await witness.add_of_peer(request, FRA)
    for wrong in (
        AddCheckpointRequest(key="no key", checkpoint=head(5).encode()),
        AddCheckpointRequest(key=str(WITNESS_KEY), checkpoint=head(5).encode()),
        AddCheckpointRequest(key=str(KEY), checkpoint=b"no head"),
        AddCheckpointRequest(key=str(KEY), checkpoint=head(5).encode(), proof=[b"short"]),
    ):
        with pytest.raises(UsageError, match="brings no head of a log"):
            await witness.add_of_peer(wrong, FRA)


async def test_a_witness_does_not_cosign_its_own_log(witness: Witness, journal: Journal) -> None:
    await journal.record("log.idle")
    answer = await witness.add(Submission(0, (), journal.signed), journal.key)
    assert answer.status is Status.UNKNOWN


async def test_one_site_has_not_more_logs_than_gateways(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_keeper, "MOST_LOGS", 1)
    assert (await witness.add(asked(0, 5), KEY, "example.org/site/")).status is Status.COSIGNED
    other = Key("example.org/site/other", KEY.type, KEY.public)
    submission = Submission(0, (), head(5))
    elsewhere = Signed(type(submission.signed.checkpoint)(other.name, 0, b""), submission.signed.note)
    assert (await witness.add(Submission(0, (), elsewhere), other, "example.org/site/")).status is Status.UNKNOWN


async def test_the_configuration_names_logs_by_keys_and_where_to_listen(journal: Journal, tmp_path: Path) -> None:
    def settings(**witness: object) -> GatewayConfig:
        audit = AuditSettings(directory=tmp_path)
        return cast("GatewayConfig", SimpleNamespace(witness=WitnessSettings.model_validate(witness), audit=audit))

    async with contextlib.AsyncExitStack() as stack:
        for wrong in ("no key", str(WITNESS_KEY)):
            with pytest.raises(ConfigError, match=r"see witness\.logs in the configuration"):
                await keep_witness(settings(logs=[{"vkey": wrong}]), journal, stack)
        made = await keep_witness(
            settings(listen="127.0.0.1:0", ml_dsa=True, logs=[{"vkey": str(KEY)}]), journal, stack
        )
        assert (await made.add(asked(0, 5))).status is Status.COSIGNED
        assert len(made.keys) == 2


# Alarms.


async def test_a_rewritten_log_raises_the_alarm_once_with_both_heads(witness: Witness, tmp_path: Path) -> None:
    await witness.add(asked(0, 5), KEY)
    with capture_logs() as logged:
        for _ in range(3):
            assert (await witness.add(asked(5, 9, "b"), KEY)).status is Status.INCONSISTENT
    (line,) = [each for each in logged if each["event"] == "log.forked"]
    assert (line["log_level"], line["security"], line["kind"]) == ("error", True, "rewritten")
    assert (line["recorded"], line["shown"]) == (head(5).encode().decode(), head(9, "b").encode().decode())
    assert events(tmp_path) == ["log.cosigned", "log.forked"]
    ((_, entry),) = last(Still(Directory(tmp_path)), 1)
    (sentence,) = (await witness.alarms())[BRU]
    assert entry.text("reason") == sentence
    facts = entry.facts("seen")["log"]
    assert isinstance(facts, dict)
    assert (facts["size"], facts["other_size"]) == (5, 9)
    assert (facts["root"], facts["other_root"]) == (
        head(5).checkpoint.root.hex(),
        head(9, "b").checkpoint.root.hex(),
    )
    # The history that was recorded first is cosigned further on.
    assert (await witness.add(asked(5, 9), KEY)).status is Status.COSIGNED


async def test_an_alarm_that_cannot_be_recorded_is_raised_again(
    witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await witness.add(asked(0, 5), KEY)

    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded), capture_logs() as logged:
            await witness.add(asked(5, 9, "b"), KEY)
    assert [each["event"] for each in logged] == ["log.forked"]
    assert events(tmp_path) == ["log.cosigned"]
    await witness.add(asked(5, 9, "b"), KEY)
    assert events(tmp_path) == ["log.cosigned", "log.forked"]


async def test_a_log_that_shows_less_than_before_is_rolled_back_once_it_cannot_be_a_late_one(
    witness: Witness, clock: Clock
) -> None:
    await witness.add(asked(0, 9), KEY)
    assert (await witness.add(asked(5, 5), KEY)).status is Status.CONFLICT
    assert await witness.alarms() == {BRU: []}
    clock.now += 60
    await witness.add(asked(5, 5), KEY)
    assert "was rolled back to an older state" in (await witness.alarms())[BRU][0]


async def test_a_head_that_is_brought_again_is_as_old_as_it_was_and_costs_no_write(
    witness: Witness, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await witness.add(asked(0, 9), KEY)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "save", None)
        for _ in range(3):
            clock.now += 15
            assert good(await witness.add(asked(9, 9), KEY), asked(9, 9), witness.keys)
    assert (await witness.add(asked(5, 5), KEY)).status is Status.CONFLICT
    assert "was rolled back to an older state" in (await witness.alarms())[BRU][0]


async def test_another_key_is_refused_and_raises_the_alarm_if_it_has_signed(witness: Witness) -> None:
    await witness.add(asked(0, 5), KEY)
    # Somebody who names a key and has not signed with it shows nothing.
    assert (await witness.add(asked(5, 6), MALLORY.key())).status is Status.UNTRUSTED
    assert await witness.alarms() == {BRU: []}
    assert (await witness.add(asked(0, 2, by=MALLORY), MALLORY.key())).status is Status.UNTRUSTED
    assert "is signed by another key than before" in (await witness.alarms())[BRU][0]
    assert (await witness.add(asked(5, 6), KEY)).status is Status.COSIGNED


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record(KEY, head(5), 7)
    alarm = Alarm(Kind.REWRITTEN, 8, head(5), head(9, "b"))
    for each in (record, record.alarmed(alarm), Record(KEY)):
        assert Record.decode(each.encode()) == each
    assert record.alarmed(alarm).alarmed(alarm) == record.alarmed(alarm)
    assert json.loads(record.encode())["key"] == str(KEY)
