"""landbridge-gateway: wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import structlog
from grpc import aio

from certs import tls
from certs.guard import Access, Guard, bind
from certs.guard import server as guarded_server
from certs.identity import Role
from certs.links import listen
from certs.living import LivingIdentity
from certs.store import StoredIdentity, load_identity
from certs.trust import pem_of
from gateway.audit import changes
from gateway.audit.cosigning import Cosigning
from gateway.audit.exports import Exports
from gateway.audit.journal import Journal
from gateway.audit.keeper import keeping
from gateway.audit.presence import Presence
from gateway.audit.refusals import Refusals
from gateway.audit.retention import Retention
from gateway.audit.ship import Shipping
from gateway.audit.walk import RECEIPTS
from gateway.audit.witness_http import WitnessServer
from gateway.audit.witness_keeper import Witness, log_key
from gateway.audit.witness_records import Records as WitnessRecords
from gateway.authorization.authority import Authority
from gateway.authorization.policy_file import PolicyFile
from gateway.authorization.requests import Requests
from gateway.config import GatewayConfig
from gateway.identities.departing import Departing
from gateway.identities.enrolment import Enrolment
from gateway.identities.issuing import Issuing, revive
from gateway.identities.joining import Joining
from gateway.identities.listing import Listing
from gateway.identities.neighbours import Neighbours
from gateway.identities.records import Records
from gateway.identities.trusting import Trusting
from gateway.migration.coordinator import Coordinator
from gateway.migration.deliveries import Deliveries
from gateway.migration.deposits import Deposits
from gateway.migration.incoming import Incoming
from gateway.migration.inventory import Inventory, RemoteSite
from gateway.migration.leaving import Leaving
from gateway.migration.ledger import Ledger
from gateway.migration.limits import Limits
from gateway.migration.outages import Outages
from gateway.migration.receipt_keeper import ReceiptKeeper
from gateway.migration.receipts import Receipts
from gateway.migration.recording import Recorder
from gateway.migration.reports import Reports
from gateway.migration.runs import Runs
from gateway.migration.stranded import Stranded
from gateway.migration.succession import Succession
from gateway.migration.survey import Survey
from gateway.remote import AgentRemote, PeerRemote, now
from gateway.service.admission import ByRole
from gateway.service.identities import EnrolmentService, IdentitiesService, RenewalService
from gateway.service.operators import GatewayService
from gateway.service.peers import PeerService
from gateway.store import Row, Store
from gateway.tunnel.tunnels import Tunnels
from landbridge import config, log, memory
from landbridge.config import Address
from landbridge.errors import ConfigError, LandbridgeError, UsageError
from landbridge.v1.enrolment_pb2_grpc import (
    add_EnrolmentServicer_to_server,
    add_IdentitiesServicer_to_server,
    add_RenewalServicer_to_server,
)
from landbridge.v1.gateway_pb2_grpc import add_GatewayServicer_to_server
from landbridge.v1.peer_pb2_grpc import add_PeerServicer_to_server

logger = structlog.get_logger()

# Seconds for which the event loop may keep a codec's thread waiting for the interpreter, and the other way round; Python's own 5 ms
# are longer than a frame takes.
SWITCH = 0.0005


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/etc/landbridge/gateway.toml"),
    show_default=True,
)
@click.option("--verbose", is_flag=True, help="Log more.")
@click.version_option(package_name="landbridge", message="%(prog)s %(version)s")
def main(path: Path, verbose: bool) -> None:
    """The Landbridge gateway of one site: coordinates migrations and carries their bytes."""
    log.configure("gateway", verbose=verbose)
    memory.keep_heap()
    sys.setswitchinterval(SWITCH)
    try:
        settings = config.load(path, GatewayConfig)
        revive(settings.identity.directory, timedelta(seconds=settings.identity.lifetime))
        identity = load_identity(settings.identity.directory, datetime.now(UTC))
        own = identity.identity
        if (own.role, own.site, own.name) != (Role.GATEWAY, settings.site, settings.name):
            raise ConfigError(
                f"{identity.directory} holds {own}, and {path} is for gateway {settings.name} of site {settings.site}"
            )
        asyncio.run(serve(settings, identity))
    except LandbridgeError as error:
        click.echo(f"landbridge-gateway: {error.message}", err=True)
        sys.exit(error.exit_code)


async def serve(settings: GatewayConfig, identity: StoredIdentity) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, identity):
        logger.info("gateway.ready", site=settings.site, operators=str(settings.listen.operators))
        await stop.wait()
    logger.info("gateway.stopped")


@contextlib.asynccontextmanager
async def running(settings: GatewayConfig, stored: StoredIdentity) -> AsyncIterator[None]:
    """The gateway, serving for as long as the context is open."""
    identity = LivingIdentity(stored)
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.store.url, settings.name)
        stack.callback(store.close)
        origin = str(identity.identity).removeprefix("spiffe://")
        evidence = await keep_evidence(settings, origin, stack)
        recorder = Recorder(evidence.journal)
        ledger = Ledger(store, recorder)
        await ledger.load()
        stack.push_async_callback(leave, store)
        tunnels = Tunnels(settings, identity)
        pump = tunnels.pump
        stack.push_async_callback(pump.close)
        stack.push_async_callback(tunnels.close)
        limits = Limits(store, tunnels)
        await limits.look()
        inventory = remotes(settings, identity, stack)
        authority = keep_policy(settings, identity, Requests(store, now), evidence, stack)
        recorder.country, recorder.secured = authority.country, tunnels.secured
        deliveries = Deliveries(evidence.journal, inventory, evidence.refusals)
        stack.push_async_callback(deliveries.close)
        reports, leaving = Reports(ledger, inventory, deliveries), Leaving(evidence.journal, inventory)
        runs = Runs(ledger, inventory, tunnels, settings.patience, deliveries, reports, leaving)
        incoming = Incoming(ledger, inventory, pump, authority, deliveries)
        stranded = Stranded(ledger, inventory, tunnels, authority, incoming, settings.patience.outage)
        survey = Survey(ledger, inventory, tunnels, authority, stranded)
        coordinator = Coordinator(ledger, inventory, survey, authority, runs, reports, leaving)
        witness = await keep_witness(settings, evidence.journal, stack)
        cosigning = Cosigning(evidence.journal, lambda: inventory.peers(tunnels.is_up_or_leads_nowhere), witness)
        deposits = Deposits(store, evidence.journal, cosigning.head, deliveries.followed)
        receipts = Receipts(ledger, inventory, deposits)
        directory = settings.audit.receipts or settings.audit.directory / RECEIPTS
        receipt_keeper = ReceiptKeeper(receipts, deposits, ledger, evidence.journal, evidence.refusals, directory)
        keepers = await keep_identities(
            settings, identity, store, ledger, inventory, tunnels, evidence.journal, receipt_keeper.is_owed
        )
        stack.push_async_callback(keepers.close)
        await watch(settings, identity, inventory, tunnels, authority, evidence, stack)

        await listen_for_links(settings, identity, tunnels, evidence.refusals, stack)
        gateway_service = GatewayService(
            coordinator,
            ledger,
            inventory,
            survey,
            stranded,
            tunnels,
            limits,
            authority,
            receipt_keeper,
            Exports(evidence.journal, identity.identity.home),
            witness.alarms,
        )
        await serve_operators(settings, identity, authority, gateway_service, keepers, evidence, stack)
        others = Access(Role.GATEWAY, identity.identity.home, local=False)
        peers = guarded_server(Guard(identity, {"landbridge.v1.Peer": others}, evidence.refusals.refused))
        add_PeerServicer_to_server(
            PeerService(
                incoming, reports, inventory, keepers.trusting, keepers.departing, receipts, witness, evidence.refusals
            ),
            peers,
        )
        await begin(peers, settings.listen.peers, identity, "peers", stack)
        tunnels.keep_up()
        for each in (cosigning, receipt_keeper, stranded):
            each.start()
            stack.push_async_callback(each.close)
        incoming.resume()
        go_on(runs, reports, Succession(store, ledger, runs, limits), stack)
        yield


def go_on(runs: Runs, reports: Reports, succession: Succession, stack: contextlib.AsyncExitStack) -> None:
    """Go on with every migration of this gateway that its ledger knows to be under way, and with those that come to it."""
    runs.look()
    reports.start()
    stack.push_async_callback(reports.close)
    # Ends before the reports: a run sends them.
    stack.push_async_callback(runs.close)
    succession.start()
    stack.push_async_callback(succession.close)


async def serve_operators(
    settings: GatewayConfig,
    identity: LivingIdentity,
    authority: Authority,
    service: GatewayService,
    keepers: Keepers,
    evidence: Evidence,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Answer those of this site: its operators and hosts, and strangers who want to become hosts."""
    by_role = ByRole(Role.OPERATOR, identity.identity.home, authority=authority)
    known = guarded_server(
        Guard(
            identity,
            {
                "landbridge.v1.Gateway": by_role,
                "landbridge.v1.Identities": by_role,
                "landbridge.v1.Renewal": Access(Role.HOST, identity.identity.home),
            },
            evidence.refusals.refused,
        )
    )
    add_GatewayServicer_to_server(service, known)
    add_IdentitiesServicer_to_server(keepers.for_operators(), known)
    add_RenewalServicer_to_server(
        RenewalService(keepers.issuing, keepers.trusting, evidence.presence, evidence.refusals), known
    )
    await begin(known, settings.listen.operators, identity, "operators", stack)
    if settings.listen.enrolment is not None:
        strangers = guarded_server(Guard(identity, {"landbridge.v1.Enrolment": None}, evidence.refusals.refused))
        add_EnrolmentServicer_to_server(EnrolmentService(keepers.enrolment), strangers)
        await begin(strangers, settings.listen.enrolment, identity, "enrolment", stack)


