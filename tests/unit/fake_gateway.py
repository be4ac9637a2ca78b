"""A gateway without hosts: the Gateway service on a loopback port, playing what a test has written.

    with FakeGateway() as fake, fake.client() as client:
        fake.play(copying_memory(), completed())
        client.migrate("web-01", "ams")

A step of a play is the next Migration that watchers see, or a function that is called at that point: to wait
for an event, to press Ctrl-C, to make the gateway vanish. A play goes on where it was after the gateway has
returned.
"""
# ruff: noqa: N802 - the contract names the methods of a servicer

import certs  # noqa: F401 - holds the TLS floor, for which it must be imported before grpc

# isort: split
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from certs.guard import SERVER_OPTIONS
from landbridge.client import Client
from landbridge.errors import Conflict, LandbridgeError, NotFound, PreflightFailed, to_status
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1 import types_pb2 as types
from landbridge.v1.audit_pb2 import GetReceiptRequest, GetReceiptResponse, RecordExportRequest, RecordExportResponse
from landbridge.v1.authorization_pb2 import (
    REQUEST_STATE_APPROVED,
    REQUEST_STATE_DENIED,
    ApprovalRequest,
    PolicyStatus,
)
from landbridge.v1.decision_pb2 import Decision
from landbridge.v1.gateway_pb2_grpc import GatewayServicer, add_GatewayServicer_to_server
from landbridge.v1.types_pb2 import Migration

KIB, MIB, GIB = 2**10, 2**20, 2**30
ID = "3f2a91c4d07e4b62a1589c0e7d41f6b3"
REQUESTED_S = 1_763_870_000  # 2025-11-23T03:53:20Z

Step = Migration | Callable[[], None]
# What the fixture `run` is: words in; an exit code, what was written, and what was written to stderr.
Run = Callable[..., tuple[int, str, str]]

_ENDED = {
    types.MIGRATION_STATE_COMPLETED,
    types.MIGRATION_STATE_FAILED,
    types.MIGRATION_STATE_CANCELLED,
    types.MIGRATION_STATE_SETTLED,
}


def migration(state: types.MigrationState.ValueType, **fields: Any) -> Migration:
    """The migration of web-01 from fra/host-a to ams/host-b, in this state."""
    given = {
        "id": ID,
        "vm": "web-01",
        "vm_uuid": "6c1e5f0a-8b1d-4c3e-9a64-0d9f5a7b2c11",
        "source_site": "fra",
        "source_host": "host-a",
        "destination_site": "ams",
        "destination_host": "host-b",
        "requested_by": "spiffe://example.org/site/fra/operator/kim",
        "requested_at": Timestamp(seconds=REQUESTED_S),
        "updated_at": Timestamp(seconds=REQUESTED_S + 5),
    }
    return Migration(state=state, **{**given, **fields})


def requested() -> Migration:
    return migration(types.MIGRATION_STATE_REQUESTED)


def copying_disks(done: int = 6 * GIB, total: int = 20 * GIB, **fields: Any) -> Migration:
    progress = types.Progress(
        disk_total=total,
        disk_remaining=total - done,
        memory_total=4 * GIB,
        memory_remaining=4 * GIB,
        rate=118 * MIB,
        elapsed_ms=52_000,
        eta_ms=121_000,
    )
    return migration(types.MIGRATION_STATE_COPYING_DISKS, progress=progress, **fields)


def copying_memory(
    done: int = 2 * GIB,
    total: int = 4 * GIB,
    *,
    dirty_rate: int = 12 * MIB,
    eta_ms: int | None = 18_400,
    converges: bool | None = None,
    throttle: int = 0,
    **fields: Any,
) -> Migration:
    progress = types.Progress(
        disk_total=20 * GIB,
        disk_remaining=0,
        converges=converges,
        throttle=throttle,
        memory_total=total,
        memory_remaining=total - done,
        rate=118 * MIB,
        dirty_rate=dirty_rate,
        iteration=2,
        elapsed_ms=183_000,
        eta_ms=eta_ms,
    )
    return migration(types.MIGRATION_STATE_COPYING_MEMORY, progress=progress, **fields)


