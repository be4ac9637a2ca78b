"""Asking who is at an address, before anything of it is known."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs import authority, probe, store, tls
from certs.identity import Identity, Role, Site
from certs.store import StoredIdentity
from certs.trust import pem_of
from landbridge.config import Address
from landbridge.errors import IdentityError, Unreachable

A = Site("example.org", "a")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@asynccontextmanager
async def listening(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


def shown(directory: Path, role: Role, *, root: bool, forged: bool = False) -> StoredIdentity:
    """An identity whose chain has an issuer, and perhaps the root, or one that has signed nothing of it."""
    now = datetime.now(UTC)
    ca = authority.create(A, now)
    issuer = authority.make_issuer(ca, "gw1", now)
    store.save_identity(directory, authority.issue(issuer, Identity("example.org", "a", role, "gw1"), now))
    if root:
        added = authority.create(A, now) if forged else ca
        with (directory / "cert.pem").open("ab") as file:
            file.write(pem_of([added.certificate]))
    return store.load_identity(directory, now)


async def test_a_gateway_that_shows_its_root_is_told_by_it(tmp_path: Path) -> None:
    local = shown(tmp_path, Role.GATEWAY, root=True)
    async with listening(hang_up, tls.server_context(local)) as address:
        credential, root = await probe.probe(address)
    assert credential.identity == local.identity
    assert root == local.root


@pytest.mark.parametrize(
    ("role", "root", "forged"), [(Role.HOST, True, False), (Role.GATEWAY, False, False), (Role.GATEWAY, True, True)]
)
async def test_who_is_no_gateway_or_shows_no_root_that_fits_is_refused(
    tmp_path: Path, role: Role, root: bool, forged: bool
) -> None:
    local = shown(tmp_path, role, root=root, forged=forged)
    async with listening(hang_up, tls.server_context(local)) as address:
        with pytest.raises(IdentityError, match="is no gateway of Landbridge that shows its root"):
            await probe.probe(address)


async def test_what_speaks_no_tls_is_unreachable() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org\r\n" * 100)
        writer.close()

    async with listening(greet) as address:
        with pytest.raises(Unreachable, match=r"cannot be reached over TLS 1\.3"):
            await probe.probe(address)


async def test_what_says_nothing_is_unreachable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.2)
    over = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with listening(wait) as address:
        with pytest.raises(Unreachable, match="Nobody answers at"):
            await probe.probe(address)
        over.set()


async def test_an_older_tls_is_not_spoken(tmp_path: Path) -> None:
    context = tls.server_context(shown(tmp_path, Role.GATEWAY, root=True))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(hang_up, context) as address:
        with pytest.raises(Unreachable):
            await probe.probe(address)