async def begin(
    server: aio.Server, address: Address, identity: LivingIdentity, section: str, stack: contextlib.AsyncExitStack
) -> None:
    """Have a gRPC server listen and serve, until the stack is left. Raises ConfigError."""
    credentials = tls.grpc_server_credentials(
        lambda: identity.stored,
        shows_root=section in {"peers", "enrolment"},
        takes_strangers=section == "enrolment",
    )
    bind(server, address, credentials, section)
    await server.start()
    stack.push_async_callback(server.stop, 1.0)


def keep_policy(
    settings: GatewayConfig,
    identity: LivingIdentity,
    requests: Requests,
    evidence: Evidence,
    stack: contextlib.AsyncExitStack,
) -> Authority:
    """Who may do what, by a file that is read again when it has changed, and on SIGHUP. Raises ConfigError."""
    home, loop = identity.identity.home, asyncio.get_running_loop()
    policy = PolicyFile(settings.policy.file, home)
    loop.add_signal_handler(signal.SIGHUP, policy.reread)
    stack.callback(loop.remove_signal_handler, signal.SIGHUP)
    policy.start()
    stack.push_async_callback(policy.close)
    return Authority(policy, requests, home, now, evidence.journal, evidence.refusals)


@dataclass(frozen=True)
class Evidence:
    """The audit log, and those who write what does not belong to one migration."""

    journal: Journal
    refusals: Refusals
    presence: Presence


