"""landbridge-agent: wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import click
import structlog

from agent.channels import Gateways, Incoming
from agent.config import AgentSettings
from agent.enroll import enroll
from agent.hypervisor.base import Hypervisor
from agent.hypervisor.libvirt_driver import LibvirtHypervisor
from agent.journal import Journal
from agent.move import HostContext
from agent.renewal import Renewal
from agent.service import AgentService, Moves
from certs import tls
from certs.guard import Access, Guard, bind
from certs.guard import server as guarded_server
from certs.identity import Role
from certs.links import Target, listen
from certs.living import LivingIdentity
from certs.store import StoredIdentity, load_identity
from landbridge import config, log, memory
from landbridge.errors import ConfigError, LandbridgeError
from landbridge.v1.agent_pb2_grpc import add_AgentServicer_to_server

logger = structlog.get_logger()


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/etc/landbridge/agent.toml"),
    show_default=True,
)
@click.option("--verbose", is_flag=True, help="Log more.")
@click.version_option(package_name="landbridge", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, path: Path, verbose: bool) -> None:
    """The Landbridge agent of one host: drives its libvirt for this site's gateways."""
    if ctx.invoked_subcommand is not None:
        return
    log.configure("agent", verbose=verbose)
    memory.keep_heap()
    try:
        settings = config.load(path, AgentSettings)
        identity = load_identity(settings.identity.directory, datetime.now(UTC))
        if (identity.identity.role, identity.identity.site, identity.identity.name) != (
            Role.HOST,
            settings.site,
            settings.name,
        ):
            raise ConfigError(
                f"{identity.directory} holds {identity.identity}, and {path} is for host {settings.name} of site {settings.site}"
            )
        asyncio.run(serve(settings, identity, LibvirtHypervisor(settings.libvirt.uri)))
    except LandbridgeError as error:
        click.echo(f"landbridge-agent: {error.message}", err=True)
        sys.exit(error.exit_code)


main.add_command(enroll)


async def serve(settings: AgentSettings, identity: StoredIdentity, hypervisor: Hypervisor) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, identity, hypervisor):
        logger.info("agent.ready", site=settings.site, host=settings.name, control=str(settings.listen.control))
        await stop.wait()
    logger.info("agent.stopped")


@contextlib.asynccontextmanager
async def running(settings: AgentSettings, stored: StoredIdentity, hypervisor: Hypervisor) -> AsyncIterator[None]:
    """The agent, serving for as long as the context is open."""
    identity = LivingIdentity(stored)
    moves: Moves

    gateways = Gateways(
        [
            Target("this site's gateway", address, identity, Role.GATEWAY, settings.site)
            for address in settings.gateway.stream
        ]
    )
    incoming = Incoming(lambda opening: moves.admit(opening, str(settings.libvirt.socket)))
    # What was begun is ended in any case: also where the next one cannot begin, since something else has its port, say.
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, hypervisor.close)
        host = HostContext(
            hypervisor,
            Journal(_directory(settings.paths.state / "migrations", "paths.state", 0o700)),
            gateways,
            _directory(settings.paths.runtime, "paths.runtime", 0o711),
            qemu_owner(settings.libvirt.qemu_user),
            f"host {settings.name}",
            settings.firewall,
            int(settings.proof.rate * 1e6),
        )
        moves = Moves(host)
        access = Access(Role.GATEWAY, identity.identity.home)
        server = guarded_server(Guard(identity, {"landbridge.v1.Agent": access}))
        stack.push_async_callback(server.stop, grace=1.0)
        stack.push_async_callback(incoming.close)
        stack.push_async_callback(gateways.close)
        stack.push_async_callback(moves.close)
        moves.recover()
        add_AgentServicer_to_server(AgentService(host, moves, settings.site, settings.name), server)
        bind(server, settings.listen.control, tls.grpc_server_credentials(lambda: identity.stored), "control")
        await server.start()
        renewal = Renewal(identity, settings.gateway.control)
        renewal.start()
        stack.push_async_callback(renewal.close)
        stream = await listen(settings.listen.stream, identity, access, lambda link, _peer: incoming.accept(link))
        stack.callback(stream.close)
        yield


def _directory(path: Path, section: str, mode: int) -> Path:
    """A directory that is there from now on. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}): see {section} in the configuration") from error
    return path


def qemu_owner(user: str) -> tuple[int, int]:
    """User and group ids of QEMU. Raises ConfigError if the user does not exist."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"there is no user {user} on this host; see user in /etc/libvirt/qemu.conf and libvirt.qemu_user"
        ) from None
    return entry.pw_uid, entry.pw_gid
