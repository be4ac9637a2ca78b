"""How a host gets its first certificate: by a token that is good once, for an hour, and for one name."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta

import structlog

from certs import authority, token
from certs.attempts import Attempts
from certs.identity import Identity, Role
from certs.living import LivingIdentity
from certs.token import Token
from certs.trust import issued_at
from gateway.audit.canonical import Value
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.identities.issuing import Issuing
from gateway.identities.records import CertificateRecord, Records
from gateway.identities.trusting import Trusting
from landbridge.config import Address, parse_address
from landbridge.errors import ConfigError, IdentityError, PermissionDenied, Unreachable, UsageError
from landbridge.v1.enrolment_pb2 import EnrolRequest, EnrolResponse

log = structlog.get_logger()

LIFETIME = timedelta(hours=1)
# Attempts at once, and so many more per minute, of one address and of all: a secret of 256 bits needs no such bound, but whoever tries
# is slowed down.
ATTEMPTS, ALL_ATTEMPTS, WINDOW = 10, 100, 60.0

_REFUSED = "the token is not valid here: it was used, has expired, or is for another gateway; make a new one with `landbridge hosts enroll`"


class Enrolment:
    """Of one gateway; its tokens are good at every gateway of the site."""

    def __init__(
        self, identity: LivingIdentity, records: Records, issuing: Issuing, trusting: Trusting, journal: Journal
    ) -> None:
        self._identity = identity
        self._journal = journal
        self._records = records
        self._issuing = issuing
        self._trusting = trusting
        self._attempts = Attempts(ATTEMPTS, ATTEMPTS / WINDOW)
        self._all_attempts = Attempts(ALL_ATTEMPTS, ALL_ATTEMPTS / WINDOW)

    async def make_token(self, name: str, made_by: Identity) -> tuple[Token, datetime]:
        """A token for a host, and its end. Raises UsageError, ConfigError or NotRecorded."""
        identity = self._host(name)
        everywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not listened on
        addresses = [each for each in await self._records.endpoints("enrolment") if each.host not in everywhere]
        if not addresses:
            raise ConfigError(
                "no gateway of this site takes enrolments at an address that a host could reach: set enrolment under [listen] in "
                'gateway.toml, such as enrolment = "10.1.0.1:7446", and start it again'
            )
        now = datetime.now(UTC)
        made = token.make(self._identity.stored.root, addresses)
        change: Value = {"subject": str(identity), "comment": f"token {made.id}, by which it may enrol, was made"}
        await self._journal.record("key.changed", actor=certified(made_by), seen={"change": change})
        await self._records.add_token(made.id, token.secret_hash(made.secret), name, str(made_by), now + LIFETIME)
        log.info("enrolment.offered", id=made.id, identity=str(identity), by=str(made_by))
        return made, now + LIFETIME

    def _host(self, name: str) -> Identity:
        own = self._identity.identity
        try:
            return Identity(own.trust_domain, own.site, Role.HOST, name)
        except IdentityError as error:
            raise UsageError(error.message) from error

    async def enrol(self, request: EnrolRequest, address: str, now: float) -> EnrolResponse:
        """Take a host in. Raises PermissionDenied, Unreachable for one that tries too often, UsageError or NotRecorded."""
        if not (self._attempts.take(address, now) and self._all_attempts.take("all", now)):
            if self._attempts.is_news(address, now):
                log.warning("enrolment.refused", address=address, reason="too many attempts")
            raise Unreachable("too many have tried to enrol here: try again in a minute")
        name = await self._check(request, address)
        control, stream = self._places(request)
        # A host that was revoked a moment ago at another gateway is to come back.
        await self._trusting.look()
        # Nothing must be wrong any more once the token is used.
        authority.requested_key(request.request.encode())
        self._issuing.issuer(datetime.now(UTC))
        change: Value = {"subject": str(self._host(name)), "comment": "its first certificate, as it enrols"}
        actor = {"id": str(self._host(name)), "method": f"token {request.token_id[:32]}", "address": address}
        await self._journal.record("key.changed", actor=actor, seen={"change": change})
        if not await self._records.use_token(request.token_id):
            log.warning("enrolment.refused", address=address, id=request.token_id[:32], reason="the token was used")
            raise PermissionDenied(_REFUSED)
        identity = self._host(name)
        chain, leaf = self._issuing.sign(identity, request.request)
        record = CertificateRecord(
            f"{leaf.serial_number:x}",
            str(identity),
            issued_at(leaf),
            leaf.not_valid_after_utc,
            renews_itself=True,
        )
        await self._records.add_certificate(record)
        await self._records.add_host(name, control, stream)
        await self._trusting.look()
        log.info("agent.enrolled", identity=str(identity), serial=record.serial, address=address, id=request.token_id)
        return EnrolResponse(
            chain=chain,
            roots=self._trusting.own_roots(),
            site=identity.site,
            name=name,
            control=map(str, await self._records.endpoints("operators")),
            stream=map(str, await self._records.endpoints("agents")),
        )

    async def _check(self, request: EnrolRequest, address: str) -> str:
        """For which host the token is. Raises PermissionDenied, which does not tell what was wrong."""
        known = await self._records.token(request.token_id[:32])
        reason = "there is no such token"
        if known is not None:
            secret_hash, name, expires_at, is_used = known
            if not hmac.compare_digest(secret_hash, token.secret_hash(request.secret)):
                reason = "its secret is wrong"
            elif is_used:
                reason = "the token was used"
            elif datetime.now(UTC) >= expires_at:
                reason = "the token has expired"
            else:
                return name
        log.warning("enrolment.refused", address=address, id=request.token_id[:32], reason=reason)
        raise PermissionDenied(_REFUSED)

    def _places(self, request: EnrolRequest) -> tuple[Address, Address]:
        try:
            return parse_address(request.control[:256]), parse_address(request.stream[:256])
        except ValueError as error:
            raise UsageError(f"the host's addresses cannot be read: {error}") from error
