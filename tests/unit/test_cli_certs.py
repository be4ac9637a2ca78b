"""`landbridge certs`, as an operator runs it: a CA, identities, trust, and a word for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE

import pytest

from certs.store import load_identity

LANDBRIDGE = Path(sys.executable).with_name("landbridge")


def certs(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LANDBRIDGE, "certs", *map(str, argv)], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    done = certs("init", "--site", "fra", "--trust-domain", "example.org", "--out", tmp_path / "ca")
    assert done.returncode == 0, done.stderr
    return tmp_path / "ca"


@pytest.mark.parametrize(
    ("role", "name", "uri"),
    [
        ("gateway", "gw-1", "spiffe://example.org/site/fra/gateway/gw-1"),
        ("host", "host-a", "spiffe://example.org/site/fra/host/host-a"),
        ("operator", "alice", "spiffe://example.org/site/fra/operator/alice"),
    ],
)
def test_an_identity_that_was_issued_is_whole_private_and_accepted(
    authority: Path, tmp_path: Path, role: str, name: str, uri: str
) -> None:
    out = tmp_path / name
    assert certs("issue", "--ca", authority, role, name, "--out", out).returncode == 0
    assert str(load_identity(out, datetime.now(UTC)).identity) == uri
    files = [path for path in (*authority.rglob("*"), *out.rglob("*")) if path.is_file()]
    assert len(files) == (7 if role == "gateway" else 5)  # a gateway has an issuer, too
    assert {S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    shown = json.loads(certs("show", out, "--json").stdout)
    assert uri in shown.values()


def test_a_gateway_trusts_another_site_when_it_is_told_to(authority: Path, tmp_path: Path) -> None:
    other, gateway = tmp_path / "other", tmp_path / "gw-1"
    certs("init", "--site", "ams", "--trust-domain", "example.org", "--out", other)
    certs("issue", "--ca", authority, "gateway", "gw-1", "--out", gateway)
    assert certs("trust", gateway, other / "ca.pem").returncode == 0
    assert {site.site for site in load_identity(gateway, datetime.now(UTC)).trust.roots} == {"fra", "ams"}


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["init", "--site", "fra", "--trust-domain", "example.org", "--out", "{tmp}/ca"], 4),
        (["init", "--site", "../fra", "--trust-domain", "example.org", "--out", "{tmp}/new"], 2),
        (["issue", "--ca", "{tmp}/nowhere", "host", "a", "--out", "{tmp}/a"], 3),
        (["issue", "--ca", "{tmp}/ca", "king", "a", "--out", "{tmp}/a"], 2),
        (["issue", "--ca", "{tmp}/ca", "host", "", "--out", "{tmp}/a"], 2),
        (["trust", "{tmp}/nowhere", "{tmp}/ca/ca.pem"], 3),
        (["show", "{tmp}/nowhere"], 3),
    ],
)
def test_a_mistake_is_one_sentence_and_a_stable_code(
    authority: Path, tmp_path: Path, argv: list[str], code: int
) -> None:
    before = {path: path.read_bytes() for path in authority.iterdir()}
    done = certs(*(word.format(tmp=tmp_path) for word in argv))
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in authority.iterdir()} == before
