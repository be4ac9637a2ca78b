"""SPIFFE IDs, and what each kind of certificate must look like. Pure: no files, no clock, no network.

    spiffe://<trust-domain>/site/<site>                                     a root: the CA of that site
    spiffe://<trust-domain>/site/<site>/issuer/<gateway>                    an issuer: the CA of one gateway, below the root
    spiffe://<trust-domain>/site/<site>/{gateway|host|operator}/<name>      a leaf: who speaks

Who has signed a certificate, and whether it counts now, is for `certs.trust`.

Rules of the certificates: SPIFFE X509-SVID (github.com/spiffe/spiffe, standards/X509-SVID.md), section 2 to
5. Rules of the names are narrower than SPIFFE's: lower-case DNS labels, because every name also becomes a DNS
name for TLS.
"""

import enum
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
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
MALFORMED = (
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


@dataclass(frozen=True, order=True)
class Issuer:
    """The CA of one gateway, as its certificate names it. It signs, and never speaks."""

    home: Site
    gateway: str

    def __post_init__(self) -> None:
        _check("name", self.gateway, _DOTTED, NAME_CHARACTERS)

    def __str__(self) -> str:
        return f"{self.home}/issuer/{self.gateway}"

    def may_issue(self, identity: Identity) -> bool:
        """The hosts of its site, and its own gateway: whoever has its key can be no operator, and no other gateway."""
        if identity.home != self.home:
            return False
        return identity.role is Role.HOST or (identity.role is Role.GATEWAY and identity.name == self.gateway)


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


def parse_issuer(uri: str) -> Issuer:
    """`spiffe://<trust-domain>/site/<site>/issuer/<gateway>` to Issuer, or IdentityError."""
    match uri.split("/"):
        case ["spiffe:", "", trust_domain, "site", site, "issuer", gateway]:
            return Issuer(Site(trust_domain, site), gateway)
    raise IdentityError(f"{uri[:200]!r} is no issuer: expected spiffe://<trust-domain>/site/<site>/issuer/<gateway>.")


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
    except MALFORMED as error:
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
    except MALFORMED as error:
        raise IdentityError("The certificate cannot be read: an extension or its key is malformed.") from error


def site_of(root: x509.Certificate) -> Site:
    """The site that a root certificate speaks for, if it is a self-signed CA with a site's SPIFFE ID."""
    try:
        root.verify_directly_issued_by(root)
    except (*MALFORMED, InvalidSignature) as error:
        raise IdentityError("The CA certificate is malformed, or not signed by itself.") from error
    return parse_site(_authority_uri(root))


def handover_site_of(handover: x509.Certificate) -> Site:
    """The site whose old root says by this certificate that it has a new one; its signature is not judged."""
    return parse_site(_authority_uri(handover))


def issuer_of(certificate: x509.Certificate) -> Issuer:
    """Whose issuer a certificate is for, if it keeps the rules for issuers; who has signed it is not judged."""
    uri = _authority_uri(certificate)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length != 0:
        raise IdentityError("The issuer's certificate would let it make other CAs: its path length must be 0.")
    return parse_issuer(uri)


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Its key. Raises IdentityError for one that is not ECDSA."""
    try:
        key = certificate.public_key()
    except MALFORMED as error:
        raise IdentityError("The certificate's key cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("The certificate's key is not ECDSA: TLS 1.3 cannot be enforced with it.")
    return key


def _authority_uri(certificate: x509.Certificate) -> str:
    """The one URI of a CA's certificate."""
    try:
        extensions = _extensions(certificate)
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise IdentityError("The certificate is not a CA's: give the other site's ca.pem.")
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        if not usage.critical or not usage.value.key_cert_sign:
            raise IdentityError("The CA certificate's keyUsage must be critical and allow keyCertSign.")
        return _only_uri(extensions)
    except x509.ExtensionNotFound as error:
        raise IdentityError(f"The CA certificate lacks an extension: {error}.") from error
    except MALFORMED as error:
        raise IdentityError("The CA certificate is malformed.") from error


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
