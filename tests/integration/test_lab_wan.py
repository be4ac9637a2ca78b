"""The lab's WAN does what it is told: to the line, and to single connections while the others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Lab, WanSettings
from tests.lab.lab import name_of
from tests.lab.network import WAN_ADDRESS
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")]

LINE = WanSettings(rate=40, rtt=20)
# What a stalled connection may get, bytes a second, and at once when it begins.
TRICKLE, FIRST = 2048, 4096
MIB = 1 << 20
WAYS = ("a_to_b", "b_to_a")

# Takes connections and datagrams on one port; answers each line on standard input with the bytes that came from each port.
RECEIVER = """
import json, socket, sys, threading
stream, datagrams, got = socket.create_server((sys.argv[1], 0)), socket.socket(type=socket.SOCK_DGRAM), {}
datagrams.bind(stream.getsockname())
def take(receive, port):
    while data := receive(65536):
        got[port] = got.get(port, 0) + len(data)
def accept():
    while True:
        link, (_, port) = stream.accept()
        threading.Thread(target=take, args=(link.recv, port), daemon=True).start()
for work in (accept, lambda: take(datagrams.recv, "datagrams")):
    threading.Thread(target=work, daemon=True).start()
print(stream.getsockname()[1], flush=True)
for _ in sys.stdin:
    print(json.dumps(dict(got)), flush=True)
"""
# Opens three connections and sends on each whatever it takes; says from which ports. Reno, since BBR remembers the rate of
# a stalled connection, and goes on at it for minutes after the fault is over.
SENDER = """
import json, socket, sys, threading
links = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(3)]
for link in links:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
print(json.dumps([link.getsockname()[1] for link in links]), flush=True)
def send(link):
    while True:
        link.sendall(bytes(16384))
for link in links:
    threading.Thread(target=send, args=(link,), daemon=True).start()
sys.stdin.read()
"""
# How long a connection takes to be made, in milliseconds: the best of three.
ROUND_TRIP = """
import socket, sys, time
def connect():
    began = time.monotonic()
    socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
    return time.monotonic() - began
print(min(connect() for _ in range(3)) * 1000)
"""
DATAGRAMS = """
import socket, sys, time
out = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(1000):
    out.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    time.sleep(0.0005)
