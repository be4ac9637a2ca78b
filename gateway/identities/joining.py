"""Another site: its root is read from one of its gateways, shown to an operator, and believed only then."""

from __future__ import annotations

import structlog

from certs.identity import Identity, Site
from certs.living import LivingIdentity
from certs.probe import probe
from certs.trust import TrustBundles, fingerprint, load_certificates, pem_of
from gateway.audit import changes
from gateway.audit.canonical import Value
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.identities.records import Records
from gateway.identities.trusting import Trusting
from landbridge.config import Address, parse_address
from landbridge.errors import Conflict, IdentityError, UsageError
from landbridge.v1.enrolment_pb2 import LookAtSiteResponse

log = structlog.get_logger()


class Joining:
    """Of one gateway, for all gateways of its site."""

    def __init__(self, identity: LivingIdentity, records: Records, trusting: Trusting, journal: Journal) -> None:
        self._identity = identity
        self._journal = journal
        self._records = records
        self._trusting = trusting

    async def look(self, address: str) -> LookAtSiteResponse:
        """The site of the gateway at an address, and both roots. Raises Unreachable, IdentityError, UsageError or ConfigError."""
        credential, root = await probe(_address(address))
        own = self._identity.identity.home
        if credential.identity.home == own:
            raise UsageError(f"The gateway at {address} is one of this site, {own.site}: give one of the other site.")
        return LookAtSiteResponse(
            site=str(credential.identity.home),
            root=pem_of([root]).decode(),
            own_site=str(own),
            own_root=pem_of([self._identity.stored.root]).decode(),
        )

    async def join(self, site: str, root: str, peers: list[str], by: Identity) -> None:
        """Believe a site from now on. Raises IdentityError, UsageError, Conflict if it is known by another root, or NotRecorded."""
        found = load_certificates(root.encode())
        home = next(iter(TrustBundles.of(found).roots), None)
        if len(found) != 1 or home is None or str(home) != site:
            raise IdentityError(f"Give the one root of {site[:200]}, as its gateway has shown it.")
        if not peers:
            raise UsageError("Give the address of one of its gateways.")
        self._check_unknown(home, found[0] in self._identity.trust.roots.get(home, ()))
        places = {place.name: place for place in await self._records.sites()}
        addresses = [_address(each) for each in peers]
        change: dict[str, Value] = {"subject": str(home), "after_sha256": changes.sha256(pem_of(found))}
        change["comment"] = f"joined, with the root {fingerprint(found[0])}"
        await self._journal.record("trust.changed", actor=certified(by), seen={"change": change})
        pem = pem_of([*self._identity.trust.of_site(home)] or found)
        tunnel = places[home.site].stream if home.site in places else ()
        await self._records.join_site(str(home), pem, home.site, addresses, tunnel)
        log.warning("site.joined", site=str(home), fingerprint=fingerprint(found[0]), by=str(by))
        await self._trusting.look()
        self._trusting.hurry()

    def _check_unknown(self, home: Site, is_its_root: bool) -> None:
        for known in self._identity.trust.roots:
            if known.site == home.site and (known != home or not is_its_root):
                raise Conflict(
                    f"A site {home.site} is joined already, with another root: if it has truly made a new CA that the old one has not "
                    f"signed off, end the trust in the old one first, with `landbridge sites leave {home.site}`."
                )


def _address(text: str) -> Address:
    try:
        return parse_address(text[:256])
    except ValueError as error:
        raise UsageError(str(error)) from error
