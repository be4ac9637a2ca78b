"""The fake hypervisor's other end: its "libvirtd", where a move arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Protocol

from agent.hypervisor import fake_wire as wire
from landbridge.errors import LandbridgeError
from landbridge.v1.types_pb2 import Vm

# FINISH says that all was sent; what is not here by then is lost.
ARRIVAL_PATIENCE_S = 5.0
DESTINATION_XML, RAM_URI, DISK_URI = "destination_xml", "migrate_uri", "disks_uri"


class Host(Protocol):
    """What the arriving end does to its host."""

    def land(self, xml: str) -> Vm:
        """A VM is to come; LandbridgeError if it cannot."""
        ...

    def arrive(self, uuid: str, memory: bytes, disks: bytes) -> None:
        """It is whole."""
        ...

    def discard(self, uuid: str) -> None:
        """It does not come after all; nothing happens if it did, or is gone."""
        ...


def listen(path: Path) -> socket.socket:
    """A listening UNIX socket at a path that may hold an old one."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def hang_up(sock: socket.socket) -> None:
    """Close a socket, and wake who waits on it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def serve(host: Host, path: Path) -> socket.socket:
    """Accept moves at `path` until the returned socket is hung up."""
    server = listen(path)

    def accept() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_Landing(host, sock).run, name="fake-landing", daemon=True).start()

    threading.Thread(target=accept, name="fake-libvirtd", daemon=True).start()
    return server


class _Stream:
    """One of the two sockets that PREPARE names: it takes one connection, and what comes through it."""

    def __init__(self, path: Path) -> None:
        self._server = listen(path)
        self._done = threading.Event()
        self._data: bytes | None = None
        self._socket: socket.socket | None = None
        threading.Thread(target=self._receive, name="fake-stream", daemon=True).start()

    def data(self) -> bytes:
        """What came; WireError if not all of it did."""
        self._done.wait(ARRIVAL_PATIENCE_S)
        if self._data is None:
            raise wire.WireError("not everything came before the end of the move")
        return self._data

    def close(self) -> None:
        hang_up(self._server)
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            self._socket, _ = self._server.accept()
            with self._socket:
                size = wire.read(self._socket, 8)
                self._data = wire.read(self._socket, int.from_bytes(size, "big"))
                self._done.set()
                self._socket.sendall(size)
        self._done.set()


class _Landing:
    """One connection: at most one VM comes through it, and goes with it unless it has arrived."""

    def __init__(self, host: Host, sock: socket.socket) -> None:
        self._host = host
        self._sock = sock
        self._vm: Vm | None = None
        self._streams: dict[str, _Stream] = {}

    def run(self) -> None:
        with self._sock, contextlib.suppress(OSError):
            while self._answer(wire.receive(self._sock)) != wire.CLOSE:
                pass
        self._end()

    def _answer(self, call: wire.Frame) -> int:
        status, payload = wire.OK, b""
        try:
            match call.procedure:
                case wire.AUTH_LIST:
                    payload = wire.number(1) + wire.number(0)
                case wire.SUPPORTS_FEATURE:
                    payload = wire.number(1)
                case wire.PREPARE:
                    payload = self._prepare(wire.Reader(call.payload))
                case wire.FINISH:
                    payload = self._finish(wire.Reader(call.payload))
                case wire.OPEN | wire.CLOSE | wire.REGISTER_CLOSE | wire.UNREGISTER_CLOSE:
                    pass
                case other:
                    status, payload = wire.ERROR, wire.error(f"procedure {other} is not part of a move")
        except (LandbridgeError, wire.WireError) as error:
            self._end()
            status, payload = wire.ERROR, wire.error(str(error))
        reply = wire.Frame(wire.REMOTE, call.procedure, wire.REPLY, call.serial, status, payload)
        wire.send(self._sock, reply)
        return call.procedure

    def _prepare(self, payload: wire.Reader) -> bytes:
        given = dict(payload.parameters())
        self._vm = self._host.land(given[DESTINATION_XML])
        self._streams = {
            name: _Stream(Path(given[name].removeprefix("unix://"))) for name in (RAM_URI, DISK_URI) if name in given
        }
        return wire.opaque(b"") + wire.number(0)  # no cookie, no other URI

    def _finish(self, payload: wire.Reader) -> bytes:
        payload.parameters(), payload.opaque(), payload.number()
        cancelled = payload.number()
        if self._vm is None:
            raise wire.WireError("FINISH comes before PREPARE")
        if cancelled:
            raise wire.WireError("migration was cancelled")
        data = {name: stream.data() for name, stream in self._streams.items()}
        vm, self._vm = self._vm, None
        self._host.arrive(vm.uuid, data[RAM_URI], data.get(DISK_URI, b""))
        return wire.domain(vm.name, vm.uuid) + wire.opaque(b"")

    def _end(self) -> None:
        for stream in self._streams.values():
            stream.close()
        if self._vm is not None:
            self._host.discard(self._vm.uuid)
            self._vm = None
