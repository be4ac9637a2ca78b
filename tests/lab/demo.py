"""python -m tests.lab.demo: a busy guest moves from one site to the other and back, and says itself how it fared.

    up -> start the guest -> `landbridge vms` -> migrate, ask the guest -> migrate back, ask the guest -> receipt, verify it
       -> change a byte of the audit log, verify that -> table -> down

What stands behind a "$" runs as it is shown, at the gateway of the source's site. The lab is taken down whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from gateway.cli import words
from landbridge.errors import Conflict, EvidenceFailed
from tests.lab import kernel
from tests.lab.lab import Lab
from tests.lab.settings import CACHE, GuestSettings, LabError, LabSettings, WanSettings

NAME = "demo"
VM = "web"
WAN = WanSettings(rate=200, rtt=40)
GUEST = GuestSettings(memory=512, disk=64, working_set=96, rate=500)
MOVES = (("east", "west"), ("west", "east"))
# Seconds: a move takes about 15, and the guest needs about 10 for two passes over its memory and disk.
MOVE_PATIENCE = 120
VERDICT_PATIENCE = 60
# Five to a second.
RECEIPT_ATTEMPTS = 50
WIDTH = 80
LOGS = CACHE.parent / "demo-logs"


@dataclass(frozen=True)
class Moved:
    """What one move took, by the product's word and by the lab's own instruments."""

    way: str
    summary: dict[str, Any]
    wan_bytes: int
    pause_ms: float | None
    memory_verified: bool
    disk_verified: bool
    problems: tuple[str, ...]


def main() -> int:
    """Run the demo; 0 only if every check held."""
    try:
        with _alone(), _lab() as lab:
            moves = _play(lab)
            evidence = [] if any(move.problems for move in moves) else _prove(lab)
    except LabError as error:
        say(f"\ndemo: {error}", to=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\ndemo: interrupted", to=sys.stderr)
        return 128 + signal.SIGINT
    return _close(moves, evidence)


def _play(lab: Lab) -> list[Moved]:
    with step(f"starting {VM}, a real QEMU guest on host east-1"):
        lab.guests.start(VM, "east-1", GUEST)
    say(
        f"  It has {GUEST.memory} MiB of memory and a {GUEST.disk} MiB disk, rewrites {GUEST.rate} pages a second in"
        f"\n  {GUEST.working_set} MiB, and checks every page and block that it reads against what it wrote."
    )
    _landbridge(lab, "east", "vms")
    moves = []
    for number, (source, destination) in enumerate(MOVES, 1):
        moves.append(_move(lab, number, source, destination))
        if moves[-1].problems:
            break
    return moves


def _move(lab: Lab, number: int, source: str, destination: str) -> Moved:
    carried = lab.wan.bytes_carried()
    code = _landbridge(lab, source, "migrate", VM, "--to", destination)
    carried = lab.wan.bytes_carried() - carried
    problems = [] if code == 0 else [f"landbridge migrate exited with {code}"]
    verdict = lab.guests.check(VM, wait=VERDICT_PATIENCE if code == 0 else 0, at=destination)
    problems += verdict.problems
    if not verdict.good:
        problems.append("the guest did not verify its memory and disk")
    if verdict.moves != number or not verdict.host.startswith(destination):
        problems.append(f"the guest speaks from {verdict.host}, after {verdict.moves} moves")
    running = [host for host, state in lab.guests.where(VM).items() if state.startswith("running")]
    if running != [verdict.host]:
        problems.append(f"libvirt says that it runs on {' and '.join(running) or 'no host'}")
    say("\n" + textwrap.fill(f"The guest says: {verdict.sentence()}.", WIDTH))
    return Moved(
        way=f"{source} to {destination}",
        summary=_summary(lab, source),
        wan_bytes=carried,
        pause_ms=verdict.last_move_pause_ms,
        memory_verified=verdict.memory_verified,
        disk_verified=verdict.disk_verified,
        problems=tuple(problems),
    )


def _prove(lab: Lab) -> list[str]:
    """What the audit logs say of the last move; what is wrong with that, if anything."""
    source, destination = MOVES[-1]
    logs = {site: lab.product.audit(lab.product.seats(site)[0]) for site in (source, destination)}
    id_ = json.loads(lab.landbridge(source, "migrations", "--json").stdout.partition("\n")[0])["id"]
    file, copy = lab.directory / f"{VM}.receipt", lab.directory / f"{source}-audit"
    # The destination hears of the end a moment after the source.
    for _ in range(RECEIPT_ATTEMPTS):
        done = lab.landbridge(source, "receipt", id_[:8], "--out", str(file))
        if done.returncode != Conflict.exit_code:
            break
        time.sleep(0.2)
    say(f"\n{source}$ landbridge receipt {id_[:8]} --out {file}\n{done.stdout}{done.stderr}".rstrip())
    known = {"--key": logs[source] / "log.vkey", "--other": logs[destination] / "log.vkey"}
    # The destination has cosigned what the source says.
    known["--witness"] = logs[destination] / "witness.vkey"
    keys = [word for option, path in known.items() for word in (option, str(path))]
    problems = (
        [] if _landbridge(lab, source, "audit", "verify", str(file), *keys) == 0 else ["the receipt did not verify"]
    )
    if _landbridge(lab, source, "audit", "verify", str(logs[source]), "--receipt", str(file), *keys):
        problems.append("the audit log did not verify")
    shutil.copytree(logs[source], copy, ignore=shutil.ignore_patterns(".*"))
    bundle = max(
        (copy / "tile" / "entries").rglob("[0-9]*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    raw = bytearray(bundle.read_bytes())
    at = raw.index(b'"vm":{"name":"') + len(b'"vm":{"name":"')
    raw[at] ^= 1
    bundle.write_bytes(raw)
    say(
        f"\nOne byte of a copy is changed: {VM!r} is {chr(raw[at]) + VM[1:]!r} now, in an entry of {bundle.relative_to(copy)}."
    )
    if _landbridge(lab, source, "audit", "verify", str(copy)) != EvidenceFailed.exit_code:
        problems.append("the changed byte was not found")
    return problems


def _summary(lab: Lab, site: str) -> dict[str, Any]:
    newest = lab.landbridge(site, "migrations", "--json").stdout.partition("\n")[0]
    summary = json.loads(newest or "{}").get("summary")
    return summary or {"total_ms": 0, "downtime_ms": 0, "bytes_hypervisor": 0}


def _close(moves: list[Moved], evidence: list[str]) -> int:
    rows = [
        ("", [move.way for move in moves]),
        ("total time", [words.duration(move.summary["total_ms"]) for move in moves]),
        ("downtime, by Landbridge", [_ms(move.summary["downtime_ms"]) for move in moves]),
        ("guest silent, by the outside clock", [_ms(move.pause_ms) for move in moves]),
        ("read from the hypervisor", [words.size(move.summary["bytes_hypervisor"]) for move in moves]),
        ("carried by the WAN, both directions", [words.size(move.wan_bytes) for move in moves]),
        ("memory verified by the guest", [_yes(move.memory_verified) for move in moves]),
        ("disk verified by the guest", [_yes(move.disk_verified) for move in moves]),
    ]
    say("")
    for name, cells in rows:
        say(f"{name:<36}" + "".join(f"{cell:>16}" for cell in cells))
    problems = [f"{move.way}: {problem}" for move in moves for problem in move.problems] + evidence
    if len(moves) < len(MOVES):
        problems.append("the guest did not come back")
    if not problems:
        say(
            "\nAll checks held: one host at a time, no beat missed, no page and no block lost, and all of it on record."
        )
        return 0
    say("\nNot all checks held:", to=sys.stderr)
    for problem in problems:
        say(f"  {problem}", to=sys.stderr)
    return 1


def _landbridge(lab: Lab, site: str, *arguments: str) -> int:
    """Run the command line where the user sees it: on the terminal, if there is one."""
    say(f"\n{site}$ landbridge {' '.join(arguments)}")
    done = subprocess.run(
        [*lab.enter(f"{site}-gw"), "landbridge", *arguments],
        check=False,
        timeout=MOVE_PATIENCE,
        env=lab.product.operator_environment(site),
    )
    return done.returncode


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the demo's name on this machine; the kernel lets go of it when this process ends, however it ends."""
    with socket.socket(socket.AF_UNIX) as name:
        try:
            name.bind(f"\0landbridge-lab-{NAME}")
        except OSError:
            raise LabError("another demo is running on this machine: wait for it") from None
        yield


