"""`landbridge audit`, as an operator or an auditor runs it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.server
import importlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from gateway.audit import checkpoint as heads
from gateway.audit import files, ship_cursor
from gateway.audit.checkpoint import Signed
from gateway.audit.export import standalone
from gateway.audit.journal import commit
from gateway.audit.note import Signer
from gateway.audit.proof import Proof
from gateway.audit.receipt import Missing, Part, Proved, Receipt
from gateway.audit.ship_cursor import Cursor
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from gateway.cli import cli, connection, main
from landbridge.errors import LandbridgeError, NotFound, NotRecorded, PermissionDenied, Unreachable, UsageError
from landbridge.v1.audit_pb2 import RecordExportRequest
from tests import newcomer
from tests.unit.audit_day import day as audit_day
from tests.unit.audit_day import written_day
from tests.unit.audit_logs import (
    AMS,
    BRU,
    MIGRATION,
    WITNESS_KEY,
    cosigned,
    entry,
    receipt,
    received,
    sent,
    signer,
    written,
)
from tests.unit.fake_gateway import ID, FakeGateway

LANDBRIDGE = Path(sys.executable).with_name("landbridge")


def audit(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LANDBRIDGE, "audit", *map(str, argv)], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("log")
    storage = Storage.open(directory, BRU)
    commit(storage, [entry(number) for number in range(3)])
    denied = entry(3, event="migration.denied", outcome="denied", reason="rule no-export", migration="another")
    commit(
        storage,
        [denied, entry(4, seen={"vm": {"name": "web-01"}, "source": {"site": "bru"}, "destination": {"site": "ams"}})],
    )
    storage.close()
    cosigned(directory)
    return directory


def test_a_good_log_is_said_to_be_good(log: Path) -> None:
    done = audit("verify", log)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"log   {BRU}",
        "size  5 entries",
        "read  5 entries, from 2026-01-31T12:00:00.000000Z to 2026-01-31T12:00:04.000000Z",
        f"root  {verify(files.Directory(log)).root.hex()}",
        f"key   {signer(log).key()} (found with it: compare it with the one that the site has published)",
        "All checks pass: this is what the site has signed.",
    ]


def test_what_an_auditor_brings_is_checked_too(log: Path, tmp_path: Path) -> None:
    known, issued = tmp_path / "known", tmp_path / "receipt"
    known.write_bytes((log / "checkpoint").read_bytes())
    issued.write_bytes(receipt(log, 0, 4).encode())
    done = audit(
        "verify",
        log,
        "--key",
        log / "log.vkey",
        "--witness",
        str(WITNESS_KEY),
        "--known",
        known,
        "--receipt",
        issued,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["type"] == "verification"
    assert (said["good"], said["key_is_given"], said["receipts"], said["size"]) == (True, True, 1, 5)
    assert said["cosigned"] == [{"witness": AMS, "size": 5, "time": "2026-01-31T12:00:00Z"}]
    assert "as given" in audit("verify", log, "--key", str(signer(log).key()), "--receipt", issued).stdout


def test_a_witness_of_ml_dsa_is_named_by_its_key_or_by_a_file(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signer = Signer(AMS, MLDSA44PrivateKey.from_seed_bytes(b"q" * 32))
    head = Signed.decode((log / "checkpoint").read_bytes())
    (log / "cosigned").write_bytes(head.added([heads.cosign(head.checkpoint, signer, 1)]).encode())
    vkey = tmp_path / "witness-ml-dsa-44.vkey"
    vkey.write_text(f"{signer.cosigning}\n")
    for key in (str(vkey), str(signer.cosigning)):
        assert main(["audit", "verify", str(log), "--witness", key]) == 0
        assert f"by {AMS}" in capsys.readouterr().out
    vkey.write_text(f"{Signer(AMS, MLDSA44PrivateKey.from_seed_bytes(b'r' * 32)).cosigning}\n")
    assert main(["audit", "verify", str(log), "--witness", str(vkey)]) == 14


def test_a_receipt_is_verified_alone(log: Path, tmp_path: Path) -> None:
    issued = tmp_path / "receipt"
    issued.write_bytes(receipt(log, 0, 4).encode())
    done = audit("verify", issued)
    assert done.returncode == 0, done.stderr
    assert f"migration  {MIGRATION}" in done.stdout
    said = json.loads(audit("verify", issued, "--key", log / "log.vkey", "--json").stdout)
    assert (said["good"], said["migration"], said["entries"], said["log"]) == (True, MIGRATION, 2, BRU)
    done = audit("verify", issued, "--witness", str(WITNESS_KEY))
    assert (done.returncode, "has not cosigned" in done.stdout) == (14, True)
    issued.write_bytes(receipt(log, 0, 4).encode().replace(b"copying", b"stopped"))
    done = audit("verify", issued)
    assert done.returncode == 14
    assert "entry 0 is not in the tree that" in done.stdout


def test_a_receipt_is_written_and_checked_at_once(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        assert main(["receipt", "3f2a"]) == 4
        assert "has not ended yet" in capsys.readouterr().err
        fake.receipt = receipt(log, 0, 4).encode()
        assert main(["receipt", "3f2a"]) == 0
        said = capsys.readouterr().out
        assert f"Wrote {ID}.receipt: 2 entries of {BRU}" in said
        assert f"  key {signer(log).key()}\n" in said
        assert f"  no witness has cosigned the log {BRU} yet" in said
        assert (tmp_path / f"{ID}.receipt").read_bytes() == fake.receipt
        assert (tmp_path / f"{ID}.receipt").stat().st_mode & 0o777 == 0o600
        assert main(["receipt", "3f2a"]) == 4
        assert "is not overwritten" in capsys.readouterr().err
        assert main(["receipt", "3f2a", "--json", "--out", "other"]) == 0
        written_down = json.loads(capsys.readouterr().out)
        assert (written_down["type"], written_down["file"], written_down["entries"]) == ("receipt", "other", 2)
        assert written_down["not_cosigned"] == [BRU]
        fake.receipt = fake.receipt.replace(b"copying", b"stopped")
        assert main(["receipt", "3f2a", "--out", "forged"]) == 14
        assert "The receipt in forged does not verify" in capsys.readouterr().err
        cosigned_head = Signed.decode((log / "cosigned").read_bytes())
        (proved,) = receipt(log, 4).parts[0].entries
        proof = Proof(proved.proof.index, proved.proof.hashes, cosigned_head)
        fake.receipt = Receipt(MIGRATION, (Part(signer(log).key(), (Proved(proved.raw, proof),)),)).encode()
        assert main(["receipt", "3f2a", "--out", "cosigned"]) == 0
        assert "no witness" not in capsys.readouterr().out


def test_what_a_receipt_lacks_is_said_wherever_it_is_read(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = replace(receipt(log, 0, 4), missing=(Missing(f"{BRU}/gateway/gw-2", (3, 9)),))
    (tmp_path / "it").write_bytes(lacking.encode())
    said = f"entries 3, 9 of the log {BRU}/gateway/gw-2"
    for argv in (["audit", "verify"], ["audit", "show"]):
        result = CliRunner().invoke(cli, [*argv, str(tmp_path / "it")])
        assert result.exit_code == 0, result.output
        assert re.search(rf"^MISSING +{re.escape(said)}", result.output, re.MULTILINE)
    result = CliRunner().invoke(cli, ["audit", "verify", "--json", str(tmp_path / "it")])
    assert json.loads(result.output)["missing"] == [said]
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        fake.receipt = lacking.encode()
        result = CliRunner().invoke(cli, ["receipt", "3f2a", "--out", str(tmp_path / "written")])
        assert f"  MISSING: {said}: pruned, or in the log of a gateway that is away" in result.output
        result = CliRunner().invoke(cli, ["receipt", "3f2a", "--json", "--out", str(tmp_path / "again")])
        assert json.loads(result.output)["missing"] == [said]


def test_a_changed_byte_is_named_with_its_entry_and_its_meaning(log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "log"
    for path in log.rglob("*"):
        if path.is_file() and ".state" not in path.parts:
            (copy / path.relative_to(log)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(log)).write_bytes(path.read_bytes())
    bundle = copy / "tile" / "entries" / "000.p" / "5"
    bundle.write_bytes(bundle.read_bytes().replace(b"web-01", b"web-02"))
    done = audit("verify", copy)
    assert done.returncode == 14
    assert (
        "3 entries     entry 4 is not the one that was recorded: its hash is not that in tile/0/000.p/5, which the site signed\n"
        "              An entry is not what was recorded, or not where it was recorded: the record was tampered with.\n"
    ) in done.stdout
    assert done.stderr == f"landbridge: {copy} is not to be trusted: 1 check fails, first 3 (entries).\n"
    done = audit("verify", copy, "--json")
    assert done.returncode == 14
    [finding] = json.loads(done.stdout)["findings"]
    assert (finding["check"], finding["name"], finding["entry"]) == (3, "entries", 4)


def test_the_newest_entries_are_listed(log: Path) -> None:
    done = audit("tail", log, "-n", "2")
    assert done.returncode == 0, done.stderr
    heading, first, second = done.stdout.splitlines()
    assert heading.split() == ["INDEX", "TIME", "CODE", "EVENT", "WHO", "MIGRATION", "OUTCOME", "WHAT", "NOTE"]
    assert first.split()[:7] == ["3", "2026-01-31T12:00:03Z", "M005W", "migration.denied", "alice", "another", "denied"]
    assert "rule no-export" in first
    assert "web-01; bru to ams" in second
    assert len(audit("tail", log).stdout.splitlines()) == 6


def test_a_log_is_followed_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path, BRU)
    commit(storage, [entry(0)])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            raise KeyboardInterrupt
        if len(slept) > 1:
            commit(storage, [entry(len(slept), event="migration.denied", reason="forbidden")])

    monkeypatch.setattr(importlib.import_module("gateway.cli.audit"), "sleep", sleep)
    done = CliRunner().invoke(cli, ["audit", "tail", str(tmp_path), "-f", "--json"])
    storage.close()
    assert done.exit_code == 0
    assert [json.loads(line)["index"] for line in done.output.splitlines()] == [0, 1, 2]


def test_one_entry_is_shown_with_all_that_it_holds(log: Path) -> None:
    done = audit("show", log, "4")
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert shown["seen.vm.name"] == "web-01"
    assert shown["actor.id"] == "spiffe://example.org/site/bru/operator/alice"
    assert (shown["index"], shown["sequence"], shown["code"]) == ("4", "4", "M007I")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["--event", "migration.denied"], [3]),
        (["--event", "M007I"], [0, 1, 2, 4]),
        (["--event", "log"], []),
        (["--outcome", "denied"], [3]),
        (["--migration", MIGRATION[:8]], [0, 1, 2, 4]),
        (["--vm", "web-01"], [4]),
        (["--site", "ams"], [4]),
        (["--actor", "alice"], [0, 1, 2, 3, 4]),
        (["--actor", "bob"], []),
        (["--text", "no-export"], [3]),
        (["--from", "2026-01-31T12:00:02", "--to", "2026-01-31T12:00:04Z"], [2, 3]),
        (["--from", "2026-02-01"], []),
        (["--event", "M007I", "--vm", "web-01"], [4]),
    ],
)
def test_entries_are_found_by_what_is_asked(log: Path, asked: list[str], found: list[int]) -> None:
    done = audit("search", log, *asked, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == found
    assert all(line["type"] == "entry" and line["entry"]["sequence"] == line["index"] for line in lines)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["verify", "{tmp}/nowhere"], 3, "is no directory"),
        (["verify", "{log}", "--key", "{tmp}/nowhere"], 3, "does not exist"),
        (["verify", "{log}", "--key", "{log}/checkpoint"], 2, "is no key of a log or witness"),
        (["verify", "{log}", "--witness", "a+b+c"], 2, "is no key of a log or witness"),
        (["verify", "{log}", "--known", "{log}/log.vkey"], 2, "is no checkpoint"),
        (["verify", "{log}", "--receipt", "{log}"], 2, "cannot be read (Is a directory)"),
        (["verify", "http://example.org/log"], 2, "give a directory, or an https URL"),
        (["verify", "{tmp}"], 14, "first 1 (key)"),
        (["tail", "{tmp}"], 3, "there is no log"),
        (["show", "{log}", "5"], 3, "there is no entry 5"),
        (["show", "{log}", "-1"], 2, "-1"),
        (["search", "{log}", "--from", "yesterday"], 2, "yesterday"),
        (["export", "{log}"], 2, "name a new one with --out"),
        (["export", "{log}", "--format", "pdf"], 2, "A PDF is a file: name a new one with --out"),
        (["export", "{log}", "--format", "jsonl", "--framework", "nist"], 2, "jsonl has the entries as they are"),
        (["export", "{log}", "--format", "csv", "--framework", "sox"], 2, "sox"),
        (["export", "{log}", "--out", "{log}/checkpoint"], 4, "is there already"),
        (["export", "{log}", "--out", "/proc/nowhere"], 2, "cannot be made"),
        (["tail", "file:///nowhere"], 3, "there is no log"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_stable_code(
    log: Path, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    done = audit(*(word.format(tmp=tmp_path, log=log) for word in argv))
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_damaged_log_is_not_listed_beyond_the_damage(tmp_path: Path) -> None:
    written(tmp_path, 3)
    bundle = tmp_path / "tile/entries/000.p/3"
    bundle.write_bytes(bundle.read_bytes()[:-3])
    done = audit("tail", tmp_path)
    assert (done.returncode, done.stdout) == (14, "")
    assert "tile/entries/000.p/3 is damaged, it ends inside its entry 2" in done.stderr
    bundle.write_bytes(b"\0\4null" * 3)
    assert "entry 0 is damaged" in audit("tail", tmp_path).stderr


# Shipping.


def test_it_is_shown_how_far_a_log_was_shipped(tmp_path: Path) -> None:
    written(tmp_path, 5)
    assert len(audit("status", tmp_path).stdout.splitlines()) == 1
    ship_cursor.path_of(tmp_path, "siem").parent.mkdir()
    since = "2026-01-31T12:00:09.000000Z"
    behind = Cursor("syslog at siem:6514", next=3, lost=1, problem="Connection refused", since=since)
    ship_cursor.save(tmp_path, "siem", behind)
    ship_cursor.save(tmp_path, "lines", Cursor("/var/log/a.jsonl", next=5, confirmed=since))
    done = audit("status", tmp_path)
    assert done.returncode == 0, done.stderr
    heading, lines, siem = done.stdout.splitlines()
    assert heading.split()[:6] == ["TARGET", "WHERE", "SHIPPED", "BEHIND", "OLDEST", "LOST"]
    assert lines.split() == ["lines", "/var/log/a.jsonl", "5", "0", "-", "-", "-"]
    assert siem.split()[:8] == ["siem", "syslog", "at", "siem:6514", "2", "2", "2026-01-31T12:00:03Z", "1"]
    assert "since 2026-01-31T12:00:09Z: Connection refused" in siem
    first, second = (json.loads(line) for line in audit("status", tmp_path, "--json").stdout.splitlines())
    assert (first["type"], first["target"], first["behind"], first["oldest"]) == ("shipping", "lines", 0, "")
    assert (second["where"], second["next"], second["lost"], second["behind"]) == ("syslog at siem:6514", 3, 1, 2)


# Exports.


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """The log of a day, cosigned."""
    written_day(tmp_path / "day")
    cosigned(tmp_path / "day")
    return tmp_path / "day"


def checker(bundle: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """What a newcomer runs, as the README says: the checker alone, where Landbridge is not to be imported."""
    clean = [sys.executable, "-I", "-c", _ALONE, str(bundle / "verify.py"), *argv]
    return subprocess.run(clean, capture_output=True, text=True, check=False, timeout=30)


_ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("landbridge", "gateway", "certs", "agent")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_bundle_is_verified_from_its_readme_alone(day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = audit("export", day, "--out", out, "--event", "migration")
    assert done.returncode == 0, done.stderr
    alone = newcomer.environment(tmp_path / "alone")
    assert newcomer.has_nothing_of_ours(alone)
    first, second = newcomer.verify(out, alone)
    assert first.args[-1].startswith("python3 verify.py --key")
    assert second.args[-1].startswith("landbridge audit verify --part log --key")
    for done in (first, second):
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0,
            "All checks pass: this is what the site has signed.",
        ), done
    done = checker(out, "--witness", str(WITNESS_KEY))
    assert f"witness      {AMS} has cosigned the first {len(audit_day())} entries" in done.stdout
    assert "compare it with the one that the site has published" in done.stdout
    assert audit("verify", "--part", out / "log").returncode == 0
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o600}
    assert audit("export", day, "--out", out).returncode == 4


# Exports that are on record.


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        yield fake


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Path]:
    """A log that a gateway has open."""
    storage = Storage.open(tmp_path / "open", BRU)
    commit(storage, [entry(number) for number in range(3)])
    yield tmp_path / "open"
    storage.close()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["jsonl", "csv", "syslog", "ocsf", "report", "pdf"])
def test_of_a_log_that_a_gateway_has_open_an_export_is_on_record_before_its_file_is_there(
    fake: FakeGateway, opened: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "file"
    fake.on_export = lambda: pytest.fail("it was there first") if out.exists() else None
    result = CliRunner().invoke(cli, ["audit", "export", str(opened), "--format", form, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (told,) = fake.exported
    assert told == RecordExportRequest(
        log=BRU, size=3, filter="everything", format=form, entries=3, first=0, last=2, sha256=sha256_of(out)
    )
    assert f"On record as entry 42 of {BRU}: SHA-256 {told.sha256}." in result.output
    assert "no log has an entry of this export" not in result.output


def test_a_bundle_is_on_record_by_the_list_of_its_files_which_holds(
    fake: FakeGateway, opened: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["audit", "export", str(opened), "--out", str(out), "--text", "no such text"])
    assert result.exit_code == 0, result.output
    (told,) = fake.exported
    assert (told.filter, told.entries, told.first, told.last) == ("text=no such text", 0, 0, 0)
    assert told.sha256 == sha256_of(out / "SHA256SUMS")
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=False)
    assert done.returncode == 0
    listed = {line.split("  ", 1)[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for page in ("README.md", "report.html"):
        assert "on record in the log (log.exported) before it was written" in (out / page).read_text()


@pytest.mark.parametrize(
    "refused",
    [PermissionDenied("adam has no role"), NotRecorded("the disk is full"), Unreachable("it does not answer")],
    ids=lambda refused: type(refused).__name__,
)
def test_what_cannot_be_recorded_is_not_exported(
    fake: FakeGateway,
    opened: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: LandbridgeError,
) -> None:
    fake.refuse = refused
    for argv in (["--out", str(tmp_path / "out")], ["--format", "jsonl", "--out", str(tmp_path / "out")]):
        assert main(["audit", "export", str(opened), *argv]) == refused.exit_code
        err = capsys.readouterr().err
        assert err.startswith(
            "landbridge: Nothing was exported, since the log is to have an entry of it and has none: "
        )
        assert len(err.splitlines()) == 1
    assert main(["audit", "export", str(opened), "--format", "jsonl"]) == refused.exit_code
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_who_names_no_gateway_exports_nothing_of_a_log_that_one_has_open(opened: Path, tmp_path: Path) -> None:
    done = audit("export", opened, "--format", "jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Nothing was exported" in done.stderr
    assert "use --gateway HOST:PORT" in done.stderr


def test_an_export_that_would_overwrite_is_not_recorded(fake: FakeGateway, opened: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").touch()
    for argv in (["--out", str(tmp_path / "out")], ["--format", "csv", "--out", str(tmp_path / "out/README.md")]):
        assert CliRunner().invoke(cli, ["audit", "export", str(opened), *argv]).exit_code != 0
    assert fake.exported == []


@pytest.mark.parametrize("form", ["bundle", "jsonl", "csv"])
def test_where_nothing_can_be_written_nothing_is_recorded_and_one_sentence_says_so(
    fake: FakeGateway, opened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    (tmp_path / "file").touch()
    # Into /proc nobody makes a file; of a folder, that is seen when it is made.
    nowhere = [] if form == "bundle" else [Path("/proc/out")]
    for out in (tmp_path / ("x" * 300), tmp_path / "file/out", *nowhere):
        assert main(["audit", "export", str(opened), "--format", form, "--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"landbridge: .*cannot be (written|made): .*; choose another --out\.\n", err), err
    assert fake.exported == []


def test_of_a_copy_no_log_has_an_entry_and_the_export_says_so_unless_it_is_to_be_recorded(
    fake: FakeGateway, opened: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(opened, tmp_path / "copy")
    result = CliRunner().invoke(cli, ["audit", "export", str(copy), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert f"This is from {copy} alone: no log has an entry of this export." in result.output
    assert "no log has an entry of this export" in (tmp_path / "out/README.md").read_text()
    assert fake.exported == []
    argv = ["audit", "export", f"file://{copy}", "--record", "--format", "csv", "--out", str(tmp_path / "csv")]
    assert CliRunner().invoke(cli, argv).exit_code == 0
    assert [each.sha256 for each in fake.exported] == [sha256_of(tmp_path / "csv")]


def test_a_bundle_of_a_part_of_a_long_log_has_no_more_than_it_needs(tmp_path: Path) -> None:
    written(tmp_path / "log", 1000)
    out = tmp_path / "out"
    done = audit(
        "export", tmp_path / "log", "--out", out, "--from", "2026-01-31T12:05:00", "--to", "2026-01-31T12:05:03"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (out / "log/tile/entries").iterdir()] == ["001"]
    done = checker(out)
    assert done.returncode == 0, done.stdout
    assert "export       3 lines of entries.jsonl are among them" in done.stdout
    assert audit("verify", "--part", out / "log").returncode == 0
    assert audit("verify", out / "log").returncode == 14


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A log whose first 600 entries are too old, so that two bundles are gone, and which has gone on."""
    written(tmp_path / "log", 1000)
    storage = Storage.open(tmp_path / "log", BRU)
    commit(storage, [entry(1000, event="log.pruned", seen={"pruned": {"minimum": 600, "retention_days": 365}})])
    storage.prune(600)
    commit(storage, [entry(number) for number in range(1001, 1300)])
    storage.close()
    cosigned(tmp_path / "log")
    return tmp_path / "log"


