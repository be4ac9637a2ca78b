"""The verbs that look after identities, as processes against gateways that run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs import store
from certs.trust import fingerprint, spoken
from tests.system.sites import SiteUnderTest, TwoSites, eventually, make_identities

pytestmark = pytest.mark.timeout(60)

LANDBRIDGE = str(Path(sys.executable).parent / "landbridge")


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[TwoSites]:
    """Two sites whose identities no other test uses."""
    make_identities(tmp_path)
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        async with TwoSites(tmp_path, Path(directory)) as sites:
            yield sites


async def run(site: SiteUnderTest, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `landbridge` as the site's operator, at its first gateway."""
    environment = {
        **os.environ,
        "LANDBRIDGE_GATEWAY": str(site.listens["gw-1"].operators),
        "LANDBRIDGE_IDENTITY": str(site._identities / "root"),
    }
    return await asyncio.to_thread(
        subprocess.run, [LANDBRIDGE, *argv], capture_output=True, text=True, env=environment, check=False
    )


async def test_status_shows_what_expires_and_what_was_revoked(own: TwoSites) -> None:
    async def has_seen_the_host() -> bool:
        return "host/fra-1" in (await run(own.fra, "certs", "status")).stdout

    await eventually(has_seen_the_host)
    before = await run(own.fra, "certs", "status")
    assert before.returncode == 0, before.stderr
    lines = {line.split()[0]: line for line in before.stdout.splitlines()[1:]}
    assert list(lines)[:3] == ["root", "issuer/gw-1", "gateway/gw-1"]
    assert "by itself" in lines["gateway/gw-1"]
    assert "by hand" in lines["operator/root"]
    unknown = await run(own.fra, "certs", "revoke", "host/fra-9", "--reason", "lost")
    assert (unknown.returncode, "No certificate of it is known" in unknown.stdout) == (0, True)
    serial = lines["host/fra-1"].split()[-2]
    known = await run(own.fra, "certs", "revoke", f"{serial[:14]}…", "--json")  # as a terminal cuts it
    assert (known.returncode, json.loads(known.stdout)) == (
        0,
        {"type": "revoked", "subject": serial, "known": [serial]},
    )
    after = (await run(own.fra, "certs", "status", "--json")).stdout.splitlines()
    objects = [json.loads(line) for line in after]
    revoked = [each["identity"] for each in objects if each["type"] == "certificate" and each["revoked_at"]]
    assert revoked == ["spiffe://landbridge.test/site/fra/host/fra-1"]
    assert {each["subject"] for each in objects if each["type"] == "denial"} == {
        "spiffe://landbridge.test/site/fra/host/fra-9",
        serial,
    }


