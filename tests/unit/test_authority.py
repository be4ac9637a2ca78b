"""What a site's CA issues, and what it refuses to."""

from datetime import timedelta

import pytest
from cryptography import x509

from certs import authority
from certs.identity import Identity, Role, Site, dns_names, identity_of
from landbridge.errors import ConfigError, IdentityError, UsageError
from tests.unit.test_identity import GATEWAY, NOW, A, B


def test_a_root_signs_issuers_which_sign_no_other_ca() -> None:
    ca = authority.create(A, NOW)
    constraints = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 2)
    assert ca.site == A


@pytest.mark.parametrize(("role", "days"), [(Role.GATEWAY, 90), (Role.HOST, 90), (Role.OPERATOR, 30)])
def test_a_leaf_is_backdated_and_ends_by_role(role: Role, days: int) -> None:
    identity = Identity("example.org", "a", role, "x1")
    leaf = authority.issue(authority.create(A, NOW), identity, NOW)
    assert identity_of(leaf.certificate) == identity
    assert leaf.certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert leaf.certificate.not_valid_after_utc == NOW + timedelta(days=days)


def test_the_longest_names_still_make_a_certificate() -> None:
    site = "s" * 63
    domain = ("d" * 57 + ".") + "e" * 58
    identity = Identity(domain, site, Role.GATEWAY, "n" * 63)
    ca = authority.create(Site(domain, site), NOW)
    assert identity_of(authority.issue(ca, identity, NOW).certificate) == identity
    assert len(dns_names(identity)[0]) <= 253


def test_a_leaf_does_not_outlive_its_root() -> None:
    ca = authority.create(A, NOW, days=10)
    leaf = authority.issue(ca, GATEWAY, NOW)
    assert leaf.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


def test_two_leaves_share_neither_key_nor_serial() -> None:
    ca = authority.create(A, NOW)
    one, two = authority.issue(ca, GATEWAY, NOW).certificate, authority.issue(ca, GATEWAY, NOW).certificate
    assert one.serial_number != two.serial_number
    assert one.public_key() != two.public_key()


def test_a_ca_issues_for_its_own_site_only() -> None:
    with pytest.raises(UsageError, match="cannot issue"):
        authority.issue(authority.create(B, NOW), GATEWAY, NOW)


def test_an_expired_ca_issues_nothing() -> None:
    with pytest.raises(ConfigError, match="not valid now"):
        authority.issue(authority.create(A, NOW - timedelta(days=9), days=8), GATEWAY, NOW)


@pytest.mark.parametrize("days", [0, -1, 10**6])
def test_senseless_validities_are_refused(days: int) -> None:
    with pytest.raises(UsageError, match="validity"):
        authority.issue(authority.create(A, NOW), GATEWAY, NOW, days=days)


def test_a_bad_name_makes_no_identity() -> None:
    with pytest.raises(IdentityError, match="no valid name"):
        Identity("example.org", "a", Role.HOST, "Upper")
