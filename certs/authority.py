"""A site's CA: makes the root, and issues the leaves of this site and of no other.

All keys are ECDSA P-256, made here; the TLS floor rests on that (see floor).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.identity import Identity, Role, Site, dns_names, site_of
from landbridge.errors import ConfigError, UsageError

ROOT_DAYS = 3650
LEAF_DAYS = {Role.GATEWAY: 90, Role.HOST: 90, Role.OPERATOR: 30}
BACKDATED = timedelta(minutes=5)  # for clocks of other machines that are behind ours


@dataclass(frozen=True)
class Authority:
    """The root of one site, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def site(self) -> Site:
        """The only site that this CA may vouch for."""
        return site_of(self.certificate)


@dataclass(frozen=True)
class Leaf:
    """A newly issued certificate with its key, and the root that signed it."""

    identity: Identity
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate


def create(site: Site, now: datetime, *, days: int = ROOT_DAYS) -> Authority:
    """A new self-signed root; it may sign leaves, and no other CA (path length 0)."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(key.public_key(), key.public_key(), now, now + timedelta(days=_positive(days)), ca=True)
        .subject_name(_root_name(site))
        .issuer_name(_root_name(site))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(site))]), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, identity: Identity, now: datetime, *, days: int | None = None) -> Leaf:
    """A leaf for an identity of the authority's own site; it never outlives the root."""
    if identity.home != authority.site:
        raise UsageError(f"The CA of {authority.site} cannot issue {identity}: use the CA of site {identity.site}.")
    root = authority.certificate
    if not root.not_valid_before_utc <= now < root.not_valid_after_utc:
        raise ConfigError(
            f"The CA of {authority.site} is not valid now (until {root.not_valid_after_utc:%Y-%m-%d}): "
            "create a new one in a new directory with `landbridge certs init`."
        )
    until = now + timedelta(days=_positive(LEAF_DAYS[identity.role] if days is None else days))
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    names += [x509.DNSName(name) for name in dns_names(identity)]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(key.public_key(), authority.key.public_key(), now, min(until, root.not_valid_after_utc), ca=False)
        .subject_name(_leaf_name(identity))
        .issuer_name(root.subject)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return Leaf(identity, builder.sign(authority.key, hashes.SHA256()), key, root)


def _builder(
    key: ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
    *,
    ca: bool,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


def _root_name(site: Site) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Landbridge site CA"),
            x509.NameAttribute(NameOID.COMMON_NAME, site.site),
        ]
    )


def _leaf_name(identity: Identity) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.site),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
        ]
    )


def _positive(days: int) -> int:
    if not 1 <= days <= ROOT_DAYS:
        raise UsageError(f"A validity of {days} days is refused: use 1 to {ROOT_DAYS}.")
    return days
