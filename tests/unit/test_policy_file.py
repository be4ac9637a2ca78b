"""gateway/authorization/policy_file.py: what is wrong keeps a gateway from starting, and later the old rules in force."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from certs.identity import Site
from gateway.authorization.policy_file import PolicyFile
from landbridge.errors import ConfigError
from tests.unit.policies import HEAD, PERMIT

HERE = Site("example.org", "fra")
CASE = '[[tests]]\nname = "t"\nwho = "alice"\nvm = "web-1"\nfrom = "fra"\nto = "ams"\nexpect = "allowed"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + PERMIT)
    return path


def test_a_right_file_is_in_force_with_its_hash(path: Path) -> None:
    file = PolicyFile(path, HERE)
    assert file.rules is not None
    assert len(file.rules.rules) == 1
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.loaded_at is not None
    assert file.problem == ""


def test_without_a_file_there_are_no_rules() -> None:
    file = PolicyFile(None, HERE)
    file.reread()
    file.look()
    assert (file.rules, file.sha256, file.loaded_at) == (None, "", None)


def _missing(path: Path) -> None:
    path.unlink()


def _wrong(path: Path) -> None:
    path.write_text(HEAD + "colour = 1")


def _of_another_site(path: Path) -> None:
    path.write_text(HEAD.replace('site = "fra"', 'site = "ams"', 1))


def _of_another_domain(path: Path) -> None:
    path.write_text(HEAD.replace("example.org", "else.where"))


def _failing(path: Path) -> None:
    path.write_text(HEAD + CASE)


def _not_text(path: Path) -> None:
    path.write_bytes(b"site = '\xff'")


def _writable_by_all(path: Path) -> None:
    path.chmod(0o666)


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


MISTAKES = [
    (_missing, r"the policy .*policy.toml cannot be read: No such file or directory; see policy.file"),
    (_wrong, r"is wrong at line 17, sites.nyc.colour"),
    (_of_another_site, r"is for spiffe://example.org/site/ams, and this gateway is of spiffe://example.org/site/fra"),
    (_of_another_domain, r"is for spiffe://else.where/site/fra"),
    (_failing, r"fails its own test 't': expected allowed"),
    (_not_text, r"is not UTF-8 text: invalid start byte at byte 8"),
    (_writable_by_all, r"can be written by everybody on this machine: chmod o-w"),
    (_a_directory, r"cannot be read: Is a directory"),
]


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_gateway_does_not_start_with_a_file_that_is_not_right(path: Path, spoil: object, said: str) -> None:
    spoil(path)  # type: ignore[operator]  # one of the functions above
    with pytest.raises(ConfigError, match=said):
        PolicyFile(path, HERE)


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_later_what_was_right_stays_in_force_and_that_is_said(path: Path, spoil: object, said: str) -> None:
    file = PolicyFile(path, HERE)
    rules, sha256 = file.rules, file.sha256
    spoil(path)  # type: ignore[operator]  # one of the functions above
    with capture_logs() as logged:
        file.look()
        file.look()
    assert (file.rules, file.sha256) == (rules, sha256)
    assert re.search(said, file.problem)
    # Once, and not at each look.
    assert [(entry["event"], entry["log_level"], entry["in_force"]) for entry in logged] == [
        ("policy.rejected", "error", sha256)
    ]


def test_a_file_that_is_right_again_is_in_force(path: Path) -> None:
    file = PolicyFile(path, HERE)
    _wrong(path)
    file.look()
    path.write_text(HEAD)
    with capture_logs() as logged:
        file.look()
    assert file.problem == ""
    assert file.rules is not None
    assert file.rules.rules == ()
    assert [entry["event"] for entry in logged] == ["policy.loaded"]


def test_a_file_that_has_not_changed_is_not_read_again_unless_asked(path: Path) -> None:
    file = PolicyFile(path, HERE)
    with capture_logs() as logged:
        file.look()
    assert logged == []
    with capture_logs() as logged:
        file.reread()
    assert [entry["event"] for entry in logged] == ["policy.loaded"]


def test_a_file_that_is_too_long_is_refused_without_reading_all_of_it(path: Path) -> None:
    path.write_text("#" * (5 << 20))
    with pytest.raises(ConfigError, match="at most 1048576 are read"):
        PolicyFile(path, HERE)
