"""Guests: a real QEMU each, under a host's libvirtd, with guest.c inside and a recorder at its console."""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.lab import kernel, processes
from tests.lab.files import Tree
from tests.lab.hosts import IMAGES, HostNode
from tests.lab.judge import Verdict, judge
from tests.lab.network import Network
from tests.lab.settings import GuestSettings, LabError

DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 pti=on quiet panic=1 {words}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'/>
  <on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk_format}'/><source file='{image}'/><target dev='vda' bus='virtio'/>
    </disk>
    {second_disk}
    <interface type='network'><source network='lan'/><model type='virtio'/><rom enabled='no'/></interface>
    <controller type='usb' model='none'/>
    <serial type='unix'><source mode='connect' path='{console}'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>{qemu}</qemu:commandline>
</domain>
"""
SECOND_DISK = """\
<disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{image}'/><target dev='vdb' bus='virtio'/>
    </disk>"""
NAMES_IN_CMDLINE = (
    "working_set",
    "rate",
    "words",
    "random",
    "disk_rate",
    "disk_fill",
    "pass_seconds",
    "seed",
    "beats",
    "files_seconds",
)


def second_image(name: str) -> str:
    """The image of a guest's second disk."""
    return f"{name}-files.raw"


class Guests:
    """The guests of one lab."""

    def __init__(
        self, hosts: Mapping[str, HostNode], network: Network, run_directory: Path, big_directory: Path
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._run = run_directory
        self._console = run_directory / "console"
        self._boot = big_directory / "boot"

    def start(self, name: str, host: str, settings: GuestSettings, *, wait: float = 90.0) -> None:
        """Start a guest and wait until it beats."""
        if host not in self._hosts:
            raise LabError(f"there is no host {host!r}: the lab has {', '.join(self._hosts)}")
        if any(self.where(name).values()):
            raise LabError(f"there is a guest {name} already: python -m tests.lab vm stop {name}")
        self._record(name)
        node, image = self._hosts[host], f"{IMAGES}/{name}.{settings.disk_format}"
        # A raw image is allocated where it is written, like a qcow2 one.
        node.virsh(
            "vol-create-as",
            "default",
            Path(image).name,
            f"{settings.disk}M",
            "--allocation",
            "0",
            "--format",
            settings.disk_format,
        )
        words = " ".join(f"lab.{key}={getattr(settings, key)}" for key in NAMES_IN_CMDLINE)
        boot_kernel, initrd = self.boot_files()
        second_disk = ""
        if settings.files:
            tree = Tree.of_this_machine(settings.files, name)
            if settings.files_disk:
                second_disk = self._second_disk(name, node, tree, settings.files_disk)
            else:
                initrd = self._own_initramfs(name, initrd, tree)
            # What is freed is zeroed: else the memory would hold what is left of the archive, each page a second time.
            words += " init_on_free=1"
        definition = DOMAIN.format(
            name=name,
            uuid=uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{self._run.name}.lab"),
            memory=settings.memory,
            machine=settings.machine,
            kernel=boot_kernel,
            initrd=initrd,
            words=words,
            disk_format=settings.disk_format,
            image=image,
            console=self._console / f"{name}.sock",
            second_disk=second_disk,
            qemu="".join(f"<qemu:arg value='{word}'/>" for word in settings.qemu.split()),
        )
        path = self._run / f"{name}.xml"
        path.write_text(definition)
        node.virsh("define", str(path))
        if settings.autostart:
            node.virsh("autostart", name)
        node.virsh("start", name)
        processes.wait_until(
            lambda: self.check(name).beats > 0,
            seconds=wait,
            otherwise=f"guest {name} does not beat: see {self.log(name)}",
        )

    def stop(self, name: str) -> None:
        """Remove a guest from wherever it is: process, definition, disk."""
        for node in self._hosts.values():
            if name in self._names(node):
                node.virsh("destroy", name, check=False)
                node.virsh("undefine", name, check=False)
            for image in (f"{name}.qcow2", f"{name}.raw", second_image(name)):
                node.virsh("vol-delete", "--pool", "default", image, check=False)
        if recorder := processes.find(self._run / "processes", f"console-{name}"):
            processes.end([recorder])
        self.log(name).unlink(missing_ok=True)
        self._initramfs(name).unlink(missing_ok=True)

    def where(self, name: str) -> dict[str, str]:
        """Each host's word on the guest: its state there, or nothing."""
        return {
            host: " ".join(node.virsh("domstate", name, "--reason", check=False).split())
            if name in self._names(node)
            else ""
            for host, node in self._hosts.items()
        }

    def names(self) -> list[str]:
        """Every guest that has a recorder."""
        return sorted(path.stem for path in self._console.glob("*.log"))

    def log(self, name: str) -> Path:
        """The recorder's log of a guest."""
        return self._console / f"{name}.log"

    def check(self, name: str, *, since: float = 0.0, wait: float = 0.0, at: str = "") -> Verdict:
        """The judge's verdict; waits up to `wait` seconds for all to be verified, and not at all once something is wrong.

        With `at`, a host or a site, it also waits for the guest to be heard from there: it may just have been let run.
        """
        deadline = time.monotonic() + wait
        while True:
            try:
                with self.log(name).open(errors="replace") as lines:
                    verdict = judge(lines, since=since, now=time.monotonic())
            except FileNotFoundError:
                raise LabError(f"there is no guest {name}: python -m tests.lab vm list") from None
            if (verdict.good and verdict.host.startswith(at)) or verdict.problems or time.monotonic() > deadline:
                return verdict
            time.sleep(0.2)

    @staticmethod
    def _names(node: HostNode) -> list[str]:
        return node.virsh("list", "--all", "--name", check=False).split()

    def _record(self, name: str) -> None:
        self._console.mkdir(parents=True, exist_ok=True)
        self._console.chmod(0o755)
        self.log(name).unlink(missing_ok=True)
        address = self._console / f"{name}.sock"
        address.unlink(missing_ok=True)
        nodes = [f"{host}={self._network.path(host)}" for host in self._hosts]
        processes.launch(
            self._run / "processes",
            f"console-{name}",
            [sys.executable, "-m", "tests.lab.console", str(address), str(self.log(name)), *nodes],
            log=self._run / f"console-{name}.log",
        )
        processes.wait_until(
            address.exists,
            seconds=10,
            otherwise=f"the recorder did not start: see {self._run}/console-{name}.log",
        )

    def _second_disk(self, name: str, node: HostNode, tree: Tree, size: int) -> str:
        """Make the disk with the files; its element of the definition."""
        image = second_image(name)
        tree.write_ext4(node.images / image, size)
        node.virsh("pool-refresh", "default")
        return SECOND_DISK.format(image=f"{IMAGES}/{image}")

    def _own_initramfs(self, name: str, initramfs: Path, tree: Tree) -> Path:
        """The initramfs of all guests, and behind it the files of this one."""
        with self._initramfs(name).open("wb") as out:
            out.write(initramfs.read_bytes())
            out.writelines(tree.archive())
        self._initramfs(name).chmod(0o644)
        return self._initramfs(name)

    def _initramfs(self, name: str) -> Path:
        return self._boot / f"{name}.cpio"

    def boot_files(self) -> tuple[Path, Path]:
        """Kernel and initramfs where QEMU's user can read them, at one path for all hosts."""
        self._boot.mkdir(parents=True, exist_ok=True)
        self._boot.chmod(0o755)
        copies = []
        for source in kernel.prepare():
            copy = self._boot / source.name
            if not copy.exists():
                shutil.copyfile(source, copy)
                copy.chmod(0o644)
            copies.append(copy)
        return copies[0], copies[1]
