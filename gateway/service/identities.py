"""landbridge.v1.Enrolment for new hosts, Renewal for the hosts of this site, and Identities for its operators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from certs.attempts import address_of
from certs.guard import caller
from gateway.audit.canonical import Value
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.audit.presence import Presence
from gateway.audit.refusals import Refusals
from gateway.identities.departing import Departing
from gateway.identities.enrolment import Enrolment
from gateway.identities.issuing import Issuing
from gateway.identities.joining import Joining
from gateway.identities.listing import Listing
from gateway.identities.trusting import Trusting
from landbridge.v1 import enrolment_pb2 as pb
from landbridge.v1 import enrolment_pb2_grpc

log = structlog.get_logger()


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServicer):
    """What strangers ask."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        """The first certificate of a host."""
        address = address_of(context.peer())
        return await self._enrolment.enrol(request, address, asyncio.get_running_loop().time())


class RenewalService(enrolment_pb2_grpc.RenewalServicer):
    """What the agents of this site ask."""

    def __init__(self, issuing: Issuing, trusting: Trusting, presence: Presence, refusals: Refusals) -> None:
        self._issuing = issuing
        self._trusting = trusting
        self._presence = presence
        self._refusals = refusals

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        """The next certificate of whoever calls."""
        # A stolen key must not be faster than its revocation: nothing is awaited between this and the signature.
        await self._trusting.check(context)
        chain, leaf = self._issuing.sign(caller.get(), request.request)
        log.info("identity.signed", identity=str(caller.get()), serial=f"{leaf.serial_number:x}")
        change: Value = {"subject": str(caller.get()), "comment": "its certificate was renewed"}
        self._refusals.tell(  # counted like them: a host may ask as often as it likes
            "key.changed",
            str(caller.get()),
            "renewal",
            outcome="success",
            actor=certified(caller.get(), address_of(context.peer())),
            seen={"change": change},
        )
        return pb.RenewResponse(chain=chain)

    async def Trust(self, request: pb.TrustRequest, context: Any) -> AsyncIterator[pb.TrustResponse]:
        """Whom to believe."""
        with self._presence.of(caller.get()):
            async for response in self._trusting.follow():
                yield response


class IdentitiesService(enrolment_pb2_grpc.IdentitiesServicer):
    """What operators ask."""

    def __init__(
        self,
        enrolment: Enrolment,
        issuing: Issuing,
        trusting: Trusting,
        joining: Joining,
        departing: Departing,
        listing: Listing,
        journal: Journal,
    ) -> None:
        self._journal = journal
        self._enrolment = enrolment
        self._issuing = issuing
        self._trusting = trusting
        self._joining = joining
        self._departing = departing
        self._listing = listing

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """For a new host."""
        token, expires_at = await self._enrolment.make_token(request.name, caller.get())
        response = pb.CreateTokenResponse(token=str(token))
        response.expires_at.FromDatetime(expires_at)
        return response

    async def _record(self, event: str, subject: str, comment: str) -> None:
        """Before it is done. Raises NotRecorded: then it is not."""
        change: Value = {"subject": subject, "comment": comment}
        await self._journal.record(event, actor=certified(caller.get()), seen={"change": change})

    async def ListCertificates(self, request: pb.ListCertificatesRequest, context: Any) -> pb.ListCertificatesResponse:
        """All that is known."""
        await self._trusting.look()
        return await self._listing.all()

    async def Revoke(self, request: pb.RevokeRequest, context: Any) -> pb.RevokeResponse:
        """From now on, everywhere."""
        log.warning(
            "identity.revoke_asked", subject=request.subject[:512], by=str(caller.get()), reason=request.reason[:512]
        )
        subject = await self._listing.resolve(request.subject)
        await self._record("key.changed", subject, f"revoked: {request.reason or 'no reason is given'}")
        await self._trusting.deny(subject)
        return pb.RevokeResponse()

    async def LookAtSite(self, request: pb.LookAtSiteRequest, context: Any) -> pb.LookAtSiteResponse:
        """Its root, which nobody believes yet."""
        return await self._joining.look(request.address)

    async def JoinSite(self, request: pb.JoinSiteRequest, context: Any) -> pb.JoinSiteResponse:
        """Believe it."""
        await self._joining.join(request.site, request.root, list(request.peers), caller.get())
        return pb.JoinSiteResponse()

    async def RemoveHost(self, request: pb.RemoveHostRequest, context: Any) -> pb.RemoveHostResponse:
        """Out of service."""
        return await self._departing.remove_host(request.name, caller.get(), request.reason, force=request.force)

    async def LeaveSite(self, request: pb.LeaveSiteRequest, context: Any) -> pb.LeaveSiteResponse:
        """Believe it no more."""
        return await self._departing.leave_site(request.site, caller.get(), request.reason, force=request.force)

    async def RequestIssuer(self, request: pb.RequestIssuerRequest, context: Any) -> pb.RequestIssuerResponse:
        """What this gateway wants signed."""
        return pb.RequestIssuerResponse(gateway=self._issuing.name, request=self._issuing.request())

    async def InstallIssuer(self, request: pb.InstallIssuerRequest, context: Any) -> pb.InstallIssuerResponse:
        """What was signed."""
        who = self._issuing.name
        await self._record("key.changed", f"gateway {who}", "a certificate for its issuer is installed")
        response = pb.InstallIssuerResponse()
        response.in_use_from.FromDatetime(self._issuing.install(request.certificate))
        self._trusting.hurry()
        return response

    async def InstallRoots(self, request: pb.InstallRootsRequest, context: Any) -> pb.InstallRootsResponse:
        """New roots of this site."""
        await self._record("trust.changed", "the roots of this site", "new roots are installed")
        await self._trusting.install_roots(request.roots)
        return pb.InstallRootsResponse()
