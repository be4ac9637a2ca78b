"""Libvirt or QEMU on a host, played by a test: one end of a local connection."""

from __future__ import annotations

import asyncio
import socket

from tests.unit.wires import SECONDS


class Local:
    """One end of a connection on this host."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, path: str) -> Local:
        sock = socket.socket(socket.AF_UNIX)
        local = cls(sock)
        await local._loop.sock_connect(sock, path)
        return local

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(SECONDS):
            await self._loop.sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        data = bytearray()
        async with asyncio.timeout(SECONDS):
            while len(data) < count and (part := await self._loop.sock_recv(self.sock, count - len(data))):
                data += part
        return bytes(data)

    def has_nothing(self) -> bool:
        """Whether no byte has come, and no end."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    async def is_closed(self) -> bool:
        """Whether the other side ends the connection, now or soon; without another byte."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._loop.sock_recv(self.sock, 1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.sock.close()
