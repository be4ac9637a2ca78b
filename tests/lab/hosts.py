"""A host of the lab: namespaces of its own, folders of its own, and a real libvirtd in them.

A keeper process holds the mount and UTS namespaces; everything else of the host enters them by its pid.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.lab import processes, root
from tests.lab.network import NODES, Network, Node
from tests.lab.settings import CACHE, LabError

# What each host has for itself; bound over the machine's own.
PRIVATE = (
    "/run/libvirt",
    "/var/lib/libvirt",
    "/etc/libvirt",
    "/var/log/libvirt",
    "/var/cache/libvirt",
    "/etc/landbridge",
    "/run/landbridge",
    "/var/lib/landbridge",
)
IMAGES = "/var/lib/libvirt/images"
CAPABILITIES = CACHE / "libvirt-capabilities"

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
auth_unix_rw = "none"
auth_tcp = "none"
listen_tls = 0
listen_tcp = {tcp}
log_outputs = "3:stderr"
"""
QEMU_CONF = """\
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
"""
NETWORK_XML = "<network><name>lan</name><forward mode='bridge'/><bridge name='guests'/></network>"


class HostNode:
    """One host: what stands for a hypervisor machine."""

    def __init__(self, lab: str, node: Node, network: Network, run_directory: Path, big_directory: Path) -> None:
        self.node = node
        self.name = node.name
        self._network = network
        self._lab = lab
        self._run = run_directory
        self._files = big_directory / node.name
        self._records = run_directory / "processes"

    @property
    def images(self) -> Path:
        """The folder of its storage pool, as it is seen from outside; only where the pool has no limit."""
        return self._files / "var-lib-libvirt" / "images"

    def keeper_pid(self) -> int:
        """The process whose namespaces are the host's. Raises LabError."""
        record = processes.find(self._records, f"keeper-{self.name}")
        if record is None:
            raise LabError(f"host {self.name} is not up: python -m tests.lab up")
        return record.pid

    @property
    def is_trixie(self) -> bool:
        """Whether Debian 13 is its root."""
        return (self._files / "trixie").exists()

    def enter(self, network: Path | None = None) -> list[str]:
        """The words before a command that make it run on this host, or with its files in another network namespace."""
        return ["nsenter", "-t", str(self.keeper_pid()), f"--net={network}" if network else "-n", "-m", "-u", "--"]

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 60.0) -> str:
        """Run a command on this host; returns its output. Raises LabError with what it said if it fails."""
        done = subprocess.run([*self.enter(), *argv], capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode != 0:
            raise LabError(f"`{shlex.join(argv)}` on {self.name} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def virsh(self, *argv: str, check: bool = True, timeout: float = 60.0) -> str:
        """Ask this host's libvirtd."""
        return self.run(["virsh", "-q", "-c", "qemu:///system", *argv], check=check, timeout=timeout)

    def start_keeper(self, *, pool_size: int, trixie: bool = False) -> None:
        """Make the host's folders and namespaces."""
        self._files.mkdir(parents=True, exist_ok=True)
        steps = ["set -e", f"hostname {self.name}", "mount --make-rprivate /"]
        if trixie:
            (self._files / "trixie").touch()
            steps += root.steps(self._run.parent, self._files.parents[1])
        for path in PRIVATE:
            own = self._files / path.strip("/").replace("/", "-")
            own.mkdir(exist_ok=True)
            steps += [f"mkdir -p {path}", f"mount --bind {own} {path}"]
        steps.append(f"mkdir -p {IMAGES} {IMAGES.rsplit('/', 1)[0]}/qemu && chmod 711 {IMAGES}")
        if pool_size:
            steps.append(f"mount -t tmpfs -o size={pool_size}m,mode=711 lab-{self.name} {IMAGES}")
        # libvirt probes QEMU as root and asks whether QEMU's user may use KVM: where only root may, no cache of what it has
        # probed is ever valid, and each call takes seconds. The lab's guests run under TCG; its hosts have no KVM.
        steps.append(
            f"! [ -e /dev/kvm ] || {{ install -m 0 /dev/null {self._files}/no-kvm; mount --bind {self._files}/no-kvm /dev/kvm; }}"
        )
        # libvirt tells the other side to connect to its host name.
        (self._files / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{n.lan} {n.name}\n" for n in NODES))
        steps.append(f"mount --bind {self._files}/hosts /etc/hosts")
        steps += [f"touch {self._files}/ready", "exec sleep infinity"]
        (self._files / "ready").unlink(missing_ok=True)
        processes.launch(
            self._records,
            f"keeper-{self.name}",
            [
                "ip",
                "netns",
                "exec",
                self._network.namespace(self.name),
                "unshare",
                "-m",
                "-u",
                "sh",
                "-c",
                "\n".join(steps),
            ],
            log=self._run / f"{self.name}.log",
        )
        processes.wait_until(
            (self._files / "ready").exists,
            seconds=10,
            otherwise=f"host {self.name} did not start: see {self._run}/{self.name}.log",
        )

    def configure(self, *, tcp: bool) -> None:
        """Write libvirt's configuration."""
        etc = self._files / "etc-libvirt"
        identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.{self._lab}.lab")
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=identity, tcp=int(tcp)))
        (etc / "qemu.conf").write_text(QEMU_CONF)
        # What libvirt found out about QEMU is worth seconds of each start; it checks by itself whether it still holds.
        if self._capabilities.is_dir():
            shutil.copytree(self._capabilities, self._files / "var-cache-libvirt" / "qemu", dirs_exist_ok=True)
        (etc / "tcp").write_text("yes" if tcp else "")

    def start_libvirtd(self) -> None:
        """Start libvirtd and wait until it answers; also after it was killed."""
        tcp = (self._files / "etc-libvirt" / "tcp").read_text() == "yes"
        processes.launch(
            self._records,
            f"libvirtd-{self.name}",
            [*self.enter(), "libvirtd", "-p", "/run/libvirt/libvirtd.pid", *(["--listen"] if tcp else [])],
            log=self._run / f"libvirtd-{self.name}.log",
        )

    def wait_for_libvirtd(self) -> None:
        """Wait until libvirtd answers."""
        processes.wait_until(
            lambda: "QEMU" in self.virsh("version", check=False),
            seconds=30,
            otherwise=f"libvirtd of {self.name} does not answer: see {self._run}/libvirtd-{self.name}.log",
        )

    def keep_capabilities(self) -> None:
        """Keep what libvirt has found out about QEMU for the next lab."""
        shutil.copytree(self._files / "var-cache-libvirt" / "qemu", self._capabilities, dirs_exist_ok=True)

    @property
    def _capabilities(self) -> Path:
        return root.DIRECTORY / CAPABILITIES.name if self.is_trixie else CAPABILITIES

    def define_resources(self) -> None:
        """The storage pool `default` and the network `lan`."""
        self.virsh("pool-define-as", "default", "dir", "--target", IMAGES)
        self.virsh("pool-start", "default")
        self.virsh("pool-autostart", "default")
        definition = self._files / "lan.xml"
        definition.write_text(NETWORK_XML)
        self.virsh("net-define", str(definition))
        self.virsh("net-start", "lan")
        self.virsh("net-autostart", "lan")

    def running(self) -> list[processes.Record]:
        """Everything that runs on this host."""
        return processes.inside([self._network.path(self.name)])

    def qemu(self, vm: str) -> processes.Record | None:
        """The QEMU that runs a VM here, or waits for it."""
        for record in self.running():
            arguments = Path(f"/proc/{record.pid}/cmdline")
            if record.label.startswith("qemu-system") and f"guest={vm},".encode() in arguments.read_bytes():
                return record
        return None
