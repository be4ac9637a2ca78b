"""A site's CA: makes the root and the gateways' issuers, and signs the leaves of this site and of no other.

    root      made where it is kept, off the network; signs issuers, operators, and whatever is set up beside it
    issuer    its key is made at a gateway and never leaves it; signs that gateway, and the hosts of the site, for a day
    request   a public key that somebody wants signed (PKCS #10); all else in it is for the signer to decide

All keys are ECDSA P-256, made where they are used; the TLS floor rests on that (see floor).
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.identity import MALFORMED, Identity, Issuer, Role, Site, dns_names, issuer_of, site_of
from certs.trust import BACKDATED, pem_of
from landbridge.errors import ConfigError, IdentityError, UsageError

ROOT_DAYS = 3650
ISSUER_DAYS = 365
# Of what a root signs; an issuer's leaves live for ISSUED.
LEAF_DAYS = {Role.GATEWAY: 90, Role.HOST: 90, Role.OPERATOR: 30}
ISSUED = timedelta(hours=24)
OVERLAP = timedelta(days=30)
REQUEST_BYTES = 8 * 1024  # ours have less than 1 KiB


@dataclass(frozen=True)
class Authority:
    """The root of one site, or the issuer of one of its gateways, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    # Of an issuer: the root that has signed it.
    root: x509.Certificate | None = None

    @property
    def issuer(self) -> Issuer | None:
        """Whose issuer it is; None for a root."""
        return None if self.root is None else issuer_of(self.certificate)

    @property
    def site(self) -> Site:
        """The only site that this CA may vouch for."""
        return site_of(self.certificate if self.root is None else self.root)


@dataclass(frozen=True)
class Leaf:
    """A newly issued certificate with its key, and the chain that it is shown with."""

    identity: Identity
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    issuer: x509.Certificate | None = None

    @property
    def chain_pem(self) -> bytes:
        """The leaf, and the issuer if there is one."""
        return pem_of([self.certificate, *([self.issuer] if self.issuer else [])])


def create(site: Site, now: datetime, *, days: int = ROOT_DAYS) -> Authority:
    """A new self-signed root. Below it are issuers, and below them leaves; while it changes, a handover is above both (path length 2)."""
    key = new_key()
    name = _authority_name("Landbridge site CA", site.site)
    builder = _builder(key.public_key(), key.public_key(), now, now + timedelta(days=_positive(days)), path_length=2)
    certificate = _named(builder, name, name, str(site)).sign(key, hashes.SHA256())
    return Authority(certificate, key)


def hand_over(old: Authority, now: datetime, overlap: timedelta = OVERLAP) -> tuple[Authority, x509.Certificate]:
    """A new root for the site of an old one, and the handover; the old one counts until the overlap has ended."""
    if old.root is not None:
        raise UsageError("Only a root can hand over to a new root: give the directory of the site's CA.")
    if not timedelta(seconds=1) <= overlap <= timedelta(days=ROOT_DAYS):
        raise UsageError(f"An overlap of {overlap} is refused: use 1 s to {ROOT_DAYS} days.")
    new = create(old.site, now)
    until = min(now + overlap, old.certificate.not_valid_after_utc)
    if until <= now:
        raise ConfigError(f"The CA of {old.site} has expired, and nothing that it signs counts: create a new one.")
    builder = _builder(new.key.public_key(), old.key.public_key(), now, until, path_length=1, backdated=timedelta())
    handover = _named(builder, new.certificate.subject, old.certificate.subject, str(old.site))
    return new, handover.sign(old.key, hashes.SHA256())


def create_issuer(
    root: Authority, gateway: str, key: ec.EllipticCurvePublicKey, now: datetime, *, days: int = ISSUER_DAYS
) -> x509.Certificate:
    """The certificate of a gateway's issuer; it never outlives the root."""
    if root.root is not None:
        raise UsageError("An issuer cannot make an issuer: give the directory of the site's CA.")
    issuer = Issuer(root.site, gateway)
    until = min(now + timedelta(days=_positive(days)), _usable(root, now))
    builder = _builder(key, root.key.public_key(), now, until, path_length=0)
    name = _authority_name("Landbridge issuer", gateway)
    return _named(builder, name, root.certificate.subject, str(issuer)).sign(root.key, hashes.SHA256())


