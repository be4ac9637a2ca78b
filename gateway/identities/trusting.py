"""Rounds in which a gateway learns what its site and others believe, and tells them.

    look        the store's denials, roots, hosts and sites are held here, and what has left it is let go; what this gateway's own files
                have is stored for the others, unless it was left
    exchange    each other site is told ours and tells its own: roots (each must be signed off by one that is known), denials, addresses
    published   whoever follows this gateway (`follow`), as its site's agents do, is told at once

A denial reaches every gateway of this site within a round, their agents at once then, and the other sites within a round more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from certs import store as files
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.tls import ServicerContext
from certs.trust import Credential, Denial, TrustBundles, denials_end, load_certificates, pem_of
from gateway.config import GatewayConfig, HostSettings, SiteSettings
from gateway.identities.issuing import Issuing
from gateway.identities.messages import denials_of, entries, own_records
from gateway.identities.neighbours import Neighbours
from gateway.identities.records import CertificateRecord, Place, Records
from gateway.migration.inventory import Inventory
from gateway.remote import PeerRemote
from landbridge.config import Address, parse_address
from landbridge.errors import IdentityError, LandbridgeError, ProtocolError
from landbridge.v1.enrolment_pb2 import TrustResponse
from landbridge.v1.peer_pb2 import ExchangeTrustRequest, SiteTrust

log = structlog.get_logger()

# Seconds between two rounds.
ROUND = 2.0
# Seconds by which the clocks of gateways may differ: migrations between hosts whose clocks differ by more are refused, too.
MOST_SKEW = 60.0
# A revoked host may be signed for once more by a gateway that has not heard of it yet: what is issued until then is denied with it.
MARGIN = timedelta(seconds=2 * ROUND + MOST_SKEW)
# A site without a tunnel is asked once in so many.
PATIENT_ROUNDS = 15
# Of another site: denials, in all and not in one message, since they are kept for good; and what it may tell of addresses.
MOST_DENIALS = 10_000
MOST_ADDRESSES = 64


class Trusting:
    """The rounds of one gateway. Owned by the event loop."""

    def __init__(
        self,
        settings: GatewayConfig,
        identity: LivingIdentity,
        records: Records,
        issuing: Issuing,
        inventory: Inventory,
        neighbours: Neighbours,
    ) -> None:
        """`neighbours` are told of hosts and sites that have come, are reached elsewhere, or have gone."""
        self._settings = settings
        self._identity = identity
        self._records = records
        self._issuing = issuing
        self._inventory = inventory
        self._neighbours = neighbours
        self._round = 0
        # What was told, so that only what is new is told again.
        self._places: dict[tuple[str, str], Place] = {}
        self._seen: dict[Identity, Credential] = {}
        # What was looked at last, for signatures cost time that the bytes of a migration want: the store's roots with what was believed
        # then, until when that stays so; this gateway's certificates; and what each site has told.
        self._looked_at: tuple[dict[str, bytes], frozenset[str], TrustBundles, datetime] | None = None
        self._recorded_of: tuple[object, int] | None = None
        self._heard: dict[str, tuple[bytes, TrustBundles, frozenset[Denial], Place | None]] = {}
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._refused: dict[str, str] = {}
        # Who looks holds it: what was read first is held first.
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        identity.on_seen = self._see

    def _see(self, credential: Credential) -> None:
        self._seen[credential.identity] = credential

    # Rounds

    async def start(self) -> None:
        """Hold what the store has, and go round until `close`. Raises ConfigError if the store fails."""
        listen = self._settings.listen
        uses = ("operators", "agents", "peers", "tunnel", "enrolment")
        await self._records.save_endpoints(self._settings.name, {use: getattr(listen, use) for use in uses})
        await self.look()
        self._task = asyncio.create_task(self._go_round(), name="trusting")

    async def close(self) -> None:
        """Stop going round."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _go_round(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._issuing.renew()
                await self.look()
            except LandbridgeError as error:
                log.error("trusting.failed", error=error.message)  # noqa: TRY400 - no defect
            except Exception:  # a defect here must not end renewals
                log.exception("trusting.defect")
            self._round += 1
            names = [name for name in self._inventory.site_names() if self._is_worth_asking(name)]
            await asyncio.gather(*(self._exchange(name) for name in names))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND):
                    await self._wake.wait()

    def _is_worth_asking(self, site: str) -> bool:
        """A site without a tunnel hardly answers; but it may be reached elsewhere than before."""
        return self._neighbours.has_tunnel(site) or self._round % PATIENT_ROUNDS == 0

    def hurry(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    async def look(self) -> None:
        """Hold what the store has, and store what is only here. Raises ConfigError."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        denials = await self._records.denials()
        has_changed = denials != self._identity.denials.all
        self._identity.deny(denials)
        if await self._look_at_roots() or has_changed:
            self._publish()
        await self._look_at_hosts()
        await self._look_at_sites()
        await self._record_certificates()

    async def _look_at_hosts(self) -> None:
        configured = {each.name for each in self._settings.hosts}
        found = await self._records.hosts()
        for place in found:
            if place.name not in configured and self._is_new("host", place):
                host = HostSettings(name=place.name, control=place.control[0], stream=place.stream[0])
                self._neighbours.know_host(host)
        for name in self._gone("host", found):
            self._neighbours.forget_host(name)
            log.warning("host.removed", host=name)

    async def _look_at_sites(self) -> None:
        configured = {each.name: each for each in self._settings.sites}
        found = await self._records.sites()
        for place in found:
            known = configured.get(place.name, SiteSettings(name=place.name))
            if not known.peers and self._is_new("site", place):
                self._neighbours.join(known.model_copy(update={"peers": place.control, "tunnel": place.stream}))
        for name in self._gone("site", found):
            await self._neighbours.leave(name)
            self._heard.pop(name, None)

    def _gone(self, kind: str, found: Sequence[Place]) -> list[str]:
        """The names of those that were told of, and are no more."""
        gone = {key for key in self._places if key[0] == kind} - {(kind, place.name) for place in found}
        for key in gone:
            del self._places[key]
        return sorted(name for _, name in gone)

    def _is_new(self, kind: str, place: Place) -> bool:
        key = (kind, place.name)
        before, self._places[key] = self._places.get(key), place
        return before != place

    async def _look_at_roots(self) -> bool:
        """Follow what the store believes, and store what this gateway believes; whether that has changed."""
        now, before = datetime.now(UTC), self._identity.trust
        stored, left = await self._records.roots(), await self._records.departures()
        if self._looked_at is not None:
            roots, departed, believed, until = self._looked_at
            if (roots, departed) == (stored, left) and believed is before and now < until:
                return False
        trust = _without(before, left)
        for pem in (pem for site, pem in stored.items() if site not in left):
            offered = load_certificates(pem)
            strangers = [each for each in TrustBundles.of(offered).roots if each not in trust.roots]
            if strangers:  # an operator has joined it
                trust = TrustBundles.of([*trust.all(), *offered])
                continue
            try:
                trust = trust.follow(offered, now)
            except IdentityError as error:
                self._refuse("the store", error)
        trust = trust.follow([], now)
        for site in trust.roots:
            known = stored.get(str(site))
            if known is None or set(load_certificates(known)) != set(trust.of_site(site)):
                await self._records.save_roots(str(site), pem_of(trust.of_site(site)))
        if set(trust.all()) == set(before.all()):
            until = min(before.end_of(root) for roots in before.roots.values() for root in roots)
            self._looked_at = (stored, left, before, until)
            return False
        for site in before.roots.keys() - trust.roots.keys():
            await asyncio.to_thread(files.remove_trust, self._identity.stored.directory, site)
            log.warning("site.left", site=str(site))
        await asyncio.to_thread(files.save_trust, self._identity.stored.directory, trust)
        self._identity.reload()
        log.info("trust.changed", sites=sorted(str(site) for site in trust.roots))
        return True

    async def _record_certificates(self) -> None:
        own_now = (self._identity.stored, self._issuing.changes)
        if own_now != self._recorded_of:
            for record in own_records(self._identity):
                await self._records.add_certificate(record)
            self._recorded_of = own_now
        seen, self._seen = self._seen, {}
        own = self._identity.identity.home
        for identity, credential in seen.items():
            if identity.home == own:
                renews = identity.role is not Role.OPERATOR
                await self._records.add_certificate(
                    CertificateRecord(
                        f"{credential.serial:x}", str(identity), credential.issued_at, credential.until, renews
                    )
                )

    # Others of this site

    def own_roots(self) -> str:
        """What this site tells of itself, PEM."""
        return pem_of(self._identity.trust.of_site(self._identity.identity.home)).decode()

    def _publish(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self) -> AsyncIterator[TrustResponse]:
        """What agents of this site are to believe: now, and again whenever it changes."""
        while True:
            changed = self._changed
            yield TrustResponse(roots=self.own_roots(), denials=entries(self._identity.denials.all))
            await changed.wait()

    async def deny(self, subject: str) -> None:
        """Revoke, at once and for good. Raises IdentityError or ConfigError."""
        own = self._identity.identity.home
        # Only what gateways sign by themselves can be signed at the same time.
        margin = MARGIN if subject.startswith(f"{own}/{Role.HOST}/") else timedelta()
        since = datetime.now(UTC).replace(microsecond=0) + margin
        denial = Denial(subject, own, max(since, denials_end(subject, own, await self._records.denials())))
        await self._records.add_denial(denial)
        log.warning("identity.revoked", subject=subject)
        await self.look()
        self.hurry()

    async def check(self, context: ServicerContext) -> None:
        """Judge who calls by what the store has now, and not a round ago. Raises NotAuthenticated or ConfigError."""
        await self.look()
        self._identity.caller(context)

    async def install_roots(self, pem: str) -> None:
        """Believe new roots of this site. Raises IdentityError for one that its present roots have not signed off."""
        own = self._identity.identity.home
        offered = load_certificates(pem.encode())
        if set(TrustBundles.of(offered).roots) != {own}:
            raise IdentityError(f"Give the roots of {own}, and of no other site.")
        trust = self._identity.trust.follow(offered, datetime.now(UTC))
        await self._records.save_roots(str(own), pem_of(trust.of_site(own)))
        await self.look()
        self.hurry()

    # Other sites

    async def own_trust(self) -> SiteTrust:
        """What this site tells another."""
        own = self._identity.identity.home
        return SiteTrust(
            roots=self.own_roots(),
            denials=entries(denial for denial in self._identity.denials.all if denial.site == own),
            peers=map(str, await self._records.endpoints("peers")),
            tunnel=map(str, await self._records.endpoints("tunnel")),
        )

    async def _exchange(self, name: str) -> None:
        try:
            remote: PeerRemote = self._inventory.site_named(name).remote
            request = ExchangeTrustRequest(trust=await self.own_trust())
            answer = await remote.ask(remote.stub.ExchangeTrust, request)
            await self.heard(name, answer.trust)
        except LandbridgeError as error:
            if self._refused.get(name) != error.message:
                log.warning("trust.not_exchanged", site=name, reason=error.message)
            self._refused[name] = error.message
        except Exception:  # a defect here must not end the rounds
            log.exception("trusting.defect", site=name)
        else:
            self._refused.pop(name, None)

    async def heard(self, name: str, told: SiteTrust) -> None:
        """Another site has told what it believes of itself. Raises IdentityError, ProtocolError or ConfigError."""
        told_bytes = told.SerializeToString(deterministic=True)
        if self._heard.get(name) == (told_bytes, *self._held_of(name)):
            return
        if len(told.denials) > MOST_DENIALS or len(told.peers) + len(told.tunnel) > MOST_ADDRESSES:
            raise ProtocolError(f"site {name} tells more than {MOST_DENIALS} denials or {MOST_ADDRESSES} addresses")
        known = self._identity.trust
        site = next((each for each in known.roots if each.site == name), None)
        offered = load_certificates(told.roots.encode())
        if site is None or set(TrustBundles.of(offered).roots) != {site}:
            raise IdentityError(f"site {name} tells the roots of another site: that is refused")
        denied = denials_of(told.denials, site)
        subjects = {each.subject for each in (*denied, *self._identity.denials.all) if each.site == site}
        if len(subjects) > MOST_DENIALS:
            raise ProtocolError(f"site {name} has revoked more than {MOST_DENIALS} in all: the rest is not taken")
        trust = known.follow(offered, datetime.now(UTC))
        has_changed = set(trust.of_site(site)) != set(known.of_site(site))
        if has_changed:
            await self._records.save_roots(str(site), pem_of(trust.of_site(site)))
        fresh = denied - self._identity.denials.all
        for denial in fresh:
            await self._records.add_denial(denial)
            log.warning("identity.revoked", subject=denial.subject, by=str(site))
        await self._follow_addresses(name, told)
        if fresh or has_changed:
            await self.look()
        self._heard[name] = (told_bytes, *self._held_of(name))

    def _held_of(self, name: str) -> tuple[TrustBundles, frozenset[Denial], Place | None]:
        """By what it is judged whatever a site tells; it may speak before all of this is known, just as it is joined."""
        return self._identity.trust, self._identity.denials.all, self._places.get(("site", name))

    async def _follow_addresses(self, name: str, told: SiteTrust) -> None:
        """Reach a site that was joined where it says that it is."""
        try:
            peers, tunnel = (tuple(parse_address(each) for each in some) for some in (told.peers, told.tunnel))
        except ValueError as error:
            raise ProtocolError(f"site {name} tells an address that is none: {error}") from error
        place = self._places.get(("site", name))
        if place is not None and peers and tunnel and (place.control, place.stream) != (peers, tunnel):
            await self._records.move_site(name, _reachable(peers, place.control), _reachable(tunnel, place.stream))
            self.hurry()

    def _refuse(self, who: str, error: LandbridgeError) -> None:
        if self._refused.get(who) != error.message:
            log.error("trust.refused", who=who, reason=error.message)
        self._refused[who] = error.message


def _without(trust: TrustBundles, left: frozenset[str]) -> TrustBundles:
    """What is believed, but for the sites that were left."""

    def stays(site: Site) -> bool:
        return str(site) not in left

    if all(map(stays, trust.roots)):
        return trust
    return TrustBundles.of(each for site in filter(stays, trust.roots) for each in trust.of_site(site))


def _reachable(told: Sequence[Address], before: Sequence[Address]) -> Sequence[Address]:
    """What is told, unless that is no address that anybody else could dial."""
    usable = [each for each in told if each.host not in {"0.0.0.0", "::"}]  # noqa: S104 - compared, not listened on
    return usable or before
