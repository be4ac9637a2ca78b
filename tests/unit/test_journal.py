"""The agent's journal: what was saved is loaded, and a damaged file is named."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.journal import Journal, Record
from landbridge.errors import InternalError
from landbridge.v1.agent_pb2 import Role, Stage


def record(number: int = 1, **changes: object) -> Record:
    facts: dict[str, object] = {
        "migration": f"m-{number}",
        "role": Role.ROLE_SOURCE,
        "vm": "web-01",
        "vm_uuid": "6f0c4a52",
        **changes,
    }
    return Record.model_validate(facts)


def test_records_survive_a_restart_of_the_agent(tmp_path: Path) -> None:
    full = record(
        2,
        role=Role.ROLE_DESTINATION,
        stage=Stage.STAGE_ACTIVE,
        error="é",
        autostart=True,
        images=["/images/a b.qcow2"],
        domain_xml="<domain/>",
        resumed_at=1.5,
    )
    journal = Journal(tmp_path / "migrations")
    journal.save(full)
    journal.save(record(1))
    assert Journal(tmp_path / "migrations").load() == [record(1), full]


def test_saving_twice_is_saving_once_and_the_last_one_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "migrations")
    for stage in (Stage.STAGE_PREPARED, Stage.STAGE_RELEASED, Stage.STAGE_RELEASED):
        journal.save(record(stage=stage))
    assert journal.load() == [record(stage=Stage.STAGE_RELEASED)]
    assert len(list((tmp_path / "migrations").iterdir())) == 1


def test_only_the_source_is_the_source() -> None:
    assert record().is_source
    assert not record(role=Role.ROLE_DESTINATION).is_source


def test_the_journal_is_for_its_owner_only(tmp_path: Path) -> None:
    Journal(tmp_path / "state" / "migrations").save(record())
    assert stat.S_IMODE((tmp_path / "state" / "migrations").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "migrations" / "m-1.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"migration": 1, "role": "x"}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    journal = Journal(tmp_path)
    journal.save(record(1))
    (tmp_path / "m-2.json").write_bytes(content)
    with pytest.raises(InternalError) as caught:
        journal.load()
    assert str(tmp_path / "m-2.json") in caught.value.message


def test_what_a_crash_left_beside_a_record_is_not_a_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.save(record())
    (tmp_path / ".m-1.json.k3j4").write_bytes(b"half of")
    assert journal.load() == [record()]


def test_what_was_read_of_disks_is_kept_until_it_is_dropped_and_is_no_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "migrations")
    assert journal.kept("m-1") is None
    journal.keep("m-1", b"a tree")
    assert Journal(tmp_path / "migrations").kept("m-1") == b"a tree"
    assert journal.load() == []
    journal.drop("m-1")
    journal.drop("m-1")
    assert journal.kept("m-1") is None
