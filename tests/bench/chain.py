"""Our chain with nothing at its ends but the bench: the real gateways, and the relays of two agents without libvirt.

    feed -> inlet -> source agent -> source gateway -> destination gateway -> destination agent -> sink

`python -m tests.bench.chain source` and `... destination` stand for the agents: they carry channels of kind ram as the agents do,
and serve no gRPC. SECRET is what a coordinator would give both; gateways need to know nothing of a migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import structlog

from agent.channels import Gateways, Incoming, LocalSockets, Way, make_directory
from agent.traffic import Traffic
from certs.guard import Access
from certs.identity import Role
from certs.links import Target, listen
from certs.living import LivingIdentity
from certs.store import load_identity
from landbridge import log, memory, ticket
from landbridge.config import parse_address
from landbridge.errors import PermissionDenied
from landbridge.v1.channel_pb2 import ChannelOpen
from tests.bench.plain import ENVIRONMENT
from tests.bench.stage import Stage, Station
from tests.lab import processes
from tests.lab.network import SITES
from tests.lab.product import BIN
from tests.lab.settings import LabError

MIGRATION = "bench"
SECRET = bytes(ticket.SECRET_SIZE)
# Seconds for a process to serve, and to end.
START_PATIENCE = 20.0
END_PATIENCE = 10.0


@dataclass(frozen=True)
class Chain:
    """The four processes, in the order in which bytes travel."""

    inlet: Path
    processes: dict[str, subprocess.Popen[bytes]]

    def peak_bytes(self) -> dict[str, int]:
        """The most resident memory that each has had so far."""
        return {name: _peak(process.pid) for name, process in self.processes.items()}

    def cpu_seconds(self) -> float:
        """The CPU time of all four so far."""
        return sum(_cpu(process.pid) for process in self.processes.values())


@contextlib.contextmanager
def chain(stage: Stage, outlet: Path) -> Iterator[Chain]:
    """Start all four; what enters the inlet comes out at whatever listens at `outlet`."""
    sockets = stage.directory / "source"
    make_directory(sockets, (os.getuid(), os.getgid()))
    first, near, far, last = stage.stations
    gateway = str(BIN / "landbridge-gateway")
    agent = [sys.executable, "-m", "tests.bench.chain"]
    with contextlib.ExitStack() as stack:
        started = {}
        for station, argv in (
            (near, [gateway, "--config", str(_configure(stage, near, first, far))]),
            (far, [gateway, "--config", str(_configure(stage, far, last, near))]),
            (last, [*agent, "destination", "--listen", str(last.address("stream")), "--sink", str(outlet)]),
            (
                first,
                [
                    *agent,
                    "source",
                    "--gateway",
                    str(near.address("agents")),
                    "--sockets",
                    str(sockets),
                    "--to",
                    last.name,
                ],
            ),
        ):
            more = ["--identity", str(station.identity)] if station.role is Role.HOST else []
            started[station] = _launch(stack, stage, station, [*argv, *more])
        for station, process in started.items():
            _wait_ready(stage, station, process)
        yield Chain(sockets / "ram.sock", {s.title: started[s] for s in stage.stations})


# Processes


def _configure(stage: Stage, gateway: Station, host: Station, other: Station) -> Path:
    """A gateway's configuration."""
    store = stage.directory / f"{gateway.name}.db"
    config = stage.directory / f"{gateway.name}.toml"
    config.write_text(f"""\
site = "{gateway.site}"
name = "{gateway.name}"
[identity]
directory = "{gateway.identity}"
[listen]
operators = "{gateway.address("operators")}"
agents = "{gateway.address("agents")}"
peers = "{gateway.address("peers")}"
tunnel = "{gateway.address("tunnel")}"
[store]
url = "sqlite:///{store}"
[pages]
directory = "{stage.directory / gateway.name}-pages"
[audit]
directory = "{stage.directory / gateway.name}-audit"
[[hosts]]
name = "{host.name}"
control = "{host.address("control")}"
stream = "{host.address("stream")}"
[[sites]]
name = "{other.site}"
peers = "{other.address("peers")}"
tunnel = "{other.address("tunnel")}"
""")
    return config


def _launch(stack: contextlib.ExitStack, stage: Stage, station: Station, argv: list[str]) -> subprocess.Popen[bytes]:
    with _log(stage, station).open("wb") as output:
        process = subprocess.Popen(
            [*station.enter, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=ENVIRONMENT
        )
    stack.callback(_end, process)
    return process


def _log(stage: Stage, station: Station) -> Path:
    return stage.directory / f"{station.name}.log"


def _wait_ready(stage: Stage, station: Station, process: subprocess.Popen[bytes]) -> None:
    path = _log(stage, station)

    def ready() -> bool:
        text = path.read_text()
        if process.poll() is not None:
            raise LabError(f"the {station.title} of the bench has ended: {text.splitlines()[-1:]}")
        return '.ready"' in text

    otherwise = f"the {station.title} of the bench does not serve within {START_PATIENCE:.0f} s"
    processes.wait_until(ready, seconds=START_PATIENCE, otherwise=otherwise)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise LabError(f"process {pid} of the bench has ended early")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The programs that stand for the agents


@click.group()
def main() -> None:
    """An agent's relay, without its agent."""
    log.configure("bench")
    memory.keep_heap()


@main.command()
@click.option("--identity", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--gateway", required=True, help="Where it takes channels, HOST:PORT.")
@click.option(
    "--sockets", type=click.Path(path_type=Path), required=True, help="Directory for rpc.sock, ram.sock, disk.sock."
)
@click.option("--to", "destination_host", required=True, help="The host at the other site.")
def source(directory: Path, gateway: str, sockets: Path, destination_host: str) -> None:
    """Make a channel of each connection to one of its sockets."""

    async def serve() -> None:
        identity = LivingIdentity(load_identity(directory, datetime.now(UTC)))
        own = identity.identity
        target = Target("the gateway", parse_address(gateway), identity, Role.GATEWAY, own.site)
        local = LocalSockets(Gateways([target]), sockets, Traffic())
        other = next(site for site in SITES if site != own.site)
        local.way = Way(MIGRATION, own.site, own.name, other, destination_host, SECRET, "bench", "bench")
        local.listen((os.getuid(), os.getgid()))
        await _serve_until_stopped("source.ready")
        await local.close()

    asyncio.run(serve())


@main.command()
@click.option("--identity", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--listen", "address", required=True, help="Where the gateway dials, HOST:PORT.")
@click.option("--sink", required=True, help="The UNIX socket to which each channel is connected.")
def destination(directory: Path, address: str, sink: str) -> None:
    """Connect each channel that a gateway brings to the sink."""

    async def serve() -> None:
        identity = LivingIdentity(load_identity(directory, datetime.now(UTC)))

        def admit(opening: ChannelOpen) -> tuple[str, Traffic]:
            if not ticket.is_good(SECRET, opening):
                raise PermissionDenied("a channel of the bench came without its ticket")
            return sink, Traffic()

        incoming = Incoming(admit)
        access = Access(Role.GATEWAY, identity.identity.home)
        server = await listen(parse_address(address), identity, access, lambda link, _peer: incoming.accept(link))
        await _serve_until_stopped("destination.ready")
        server.close()
        await incoming.close()

    asyncio.run(serve())


async def _serve_until_stopped(event: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    structlog.get_logger().info(event)
    await stop.wait()


if __name__ == "__main__":
    main()