def make_issuer(root: Authority, gateway: str, now: datetime) -> Authority:
    """A gateway's issuer, where it is made beside the root."""
    key = new_key()
    return Authority(create_issuer(root, gateway, key.public_key(), now), key, root.certificate)


def issue(
    authority: Authority,
    identity: Identity,
    now: datetime,
    *,
    days: int | None = None,
    lifetime: timedelta | None = None,
) -> Leaf:
    """A leaf with a new key."""
    key = new_key()
    if lifetime is None and (days is not None or authority.root is None):
        lifetime = timedelta(days=_positive(LEAF_DAYS[identity.role] if days is None else days))
    certificate = sign(authority, identity, key.public_key(), now, lifetime or ISSUED)
    issuer = None if authority.root is None else authority.certificate
    return Leaf(identity, certificate, key, authority.root or authority.certificate, issuer)


def sign(
    authority: Authority, identity: Identity, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A leaf for an identity of the authority's own site, which it may issue; it never outlives its CA."""
    if identity.home != authority.site:
        raise UsageError(f"The CA of {authority.site} cannot issue {identity}: use the CA of site {identity.site}.")
    if authority.issuer is not None and not authority.issuer.may_issue(identity):
        raise UsageError(
            f"{authority.issuer} cannot issue {identity}: an issuer makes hosts and its own gateway; use the site's CA."
        )
    until = min(now + lifetime, _usable(authority, now))
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    names += [x509.DNSName(name) for name in dns_names(identity)]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(key, authority.key.public_key(), now, until)
        .subject_name(_leaf_name(identity))
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key of the kind that all of ours are."""
    return ec.generate_private_key(ec.SECP256R1())


def request(key: ec.EllipticCurvePrivateKey, identity: Identity | None = None) -> bytes:
    """A request for a certificate, PEM. Whoever signs it decides for whom; the name is there to be read."""
    name = x509.Name([]) if identity is None else _leaf_name(identity)
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def requested_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request whose sender has proved to have it. Raises IdentityError."""
    if len(pem) > REQUEST_BYTES:
        raise IdentityError(f"A request of {len(pem)} bytes is refused: at most {REQUEST_BYTES}.")
    try:
        asked = x509.load_pem_x509_csr(pem)
        key, is_proved = asked.public_key(), asked.is_signature_valid
    except (*MALFORMED, InvalidSignature) as error:
        raise IdentityError("The request cannot be read: it is no PEM text of PKCS #10.") from error
    if not is_proved or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise IdentityError("The request is refused: it must be for an ECDSA P-256 key, and signed with it.")
    return key


def _usable(authority: Authority, now: datetime) -> datetime:
    """Until when what it signs can be valid. Raises ConfigError if it is not valid itself."""
    certificate = authority.certificate
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        what = authority.issuer or f"The CA of {authority.site}"
        renew = "renew it with `landbridge certs renew`" if authority.issuer else "create a new one in a new directory"
        raise ConfigError(
            f"{what} is not valid now (until {certificate.not_valid_after_utc:%Y-%m-%d}): {renew}"
            f"{'' if authority.issuer else ' with `landbridge certs init`'}."
        )
    return certificate.not_valid_after_utc


def _builder(
    key: ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
    *,
    path_length: int | None = None,
    backdated: timedelta = BACKDATED,
) -> x509.CertificateBuilder:
    """Of a CA where there is a path length."""
    ca = path_length is not None
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
        .not_valid_before(now - backdated)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


def _named(
    builder: x509.CertificateBuilder, subject: x509.Name, issuer: x509.Name, uri: str
) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return builder.subject_name(subject).issuer_name(issuer).add_extension(names, critical=False)


def _authority_name(what: str, name: str) -> x509.Name:
    """Unlike any other: who looks for a CA by its name, as TLS libraries do, finds one."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, what),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(8)),
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
