"""landbridge-gateway: wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import click
import structlog
from grpc import aio

from certs import tls
from certs.guard import SERVER_OPTIONS, Access, Guard
from certs.identity import Role
from certs.links import listen
from certs.store import StoredIdentity, load_identity
from gateway.audit.keeper import keeping
from gateway.config import GatewayConfig
from gateway.migration.coordinator import Coordinator
from gateway.migration.incoming import Incoming
from gateway.migration.inventory import Inventory, RemoteSite
from gateway.migration.ledger import Ledger
from gateway.migration.limits import Limits
from gateway.migration.outages import Outages
from gateway.migration.receipts import Receipts
from gateway.migration.recording import Recorder
from gateway.migration.succession import Succession
from gateway.remote import AgentRemote, PeerRemote
from gateway.service.operators import GatewayService
from gateway.service.peers import PeerService
from gateway.store import Store
from gateway.tunnel.tunnels import Tunnels
from landbridge import config, log, memory
from landbridge.config import Address
from landbridge.errors import ConfigError, LandbridgeError
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
async def running(settings: GatewayConfig, identity: StoredIdentity) -> AsyncIterator[None]:
    """The gateway, serving for as long as the context is open."""
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.store.url, settings.name)
        stack.callback(store.close)
        origin = str(identity.identity).removeprefix("spiffe://")
        journal = await stack.enter_async_context(keeping(settings.audit.directory, origin))
        ledger = Ledger(store, Recorder(journal))
        await ledger.load()
        stack.push_async_callback(leave, store)
        tunnels = Tunnels(settings, identity)
        pump = tunnels.pump
        stack.push_async_callback(pump.close)
        stack.push_async_callback(tunnels.close)
        limits = Limits(store, tunnels)
        await limits.look()
        inventory = remotes(settings, identity, stack)
        coordinator = Coordinator(ledger, inventory, tunnels, settings.patience)
        receipts = Receipts(ledger, inventory, journal)

        await listen_for_links(settings, identity, tunnels, stack)
        operators = Guard(identity.trust, {"landbridge.v1.Gateway": Access(Role.OPERATOR, settings.site)})
        peers = Guard(identity.trust, {"landbridge.v1.Peer": Access(Role.GATEWAY, settings.site, local=False)})
        for guard, address, section in (
            (operators, settings.listen.operators, "operators"),
            (peers, settings.listen.peers, "peers"),
        ):
            server = aio.server(interceptors=[guard], options=SERVER_OPTIONS)
            if guard is operators:
                add_GatewayServicer_to_server(
                    GatewayService(coordinator, ledger, inventory, tunnels, limits, receipts), server
                )
            else:
                add_PeerServicer_to_server(PeerService(Incoming(ledger, inventory, pump), inventory, receipts), server)
            bind(server, address, identity, section)
            await server.start()
            stack.push_async_callback(server.stop, 1.0)
        tunnels.keep_up()
        outages = Outages(journal, settings.site, inventory.site_names, tunnels.is_up)
        outages.start()
        stack.push_async_callback(outages.close)
        coordinator.resume()
        stack.push_async_callback(coordinator.close)
        succession = Succession(store, ledger, coordinator, limits)
        succession.start()
        stack.push_async_callback(succession.close)
        yield


async def leave(store: Store) -> None:
    """Let the other gateways of this site take over at once."""
    with contextlib.suppress(ConfigError):  # then they wait until we have been silent for long enough
        await store.leave()


def remotes(settings: GatewayConfig, identity: StoredIdentity, stack: contextlib.AsyncExitStack) -> Inventory:
    """Whom this gateway calls: the agents of its hosts, and the gateways of other sites."""
    agents = {host.name: AgentRemote(host.name, host.control, identity) for host in settings.hosts}
    sites = {site.name: RemoteSite(PeerRemote(site.name, site.peers, identity), site) for site in settings.sites}
    for remote in (*agents.values(), *(site.remote for site in sites.values())):
        stack.push_async_callback(remote.close)
    return Inventory(settings.site, agents, sites)


async def listen_for_links(
    settings: GatewayConfig, identity: StoredIdentity, tunnels: Tunnels, stack: contextlib.AsyncExitStack
) -> None:
    """Accept links from this site's agents and from other sites' gateways."""
    hosts = Access(Role.HOST, settings.site)
    agents = await listen(settings.listen.agents, identity, hosts, tunnels.pump.attach_agent, holds_back=True)
    stack.callback(agents.close)
    others = Access(Role.GATEWAY, settings.site, local=False)
    accepted = await listen(settings.listen.tunnel, identity, others, tunnels.attach, is_tunnel=True)
    stack.callback(accepted.close)


def bind(server: aio.Server, address: Address, identity: StoredIdentity, section: str) -> None:
    """Have a gRPC server listen. Raises ConfigError."""
    try:
        port = server.add_secure_port(str(address), tls.grpc_server_credentials(identity))
    except RuntimeError as error:  # what grpc raises when it cannot bind
        raise ConfigError(f"nothing can listen on {address}: see listen.{section} in the configuration") from error
    if port == 0:
        raise ConfigError(f"nothing can listen on {address}: see listen.{section} in the configuration")
