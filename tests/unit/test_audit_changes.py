"""What rules, and how it changes, is on record: while a gateway runs, and while it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.audit.canonical import Value
from gateway.audit.changes import Changes
from gateway.audit.files import Directory
from gateway.audit.journal import Journal
from gateway.audit.reading import last
from gateway.audit.storage import Storage
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU

ONE, TWO = "1" * 64, "2" * 64


def recorded(directory: Path) -> list[tuple[str, Value]]:
    return [(entry.event.name, entry.facts("seen")["change"]) for _, entry in last(Directory(directory), 100)]


async def test_each_change_is_one_entry_with_both_hashes(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, BRU)
    hashes = {"the policy": ONE}
    changes = Changes(journal, tmp_path, {"policy.changed": lambda: hashes})
    await changes.look()
    await changes.look()
    hashes["the policy"] = TWO
    await changes.look()
    # Another run of the gateway knows what was recorded last.
    again = Changes(journal, tmp_path, {"policy.changed": lambda: hashes})
    await again.look()
    hashes.clear()
    await again.look()
    await journal.close()
    assert recorded(tmp_path) == [
        ("policy.changed", {"subject": "the policy", "after_sha256": ONE}),
        ("policy.changed", {"subject": "the policy", "before_sha256": ONE, "after_sha256": TWO}),
        ("policy.changed", {"subject": "the policy", "before_sha256": TWO, "comment": "it is gone"}),
    ]


async def test_what_cannot_be_recorded_is_seen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await Journal.open(tmp_path, BRU)
    changes = Changes(journal, tmp_path, {"trust.changed": lambda: {"site ams": ONE}})

    def full(*_: object) -> int:
        raise NotRecorded("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded):
            await changes.look()
    await changes.look()
    await journal.close()
    assert recorded(tmp_path) == [("trust.changed", {"subject": "site ams", "after_sha256": ONE})]


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"policy.changed": {"the policy": "no hash"}}', b"\xff"])
async def test_where_it_is_not_known_what_was_recorded_it_is_recorded_anew(tmp_path: Path, damaged: bytes) -> None:
    journal = await Journal.open(tmp_path, BRU)
    (tmp_path / ".state" / "changes.json").write_bytes(damaged)
    await Changes(journal, tmp_path, {"policy.changed": lambda: {"the policy": ONE}}).look()
    await journal.close()
    assert recorded(tmp_path) == [("policy.changed", {"subject": "the policy", "after_sha256": ONE})]
