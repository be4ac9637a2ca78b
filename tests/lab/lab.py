"""One lab: up, down, and the handles on everything in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.lab import kernel, processes, root
from tests.lab.guests import Guests
from tests.lab.hosts import HostNode
from tests.lab.network import NODES, SITES, Network, Wan, node
from tests.lab.product import Product
from tests.lab.settings import SOURCE_DIRECTORY, LabError, LabSettings, WanSettings

RUN = Path("/run/landbridge-lab")
BIG = Path("/var/lib/landbridge-lab")
# The name is part of names of namespaces and of sockets, which have 107 characters.
NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


def name_of(purpose: str) -> str:
    """A name for a lab of this checkout, and of this worker of pytest-xdist: runs of tests on one machine stay apart.

    One letter of purpose.
    """
    of = f"{SOURCE_DIRECTORY}{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    return f"{purpose}{zlib.crc32(of.encode()):08x}"


class Lab:
    """Two sites on one machine. Several labs may be up at once, under different names."""

    def __init__(self, name: str = "lab") -> None:
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} is no name for a lab: up to 12 of a-z and 0-9, a letter first")
        self.name = name
        self.directory = RUN / name
        self._big = BIG / name
        self.network = Network(name)
        self.wan = Wan(self.directory / "wan.sock")
        self.hosts = {
            n.name: HostNode(name, n, self.network, self.directory, self._big) for n in NODES if not n.is_gateway
        }
        self.guests = Guests(self.hosts, self.network, self.directory, self._big)
        self.product = Product(self.hosts, self.network, self.directory, self._big)

    # Up

    @property
    def is_up(self) -> bool:
        """Whether `up` has finished, `down` has not begun, and what holds the lab together still runs."""
        if not (self.directory / "lab.json").exists():
            return False
        labels = ["wan", *(f"keeper-{host}" for host in self.hosts)]
        # A reboot, or whoever ended all processes, leaves the files.
        return all(processes.find(self.directory / "processes", label) is not None for label in labels)

    def up(self, settings: LabSettings | None = None, *, product: bool = True) -> bool:
        """Build the lab; False if it was up already. One that is half built, half taken down or half dead is built anew."""
        settings = settings or LabSettings()
        if settings.trixie and not root.is_made():
            raise LabError("there is no Debian 13 to run hosts in: python -m tests.lab trixie makes it")
        _require_machine()
        with self._lock():
            if self.is_up:
                return False
            self._remove()
            (self.directory / "processes").mkdir(parents=True)
            self._big.mkdir(parents=True, exist_ok=True)
            try:
                self._build(settings, product=product)
            except BaseException:
                self._remove(keep_logs=True)
                raise
            (self.directory / "lab.json").write_text(json.dumps(asdict(settings)))
            return True

    def _build(self, settings: LabSettings, *, product: bool) -> None:
        self.network.up(direct_lan=settings.direct_lan)
        self._start_wan(settings)
        for host in self.hosts.values():
            host.start_keeper(pool_size=settings.pool_size, trixie=host.node.site in settings.trixie)
            host.configure(tcp=settings.direct_lan)
            host.start_libvirtd()
        with ThreadPoolExecutor() as pool:
            certificates = pool.submit(self.product.issue, strangers=settings.strangers) if product else None
            for host in self.hosts.values():
                host.wait_for_libvirtd()
            list(pool.map(HostNode.define_resources, self.hosts.values()))
            for site in SITES:
                self.hosts[f"{site}-1"].keep_capabilities()
            if certificates is not None:
                certificates.result()
        if product:
            self.product.configure(
                standby=settings.standby,
                outage=settings.outage,
                pages=settings.pages,
                strangers=settings.strangers,
            )
            self.product.start()

    def _start_wan(self, settings: LabSettings) -> None:
        program = kernel.compile_c("wan")
        control = self.directory / "wan.sock"
        argv = [
            str(program),
            str(self.network.path("east-gw")),
            str(self.network.path("west-gw")),
            "wan",
            str(control),
        ]
        processes.launch(self.directory / "processes", "wan", argv, log=self.directory / "wan.log")

        def has_devices() -> bool:
            spaces = (self.network.namespace(f"{site}-gw") for site in ("east", "west"))
            return all(
                subprocess.run(["ip", "-n", s, "link", "show", "wan"], capture_output=True, check=False).returncode == 0
                for s in spaces
            )

        processes.wait_until(has_devices, seconds=10, otherwise=f"the WAN did not start: see {self.directory}/wan.log")
        self.network.connect_wan(direct_lan=settings.direct_lan)
        self.set_wan(settings.wan)

    def set_wan(self, wan: WanSettings) -> None:
        """Change the line between the sites."""
        self.wan.set(wan)

    # Down

    def down(self) -> bool:
        """Take the lab down, whatever state it is in; False if there was nothing."""
        with self._lock():
            there = self.directory.exists() or self._big.exists() or any(p.exists() for p in self.network.paths())
            self._remove()
        with contextlib.suppress(OSError):
            (RUN / f"{self.name}.lock").unlink()
        for parent in (RUN, BIG):
            with contextlib.suppress(OSError):
                parent.rmdir()
        return there

    def _remove(self, *, keep_logs: bool = False) -> None:
        (self.directory / "lab.json").unlink(missing_ok=True)
        records = [r for r in processes.recorded(self.directory / "processes") if r.is_alive()]
        own = os.getpid()
        processes.end(r for r in [*records, *processes.inside(self.network.paths())] if r.pid != own)
        # libvirtd may have started something between the two looks.
        processes.end(processes.inside(self.network.paths()))
        self.network.down()
        if not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self._big, ignore_errors=True)

    # In between

    def enter(self, name: str) -> list[str]:
        """The words before a command that make it run on a node."""
        if node(name).is_gateway:
            return ["nsenter", f"--net={self.network.path(name)}", "--"]
        return self.hosts[name].enter()

    def popen(
        self, name: str, argv: Sequence[str], *, label: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process on a node that `down` ends; its output goes to LABEL.log."""
        return processes.launch(
            self.directory / "processes",
            label,
            [*self.enter(name), *argv],
            log=self.directory / f"{label}.log",
            environment=environment,
        )

    def landbridge(
        self, site: str, *argv: str, who: str = "alice", timeout: float = 180.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line as an operator of a site, at its gateway."""
        return subprocess.run(
            [*self.enter(f"{site}-gw"), "landbridge", *argv],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self.product.operator_environment(site, who),
        )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        RUN.mkdir(exist_ok=True)
        with (RUN / f"{self.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"somebody else is just building or removing the lab {self.name}: wait for it") from None
            yield


def _require_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab needs root, for its namespaces: run it with sudo")
    if not Path("/dev/net/tun").exists():
        raise LabError("/dev/net/tun is missing, and the WAN needs it: modprobe tun")
    for tool in ("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "ip", "nsenter", "setpriv", "unshare", "gcc"):
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing: make install")
