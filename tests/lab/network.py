"""Namespaces, LANs and the WAN: made with iproute2, taken down by name.

Each gateway's namespace has a bridge for its LAN; each host's namespace is plugged into it. Nothing forwards between LAN
and WAN, unless the lab is built with `direct_lan`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.settings import LabError, WanSettings

NETNS = Path("/run/netns")


@dataclass(frozen=True)
class Node:
    """A machine of the lab, or what stands for one: a gateway's namespace, or a host's."""

    name: str
    site: str
    lan: str
    is_gateway: bool


SITES = ("east", "west")
NODES = tuple(
    Node(f"{site}-{suffix}", site, f"10.71.{number}.{last}", suffix == "gw")
    for number, site in enumerate(SITES, 1)
    for suffix, last in (("gw", 1), ("1", 11), ("2", 12))
)
WAN_ADDRESS = {"east": "10.71.0.1", "west": "10.71.0.2"}


def node(name: str) -> Node:
    """A node by name. Raises LabError."""
    for candidate in NODES:
        if candidate.name == name:
            return candidate
    raise LabError(f"there is no node {name!r}: the lab has {', '.join(n.name for n in NODES)}")


def lan_of(site: str) -> str:
    """The network of a site's LAN."""
    return f"{node(f'{site}-gw').lan.rsplit('.', 1)[0]}.0/24"


