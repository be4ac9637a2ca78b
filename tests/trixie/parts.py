"""The parts of a run: each builds what it needs of the lab, and says what came of it in the table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.stream.libvirt_rpc import Procedure
from tests.attack.arena import attack, recorded
from tests.attack.attacks import OF_A_MIGRATION
from tests.integration.story import (
    FAST,
    GUEST,
    HOMES,
    POOL_SIZE,
    SLOW_DISK,
    SLOW_MEMORY,
    Guest,
    Move,
    assert_ended,
    assert_holds,
    moving,
)
from tests.lab import GuestSettings, Lab, LabSettings, WanSettings, processes, root
from tests.lab.network import SITES
from tests.trixie.table import Table

# What each Debian brings: libvirt, QEMU, Python.
BOOKWORM, TRIXIE = ("9.0", "7.2", "3.11"), ("11.3", "10.0", "3.13")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# A move that goes well calls so much: both versions do, as recorded (tests/vectors/rpc).
ONCE = (Procedure.CONNECT_OPEN, Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS)


def units(lab: Lab, table: Table) -> None:
    """The tests without hosts, inside the root."""
    del lab
    with table.check("tests/unit and tests/property, by Python 3.13") as row:
        words = [".venv/bin/python", *PYTEST, "tests/unit", "tests/property"]
        row.seen = _passed("units", root.inside(words, check=False))


def contract(lab: Lab, table: Table) -> None:
    """The tests of the driver for libvirt, with hosts of the root; their lab is their own."""
    del lab
    with table.check("the contract of hypervisors, by libvirtd 11.3") as row:
        words = [sys.executable, *PYTEST, "tests/contract/test_hypervisor.py", "-k", "libvirt"]
        done = subprocess.run(
            words,
            cwd=root.CHECKOUT,
            env={**os.environ, "LANDBRIDGE_TRIXIE": " ".join(SITES)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        row.seen = _passed("contract", done.stdout)


def _passed(part: str, said: str) -> str:
    """The last line of pytest's output, which is kept in a file, if all have passed."""
    log = root.DIRECTORY / f"{part}.log"
    log.write_text(said)
    lines = said.strip().splitlines() or ["nothing was said"]
    failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    assert re.fullmatch(r"\d+ passed(, \d+ deselected)? in .*", lines[-1]), (
        f"{'; '.join(failed)} {lines[-1]}: see {log}"
    )
    return lines[-1]


def pair(lab: Lab, table: Table) -> None:
    """Both sites on Debian 13."""
    lab.up(LabSettings(trixie=SITES, pool_size=POOL_SIZE, wan=FAST, pages=False))
    guest = _guest(lab, table, east=TRIXIE, west=TRIXIE)
    with recorded(lab, "west-1") as there, recorded(lab, "east-1") as back:
        for log, way in ((there, "13 to 13, under load"), (back, "13 to 13, back")):
            _move(guest, table, way)
            _calls(log, table, f"calls that libvirtd of {log.stem.removeprefix('recorded-')} was given")
        _give_up(guest, table, "disk", SLOW_DISK)
        _give_up(guest, table, "memory", SLOW_MEMORY)
        _move(guest, table, "13 to 13, after it was given up")
    _nothing_refused(lab, table)


def attacks(lab: Lab, table: Table) -> None:
    """The attack suite, against libvirt 11.3."""
    lab.up(LabSettings(trixie=("east",), pages=False))
    with table.check("attacks on libvirtd 11.3") as row:
        _versions_are(lab, "east", TRIXIE)
        report = attack(lab)
        row.seen = f"{len(report.outcomes) - 1} attacks, {report.events} security events; libvirtd saw nothing of them"
        assert not report.problems, "; ".join(report.problems)


def mixed(lab: Lab, table: Table) -> None:
    """East on Debian 12, west on Debian 13."""
    lab.up(LabSettings(trixie=("west",), wan=FAST))
    guest = _guest(lab, table, east=BOOKWORM, west=TRIXIE)
    _give_up(guest, table, "memory", SLOW_MEMORY)
    _move(guest, table, f"12 to 13, {GUEST.machine}")
    _move(guest, table, f"13 to 12, {GUEST.machine}")
    _nothing_refused(lab, table)
    with table.check("13 to 12, a machine type that 12 does not know") as row:
        lab.guests.start("new", "west-1", GuestSettings(memory=128, disk=8, disk_fill=1, working_set=8, machine="q35"))
        done = lab.landbridge("west", "migrate", "new", "--to", "east/east-1")
        said = " ".join((done.stdout + done.stderr).split())
        found = re.search(r"east-1 does not know the machine type pc-q35-10\.\d+ of new", said)
        assert found is not None, said
        assert done.returncode != 0, said
        assert lab.guests.check("new", wait=30).good
        row.seen = f"preflight: {found[0]}"


