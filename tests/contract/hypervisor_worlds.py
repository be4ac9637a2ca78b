"""Two hosts with a hypervisor each, and a relay between them in the agents' place."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import uuid as uuids
from collections.abc import Callable
from pathlib import Path

from agent.hypervisor.base import Hypervisor, MoveRequest, Presence, VmEvent
from agent.hypervisor.fake import FakeHypervisor
from agent.hypervisor.libvirt_driver import LibvirtHypervisor
from landbridge.v1.types_pb2 import Disk
from tests.lab.hosts import IMAGES, HostNode

KINDS = ("rpc", "ram", "disk")
MIB = 2**20


class Relay:
    """Carries a move's three connections from the source to the destination, and can hold them up."""

    def __init__(self, ends: dict[str, tuple[Path, Path]]) -> None:
        self.carried = dict.fromkeys(KINDS, 0)
        self._limits: dict[str, int] = {}
        self._changed = threading.Condition()
        self._sockets: dict[str, list[socket.socket]] = {kind: [] for kind in KINDS}
        self._servers = []
        for kind, (here, there) in ends.items():
            here.unlink(missing_ok=True)
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(here))
            here.chmod(0o777)  # QEMU is another user
            server.listen()
            self._servers.append(server)
            threading.Thread(target=self._accept, args=(kind, server, there), daemon=True).start()

    def hold(self, kind: str, after: int) -> None:
        """Carry no more than so many bytes towards the destination."""
        self._limits[kind] = after

    def release(self, kind: str) -> None:
        """Carry everything."""
        with self._changed:
            self._limits.pop(kind, None)
            self._changed.notify_all()

    def wait_for(self, kind: str, count: int) -> None:
        """Return when so many bytes have gone towards the destination."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.carried[kind] >= count, 30), f"{kind}: {self.carried}"

    def cut(self, kind: str) -> None:
        """Break the connections of a kind."""
        for sock in self._sockets[kind]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.release(kind)

    def close(self) -> None:
        for server in self._servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for kind in KINDS:
            self.cut(kind)

    def _accept(self, kind: str, server: socket.socket, there: Path) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            self._sockets[kind] += [near, far]
            try:
                far.connect(str(there))
            except OSError:
                near.close()
                far.close()
                continue
            threading.Thread(target=self._carry_both, args=(kind, near, far), daemon=True).start()

    def _carry_both(self, kind: str, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._carry, args=(kind, far, near, False), daemon=True)
        back.start()
        self._carry(kind, near, far, True)
        back.join()
        # Closed, not only shut down: a QEMU that waits to write is not woken by less.
        near.close()
        far.close()

    def _carry(self, kind: str, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if counted:
                    with self._changed:
                        self.carried[kind] += len(data)
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self.carried[kind] < self._limits.get(kind, 2**63))
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class News:
    """What a subscription brings, to be awaited."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.events: list[VmEvent] = []
        self._changed = threading.Condition()
        self.stop = hypervisor.subscribe(self._note)

    def _note(self, event: VmEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[VmEvent], bool]) -> VmEvent:
        """The first event that is wanted, from the beginning on."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(wanted, self.events)), 15), str(self.events)
            return next(filter(wanted, self.events))


class World:
    """What the contract's tests see."""

    # Of the hosts' pool.
    pool: str
    source: Hypervisor
    destination: Hypervisor
    relay: Relay
    # Directory of the sockets as the source's and the destination's programs name it.
    runtime: Path
    # Another, which this process calls like them.
    sockets: Path

    def new_vm(self, *, disk_size: int = 8 * MIB, disk_format: str = "") -> str:
        """A running VM at the source, with one disk of random bytes (none if 0). Its UUID."""
        raise NotImplementedError

    def write(self, uuid: str, offset: int, length: int) -> None:
        """Have a VM at the destination write ones to its disk."""
        raise NotImplementedError

    def pause(self, uuid: str) -> None:
        """Pause a VM at the source, as its owner would."""
        raise NotImplementedError

    def save_memory(self, uuid: str) -> None:
        """Shut a VM at the source off with its memory saved, as its owner would."""
        raise NotImplementedError

    def max_downtime(self, uuid: str) -> int:
        """What a move of a VM of the source is allowed, in ms."""
        raise NotImplementedError

    def image(self, side: str, path: str) -> bytes:
        """Content of an image."""
        raise NotImplementedError

    def images(self, side: str) -> list[str]:
        """Names of all images."""
        raise NotImplementedError

    def left(self) -> Disk:
        """The disk of the VM at the source, by a path that this process can open."""
        (disk,) = self.source.vms()[0].disks
        return disk

    def stop_daemon(self) -> None:
        """Kill the source's daemon."""
        raise NotImplementedError

    def start_daemon(self) -> None:
        """Start it again."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing behind."""
        raise NotImplementedError

    def request(self, uuid: str, domain_xml: str) -> MoveRequest:
        """A move of all disks through the relay."""
        disks = tuple(disk.target for disk in self.source.vm(uuid).disks)
        rpc, ram, disk = (str(self.runtime / f"{kind}.sock") for kind in KINDS)
        return MoveRequest(uuid, domain_xml, rpc, ram, disk, disks)


