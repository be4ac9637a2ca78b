"""SPIFFE IDs, and the judgement of certificates. Pure: no files, no clock, no network.

    spiffe://<trust-domain>/site/<site>/{gateway|host|operator}/<name>      a leaf: who speaks
    spiffe://<trust-domain>/site/<site>                                     a root: the CA of that site

Rules of the certificates: SPIFFE X509-SVID (github.com/spiffe/spiffe, standards/X509-SVID.md), section 2 to
5. Rules of the names are narrower than SPIFFE's: lower-case DNS labels, because every name also becomes a DNS
name for TLS.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from landbridge.errors import IdentityError

NAME_CHARACTERS = 63
TRUST_DOMAIN_CHARACTERS = 116  # so that <name>.<role>.<site>.<trust-domain> fits into the 253 of DNS: 63+1+8+1+63+1+116
CERTIFICATE_BYTES = 64 * 1024  # ours have less than 1 KiB

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SITE = re.compile(_LABEL)
_DOTTED = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

# Every extension that we understand. RFC 5280, 4.2: a certificate with another critical one must be refused.
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)

# What `cryptography` raises on certificates that are not well-formed, at once or at the first look inside.
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Role(enum.StrEnum):
    """What a key is used for; a certificate has exactly one."""

    GATEWAY = "gateway"
    HOST = "host"
    OPERATOR = "operator"


@dataclass(frozen=True, order=True)
class Site:
    """One site, as its root certificate names it."""

    trust_domain: str
    site: str

    def __post_init__(self) -> None:
        _check("trust domain", self.trust_domain, _DOTTED, TRUST_DOMAIN_CHARACTERS)
        _check("site name", self.site, _SITE, NAME_CHARACTERS)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/site/{self.site}"


@dataclass(frozen=True, order=True)
class Identity:
    """Who speaks. `str()` is the SPIFFE ID; only valid identities can be made."""

    trust_domain: str
    site: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        Site(self.trust_domain, self.site)
        if not isinstance(self.role, Role):
            raise IdentityError(f"{self.role!r} is no role: use gateway, host or operator.")
        _check("name", self.name, _DOTTED, NAME_CHARACTERS)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/site/{self.site}/{self.role}/{self.name}"

    @property
    def home(self) -> Site:
        """The site whose CA may vouch for this identity."""
        return Site(self.trust_domain, self.site)


def _check(what: str, text: str, pattern: re.Pattern[str], limit: int) -> None:
    if not isinstance(text, str) or len(text) > limit or not pattern.fullmatch(text):
        dots = "" if pattern is _SITE else " (labels separated by dots)"
        raise IdentityError(
            f"{str(text)[:80]!r} is no valid {what}: use at most {limit} of a-z, 0-9 and -{dots}, "
            "with a letter or digit at both ends."
        )


def parse(uri: str) -> Identity:
    """`spiffe://…` to Identity. IdentityError for anything that `str(identity)` would not have written."""
    match uri.split("/"):
        case ["spiffe:", "", trust_domain, "site", site, role, name] if role in Role.__members__.values():
            return Identity(trust_domain, site, Role(role), name)
    raise IdentityError(
        f"{uri[:200]!r} is no identity: expected spiffe://<trust-domain>/site/<site>/<gateway|host|operator>/<name>."
    )


def parse_site(uri: str) -> Site:
    """`spiffe://<trust-domain>/site/<site>` to Site, or IdentityError."""
    match uri.split("/"):
        case ["spiffe:", "", trust_domain, "site", site]:
            return Site(trust_domain, site)
    raise IdentityError(f"{uri[:200]!r} is no site: expected spiffe://<trust-domain>/site/<site>.")


def server_name(role: Role, site: str, trust_domain: str, name: str | None = None) -> str:
    """The DNS name by which a client asks for any server of a role, or for the one with this name."""
    Site(trust_domain, site)
    if role is Role.OPERATOR:
        raise IdentityError("An operator is never a server: ask for a gateway or a host.")
    if name is not None:
        _check("name", name, _DOTTED, NAME_CHARACTERS)
    return ".".join(([] if name is None else [name]) + [role.value, site, trust_domain])


def dns_names(identity: Identity) -> list[str]:
    """The DNS names in an identity's certificate; operators have none, so no client accepts one as server."""
    if identity.role is Role.OPERATOR:
        return []
    where = (identity.role, identity.site, identity.trust_domain)
    return [server_name(*where, identity.name), server_name(*where)]


