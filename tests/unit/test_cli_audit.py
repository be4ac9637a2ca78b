"""`landbridge audit`, as an operator or an auditor runs it."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.audit import files
from gateway.audit.journal import commit
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from landbridge.errors import NotFound, Unreachable, UsageError
from tests.unit.audit_logs import AMS, BRU, MIGRATION, WITNESS_KEY, cosigned, entry, receipt, signer, written

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