class FakeWorld(World):
    """Two `FakeHypervisor`s."""

    pool = "images"

    def __init__(self, directory: Path) -> None:
        for side in "sd":
            (directory / side / "m").mkdir(parents=True)
        self.runtime = self.sockets = directory / "s/m"
        self._source = self.source = FakeHypervisor("source", directory / "s/libvirt.sock")
        self._source.far_runtime = directory / "d"
        self._destination = self.destination = FakeHypervisor("destination", directory / "d/libvirt.sock")
        there = {kind: directory / "d/m" / f"{kind}.sock" for kind in KINDS}
        there["rpc"] = directory / "d/libvirt.sock"
        self.relay = Relay({kind: (self.runtime / f"{kind}.sock", there[kind]) for kind in KINDS})

    def new_vm(self, *, disk_size: int = 8 * MIB, disk_format: str = "") -> str:
        disk, memory = os.urandom(disk_size), os.urandom(2 * MIB)
        return self._source.add_vm("web", disk=disk, memory=memory, disk_format=disk_format or "qcow2")

    def write(self, uuid: str, offset: int, length: int) -> None:
        self._destination.write(uuid, offset, b"\1" * length)

    def pause(self, uuid: str) -> None:
        self._source.set_presence(uuid, Presence.PAUSED)

    def save_memory(self, uuid: str) -> None:
        self._source.save_memory(uuid)

    def max_downtime(self, uuid: str) -> int:
        return self._source.max_downtime(uuid)

    def images(self, side: str) -> list[str]:
        return list((self._source if side == "source" else self._destination).images)

    def image(self, side: str, path: str) -> bytes:
        return (self._source if side == "source" else self._destination).images[path]

    def stop_daemon(self) -> None:
        self._source.daemon_runs = False

    def start_daemon(self) -> None:
        self._source.daemon_runs = True

    def close(self) -> None:
        self.relay.close()
        self.source.close()
        self.destination.close()


class LibvirtWorld(World):
    """Two hosts of the lab, and guests without a system: firmware that finds nothing to boot."""

    pool = "default"
    runtime = Path("/run/landbridge/m")

    def __init__(self, source: HostNode, destination: HostNode) -> None:
        self.hosts = {"source": source, "destination": destination}
        # The hosts' mount namespaces, seen from outside.
        self._roots = {side: Path(f"/proc/{host.keeper_pid()}/root") for side, host in self.hosts.items()}
        ends: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for root in self._roots.values():
            sockets = root / str(self.runtime).lstrip("/")
            shutil.rmtree(sockets, ignore_errors=True)
            sockets.mkdir()
            sockets.chmod(0o777)  # QEMU is another user
            for kind in KINDS:
                ends[kind].append(sockets / f"{kind}.sock")
        # Nothing is mounted over /tmp on the hosts.
        self.sockets = Path(tempfile.mkdtemp(prefix="lb-"))
        self.sockets.chmod(0o777)
        daemons = [root / "run/libvirt/libvirt-sock" for root in self._roots.values()]
        self.source, self.destination = (LibvirtHypervisor(f"qemu+unix:///system?socket={d}") for d in daemons)
        ends["rpc"][1] = daemons[1]
        self.relay = Relay({kind: (here, there) for kind, (here, there) in ends.items()})

    def new_vm(self, *, disk_size: int = 8 * MIB, disk_format: str = "") -> str:
        uuid = str(uuids.uuid4())
        disk, disk_format = "", disk_format or "raw"
        if disk_size:
            image = f"{IMAGES}/web.img"
            path = self._at("source", image)
            path.write_bytes(os.urandom(disk_size))
            if disk_format != "raw":
                self.hosts["source"].run(["qemu-img", "convert", "-O", disk_format, image, f"{image}.new"])
                self.hosts["source"].run(["mv", f"{image}.new", image])
            disk = (
                f"<disk type='file' device='disk'><driver name='qemu' type='{disk_format}'/>"
                f"<source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
            )
        self._at("source", "/run/landbridge/web.xml").write_text(
            f"<domain type='qemu'><name>web</name><uuid>{uuid}</uuid>"
            "<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
            "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
            f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disk}</devices></domain>"
        )
        self.hosts["source"].virsh("define", "/run/landbridge/web.xml")
        self.hosts["source"].virsh("start", "web")
        return uuid

    def write(self, uuid: str, offset: int, length: int) -> None:
        # The guest has no system: QEMU writes through its disk's device, as it does for the guest.
        device = "/machine/peripheral/virtio-disk0/virtio-backend"
        command = f'qemu-io -d {device} "write -P 1 {offset} {length}"'
        said = self.hosts["destination"].virsh("qemu-monitor-command", uuid, "--hmp", command)
        assert not said.strip(), said

    def pause(self, uuid: str) -> None:
        self.hosts["source"].virsh("suspend", uuid)

    def save_memory(self, uuid: str) -> None:
        self.hosts["source"].virsh("managedsave", uuid)

    def max_downtime(self, uuid: str) -> int:
        return int(self.hosts["source"].virsh("migrate-getmaxdowntime", uuid))

    def image(self, side: str, path: str) -> bytes:
        return self._at(side, path).read_bytes()

    def images(self, side: str) -> list[str]:
        return [image.name for image in self._at(side, IMAGES).iterdir()]

    def left(self) -> Disk:
        disk = super().left()
        disk.path = str(self._at("source", disk.path))
        return disk

    def stop_daemon(self) -> None:
        self.hosts["source"].run(["sh", "-c", "kill -KILL $(cat /run/libvirt/libvirtd.pid)"])

    def start_daemon(self) -> None:
        self.hosts["source"].start_libvirtd()
        self.hosts["source"].wait_for_libvirtd()

    def close(self) -> None:
        self.relay.close()
        self.source.close()
        self.destination.close()
        for side, host in self.hosts.items():
            for name in host.virsh("list", "--name").split():
                host.virsh("destroy", name)
            for name in host.virsh("list", "--all", "--name").split():
                host.virsh("undefine", name, "--managed-save", "--checkpoints-metadata")
            for image in self._at(side, IMAGES).iterdir():
                image.unlink()
        shutil.rmtree(self.sockets)

    def _at(self, side: str, path: str) -> Path:
        return self._roots[side] / path.lstrip("/")
