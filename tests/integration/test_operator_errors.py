"""Wrong requests and wrong certificates: one sentence on standard error, a stable exit code, nothing touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import create, issue
from certs.identity import Identity, Role, Site
from certs.store import add_trust, save_identity
from tests.integration.story import SLOW_DISK, Guest, assert_holds, moving
from tests.lab import Lab
from tests.lab.product import TRUST_DOMAIN

pytestmark = pytest.mark.lab


def assert_one_sentence(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command said what is wrong, once, and nothing of how the program is made."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("landbridge: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["migrate", "nobody", "--to", "west"], 3, ["nobody", "landbridge vms"]),
        (["migrate", "web", "--to", "north"], 3, ["north", "west"]),
        (["migrate", "web", "--to", "west/west-9"], 3, ["west-9", "west-1"]),
        (["migrate", "web", "--to", "east"], 2, ["east"]),
        (["migrate", "web"], 2, ["--to"]),
        (["migrate", "web", "--to", "a/b/c"], 2, ["b/c"]),
        (["migrate", "../../etc/passwd", "--to", "west"], 2, []),
        (["migrate", "web\x1b[2J", "--to", "west"], 2, []),
        (["show", "00000000"], 3, ["00000000"]),
        (["cancel", "00000000"], 3, ["00000000"]),
        (["settle", "not an id"], 2, []),
        (["migrate", "web", "--to", "west", "--fast"], 2, ["--fast"]),
        (["teleport", "web"], 2, ["teleport"]),
        (["--gateway", "10.71.1.1:9", "vms"], 7, ["10.71.1.1:9"]),
        (["--gateway", "nonsense", "vms"], 2, ["nonsense"]),
        (["--identity", "/nowhere", "vms"], 3, ["/nowhere"]),
    ],
    ids=lambda value: " ".join(value).encode("unicode_escape").decode() if isinstance(value, list) else None,
)
def test_a_wrong_request_is_answered_with_one_sentence(
    lab: Lab, guest: Guest, arguments: list[str], code: int, words: list[str]
) -> None:
    if guest.host != "east-1":
        with moving(guest) as move:
            assert move.end()["state"] == "completed"
    assert_one_sentence(lab.landbridge("east", *arguments), code, *words)


def test_a_second_migration_of_the_same_vm_is_refused_while_one_is_under_way(guest: Guest) -> None:
    with moving(guest, SLOW_DISK) as move:
        move.in_disk_phase()
        second = guest.lab.landbridge(move.source_site, "migrate", guest.name, "--to", move.destination_site)
        assert_one_sentence(second, 4, move.id, "is under way")
        cancelled = guest.lab.landbridge(move.source_site, "cancel", move.id)
        assert cancelled.returncode == 0
        move.end()
    assert_holds(move, at=move.source)


def _with_identity(lab: Lab, directory: Path) -> subprocess.CompletedProcess[str]:
    return lab.landbridge("east", "--identity", str(directory), "vms")


def _greeting(lab: Lab, identity: Path | None) -> str:
    """What the gateway's port for operators answers to the beginning of HTTP/2, from a client that checks nothing itself."""
    certificate = ["-cert", str(identity / "cert.pem"), "-key", str(identity / "key.pem")] if identity else []
    client = ["openssl", "s_client", "-connect", "10.71.1.1:7443", "-tls1_3", "-alpn", "h2", "-quiet"]
    return subprocess.run(
        [*lab.enter("east-gw"), "timeout", "3", *client, *certificate],
        input="PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        capture_output=True,
        encoding="latin-1",
        check=False,
    ).stdout


def test_only_a_client_with_a_certificate_of_the_sites_ca_hears_a_word(lab: Lab, impostor: Path) -> None:
    assert _greeting(lab, lab.product.identity("east", "operator", "alice"))
    assert not _greeting(lab, None)
    assert not _greeting(lab, impostor)


def test_without_an_identity_the_command_says_what_is_missing(lab: Lab, tmp_path: Path) -> None:
    assert_one_sentence(_with_identity(lab, tmp_path), 3, str(tmp_path))


@pytest.fixture
def impostor(tmp_path: Path) -> Path:
    """An operator's identity of this site's name, from a CA that is not the site's."""
    now = datetime.now(UTC)
    leaf = issue(create(Site(TRUST_DOMAIN, "east"), now), Identity(TRUST_DOMAIN, "east", Role.OPERATOR, "mallory"), now)
    save_identity(tmp_path / "mallory", leaf)
    return tmp_path / "mallory"


def test_with_a_certificate_of_another_ca_the_command_does_not_trust_the_gateway(lab: Lab, impostor: Path) -> None:
    assert_one_sentence(_with_identity(lab, impostor), 6, "10.71.1.1:7443")


def test_a_hosts_certificate_is_not_an_operators(lab: Lab) -> None:
    refused = _with_identity(lab, lab.product.identity("east", "host", "east-1"))
    assert_one_sentence(refused, 6, "host/east-1", "operator")


def test_an_operator_of_another_site_is_refused(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.product.identity("west", "operator", "alice"), tmp_path / "alice", copy_function=_copy)
    add_trust(tmp_path / "alice", lab.product.authority("east") / "ca.pem")
    # It looks for a gateway of its own site at that address.
    assert_one_sentence(_with_identity(lab, tmp_path / "alice"), 6, "10.71.1.1:7443")


def _copy(source: str, destination: str) -> str:
    shutil.copy2(source, destination)
    os.chown(destination, os.geteuid(), os.getegid())
    return destination
