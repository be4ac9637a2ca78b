"""Record what real clients and servers of NBD say to each other: `python -m tests.vectors.record_nbd [name ...]`.

It wants QEMU and its tools, nbdkit, and nbdcopy (Debian: qemu-system-x86, qemu-utils, nbdkit, libnbd-bin).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.vectors.nbd_sessions import BLOCK, DISK_BLOCKS, HOLE, Session, contents, save

SIZE = DISK_BLOCKS * BLOCK
PATIENCE = 30.0
EXPORT = "drive-virtio-disk0"
QEMU = ("qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16", "-S", "-nodefaults", "-display", "none")


class Recorder:
    """Stands between a client, at `client.sock`, and a server, at `server.sock`, and notes who said what."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.client, self.server, self.disk = (directory / name for name in ("client.sock", "server.sock", "disk"))
        # A session for each connection.
        self.sessions: list[Session] = []

    @property
    def uri(self) -> str:
        """Where clients find the export."""
        return f"nbd+unix:///{EXPORT}?socket={self.client}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take connections."""
        async with await asyncio.start_unix_server(self._connected, self.client):
            yield

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session()
        self.sessions.append(session)
        far_reader, far_writer = await asyncio.open_unix_connection(self.server)
        await asyncio.gather(
            self._carry(reader, far_writer, session, is_client=True),
            self._carry(far_reader, writer, session, is_client=False),
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session, *, is_client: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                # Noted before it goes on: nothing that answers to it can be noted earlier.
                session.append((is_client, data))
                writer.write(data)
                await writer.drain()
        writer.close()


async def run(*command: str | Path, fails: bool = False) -> None:
    """Run a command until it ends."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    if bool(process.returncode) is not fails:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said.decode()}")


@contextlib.asynccontextmanager
async def started(*command: str | Path, opens: Path) -> AsyncIterator[None]:
    """A program that runs meanwhile, from when it has opened its socket."""
    silent = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=silent, stderr=silent)
    try:
        async with asyncio.timeout(PATIENCE):
            while not opens.exists():  # noqa: ASYNC110, ASYNC240 - it does not say when it listens
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def qemu_nbd(recorder: Recorder) -> contextlib.AbstractAsyncContextManager[None]:
    """QEMU's server for the disk, on its own."""
    export = ("-f", "raw", "-x", EXPORT, "--discard=unmap", "-t", "-e", "4")
    return started("qemu-nbd", *export, "-k", recorder.server, recorder.disk, opens=recorder.server)


def nbdkit(recorder: Recorder, *options: str) -> contextlib.AbstractAsyncContextManager[None]:
    """Another server, which can leave out what QEMU's cannot."""
    return started("nbdkit", "-f", "-U", recorder.server, *options, "file", recorder.disk, opens=recorder.server)


def make_disk(path: Path) -> None:
    """A disk that is written, but for HOLE."""
    path.write_bytes(b"")
    with path.open("r+b") as disk:
        disk.truncate(SIZE)
        disk.write(contents(0, HOLE.start * BLOCK))
        disk.seek(HOLE.stop * BLOCK)
        disk.write(contents(HOLE.stop * BLOCK, SIZE - HOLE.stop * BLOCK))


def make_empty_disk(path: Path) -> None:
    """A disk that is one hole."""
    path.write_bytes(b"")
    with path.open("r+b") as disk:
        disk.truncate(SIZE)


def write(recorder: Recorder, offset: int, length: int) -> str:
    """The command of qemu-io that writes there what belongs there."""
    pattern = recorder.directory / f"pattern-{offset}-{length}"
    pattern.write_bytes(contents(offset, length))
    return f"write -s {pattern} {offset} {length}"


async def qemu_io(recorder: Recorder, *commands: str) -> None:
    """Do these one after the other, as a client."""
    options = [part for command in commands for part in ("-c", command)]
    await run("qemu-io", "-f", "raw", *options, recorder.uri)


async def copy_there(recorder: Recorder) -> None:
    """A disk is copied to the server: requests to write."""
    make_empty_disk(recorder.disk)
    make_disk(recorder.directory / "here")
    async with qemu_nbd(recorder):
        await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", recorder.directory / "here", recorder.uri)


async def copy_here(recorder: Recorder) -> None:
    """A disk is copied from the server: chunks of data and holes."""
    make_disk(recorder.disk)
    async with qemu_nbd(recorder):
        await run("qemu-img", "convert", "-f", "raw", "-O", "raw", recorder.uri, recorder.directory / "here")


async def odd(recorder: Recorder) -> None:
    """Extents that begin and end within blocks, and requests without data."""
    make_disk(recorder.disk)
    async with qemu_nbd(recorder):
        writes = [
            write(recorder, *extent) for extent in ((512, 9000), (4096, 4096), (100 * BLOCK + 1000, 20000), (50, 100))
        ]
        reads = ["read 700 30000", "read 4095 2", "read 270000 70000", "read 0 4096"]
        others = ["write -z 40960 8192", "write -z -u 81920 12288", "discard 122880 8192", "flush"]
        await qemu_io(recorder, *writes, *reads, *others, writes[0], *reads)


async def simple(recorder: Recorder) -> None:
    """Replies that only those can read who know the request."""
    make_disk(recorder.disk)
    async with nbdkit(recorder, "--no-sr"):
        await qemu_io(
            recorder, "read 0 65536", write(recorder, 8192, 65536), "read 700 30000", "flush", "read 300000 100000"
        )


async def export_name(recorder: Recorder) -> None:
    """A server without fixed newstyle: EXPORT_NAME, and 124 zeroes behind the export's size."""
    make_disk(recorder.disk)
    async with nbdkit(recorder, "--mask-handshake=0"):
        await qemu_io(recorder, write(recorder, 8192, 65536), "read 0 65536")


async def old_style(recorder: Recorder) -> None:
    """A server that haggles about nothing."""
    make_disk(recorder.disk)
    recorder_uri = f"nbd+unix:///?socket={recorder.client}"
    async with nbdkit(recorder, "-o"):
        await run("qemu-io", "-f", "raw", "-c", "read 0 65536", recorder_uri)


async def in_parallel(recorder: Recorder) -> None:
    """A client that has many requests under way, and answers that overtake each other."""
    make_disk(recorder.disk)
    async with qemu_nbd(recorder):
        here = recorder.directory / "here"
        await run("nbdcopy", "--connections=1", "--requests=32", "--request-size=16384", recorder.uri, here)


async def listing(recorder: Recorder) -> None:
    """A client that wants to know what there is."""
    make_disk(recorder.disk)
    async with qemu_nbd(recorder):
        await run("qemu-nbd", "--list", "-k", recorder.client)


async def refused(recorder: Recorder) -> None:
    """An export that the server does not have."""
    make_disk(recorder.disk)
    async with qemu_nbd(recorder):
        await run("qemu-img", "info", f"nbd+unix:///other?socket={recorder.client}", fails=True)


class Monitor:
    """QMP, of which only what is done and waited for matters."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Monitor:
        monitor = cls(*await asyncio.open_unix_connection(path))
        await monitor("qmp_capabilities")
        return monitor

    async def __call__(self, command: str, **arguments: Any) -> Any:
        """Do a command, and return what it says."""
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = await self.wait(lambda message: "return" in message or "error" in message)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    async def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until this comes; what comes before it is not kept."""
        while True:
            message: dict[str, Any] = json.loads(await asyncio.wait_for(self._reader.readline(), PATIENCE))
            if wanted(message):
                return message


def file_node(name: str, path: Path) -> str:
    """A raw disk, as an argument of QEMU's."""
    file = {"driver": "file", "filename": str(path), "discard": "unmap"}
    return json.dumps({"driver": "raw", "node-name": name, "discard": "unmap", "file": file})


async def mirror(recorder: Recorder) -> None:
    """What a migration does: one QEMU mirrors a guest's disk to another, while the guest writes."""
    here, source, destination = (recorder.directory / name for name in ("here", "source.qmp", "destination.qmp"))
    make_empty_disk(recorder.disk)
    make_disk(here)
    from_here = (*QEMU, "-qmp", f"unix:{source},server=on,wait=off", "-blockdev", file_node("here", here))
    device = ("-device", "virtio-blk-pci,id=disk,drive=here")
    to_there = (*QEMU, "-qmp", f"unix:{destination},server=on,wait=off", "-blockdev", file_node("there", recorder.disk))
    async with started(*from_here, *device, opens=source), started(*to_there, opens=destination):
        there = await Monitor.connect(destination)
        address = {"type": "unix", "data": {"path": str(recorder.server)}}
        await there("nbd-server-start", addr=address)
        export = {"type": "nbd", "id": "export", "node-name": "there", "name": EXPORT, "writable": True}
        await there("block-export-add", **export)
        await _mirror(recorder, await Monitor.connect(source))
        await there("nbd-server-stop")


async def _mirror(recorder: Recorder, here: Monitor) -> None:
    server = {"type": "unix", "path": str(recorder.client)}
    await here("blockdev-add", driver="nbd", **{"node-name": "target", "server": server, "export": EXPORT})
    await here("blockdev-mirror", **{"job-id": "copy", "device": "here", "target": "target", "sync": "full"})
    await here.wait(lambda message: message.get("event") == "BLOCK_JOB_READY")
    for extent in ((3 * BLOCK, 5 * BLOCK), (150 * BLOCK + 512, 3000), (200 * BLOCK, BLOCK)):
        command = f'qemu-io -d /machine/peripheral/disk/virtio-backend "{write(recorder, *extent)}"'
        said = await here("human-monitor-command", **{"command-line": command})
        if said:  # it prints elsewhere what it has done
            raise RuntimeError(f"the guest's write failed: {said}")
    await here("block-job-cancel", device="copy")
    await here.wait(lambda message: message.get("event") == "BLOCK_JOB_COMPLETED")
    await here("blockdev-del", **{"node-name": "target"})


SESSIONS: dict[str, Callable[[Recorder], Awaitable[None]]] = {
    "copy_there": copy_there,
    "copy_here": copy_here,
    "odd": odd,
    "simple": simple,
    "export_name": export_name,
    "old_style": old_style,
    "in_parallel": in_parallel,
    "listing": listing,
    "refused": refused,
    "mirror": mirror,
}


async def record(wanted: Sequence[str] = ()) -> None:
    """Record these sessions, or all; of several connections the one that said most."""
    for name in wanted or SESSIONS:
        with tempfile.TemporaryDirectory() as directory:
            recorder = Recorder(Path(directory))
            async with recorder.running():
                await SESSIONS[name](recorder)
            session = max(recorder.sessions, key=lambda each: sum(len(data) for _, data in each))
            save(name, session)


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
