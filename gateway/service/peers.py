"""landbridge.v1.Peer, for the gateways of other sites."""

from __future__ import annotations

from typing import Any

from certs.guard import caller
from gateway.audit.fields import certified
from gateway.audit.refusals import Refusals
from gateway.audit.witness_keeper import Witness
from gateway.identities.departing import Departing
from gateway.identities.trusting import Trusting
from gateway.migration.incoming import Incoming
from gateway.migration.inventory import Inventory
from gateway.migration.receipts import Receipts
from gateway.migration.reports import Reports
from landbridge.v1 import peer_pb2 as pb
from landbridge.v1 import peer_pb2_grpc
from landbridge.v1.audit_pb2 import AddCheckpointRequest, AddCheckpointResponse, GetProofsRequest, GetProofsResponse


class PeerService(peer_pb2_grpc.PeerServicer):
    """What the coordinators of other sites ask."""

    def __init__(
        self,
        incoming: Incoming,
        reports: Reports,
        inventory: Inventory,
        trusting: Trusting,
        departing: Departing,
        receipts: Receipts,
        witness: Witness,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._incoming = incoming
        self._reports = reports
        self._inventory = inventory
        self._trusting = trusting
        self._departing = departing
        self._receipts = receipts
        self._witness = witness

    async def GetSite(self, request: pb.GetSiteRequest, context: Any) -> pb.GetSiteResponse:
        """This site."""
        return await self._inventory.own_site(hosts=request.hosts)

    async def CheckIncoming(self, request: pb.PeerCheckIncomingRequest, context: Any) -> pb.PeerCheckIncomingResponse:
        """Preflight facts of a host here."""
        check = await self._incoming.check(request.host, request.check, request.migration, caller.get())
        return pb.PeerCheckIncomingResponse(check=check)

    async def Authorize(self, request: pb.PeerAuthorizeRequest, context: Any) -> pb.PeerAuthorizeResponse:
        """What this site's policy says."""
        decision = await self._incoming.authorize(request.migration, caller.get(), opens=request.open)
        return pb.PeerAuthorizeResponse(decision=decision)

    async def Prepare(self, request: pb.PeerPrepareRequest, context: Any) -> pb.PeerPrepareResponse:
        """Take a migration in."""
        prepared, decision = await self._incoming.prepare(request.migration, request.prepare, caller.get())
        return pb.PeerPrepareResponse(prepare=prepared, decision=decision)

    async def Activate(self, request: pb.PeerActivateRequest, context: Any) -> pb.PeerActivateResponse:
        """Let the VM run here."""
        return pb.PeerActivateResponse(activate=await self._incoming.activate(request.activate, caller.get().site))

    async def Prove(self, request: pb.PeerProveRequest, context: Any) -> pb.PeerProveResponse:
        """What is stored here."""
        return pb.PeerProveResponse(prove=await self._incoming.prove(request.prove, caller.get().site))

    async def Cancel(self, request: pb.PeerCancelRequest, context: Any) -> pb.PeerCancelResponse:
        """Stop here."""
        return pb.PeerCancelResponse(cancel=await self._incoming.cancel(request.cancel, caller.get().site))

    async def Report(self, request: pb.PeerReportRequest, context: Any) -> pb.PeerReportResponse:
        """How it stands at the source."""
        await self._incoming.report(request.migration, caller.get().site)
        return pb.PeerReportResponse()

    async def GetReport(self, request: pb.PeerGetReportRequest, context: Any) -> pb.PeerGetReportResponse:
        """How it stands here, at the source."""
        return pb.PeerGetReportResponse(migration=await self._reports.of(request.migration, caller.get().site))

    async def ExchangeTrust(self, request: pb.ExchangeTrustRequest, context: Any) -> pb.ExchangeTrustResponse:
        """Whom to believe there, and here."""
        await self._trusting.heard(caller.get().site, request.trust)
        return pb.ExchangeTrustResponse(trust=await self._trusting.own_trust())

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:
        """The caller's site leaves this one."""
        return await self._departing.left_by(caller.get())

    async def GetProofs(self, request: GetProofsRequest, context: Any) -> GetProofsResponse:
        """What this site's log says."""
        proofs = await self._receipts.proofs(request.migration, caller.get().site)
        self._refusals.tell(
            "log.read",
            str(caller.get()),
            f"what is recorded of migration {request.migration}",
            outcome="success",
            actor=certified(caller.get()),
            seen={"query": {"filter": f"migration={request.migration}", "format": "proofs"}},
        )
        return proofs

    async def AddCheckpoint(self, request: AddCheckpointRequest, context: Any) -> AddCheckpointResponse:
        """Cosign the head of the caller's log."""
        return await self._witness.add_of_peer(request, caller.get())
