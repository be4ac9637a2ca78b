"""Links over real TLS: who may dial, who may answer, and what becomes of everybody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from certs import links, tls
from certs.guard import Access
from certs.identity import Identity, Role
from certs.links import Target, dial, listen
from certs.store import StoredIdentity
from landbridge.config import Address
from landbridge.errors import ConfigError, Unreachable
from landbridge.frame import Frame, FrameType
from landbridge.link import Link
from tests.unit.identities import DOMAIN, Identities
from tests.unit.wires import SECONDS, settled

HOSTS_OF_A = Access(Role.HOST, "a")


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities.make(tmp_path_factory.mktemp("identities"))


class Attached:
    """The links that a listener let in."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.links: asyncio.Queue[tuple[Link, Identity]] = asyncio.Queue()

    def target(self, own: StoredIdentity, role: Role = Role.GATEWAY, site: str = "a") -> Target:
        """How `own` dials it, expecting a role of a site."""
        name = tls.server_name(role, site, DOMAIN, "x1" if role is Role.HOST else None)
        address = Address("127.0.0.1", self.port)
        return Target(f"the {role} of site {site}", address, tls.client_context(own, site), name)


@asynccontextmanager
async def listening(own: StoredIdentity, access: Access = HOSTS_OF_A) -> AsyncIterator[Attached]:
    attached = Attached(0)
    server = await listen(
        Address("127.0.0.1", 0), own, access, lambda link, peer: attached.links.put_nowait((link, peer))
    )
    attached.port = server.sockets[0].getsockname()[1]
    try:
        yield attached
    finally:
        server.close()
        while not attached.links.empty():
            attached.links.get_nowait()[0].abort("the test is over")
        await settled()


async def refused(link: Link) -> None:
    """The other side ends the link without a frame."""
    with pytest.raises(Unreachable):
        async with asyncio.timeout(SECONDS):
            await anext(link.frames())


async def test_a_host_dials_its_gateway_and_both_know_each_other(identities: Identities) -> None:
    host = identities.of("a", Role.HOST)
    async with listening(identities.of("a", Role.GATEWAY)) as attached:
        ours = await dial(attached.target(host))
        async with asyncio.timeout(SECONDS):
            theirs, peer = await attached.links.get()
        assert peer == host.identity
        assert theirs.name == "host x1 of site a"
        assert ours.name == "the gateway of site a"
        ours.send(Frame(FrameType.DATA, 1, 0, b"hello"))
        assert (await anext(theirs.frames())).payload == b"hello"
        ours.abort("the test is over")
        theirs.abort("the test is over")


async def test_gateways_of_two_sites_dial_each_other(identities: Identities) -> None:
    access = Access(Role.GATEWAY, "a", local=False)
    async with listening(identities.of("a", Role.GATEWAY), access) as attached:
        ours = await dial(attached.target(identities.of("b", Role.GATEWAY)))
        async with asyncio.timeout(SECONDS):
            _, peer = await attached.links.get()
        assert (peer.site, peer.role) == ("b", Role.GATEWAY)
        ours.abort("the test is over")


@pytest.mark.parametrize(
    ("site", "role"), [("a", Role.OPERATOR), ("a", Role.GATEWAY), ("b", Role.HOST), ("stranger", Role.HOST)]
)
async def test_whoever_may_not_dial_is_cut_off_before_a_frame_is_read(
    identities: Identities, site: str, role: Role
) -> None:
    async with listening(identities.of("a", Role.GATEWAY)) as attached:
        with contextlib.suppress(Unreachable):  # in TLS 1.3, the side that dials may learn of it only when it reads
            link = await dial(attached.target(identities.of(site, role)))
            link.send(Frame(FrameType.OPEN, 1))
            await refused(link)
        await settled()
        assert attached.links.empty()


@pytest.mark.parametrize(
    ("site", "role"), [("a", Role.HOST), ("a", Role.OPERATOR), ("b", Role.GATEWAY), ("stranger", Role.GATEWAY)]
)
async def test_a_listener_that_is_not_whom_we_dialled_is_unreachable(
    identities: Identities, site: str, role: Role
) -> None:
    host = identities.of("a", Role.HOST, "x2")
    async with listening(identities.of(site, role)) as attached:
        with pytest.raises(Unreachable, match="the gateway of site a cannot be reached at 127"):
            await dial(attached.target(host))
        await settled()
        assert attached.links.empty()


async def test_a_host_with_another_name_does_not_answer_for_the_one_we_dialled(identities: Identities) -> None:
    gateway = identities.of("a", Role.GATEWAY)
    async with listening(identities.of("a", Role.HOST, "x2"), Access(Role.GATEWAY, "a")) as attached:
        with pytest.raises(Unreachable):
            await dial(attached.target(gateway, Role.HOST))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b""])
async def test_garbage_is_cut_off_and_the_next_caller_is_served(identities: Identities, garbage: bytes) -> None:
    async with listening(identities.of("a", Role.GATEWAY)) as attached:
        reader, writer = await asyncio.open_connection("127.0.0.1", attached.port)
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(SECONDS):
            try:
                while await reader.read(1024):
                    pass
            except ConnectionError:
                pass
        writer.close()
        assert attached.links.empty()
        link = await dial(attached.target(identities.of("a", Role.HOST)))
        async with asyncio.timeout(SECONDS):
            await attached.links.get()
        link.abort("the test is over")


async def answering(data: bytes) -> asyncio.Server:
    """A server that is no gateway."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize("data", [b"220 mail.example.org ESMTP\r\n", b""])
async def test_a_server_that_speaks_no_tls_is_unreachable(identities: Identities, data: bytes) -> None:
    server = await answering(data)
    target = Attached(server.sockets[0].getsockname()[1]).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match="see whether it runs"):
        await dial(target)
    server.close()
    await settled()


async def test_nobody_at_all_is_unreachable_with_the_address(identities: Identities) -> None:
    server = await answering(b"")
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        await dial(Attached(port).target(identities.of("a", Role.HOST)))


async def test_a_server_that_says_nothing_is_given_up(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "DIAL_TIMEOUT", 0.1)
    silent = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    target = Attached(server.sockets[0].getsockname()[1]).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match="does not answer"):
        await dial(target)
    silent.set()
    server.close()
    await settled()


async def test_a_name_that_does_not_resolve_is_unreachable(identities: Identities) -> None:
    target = Attached(7444).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match=r"nobody\.invalid:7444"):
        await dial(replace(target, address=Address("nobody.invalid", 7444)))


async def test_an_address_on_which_nothing_can_listen_is_a_config_error(identities: Identities) -> None:
    gateway = identities.of("a", Role.GATEWAY)
    async with listening(gateway) as attached:
        with pytest.raises(ConfigError, match=r"nothing can listen on 127.0.0.1:\d+ .*see \[listen\]"):
            await listen(Address("127.0.0.1", attached.port), gateway, HOSTS_OF_A, lambda *_: None)
