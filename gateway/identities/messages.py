"""Between what is known here, and how it is told and recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC

from certs import store
from certs.identity import Site, parse_site
from certs.living import LivingIdentity
from certs.trust import Denial, issued_at
from gateway.identities.records import CertificateRecord
from landbridge.v1.enrolment_pb2 import DenialEntry


def own_records(identity: LivingIdentity) -> Iterable[CertificateRecord]:
    """This gateway's own certificates."""
    stored = identity.stored
    leaf = stored.certificate
    ends = [leaf.not_valid_after_utc, *(each.not_valid_after_utc for each in stored.issuers)]
    yield CertificateRecord(
        f"{leaf.serial_number:x}", str(stored.identity), issued_at(leaf), min(ends), renews_itself=bool(stored.issuers)
    )
    for issuer in store.load_issuers(stored.directory, stored.trust):
        certificate = issuer.certificate
        yield CertificateRecord(
            f"{certificate.serial_number:x}",
            str(issuer.issuer),
            issued_at(certificate),
            min(certificate.not_valid_after_utc, stored.trust.end_of(issuer.root or certificate)),
            renews_itself=False,
        )


def entries(denials: Iterable[Denial]) -> list[DenialEntry]:
    """As they are sent."""
    made = []
    for denial in sorted(denials):
        entry = DenialEntry(subject=denial.subject, site=str(denial.site))
        entry.since.FromDatetime(denial.since)
        made.append(entry)
    return made


def denials_of(told: Sequence[DenialEntry], site: Site) -> frozenset[Denial]:
    """What a site has revoked of its own, of what it tells; what it thinks of others is for itself. Raises IdentityError."""
    return frozenset(
        Denial(entry.subject, site, entry.since.ToDatetime(UTC).replace(microsecond=0))
        for entry in told
        if parse_site(entry.site) == site
        and (not entry.subject.startswith("spiffe:") or entry.subject.startswith(f"{site}/"))
    )
