"""The console recorder: one small process per guest, to whose socket each QEMU that runs the guest connects.

    python -m tests.lab.console SOCKET LOG NODE=NETNS...

Each line of the guest is stamped when its end arrives and appended to the log:

    <monotonic seconds> <wall seconds> <node> <connection> <text>

A QEMU is recognised by its network namespace, so the log says on which host each line was printed. A guest that is switched
over in the middle of a line ends it at the destination: what the source's QEMU has said of it goes before what comes there.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import time
from pathlib import Path


def main(address: str, log: str, *nodes: str) -> None:
    """Record until killed."""
    names = {Path(path).stat().st_ino: name for name, path in (node.split("=", 1) for node in nodes)}
    Path(address).unlink(missing_ok=True)
    selector = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, Path(log).open("a", buffering=1) as out:
        server.bind(address)
        Path(address).chmod(0o777)
        server.listen(8)
        selector.register(server, selectors.EVENT_READ)
        unfinished: dict[socket.socket, tuple[str, bytes]] = {}
        silent: set[socket.socket] = set()
        begun = b""  # the line that was last begun, and not ended, on whichever connection
        count = 0
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    connection, _ = server.accept()
                    count += 1
                    unfinished[connection] = (f"{_node_of(connection, names)} {count}", b"")
                    silent.add(connection)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                source, rest = unfinished[connection]
                data = b""
                with contextlib.suppress(OSError):
                    data = connection.recv(65536)
                now, wall = time.monotonic(), time.time()
                if not data:
                    selector.unregister(connection)
                    connection.close()
                    del unfinished[connection]
                    silent.discard(connection)
                    continue
                if connection in silent:
                    silent.remove(connection)
                    rest = begun
                *lines, rest = (rest + data).split(b"\n")
                unfinished[connection] = (source, rest)
                begun = rest
                out.writelines(
                    f"{now:.6f} {wall:.6f} {source} {line.decode(errors='replace').rstrip()}\n" for line in lines
                )


def _node_of(connection: socket.socket, names: dict[int, str]) -> str:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return names.get(Path(f"/proc/{pid}/ns/net").stat().st_ino, "?")
    except OSError:
        return "?"


if __name__ == "__main__":
    main(*sys.argv[1:])
