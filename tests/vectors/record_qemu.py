"""Record what a real QEMU sends when it migrates a guest of 4 MiB, in several ways.

The guest is a firmware of a few instructions, which fills some pages and then changes a word of each of them, round and round.
All the rest of its memory is zeros: so a recording takes a few kilobytes. QEMU must be there, as `qemu-system-x86_64`; post-copy
wants the right to use userfaultfd (root has it).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vectors import save

BIOS_SIZE = 64 << 10
# Real mode, 16 bit; at offset 0 of the firmware. Pages of 0x100 paragraphs; `ds` and `es` are the segment of one.
CODE = bytes.fromhex(
    "b90010"  # mov cx, 0x1000            pages from 64 KiB on, 4 in a row and then 4 left out
    "8ec1"  # fill: mov es, cx
    "89c8"  # mov ax, cx
    "31ff"  # xor di, di
    "89ca"  # mov dx, cx
    "b90008"  # mov cx, 2048
    "fc"  # cld
    "f3ab"  # rep stosw                  fill a page with the number of its segment
    "89d1"  # mov cx, dx
    "81c10001"  # add cx, 0x100
    "f6c504"  # test ch, 4
    "7404"  # jz +4
    "81c10004"  # add cx, 0x400
    "81f90050"  # cmp cx, 0x5000
    "72dd"  # jb fill
    "31db"  # xor bx, bx
    "b90010"  # round: mov cx, 0x1000
    "8ed9"  # change: mov ds, cx
    "891e1000"  # mov [16], bx
    "81c10001"  # add cx, 0x100
    "f6c504"  # test ch, 4
    "7404"  # jz +4
    "81c10004"  # add cx, 0x400
    "81f90050"  # cmp cx, 0x5000
    "72e7"  # jb change
    "43"  # inc bx
    "31c9"  # xor cx, cx
    "e2fe"  # loop $                     a while
    # QEMU 7.2 without KVM sees that a page changes again only after the guest's TLB was emptied: that is what CR0.WP is toggled for.
    "0f20c0"  # mov eax, cr0
    "663500000100"  # xor eax, 0x10000
    "0f22c0"  # mov cr0, eax
    "ebd1"  # jmp round
)
RESET = bytes.fromhex("e90d00")  # jmp 0, at the reset vector
QEMU = "qemu-system-x86_64"
MACHINE = "-machine pc,accel=tcg,suppress-vmdesc={} -nodefaults -display none -m 4 -smp 1".format
PATIENCE = 60.0


@dataclass(frozen=True)
class Recording:
    """One way to migrate."""

    name: str
    capabilities: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    # Bytes a second, but for the last round: a round must take QEMU more than the 100 ms after which it knows its rate.
    rate: int = 1 << 20
    postcopy: bool = False
    with_vmdesc: bool = False


RECORDINGS = (
    Recording("plain", with_vmdesc=True),
    Recording("rounds", rounds=6),
    Recording("xbzrle", ("xbzrle",), {"xbzrle-cache-size": 1 << 20}, rounds=6),
    Recording("compress", ("compress",), {"compress-threads": 2}, rounds=3, rate=1 << 14),
    Recording("postcopy", ("postcopy-ram",), rounds=2, postcopy=True),
    Recording("multifd", ("multifd",), {"multifd-channels": 2}, rounds=3),
    Recording(
        "multifd-zlib", ("multifd",), {"multifd-channels": 2, "multifd-compression": "zlib"}, rounds=3, rate=1 << 16
    ),
    Recording(
        "multifd-zstd", ("multifd",), {"multifd-channels": 2, "multifd-compression": "zstd"}, rounds=3, rate=1 << 16
    ),
)


class Qemu:
    """A running QEMU and its monitor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, command: str, **arguments: object) -> Any:
        """Run a command of the monitor. Raises RuntimeError with QEMU's own words if it fails."""
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := await self._reader.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{command}: QEMU has gone")

    async def migration(self, until: str) -> None:
        """Wait for a state of the migration, or a number of rounds. Raises RuntimeError if it fails."""
        while True:
            found = await self.ask("query-migrate")
            if found["status"] == until or str(found.get("ram", {}).get("dirty-sync-count")) == until:
                return
            if found["status"] in {"failed", "cancelled", "completed"}:
                raise RuntimeError(f"the migration is {found['status']}, and was to be {until}")
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def qemu(directory: Path, name: str, *arguments: str) -> AsyncIterator[Qemu]:
    """A QEMU for as long as it is needed."""
    firmware, monitor = directory / "firmware", directory / f"{name}.qmp"
    firmware.write_bytes((CODE.ljust(BIOS_SIZE - 16, b"\0") + RESET).ljust(BIOS_SIZE, b"\0"))
    connected: asyncio.Future[Qemu] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(lambda *ends: connected.set_result(Qemu(*ends)), monitor, limit=1 << 20)
    process = await asyncio.create_subprocess_exec(
        QEMU, *arguments, "-bios", str(firmware), "-qmp", f"unix:{monitor}", stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield await asyncio.wait_for(connected, PATIENCE)
    finally:
        process.kill()
        await process.wait()
        server.close()


class Recorder:
    """A socket at which a source arrives, and which passes everything on to a destination, if there is one."""

    def __init__(self, destination: Path | None) -> None:
        self.streams: list[bytearray] = []
        self._destination = destination
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Record one connection until its end."""
        self.streams.append(stream := bytearray())
        onward = None
        if self._destination:
            back, onward = await asyncio.open_unix_connection(self._destination)
            self._tasks.add(asyncio.create_task(self._pass_back(back, writer)))
        while data := await reader.read(1 << 16):
            stream += data
            if onward:
                onward.write(data)
                await onward.drain()
        if onward:
            onward.close()

    @staticmethod
    async def _pass_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()


async def filled(source: Qemu) -> None:
    """Wait until the guest has filled its pages: the last word of the last one is its segment."""
    look = {"command-line": "xp /1hx 0x4bffe"}
    while "0x4b00" not in await source.ask("human-monitor-command", **look):  # noqa: ASYNC110 - QEMU has no event for it
        await asyncio.sleep(0.01)


async def record_one(how: Recording, directory: Path) -> list[bytes]:
    """The connections of one migration, in the order in which they were accepted."""
    machine = MACHINE("off" if how.with_vmdesc else "on").split()
    destination = directory / "destination" if how.postcopy else None
    recorder = Recorder(destination)
    async with contextlib.AsyncExitStack() as stack:
        source = await stack.enter_async_context(qemu(directory, "source", *machine))
        ends = [source]
        if destination:
            incoming = ("-incoming", "defer")
            ends.append(await stack.enter_async_context(qemu(directory, "other", *machine, *incoming)))
        server = await asyncio.start_unix_server(recorder.accept, directory / "recorder")
        stack.callback(server.close)
        for end in ends:
            await end.ask("qmp_capabilities")
            capabilities = [{"capability": name, "state": True} for name in how.capabilities]
            await end.ask("migrate-set-capabilities", capabilities=capabilities)
            await end.ask("migrate-set-parameters", **how.parameters)
        if destination:
            await ends[1].ask("migrate-incoming", uri=f"unix:{destination}")
        await filled(source)
        slow = {"max-bandwidth": how.rate, "downtime-limit": 1} if how.rounds > 1 else {}
        await source.ask("migrate-set-parameters", **slow)
        await source.ask("migrate", uri=f"unix:{directory / 'recorder'}")
        if how.rounds > 1:
            await source.migration(str(how.rounds))
            if how.postcopy:
                await source.ask("migrate-start-postcopy")
            await source.ask("migrate-set-parameters", **{"downtime-limit": 2000, "max-bandwidth": 1 << 30})
        await source.migration("completed")
    return [bytes(stream) for stream in recorder.streams]


async def record() -> None:
    """Record all of them."""
    for how in RECORDINGS:
        with tempfile.TemporaryDirectory() as directory:
            streams = await asyncio.wait_for(record_one(how, Path(directory)), PATIENCE)
        for number, stream in enumerate(streams):
            name = how.name if len(streams) == 1 else f"{how.name}-{number}"
            save("qemu", name, stream)
            print(f"{name}: {len(stream)} bytes, begins with {stream[:4].hex()}", file=sys.stderr)
