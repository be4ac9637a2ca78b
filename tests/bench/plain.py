"""Chains of relays (tests.bench.relay), which add nothing to the bytes: what is to be had without channels and frames."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.stage import Stage, Station
from tests.lab.settings import LabError

ROOT = Path(__file__).resolve().parents[2]
# Entering a host's mount namespace changes the working directory.
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
# Seconds a relay gets to end after its stream has.
PATIENCE = 15.0


@dataclass(frozen=True)
class Relays:
    """A chain that is up, in the order in which bytes travel."""

    inlet: Path
    processes: tuple[subprocess.Popen[str], ...]

    def reports(self) -> list[dict[str, float]]:
        """What each says at its end: `bytes` and `cpu_s`. Raises LabError."""
        found = []
        for process in self.processes:
            said, _ = process.communicate(timeout=PATIENCE)
            if process.returncode != 0:
                raise LabError(f"a relay of the bench failed with {process.returncode}: its error is above")
            found.append(json.loads(said.splitlines()[-1]))
        return found


@contextlib.contextmanager
def tls_chain(stage: Stage, outlet: Path, options: Sequence[Sequence[str]] = ((), (), (), ())) -> Iterator[Relays]:
    """As agent, gateway, gateway, agent: three hops with TLS. `options`: more arguments for each."""
    first, near, far, last = stage.stations
    facing = {near: near.lan, far: far.wan, last: last.lan}
    with contextlib.ExitStack() as stack:
        target, started = f"unix:{outlet}", []
        for station, more in zip((last, far, near), reversed(options[1:]), strict=True):
            process, place = _start(stack, station, f"tls:{facing[station]}:0", target, more)
            started.append(process)
            target = f"tls:{place}/{station.role}/{station.site}"
        process, inlet = _start(stack, first, f"unix:{stage.directory / 'relay.sock'}", target, options[0])
        yield Relays(Path(inlet), (process, *reversed(started)))


@contextlib.contextmanager
def tcp_stream(stage: Stage, outlet: Path, congestion: str) -> Iterator[Relays]:
    """One TCP connection in the clear, from gateway to gateway."""
    near, far = stage.source_gateway, stage.destination_gateway
    with contextlib.ExitStack() as stack:
        receiver, place = _start(stack, far, f"tcp:{far.wan}:0", f"unix:{outlet}")
        inlet = f"unix:{stage.directory / 'tcp.sock'}"
        sender, path = _start(stack, near, inlet, f"tcp:{place}", ["--congestion", congestion])
        yield Relays(Path(path), (sender, receiver))


def _start(
    stack: contextlib.ExitStack, station: Station, source: str, target: str, more: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], str]:
    argv = [*station.enter, sys.executable, "-m", "tests.bench.relay", "--from", source, "--to", target]
    process = subprocess.Popen(
        [*argv, "--identity", str(station.identity), *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    stack.callback(_end, process)
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        raise LabError(f"a relay of the bench did not start on {station.name}: its error is above")
    return process, json.loads(said)["listening"]


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
