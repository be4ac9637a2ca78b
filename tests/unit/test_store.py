"""The directories: what is written, what is refused, what loading says; and the commands over them."""

import contextlib
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from certs import authority, store, tls
from certs.identity import Identity, Role
from certs.trust import Denial
from gateway.cli.certs import certs
from landbridge.errors import AlreadyExists, ConfigError, Conflict, IdentityError, LandbridgeError, NotFound, UsageError
from tests.unit.test_identity import GATEWAY, NOW, A, B, forge


@pytest.fixture
def ca() -> authority.Authority:
    return authority.create(A, NOW)


@pytest.fixture
def home(tmp_path: Path, ca: authority.Authority) -> Path:
    store.save_identity(tmp_path / "gw1", authority.issue(ca, GATEWAY, NOW))
    return tmp_path / "gw1"


def test_a_ca_comes_back(tmp_path: Path, ca: authority.Authority) -> None:
    store.save_authority(tmp_path / "ca", ca)
    back = store.load_authority(tmp_path / "ca")
    assert back.certificate == ca.certificate
    assert back.key.private_numbers() == ca.key.private_numbers()


def test_an_identity_comes_back_with_the_trust_in_its_own_site(home: Path, ca: authority.Authority) -> None:
    local = store.load_identity(home, NOW)
    assert local.identity == GATEWAY
    assert local.trust.roots == {A: (ca.certificate,)}
    assert "PRIVATE" not in repr(local)


def test_only_the_owner_can_read(home: Path) -> None:
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert sorted(path.name for path in home.rglob("*")) == ["a.pem", "cert.pem", "key.pem", "trust"]


def test_a_ca_is_never_overwritten(tmp_path: Path, ca: authority.Authority) -> None:
    store.save_authority(tmp_path, ca)
    with pytest.raises(AlreadyExists):
        store.save_authority(tmp_path, authority.create(A, NOW))
    assert store.load_authority(tmp_path).certificate == ca.certificate


def test_an_identity_is_replaced_by_force_only_and_keeps_other_sites(
    home: Path, tmp_path: Path, ca: authority.Authority
) -> None:
    store.save_authority(tmp_path / "b", authority.create(B, NOW))
    store.add_trust(home, tmp_path / "b" / "ca.pem")
    again = authority.issue(ca, GATEWAY, NOW)
    with pytest.raises(AlreadyExists, match="--force"):
        store.save_identity(home, again)
    store.save_identity(home, again, force=True)
    local = store.load_identity(home, NOW)
    assert local.certificate == again.certificate
    assert set(local.trust.roots) == {A, B}


def test_another_root_for_a_trusted_site_is_a_conflict(home: Path, tmp_path: Path) -> None:
    store.save_authority(tmp_path / "fake", authority.create(A, NOW))
    with pytest.raises(Conflict, match="another root"):
        store.add_trust(home, tmp_path / "fake" / "ca.pem")


def test_the_same_root_twice_is_no_conflict(home: Path, tmp_path: Path, ca: authority.Authority) -> None:
    store.save_authority(tmp_path / "ca", ca)
    assert store.add_trust(home, tmp_path / "ca" / "ca.pem") == A


def test_a_root_under_another_sites_name_is_refused(home: Path) -> None:
    (home / "trust" / "a.pem").rename(home / "trust" / "b.pem")
    with pytest.raises(ConfigError, match="root of site a"):
        store.load_identity(home, NOW)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_a_missing_file_is_named(home: Path, name: str) -> None:
    (home / name).unlink()
    with pytest.raises(NotFound, match=name):
        store.load_identity(home, NOW)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "trust/a.pem"])