async def keep_evidence(settings: GatewayConfig, origin: str, stack: contextlib.AsyncExitStack) -> Evidence:
    """Open the audit log, and begin to write what is seen. Raises as `keeping`."""
    journal = await stack.enter_async_context(keeping(settings.audit.directory, origin))
    refusals, presence = Refusals(journal), Presence(journal)
    shipping = Shipping(settings.audit.directory, settings.audit.ship, lambda: journal.signed.checkpoint.size)
    for each in (refusals, presence, Retention(journal, settings.audit.retention), shipping):
        each.start()
        stack.push_async_callback(each.close)
    return Evidence(journal, refusals, presence)


async def watch(
    settings: GatewayConfig,
    identity: LivingIdentity,
    inventory: Inventory,
    tunnels: Tunnels,
    authority: Authority,
    evidence: Evidence,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Have on record what comes and goes, and what rules here; what changed while this gateway did not run first. Raises NotRecorded."""
    configured = {f"gateway {settings.name}": changes.sha256(settings.model_dump_json())}
    watched = {
        "configuration.changed": lambda: configured,
        "policy.changed": authority.policy_hashes,
        "role.changed": authority.role_hashes,
        "trust.changed": lambda: believed(identity),
        "key.changed": lambda: held(identity),
    }
    changing = changes.Changes(evidence.journal, settings.audit.directory, watched)
    await changing.look()
    outages = Outages(
        evidence.journal,
        settings.site,
        inventory.site_names,
        tunnels.is_up,
        lambda site: tunnels.secured(site, incoming=False),
    )
    for each in (changing, outages):
        each.start()
        stack.push_async_callback(each.close)


def believed(identity: LivingIdentity) -> dict[str, str]:
    """A hash of the roots and handovers of each site."""
    trust = identity.trust
    return {str(site): changes.sha256(pem_of(trust.of_site(site))) for site in trust.roots}


def held(identity: LivingIdentity) -> dict[str, str]:
    """A hash of this gateway's certificates, and of what each site has revoked."""
    revoked: dict[str, list[str]] = {}
    for denial in sorted(identity.denials.all):
        revoked.setdefault(f"what {denial.site} has revoked", []).append(f"{denial.subject} {denial.since}")
    return {str(identity.identity): changes.sha256(identity.stored.certificate_pem)} | {
        site: changes.sha256(*subjects) for site, subjects in revoked.items()
    }


async def keep_witness(settings: GatewayConfig, journal: Journal, stack: contextlib.AsyncExitStack) -> Witness:
    """Cosign the logs of others, with a key of this gateway's own. Raises ConfigError."""
    try:
        known = [log_key(log.vkey) for log in settings.witness.logs]
    except UsageError as error:
        raise ConfigError(f"{error.message}; see witness.logs in the configuration") from error
    records = WitnessRecords(settings.audit.directory)
    signers = records.signers(journal.key.name, ml_dsa=settings.witness.ml_dsa)
    witness = Witness(journal, records, signers, {key.name: key for key in known}, time.time)
    stack.callback(witness.close)
    if settings.witness.listen is not None:
        server = WitnessServer(witness)
        await server.start(settings.witness.listen)
        stack.push_async_callback(server.close)
    return witness


async def leave(store: Store) -> None:
    """Let the other gateways of this site take over at once."""
    with contextlib.suppress(ConfigError):  # then they wait until we have been silent for long enough
        await store.leave()


def remotes(settings: GatewayConfig, identity: LivingIdentity, stack: contextlib.AsyncExitStack) -> Inventory:
    """Whom this gateway calls: the agents of its hosts, and the gateways of other sites."""
    agents = {host.name: AgentRemote(host.name, host.control, identity) for host in settings.hosts}
    sites = {
        site.name: RemoteSite(PeerRemote(site.name, site.peers, identity), site)
        for site in settings.sites
        if site.peers
    }
    for remote in (*agents.values(), *(site.remote for site in sites.values())):
        stack.push_async_callback(remote.close)
    return Inventory(settings.site, agents, sites)


@dataclass(frozen=True)
class Keepers:
    """Those who look after identities."""

    issuing: Issuing
    trusting: Trusting
    enrolment: Enrolment
    joining: Joining
    listing: Listing
    departing: Departing
    neighbours: Neighbours
    journal: Journal

    def for_operators(self) -> IdentitiesService:
        """What operators ask of them."""
        return IdentitiesService(
            self.enrolment, self.issuing, self.trusting, self.joining, self.departing, self.listing, self.journal
        )

    async def close(self) -> None:
        """The gateway stops."""
        await self.trusting.close()
        await self.neighbours.close()


async def keep_identities(
    settings: GatewayConfig,
    identity: LivingIdentity,
    store: Store,
    ledger: Ledger,
    inventory: Inventory,
    tunnels: Tunnels,
    journal: Journal,
    receipt_is_owed: Callable[[Row], bool],
) -> Keepers:
    """Begin to renew this gateway's certificate, to follow what its site and others believe, and whom it reaches."""
    records = Records(store)
    issuing = Issuing(identity, timedelta(seconds=settings.identity.lifetime))
    neighbours = Neighbours(identity, inventory, tunnels)
    trusting = Trusting(settings, identity, records, issuing, inventory, neighbours)
    await trusting.start()
    return Keepers(
        issuing,
        trusting,
        Enrolment(identity, records, issuing, trusting, journal),
        Joining(identity, records, trusting, journal),
        Listing(identity, records),
        Departing(settings, identity, records, trusting, inventory, ledger, journal, receipt_is_owed),
        neighbours,
        journal,
    )


async def listen_for_links(
    settings: GatewayConfig,
    identity: LivingIdentity,
    tunnels: Tunnels,
    refusals: Refusals,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Accept links from this site's agents and from other sites' gateways."""
    hosts = Access(Role.HOST, identity.identity.home)
    agents = await listen(
        settings.listen.agents,
        identity,
        hosts,
        tunnels.pump.attach_agent,
        holds_back=True,
        on_refused=refusals.refused,
    )
    stack.callback(agents.close)
    others = Access(Role.GATEWAY, identity.identity.home, local=False)
    accepted = await listen(
        settings.listen.tunnel, identity, others, tunnels.attach, is_tunnel=True, on_refused=refusals.refused
    )
    stack.callback(accepted.close)
