"""Real guests through gateways with page logs: what is sent once is not sent again, and whatever befalls a log, the guest is whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.story import (
    Guest,
    Json,
    Move,
    assert_holds,
    kill_and_restart,
    moving,
    reconfigure,
    wait_for_site,
)
from tests.lab import Lab, WanSettings
from tests.lab.network import node
from tests.lab.product import GatewaySeat

pytestmark = pytest.mark.lab

# Mbit/s at which the guest's memory, compressed, takes some ten seconds.
SLOW = WanSettings(rate=24, rtt=20)
# So narrow that coding pays also while other tests take the processors.
LINE = WanSettings(rate=60, rtt=20)
MIB = 1 << 20


@pytest.fixture(scope="module")
def with_pages(lab: Lab) -> Iterator[None]:
    """The lab's gateways keep page logs."""
    reconfigure(lab, pages=True)
    yield
    reconfigure(lab)


@pytest.fixture
def paged(guest: Guest, with_pages: None) -> Guest:
    """A guest between gateways whose logs are empty."""
    lab = guest.lab
    lab.product.forget_pages()
    for site in ("east", "west"):
        wait_for_site(lab, site)
    return guest


def moved(guest: Guest, wan: WanSettings = LINE, during: Callable[[Move], None] = lambda _: None) -> Json:
    """The guest's move to its other home; it must arrive whole."""
    with moving(guest, wan) as move:
        during(move)
        ended = move.end(120)
    assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)
    return ended


def of(ended: Json, *fates: str) -> int:
    """Bytes of memory that have become one of these."""
    return sum(s["bytes_stream"] for s in ended["summary"]["savings"] if s["kind"] == "ram" and s["fate"] in fates)


def wan(ended: Json) -> int:
    return int(ended["summary"]["bytes_wan"])


def in_memory_phase(act: Callable[[Move], None]) -> Callable[[Move], None]:
    def during(move: Move) -> None:
        move.in_memory_phase()
        act(move)
        move.lab.set_wan(LINE)

    return during


def test_the_way_back_begins_with_what_the_way_out_has_brought(paged: Guest) -> None:
    out = moved(paged)
    assert wan(out) < out["summary"]["bytes_hypervisor"] / 2
    back = moved(paged)
    assert wan(back) < wan(out) / 3
    assert of(back, "duplicate", "delta") > of(out, "compressed", "incompressible") / 2


@pytest.mark.parametrize("end", ["source", "destination"])
@pytest.mark.timeout(240)
def test_a_gateway_killed_while_it_writes_its_log_is_in_step_again_for_the_next_move(paged: Guest, end: str) -> None:
    def kill(move: Move) -> None:
        kill_and_restart(move.lab, getattr(move, f"{end}_gateway"))

    out = moved(paged, SLOW, in_memory_phase(kill))
    assert of(out, "compressed", "incompressible") > 10 * MIB
    back = moved(paged)
    assert of(back, "duplicate", "delta") > of(back, "compressed", "incompressible")


@pytest.mark.timeout(240)
def test_a_line_that_fails_takes_only_what_was_on_it_out_of_the_log(paged: Guest) -> None:
    def cut(move: Move) -> None:
        move.lab.wan.cut()
        time.sleep(10)
        move.lab.wan.heal()

    moved(paged, SLOW, in_memory_phase(cut))
    back = moved(paged)
    assert of(back, "duplicate", "delta") > of(back, "compressed", "incompressible")


def test_a_log_that_has_rotted_on_the_disk_costs_bytes_and_no_more(paged: Guest) -> None:
    lab = paged.lab
    moved(paged)
    gateway = GatewaySeat(node(paged.host).site, 1)
    lab.product.kill(gateway.label)
    (log,) = lab.product.pages(gateway).glob("*.pages")
    with log.open("r+b") as file:
        for at in range(0, log.stat().st_size, 1 << 20):
            file.seek(at)
            if any(file.read(4096)):  # the rest is a hole
                file.seek(at)
                file.write(b"rotten" * 600)
    lab.product.restart(gateway.label)
    wait_for_site(lab, gateway.site)
    moved(paged)
    moved(paged)
