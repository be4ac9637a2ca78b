"""A receipt in words: all that matters, and a mistake in it is not smoothed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.audit.journal import commit
from gateway.audit.proving import prove
from gateway.audit.receipt import Receipt
from gateway.audit.storage import Storage
from gateway.cli import cli
from landbridge.errors import EvidenceFailed
from tests.unit.audit_day import day
from tests.unit.audit_logs import AMS, BRU, entry

SENT, OTHER = "a" * 64, "b" * 64


def channel(end: str, digest: str) -> dict[str, object]:
    return {"kind": "ram", "label": "0 to the destination", f"{end}_bytes": 4096, f"{end}_blake3": digest}


def made(directory: Path, received: str = SENT) -> Path:
    """A receipt of the day's third migration, of both sites."""
    parts = []
    sent = entry(900, event="migration.delivered", migration="m-3", claimed={"channels": [channel("sent", SENT)]})
    there = [
        entry(901, event="migration.admitted", migration="m-3", seen={"destination": {"site": "ams"}}),
        entry(902, event="migration.delivered", migration="m-3", claimed={"channels": [channel("received", received)]}),
    ]
    for name, entries in ((BRU, [*day(), sent]), (AMS, there)):
        storage = Storage.open(directory / name.replace("/", "-"), name)
        commit(storage, entries)
        parts.append(prove(storage, storage.signed, "m-3"))
        storage.close()
    path = directory / "m-3.receipt"
    path.write_bytes(Receipt("m-3", tuple(parts)).encode())
    return path


def test_it_says_who_what_by_what_right_and_how(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["audit", "show", str(made(tmp_path))])
    assert result.exit_code == 0, result.output
    for words in (
        "outcome       completed at 2026-01-31T",
        "location      ams/host-b",
        "VM            files-01",
        "from          bru/host-a (BE)",
        "to            ams/host-b (NL)",
        "requested by  spiffe://example.org/site/bru/operator/alice",
        "approved by   spiffe://example.org/site/bru/operator/carol",
        "purpose       maintenance of host-a (as who asks says)",
        "legal basis   legitimate-interests (by the policy of site bru)",
        "permitted by  site bru: eu",
        "took          61000 ms",
        "downtime      87 ms",
        "protected     TLSv1.3 TLS_AES_256_GCM_SHA384, key exchange X25519",
        f"ram 0 to the destination: 4096 bytes, blake3 {SENT}, both ends say the same",
        "both ends agree",
    ):
        assert words in result.output


def test_ends_that_do_not_agree_are_said_and_it_does_not_verify(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["audit", "show", str(made(tmp_path, OTHER))])
    assert "THE ENDS DO NOT AGREE" in result.output
    assert isinstance(result.exception, EvidenceFailed)
    assert "do not name the same digest" in result.exception.message


def test_programs_get_the_entries(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["audit", "show", str(made(tmp_path)), "--json"])
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert {line["type"] for line in lines} == {"entry"}
    assert {line["entry"]["migration"] for line in lines} == {"m-3"}


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n"])
def test_what_is_no_receipt_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    result = CliRunner().invoke(cli, ["audit", "show", str(tmp_path / "file")])
    assert isinstance(result.exception, EvidenceFailed)
    assert "The receipt cannot be read" in result.exception.message
