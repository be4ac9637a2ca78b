"""The product in the lab: certificates, an agent on each host, a gateway at each site's edge; made as a user would."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from certs.authority import create, issue, make_issuer
from certs.identity import Identity, Role, Site
from certs.store import (
    add_trust,
    load_authority,
    load_issuers,
    load_trust,
    renew_identity,
    save_authority,
    save_identity,
    save_issuer,
    save_trust,
)
from tests.lab import processes
from tests.lab.hosts import HostNode
from tests.lab.network import NODES, SITES, WAN_ADDRESS, Network, node
from tests.lab.settings import SOURCE_DIRECTORY, LabError

BIN = Path(sys.executable).parent
TRUST_DOMAIN = "landbridge.test"
# The privileges that docs/systemd leaves to an agent; and to a gateway, but for one by which it may use BBR without the sysctl there.
AGENT_CAPABILITIES = "-all,+chown,+dac_override,+fowner"
GATEWAY_CAPABILITIES = "-all,+net_admin"
# Operators of each site, and what the policies make of them.
OPERATORS = {"alice": ("operator", "admin"), "carol": ("approver",), "dave": ("approver",), "adam": ("auditor",)}
# Bytes of a channel that a hostile gateway leaves as they are: some, and not all of a small guest's.
FLIPPED_FROM = {"ram": 30 << 20, "disk": 3 << 20}


def with_capabilities(which: str) -> list[str]:
    """The words before a command that leave it no other privileges, as root."""
    return ["setpriv", f"--bounding-set={which}", "--inh-caps=-all", "--no-new-privs", "--"]


@dataclass(frozen=True)
class GatewaySeat:
    """A place for a gateway: the first of a site, or the second, which stands by on the same node on other ports."""

    site: str
    number: int

    @property
    def label(self) -> str:
        """What it is called in the lab: east-gw, east-gw-2."""
        return f"{self.site}-gw" if self.number == 1 else f"{self.site}-gw-{self.number}"

    @property
    def name(self) -> str:
        """What it is called in its certificate."""
        return f"gw-{self.number}"

    @property
    def operators(self) -> str:
        """Where operators reach it."""
        return f"{node(f'{self.site}-gw').lan}:{self._port(7443)}"

    @property
    def agents(self) -> str:
        """Where its site's agents reach it with channels."""
        return f"{node(f'{self.site}-gw').lan}:{self._port(7444)}"

    @property
    def peers(self) -> str:
        """Where other sites' gateways reach it with calls."""
        return f"{WAN_ADDRESS[self.site]}:{self._port(7443)}"

    @property
    def enrolment(self) -> str:
        """Where new hosts of its site reach it."""
        return f"{node(f'{self.site}-gw').lan}:{self._port(7446)}"

    @property
    def tunnel_port(self) -> int:
        """The port that the links of a tunnel to it have at this end."""
        return self._port(7445)

    @property
    def tunnel(self) -> str:
        """Where other sites' gateways reach it with links."""
        return f"{WAN_ADDRESS[self.site]}:{self.tunnel_port}"

    def _port(self, first: int) -> int:
        return first + (self.number - 1) * 1000


SEATS = tuple(GatewaySeat(site, number) for number in (1, 2) for site in SITES)