@contextlib.contextmanager
def _lab() -> Iterator[Lab]:
    """The demo's lab, which is gone in the end."""
    lab = Lab(NAME)
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _interrupt)
    try:
        kernel.prepare()
        if lab.down():
            say("A demo was killed here; what it left is removed.")
        with step(f"building two sites, and {WAN.rate:g} Mbit/s with {WAN.rtt:g} ms between them"):
            lab.up(LabSettings(wan=WAN))
        yield lab
    except subprocess.TimeoutExpired as error:
        _keep_logs(lab)
        raise LabError(f"a command did not end within {error.timeout:.0f} s") from error
    except LabError:
        _keep_logs(lab)
        raise
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, signal.SIG_IGN)
        with step("taking it all down"):
            lab.down()


def _interrupt(sign: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _keep_logs(lab: Lab) -> None:
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    for log in lab.directory.glob("*.log"):
        shutil.copy(log, LOGS)
    say(f"The logs are kept in {LOGS.relative_to(Path.cwd()) if LOGS.is_relative_to(Path.cwd()) else LOGS}.")


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    began = time.monotonic()
    sys.stdout.write(f"\n{what} ... ")
    sys.stdout.flush()
    try:
        yield
    except BaseException:
        say("stopped")
        raise
    say(f"{time.monotonic() - began:.1f} s")


def _ms(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.0f} ms"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def say(line: str, *, to: Any = None) -> None:
    """A line at once, also where it goes to a file."""
    out = to or sys.stdout
    out.write(f"{line}\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