def run(*argv: str, check: bool = True) -> str:
    """Run a tool of the system; what it says on failure is the error."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Network:
    """The namespaces of one lab."""

    def __init__(self, lab: str) -> None:
        self._lab = lab

    def namespace(self, name: str) -> str:
        """The name of a node's network namespace."""
        return f"lb-{self._lab}-{name}"

    def path(self, name: str) -> Path:
        """Where a node's network namespace is bound."""
        return NETNS / self.namespace(name)

    def paths(self) -> list[Path]:
        """All of them, whether they exist or not."""
        return [self.path(n.name) for n in NODES]

    def up(self, *, direct_lan: bool) -> None:
        """Make namespaces and LANs."""
        for site in SITES:
            gateway = self.namespace(f"{site}-gw")
            run("ip", "netns", "add", gateway)
            run("ip", "-n", gateway, "link", "set", "lo", "up")
            run("ip", "-n", gateway, "link", "add", "lan", "type", "bridge")
            run("ip", "-n", gateway, "addr", "add", f"{node(f'{site}-gw').lan}/24", "dev", "lan")
            run("ip", "-n", gateway, "link", "set", "lan", "up")
            run("ip", "netns", "exec", gateway, "sysctl", "-qw", f"net.ipv4.ip_forward={int(direct_lan)}")
            for host in (n for n in NODES if n.site == site and not n.is_gateway):
                self._plug_in(host, gateway, direct_lan=direct_lan)

    def _plug_in(self, host: Node, gateway: str, *, direct_lan: bool) -> None:
        space = self.namespace(host.name)
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        run(
            "ip",
            "-n",
            gateway,
            "link",
            "add",
            host.name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space,
        )
        run("ip", "-n", gateway, "link", "set", host.name, "master", "lan", "up")
        run("ip", "-n", space, "addr", "add", f"{host.lan}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        # Where the guests' interfaces are attached; it leads nowhere.
        run("ip", "-n", space, "link", "add", "guests", "type", "bridge")
        run("ip", "-n", space, "link", "set", "guests", "up")
        if direct_lan:
            # To the other LAN only: with a default route, libvirt's look-ups of host names wait for a name server in vain.
            other = next(site for site in SITES if site != host.site)
            run("ip", "-n", space, "route", "add", lan_of(other), "via", node(f"{host.site}-gw").lan)

    def connect_wan(self, *, direct_lan: bool) -> None:
        """Give the WAN's two devices, which its program has made, their addresses."""
        for site, other in (SITES, SITES[::-1]):
            gateway = self.namespace(f"{site}-gw")
            run(
                "ip",
                "-n",
                gateway,
                "addr",
                "add",
                WAN_ADDRESS[site],
                "peer",
                WAN_ADDRESS[other],
                "dev",
                "wan",
            )
            run("ip", "-n", gateway, "link", "set", "wan", "up", "mtu", "1500", "txqueuelen", "500")
            if direct_lan:
                run("ip", "-n", gateway, "route", "add", lan_of(other), "dev", "wan")

    def down(self) -> None:
        """Remove what is there."""
        for path in self.paths():
            if path.exists():
                run("ip", "netns", "del", path.name)


@dataclass(frozen=True)
class Flow:
    """A TCP connection on the WAN: its port at each site, and the bytes of its IP packets that each site has sent."""

    ports: dict[str, int]
    sent: dict[str, int]
    # Seconds since its last packet, dropped ones too.
    idle: float
    # "", "stalled" or "blocked".
    fault: str

    @property
    def carried(self) -> int:
        """Bytes both ways."""
        return sum(self.sent.values())

    def dialled_from(self, site: str, port: int) -> bool:
        """Whether a site dialled it, to this port at the other one."""
        return self.ports[site] != port and port in self.ports.values()


class Wan:
    """The line between the sites, by its program's control socket."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def set(self, settings: WanSettings) -> None:
        """Change the line while traffic flows."""
        queue = settings.queue * 1024 or max(64 << 10, int(settings.rate * 125_000 * 0.05)) if settings.rate else 0
        self._say(
            f"set rate={settings.rate * 1e6:.0f} delay={settings.rtt * 5e5:.0f} loss={settings.loss / 100} queue={queue}"
        )

    def cut(self) -> None:
        """Drop everything from now on."""
        self._say("cut")

    def heal(self) -> None:
        """Undo `cut`."""
        self._say("heal")

    def block(self, *ports: int) -> None:
        """Drop every packet of the TCP connections that have one of these ports at either end."""
        self._say(f"block {_words(ports)}")

    def stall(self, *ports: int) -> None:
        """Let through a trickle, about 2 KiB/s each way, of each of the TCP connections that have one of these ports."""
        self._say(f"stall {_words(ports)}")

    def unblock(self, *ports: int) -> None:
        """Undo `block` and `stall` for these ports, or for all."""
        self._say(f"unblock {_words(ports)}")

    def flows(self, port: int | None = None, *, within: float = 10.0) -> list[Flow]:
        """The TCP connections (those that have this port at either end) with a packet in the last seconds, busiest first."""
        flows = [
            Flow(
                ports={"east": said["a_port"], "west": said["b_port"]},
                sent={"east": said["a_to_b"], "west": said["b_to_a"]},
                idle=said["idle"],
                fault=said["fault"],
            )
            for said in self._say("flows")
            if said["idle"] <= within and port in {None, said["a_port"], said["b_port"]}
        ]
        return sorted(flows, key=lambda flow: flow.carried, reverse=True)

    def dialled(self, site: str, port: int) -> dict[int, Flow]:
        """The connections that a site has dialled to this port at the other one, by their ports at the site."""
        return {flow.ports[site]: flow for flow in self.flows(port) if flow.dialled_from(site, port)}

    def busiest(self, site: str, port: int) -> int:
        """Of these, the one that carries most just now; it takes a second to see."""
        before = self.dialled(site, port)
        time.sleep(1)
        after = self.dialled(site, port)
        if not (both := before.keys() & after.keys()):
            raise LabError(f"site {site} has no connection to port {port} of the other site")
        return max(both, key=lambda own: after[own].carried - before[own].carried)

    def show(self) -> dict[str, Any]:
        """Settings and counters, as the program tells them: rate in bit/s, delay in ns each way, loss as a share."""
        shown: dict[str, Any] = self._say("show")
        return shown

    def bytes_carried(self) -> int:
        """Bytes of IP packets put on the line since it is up, both directions."""
        shown = self.show()
        return int(shown["a_to_b"]["bytes"] + shown["b_to_a"]["bytes"])

    def _say(self, line: str) -> Any:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
                control.settimeout(5.0)
                control.connect(str(self._control))
                control.send(line.encode())
                return json.loads(control.recv(1 << 16))
        except OSError as error:
            raise LabError(f"the WAN does not answer ({error}): is the lab up? python -m tests.lab up") from error


def _words(ports: tuple[int, ...]) -> str:
    return " ".join(map(str, ports))