PARTS: dict[str, Callable[[Lab, Table], None]] = {
    "units": units,
    "contract": contract,
    "pair": pair,
    "attacks": attacks,
    "mixed": mixed,
}


def _guest(lab: Lab, table: Table, **debians: tuple[str, ...]) -> Guest:
    """A guest at home in the east, once all hosts and programs are of the Debian that they should be."""
    for site, expected in debians.items():
        with table.check(f"site {site}: libvirt, QEMU, Python of agents and gateway") as row:
            row.seen = ", ".join(_versions_are(lab, site, expected))
    lab.guests.start("web", HOMES[0], GUEST)
    return Guest(lab, "web")


def _versions_are(lab: Lab, site: str, expected: tuple[str, ...]) -> tuple[str, ...]:
    host = f"{site}-1"
    said = lab.hosts[host].virsh("version")
    found = [re.search(pattern, said) for pattern in (r"library: libvirt (\S+)", r"hypervisor: QEMU (\S+)")]
    versions = [match[1] if match else "" for match in found]
    versions += sorted({_python(lab, name) for name in (host, f"{site}-2", f"{site}-gw")})
    assert len(versions) == len(expected), versions
    is_so = all(f"{has}.".startswith(f"{wanted}.") for has, wanted in zip(versions, expected, strict=True))
    assert is_so, f"{', '.join(versions)} instead of {', '.join(expected)}"
    return tuple(versions)


def _python(lab: Lab, name: str) -> str:
    record = processes.find(lab.directory / "processes", f"landbridge-{name}")
    assert record is not None, f"{name} does not run"
    return Path(f"/proc/{record.pid}/exe").readlink().name.removeprefix("python")


def _move(guest: Guest, table: Table, what: str) -> None:
    """The guest moves to its other home, and verifies its memory and disk there."""
    with table.check(what) as row:
        with moving(guest) as move:
            ended = move.end()
        assert ended["state"] == "completed", ended["reason"]
        assert_holds(move, at=move.destination)
        verdict = guest.lab.guests.check(guest.name)
        assert verdict.good, verdict.sentence()
        took = ended["summary"]["total_ms"] / 1000
        row.seen = (
            f"{took:.1f} s, silent for {verdict.last_move_pause_ms or 0:.0f} ms; the guest found all as it wrote it"
        )


def _give_up(guest: Guest, table: Table, phase: str, wan: WanSettings) -> None:
    """The operator cancels while disks or memory travel: the guest goes on, and nothing is left at the destination."""
    with table.check(f"cancelled while {phase} travels") as row, _fast_again(guest.lab):
        with moving(guest, wan) as move:
            move.in_disk_phase() if phase == "disk" else move.in_memory_phase()
            _cancel(move)
        row.seen = f"the guest goes on at {move.source}; nothing is left at {move.destination}"


def _cancel(move: Move) -> None:
    done = move.lab.landbridge(move.source_site, "cancel", move.id, "--json")
    assert done.returncode == 0, done.stderr
    move.end()
    assert_ended(move, "cancelled", cause="^cancelled by ")
    assert_holds(move, at=move.source)


@contextlib.contextmanager
def _fast_again(lab: Lab) -> Iterator[None]:
    try:
        yield
    finally:
        lab.set_wan(FAST)


def _calls(log: Path, table: Table, what: str) -> None:
    """What one move has called: nothing but what the firewall's table has, and each end of it once."""
    with table.check(what) as row:
        calls = Counter(json.loads(line)["procedure"] for line in log.read_text().splitlines())
        assert calls, "none: the recorder has seen nothing"
        row.seen = f"{calls.total()}: " + ", ".join(f"{Procedure(p).name} {n}" for p, n in sorted(calls.items()))
        assert calls.keys() <= OF_A_MIGRATION, calls
        assert all(calls[procedure] == 1 for procedure in ONCE), row.seen


def _nothing_refused(lab: Lab, table: Table) -> None:
    """The firewalls had nothing against honest moves: neither enforced nor told."""
    with table.check("refused by the firewalls, which enforce") as row:
        logs = {host: lab.product.log(host).read_text() for host in lab.hosts}
        told = [f"{h}: {line}" for h, text in logs.items() for line in text.splitlines() if '"firewall.' in line]
        assert not told, "; ".join(told)
        row.seen = "nothing"
