"""Identities in the lab: what each port speaks, a migration that outlives certificates and a root, and two sites from nothing."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs import store
from tests.integration.story import FAST, GUEST, Guest, assert_holds, moving, reconfigure, wait_for_site
from tests.lab import Lab, LabSettings, WanSettings, processes
from tests.lab.lab import name_of
from tests.lab.network import SITES, node
from tests.lab.product import BIN, OPERATORS, SEATS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

README = Path(__file__).resolve().parents[2] / "README.md"
# Seconds for which certificates live here, and for which an old root still counts.
LIFETIME = 20.0
OVERLAP = "20s"
# Mbit/s at which the guest's memory takes some two minutes.
CRAWL = WanSettings(rate=8, rtt=10)


# What each port speaks

PORTS = [
    *((f"{site}-gw", use) for site in SITES for use in ("operators", "agents", "peers", "tunnel", "enrolment")),
    *((host, use) for host in ("east-1", "west-1") for use in ("control", "stream")),
]


def address_of(where: str, use: str) -> str:
    """As the lab's configuration has it."""
    seat = next((seat for seat in SEATS if seat.label == where), None)
    if seat is not None:
        return str(getattr(seat, use))
    return f"{node(where).lan}:{ {'control': 7443, 'stream': 7444}[use] }"


