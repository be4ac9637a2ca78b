"""python -m tests.attack.recorder LISTEN LIBVIRTD LOG: a socket in front of libvirtd that writes down what libvirtd is given.

One JSON line for each whole message, before libvirtd has it, keepalives left out:

    {"connection": 3, "procedure": 303, "sha256": "..."}       bytes that are no whole message at the end: {"connection": 3, "rest": 17}
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import struct
import sys
from pathlib import Path
from typing import TextIO

KEEPALIVE_PROGRAM = 0x6B656570


class Recorder:
    """Takes connections, and makes one to libvirtd for each."""

    def __init__(self, libvirtd: str, log: TextIO) -> None:
        self._libvirtd = libvirtd
        self._log = log
        self._numbers = itertools.count(1)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        number = next(self._numbers)
        from_libvirtd, to_libvirtd = await asyncio.open_unix_connection(self._libvirtd)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._record(number, reader, to_libvirtd))
            both.create_task(_copy(from_libvirtd, writer))

    async def _record(self, number: int, reader: asyncio.StreamReader, libvirtd: asyncio.StreamWriter) -> None:
        rest = bytearray()
        while data := await _read(reader):
            rest += data
            while len(rest) >= 4 and len(rest) >= (length := max(4, struct.unpack_from("!I", rest)[0])):
                message = bytes(rest[:length])
                del rest[:length]
                program, _, procedure = struct.unpack_from("!III", message.ljust(16, b"\0"), 4)
                if program != KEEPALIVE_PROGRAM:
                    digest = hashlib.sha256(message).hexdigest()
                    self._write(connection=number, procedure=procedure, sha256=digest)
            libvirtd.write(data)
            await libvirtd.drain()
        if rest:
            self._write(connection=number, rest=len(rest))
        libvirtd.close()

    def _write(self, **line: object) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await _read(reader):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 16)
    except OSError:
        return b""


async def main(listen: str, recorder: Recorder) -> None:
    """Until it is ended."""
    async with await asyncio.start_unix_server(recorder.connected, listen) as server:
        await server.serve_forever()


if __name__ == "__main__":
    listen, libvirtd, log = sys.argv[1:]
    Path(listen).unlink(missing_ok=True)
    with Path(log).open("a") as lines:
        asyncio.run(main(listen, Recorder(libvirtd, lines)))