"""


class Receiver:
    """What has come out of the line at the west."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(_line(process))

    def got(self) -> dict[str, int]:
        """Bytes by the port of the sender."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        got: dict[str, int] = json.loads(_line(self._process))
        return got

    def wait_for(self, amount: int, *ports: int, seconds: float = 40.0) -> dict[int, int]:
        """Wait until each of these connections has brought so many bytes more; returns what every connection has brought."""
        before = self.got()

        def came() -> bool:
            now = self.got()
            return all(now.get(str(p), 0) >= before.get(str(p), 0) + amount for p in ports)

        wait_until(came, seconds=seconds, otherwise=f"{ports} did not all bring {amount} bytes more than {before}")
        return {int(port): total for port, total in self.got().items() if port.isdecimal()}

    def rate(self) -> float:
        """Mbit/s over two MiB."""
        began, before = time.monotonic(), sum(self.got().values())
        wait_until(
            lambda: sum(self.got().values()) >= before + 2 * MIB, seconds=40, otherwise="two MiB did not come in 40 s"
        )
        return (sum(self.got().values()) - before) * 8e-6 / (time.monotonic() - began)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def program(lab: Lab, node: str, source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A small program on a node, for as long as the context is open."""
    argv = [*lab.enter(node), sys.executable, "-c", source, *map(str, arguments)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """A lab without the product."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    lab = Lab(name_of("w"))
    lab.down()  # what a killed run has left
    try:
        lab.up(product=False)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def receiver(bare: Lab) -> Iterator[Receiver]:
    """A receiver at the west's gateway, and the line as in LINE."""
    bare.wan.unblock()
    bare.set_wan(LINE)
    with program(bare, "west-gw", RECEIVER, WAN_ADDRESS["west"]) as process:
        yield Receiver(process)


@pytest.fixture
def links(bare: Lab, receiver: Receiver) -> Iterator[list[int]]:
    """Three connections from east to west under full load, by their ports at the east."""
    with program(bare, "east-gw", SENDER, WAN_ADDRESS["west"], receiver.port) as process:
        ports = json.loads(_line(process))
        receiver.wait_for(MIB // 4, *ports)
        yield ports


def test_one_of_three_connections_is_blocked_and_goes_on_when_it_is_unblocked(
    bare: Lab, receiver: Receiver, links: list[int]
) -> None:
    victim, *others = links
    bare.wan.block(victim)
    before = receiver.wait_for(MIB, *others)  # what was on the line before has come
    after = receiver.wait_for(MIB, *others)
    assert after[victim] == before[victim]
    assert bare.wan.show()["blocked"] == [victim]
    assert bare.wan.show()["a_to_b"]["dropped_fault"] > 0
    bare.wan.unblock(victim)
    receiver.wait_for(MIB // 4, *links)


def test_two_of_three_connections_have_faults_at_once_and_unblock_ends_them_all(
    bare: Lab, receiver: Receiver, links: list[int]
) -> None:
    blocked, stalled, free = links
    bare.wan.block(blocked)
    bare.wan.stall(stalled)
    before = receiver.wait_for(MIB, free)
    after = receiver.wait_for(MIB, free)
    assert after[blocked] == before[blocked]
    assert {p: f.fault for f in bare.wan.flows(receiver.port) for p in links if f.ports["east"] == p} == {
        blocked: "blocked",
        stalled: "stalled",
        free: "",
    }
    bare.wan.unblock()
    receiver.wait_for(MIB // 4, *links)


def test_a_stalled_connection_trickles_while_the_others_go_on(bare: Lab, receiver: Receiver, links: list[int]) -> None:
    victim, *others = links
    bare.wan.stall(victim)
    before, line, began = receiver.wait_for(MIB, *others), _sent(bare, victim), time.monotonic()
    # Counted on the line: what came before the fault but out of order is handed out when a packet of the trickle comes.
    wait_until(lambda: _sent(bare, victim) >= line + 2 * FIRST, seconds=60, otherwise="nothing trickles")
    trickled, seconds = _sent(bare, victim) - line, time.monotonic() - began
    after = receiver.wait_for(0)
    assert trickled <= TRICKLE * seconds + FIRST
    assert after[victim] > before[victim]
    assert all(after[other] - before[other] > 10 * trickled for other in others)
    bare.wan.unblock()
    receiver.wait_for(MIB // 4, *links)


def _sent(lab: Lab, port: int) -> int:
    return next(flow.sent["east"] for flow in lab.wan.flows() if flow.ports["east"] == port)


def test_the_connections_are_listed_busiest_first_with_what_each_side_has_sent(
    bare: Lab, receiver: Receiver, links: list[int]
) -> None:
    bare.wan.block(links[0])
    receiver.wait_for(4 * MIB, *links[1:])
    flows, got = bare.wan.flows(receiver.port), receiver.wait_for(0)
    assert {flow.ports["east"] for flow in flows} == set(links)
    assert flows[-1].ports["east"] == links[0]
    assert all(flow.dialled_from("east", receiver.port) for flow in flows)
    assert not any(flow.dialled_from("west", receiver.port) for flow in flows)
    for flow in flows:
        # Its payload has come by now; headers and what was sent again come on top, and its acknowledgements are small.
        assert flow.sent["east"] <= got[flow.ports["east"]] * 1.3 + MIB
        assert flow.sent["west"] < flow.sent["east"] / 5
    assert sum(flow.carried for flow in flows) <= bare.wan.bytes_carried()


def test_bytes_that_a_block_drops_are_not_carried(bare: Lab, receiver: Receiver, links: list[int]) -> None:
    bare.wan.block(*links)
    _wait_for_silence(bare)
    before, dropped = bare.wan.bytes_carried(), bare.wan.show()["a_to_b"]["dropped_fault"]
    wait_until(
        lambda: bare.wan.show()["a_to_b"]["dropped_fault"] > dropped, seconds=40, otherwise="nothing was sent again"
    )
    assert bare.wan.bytes_carried() == before


def _wait_for_silence(lab: Lab) -> None:
    """Wait until what was on the line has come out of it, so that nobody answers any more."""

    def silent() -> bool:
        before = lab.wan.show()
        time.sleep(0.2)
        return all(lab.wan.show()[way]["delivered_packets"] == before[way]["delivered_packets"] for way in WAYS)

    wait_until(silent, seconds=20, otherwise="the line does not fall silent")


def test_a_step_of_the_rate_is_seen(bare: Lab, receiver: Receiver, links: list[int]) -> None:
    assert receiver.rate() > 20
    bare.set_wan(WanSettings(rate=8, rtt=20))
    receiver.wait_for(MIB // 8, *links)  # what had queued at the old rate has come
    assert receiver.rate() < 10


def test_a_step_of_the_round_trip_is_seen(bare: Lab, receiver: Receiver) -> None:
    assert 20 <= _round_trip(bare, receiver) < 100
    bare.set_wan(WanSettings(rate=40, rtt=200))
    assert 200 <= _round_trip(bare, receiver) < 300


def _round_trip(lab: Lab, receiver: Receiver) -> float:
    with program(lab, "east-gw", ROUND_TRIP, WAN_ADDRESS["west"], receiver.port) as process:
        return float(_line(process))


def test_a_step_of_the_loss_is_seen(bare: Lab, receiver: Receiver) -> None:
    bare.wan.block(receiver.port)  # of TCP connections only
    assert _datagrams(bare, receiver, at_least=1000) == 1000
    bare.set_wan(WanSettings(rate=40, rtt=20, loss=20))
    assert 700 <= _datagrams(bare, receiver, at_least=700) <= 900


def _datagrams(lab: Lab, receiver: Receiver, *, at_least: int) -> int:
    """How many of a thousand come."""
    before = receiver.got().get("datagrams", 0)

    def came() -> int:
        return receiver.got().get("datagrams", 0) - before

    with program(lab, "east-gw", DATAGRAMS, WAN_ADDRESS["west"], receiver.port) as process:
        assert process.wait() == 0
    _wait_for_silence(lab)
    wait_until(lambda: came() >= at_least, seconds=10, otherwise=f"{came()} of 1000 datagrams came")
    return came()
