"""landbridge.v1.Enrolment for new hosts, Renewal for the hosts of this site, and Identities for its operators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from certs.attempts import address_of
from certs.guard import caller
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

    def __init__(self, issuing: Issuing, trusting: Trusting) -> None:
        self._issuing = issuing
        self._trusting = trusting

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        """The next certificate of whoever calls."""
        # A stolen key must not be faster than its revocation: nothing is awaited between this and the signature.
        await self._trusting.check(context)
        chain, leaf = self._issuing.sign(caller.get(), request.request)
        log.info("identity.signed", identity=str(caller.get()), serial=f"{leaf.serial_number:x}")
        return pb.RenewResponse(chain=chain)

    async def Trust(self, request: pb.TrustRequest, context: Any) -> AsyncIterator[pb.TrustResponse]:
        """Whom to believe."""
        async for response in self._trusting.follow():
            yield response


class IdentitiesService(enrolment_pb2_grpc.IdentitiesServicer):
    """What operators ask."""

    def __init__(
        self, enrolment: Enrolment, issuing: Issuing, trusting: Trusting, joining: Joining, listing: Listing
    ) -> None:
        self._enrolment = enrolment
        self._issuing = issuing
        self._trusting = trusting
        self._joining = joining
        self._listing = listing

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """For a new host."""
        token, expires_at = await self._enrolment.make_token(request.name, str(caller.get()))
        response = pb.CreateTokenResponse(token=str(token))
        response.expires_at.FromDatetime(expires_at)
        return response

    async def ListCertificates(self, request: pb.ListCertificatesRequest, context: Any) -> pb.ListCertificatesResponse:
        """All that is known."""
        await self._trusting.look()
        return await self._listing.all()

    async def Revoke(self, request: pb.RevokeRequest, context: Any) -> pb.RevokeResponse:
        """From now on, everywhere."""
        log.warning(
            "identity.revoke_asked", subject=request.subject[:512], by=str(caller.get()), reason=request.reason[:512]
        )
        await self._trusting.deny(await self._listing.resolve(request.subject))
        return pb.RevokeResponse()

    async def LookAtSite(self, request: pb.LookAtSiteRequest, context: Any) -> pb.LookAtSiteResponse:
        """Its root, which nobody believes yet."""
        return await self._joining.look(request.address)

    async def JoinSite(self, request: pb.JoinSiteRequest, context: Any) -> pb.JoinSiteResponse:
        """Believe it."""
        await self._joining.join(request.site, request.root, list(request.peers), str(caller.get()))
        return pb.JoinSiteResponse()

    async def RequestIssuer(self, request: pb.RequestIssuerRequest, context: Any) -> pb.RequestIssuerResponse:
        """What this gateway wants signed."""
        return pb.RequestIssuerResponse(gateway=self._issuing.name, request=self._issuing.request())

    async def InstallIssuer(self, request: pb.InstallIssuerRequest, context: Any) -> pb.InstallIssuerResponse:
        """What was signed."""
        response = pb.InstallIssuerResponse()
        response.in_use_from.FromDatetime(self._issuing.install(request.certificate))
        self._trusting.hurry()
        return response

    async def InstallRoots(self, request: pb.InstallRootsRequest, context: Any) -> pb.InstallRootsResponse:
        """New roots of this site."""
        await self._trusting.install_roots(request.roots)
        return pb.InstallRootsResponse()