def test_a_bundle_of_a_pruned_log_says_from_where_on_and_verifies(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Entries 720 to 722, far from the one that says what was pruned.
    done = audit("export", pruned, "--out", out, "--from", "2026-01-31T12:12:00", "--to", "2026-01-31T12:12:03")
    assert done.returncode == 0, done.stderr
    assert "Entries below 600 were pruned, as entry 1000 says." in done.stdout + done.stderr
    assert "**Entries below 600 are not here" in (out / "README.md").read_text()
    assert sorted(path.name for path in (out / "log/tile/entries").iterdir()) == ["002", "003"]
    assert sorted(path.name for path in (out / "log/tile/0").iterdir()) == ["000", "001", "002", "003", "004", "005.p"]
    done = checker(out, "--witness", str(WITNESS_KEY))
    assert done.returncode == 0, done.stdout
    assert "tree         the hashes of 1300 entries lead to the signed root" in done.stdout
    assert "those below 600 were pruned" in done.stdout
    assert f"witness      {AMS} has cosigned the first 1300 entries" in done.stdout
    assert audit("verify", "--part", out / "log").returncode == 0
    assert audit("export", pruned, "--out", tmp_path / "whole").returncode == 0
    assert audit("verify", tmp_path / "whole/log").returncode == 0


def test_hashes_that_are_missing_are_only_believed_to_be_pruned_if_an_entry_says_so(
    pruned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert audit("export", pruned, "--out", out).returncode == 0
    for older in ("000", "001"):  # as a log that was pruned with its hashes has them
        (out / "log/tile/0" / older).unlink()
    assert checker(out).returncode == 0
    hidden = {name: (out / "log/tile" / name / "002").rename(tmp_path / name) for name in ("entries", "0")}
    done = checker(out)
    assert done.returncode == 1
    assert "the hashes from entry 512 on are missing, and no entry here says that they were pruned" in done.stdout
    hidden["0"].rename(out / "log/tile/0/002")
    done = checker(out)
    assert "a line of entries.jsonl was never recorded" in done.stdout
    hidden["entries"].rename(out / "log/tile/entries/002")
    assert checker(out).returncode == 0
    (out / "log/tile/entries/003").rename(tmp_path / "003")
    assert "from entry 0 on are missing, and no entry here says" in checker(out).stdout
    (tmp_path / "003").rename(out / "log/tile/entries/003")
    above = out / "log/tile/1/000.p/5"
    above.write_bytes(bytes([above.read_bytes()[0] ^ 1]) + above.read_bytes()[1:])
    assert "do not lead to the root that is signed" in checker(out).stdout


def test_the_checker_finds_each_byte_that_was_changed(day: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "out", str(signer(day).key())
    assert audit("export", day, "--out", out).returncode == 0
    spec = importlib.util.spec_from_file_location("checker", out / "verify.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    verdict = partial(runner, module, key)
    assert verdict() == 0
    for path in [*(out / "log").rglob("*"), out / "entries.jsonl"]:
        # The key is given, and of the hashes, those of single entries are enough.
        if path.is_dir() or path.name == "log.vkey" or "tile/1" in str(path):
            continue
        raw = path.read_bytes()
        for at in range(0, len(raw), 7):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            assert verdict() == 1, (path, at)
        path.write_bytes(raw)
    assert verdict() == 0


def runner(module: Any, key: str) -> int:
    """Run the checker in this process; what it prints goes nowhere."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["verify.py", "--key", key, "--witness", str(WITNESS_KEY)])
        status: int = module.main()
        return status


def test_the_checker_is_short_enough_to_be_read() -> None:
    source = Path(standalone.__file__).read_text()
    assert len(source.splitlines()) <= 230
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


@pytest.mark.parametrize("form", ["jsonl", "csv", "syslog", "ocsf"])
def test_other_forms_have_a_line_for_each_entry(day: Path, tmp_path: Path, form: str) -> None:
    done = audit("export", day, "--format", form, "--outcome", "denied")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == (2 if form == "csv" else 1)
    assert audit("export", day, "--format", form, "--out", tmp_path / "file").returncode == 0
    assert len((tmp_path / "file").read_text().splitlines()) == len(audit_day()) + (form == "csv")


def test_the_report_says_exceptions_first_and_runs_nothing(day: Path) -> None:
    page = audit("export", day, "--format", "report").stdout
    assert page.index("Exceptions") < page.index("web-01: migration m-1")
    assert "verified: this is what the site has signed" in page
    for told in (
        "bru, host-a, BE",
        "ams, host-b, NL",
        "legitimate-interests",
        "TLSv1.3",
        "both ends agree",
        "bob, spiffe",
        "87 ms of them paused",
    ):
        assert told in page, told
    assert "3: 2 completed, 1 denied" in page
    assert "bru (BE) to ams (NL): 3" in page
    assert "<script" not in page
    assert "rule no-databases-abroad &lt;script&gt;" in page
    assert "http" not in page.replace("https://c2sp.org", "")


def test_what_was_denied_before_it_was_a_migration_is_told_like_one(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, BRU)
    about = {"vm": {"name": "vault"}, "source": {"site": "bru"}, "destination": {"site": "ams"}}
    denied = entry(0, event="migration.denied", migration="", outcome="denied", reason="the vault stays", seen=about)
    commit(storage, [denied, entry(1, migration="", event="access.denied")])
    storage.close()
    page = audit("export", tmp_path, "--format", "report").stdout
    assert "1: 1 denied" in page
    assert "<h3>vault: asked for, and refused</h3>" in page


@pytest.mark.parametrize(
    ("arrived", "told"),
    [
        ([], "sent here; the other site's log has the other end"),
        ([received()], "both ends agree"),
        ([received("b")], '<span class="bad">the two ends differ</span>'),
    ],
)
def test_the_report_compares_the_ends_of_a_channel_that_are_known(
    tmp_path: Path, arrived: list[dict[str, object]], told: str
) -> None:
    storage = Storage.open(tmp_path, BRU)
    claimed = {"channels": arrived} if arrived else {}
    commit(storage, [entry(0, event="migration.delivered", seen={"channels": [sent()]}, claimed=claimed)])
    storage.close()
    assert told in audit("export", tmp_path, "--format", "report").stdout


def test_the_report_is_a_pdf_as_well(day: Path, tmp_path: Path) -> None:
    done = audit("export", day, "--format", "pdf", "--framework", "nist", "--out", tmp_path / "report.pdf")
    assert done.returncode == 0, done.stderr
    raw = (tmp_path / "report.pdf").read_bytes()
    assert raw.startswith(b"%PDF-")
    assert raw.rstrip().endswith(b"%%EOF")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", raw, re.DOTALL)
    objects = b"".join(zlib.decompress(each) for each in streams if each[:1] == b"\x78")
    assert len(re.findall(rb"/Type ?/Page\b", objects)) > 3


def test_a_report_goes_by_the_requirements_of_a_framework(day: Path) -> None:
    page = audit("export", day, "--format", "report", "--framework", "gdpr").stdout
    assert "for GDPR</h1>" in page
    assert page.index("Exceptions") < page.index("GDPR, by requirement") < page.index("web-01: migration m-1")
    assert "transfers to third countries, and their safeguards" in page
    assert "not by Landbridge" in page
    rows = list(
        csv.DictReader(io.StringIO(audit("export", day, "--format", "csv", "--framework", "pci").stdout, newline=""))
    )
    denied = [row for row in rows if row["requirement"] == "10.2.1.4"]
    assert [(row["answer"], row["event"], row["asked for"]) for row in denied] == [
        ("answered", "migration.denied", "denied and failed attempts")
    ]
    assert {row["answer"] for row in rows if row["requirement"] == "10.2.1.3"} == {"no such entry here"}
    assert [row["answer"].partition(":")[0] for row in rows if row["requirement"] == "10.6"] == [
        "not answered by Landbridge"
    ]


def test_a_log_that_does_not_verify_makes_no_bundle_and_its_report_says_so(day: Path, tmp_path: Path) -> None:
    bundle = next((day / "tile/entries/000.p").iterdir())
    bundle.write_bytes(bundle.read_bytes().replace(b"web-01", b"web-09", 1))
    done = audit("export", day, "--out", tmp_path / "out")
    assert (done.returncode, (tmp_path / "out").exists()) == (14, False)
    assert "NOT TO BE TRUSTED: entry 2 is not the one" in audit("export", day, "--format", "report").stdout


# At a URL.


@pytest.fixture
def server(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The log, served; through plain HTTP, since only its reading is tried here."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=log)) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


def web(url: str) -> files.Web:
    place = files.Web("https://example.org")
    place._url = url
    return place


def test_a_log_on_the_web_is_verified_without_being_listed(log: Path, server: str) -> None:
    report = verify(web(server))
    assert (report.findings, report.entries) == ([], 5)
    assert web(server).read("no/such/file") is None
    assert verify(files.at(f"file://{log}")).findings == []


def test_a_server_that_does_not_answer_as_it_should_is_unreachable(server: str) -> None:
    with pytest.raises(Unreachable, match="cannot be read"):
        web("http://127.0.0.1:1").read("checkpoint")
    with pytest.raises(UsageError, match="is no place of a log"):
        files.at("ftp://example.org/log")
    with pytest.raises(NotFound):
        files.at("/nowhere")