@pytest.mark.parametrize(("where", "use"), PORTS)
def test_each_port_speaks_tls_1_3_alone_and_asks_for_a_certificate(lab: Lab, where: str, use: str) -> None:
    argv = [*lab.enter(where), "sslscan", "--no-colour", "--xml=-", "--show-client-cas", address_of(where, use)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    test = ET.fromstring(done.stdout).find("ssltest")  # noqa: S314 - of a tool that we have started
    assert test is not None, done.stdout
    protocols = {f"{p.get('type')} {p.get('version')}": p.get("enabled") for p in test.iter("protocol")}
    assert len(protocols) == 6, protocols
    ciphers = {cipher.get("sslversion") for cipher in test.iter("cipher")}
    assert ciphers == {"TLSv1.3"}
    assert {name for name, on in protocols.items() if on == "1"} == {"tls 1.3"}
    said, was_hung_up_on = without_certificate(lab, where, address_of(where, use))
    assert "New, TLSv1.3" in said
    is_for_strangers = use == "enrolment"
    assert ("Requested Signature Algorithms" in said) != is_for_strangers, "of a certificate that is asked for"
    assert was_hung_up_on != is_for_strangers


def without_certificate(lab: Lab, where: str, address: str) -> tuple[str, bool]:
    """What OpenSSL's client says of a handshake without a certificate, and whether the server ends the connection then."""
    argv = [*lab.enter(where), "openssl", "s_client", "-connect", address, "-alpn", "h2"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        try:
            # It goes on for as long as its input and the connection last.
            client.wait(timeout=5)
            was_hung_up_on = True
        except subprocess.TimeoutExpired:
            was_hung_up_on = False
        said, _ = client.communicate(timeout=10)
    return said.decode(errors="replace"), was_hung_up_on


# A migration that outlives certificates and a root


@pytest.fixture
def short_lived(lab: Lab) -> Iterator[Lab]:
    """Everybody's certificates live for some seconds."""
    reconfigure(lab, lifetime=LIFETIME)
    yield lab
    for site in SITES:
        for who in OPERATORS:
            ca, out = lab.product.authority(site), lab.product.identity(site, "operator", who)
            issued = lab.landbridge(
                site, "certs", "issue", "--ca", str(ca), "operator", who, "--out", str(out), "--force"
            )
            assert issued.returncode == 0, issued.stderr
    reconfigure(lab, lifetime=86_400.0)
    reconfigure(lab)


def serials(lab: Lab, *hosts: str) -> dict[str, int]:
    """Of the certificates of gateways and hosts, by their directories."""
    directories = [lab.product.identity(site, "gateway", "gw-1") for site in SITES]
    directories += [lab.product.identity(node(host).site, "host", host) for host in hosts]
    return {str(each): store.load_identity(each, None).certificate.serial_number for each in directories}


def wait_for_renewals(lab: Lab, *hosts: str) -> None:
    """Until all gateways, and these hosts, have other certificates than now."""
    before = set(serials(lab, *hosts).values())
    processes.wait_until(
        lambda: not before & set(serials(lab, *hosts).values()),
        seconds=2 * LIFETIME,
        otherwise="somebody has not renewed",
    )


def test_a_migration_lasts_through_two_renewals_and_a_change_of_root(short_lived: Lab, guest: Guest) -> None:
    lab = short_lived
    with moving(guest, CRAWL) as move:
        move.in_memory_phase()
        hosts = (move.source, move.destination)
        for _ in range(2):
            wait_for_renewals(lab, *hosts)
        site, ca = move.source_site, lab.product.authority(move.source_site)
        old = store.load_authority(ca).certificate
        rotated = lab.landbridge(site, "certs", "rotate", "--ca", str(ca), "--overlap", OVERLAP)
        assert rotated.returncode == 0, rotated.stderr
        new = store.load_authority(ca).certificate
        assert new != old
        here = [lab.product.identity(site, "gateway", "gw-1"), lab.product.identity(site, "host", move.source)]
        there = lab.product.identity(move.destination_site, "gateway", "gw-1")

        def has_changed() -> bool:
            leaves = [store.load_identity(each, None) for each in here]
            believed = [store.load_trust(each) for each in (*here, there)]
            known = [[root for roots in trust.roots.values() for root in roots] for trust in believed]
            return all(each.root == new for each in leaves) and not any(old in roots for roots in known)

        processes.wait_until(has_changed, seconds=60, otherwise="the old root is still believed")
        assert move.states[-1] in {"copying_disks", "copying_memory"}, move.states
        lab.set_wan(FAST)
        ended = move.end(120)
        assert ended["state"] == "completed", ended["reason"]
    assert_holds(move, at=move.destination)


# Two sites from nothing, as the README has it


@pytest.fixture(scope="module")
def strangers() -> Iterator[Lab]:
    """Two sites that do not know each other, and hosts that nobody knows."""
    lab = Lab(name_of("s"))
    lab.down()
    try:
        lab.up(LabSettings(pool_size=96, wan=FAST, strangers=True))
        yield lab
    finally:
        lab.down()


def commands(heading: str) -> list[tuple[str, str]]:
    """The README's commands below a heading: where each is typed, and what."""
    section = README.read_text().split(f"**{heading}")[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    found = re.findall(r"^([a-z0-9-]+)[$#] (.*?)(?: +# .*)?$", block[1], re.MULTILINE)
    assert 0 < len(found) <= 5
    return found


class Typist:
    """Types what the README has, at the places of the lab that stand for its own."""

    def __init__(self, lab: Lab, new_host: str) -> None:
        self._lab = lab
        self._places = {"fra": "east", "ams": "west"}
        self._host = new_host
        self._words = {
            "fra": "east",
            "ams": "west",
            "192.0.2.1:7443": SEATS[0].peers,
            "198.51.100.1:7443": SEATS[1].peers,
            "host-b": new_host,
        }
        if new_host.startswith("west"):
            self._places["fra"] = "west"
        self._said = ""

    def type(self, place: str, command: str) -> str:
        """Run one command, answer its question with yes, and return what it says."""
        token = re.search(r"lb1\.\S+", self._said)
        words = [self._words.get(word, word) for word in command.split()]
        if "TOKEN" in words:
            assert token is not None, self._said
            words[words.index("TOKEN")] = token[0]
        if place == "host-b" and words[0] == "systemctl":
            assert words == ["systemctl", "enable", "--now", "landbridge-agent"]
            # The lab's guests have kernels and consoles of their own, which a host must grant.
            append = [*self._lab.enter(self._host), "tee", "-a", "/etc/landbridge/agent.toml"]
            subprocess.run(append, input=self._lab.product.firewall(), text=True, check=True, stdout=subprocess.DEVNULL)
            # What the unit in docs/systemd starts.
            argv = [str(BIN / "landbridge-agent"), "--config", "/etc/landbridge/agent.toml"]
            self._lab.popen(self._host, argv, label=f"landbridge-{self._host}")
            return ""
        if place == "host-b":
            argv, environment = [*self._lab.enter(self._host), str(BIN / words[0]), *words[1:]], dict(os.environ)
        else:
            site = self._places[place]
            argv = [*self._lab.enter(f"{site}-gw"), *words]
            environment = self._lab.product.operator_environment(site)
        code, self._said = on_terminal(argv, environment)
        assert code == 0, self._said
        return self._said


def on_terminal(argv: list[str], environment: dict[str, str], seconds: float = 60.0) -> tuple[int, str]:
    """Run a program on a terminal, where a question is answered with yes; its exit code, and what it showed."""
    ours, theirs = pty.openpty()
    environment = {**environment, "COLUMNS": "400", "TERM": "dumb"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as program:
        os.close(theirs)
        said, deadline = b"", time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.5)[0]:
                try:
                    piece = os.read(ours, 4096)
                except OSError:  # EIO: nobody has the other end any more
                    break
                said += piece
                if b"[y/N]" in piece:
                    os.write(ours, b"y\n")
        os.close(ours)
        code = program.wait(timeout=10)
    return code, said.decode().replace("\r\n", "\n")


def add(lab: Lab, host: str) -> None:
    """Add a host as the README says, and wait until the last command shows that it answers."""
    typist = Typist(lab, host)
    *typed, (place, last) = commands("Add a host.")
    for each in typed:
        typist.type(*each)

    def answers() -> bool:
        lines = [line for line in typist.type(place, last).splitlines() if host in line]
        return bool(lines) and "unreachable" not in lines[0]

    processes.wait_until(answers, seconds=30, otherwise=f"{host} does not answer")


def test_two_sites_join_and_hosts_come_as_the_readme_says_and_a_vm_moves(strangers: Lab) -> None:
    lab = strangers
    typist = Typist(lab, "east-1")
    shown = [typist.type(place, command) for place, command in commands("Join two sites.")]
    fingerprints = [set(re.findall(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}", said)) for said in shown[:2]]
    assert len(fingerprints[0]) == 2
    assert fingerprints[0] == fingerprints[1], "both see the same two lines"
    for site in SITES:
        wait_for_site(lab, site)
    for host in ("east-1", "west-1"):
        add(lab, host)
    lab.guests.start("web", "east-1", GUEST)
    moved = lab.landbridge("east", "migrate", "web", "--to", "west")
    assert moved.returncode == 0, moved.stderr
    assert "web has moved from east/east-1 to west/west-1." in moved.stdout
    status = lab.landbridge("east", "certs", "status")
    assert all(who in status.stdout for who in ("root", "issuer/gw-1", "gateway/gw-1", "host/east-1", "operator/alice"))
    part(lab)


def part(lab: Lab) -> None:
    """The sites and the host of the VM's source go again, and the VM runs on where it is."""
    refused = lab.landbridge("west", "hosts", "remove", "west-1")
    assert (refused.returncode, "host west-1 has the VM web: move them away" in refused.stderr) == (4, True)

    def leaves() -> bool:
        left = lab.landbridge("east", "sites", "leave", "west")
        assert left.returncode == 0 or "its receipt, in which site " in left.stderr, left.stderr
        return left.stdout == "Left west: nobody there is believed here any more.\n"

    processes.wait_until(leaves, seconds=60, otherwise="the sites do not part")
    for here, there in (("east", "west"), ("west", "east")):
        listed = lab.landbridge(here, "sites").stdout
        assert (here in listed, there in listed) == (True, False), listed
    removed = lab.landbridge("east", "hosts", "remove", "east-1")
    assert removed.returncode == 0, removed.stderr
    assert "Not settled, so that its disks still hold what was moved away: " in removed.stdout
    assert "east-1" not in lab.landbridge("east", "hosts").stdout
    assert "running" in next(line for line in lab.landbridge("west", "vms").stdout.splitlines() if "web" in line)