async def test_enroll_prints_the_command_for_the_new_host(own: TwoSites) -> None:
    done = await run(own.fra, "hosts", "enroll", "fra-2")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("On fra-2, as root, before ")
    assert second.startswith("landbridge-agent enroll lb1.")
    made = json.loads((await run(own.fra, "hosts", "enroll", "fra-2", "--json")).stdout)
    assert made["type"] == "token"
    assert made["token"] not in second
    refused = await run(own.fra, "hosts", "enroll", "FRA 2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


async def test_join_takes_the_right_fingerprint_and_no_other(own: TwoSites) -> None:
    at = str(own.ams.listens["gw-1"].peers)
    theirs = spoken(fingerprint(store.load_authority(own.ams._identities / "ca").certificate))
    wrong = await run(own.fra, "sites", "join", "ams", "--at", at, "--fingerprint", "0000 " * 8)
    assert wrong.returncode == 6
    assert f"The fingerprint of ams is {theirs}, and not the one that you gave" in wrong.stderr
    nobody = await run(own.fra, "sites", "join", "ams", "--at", at)
    assert (nobody.returncode, "with --fingerprint" in nobody.stderr) == (2, True)
    other = await run(own.fra, "sites", "join", "lon", "--at", at, "--fingerprint", theirs)
    assert (other.returncode, "is of site ams, and not of lon" in other.stderr) == (2, True)
    silent = await run(own.fra, "sites", "join", "ams", "--at", "127.0.0.1:1", "--fingerprint", theirs)
    assert (silent.returncode, "cannot be reached" in silent.stderr) == (7, True)
    right = await run(own.fra, "sites", "join", "ams", "--at", at, "--fingerprint", theirs, "--json")
    assert right.returncode == 0, right.stderr
    assert json.loads(right.stdout)["fingerprint"] == theirs


async def test_what_stands_in_the_configuration_is_neither_removed_nor_left_by_a_verb(own: TwoSites) -> None:
    for argv, said in (
        (("hosts", "remove", "fra-1", "--force"), 'delete its [[hosts]], the one with name = "fra-1"'),
        (("sites", "leave", "ams", "--force"), 'delete its [[sites]], the one with name = "ams"'),
    ):
        done = await run(own.fra, *argv)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
        assert said in done.stderr
    done = await run(own.fra, "hosts", "remove", "fra-9")
    assert (done.returncode, "has no host 'fra-9'" in done.stderr) == (3, True)


async def test_rotate_changes_the_root_and_the_operator_is_still_answered(own: TwoSites) -> None:
    ca, gateway = own.fra._identities / "ca", own.fra._identities / "gw-1"
    old = store.load_authority(ca).certificate
    done = await run(own.fra, "certs", "rotate", "--ca", str(ca), "--overlap", "8s")
    assert done.returncode == 0, done.stderr
    assert "holds a new root of spiffe://landbridge.test/site/fra" in done.stdout
    assert "Gateway gw-1 has a new issuer, in use from " in done.stdout
    new = store.load_authority(ca).certificate
    assert new != old
    await eventually(lambda: store.load_identity(gateway, datetime.now(UTC)).root == new)
    status = await run(own.fra, "certs", "status")
    assert status.returncode == 0, status.stderr
    assert [line.split()[0] for line in status.stdout.splitlines()].count("root") == 2
    await eventually(
        lambda: store.load_trust(own.ams._identities / "gw-1").roots[store.load_authority(ca).site] == (new,)
    )


async def test_renew_gives_a_gateway_a_new_issuer_and_asks_for_this_sites_ca(own: TwoSites) -> None:
    ca, gateway = own.fra._identities / "ca", own.fra._identities / "gw-1"
    before = len(list((gateway / "issuers").glob("*.pem")))
    done = await run(own.fra, "certs", "renew", "--ca", str(ca), "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["type"], made["gateway"], sorted(made)) == ("issuer", "gw-1", ["gateway", "in_use_from", "type"])
    assert len(list((gateway / "issuers").glob("*.pem"))) == before + 1
    wrong = await run(own.fra, "certs", "renew", "--ca", str(own.ams._identities / "ca"))
    assert (wrong.returncode, "and of no other site" in wrong.stderr) == (6, True)


def test_a_gateway_on_another_machine_than_the_ca_gets_its_identity_by_a_request(tmp_path: Path) -> None:
    def certs(*argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([LANDBRIDGE, "certs", *map(str, argv)], capture_output=True, text=True, check=False)

    ca, home, answer = tmp_path / "ca", tmp_path / "gw-1", tmp_path / "answer.pem"
    names = ("--site", "fra", "--trust-domain", "example.org")
    for step in (
        ("init", *names, "--out", ca),
        ("request", "gw-1", *names, "--out", home),
        ("sign", "--ca", ca, "gw-1", home / "request.pem", "--out", answer),
        ("install", home, answer),
    ):
        done = certs(*step)
        assert done.returncode == 0, done.stderr
    assert b"PRIVATE" not in (home / "request.pem").read_bytes() + answer.read_bytes()
    stored = store.load_identity(home, datetime.now(UTC))
    assert str(stored.identity) == "spiffe://example.org/site/fra/gateway/gw-1"
    assert stored.root == store.load_authority(ca).certificate
    again = certs("install", home, answer)
    assert (again.returncode, "or it is installed already" in again.stderr) == (4, True)
    garbage = tmp_path / "garbage"
    garbage.write_text("garbage")
    new = tmp_path / "new.pem"
    mistakes: list[tuple[tuple[str | Path, ...], str]] = [
        (("sign", "--ca", ca, "gw-1", garbage, "--out", new), f"{garbage} is no request"),
        (("install", home, garbage), f"{garbage} is no answer"),
        (("install", home, home / "request.pem"), "request.pem is no answer"),
        (("install", home, ca / "ca.pem"), "ca.pem is no answer"),
        (("trust", home, answer), f"{answer} is no root of a site"),
    ]
    for arguments, said in mistakes:
        done = certs(*arguments)
        assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True), done.stderr
    assert not new.exists()


def test_nothing_that_certs_writes_takes_the_place_of_a_ca(tmp_path: Path) -> None:
    def certs(*argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([LANDBRIDGE, "certs", *map(str, argv)], capture_output=True, text=True, check=False)

    ca, home = tmp_path / "ca", tmp_path / "gw-1"
    names = ("--site", "fra", "--trust-domain", "example.org")
    assert certs("init", *names, "--out", ca).returncode == 0
    assert certs("request", "gw-1", *names, "--out", home).returncode == 0
    before = {path: path.read_bytes() for path in ca.iterdir()}
    attempts: list[tuple[tuple[str | Path, ...], str]] = [
        (("sign", "--ca", ca, "gw-1", home / "request.pem", "--out", ca / "ca.pem"), "is not overwritten"),
        (("sign", "--ca", ca, "gw-1", home / "request.pem", "--out", ca / "ca.key"), "is not overwritten"),
        (("issue", "--ca", ca, "operator", "alice", "--out", ca), "holds a CA"),
        (("issue", "--ca", ca, "operator", "alice", "--out", ca, "--force"), "holds a CA"),
    ]
    for step, said in attempts:
        done = certs(*step)
        assert (done.returncode, said in done.stderr) == (4, True), done.stderr
    assert {path: path.read_bytes() for path in ca.iterdir()} == before
    (ca / "ca.pem").write_text("garbage")
    done = certs("show", ca)
    assert (done.returncode, f"{ca}/ca.pem is no root of a site" in done.stderr) == (2, True), done.stderr
