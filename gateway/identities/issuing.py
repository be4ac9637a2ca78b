"""This gateway's issuer: it signs the gateway's own leaf, and what its hosts ask for. The key of the issuer never leaves it.

A leaf is renewed half way through its life. Of several issuers, the one counts whose root is the newest in use: after a change of the
site's root, that is the new one from the middle of the overlap on, so that everybody has heard of it by then.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509

from certs import authority, store
from certs.authority import Authority
from certs.identity import Identity, Issuer, Role, issuer_of
from certs.living import LivingIdentity
from certs.store import StoredIdentity
from certs.trust import Credential, denials_end, fingerprint, judge, load_certificates, pem_of, renew_at
from landbridge.errors import ConfigError, IdentityError, UsageError

log = structlog.get_logger()

# How long before an issuer's end its gateway begins to say so, and how often.
WARNED = timedelta(days=60)
WARNING_INTERVAL = timedelta(hours=12)


def issuer_in_use(stored: StoredIdentity, issuers: list[Authority], now: datetime) -> Authority | None:
    """The one that signs now; None if there is none that could."""
    usable = [
        (stored.trust.in_use_from(each.root), each.certificate.not_valid_after_utc, each)
        for each in issuers
        if each.root is not None
        and each.issuer == Issuer(stored.identity.home, stored.identity.name)
        and each.certificate.not_valid_before_utc <= now < each.certificate.not_valid_after_utc
        and stored.trust.counts(each.root, now)
    ]
    in_use = [entry for entry in usable if entry[0] <= now] or usable
    return max(in_use, key=lambda entry: entry[:2])[2] if in_use else None


class Issuing:
    """Owned by the event loop."""

    def __init__(self, identity: LivingIdentity, lifetime: timedelta) -> None:
        self._identity = identity
        self._lifetime = lifetime
        self._jitter = random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret
        self._warned_at: datetime | None = None
        # Counts issuers that have come or gone.
        self.changes = 0
        # Those that are there, and the leaf as it was judged: as of a count and of what was believed then.
        self._known: tuple[int, StoredIdentity, list[Authority], Credential | None] | None = None

    @property
    def name(self) -> str:
        """This gateway's."""
        return self._identity.identity.name

    def _now_known(self) -> tuple[list[Authority], Credential | None]:
        """This gateway's issuers, and its leaf if that is in order. Raises ConfigError."""
        stored = self._identity.stored
        if self._known is None or self._known[:2] != (self.changes, stored):
            issuers = store.load_issuers(stored.directory, stored.trust)
            try:
                credential = judge(stored.certificate, stored.trust, datetime.now(UTC), stored.issuers)
            except IdentityError:
                credential = None
            self._known = (self.changes, stored, issuers, credential)
        return self._known[2:]

    def issuer(self, now: datetime) -> Authority:
        """The one that signs now. Raises ConfigError."""
        issuer = issuer_in_use(self._identity.stored, self._now_known()[0], now)
        if issuer is None:
            raise ConfigError(
                f"{self._identity.identity} has no issuer that is valid now, and can sign nothing: renew it with "
                "`landbridge certs renew`"
            )
        return issuer

    def sign(self, identity: Identity, request: str) -> tuple[str, x509.Certificate]:
        """The chain for a request of a host of this site, PEM, and its leaf. Raises IdentityError, UsageError or ConfigError.

        Whoever asks for it is in order by the denials of now: it is as of a moment that they do not reach, which may lie a little
        ahead; it is valid at once all the same, since leaves are backdated by more.
        """
        if identity.role is not Role.HOST:
            raise UsageError(
                f"{identity} is no host: gateways renew themselves, and operators are issued by the site's CA"
            )
        now = datetime.now(UTC)
        issuer = self.issuer(now)
        as_of = max(now, denials_end(str(identity), identity.home, self._identity.denials.all))
        leaf = authority.sign(issuer, identity, authority.requested_key(request.encode()), as_of, self._lifetime)
        return pem_of([leaf, issuer.certificate]).decode(), leaf

    async def renew(self) -> bool:
        """Renew this gateway's own leaf if it is time; whether that was done. Raises ConfigError."""
        now, stored = datetime.now(UTC), self._identity.stored
        issuers, credential = self._now_known()
        for each in issuers:
            if each.certificate.not_valid_after_utc < now:
                store.remove_issuer(stored.directory, each)
                self.changes += 1
        issuer = issuer_in_use(stored, issuers, now)
        self._warn(issuer, now)
        if issuer is None or not self._is_due(stored, credential, issuer, now):
            return False
        leaf = authority.issue(issuer, stored.identity, now, lifetime=self._lifetime)
        # A disk may be slow, and bytes must go on moving meanwhile.
        await asyncio.to_thread(store.renew_identity, stored.directory, leaf.chain_pem, leaf.key)
        self._identity.reload()
        self._jitter = random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret
        log.info(
            "identity.renewed",
            identity=str(stored.identity),
            serial=f"{leaf.certificate.serial_number:x}",
            until=str(leaf.certificate.not_valid_after_utc),
        )
        return True

    def _is_due(self, stored: StoredIdentity, credential: Credential | None, issuer: Authority, now: datetime) -> bool:
        changes_root = all(shown.issuer != issuer.certificate.issuer for shown in stored.issuers)
        return credential is None or now >= renew_at(credential, self._jitter) or changes_root

    def _warn(self, issuer: Authority | None, now: datetime) -> None:
        """Say in time that an issuer ends: only the site's root can renew it."""
        if self._warned_at is not None and now - self._warned_at < WARNING_INTERVAL:
            return
        who = str(self._identity.identity)
        if issuer is None:
            log.warning("issuer.missing", identity=who, remedy="landbridge certs renew")
            self._warned_at = now
        elif issuer.certificate.not_valid_after_utc - now < WARNED:
            until = str(issuer.certificate.not_valid_after_utc)
            log.warning("issuer.expires", identity=who, until=until, remedy="landbridge certs renew")
            self._warned_at = now

    # What the site's root is asked for

    def request(self) -> str:
        """A request for an issuer's certificate, for a key that waits here."""
        stored = self._identity.stored
        return authority.request(store.pending_key(stored.directory), stored.identity).decode()

    def install(self, certificate_pem: str) -> datetime:
        """Take the certificate that was asked for; when it comes into use. Raises IdentityError or Conflict."""
        found = load_certificates(certificate_pem.encode())
        stored = self._identity.stored
        wanted = Issuer(stored.identity.home, stored.identity.name)
        if len(found) != 1 or issuer_of(found[0]) != wanted:
            raise IdentityError(
                f"Give one certificate, which is for {wanted}: what the site's CA has answered to its request."
            )
        issuer = store.install_issuer(stored.directory, found[0], stored.trust)
        self.changes += 1
        self._warned_at = None
        log.info("issuer.installed", identity=str(wanted), fingerprint=fingerprint(found[0]))
        begins = [] if issuer.root is None else [stored.trust.in_use_from(issuer.root)]
        return max([datetime.now(UTC), *begins])


def revive(directory: Path, lifetime: timedelta) -> None:
    """Before a gateway starts: renew its leaf, if that has expired while the gateway did not run. Raises ConfigError or NotFound."""
    stored, now = store.load_identity(directory, None), datetime.now(UTC)
    if now <= stored.certificate.not_valid_after_utc:
        return
    if (issuer := issuer_in_use(stored, store.load_issuers(directory, stored.trust), now)) is not None:
        leaf = authority.issue(issuer, stored.identity, now, lifetime=lifetime)
        store.renew_identity(directory, leaf.chain_pem, leaf.key)
        log.info("identity.revived", identity=str(stored.identity))
