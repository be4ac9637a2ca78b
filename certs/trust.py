"""Whom to believe: the roots of each site over time, what was revoked, and the judgement of chains. Pure, like `identity`.

    root ── issuer ── leaf      of one site; an operator's leaf, and one made beside the root, has no issuer between
    old root ── handover        the new root's key under the old root's signature, valid for the overlap: it says that the new
                                root counts, and, by its end, when the old one counts no more

A site that changes its root gives out the old one, the new one and the handover. Whoever knows the old one can follow by himself,
and nobody can be led back: what a bundle lacks is not forgotten, only a handover retires a root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from certs.identity import (
    CERTIFICATE_BYTES,
    MALFORMED,
    Identity,
    Issuer,
    Role,
    Site,
    handover_site_of,
    identity_of,
    issuer_of,
    key_of,
    load_certificate,
    parse,
    parse_issuer,
    site_of,
)
from landbridge.errors import IdentityError

# Of one site: roots and handovers. A site has one root, and two roots and a handover while it changes.
MOST_CERTIFICATES = 16
# Of a chain, below the leaf, that are looked at.
MOST_ISSUERS = 4
# Certificates are valid from a little before they were issued, for clocks of other machines that are behind.
BACKDATED = timedelta(minutes=5)


@dataclass(frozen=True)
class TrustBundles:
    """The roots that we accept, by the site that they speak for, and the handovers between them."""

    roots: Mapping[Site, tuple[x509.Certificate, ...]]
    handovers: Mapping[Site, tuple[x509.Certificate, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, certificates: Iterable[x509.Certificate]) -> TrustBundles:
        """Sort roots and handovers by their site; IdentityError for a certificate that is neither."""
        roots: dict[Site, tuple[x509.Certificate, ...]] = {}
        handovers: dict[Site, tuple[x509.Certificate, ...]] = {}
        for certificate in certificates:
            key_of(certificate)
            if _names_itself(certificate):
                site, into = site_of(certificate), roots
            else:
                site, into = handover_site_of(certificate), handovers
            if certificate not in into.get(site, ()):
                into[site] = (*into.get(site, ()), certificate)
        return cls(MappingProxyType(roots), MappingProxyType(handovers))

    def of_site(self, site: Site) -> tuple[x509.Certificate, ...]:
        """All that is to be told of one: its roots and handovers."""
        return (*self.roots.get(site, ()), *self.handovers.get(site, ()))

    def all(self) -> list[x509.Certificate]:
        """Every root and handover."""
        return [each for site in sorted({*self.roots, *self.handovers}) for each in self.of_site(site)]

    def end_of(self, root: x509.Certificate) -> datetime:
        """When a root counts no more: when it expires, or when it has handed over."""
        ends = [each.not_valid_after_utc for each in self.handovers.get(site_of(root), ()) if signed_by(each, root)]
        return min([root.not_valid_after_utc, *ends])

    def in_use_from(self, root: x509.Certificate) -> datetime:
        """When gateways begin to use issuers of a root: in the middle of the overlap, when the others have had time to follow."""
        begins = [
            each.not_valid_before_utc + (each.not_valid_after_utc - each.not_valid_before_utc) / 2
            for each in self.handovers.get(site_of(root), ())
            if each.public_key() == root.public_key()
        ]
        return max([root.not_valid_before_utc, *begins])

    def counts(self, root: x509.Certificate, now: datetime) -> bool:
        """Whether what a root has signed is accepted now."""
        return root.not_valid_before_utc <= now <= self.end_of(root)

    def follow(self, offered: Iterable[x509.Certificate], now: datetime) -> TrustBundles:
        """These and what is offered, where a root that counts has handed over to it; what counts no more is dropped.

        IdentityError for a root that no known root of its site has signed off.
        """
        theirs = TrustBundles.of(offered)
        known = TrustBundles.of(self.all())
        for site in theirs.roots:
            known = _follow_site(known, site, theirs, now)
        kept = [
            root
            for roots in known.roots.values()
            for root in roots
            if now <= known.end_of(root) or not any(known.counts(other, now) for other in roots)
        ]
        keys = [key_of(root) for root in kept]
        handovers = [
            each
            for every in known.handovers.values()
            for each in every
            if each.public_key() in keys and any(signed_by(each, root) for root in kept)
        ]
        return TrustBundles.of([*kept, *handovers])


def _names_itself(certificate: x509.Certificate) -> bool:
    try:
        return certificate.issuer == certificate.subject
    except MALFORMED as error:
        raise IdentityError("The CA certificate is malformed.") from error


def _follow_site(known: TrustBundles, site: Site, theirs: TrustBundles, now: datetime) -> TrustBundles:
    if len(theirs.of_site(site)) > MOST_CERTIFICATES:
        raise IdentityError(f"{site} shows more than {MOST_CERTIFICATES} roots and handovers: that is refused.")
    while True:
        fresh = [
            (root, handover)
            for root in theirs.roots[site]
            if root not in known.roots.get(site, ())
            for handover in theirs.handovers.get(site, ())
            if handover.public_key() == root.public_key() and _is_signed_off(known, site, handover, now)
        ]
        if not fresh:
            break
        known = TrustBundles.of([*known.all(), *(each for pair in fresh for each in pair)])
    # One that has handed over is no stranger, but forgotten here already.
    if any(root not in known.roots.get(site, ()) for root in theirs.roots[site] if theirs.counts(root, now)):
        raise IdentityError(
            f"{site} shows a root that none of its known roots has signed off: join the sites again with "
            "`landbridge sites join`, and compare fingerprints."
        )
    return known


def _is_signed_off(known: TrustBundles, site: Site, handover: x509.Certificate, now: datetime) -> bool:
    has_begun = handover.not_valid_before_utc <= now + BACKDATED
    roots = known.roots.get(site, ())
    return has_begun and any(known.counts(root, now) and signed_by(handover, root) for root in roots)


@dataclass(frozen=True, order=True)
class Denial:
    """A site has revoked: an identity, or an issuer, with all that was issued to it until then; or one certificate."""

    # The SPIFFE ID, or the serial number in lower-case hex.
    subject: str
    # Who says so: a site for its own, and the site that this is for all that it meets.
    site: Site
    since: datetime

    def __post_init__(self) -> None:
        subject = self.subject
        if subject.startswith("spiffe:"):
            parse_issuer(subject) if "/issuer/" in subject else parse(subject)
        elif not 1 <= len(subject) <= 40 or set(subject) - set("0123456789abcdef"):  # RFC 5280, 4.1.2.2: 20 octets
            raise IdentityError(
                f"{subject[:80]!r} cannot be revoked: give an identity such as spiffe://... or a serial number in hex, "
                "as `landbridge certs status` shows them."
            )


@dataclass(frozen=True)
class Credential:
    """Who has shown a certificate, and by what it can be revoked."""

    identity: Identity
    serial: int
    issued_at: datetime
    # The first end in the chain.
    until: datetime
    issuer: Issuer | None = None
    issuer_serial: int = 0
    issuer_issued_at: datetime | None = None

    def denied_by(self, denial: Denial, own: Site | None) -> bool:
        """Whether a denial concerns it. `own` is the site where this is asked."""
        if denial.site not in {self.identity.home, own}:
            return False
        if denial.subject in {f"{self.serial:x}", f"{self.issuer_serial:x}"}:
            return True
        if denial.subject == str(self.identity):
            return self.issued_at <= denial.since
        if self.issuer is None or self.issuer_issued_at is None:
            return False
        # Who has a gateway's key may have its issuer's, and could go on to issue: both go together.
        gateway = Identity(self.issuer.home.trust_domain, self.issuer.home.site, Role.GATEWAY, self.issuer.gateway)
        return denial.subject in {str(self.issuer), str(gateway)} and self.issuer_issued_at <= denial.since


def denials_end(subject: str, site: Site, denials: Iterable[Denial]) -> datetime:
    """From when on something can be issued to an identity that no denial by its site concerns; long ago if there is none."""
    ends = [each.since + timedelta(seconds=1) for each in denials if (each.subject, each.site) == (subject, site)]
    return max([datetime.min.replace(tzinfo=UTC), *ends])


@dataclass(frozen=True)
class Denials:
    """All that was revoked, as it is known at one site."""

    own: Site | None = None
    all: frozenset[Denial] = frozenset()

    def refusal(self, credential: Credential) -> str:
        """Why a credential is refused; "" if it is not."""
        for denial in self.all:
            if credential.denied_by(denial, self.own):
                return (
                    f"The certificate of {credential.identity} (serial {credential.serial:x}) was revoked by site "
                    f"{denial.site.site}, as all that was issued until {_time(denial.since)}: enrol it again, or issue a new one."
                )
        return ""


def judge(
    leaf: bytes | x509.Certificate,
    trust: TrustBundles,
    now: datetime,
    issuers: Iterable[bytes | x509.Certificate] = (),
    denials: Denials | None = None,
) -> Credential:
    """Who holds the key of this certificate, or IdentityError. TLS has proved the possession of the key.

    `leaf` is DER, PEM, or parsed; `issuers` what else was shown; `now` is aware. TLS has verified a chain as well, but to any of
    our roots.
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
            f"{identity} is of a site that is not trusted here: add its ca.pem with `landbridge certs trust`, or join it "
            "with `landbridge sites join`."
        )
    # 4. One of these roots, which counts now, has signed the leaf, or an issuer that is valid now and may issue it.
    #    Stops: forgery; a sub-CA smuggled in between; a gateway's issuer vouching for an operator, for another gateway or for
    #    another site; a retired root's stolen key.
    chain = _chain(certificate, identity, [root for root in roots if trust.counts(root, now)], issuers, now)
    if chain is None:
        raise IdentityError(f"The certificate of {identity} was not issued by a valid root of site {identity.site}.")
    issuer, root = chain
    # 5. The leaf is valid now.
    #    Stops: the use of a key that was stolen and has been replaced since.
    if not _valid(certificate, now):
        raise IdentityError(
            f"The certificate of {identity} is valid from {_time(certificate.not_valid_before_utc)} to "
            f"{_time(certificate.not_valid_after_utc)}, and now is {_time(now)}: "
            "issue a new one, or set the clock."
        )
    credential = Credential(
        identity,
        certificate.serial_number,
        issued_at(certificate),
        min([certificate.not_valid_after_utc, trust.end_of(root), *([issuer.not_valid_after_utc] if issuer else [])]),
        issuer_of(issuer) if issuer else None,
        issuer.serial_number if issuer else 0,
        issued_at(issuer) if issuer else None,
    )
    # 6. Neither the identity nor a certificate of the chain was revoked.
    #    Stops: the use of a key that is known to be stolen.
    if denials is not None and (refusal := denials.refusal(credential)):
        raise IdentityError(refusal)
    return credential