def test_an_unreadable_or_broken_file_is_named(home: Path, name: str) -> None:
    content = (home / name).read_bytes()
    for broken in (b"", b"x", content[: len(content) // 2], b"x" * 70_000):
        (home / name).write_bytes(broken)
        with pytest.raises(LandbridgeError):
            store.load_identity(home, NOW)
    (home / name).unlink()
    (home / name).mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="cannot be read"):
        store.load_identity(home, NOW)


def test_a_key_that_others_can_read_is_refused(home: Path) -> None:
    (home / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        store.load_identity(home, NOW)


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, ca: authority.Authority) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700"):
        store.save_authority(tmp_path / "open", ca)


def test_a_key_of_another_certificate_is_refused(home: Path, tmp_path: Path, ca: authority.Authority) -> None:
    store.save_identity(tmp_path / "other", authority.issue(ca, GATEWAY, NOW))
    (home / "key.pem").write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        store.load_identity(home, NOW)


def test_an_expired_identity_is_refused_but_can_be_shown(home: Path) -> None:
    with pytest.raises(ConfigError, match="is valid from"):
        store.load_identity(home, NOW + timedelta(days=91))
    assert store.load_identity(home, None).identity == GATEWAY


def test_a_leaf_of_a_foreign_ca_is_refused_at_loading(tmp_path: Path) -> None:
    leaf = forge(authority.create(B, NOW), [str(GATEWAY)])
    store.save_identity(tmp_path / "x", leaf)
    with pytest.raises(ConfigError, match="holds the root of site b"):
        store.load_identity(tmp_path / "x", NOW)


# Certificates and keys that change together.


class Crash(Exception):  # noqa: N818 - the noun says it
    """The machine stops here."""


def _crash_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let no more than so many files take their place, and stop before the next one."""
    left, real = step, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise Crash
        left -= 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize(("step", "is_new"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_crash_while_an_identity_is_renewed_leaves_the_old_or_the_new_one(
    home: Path, ca: authority.Authority, monkeypatch: pytest.MonkeyPatch, step: int, is_new: bool
) -> None:
    before, leaf = store.load_identity(home, NOW), authority.issue(ca, GATEWAY, NOW)
    _crash_before(monkeypatch, step)
    with contextlib.suppress(Crash):
        store.renew_identity(home, leaf.chain_pem, leaf.key)
    monkeypatch.undo()
    after = store.load_identity(home, NOW)
    assert after.certificate == (leaf.certificate if is_new else before.certificate)
    # And files are as TLS loads them.
    tls.server_context(after)
    # What was left is no obstacle to the next one, not even to one that crashes as well.
    following = authority.issue(ca, GATEWAY, NOW)
    for steps in (int(step == 2), 1):
        _crash_before(monkeypatch, steps)
        with contextlib.suppress(Crash):
            store.renew_identity(home, following.chain_pem, following.key)
        monkeypatch.undo()
        assert store.load_identity(home, NOW).certificate == after.certificate
    store.renew_identity(home, following.chain_pem, following.key)
    assert store.load_identity(home, NOW).certificate == following.certificate


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("before", range(4))
def test_an_identity_that_is_renewed_while_it_is_read_is_the_old_or_the_new_one(
    home: Path, ca: authority.Authority, monkeypatch: pytest.MonkeyPatch, step: int, before: int
) -> None:
    """The reader opens so many files and looks for so many, and meanwhile another process gets so far with a renewal, and to its end."""
    old, leaf = store.load_identity(home, NOW), authority.issue(ca, GATEWAY, NOW)
    with monkeypatch.context() as patch:
        _crash_before(patch, before)
        with contextlib.suppress(Crash):
            store.renew_identity(home, leaf.chain_pem, leaf.key)
    left, real = step, os.open

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        nonlocal left
        left -= 1
        if left == -1:
            store.renew_identity(home, leaf.chain_pem, leaf.key)
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        read = store.load_identity(home, NOW)
    assert read.certificate in {old.certificate, leaf.certificate}
    tls.server_context(read)  # which fails where the key is another one's


@pytest.mark.parametrize(("step", "is_new"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_crash_while_a_root_changes_leaves_the_old_or_the_new_one(
    tmp_path: Path, ca: authority.Authority, monkeypatch: pytest.MonkeyPatch, step: int, is_new: bool
) -> None:
    store.save_authority(tmp_path / "ca", ca)
    new, handover = authority.hand_over(ca, NOW)
    _crash_before(monkeypatch, step)
    with contextlib.suppress(Crash):
        store.replace_authority(tmp_path / "ca", new, handover, NOW)
    monkeypatch.undo()
    kept = store.load_authority(tmp_path / "ca")
    assert kept.certificate == (new if is_new else ca).certificate
    assert len(store.load_roots(tmp_path / "ca")) == (3 if is_new else 1)


def test_an_issuers_certificate_is_taken_for_the_key_that_waits_and_no_other(
    home: Path, ca: authority.Authority
) -> None:
    trust = store.load_trust(home)
    key = store.pending_key(home)
    assert store.pending_key(home).public_key() == key.public_key()
    other = authority.create_issuer(ca, "gw1", authority.new_key().public_key(), NOW)
    with pytest.raises(Conflict, match="is for another key"):
        store.install_issuer(home, other, trust)
    certificate = authority.create_issuer(ca, "gw1", key.public_key(), NOW)
    store.install_issuer(home, certificate, trust)
    assert [each.certificate for each in store.load_issuers(home, trust)] == [certificate]
    with pytest.raises(Conflict, match="or it is installed already"):
        store.install_issuer(home, certificate, trust)
    stranger = authority.create(A, NOW)
    forged = authority.create_issuer(stranger, "gw1", store.pending_key(home).public_key(), NOW)
    with pytest.raises(IdentityError, match="was not issued by a root"):
        store.install_issuer(home, forged, trust)


def test_private_files_of_issuers_are_private(home: Path) -> None:
    store.pending_key(home)
    assert {path.stat().st_mode & 0o777 for path in home.rglob("*.key")} == {0o600}
    assert (home / "issuers").stat().st_mode & 0o777 == 0o700


def test_denials_survive_a_restart_and_garbage_is_a_config_error(home: Path) -> None:
    assert store.load_denials(home) == frozenset()
    denials = frozenset({Denial(str(GATEWAY), A, NOW), Denial("1f", B, NOW + timedelta(days=1))})
    store.save_denials(home, denials)
    assert store.load_denials(home) == denials
    for garbage in ("x", "x y z", f"{GATEWAY} {A} 99999999999999999", f"{GATEWAY} {GATEWAY} 1"):
        (home / "denied").write_text(garbage)
        with pytest.raises(ConfigError, match="cannot be read"):
            store.load_denials(home)


# The commands.


def run(*words: object) -> dict[str, object]:
    result = CliRunner().invoke(certs, [*map(str, words), "--json"], catch_exceptions=False, standalone_mode=False)
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


def test_the_commands_set_up_two_sites(tmp_path: Path) -> None:
    for site in ("a", "b"):
        run("init", "--site", site, "--trust-domain", "example.org", "--out", tmp_path / site)
    gateway = tmp_path / "gw1"
    issued = run("issue", "--ca", tmp_path / "a", "gateway", "gw1", "--out", gateway)
    assert run("trust", gateway, tmp_path / "b" / "ca.pem")["site"] == "b"
    shown = run("show", gateway)
    assert shown["identity"] == issued["identity"] == str(GATEWAY)
    assert shown["fingerprint"] == issued["fingerprint"]
    assert shown["trusts"] == [str(A), str(B)]
    assert shown["expired"] is False
    assert run("show", tmp_path / "a")["kind"] == "ca"
    assert set(store.load_identity(gateway, datetime.now(UTC)).trust.roots) == {A, B}
    alice = run("issue", "--ca", tmp_path / "b", "operator", "alice", "--out", tmp_path / "alice", "--days", 1)
    assert alice["identity"] == str(Identity("example.org", "b", Role.OPERATOR, "alice"))


def test_a_command_for_people_prints_sentences(tmp_path: Path) -> None:
    words = ["init", "--site", "a", "--trust-domain", "example.org", "--out", str(tmp_path / "ca")]
    assert "Created the CA" in CliRunner().invoke(certs, words, catch_exceptions=False).stdout
    shown = CliRunner().invoke(certs, ["show", str(tmp_path / "ca")], catch_exceptions=False).stdout
    assert "identity     spiffe://example.org/site/a\n" in shown


@pytest.mark.parametrize("site", ["A", "a.b", "../x", ""])
def test_a_bad_site_name_is_a_usage_error(tmp_path: Path, site: str) -> None:
    with pytest.raises(UsageError):
        run("init", "--site", site, "--trust-domain", "example.org", "--out", tmp_path / "ca")


def test_commands_raise_our_errors_for_the_caller_to_print(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run("show", tmp_path / "nothing")
    with pytest.raises(NotFound):
        run("trust", tmp_path / "nothing", tmp_path / "ca.pem")
