"""landbridge.v1.Gateway, for the operators of this site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

from certs.guard import caller
from gateway.audit.exports import Exports
from gateway.authorization.authority import Authority
from gateway.migration import policy, verdicts
from gateway.migration.coordinator import Coordinator
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.limits import Limits
from gateway.migration.preflight import refuses
from gateway.migration.receipt_keeper import ReceiptKeeper
from gateway.migration.stranded import Stranded
from gateway.migration.survey import Asked, Survey
from gateway.store import TunnelLimits
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError, UsageError
from landbridge.v1 import audit_pb2, gateway_pb2_grpc
from landbridge.v1 import gateway_pb2 as pb
from landbridge.v1.types_pb2 import Host, Policy

# Of a limit; what the store's columns hold.
MOST_PER_SECOND = 2**63 - 1


class GatewayService(gateway_pb2_grpc.GatewayServicer):
    """What operators ask."""

    def __init__(
        self,
        coordinator: Coordinator,
        ledger: Ledger,
        inventory: Inventory,
        survey: Survey,
        stranded: Stranded,
        tunnels: Tunnels,
        limits: Limits,
        authority: Authority,
        receipts: ReceiptKeeper,
        exports: Exports,
        alarms: Callable[[], Awaitable[dict[str, list[str]]]],
    ) -> None:
        """`alarms` is what audit logs have shown that does not fit, by site; of this one under ""."""
        self._coordinator = coordinator
        self._survey = survey
        self._stranded = stranded
        self._authority = authority
        self._ledger = ledger
        self._inventory = inventory
        self._tunnels = tunnels
        self._limits = limits
        self._receipts = receipts
        self._exports = exports
        self._alarms = alarms

    async def ListSites(self, request: pb.ListSitesRequest, context: Any) -> pb.ListSitesResponse:
        """This site, and those it is joined with."""
        alarms = await self._alarms()
        names = self._inventory.site_names()
        own, *others = await asyncio.gather(self._own_site(), *(self._remote_site(name) for name in names))
        own.alarms.extend(alarms.get("", ()))
        for site in others:
            site.alarms.extend(alarms.get(site.name, ()))
        return pb.ListSitesResponse(sites=[own, *others])

    async def _own_site(self) -> pb.Site:
        hosts = await self._inventory.hosts()
        return pb.Site(
            name=self._inventory.site,
            local=True,
            hosts=len(hosts),
            hosts_reachable=sum(not host.unreachable for host in hosts),
            gateway_version=version("landbridge"),
            tunnel="local",
        )

    async def _remote_site(self, name: str) -> pb.Site:
        dialler = self._tunnels.to_site(name)
        tunnel = dialler.tunnel
        site = pb.Site(
            name=name,
            tunnel="up" if tunnel.is_up else "down",
            links_up=len(tunnel.links),
            links=dialler.wanted,
            limit=tunnel.limit,
        )
        try:
            facts = await self._inventory.remote_site(name)
        except LandbridgeError as error:
            site.unreachable = error.message
            return site
        site.hosts = len(facts.site.hosts)
        site.hosts_reachable = sum(not host.unreachable for host in facts.site.hosts)
        site.gateway_version = facts.site.gateway_version
        site.rtt_ms = facts.round_trip_ms
        return site

    async def ListHosts(self, request: pb.ListHostsRequest, context: Any) -> pb.ListHostsResponse:
        """Hosts of all sites."""
        names = self._inventory.site_names()
        own, *others = await asyncio.gather(self._inventory.hosts(), *(self._remote_hosts(name) for name in names))
        return pb.ListHostsResponse(hosts=[*own, *(host for hosts in others for host in hosts)])

    async def _remote_hosts(self, name: str) -> list[Host]:
        try:
            return list((await self._inventory.remote_site(name)).site.hosts)
        except LandbridgeError as error:
            return [Host(site=name, unreachable=error.message)]

    async def ListVms(self, request: pb.ListVirtualMachinesRequest, context: Any) -> pb.ListVirtualMachinesResponse:
        """VMs of this site."""
        vms, unreachable = await self._inventory.vms()
        return pb.ListVirtualMachinesResponse(vms=vms, unreachable=unreachable)

    async def Preflight(self, request: pb.PreflightRequest, context: Any) -> pb.PreflightResponse:
        """Findings only."""
        found = await self._survey.preflight(
            request.vm,
            request.destination_site,
            request.destination_host,
            policy.complete(request.policy),
            Asked(str(caller.get()), request.break_glass.strip(), request.purpose.strip()),
        )
        await found.complete()
        return pb.PreflightResponse(
            vm_uuid=found.vm.uuid,
            source_host=found.vm.host,
            destination_host=found.destination_host,
            findings=found.findings,
            passed=not refuses(found.findings),
            estimate=found.estimate,
            decisions=found.decisions,
        )

    async def Migrate(self, request: pb.MigrateRequest, context: Any) -> pb.MigrateResponse:
        """Begin."""
        migration = await self._coordinator.migrate(
            request.vm,
            request.destination_site,
            request.destination_host,
            policy.complete(request.policy),
            Asked(str(caller.get()), request.break_glass.strip(), request.purpose.strip()),
            request.request,
        )
        return pb.MigrateResponse(migration=migration)

    async def ListMigrations(self, request: pb.ListMigrationsRequest, context: Any) -> pb.ListMigrationsResponse:
        """All, newest first."""
        await self._ledger.refresh()
        return pb.ListMigrationsResponse(migrations=[row.migration for row in self._ledger.rows()])

    async def GetMigration(self, request: pb.GetMigrationRequest, context: Any) -> pb.GetMigrationResponse:
        """One."""
        return pb.GetMigrationResponse(migration=(await self._ledger.find(request.id)).migration)

    async def WatchMigration(
        self, request: pb.WatchMigrationRequest, context: Any
    ) -> AsyncIterator[pb.WatchMigrationResponse]:
        """One, until it has ended."""
        async for migration in self._ledger.watch(await self._ledger.find(request.id)):
            yield pb.WatchMigrationResponse(migration=migration)

    async def CancelMigration(self, request: pb.CancelMigrationRequest, context: Any) -> pb.CancelMigrationResponse:
        """The wish to stop."""
        row = await self._coordinator.cancel(request.id, caller.get())
        return pb.CancelMigrationResponse(migration=row.migration)

    async def SettleMigration(self, request: pb.SettleMigrationRequest, context: Any) -> pb.SettleMigrationResponse:
        """Remove what is left at the source."""
        row, removed = await self._coordinator.settle(request.id, caller.get(), request.without_proof.strip())
        return pb.SettleMigrationResponse(migration=row.migration, removed=removed)

    async def ActivateMigration(
        self, request: pb.ActivateMigrationRequest, context: Any
    ) -> pb.ActivateMigrationResponse:
        """Let a VM run here whose source is lost."""
        row = await self._stranded.activate(request.id, request.source_is_lost, caller.get())
        return pb.ActivateMigrationResponse(migration=row.migration)

    async def SetLimit(self, request: pb.SetLimitRequest, context: Any) -> pb.SetLimitResponse:
        """How much of the WAN a migration or a tunnel may use."""
        rate = request.bytes_per_second if request.HasField("bytes_per_second") else None
        links = request.links if request.HasField("links") else None
        if rate is not None and rate > MOST_PER_SECOND:
            raise UsageError(f"{rate} bytes per second are more than any line carries: give less, or 0 for no limit")
        match request.WhichOneof("target"):
            case "migration":
                if rate is None or links is not None or request.as_configured:
                    raise UsageError("say how many bytes per second the migration may use, and no more; 0: no limit")
                await self._coordinator.limit(request.migration, rate, caller.get())
            case "site" if request.as_configured:
                if (rate, links) != (None, None):
                    raise UsageError("either set something for a tunnel, or have it as it is configured")
                await self._may_limit(request.site, "as it is configured")
                await self._limits.reset(request.site)
            case "site":
                if (rate, links) == (None, None):
                    raise UsageError("say what is to change: the bytes per second, or the number of links")
                said = [] if rate is None else [f"{rate} bytes per second" if rate else "no limit"]
                said += [] if links is None else [f"{links} links"]
                await self._may_limit(request.site, ", ".join(said))
                await self._limits.set(request.site, TunnelLimits(rate, links))
            case _:
                raise UsageError("say what is to be limited: a migration, or the tunnel to a site")
        return pb.SetLimitResponse()

    async def _may_limit(self, site: str, how: str) -> None:
        """Raises PermissionDenied, NotFound or NotRecorded; else it is in the audit log, and to be done."""
        tunnel = f"the tunnel to site {site[:80]}"
        self._authority.administer(caller.get(), tunnel)
        self._tunnels.to_site(site)
        await self._authority.note("configuration.changed", caller.get(), how, subject=tunnel)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """What this gateway goes by, and what the caller is."""
        return pb.GetPolicyResponse(policy=self._authority.status(caller.get()))

    async def ExplainPolicy(self, request: pb.ExplainPolicyRequest, context: Any) -> pb.ExplainPolicyResponse:
        """What the policies say."""
        who = self._authority.person(request.requester) if request.requester else caller.get()
        found = await self._survey.explain(
            request.vm,
            request.destination_site,
            request.destination_host,
            policy.complete(Policy()),
            Asked(str(who), request.break_glass.strip(), request.purpose.strip()),
        )
        unreachable = next((each.message for each in found.findings if each.code == verdicts.UNREACHABLE), "")
        return pb.ExplainPolicyResponse(migration=found.proposal, decisions=found.decisions, unreachable=unreachable)

    async def ListRequests(self, request: pb.ListRequestsRequest, context: Any) -> pb.ListRequestsResponse:
        """All, newest first."""
        return pb.ListRequestsResponse(requests=await self._authority.requests())

    async def ApproveRequest(self, request: pb.ApproveRequestRequest, context: Any) -> pb.ApproveRequestResponse:
        """Yes."""
        approved = await self._authority.approve(request.id, request.sha256, caller.get())
        return pb.ApproveRequestResponse(request=approved)

    async def DenyRequest(self, request: pb.DenyRequestRequest, context: Any) -> pb.DenyRequestResponse:
        """No."""
        return pb.DenyRequestResponse(request=await self._authority.deny(request.id, request.reason, caller.get()))

    async def GetReceipt(self, request: audit_pb2.GetReceiptRequest, context: Any) -> audit_pb2.GetReceiptResponse:
        """What both logs say."""
        migration, receipt = await self._receipts.receipt(request.id, caller.get())
        return audit_pb2.GetReceiptResponse(migration=migration, receipt=receipt)

    async def RecordExport(
        self, request: audit_pb2.RecordExportRequest, context: Any
    ) -> audit_pb2.RecordExportResponse:
        """That entries are exported."""
        return await self._exports.record(request, caller.get())