class Product:
    """Landbridge, installed in one lab. Agents go by the names of their hosts, gateways by the labels of their seats."""

    def __init__(
        self, hosts: Mapping[str, HostNode], network: Network, run_directory: Path, big_directory: Path
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._run = run_directory
        self._big = big_directory
        self._records = run_directory / "processes"
        self._lifetime, self._strangers = 0.0, False

    # Certificates

    def issue(self, *, strangers: bool = False) -> None:
        """A CA for each site, an identity for each gateway, host and operator, and trust between the gateways.

        `strangers` as in LabSettings.
        """
        now, authorities = datetime.now(UTC), {}
        for site in SITES:
            authorities[site] = create(Site(TRUST_DOMAIN, site), now)
            save_authority(self.authority(site), authorities[site])
        for site, other in (SITES, SITES[::-1]):
            hosts = [n.name for n in NODES if n.site == site and not n.is_gateway]
            for name in OPERATORS:
                leaf = issue(authorities[site], Identity(TRUST_DOMAIN, site, Role.OPERATOR, name), now)
                save_identity(self.identity(site, "operator", name), leaf)
            for seat in (seat for seat in SEATS if seat.site == site):
                directory, issuer = (
                    self.identity(site, "gateway", seat.name),
                    make_issuer(authorities[site], seat.name, now),
                )
                save_identity(directory, issue(issuer, Identity(TRUST_DOMAIN, site, Role.GATEWAY, seat.name), now))
                save_issuer(directory, issuer)
                if not strangers:
                    add_trust(directory, self.authority(other) / "ca.pem")
            for host in () if strangers else hosts:
                leaf = issue(issuer, Identity(TRUST_DOMAIN, site, Role.HOST, host), now)
                save_identity(self.identity(site, "host", host), leaf)

    def authority(self, site: str) -> Path:
        """The directory of a site's CA."""
        return self._run / "certs" / site / "ca"

    def identity(self, site: str, role: str, name: str) -> Path:
        """The identity directory of somebody."""
        return self._run / "certs" / site / role / name

    # Processes

    def renew(self, lifetime: float) -> None:
        """Issue the certificates of gateways and hosts anew, for so many seconds, while nobody runs."""
        now = datetime.now(UTC)
        for site in SITES:
            trust = load_trust(self.identity(site, "gateway", "gw-1"))
            for seat in (seat for seat in SEATS if seat.site == site):
                gateway = self.identity(site, "gateway", seat.name)
                save_trust(gateway, trust)
                if not load_issuers(gateway, trust):  # it did not run when the root has changed
                    save_issuer(gateway, make_issuer(load_authority(self.authority(site)), seat.name, now))
                issuer = load_issuers(gateway, trust)[-1]
                for role, name in (("gateway", seat.name), *(("host", n.name) for n in NODES if n.site == site)):
                    if (directory := self.identity(site, role, name)).exists():
                        who = Identity(TRUST_DOMAIN, site, Role(role), name)
                        leaf = issue(issuer, who, now, lifetime=timedelta(seconds=lifetime))
                        renew_identity(directory, leaf.chain_pem, leaf.key)

    def configure(
        self,
        *,
        standby: bool = False,
        outage: float = 0.0,
        pages: bool = True,
        strangers: bool = False,
        lifetime: float = 0.0,
    ) -> None:
        """Write every configuration file, for one gateway at each site or two; the others as in LabSettings.

        `lifetime` is that of certificates in seconds, 0: as the product has it.
        """
        self._lifetime, self._strangers = lifetime, strangers
        seats = [seat for seat in SEATS if standby or seat.number == 1]
        for site in SITES:
            self.set_policy(site, policy_of(site))
        for seat in SEATS:
            self._config(seat.label).unlink(missing_ok=True)
        for seat in seats:
            self._gateway_toml(seat, [s for s in seats if s.site != seat.site], outage, pages)
        for n in NODES:
            if n.is_gateway:
                continue
            self._config(n.name).unlink(missing_ok=True)
            if not strangers:
                self._agent_toml(n.name, [s for s in seats if s.site == n.site])

    def read_disks_at(self, host: str, rate: float) -> None:
        """Hold the proofs of disks on a host to so many MB/s, from its agent's next start on until `configure`."""
        with self._config(host).open("a") as file:
            file.write(f"[proof]\nrate = {rate}\n")

    def seats(self, site: str | None = None) -> list[GatewaySeat]:
        """The gateways (of a site) that are configured, the first of each site first."""
        return [seat for seat in SEATS if site in {None, seat.site} and self._config(seat.label).exists()]

    def start(self) -> None:
        """Start everything and wait until it serves."""
        hosts = [host for host in self._hosts if self._config(host).exists()]
        for host in hosts:
            self.launch_agent(host)
        for number in (1, 2):  # one after the other: who comes first makes the site's store
            seats = [seat for seat in self.seats() if seat.number == number]
            for seat in seats:
                self.launch_gateway(seat.site, number)
            for seat in seats:
                self.wait_ready(seat.label)
        for host in hosts:
            self.wait_ready(host)

    def stop(self) -> None:
        """End every agent and gateway."""
        records = processes.recorded(self._records)
        processes.end(r for r in records if r.label.startswith("landbridge-") and r.is_alive())

    def launch_agent(self, host: str) -> None:
        """Start the agent of a host."""
        argv = [
            *self._hosts[host].enter(),
            *with_capabilities(AGENT_CAPABILITIES),
            str(BIN / "landbridge-agent"),
            "--config",
            str(self._config(host)),
        ]
        self._launch(host, argv)

    def launch_gateway(self, site: str, number: int = 1, *, hostile: Literal["ram", "disk"] | None = None) -> None:
        """Start a gateway of a site; a hostile one flips a byte of a channel of this kind, see `hostile_gateway`."""
        label = GatewaySeat(site, number).label
        program, environment = [str(BIN / "landbridge-gateway")], None
        if hostile is not None:
            program = [sys.executable, "-m", "tests.lab.hostile_gateway"]
            flip = {"LANDBRIDGE_FLIP": hostile, "LANDBRIDGE_FLIP_FROM": str(FLIPPED_FROM[hostile])}
            environment = {**os.environ, **flip, "PYTHONPATH": str(SOURCE_DIRECTORY.parents[1])}
        space = ["ip", "netns", "exec", self._network.namespace(f"{site}-gw")]
        if (
            neighbour := self._hosts[f"{site}-1"]
        ).is_trixie:  # a machine like its hosts, whose files it does not look at
            space = neighbour.enter(self._network.path(f"{site}-gw"))
        privileges = with_capabilities(GATEWAY_CAPABILITIES)
        self._launch(label, [*space, *privileges, *program, "--config", str(self._config(label))], environment)

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to an agent or gateway."""
        record = processes.find(self._records, f"landbridge-{name}")
        if record is None:
            raise LabError(f"no agent or gateway {name} runs")
        processes.send(record, sign)
        if sign in {signal.SIGKILL, signal.SIGTERM}:
            processes.wait_until(lambda: not record.is_alive(), seconds=15, otherwise=f"{name} does not end")

    def restart(self, name: str) -> None:
        """Start an agent or gateway again, and wait until it serves."""
        if seat := next((seat for seat in SEATS if seat.label == name), None):
            self.launch_gateway(seat.site, seat.number)
        else:
            self.launch_agent(name)
        self.wait_ready(name)

    def log(self, name: str) -> Path:
        """What an agent or gateway has logged, over all its runs."""
        return self._run / f"landbridge-{name}.log"

    def said(self, name: str) -> str:
        """What the present run of an agent or gateway has logged."""
        return self.log(name).read_text()[int((self._run / f"{name}.started-at").read_text()) :]

    def wait_ready(self, name: str, seconds: float = 30.0) -> None:
        """Wait until the present run of an agent or gateway has said that it serves."""
        record = processes.find(self._records, f"landbridge-{name}")

        def ready() -> bool:
            if record is None or not record.is_alive():
                raise LabError(f"landbridge's {name} has ended: {self.log(name).read_text().splitlines()[-1:]}")
            return any(
                json.loads(line).get("event", "").endswith(".ready")
                for line in self.said(name).splitlines()
                if line.startswith("{")
            )

        processes.wait_until(
            ready, seconds=seconds, otherwise=f"landbridge's {name} does not serve: see {self.log(name)}"
        )

    def policy(self, site: str) -> Path:
        """The policy file of a site's gateways."""
        return self._run / f"{site}-policy.toml"

    def set_policy(self, site: str, text: str) -> None:
        """Write it; gateways that run take it within two seconds."""
        self.policy(site).write_text(text)

    def operator_environment(self, site: str, who: str = "alice") -> dict[str, str]:
        """What makes `landbridge` speak to a site's gateways as one of its operators."""
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "LANDBRIDGE_GATEWAY": ",".join(seat.operators for seat in self.seats(site)),
            "LANDBRIDGE_IDENTITY": str(self.identity(site, "operator", who)),
        }

    def _launch(self, name: str, argv: list[str], environment: Mapping[str, str] | None = None) -> None:
        log = self.log(name)
        log.touch()
        (self._run / f"{name}.started-at").write_text(str(len(log.read_text())))
        processes.launch(self._records, f"landbridge-{name}", argv, log=log, environment=environment)

    def _config(self, name: str) -> Path:
        return self._run / f"{name}.toml"

    def _agent_toml(self, host: str, seats: list[GatewaySeat]) -> None:
        n = node(host)
        self._config(host).write_text(f"""\
site = "{n.site}"
name = "{host}"
[identity]
directory = "{self.identity(n.site, "host", host)}"
[listen]
control = "{n.lan}:7443"
stream = "{n.lan}:7444"
[gateway]
control = {json.dumps([seat.operators for seat in seats])}
stream = {json.dumps([seat.agents for seat in seats])}
{self.firewall()}""")

    def pages(self, seat: GatewaySeat) -> Path:
        """Where a gateway keeps its page logs."""
        return self._big / f"{seat.site}-gw" / f"{seat.name}-pages"

    def firewall(self) -> str:
        """The table of an agent's configuration that lets the lab's guests have their kernels and consoles."""
        return f"""\
[firewall]
kernel = [{json.dumps(str(self._big / "boot"))}]
serial = [{json.dumps(str(self._run / "console"))}]
"""

    def audit(self, seat: GatewaySeat) -> Path:
        """Where a gateway has its audit log."""
        return self._big / f"{seat.site}-gw" / f"{seat.name}-audit"

    def forget_pages(self) -> None:
        """Start everything anew, with page logs that are empty."""
        self.stop()
        for seat in self.seats():
            for log in self.pages(seat).glob("*.pages"):
                log.unlink()
        self.start()

    def _gateway_toml(self, seat: GatewaySeat, others: list[GatewaySeat], outage: float, pages: bool) -> None:
        site = seat.site
        # Gateways of one site share its store. One SQLite file does where they share a machine, as here; real sites,
        # whose gateways stand apart, use PostgreSQL.
        state = self._big / f"{site}-gw"
        state.mkdir(parents=True, exist_ok=True)
        hosts = "".join(
            f'[[hosts]]\nname = "{n.name}"\ncontrol = "{n.lan}:7443"\nstream = "{n.lan}:7444"\n'
            for n in NODES
            if n.site == site and not n.is_gateway and not self._strangers
        )
        joined = f"""\
[[sites]]
name = "{others[0].site}"
peers = {_one_or_several([s.peers for s in others])}
tunnel = {_one_or_several([s.tunnel for s in others])}
[sites.pools]
default = "default"
[sites.networks]
lan = "lan"
"""
        lifetime = f"\nlifetime = {self._lifetime}" if self._lifetime else ""
        limit = f"\noutage = {outage}" if outage else ""
        self._config(seat.label).write_text(f"""\
site = "{site}"
name = "{seat.name}"
[identity]
directory = "{self.identity(site, "gateway", seat.name)}"{lifetime}
[listen]
operators = "{seat.operators}"
agents = "{seat.agents}"
peers = "{seat.peers}"
tunnel = "{seat.tunnel}"
enrolment = "{seat.enrolment}"
[store]
url = "sqlite:///{state}/gateway.db"
[pages]
directory = "{self.pages(seat)}"{"" if pages else chr(10) + "size = 0"}
[policy]
file = "{self.policy(site)}"
[audit]
directory = "{self.audit(seat)}"
[patience]
agent = 10.0
cleanup = 5.0{limit}
{hosts}
{"" if self._strangers else joined}""")


def policy_of(site: str, more: str = "") -> str:
    """A policy that has alice of each site move every VM, either way; `more` is further TOML."""
    roles = "\n".join(
        f"{role} = {json.dumps([who for who, roles in OPERATORS.items() if role in roles])}"
        for role in sorted({role for roles in OPERATORS.values() for role in roles})
    )
    return f"""\
site = "{site}"
trust_domain = "{TRUST_DOMAIN}"
[roles]
{roles}
[sites.east]
country = "DE"
[sites.west]
country = "NL"
[[rules]]
name = "alice moves everything"
effect = "permit"
who = ["*/alice"]
vms = ["*"]
from = ["*"]
to = ["*"]
{more}"""


def _one_or_several(addresses: list[str]) -> str:
    """As TOML, which writes strings as JSON does."""
    return json.dumps(addresses if len(addresses) > 1 else addresses[0])