def outage(seconds: int, of: Migration | None = None, what: str = "WAN to site ams down") -> Migration:
    """A migration that waits since so many seconds for the end of an outage."""
    silent = Migration()
    silent.CopyFrom(of or copying_memory())
    silent.silent_ms = seconds * 1000 + 300
    silent.reason = f"{what} {seconds} s, migration holds, guest runs on at fra"
    return silent


def summary(**fields: Any) -> types.Summary:
    given = {
        "total_ms": 204_000,
        "downtime_ms": 87,
        "bytes_hypervisor": 24 * GIB,
        "bytes_wan": 6 * GIB,
        "channels": [
            types.ChannelBytes(kind="rpc", to_destination=40 * KIB, to_source=22 * KIB),
            types.ChannelBytes(kind="ram", to_destination=4 * GIB, to_source=0),
            types.ChannelBytes(kind="disk", to_destination=20 * GIB, to_source=3 * MIB),
        ],
    }
    return types.Summary(**{**given, **fields})


def completed(**fields: Any) -> Migration:
    given = {"summary": summary(), "ended_at": Timestamp(seconds=REQUESTED_S + 204)}
    return migration(types.MIGRATION_STATE_COMPLETED, **{**given, **fields})


def failed(reason: str) -> Migration:
    figures, end = summary(downtime_ms=0), Timestamp(seconds=REQUESTED_S + 60)
    return migration(types.MIGRATION_STATE_FAILED, reason=reason, summary=figures, ended_at=end)


def cancelled(reason: str = "kim asked for it; web-01 goes on at fra/host-a.") -> Migration:
    return migration(types.MIGRATION_STATE_CANCELLED, reason=reason)


FINDINGS = [
    types.Finding(
        code="clock-offset",
        severity=types.SEVERITY_WARNING,
        message="The clock of ams/host-b is 800 ms ahead.",
        remedy="Let both hosts use the same time servers.",
    ),
    types.Finding(
        code="cpu-incompatible",
        severity=types.SEVERITY_ERROR,
        message="The CPU of ams/host-b lacks avx512f, which web-01 may use.",
        remedy="Choose another host with --to ams/HOST, or give the VM a CPU model that both hosts have.",
    ),
]


