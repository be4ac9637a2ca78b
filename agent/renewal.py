"""The agent's certificate, renewed while it runs, and whom it believes, as its site's gateways tell.

    follow    each gateway tells roots and denials, at once and whenever they change
    renew     half way through the certificate's life: a new key, made here, a request over the present certificate, and the answer
              in place of it; what is open stays open

If no gateway answers until the certificate ends, the host has to be enrolled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from grpc import aio

from certs import authority, store
from certs.channels import LivingChannel
from certs.identity import Role, parse_site
from certs.living import LivingIdentity
from certs.store import StoredIdentity
from certs.trust import Credential, Denial, TrustBundles, judge, load_certificates, renew_at
from landbridge.config import Address
from landbridge.errors import CODE_KEY, IdentityError, LandbridgeError, ProtocolError, Unreachable, from_status
from landbridge.v1.enrolment_pb2 import RenewRequest, TrustRequest, TrustResponse
from landbridge.v1.enrolment_pb2_grpc import RenewalStub

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.enrolment_pb2_grpc import RenewalAsyncStub

log = structlog.get_logger()

# Seconds between two attempts at a gateway, and between two looks at the clock.
RETRY = 2.0
TICK = 1.0
# For an answer.
PATIENCE = 10.0

_OPTIONS = (
    # A silent gateway is noticed, so that another one is followed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


class Renewal:
    """Owned by the event loop."""

    def __init__(self, identity: LivingIdentity, gateways: Sequence[Address]) -> None:
        self._identity = identity
        self._gateways = gateways
        site = identity.identity.site
        self._channels = [LivingChannel(str(each), identity, Role.GATEWAY, site, None, _OPTIONS) for each in gateways]
        self._stubs: list[RenewalAsyncStub] = [RenewalStub(channel.for_stub()) for channel in self._channels]
        # The one that answered last.
        self._at = 0
        self._jitter = random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret
        self._failed_at = float("-inf")
        # The certificate as it was judged, as of the identity that it was then: signatures are verified once, and not at each tick.
        self._known: tuple[StoredIdentity, Credential] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow and renew until `close`. Raises ConfigError if what was revoked until now cannot be read."""
        self._identity.deny(store.load_denials(self._identity.stored.directory))
        if not self._stubs:
            log.warning("identity.not_renewed", reason="control under [gateway] in agent.toml names no gateway")
            return
        following = [self._follow(*each) for each in zip(self._gateways, self._stubs, strict=True)]
        self._tasks = [asyncio.create_task(work, name="renewal") for work in (*following, self._keep_renewed())]

    async def close(self) -> None:
        """The agent stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # Whom to believe

    async def _follow(self, gateway: Address, stub: RenewalAsyncStub) -> None:
        said = ""
        while True:
            try:
                async with contextlib.aclosing(_told(gateway, stub)) as responses:
                    async for response in responses:
                        said = ""
                        self._believe(response)
            except LandbridgeError as error:
                if error.message != said:
                    log.warning("trust.not_followed", reason=error.message)
                said = error.message
            except Exception:  # a defect here must not leave the agent with what it believed for ever
                log.exception("renewal.defect")
            await asyncio.sleep(RETRY)

    def _believe(self, response: TrustResponse) -> None:
        """Denials only become more: no gateway that was revoked can keep them from this host, or take them back."""
        identity, own = self._identity, self._identity.identity.home
        told = frozenset(
            Denial(entry.subject, parse_site(entry.site), entry.since.ToDatetime(UTC).replace(microsecond=0))
            for entry in response.denials
        )
        if told - identity.denials.all:
            identity.deny(identity.denials.all | told)
            store.save_denials(identity.stored.directory, identity.denials.all)
        offered = load_certificates(response.roots.encode())
        if set(TrustBundles.of(offered).roots) != {own}:
            raise ProtocolError("the gateway tells the roots of another site than this host's: that is refused")
        trust = identity.trust.follow(offered, datetime.now(UTC))
        if set(trust.all()) != set(identity.trust.all()):
            store.save_trust(identity.stored.directory, trust)
            identity.reload()
            log.info("trust.changed", sites=[str(own)])

    # The certificate

    async def _keep_renewed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            try:
                if self._is_due() and loop.time() - self._failed_at >= RETRY:
                    await self._renew()
            except LandbridgeError as error:
                self._failed_at = loop.time()
                self._at = (self._at + 1) % len(self._stubs)
                log.warning("identity.not_renewed", reason=error.message)
            except Exception:  # see above
                self._failed_at = loop.time()
                log.exception("renewal.defect")

    def _is_due(self) -> bool:
        stored, now = self._identity.stored, datetime.now(UTC)
        if self._known is None or self._known[0] is not stored:
            try:
                self._known = (stored, judge(stored.certificate, stored.trust, now, stored.issuers))
            except IdentityError:
                return True
        return now >= renew_at(self._known[1], self._jitter)

    async def _renew(self) -> None:
        """Raises what the gateway answered, or IdentityError or ConfigError for an answer that cannot be used."""
        stored, key = self._identity.stored, authority.new_key()
        request = RenewRequest(request=authority.request(key, stored.identity).decode())
        try:
            answer = await self._stubs[self._at].Renew(request, timeout=PATIENCE)
        except aio.AioRpcError as error:
            raise _error(error, self._gateways[self._at]) from error
        chain = answer.chain.encode()
        leaf, *issuers = load_certificates(chain)
        credential = judge(leaf, stored.trust, datetime.now(UTC), issuers)
        if credential.identity != stored.identity or leaf.public_key() != key.public_key():
            raise ProtocolError(f"the gateway has signed {credential.identity} where {stored.identity} was asked for")
        # A disk may be slow, and bytes must go on moving meanwhile.
        await asyncio.to_thread(store.renew_identity, stored.directory, chain, key)
        self._identity.reload()
        self._jitter = random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret
        serial = f"{credential.serial:x}"
        log.info("identity.renewed", identity=str(stored.identity), serial=serial, until=str(credential.until))


async def _told(gateway: Address, stub: RenewalAsyncStub) -> AsyncGenerator[TrustResponse, None]:
    call = stub.Trust(TrustRequest())
    try:
        async for response in call:
            yield response
    except aio.AioRpcError as error:
        raise _error(error, gateway) from error
    finally:
        call.cancel()


def _error(error: aio.AioRpcError, gateway: Address) -> LandbridgeError:
    trailing = tuple((key, value) for key, value in error.trailing_metadata() or ())
    if any(key == CODE_KEY for key, _ in trailing):
        return from_status(error.code().name, error.details(), trailing)
    said = (error.details() or error.code().name).splitlines()[0][:200]
    return Unreachable(f"the gateway at {gateway} does not answer ({said}); see control under [gateway] in agent.toml")
