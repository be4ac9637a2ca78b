"""The fake hypervisor's move away: libvirt's calls in libvirt's order, and bytes through the other two sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.hypervisor import fake_wire as wire
from agent.hypervisor.base import MoveRequest
from agent.hypervisor.fake_incoming import DESTINATION_XML, DISK_URI, RAM_URI
from landbridge.v1.types_pb2 import Progress, Vm

CHUNK = 16384
# Seconds of a pass over memory that sends what the guest writes meanwhile.
PASS_S = 0.1
# LIVE | PEER2PEER | PERSIST_DEST | PAUSED, and NON_SHARED_DISK, as libvirt numbers and sends them.
FLAGS, DISK_FLAG = 1 | 2 | 8 | 32, 64


class Outgoing:
    """One move: its worker runs it; `abort` and `so_far` may come from any thread."""

    def __init__(self, rate: int, dirty_rate: int, suspend: Callable[[], None]) -> None:
        """`rate` in bytes per second, 0 for as fast as it goes; `suspend` stops the guest for the switch-over.

        A guest whose `dirty_rate` is not below a `rate` has as much memory left, pass after pass, until it is throttled or paused.
        """
        self._rate = rate
        self._dirty_rate = dirty_rate
        self._paused = threading.Event()
        self._suspend = suspend
        self._progress = Progress(rate=rate)  # written by the worker
        self._began = time.monotonic()
        self._aborted = threading.Event()
        # Where the bytes go just now; an abort shuts it down.
        self._socket: socket.socket | None = None

    @property
    def is_aborted(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._aborted.is_set()

    def abort(self) -> None:
        """Stop it; `run` raises."""
        self._aborted.set()
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def pause(self) -> None:
        """The guest writes no more."""
        self._paused.set()

    def so_far(self) -> Progress:
        """How it goes."""
        progress = Progress()
        progress.CopyFrom(self._progress)
        progress.elapsed_ms = int((time.monotonic() - self._began) * 1000)
        return progress

    def run(
        self,
        host: str,
        vm: Vm,
        request: MoveRequest,
        disks: Sequence[bytes],
        memory: bytes,
        far_runtime: Path | None = None,
    ) -> None:
        """Returns when the destination has said that the VM arrived; OSError if it has not."""
        given = [(DESTINATION_XML, request.domain_xml), (RAM_URI, _uri(request.ram_socket, far_runtime))]
        if request.disks:
            given += [("migrate_disks", target) for target in request.disks]
            given.append((DISK_URI, _uri(request.disk_socket, far_runtime)))
        flags = wire.number(FLAGS | (DISK_FLAG if request.disks else 0))
        cookie = wire.opaque(wire.cookie(vm.name, vm.uuid, host))
        persistent = wire.opaque(wire.cookie(vm.name, vm.uuid, host, request.domain_xml))
        finish = wire.parameters([*given, ("destination_name", vm.name)])
        with _connect(request.rpc_socket) as sock:
            libvirtd = wire.Caller(sock)
            libvirtd.greet()
            libvirtd.call(wire.PREPARE, wire.parameters(given) + cookie + flags)
            try:
                if request.disks:
                    self._send_disks(request.disk_socket, disks)
                self._make_passes(memory, throttle=request.throttle)
                self._send_memory(request.ram_socket, memory)
            except OSError:
                with contextlib.suppress(OSError):
                    libvirtd.call(wire.FINISH, finish + cookie + flags + wire.number(1))
                raise
            libvirtd.call(wire.FINISH, finish + persistent + flags + wire.number(0))
            with contextlib.suppress(OSError):  # the VM has left: nothing that happens now brings it back
                libvirtd.leave()

    def _send_disks(self, path: str, disks: Sequence[bytes]) -> None:
        data = b"".join(len(disk).to_bytes(8, "big") + disk for disk in disks)
        self._progress.disk_total = len(data)
        with self._open(path) as sock:
            for sent in self._send(sock, data):
                self._progress.disk_remaining = len(data) - sent

    def _make_passes(self, memory: bytes, *, throttle: bool) -> None:
        """The passes after each of which as much is left as before; they take their time, and nothing is sent."""
        self._progress.memory_total = self._progress.memory_remaining = len(memory)
        self._progress.iteration = 1
        self._progress.memory_rate = self._rate
        while self._rate and self._dirty_rate >= self._rate and not self._paused.is_set():
            if self.is_aborted:
                raise ConnectionAbortedError
            self._progress.dirty_rate = self._dirty_rate
            self._paused.wait(PASS_S)
            self._progress.iteration += 1
            if throttle:
                self._dirty_rate -= self._dirty_rate // 10
                self._progress.throttle += 10
        self._progress.dirty_rate = 0

    def _send_memory(self, path: str, memory: bytes) -> None:
        self._progress.memory_total = len(memory)
        with self._open(path) as sock:
            for sent in self._send(sock, memory):
                self._progress.memory_remaining = len(memory) - sent
                if sent < len(memory) <= sent + CHUNK:
                    self._suspend()

    def _send(self, sock: socket.socket, data: bytes) -> Iterator[int]:
        """Yields how much has gone, before each chunk and after the last; WireError if not all was received."""
        size = len(data).to_bytes(8, "big")
        sock.sendall(size)
        for start in range(0, len(data), CHUNK):
            yield start
            chunk = data[start : start + CHUNK]
            if self._rate:
                self._aborted.wait(len(chunk) / self._rate)
            if self.is_aborted:
                raise ConnectionAbortedError
            sock.sendall(chunk)
        if wire.read(sock, 8) != size:
            raise wire.WireError("the destination counts differently")
        yield len(data)

    def _open(self, path: str) -> socket.socket:
        self._socket = _connect(path)
        return self._socket


def _uri(path: str, far_runtime: Path | None) -> str:
    """<far_runtime>/<migration>/<kind>.sock for <anything>/<migration>/<kind>.sock."""
    there = Path(path) if far_runtime is None else far_runtime / Path(path).parent.name / Path(path).name
    return f"unix://{there}"


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