def _chain(
    leaf: x509.Certificate,
    identity: Identity,
    roots: list[x509.Certificate],
    shown: Iterable[bytes | x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate | None, x509.Certificate] | None:
    """The issuer, if there is one between, and the root."""
    for root in roots:
        if signed_by(leaf, root):
            return None, root
    for _, each in zip(range(MOST_ISSUERS), shown, strict=False):
        try:
            certificate = each if isinstance(each, x509.Certificate) else load_certificate(each)
            may_issue = issuer_of(certificate).may_issue(identity)
        except IdentityError:
            continue  # the root itself may have been shown
        if may_issue and _valid(certificate, now) and signed_by(leaf, certificate):
            for root in roots:
                if signed_by(certificate, root):
                    return certificate, root
    return None


def signed_by(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether one has signed the other."""
    # A signature is whole bytes: OpenSSL looks past a count of unused bits, and would take one certificate in several spellings.
    if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1] != 0:
        return False
    try:
        certificate.verify_directly_issued_by(by)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def issued_at(certificate: x509.Certificate) -> datetime:
    """When it was issued."""
    return certificate.not_valid_before_utc + BACKDATED


def renew_at(credential: Credential, jitter: float) -> datetime:
    """When to renew: half way from its issue to its end, give or take a tenth of that way; `jitter` is from -1 to 1."""
    return credential.issued_at + (credential.until - credential.issued_at) * (0.5 + jitter / 10)


def fingerprint(certificate: x509.Certificate) -> str:
    """The lower-case hex SHA-256 of its DER."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def spoken(fingerprint_: str) -> str:
    """The first half of a fingerprint in groups, for two people to read to each other: 128 bits, which nobody else's root has."""
    return " ".join(fingerprint_[at : at + 4] for at in range(0, 32, 4))


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Every certificate of a PEM text. Raises IdentityError."""
    if len(pem) > CERTIFICATE_BYTES:
        raise IdentityError(f"A bundle of {len(pem)} bytes is refused: at most {CERTIFICATE_BYTES}.")
    try:
        return x509.load_pem_x509_certificates(pem)
    except MALFORMED as error:
        raise IdentityError("The bundle cannot be read: it is no PEM text of certificates.") from error


def pem_of(certificates: Iterable[x509.Certificate]) -> bytes:
    """The opposite of `load_certificates`."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
