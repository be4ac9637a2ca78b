"""The network fails in mid-transfer, in the disk phase and in the memory phase: TABLE says how, and what must hold.

A row whose migration goes on has its fault in both phases of one move, one after the other; a row whose migration ends has
a move for each phase. Whether the guest is whole is the guest's own verdict; how fast it went is for the benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from tests.integration.story import (
    FAST,
    GUEST,
    LONG,
    RESTART_AFTER,
    SHORT_LIMIT,
    Guest,
    Move,
    assert_can_move_again,
    assert_ended,
    assert_holds,
    assert_nothing_left,
    assert_sound,
    kill_and_restart,
    moving,
    reconfigure,
    wait_for_site,
    with_short_limit,
)
from tests.lab import Lab, LabError, WanSettings, processes
from tests.lab.network import node
from tests.lab.product import GatewaySeat

pytestmark = pytest.mark.lab

Phase = Literal["disk", "memory"]
End = Literal["source", "destination"]

# Mbit/s at which the guest's disk (9 MB on the wire) takes about nine seconds, its memory (110 MB) about fifteen.
SLOW: dict[Phase, WanSettings] = {"disk": WanSettings(rate=8, rtt=10), "memory": WanSettings(rate=60, rtt=10)}
COPYING = {"disk": "copying_disks", "memory": "copying_memory"}
# Seconds of one step of loss or round trip: several in a phase, each longer than a few round trips.
STEP = 1.5
# Links of a tunnel, as the product has it.
LINKS = 4
# Bytes that an agent keeps until they are acknowledged: the most that one fault may cause to be sent again.
WINDOW = 32 << 20
# Bytes on the line by the bytes of the streams: headers of IP, TCP, TLS and frames, acknowledgements, heartbeats.
OVERHEAD = 1.08
# What the hostile gateway logs.
FLIPPED = "hostile.flipped"


@dataclass(frozen=True)
class Trial:
    """One move to which a fault happens."""

    move: Move
    # What the WAN had carried before the move.
    carried: int

    @property
    def lab(self) -> Lab:
        """The lab."""
        return self.move.lab

    def gateway(self, end: End, number: int = 1) -> str:
        """The label of a gateway at one end of the move."""
        return GatewaySeat(getattr(self.move, f"{end}_site"), number).label


Fault = Callable[[Trial, Phase], None]
Outcome = Callable[[Trial], None]
Arrangement = Callable[[Guest], AbstractContextManager[None]]


# What goes wrong. Each fault is called in mid-phase; it returns when it is over, or when it has begun to stay.


def cut(seconds: float) -> Fault:
    """Nothing passes for so long."""

    def fault(trial: Trial, phase: Phase) -> None:
        trial.lab.wan.cut()
        time.sleep(seconds)
        trial.lab.wan.heal()

    return fault


def cut_thrice(trial: Trial, phase: Phase) -> None:
    """Nothing passes for 10 s: once in the disk phase, twice in the memory phase."""
    cut(10)(trial, phase)
    if phase == "memory":
        time.sleep(2)
        cut(10)(trial, phase)


def cut_for_good(trial: Trial, phase: Phase) -> None:
    """Nothing passes any more."""
    trial.lab.wan.cut()


def stepped(*steps: WanSettings) -> Fault:
    """The line becomes like this, then like that, at the phase's rate; it stays as in the last step until the phase's end."""

    def fault(trial: Trial, phase: Phase) -> None:
        for step in steps:
            trial.lab.set_wan(replace(step, rate=SLOW[phase].rate))
            time.sleep(STEP)
        assert trial.move.last["state"] == COPYING[phase], "the phase ended before the last step"

    return fault


def killed_and_restarted(end: End) -> Fault:
    """A gateway is killed, and a service manager starts it again."""

    def fault(trial: Trial, phase: Phase) -> None:
        kill_and_restart(trial.lab, trial.gateway(end))

    return fault


def killed_for_good(end: End) -> Fault:
    """In the disk phase, the first gateway is killed; in the memory phase it comes back, and the second one is killed."""

    def fault(trial: Trial, phase: Phase) -> None:
        first, second = trial.gateway(end), trial.gateway(end, 2)
        if phase == "disk":
            trial.lab.product.kill(first)
        else:
            trial.lab.product.restart(first)
            time.sleep(RESTART_AFTER)
            trial.lab.product.kill(second)

    return fault


def stopped(seconds: float) -> Fault:
    """A gateway's process stands still for so long: the source's in the disk phase, the destination's in the memory phase."""

    def fault(trial: Trial, phase: Phase) -> None:
        gateway = trial.gateway("source" if phase == "disk" else "destination")
        trial.lab.product.kill(gateway, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            trial.lab.product.kill(gateway, signal.SIGCONT)

    return fault


def blackholed(trial: Trial, phase: Phase) -> None:
    """Nothing passes any more on the link of the tunnel that carries most."""
    trial.lab.wan.block(_busiest_link(trial))


def stalled(trial: Trial, phase: Phase) -> None:
    """A trickle passes on the link of the tunnel that carries most."""
    trial.lab.wan.stall(_busiest_link(trial))


def _busiest_link(trial: Trial) -> int:
    """The port at the source's end of the link that carries most just now."""
    source, tunnel = trial.move.source_site, GatewaySeat(trial.move.destination_site, 1).tunnel_port
    links = trial.lab.wan.dialled(source, tunnel)
    assert len(links) >= LINKS, f"the tunnel has {len(links)} links"
    return trial.lab.wan.busiest(source, tunnel)


def flipped(trial: Trial, phase: Phase) -> None:
    """The hostile gateway flips its byte, in the phase in which there are such bytes."""
    gateway = trial.gateway("source")
    processes.wait_until(
        lambda: FLIPPED in trial.lab.product.said(gateway), seconds=LONG, otherwise="the gateway altered nothing"
    )


# What must hold.


def completes(trial: Trial) -> None:
    """The guest is at the destination, whole."""
    ended = trial.move.end()
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(trial.move, at=trial.move.destination)


def completes_and_sends_little_again(trial: Trial) -> None:
    """The same, and what was sent again is at most one window for each phase, the disk being smaller than a window."""
    ended = trial.move.end()
    carried = trial.lab.wan.bytes_carried() - trial.carried
    assert ended["state"] == "completed", ended["reason"]
    streams = ended["summary"]["bytes_hypervisor"]
    again = carried - streams * OVERHEAD
    assert again <= WINDOW + (GUEST.disk << 20), f"{streams} bytes of the hypervisor took {carried} on the WAN"
    assert_holds(trial.move, at=trial.move.destination)


def fails_as_altered(channel: str) -> Outcome:
    """The guest goes on at the source, and the operator is told which bytes of which channel arrived altered."""

    def holds(trial: Trial) -> None:
        trial.move.end()
        log = trial.lab.product.said(trial.gateway("source"))
        ended = assert_ended(trial.move, "failed", cause=rf"bytes [\d,]+ to [\d,]+ of the {channel}\b.* altered")
        _assert_position_is_named(str(ended["reason"]), log)
        assert_holds(trial.move, at=trial.move.source)
        assert_can_move_again(trial.move.guest)

    return holds


def _assert_position_is_named(reason: str, log: str) -> None:
    first, last = (int(number.replace(",", "")) for number in re.findall(r"bytes ([\d,]+) to ([\d,]+)", reason)[0])
    (altered,) = (line for line in log.splitlines() if FLIPPED in line)
    position = json.loads(altered)["position"]
    assert first <= position <= last, f"byte {position} was altered, and the record says: {reason}"


def ends_cleanly(trial: Trial) -> None:
    """While the sites are still apart: failed, the guest goes on at the source, nothing is left at the destination."""
    move = trial.move
    move.end(SHORT_LIMIT + LONG)
    assert_ended(move, "failed", cause=rf"\b{SHORT_LIMIT:.0f} s\b|limit")
    assert move.guest.host == move.source
    assert_nothing_left(move.guest, move.id, move.destination, seconds=LONG)
    assert_sound(move.guest)
    trial.lab.wan.heal()
    wait_for_site(trial.lab, move.source_site)
    assert_holds(move, at=move.source)
    assert_can_move_again(move.guest)


# In which lab.


def ordinary(guest: Guest) -> AbstractContextManager[None]:
    """One gateway at each site."""
    return nullcontext()


@contextlib.contextmanager
def with_standby(guest: Guest) -> Iterator[None]:
    """Two gateways at each site."""
    reconfigure(guest.lab, standby=True)
    try:
        yield
    finally:
        reconfigure(guest.lab)


def with_hostile_gateway(kind: Literal["ram", "disk"]) -> Arrangement:
    """The gateway at the source is one that flips a byte of such a channel."""

    @contextlib.contextmanager
    def arranged(guest: Guest) -> Iterator[None]:
        product, site = guest.lab.product, node(guest.host).site
        gateway = GatewaySeat(site, 1).label
        product.kill(gateway)
        try:
            product.launch_gateway(site, hostile=kind)
            product.wait_ready(gateway)
            wait_for_site(guest.lab, site)
            yield
        finally:
            with contextlib.suppress(LabError):  # it may have ended by itself
                product.kill(gateway)
            product.restart(gateway)
            wait_for_site(guest.lab, site)

    return arranged


@dataclass(frozen=True)
class Row:
    """A fault, the phases of one move in which it happens, and what must hold."""

    name: str
    phases: tuple[Phase, ...]
    fault: Fault
    must_hold: Outcome
    # How long the row takes, when all is well: for the limit, and for whoever adds one.
    seconds: int
    lab: Arrangement = ordinary

    def __str__(self) -> str:
        return f"{self.name}, in the {' and the '.join(self.phases)} phase"


BOTH: tuple[Phase, ...] = ("disk", "memory")
DISK: tuple[Phase, ...] = ("disk",)
MEMORY: tuple[Phase, ...] = ("memory",)

LOSS = stepped(*(WanSettings(rtt=10, loss=percent) for percent in (0.5, 1, 2, 5)))
ROUND_TRIP = stepped(*(WanSettings(rtt=ms) for ms in (20, 50, 100, 200)))

# Together about 13 minutes, of which four are the 60 s, 40 s and 10 s that the faults themselves last.
TABLE = (
    Row("WAN cut for 60 s", BOTH, cut(60), completes_and_sends_little_again, 150),
    Row("WAN cut three times for 10 s", BOTH, cut_thrice, completes, 60),
    Row("loss stepped from 0 to 5 %", BOTH, LOSS, completes, 25),
    Row("RTT stepped from 20 to 200 ms", BOTH, ROUND_TRIP, completes, 25),
    Row("source gateway killed and restarted", BOTH, killed_and_restarted("source"), completes, 35),
    Row("destination gateway killed and restarted", BOTH, killed_and_restarted("destination"), completes, 35),
    Row("source gateway killed for good", BOTH, killed_for_good("source"), completes, 50, with_standby),
    Row("destination gateway killed for good", BOTH, killed_for_good("destination"), completes, 50, with_standby),
    Row("gateway stopped for 40 s", BOTH, stopped(40), completes, 110),
    Row("one of 4 links blackholed", BOTH, blackholed, completes, 30),
    Row("one of 4 links stalled", BOTH, stalled, completes, 30),
    Row("byte of disk flipped", DISK, flipped, fails_as_altered("disk"), 20, with_hostile_gateway("disk")),
    Row("byte of ram flipped", MEMORY, flipped, fails_as_altered("ram"), 25, with_hostile_gateway("ram")),
    Row("outage longer than the limit", DISK, cut_for_good, ends_cleanly, 55, with_short_limit),
    Row("outage longer than the limit", MEMORY, cut_for_good, ends_cleanly, 60, with_short_limit),
)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=pytest.mark.timeout(60 + 2 * row.seconds)) for row in TABLE], ids=str
)
def test_the_migration_outlives_it_or_ends_with_the_vm_at_the_source(guest: Guest, row: Row) -> None:
    with row.lab(guest):
        carried = guest.lab.wan.bytes_carried()
        with moving(guest, SLOW[row.phases[0]]) as move:
            trial = Trial(move, carried)
            for phase in row.phases:
                guest.lab.set_wan(SLOW[phase])
                (move.in_disk_phase if phase == "disk" else move.in_memory_phase)()
                row.fault(trial, phase)
            guest.lab.set_wan(FAST)
            row.must_hold(trial)
