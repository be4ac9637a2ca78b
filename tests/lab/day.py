"""python -m tests.lab.day --out DIR: a day of two sites with real guests, as its audit logs have it, and what is exported of it.

    web moves there -> vault is denied -> shop moves when two have approved it -> web moves back, and the WAN fails on the way
        -> both sites' logs are exported to DIR/east and DIR/west -> somebody without Landbridge verifies them from their READMEs

The lab is taken down whatever happens; DIR stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from landbridge.errors import ApprovalNeeded, PolicyRefused
from tests import newcomer
from tests.lab import kernel, processes
from tests.lab.demo import say, step
from tests.lab.lab import Lab, name_of
from tests.lab.network import SITES
from tests.lab.product import policy_of
from tests.lab.settings import GuestSettings, LabError, LabSettings, WanSettings

GUEST = GuestSettings(memory=192, disk=16, disk_fill=8, working_set=16, rate=50, disk_rate=1)
GUESTS = ("web", "shop", "vault")
FAST, SLOW = WanSettings(rate=400, rtt=10), WanSettings(rate=60, rtt=10)
# Of east; west takes what comes.
RULES = """
[[four_eyes]]
name = "shops"
vms = ["shop"]
approvals = 2
[[rules]]
name = "the vault stays"
effect = "forbid"
vms = ["vault"]
from = ["east"]
[[transfers]]
name = "everything"
purpose = "the customer's machines run where there is room"
legal_basis = "controller-instructions"
transfer_mechanism = "not-needed"
"""
# Seconds: for one migration, and for which the WAN is down, which is longer than it takes to see that.
PATIENCE = 180
OUTAGE = 12
# What the log of the site must tell from which most of it starts.
EXPECTED = {
    "migration.completed": 3,
    "migration.denied": 1,
    "migration.approved": 2,
    "outage.began": 1,
    "outage.ended": 1,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder for what is exported.")
def main(out: Path) -> None:
    """Play the day, and verify what is exported of it."""
    try:
        with _lab() as lab:
            _play(lab)
            _export(lab, out)
        _verify(out)
    except LabError as error:
        sys.exit(f"day: {error}")
    except KeyboardInterrupt:
        sys.exit("day: interrupted")


def _play(lab: Lab) -> None:
    with step(f"starting {', '.join(GUESTS)} at east"):
        for name in GUESTS:
            lab.guests.start(name, "east-1", GUEST)
    with step("giving east its policy"):
        _give(lab, "east", RULES)
    with step("web moves from east to west"):
        _run(lab, "east", "migrate", "web", "--to", "west")
    with step("vault is to move, and a rule forbids it"):
        _run(lab, "east", "migrate", "vault", "--to", "west", code=PolicyRefused.exit_code)
    with step("shop moves when carol and dave have approved it"):
        asked = _run(lab, "east", "migrate", "shop", "--to", "west", "--json", code=ApprovalNeeded.exit_code)
        for who in ("carol", "dave"):
            _run(lab, "east", "approve", json.loads(asked)["id"], who=who)
        _run(lab, "east", "migrate", "shop", "--to", "west")
    with step(f"web moves back, and the WAN fails for {OUTAGE} s on the way"):
        _move_over_an_outage(lab)


def _move_over_an_outage(lab: Lab) -> None:
    lab.set_wan(SLOW)
    argv = [*lab.enter("west-gw"), "landbridge", "migrate", "web", "--to", "east", "--json"]
    environment = lab.product.operator_environment("west")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as moving:
        assert moving.stdout is not None
        try:
            for line in moving.stdout:
                if json.loads(line)["state"] == "copying_memory":
                    break
            lab.wan.cut()
            time.sleep(OUTAGE)
            lab.wan.heal()
            lab.set_wan(FAST)
            for _ in moving.stdout:
                pass
            if moving.wait(PATIENCE):
                raise LabError(f"web did not move back: exit code {moving.returncode}")
        finally:
            moving.kill()


def _give(lab: Lab, site: str, rules: str) -> None:
    lab.product.set_policy(site, policy_of(site, rules))
    sha256 = hashlib.sha256(lab.product.policy(site).read_bytes()).hexdigest()
    lab.product.kill(f"{site}-gw", signal.SIGHUP)
    processes.wait_until(
        lambda: json.loads(_run(lab, site, "policy", "status", "--json"))["sha256"] == sha256,
        seconds=15,
        otherwise=f"the gateway of {site} does not take its policy",
    )


def _export(lab: Lab, out: Path) -> None:
    out.mkdir(parents=True)
    for site in SITES:
        log = lab.product.audit(lab.product.seats(site)[0])
        # The other site hears of the end a moment later.
        processes.wait_until(
            lambda log=log, site=site: _events(lab, site, log)["migration.completed"] == 3,  # type: ignore[misc]
            seconds=15,
            otherwise=f"the log of {site} does not tell of three migrations that were completed",
        )
        found = _events(lab, site, log)
        for event, least in EXPECTED.items() if site == "east" else ():
            if found[event] < least:
                raise LabError(f"the log of {site} has {found[event]} {event}, not {least}")
        say(f"\n{site}$ landbridge audit export {log} --out {out / site}")
        say(_run(lab, site, "audit", "export", str(log), "--out", str(out / site), who="adam").strip())
        if _events(lab, site, log)["log.exported"] != 1:
            raise LabError(f"the log of {site} does not tell that it was exported")
        say(", ".join(f"{count} {event}" for event, count in sorted(found.items())))


def _events(lab: Lab, site: str, log: Path) -> Counter[str]:
    lines = _run(lab, site, "audit", "search", str(log), "--json").splitlines()
    return Counter(json.loads(line)["entry"]["event"] for line in lines)


def _verify(out: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        alone = newcomer.environment(Path(directory) / "alone")
        if not newcomer.has_nothing_of_ours(alone):
            raise LabError("the newcomer's Python has Landbridge, or no cryptography")
        for site in SITES:
            for done in newcomer.verify(out / site, alone):
                say(f"\n{out / site}$ {done.args[-1]}\n{done.stdout.strip()}")
                if done.returncode:
                    raise LabError(f"{out / site} does not verify: {done.stderr.strip()}")
    say(f"\nBoth folders verify: see {out / SITES[0] / 'README.md'} and report.html beside it.")


def _run(lab: Lab, site: str, *argv: str, who: str = "alice", code: int = 0) -> str:
    done = lab.landbridge(site, *argv, who=who, timeout=PATIENCE)
    if done.returncode != code:
        raise LabError(
            f"landbridge {' '.join(argv)} exited with {done.returncode}, not {code}: {done.stderr.strip()[-400:]}"
        )
    return done.stdout


@contextlib.contextmanager
def _lab() -> Iterator[Lab]:
    """A lab of this checkout, which is gone in the end."""
    lab = Lab(name_of("d"))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        kernel.prepare()
        lab.down()
        with step("building two sites"):
            lab.up(LabSettings(wan=FAST))
        yield lab
    except subprocess.TimeoutExpired as error:
        raise LabError(f"a command did not end within {error.timeout:.0f} s") from error
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, signal.SIG_IGN)
        with step("taking it all down"):
            lab.down()


def _interrupt(sign: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