def load_certificate(data: bytes) -> x509.Certificate:
    """One certificate, DER or PEM; of a PEM chain, the first."""
    if len(data) > CERTIFICATE_BYTES:
        raise IdentityError(f"A certificate of {len(data)} bytes is refused: at most {CERTIFICATE_BYTES}.")
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except _MALFORMED as error:
        raise IdentityError("The certificate cannot be read: it is neither DER nor PEM of X.509.") from error


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity that a leaf claims, if it keeps the SPIFFE rules for leaves; its issuer is not judged."""
    try:
        extensions = _extensions(certificate)
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise IdentityError("A CA certificate was shown as identity: issue a leaf with `landbridge certs issue`.")
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        if not usage.critical or not usage.value.digital_signature:
            raise IdentityError("The certificate's keyUsage must be critical and allow digitalSignature.")
        if usage.value.key_cert_sign or usage.value.crl_sign:
            raise IdentityError("The certificate's key may sign certificates, and so must not be an identity.")
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= purposes:
            raise IdentityError("The certificate's extendedKeyUsage must hold both serverAuth and clientAuth.")
        if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
            raise IdentityError("The certificate's key is not ECDSA: TLS 1.3 cannot be enforced with it.")
        return parse(_only_uri(extensions))
    except x509.ExtensionNotFound as error:
        raise IdentityError(f"The certificate lacks an extension that identities need: {error}.") from error
    except _MALFORMED as error:
        raise IdentityError("The certificate cannot be read: an extension or its key is malformed.") from error


def site_of(root: x509.Certificate) -> Site:
    """The site that a root certificate speaks for, if it is a self-signed CA with a site's SPIFFE ID."""
    try:
        extensions = _extensions(root)
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise IdentityError("The certificate is not a CA's: give the other site's ca.pem.")
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        if not usage.critical or not usage.value.key_cert_sign:
            raise IdentityError("The CA certificate's keyUsage must be critical and allow keyCertSign.")
        root.verify_directly_issued_by(root)
        return parse_site(_only_uri(extensions))
    except x509.ExtensionNotFound as error:
        raise IdentityError(f"The CA certificate lacks an extension: {error}.") from error
    except (*_MALFORMED, InvalidSignature) as error:
        raise IdentityError("The CA certificate is malformed, or not signed by itself.") from error


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    extensions = certificate.extensions
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise IdentityError(f"The certificate has an unknown critical extension: {extension.oid.dotted_string}.")
    return extensions


def _only_uri(extensions: x509.Extensions) -> str:
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"The certificate has {len(uris)} URI names: an identity has exactly one.")
    return uris[0]


@dataclass(frozen=True)
class TrustBundles:
    """The roots that we accept, by the site that they speak for; a site has two while it changes its root."""

    roots: Mapping[Site, tuple[x509.Certificate, ...]]

    @classmethod
    def of(cls, roots: Iterable[x509.Certificate]) -> "TrustBundles":
        """Sort roots by their site; IdentityError for a certificate that is no root."""
        by_site: dict[Site, tuple[x509.Certificate, ...]] = {}
        for root in roots:
            site = site_of(root)
            by_site[site] = (*by_site.get(site, ()), root)
        return cls(MappingProxyType(by_site))


def authenticate(leaf: bytes | x509.Certificate, trust: TrustBundles, now: datetime) -> Identity:
    """Who holds the key of this certificate, or IdentityError. TLS has proved the possession of the key.

    `leaf` is DER, PEM, or parsed; `now` is aware. TLS has verified a chain as well, but to any of our roots.
    """
    # 1. Parse with a bound on the size, and refuse critical extensions that we do not know.
    #    Stops: restrictions that another verifier would see and we would skip.
    certificate = leaf if isinstance(leaf, x509.Certificate) else load_certificate(leaf)
    # 2. Keep the SPIFFE rules, and read the one URI.
    #    Stops: a CA that speaks for its site itself; a second URI that another verifier would read instead.
    identity = identity_of(certificate)
    # 3. Take the roots of the site that the URI names, and no others.
    #    Stops: the CA of site A vouching for a gateway of site B, which TLS alone would accept.
    roots = trust.roots.get(identity.home)
    if not roots:
        raise IdentityError(
            f"{identity} is of a site that is not trusted here: add its ca.pem with `landbridge certs trust`."
        )
    # 4. One of these roots, itself valid now, has signed the leaf directly.
    #    Stops: forgery; a sub-CA smuggled in between; a retired root's stolen key.
    if not any(_valid(root, now) and _issued(certificate, root) for root in roots):
        raise IdentityError(f"The certificate of {identity} was not issued by a valid root of site {identity.site}.")
    # 5. The leaf is valid now.
    #    Stops: the use of a key that was stolen and has been replaced since.
    if not _valid(certificate, now):
        raise IdentityError(
            f"The certificate of {identity} is valid from {_time(certificate.not_valid_before_utc)} to "
            f"{_time(certificate.not_valid_after_utc)}, and now is {_time(now)}: "
            "issue a new one, or set the clock."
        )
    return identity


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    # A signature is whole bytes: OpenSSL looks past a count of unused bits, and would take one certificate in several spellings.
    if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1] != 0:
        return False
    try:
        certificate.verify_directly_issued_by(root)
    except (*_MALFORMED, InvalidSignature):
        return False
    return True


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
