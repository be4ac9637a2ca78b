"""What there is of certificates at this site, and what was revoked."""

from __future__ import annotations

from datetime import UTC, datetime

from certs.identity import Role, parse, parse_issuer
from certs.living import LivingIdentity
from certs.trust import Denial, issued_at
from gateway.identities.messages import entries, own_records
from gateway.identities.records import CertificateRecord, Records
from landbridge.errors import IdentityError, UsageError
from landbridge.v1.enrolment_pb2 import CertificateEntry, CertificateKind, ListCertificatesResponse

_KINDS = {
    Role.GATEWAY: CertificateKind.CERTIFICATE_KIND_GATEWAY,
    Role.HOST: CertificateKind.CERTIFICATE_KIND_HOST,
    Role.OPERATOR: CertificateKind.CERTIFICATE_KIND_OPERATOR,
}


class Listing:
    """Of one gateway, for its whole site: what the gateways have signed, and whoever has shown a certificate to one of them."""

    def __init__(self, identity: LivingIdentity, records: Records) -> None:
        self._identity = identity
        self._records = records

    async def all(self) -> ListCertificatesResponse:
        """Roots first, then issuers, then the others by their names. Raises ConfigError."""
        stored, denials = self._identity.stored, await self._records.denials()
        home = stored.identity.home
        found = [
            _entry(
                CertificateRecord(
                    f"{each.serial_number:x}", str(home), issued_at(each), stored.trust.end_of(each), False
                ),
                CertificateKind.CERTIFICATE_KIND_ROOT,
                denials,
            )
            for each in stored.trust.roots.get(home, ())
        ]
        records = {each.serial: each for each in await self._records.certificates()}
        for record in own_records(self._identity):
            records[record.serial] = record
        newest: dict[str, CertificateRecord] = {}
        for record in records.values():
            is_issuer = "/issuer/" in record.identity
            key = record.serial if is_issuer else record.identity
            if key not in newest or newest[key].issued_at < record.issued_at:
                newest[key] = record
        for record in newest.values():
            kind = (
                CertificateKind.CERTIFICATE_KIND_ISSUER
                if "/issuer/" in record.identity
                else _KINDS[parse(record.identity).role]
            )
            found.append(_entry(record, kind, denials))
        found.sort(key=lambda entry: (entry.kind, entry.identity, entry.issued_at.ToNanoseconds()))
        return ListCertificatesResponse(certificates=found, denials=entries(denials))

    async def resolve(self, subject: str) -> str:
        """What is to be revoked: a SPIFFE ID, a serial number, or ROLE/NAME of this site. Raises UsageError."""
        own = self._identity.identity
        role, slash, name = subject.partition("/")
        try:
            if subject.startswith("spiffe:"):
                return str(parse_issuer(subject) if "/issuer/" in subject else parse(subject))
            if slash:
                return str(parse(f"{own.home}/{role}/{name}"))
            return Denial(subject.lower().lstrip("0"), own.home, datetime.now(UTC)).subject
        except IdentityError as error:
            raise UsageError(
                f"{subject[:80]!r} cannot be revoked: give ROLE/NAME such as host/host-b, an identity such as spiffe://..., or a "
                "serial number, as `landbridge certs status` shows them."
            ) from error


def _entry(record: CertificateRecord, kind: CertificateKind.ValueType, denials: frozenset[Denial]) -> CertificateEntry:
    entry = CertificateEntry(
        identity=record.identity, kind=kind, serial=record.serial, renews_itself=record.renews_itself
    )
    entry.issued_at.FromDatetime(record.issued_at)
    entry.expires_at.FromDatetime(record.expires_at)
    for denial in denials:
        if denial.subject == record.serial or (denial.subject == record.identity and record.issued_at <= denial.since):
            entry.revoked_at.FromDatetime(denial.since)
    return entry
