"""SPIFFE IDs, and which certificates prove one."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs import authority
from certs.authority import Authority, Leaf
from certs.identity import (
    Identity,
    Role,
    Site,
    dns_names,
    parse,
    parse_site,
    server_name,
    site_of,
)
from certs.trust import TrustBundles, judge
from landbridge.errors import IdentityError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A, B = Site("example.org", "a"), Site("example.org", "b")
GATEWAY = Identity("example.org", "a", Role.GATEWAY, "gw1")

Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def forge(
    ca: Authority,
    uris: list[str],
    *,
    now: datetime = NOW,
    is_ca: bool = False,
    signs: bool = False,
    usage_critical: bool = True,
    digital_signature: bool = True,
    purposes: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ),
    rsa_key: bool = False,
    change: Change = lambda builder: builder,
) -> Leaf:
    """A leaf as a dishonest or careless CA would issue it; the defaults make an honest one."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = rsa.generate_private_key(65537, 2048).public_key() if rsa_key else key.public_key()
    usage = x509.KeyUsage(
        digital_signature, False, False, False, False, signs, False, False, False
    )  # in the order of RFC 5280
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    issuer = ca.key.public_key()
    builder = change(
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(usage, critical=usage_critical)
        .add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("x.example.org")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    return Leaf(GATEWAY, builder.sign(ca.key, hashes.SHA256()), key, ca.certificate)


@pytest.fixture(scope="module")
def ca_a() -> Authority:
    return authority.create(A, NOW)


@pytest.fixture(scope="module")
def ca_b() -> Authority:
    return authority.create(B, NOW)


@pytest.fixture(scope="module")
def trust(ca_a: Authority, ca_b: Authority) -> TrustBundles:
    return TrustBundles.of([ca_a.certificate, ca_b.certificate])


# Names.


def test_a_spiffe_id_and_its_dns_names() -> None:
    assert str(GATEWAY) == "spiffe://example.org/site/a/gateway/gw1"
    assert parse(str(GATEWAY)) == GATEWAY
    assert dns_names(GATEWAY) == ["gw1.gateway.a.example.org", "gateway.a.example.org"]
    assert server_name(Role.HOST, "b", "example.org", "h1") == "h1.host.b.example.org"
    assert parse_site("spiffe://example.org/site/a") == A


def test_an_operator_is_never_a_server() -> None:
    assert dns_names(Identity("example.org", "a", Role.OPERATOR, "alice")) == []
    with pytest.raises(IdentityError, match="never a server"):
        server_name(Role.OPERATOR, "a", "example.org")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "https://example.org/site/a/gateway/gw1",
        "SPIFFE://example.org/site/a/gateway/gw1",
        "spiffe://Example.org/site/a/gateway/gw1",
        "spiffe://example.org:443/site/a/gateway/gw1",
        "spiffe://user@example.org/site/a/gateway/gw1",
        "spiffe:///site/a/gateway/gw1",
        "spiffe://example.org//site/a/gateway/gw1",
        "spiffe://example.org/site/a/gateway/gw1/",
        "spiffe://example.org/site/a/gateway/gw1/more",
        "spiffe://example.org/site/a/gateway/gw1?x=1",
        "spiffe://example.org/site/a/gateway/gw1#x",
        "spiffe://example.org/site/a/gateway/gw1\n",
        "spiffe://example.org/site/a/gateway/gw%31",
        "spiffe://example.org/site/a/gateway/..",
        "spiffe://example.org/site/a/gateway/gw..1",
        "spiffe://example.org/site/a/gateway/-gw",
        "spiffe://example.org/site/a/gateway/gw.",
        "spiffe://example.org/site/a/gateway/gẃ",
        "spiffe://example.org/site/a/gateway/" + "x" * 64,
        "spiffe://example.org/site/a.b/gateway/gw1",
        "spiffe://example.org/site/a/GATEWAY/gw1",
        "spiffe://example.org/site/a/root/gw1",
        "spiffe://" + "x." * 60 + "org/site/a/gateway/gw1",
    ],
)
def test_anything_else_is_no_identity(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse(uri)


# Certificates.


def test_an_issued_leaf_proves_its_identity(ca_a: Authority, trust: TrustBundles) -> None:
    leaf = authority.issue(ca_a, GATEWAY, NOW).certificate
    assert judge(leaf.public_bytes(Encoding.DER), trust, NOW).identity == GATEWAY
    assert judge(leaf.public_bytes(Encoding.PEM), trust, NOW).identity == GATEWAY
    assert judge(forge(ca_a, [str(GATEWAY)]).certificate, trust, NOW).identity == GATEWAY


def test_the_ca_of_one_site_cannot_vouch_for_another(ca_b: Authority, trust: TrustBundles) -> None:
    with pytest.raises(IdentityError, match="not issued by a valid root of site a"):
        judge(forge(ca_b, [str(GATEWAY)]).certificate, trust, NOW)


def test_a_site_in_another_trust_domain_is_another_site(ca_a: Authority, trust: TrustBundles) -> None:
    with pytest.raises(IdentityError, match="not trusted"):
        judge(forge(ca_a, ["spiffe://other.org/site/a/gateway/gw1"]).certificate, trust, NOW)


def test_a_ca_of_the_same_name_with_another_key_is_refused(trust: TrustBundles) -> None:
    with pytest.raises(IdentityError, match="not issued"):
        judge(forge(authority.create(A, NOW), [str(GATEWAY)]).certificate, trust, NOW)


def test_a_second_root_of_a_site_is_accepted_beside_the_first(ca_a: Authority) -> None:
    new = authority.create(A, NOW)
    trust = TrustBundles.of([ca_a.certificate, new.certificate])
    for ca in (ca_a, new):
        assert judge(authority.issue(ca, GATEWAY, NOW).certificate, trust, NOW).identity == GATEWAY


@pytest.mark.parametrize("late", [timedelta(days=2), -timedelta(minutes=6)])
def test_a_leaf_outside_its_validity_is_refused(ca_a: Authority, late: timedelta) -> None:
    root = authority.create(A, NOW - timedelta(days=9))
    leaf = authority.issue(root, GATEWAY, NOW, days=1).certificate
    with pytest.raises(IdentityError, match="is valid from"):
        judge(leaf, TrustBundles.of([root.certificate]), NOW + late)


def test_a_leaf_of_an_expired_root_is_refused() -> None:
    root = authority.create(A, NOW - timedelta(days=9), days=8)
    with pytest.raises(IdentityError, match="valid root"):
        judge(forge(root, [str(GATEWAY)]).certificate, TrustBundles.of([root.certificate]), NOW)


def test_leaves_that_break_the_spiffe_rules_are_refused(ca_a: Authority, trust: TrustBundles) -> None:
    uri = str(GATEWAY)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    broken = {
        "2 URI names": forge(ca_a, [uri, "spiffe://example.org/site/a/gateway/gw2"]),
        "0 URI names": forge(ca_a, []),
        "CA certificate": forge(ca_a, [uri], is_ca=True),
        "may sign certificates": forge(ca_a, [uri], signs=True),
        "must be critical": forge(ca_a, [uri], usage_critical=False),
        "allow digitalSignature": forge(ca_a, [uri], digital_signature=False),
        "both serverAuth and clientAuth": forge(ca_a, [uri], purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
        "not ECDSA": forge(ca_a, [uri], rsa_key=True),
        "unknown critical": forge(ca_a, [uri], change=lambda b: b.add_extension(unknown, critical=True)),
        "is no identity": forge(ca_a, ["spiffe://example.org/site/a"]),
    }
    for why, leaf in broken.items():
        with pytest.raises(IdentityError, match=why):
            judge(leaf.certificate, trust, NOW)


def test_a_certificate_has_one_spelling(ca_a: Authority, trust: TrustBundles) -> None:
    accepted = 0
    for _ in range(40):  # until the last bit of a signature is 0, so that it can be called unused
        leaf = authority.issue(ca_a, GATEWAY, NOW).certificate
        spelt = bytearray(leaf.public_bytes(Encoding.DER))
        accepted += judge(bytes(spelt), trust, NOW).identity == GATEWAY
        spelt[-len(leaf.signature) - 1] = 1
        with pytest.raises(IdentityError):
            judge(bytes(spelt), trust, NOW)
    assert accepted == 40


def test_a_root_is_no_identity(ca_a: Authority, trust: TrustBundles) -> None:
    with pytest.raises(IdentityError, match="CA certificate"):
        judge(ca_a.certificate, trust, NOW)


def test_a_leaf_is_no_root(ca_a: Authority, ca_b: Authority) -> None:
    with pytest.raises(IdentityError, match="not a CA"):
        TrustBundles.of([authority.issue(ca_a, GATEWAY, NOW).certificate])
    with pytest.raises(IdentityError, match="not signed by itself"):
        site_of(forge(ca_b, [str(A)], is_ca=True, signs=True).certificate)


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n", b"\x30" * 70_000])
def test_what_is_no_certificate_is_refused(data: bytes, trust: TrustBundles) -> None:
    with pytest.raises(IdentityError):
        judge(data, trust, NOW)
