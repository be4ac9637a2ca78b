"""The product in the lab: certificates, an agent on each host, a gateway at each site's edge; made as a user would."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from certs.authority import create, issue
from certs.identity import Identity, Role, Site
from certs.store import add_trust, save_authority, save_identity
from tests.lab import processes
from tests.lab.hosts import HostNode
from tests.lab.network import NODES, SITES, WAN_ADDRESS, Network, node
from tests.lab.settings import LabError

BIN = Path(sys.executable).parent
TRUST_DOMAIN = "landbridge.test"


class Product:
    """Landbridge, installed in one lab."""

    def __init__(
        self, hosts: Mapping[str, HostNode], network: Network, run_directory: Path, big_directory: Path
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._run = run_directory
        self._big = big_directory
        self._records = run_directory / "processes"

    # Certificates

    def issue(self) -> None:
        """A CA for each site, an identity for each gateway, host and operator, and trust between the gateways."""
        now, authorities = datetime.now(UTC), {}
        for site in SITES:
            authorities[site] = create(Site(TRUST_DOMAIN, site), now)
            save_authority(self.authority(site), authorities[site])
        for site, other in (SITES, SITES[::-1]):
            hosts = [n.name for n in NODES if n.site == site and not n.is_gateway]
            for role, name in (
                (Role.GATEWAY, "gw-1"),
                (Role.OPERATOR, "alice"),
                *((Role.HOST, h) for h in hosts),
            ):
                leaf = issue(authorities[site], Identity(TRUST_DOMAIN, site, role, name), now)
                save_identity(self.identity(site, role, name), leaf)
            add_trust(self.identity(site, "gateway", "gw-1"), self.authority(other) / "ca.pem")

    def authority(self, site: str) -> Path:
        """The directory of a site's CA."""
        return self._run / "certs" / site / "ca"

    def identity(self, site: str, role: str, name: str) -> Path:
        """The identity directory of somebody."""
        return self._run / "certs" / site / role / name

    # Processes

    def configure(self) -> None:
        """Write every configuration file."""
        for n in NODES:
            (self._gateway_toml(n.site) if n.is_gateway else self._agent_toml(n.name))

    def start(self) -> None:
        """Start everything and wait until it serves."""
        for n in NODES:
            (self.launch_gateway(n.site) if n.is_gateway else self.launch_agent(n.name))
        for n in NODES:
            self.wait_ready(n.name)

    def launch_agent(self, host: str) -> None:
        """Start the agent of a host."""
        argv = [
            *self._hosts[host].enter(),
            str(BIN / "landbridge-agent"),
            "--config",
            str(self._config(host)),
        ]
        self._launch(host, argv)

    def launch_gateway(self, site: str) -> None:
        """Start the gateway of a site."""
        name = f"{site}-gw"
        argv = ["ip", "netns", "exec", self._network.namespace(name), str(BIN / "landbridge-gateway")]
        self._launch(name, [*argv, "--config", str(self._config(name))])

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the agent or gateway of a node."""
        record = processes.find(self._records, f"landbridge-{name}")
        if record is None:
            raise LabError(f"neither agent nor gateway runs on {name}")
        processes.send(record, sign)
        if sign in {signal.SIGKILL, signal.SIGTERM}:
            processes.wait_until(
                lambda: not record.is_alive(), seconds=15, otherwise=f"the process on {name} does not end"
            )

    def restart(self, name: str) -> None:
        """Start the agent or gateway of a node again, and wait until it serves."""
        n = node(name)
        (self.launch_gateway(n.site) if n.is_gateway else self.launch_agent(name))
        self.wait_ready(name)

    def log(self, name: str) -> Path:
        """What the agent or gateway of a node has logged, over all its runs."""
        return self._run / f"landbridge-{name}.log"

    def wait_ready(self, name: str, seconds: float = 30.0) -> None:
        """Wait until the present run of a node's agent or gateway has said that it serves."""
        record = processes.find(self._records, f"landbridge-{name}")

        def ready() -> bool:
            if record is None or not record.is_alive():
                raise LabError(f"landbridge on {name} has ended: {self.log(name).read_text().splitlines()[-1:]}")
            text = self.log(name).read_text()[self._started_at(name) :]
            return any(
                json.loads(line).get("event", "").endswith(".ready")
                for line in text.splitlines()
                if line.startswith("{")
            )

        processes.wait_until(
            ready, seconds=seconds, otherwise=f"landbridge on {name} does not serve: see {self.log(name)}"
        )

    def operator_environment(self, site: str) -> dict[str, str]:
        """What makes `landbridge` speak to a site's gateway as its operator."""
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "LANDBRIDGE_GATEWAY": f"{node(f'{site}-gw').lan}:7443",
            "LANDBRIDGE_IDENTITY": str(self.identity(site, "operator", "alice")),
        }

    def _launch(self, name: str, argv: list[str]) -> None:
        log = self.log(name)
        log.touch()
        (self._run / f"{name}.started-at").write_text(str(len(log.read_text())))
        processes.launch(self._records, f"landbridge-{name}", argv, log=log)

    def _started_at(self, name: str) -> int:
        return int((self._run / f"{name}.started-at").read_text())

    def _config(self, name: str) -> Path:
        return self._run / f"{name}.toml"

    def _agent_toml(self, host: str) -> None:
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
stream = ["{node(f"{n.site}-gw").lan}:7444"]
""")

    def _gateway_toml(self, site: str) -> None:
        other = next(s for s in SITES if s != site)
        lan, wan = node(f"{site}-gw").lan, WAN_ADDRESS[site]
        state = self._big / f"{site}-gw"
        state.mkdir(parents=True, exist_ok=True)
        hosts = "".join(
            f'[[hosts]]\nname = "{n.name}"\ncontrol = "{n.lan}:7443"\nstream = "{n.lan}:7444"\n'
            for n in NODES
            if n.site == site and not n.is_gateway
        )
        self._config(f"{site}-gw").write_text(f"""\
site = "{site}"
name = "gw-1"
[identity]
directory = "{self.identity(site, "gateway", "gw-1")}"
[listen]
operators = "{lan}:7443"
agents = "{lan}:7444"
peers = "{wan}:7443"
tunnel = "{wan}:7445"
[store]
url = "sqlite:///{state}/gateway.db"
[patience]
agent = 10.0
cleanup = 5.0
{hosts}
[[sites]]
name = "{other}"
peers = "{WAN_ADDRESS[other]}:7443"
tunnel = "{WAN_ADDRESS[other]}:7445"
[sites.pools]
default = "default"
[sites.networks]
lan = "lan"
""")
