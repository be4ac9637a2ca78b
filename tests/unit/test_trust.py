"""Chains of root, issuer and leaf; roots that hand over; and what was revoked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from certs import authority
from certs.authority import Authority
from certs.identity import Identity, Role, Site
from certs.trust import Denial, Denials, TrustBundles, judge, load_certificates, pem_of
from landbridge.errors import IdentityError, LandbridgeError, UsageError
from tests.unit.test_identity import forge

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A, B = Site("example.org", "a"), Site("example.org", "b")
GATEWAY = Identity("example.org", "a", Role.GATEWAY, "gw1")
OTHER_GATEWAY = Identity("example.org", "a", Role.GATEWAY, "gw2")
HOST = Identity("example.org", "a", Role.HOST, "h1")
ALICE = Identity("example.org", "a", Role.OPERATOR, "alice")
DAY = timedelta(days=1)


def issuer_below(root: Authority, gateway: str = "gw1", now: datetime = NOW, days: int = 365) -> Authority:
    key = authority.new_key()
    certificate = authority.create_issuer(root, gateway, key.public_key(), now, days=days)
    return Authority(certificate, key, root.certificate)


@pytest.fixture(scope="module")
def root() -> Authority:
    return authority.create(A, NOW)


@pytest.fixture(scope="module")
def issuer(root: Authority) -> Authority:
    return issuer_below(root)


@pytest.fixture(scope="module")
def trust(root: Authority) -> TrustBundles:
    return TrustBundles.of([root.certificate])


# Chains


@pytest.mark.parametrize("identity", [GATEWAY, HOST])
def test_an_issuer_makes_its_gateway_and_the_hosts_of_its_site_for_a_day(
    issuer: Authority, trust: TrustBundles, identity: Identity
) -> None:
    leaf = authority.issue(issuer, identity, NOW)
    credential = judge(leaf.certificate, trust, NOW, [issuer.certificate])
    assert credential.identity == identity
    assert credential.until == NOW + DAY
    assert credential.issued_at == NOW
    assert str(credential.issuer) == "spiffe://example.org/site/a/issuer/gw1"
    assert load_certificates(leaf.chain_pem) == [leaf.certificate, issuer.certificate]


@pytest.mark.parametrize("identity", [OTHER_GATEWAY, ALICE])
def test_an_issuer_makes_no_operator_and_no_other_gateway(
    issuer: Authority, trust: TrustBundles, identity: Identity
) -> None:
    with pytest.raises(UsageError, match="an issuer makes hosts and its own gateway"):
        authority.issue(issuer, identity, NOW)
    forged = forge(issuer, [str(identity)]).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root"):
        judge(forged, trust, NOW, [issuer.certificate])


def test_an_issuer_vouches_for_its_own_site_only(root: Authority, trust: TrustBundles) -> None:
    b = authority.create(B, NOW)
    both = TrustBundles.of([root.certificate, b.certificate])
    of_b = issuer_below(b)
    forged = forge(of_b, [str(GATEWAY)]).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root of site a"):
        judge(forged, both, NOW, [of_b.certificate])
    # Nor does a root's signature below an issuer of another site's name help.
    key = authority.new_key()
    posing = authority.create_issuer(b, "gw1", key.public_key(), NOW)
    forged = forge(Authority(posing, key, b.certificate), [str(HOST)]).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root of site a"):
        judge(forged, both, NOW, [posing])


def test_a_leaf_without_its_issuer_is_refused(issuer: Authority, trust: TrustBundles) -> None:
    leaf = authority.issue(issuer, HOST, NOW).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root"):
        judge(leaf, trust, NOW)


def test_an_issuer_never_authenticates(issuer: Authority, trust: TrustBundles) -> None:
    with pytest.raises(IdentityError, match="A CA certificate was shown as identity"):
        judge(issuer.certificate, trust, NOW, [issuer.certificate])


def test_an_issuer_below_an_issuer_is_refused(issuer: Authority, trust: TrustBundles) -> None:
    with pytest.raises(UsageError, match="cannot make an issuer"):
        issuer_below(issuer)
    below = forge(issuer, ["spiffe://example.org/site/a/issuer/gw1"], is_ca=True, signs=True)
    leaf = forge(Authority(below.certificate, below.key, issuer.root), [str(HOST)]).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root"):
        judge(leaf, trust, NOW, [below.certificate, issuer.certificate])


def test_a_leaf_counts_no_longer_than_its_issuer(root: Authority, trust: TrustBundles) -> None:
    short = issuer_below(root, days=1)
    leaf = authority.issue(short, HOST, NOW, days=90)
    assert leaf.certificate.not_valid_after_utc == NOW + DAY
    forged = forge(short, [str(HOST)], now=NOW + DAY).certificate
    with pytest.raises(IdentityError, match="not issued by a valid root"):
        judge(forged, trust, NOW + DAY + timedelta(minutes=1), [short.certificate])


def test_an_expired_issuer_issues_nothing_and_says_how_to_renew_it(root: Authority) -> None:
    with pytest.raises(LandbridgeError, match=r"issuer/gw1 is not valid now.*certs renew"):
        authority.issue(issuer_below(root, days=1), HOST, NOW + 2 * DAY)


def test_garbage_beside_a_leaf_is_passed_over(root: Authority, issuer: Authority, trust: TrustBundles) -> None:
    leaf = authority.issue(issuer, HOST, NOW)
    shown: list[bytes | x509.Certificate] = [b"garbage", root.certificate, leaf.certificate, issuer.certificate]
    assert judge(leaf.certificate, trust, NOW, shown).identity == HOST


def test_no_more_than_a_few_issuers_are_looked_at(issuer: Authority, trust: TrustBundles) -> None:
    leaf = authority.issue(issuer, HOST, NOW)
    with pytest.raises(IdentityError, match="not issued"):
        judge(leaf.certificate, trust, NOW, [*[b"garbage"] * 4, issuer.certificate])


# Requests


def test_a_request_gives_its_key_and_nothing_else() -> None:
    key = authority.new_key()
    assert authority.requested_key(authority.request(key, ALICE)) == key.public_key()


def _altered(pem: bytes) -> bytes:
    lines = pem.splitlines(keepends=True)
    lines[3] = lines[3][:5] + (b"A" if lines[3][5:6] != b"A" else b"B") + lines[3][6:]
    return b"".join(lines)


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda _: b"garbage", lambda pem: pem * 100, _altered])
def test_a_bad_request_is_an_identity_error(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(IdentityError):
        authority.requested_key(spoil(authority.request(authority.new_key(), HOST)))


# Roots that hand over


def handed_over(old: Authority, now: datetime = NOW, overlap: timedelta = 10 * DAY) -> tuple[Authority, TrustBundles]:
    new, handover = authority.hand_over(old, now, overlap)
    return new, TrustBundles.of([old.certificate, new.certificate, handover])


def test_both_roots_count_during_the_overlap_and_then_the_new_one(root: Authority, trust: TrustBundles) -> None:
    new, offered = handed_over(root)
    both = trust.follow(offered.all(), NOW)
    old_leaf = authority.issue(root, HOST, NOW).certificate
    new_leaf = authority.issue(new, HOST, NOW).certificate
    for now in (NOW, NOW + 9 * DAY):
        assert judge(old_leaf, both, now).identity == judge(new_leaf, both, now).identity == HOST
    late = NOW + 10 * DAY + timedelta(seconds=1)
    assert judge(new_leaf, both, late).identity == HOST
    with pytest.raises(IdentityError, match="not issued by a valid root"):
        judge(old_leaf, both, late)


def test_a_credential_ends_with_its_root(root: Authority) -> None:
    _, both = handed_over(root)
    leaf = authority.issue(root, HOST, NOW).certificate
    assert judge(leaf, both, NOW).until == NOW + 10 * DAY


def test_gateways_change_to_the_new_root_in_the_middle_of_the_overlap(root: Authority) -> None:
    new, both = handed_over(root)
    assert both.in_use_from(new.certificate) == NOW + 5 * DAY
    assert both.in_use_from(root.certificate) <= NOW


def test_a_retired_root_is_dropped_with_its_handover(root: Authority, trust: TrustBundles) -> None:
    new, offered = handed_over(root)
    both = trust.follow(offered.all(), NOW)
    later = both.follow([], NOW + 11 * DAY)
    assert later.of_site(A) == (new.certificate,)
    # Whoever has not dropped it yet tells of it, and is no stranger for that.
    assert later.follow(offered.all(), NOW + 11 * DAY).of_site(A) == (new.certificate,)


def test_who_was_away_for_one_change_follows_two(root: Authority, trust: TrustBundles) -> None:
    second, one = handed_over(root, overlap=30 * DAY)
    third, two = handed_over(second, now=NOW + DAY, overlap=30 * DAY)
    followed = trust.follow([*one.all(), *two.all()], NOW + 2 * DAY)
    assert third.certificate in followed.roots[A]


def test_a_root_that_nobody_signed_off_is_refused(root: Authority, trust: TrustBundles) -> None:
    stranger = authority.create(A, NOW)
    for offered in ([stranger.certificate], [root.certificate, stranger.certificate]):
        with pytest.raises(IdentityError, match="none of its known roots has signed off"):
            trust.follow(offered, NOW)


def test_a_handover_by_a_stranger_or_by_a_retired_root_is_refused(root: Authority, trust: TrustBundles) -> None:
    _, forged = handed_over(authority.create(A, NOW))
    with pytest.raises(IdentityError, match="none of its known roots"):
        trust.follow(forged.all(), NOW)
    _, offered = handed_over(root, overlap=DAY)
    both = trust.follow(offered.all(), NOW)
    _, too_late = handed_over(root, now=NOW + 5 * DAY)
    with pytest.raises(IdentityError, match="none of its known roots"):
        both.follow(too_late.all(), NOW + 5 * DAY)


def test_a_site_cannot_be_led_back_by_an_old_bundle(root: Authority, trust: TrustBundles) -> None:
    new, offered = handed_over(root)
    both = trust.follow(offered.all(), NOW)
    assert new.certificate in both.follow([root.certificate], NOW).roots[A]


def test_one_site_says_nothing_about_anothers_roots(root: Authority) -> None:
    b = authority.create(B, NOW)
    both = TrustBundles.of([root.certificate, b.certificate])
    new, handover = authority.hand_over(b, NOW)
    mixed = x509.load_pem_x509_certificates(pem_of([new.certificate, handover]))
    assert both.follow(mixed, NOW).roots[A] == (root.certificate,)


def test_too_many_roots_are_refused(root: Authority, trust: TrustBundles) -> None:
    chain, offered = root, [root.certificate]
    for _ in range(9):
        new, handover = authority.hand_over(chain, NOW)
        offered += [new.certificate, handover]
        chain = new
    with pytest.raises(IdentityError, match="more than 16 roots"):
        trust.follow(offered, NOW)


# Revocation


def denials(*subjects: str, site: Site = A, since: datetime = NOW) -> Denials:
    return Denials(B, frozenset(Denial(subject, site, since) for subject in subjects))


def test_an_identity_is_revoked_with_all_that_was_issued_until_then(issuer: Authority, trust: TrustBundles) -> None:
    before = authority.issue(issuer, HOST, NOW - timedelta(seconds=1)).certificate
    after = authority.issue(issuer, HOST, NOW + timedelta(seconds=1)).certificate
    later = NOW + timedelta(seconds=2)
    with pytest.raises(
        IdentityError, match=r"was revoked by site a, as all that was issued until 2030-01-01T00:00:00Z"
    ):
        judge(before, trust, later, [issuer.certificate], denials(str(HOST)))
    assert judge(after, trust, later, [issuer.certificate], denials(str(HOST))).identity == HOST


def test_one_certificate_is_revoked_by_its_serial(issuer: Authority, trust: TrustBundles) -> None:
    one, two = (authority.issue(issuer, HOST, NOW).certificate for _ in range(2))
    revoked = denials(f"{one.serial_number:x}")
    with pytest.raises(IdentityError, match="was revoked"):
        judge(one, trust, NOW, [issuer.certificate], revoked)
    assert judge(two, trust, NOW, [issuer.certificate], revoked).identity == HOST


@pytest.mark.parametrize("subject", [str(GATEWAY), "spiffe://example.org/site/a/issuer/gw1"])
def test_a_gateway_is_revoked_with_its_issuer_and_what_that_goes_on_to_make(
    issuer: Authority, trust: TrustBundles, subject: str
) -> None:
    minted = authority.issue(issuer, HOST, NOW + DAY).certificate
    with pytest.raises(IdentityError, match="was revoked"):
        judge(minted, trust, NOW + DAY, [issuer.certificate], denials(subject))


def test_a_site_revokes_its_own_and_where_it_is_asked_everybody(issuer: Authority, trust: TrustBundles) -> None:
    leaf = authority.issue(issuer, HOST, NOW).certificate
    by_a_third = denials(str(HOST), site=Site("example.org", "c"))
    assert judge(leaf, trust, NOW, [issuer.certificate], by_a_third).identity == HOST
    with pytest.raises(IdentityError, match="was revoked by site b"):
        judge(leaf, trust, NOW, [issuer.certificate], denials(str(HOST), site=B))


@pytest.mark.parametrize("subject", ["", "spiffe://example.org/site/a", "ABC", "0x1f", "f" * 41, "h1"])
def test_what_names_neither_an_identity_nor_a_serial_cannot_be_revoked(subject: str) -> None:
    with pytest.raises(IdentityError):
        Denial(subject, A, NOW)