class FakeGateway(GatewayServicer):
    """State is public: a test sets what the gateway would know, and reads in `asked` what it was asked."""

    def __init__(self) -> None:
        self.sites: list[api.Site] = []
        # Limit and links of every tunnel.
        self.configured = (0, 4)
        self.hosts: list[types.Host] = []
        self.vms: list[types.Vm] = []
        self.unreachable: list[types.Host] = []
        self.migrations: dict[str, Migration] = {}
        self.findings: list[types.Finding] = []
        self.estimate: types.Estimate | None = None
        # What was asked for with each preflight and each migration.
        self.policies: list[types.Policy] = []
        self.removed: list[str] = []
        self.receipt: bytes | None = None
        # What was said to be exported; done before it is answered.
        self.exported: list[RecordExportRequest] = []
        self.on_export: Callable[[], object] = lambda: None
        self.refuse: LandbridgeError | None = None
        # Only what begins a migration is refused.
        self.refuse_migrate: LandbridgeError | None = None
        self.wanted = api.MigrateRequest()
        self.policy = PolicyStatus()
        self.explanation = api.ExplainPolicyResponse()
        self.requests: list[ApprovalRequest] = []
        self.decisions: list[Decision] = []
        self.on_cancel: list[Step] = []
        self.asked: list[str] = []
        self._steps: list[Step] = []
        self._port = 0
        self._server: grpc.Server | None = None

    # The gateway as a process.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen: at first on a free port, after `stop` or `vanish` on the same one again."""
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=SERVER_OPTIONS)
        add_GatewayServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def vanish(self) -> None:
        """Break all connections at once and listen no more; a step may call it."""
        if self._server is not None:
            self._server.stop(grace=None)

    def stop(self) -> None:
        """Vanish, and wait until that is done."""
        if self._server is not None:
            self._server.stop(grace=None).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def client(self, *others: "FakeGateway") -> Client:
        """A client of this one, and of others if it does not answer; without TLS."""
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
        return Client({each.address: grpc.insecure_channel(each.address, options) for each in (self, *others)})

    # What it knows.

    def play(self, *steps: Step) -> None:
        """What happens to the next migration, from its first watcher on."""
        self._steps = list(steps)

    def know(self, migrations: Iterable[Migration]) -> None:
        self.migrations.update((each.id, each) for each in migrations)

    # The service.

    def ListSites(self, request: api.ListSitesRequest, context: grpc.ServicerContext) -> api.ListSitesResponse:
        self._hear("sites", context)
        return api.ListSitesResponse(sites=self.sites)

    def ListHosts(self, request: api.ListHostsRequest, context: grpc.ServicerContext) -> api.ListHostsResponse:
        self._hear("hosts", context)
        return api.ListHostsResponse(hosts=self.hosts)

    def ListVms(
        self, request: api.ListVirtualMachinesRequest, context: grpc.ServicerContext
    ) -> api.ListVirtualMachinesResponse:
        self._hear("vms", context)
        return api.ListVirtualMachinesResponse(vms=self.vms, unreachable=self.unreachable)

    def Preflight(self, request: api.PreflightRequest, context: grpc.ServicerContext) -> api.PreflightResponse:
        self._hear(f"preflight {request.vm} {request.destination_site}/{request.destination_host}", context)
        self.policies.append(request.policy)
        return api.PreflightResponse(
            vm_uuid="6c1e5f0a-8b1d-4c3e-9a64-0d9f5a7b2c11",
            source_host="host-a",
            destination_host=request.destination_host or "host-b",
            findings=self.findings,
            estimate=self.estimate,
            decisions=self.decisions,
            passed=not self._errors(),
        )

    def Migrate(self, request: api.MigrateRequest, context: grpc.ServicerContext) -> api.MigrateResponse:
        self._hear(f"migrate {request.vm} {request.destination_site}/{request.destination_host}", context)
        self.policies.append(request.policy)
        self.wanted = request
        if self.refuse_migrate is not None:
            _abort(context, self.refuse_migrate)
        if errors := self._errors():
            _abort(context, PreflightFailed(f"Preflight of {request.vm} found {errors} error: nothing changed."))
        begun = requested()
        begun.findings.extend(self.findings)
        begun.decisions.extend(self.decisions)
        if self.estimate is not None:
            begun.estimate.CopyFrom(self.estimate)
        self.migrations[begun.id] = begun
        return api.MigrateResponse(migration=begun)

    def ListMigrations(
        self, request: api.ListMigrationsRequest, context: grpc.ServicerContext
    ) -> api.ListMigrationsResponse:
        self._hear("migrations", context)
        return api.ListMigrationsResponse(migrations=self.migrations.values())

    def GetMigration(self, request: api.GetMigrationRequest, context: grpc.ServicerContext) -> api.GetMigrationResponse:
        self._hear(f"migration {request.id}", context)
        return api.GetMigrationResponse(migration=self._find(request.id, context))

    def WatchMigration(
        self, request: api.WatchMigrationRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchMigrationResponse]:
        self._hear(f"watch {request.id}", context)
        found = self._find(request.id, context)
        yield api.WatchMigrationResponse(migration=found)
        while self._steps and context.is_active():
            step = self._steps.pop(0)
            if isinstance(step, Migration):
                self.migrations[found.id] = step
                yield api.WatchMigrationResponse(migration=step)
            else:
                step()

    def CancelMigration(
        self, request: api.CancelMigrationRequest, context: grpc.ServicerContext
    ) -> api.CancelMigrationResponse:
        self._hear(f"cancel {request.id}", context)
        found = self._find(request.id, context)
        self._steps = list(self.on_cancel)
        return api.CancelMigrationResponse(migration=found)

    def GetReceipt(self, request: GetReceiptRequest, context: grpc.ServicerContext) -> GetReceiptResponse:
        self._hear(f"receipt {request.id}", context)
        if self.receipt is None:
            _abort(context, Conflict(f"migration {ID} has not ended yet: there is a receipt when it has"))
        return GetReceiptResponse(migration=ID, receipt=self.receipt)

    def RecordExport(self, request: RecordExportRequest, context: grpc.ServicerContext) -> RecordExportResponse:
        self._hear("record-export", context)
        self.on_export()
        self.exported.append(request)
        return RecordExportResponse(log=request.log, index=41 + len(self.exported))

    def SettleMigration(
        self, request: api.SettleMigrationRequest, context: grpc.ServicerContext
    ) -> api.SettleMigrationResponse:
        self._hear(f"settle {request.id}", context)
        found = self._find(request.id, context)
        if found.state != types.MIGRATION_STATE_COMPLETED:
            _abort(context, Conflict("Only a completed migration can be settled: this one is not."))
        found.state = types.MIGRATION_STATE_SETTLED
        return api.SettleMigrationResponse(migration=found, removed=self.removed)

    def ActivateMigration(
        self, request: api.ActivateMigrationRequest, context: grpc.ServicerContext
    ) -> api.ActivateMigrationResponse:
        self._hear(f"activate {request.id}: {request.source_is_lost}", context)
        found = self._find(request.id, context)
        found.state = types.MIGRATION_STATE_COMPLETED
        return api.ActivateMigrationResponse(migration=found)

    def SetLimit(self, request: api.SetLimitRequest, context: grpc.ServicerContext) -> api.SetLimitResponse:
        what = [f"limit {request.migration or request.site}"]
        if request.HasField("bytes_per_second"):
            what.append(f"{request.bytes_per_second} B/s")
        if request.HasField("links"):
            what.append(f"{request.links} links")
        if request.as_configured:
            what.append("as configured")
        self._hear(" ".join(what), context)
        if request.WhichOneof("target") == "migration":
            found = self._find(request.migration, context)
            if found.state in _ENDED:
                _abort(context, Conflict(f"Migration {found.id} has ended already."))
            found.limit = request.bytes_per_second
            return api.SetLimitResponse()
        site = next((each for each in self.sites if each.name == request.site and not each.local), None)
        if site is None:
            _abort(context, NotFound(f"This site is not joined with a site {request.site!r}."))
        if request.HasField("bytes_per_second"):
            site.limit = request.bytes_per_second
        if request.HasField("links"):
            site.links = request.links
        if request.as_configured:
            site.limit, site.links = self.configured
        return api.SetLimitResponse()

    def GetPolicy(self, request: api.GetPolicyRequest, context: grpc.ServicerContext) -> api.GetPolicyResponse:
        self._hear("policy", context)
        return api.GetPolicyResponse(policy=self.policy)

    def ExplainPolicy(
        self, request: api.ExplainPolicyRequest, context: grpc.ServicerContext
    ) -> api.ExplainPolicyResponse:
        who = f" as {request.requester}" if request.requester else ""
        self._hear(f"explain {request.vm} {request.destination_site}/{request.destination_host}{who}", context)
        return self.explanation

    def ListRequests(self, request: api.ListRequestsRequest, context: grpc.ServicerContext) -> api.ListRequestsResponse:
        self._hear("requests", context)
        return api.ListRequestsResponse(requests=self.requests)

    def ApproveRequest(
        self, request: api.ApproveRequestRequest, context: grpc.ServicerContext
    ) -> api.ApproveRequestResponse:
        self._hear(f"approve {request.id} {request.sha256}", context)
        (found,) = (each for each in self.requests if each.id == request.id)
        found.state, found.waits_for = REQUEST_STATE_APPROVED, ""
        return api.ApproveRequestResponse(request=found)

    def DenyRequest(self, request: api.DenyRequestRequest, context: grpc.ServicerContext) -> api.DenyRequestResponse:
        self._hear(f"deny {request.id} {request.reason}", context)
        (found,) = (each for each in self.requests if each.id.startswith(request.id))
        found.state, found.denied_because = REQUEST_STATE_DENIED, request.reason
        return api.DenyRequestResponse(request=found)

    def _hear(self, what: str, context: grpc.ServicerContext) -> None:
        self.asked.append(what)
        if self.refuse is not None:
            _abort(context, self.refuse)

    def _errors(self) -> int:
        return sum(finding.severity == types.SEVERITY_ERROR for finding in self.findings)

    def _find(self, prefix: str, context: grpc.ServicerContext) -> Migration:
        found = [each for each in self.migrations.values() if each.id.startswith(prefix)]
        if len(found) != 1:
            _abort(context, NotFound(f"{len(found)} migrations have ids that begin with {prefix!r}."))
        return found[0]


def _abort(context: grpc.ServicerContext, error: LandbridgeError) -> NoReturn:
    status = to_status(error)
    trailing: Mapping[str, str | bytes] = status.trailing
    context.set_trailing_metadata(tuple(trailing.items()))
    context.abort(grpc.StatusCode[status.name], status.message)
    raise AssertionError("abort raises")
