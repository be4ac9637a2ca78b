"""Links over real TLS: who may dial, who may answer, and what becomes of everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from certs import links
from certs.guard import Access
from certs.identity import Identity, Role, Site
from certs.links import Listener, Target, dial, listen
from certs.living import LivingIdentity
from certs.store import StoredIdentity
from landbridge.config import Address
from landbridge.errors import ConfigError, Unreachable
from landbridge.frame import Frame, FrameType
from landbridge.link import Link
from tests.unit.identities import Identities
from tests.unit.wires import SECONDS, End, no_exceptions, nothing_left, settled, until

HOSTS_OF_A = Access(Role.HOST, Site("example.org", "a"))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities.make(tmp_path_factory.mktemp("identities"))


class Attached:
    """The links that a listener let in."""

    def __init__(self, listener: Listener | None, port: int) -> None:
        self.listener = listener
        self.port = port
        self.links: asyncio.Queue[tuple[Link, Identity]] = asyncio.Queue()

    def target(self, own: StoredIdentity, role: Role = Role.GATEWAY, site: str = "a") -> Target:
        """How `own` dials it, expecting a role of a site."""
        address = Address("127.0.0.1", self.port)
        name = "x1" if role is Role.HOST else ""
        return Target(f"the {role} of site {site}", address, LivingIdentity(own), role, site, name)

    async def next(self) -> tuple[End, Identity]:
        """The next link that was let in, with a test at our end of it."""
        async with asyncio.timeout(SECONDS):
            link, peer = await self.links.get()
        return started(link), peer


def started(link: Link) -> End:
    end = End(link)
    link.start(end)
    return end


@asynccontextmanager
async def listening(
    own: StoredIdentity, access: Access = HOSTS_OF_A, *, is_tunnel: bool = False
) -> AsyncIterator[Attached]:
    attached = Attached(None, 0)
    listener = await listen(
        Address("127.0.0.1", 0),
        LivingIdentity(own),
        access,
        lambda link, peer: attached.links.put_nowait((link, peer)),
        is_tunnel=is_tunnel,
    )
    attached.listener, attached.port = listener, listener.port
    try:
        with no_exceptions():
            yield attached
    finally:
        listener.close()
        while not attached.links.empty():
            attached.links.get_nowait()[0].abort("the test is over")
        await settled()


class Caller:
    """Somebody who connects, and has no certificate to show."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int) -> Caller:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def is_cut_off(self) -> None:
        """Returns when the other side has ended the connection."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                while await self._loop.sock_recv(self.sock, 1024):
                    pass
        self.sock.close()


async def test_an_address_that_is_refused_too_often_is_turned_away_at_once_and_comes_in_again_later(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "REFUSED", (3, 2.0))
    host = identities.of("a", Role.HOST)
    with capture_logs() as entries:
        async with listening(identities.of("a", Role.GATEWAY)) as attached:
            for _ in range(5):
                caller = await Caller.connect(attached.port)
                with contextlib.suppress(ConnectionError):
                    caller.sock.send(b"GET / HTTP/1.1\r\n\r\n")
                await caller.is_cut_off()
            reasons = [str(entry["reason"]) for entry in entries if entry["event"] == "link.refused"]
            assert [reason.startswith("no TLS handshake") for reason in reasons] == [True, True, True, False]
            assert reasons[-1] == "it tries too often"

            async with asyncio.timeout(SECONDS):
                while True:
                    with contextlib.suppress(Unreachable):
                        ours = started(await dial(attached.target(host)))
                        break
                    await asyncio.sleep(0.05)
            theirs, peer = await attached.next()
            assert peer == host.identity
            ours.link.abort("the test is over")
            theirs.link.abort("the test is over")


@pytest.mark.parametrize("is_tunnel", [False, True])
async def test_a_host_dials_its_gateway_and_both_know_each_other(identities: Identities, is_tunnel: bool) -> None:
    host = identities.of("a", Role.HOST)
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY), is_tunnel=is_tunnel) as attached:
        ours = started(await dial(replace(attached.target(host), is_tunnel=is_tunnel)))
        theirs, peer = await attached.next()
        assert peer == host.identity
        assert theirs.link.name == "host x1 of site a"
        assert ours.link.name == "the gateway of site a"
        sent = [Frame(FrameType.DATA, 1, n, bytes([n]) * (1 << 18)) for n in range(16)]
        ours.send(*sent)
        theirs.send(*sent)
        for end in (ours, theirs):
            assert [await end.next() for _ in sent] == sent
        ours.link.abort("the test is over")
        assert "the link to host x1 of site a" in await theirs.ended()


async def test_what_tls_has_decrypted_already_is_read_when_a_paused_link_is_resumed(identities: Identities) -> None:
    async with listening(identities.of("a", Role.GATEWAY)) as attached:
        ours = started(await dial(attached.target(identities.of("a", Role.HOST))))
        theirs, _ = await attached.next()
        theirs.link.pause()
        sent = [Frame(FrameType.ACK, 1, n, bytes(12)) for n in range(100)]
        ours.send(*sent)
        assert await theirs.nothing_comes()
        theirs.link.resume()
        assert [await theirs.next() for _ in sent] == sent
        ours.link.abort("the test is over")
        theirs.link.abort("the test is over")


async def test_gateways_of_two_sites_dial_each_other(identities: Identities) -> None:
    access = Access(Role.GATEWAY, Site("example.org", "a"), local=False)
    async with listening(identities.of("a", Role.GATEWAY), access) as attached:
        ours = await dial(attached.target(identities.of("b", Role.GATEWAY)))
        theirs, peer = await attached.next()
        assert (peer.site, peer.role) == ("b", Role.GATEWAY)
        ours.abort("the test is over")
        theirs.link.abort("the test is over")


@pytest.mark.parametrize(
    ("site", "role"), [("a", Role.OPERATOR), ("a", Role.GATEWAY), ("b", Role.HOST), ("stranger", Role.HOST)]
)
async def test_whoever_may_not_dial_is_cut_off_before_a_frame_is_read(
    identities: Identities, site: str, role: Role
) -> None:
    async with listening(identities.of("a", Role.GATEWAY)) as attached:
        with contextlib.suppress(Unreachable):  # in TLS 1.3, the side that dials may learn of it only when it reads
            end = started(await dial(attached.target(identities.of(site, role))))
            end.send(Frame(FrameType.OPEN, 1))
            await end.ended()
            assert await end.nothing_comes()
        await settled()
        assert attached.links.empty()


# Callers who do not finish their handshake.


async def serves_the_next(attached: Attached, identities: Identities) -> None:
    link = await dial(attached.target(identities.of("a", Role.HOST)))
    theirs, _ = await attached.next()
    link.abort("it works")
    theirs.link.abort("it works")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b""])
async def test_garbage_is_cut_off_and_the_next_caller_is_served(identities: Identities, garbage: bytes) -> None:
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY)) as attached:
        caller = await Caller.connect(attached.port)
        caller.sock.send(garbage)
        caller.sock.shutdown(socket.SHUT_WR)
        await caller.is_cut_off()
        assert attached.links.empty()
        await serves_the_next(attached, identities)


async def test_a_caller_who_never_finishes_is_cut_off_in_time_and_others_are_served_meanwhile(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 0.3)
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY)) as attached:
        silent = await Caller.connect(attached.port)
        await serves_the_next(attached, identities)
        await silent.is_cut_off()


async def test_a_caller_of_a_byte_now_and_then_is_cut_off_in_time(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 0.2)
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY)) as attached:
        slow = await Caller.connect(attached.port)

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(500):
                    slow.sock.send(bytes([byte]))
                    await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        await serves_the_next(attached, identities)
        await slow.is_cut_off()
        trickling.cancel()
        await asyncio.wait([trickling])


async def test_when_too_many_have_not_finished_the_next_is_turned_away_until_they_are_cut_off(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "HANDSHAKES", 3)
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 0.3)
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY)) as attached:
        listener = attached.listener
        assert listener is not None
        callers = [await Caller.connect(attached.port) for _ in range(3)]
        await until(lambda: len(listener._handshakes) == 3)
        with pytest.raises(Unreachable):
            await dial(attached.target(identities.of("a", Role.HOST)))
        for caller in callers:
            await caller.is_cut_off()
        await serves_the_next(attached, identities)


async def test_a_listener_that_is_closed_lets_go_of_those_who_have_not_finished(identities: Identities) -> None:
    async with nothing_left():
        async with listening(identities.of("a", Role.GATEWAY)) as attached:
            caller = await Caller.connect(attached.port)
            listener = attached.listener
            await until(lambda: listener is not None and len(listener._handshakes) == 1)
        await caller.is_cut_off()


async def test_when_descriptors_run_out_the_listener_waits_and_then_serves(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "EXHAUSTION_PAUSE", 0.05)
    async with nothing_left(), listening(identities.of("a", Role.GATEWAY)) as attached:
        listener = attached.listener
        assert listener is not None
        real, attempts = listener._server, 0

        class Exhausted:
            def accept(self) -> tuple[socket.socket, object]:
                nonlocal attempts
                attempts += 1
                if attempts < 3:
                    raise OSError(errno.EMFILE, "Too many open files")
                return real.accept()

            def fileno(self) -> int:
                return real.fileno()

        monkeypatch.setattr(listener, "_server", Exhausted())
        await serves_the_next(attached, identities)
        monkeypatch.setattr(listener, "_server", real)
        assert attempts == 3


# Others than whom we dialled.


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
    async with listening(
        identities.of("a", Role.HOST, "x2"), Access(Role.GATEWAY, Site("example.org", "a"))
    ) as attached:
        with pytest.raises(Unreachable):
            await dial(attached.target(gateway, Role.HOST))


async def answering(data: bytes) -> asyncio.Server:
    """A server that is no gateway."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def test_a_caller_who_is_accepted_as_the_listener_closes_is_let_go(identities: Identities) -> None:
    own = identities.of("a", Role.GATEWAY)
    async with nothing_left(), listening(own) as attached:
        with socket.create_connection(("127.0.0.1", attached.port), SECONDS) as caller:
            assert attached.listener is not None
            attached.listener._accept()
            attached.listener.close()  # before the handshake has begun
            await settled()
            assert caller.recv(1) == b""


@pytest.mark.parametrize("data", [b"220 mail.example.org ESMTP\r\n", b""])
async def test_a_server_that_speaks_no_tls_is_unreachable(identities: Identities, data: bytes) -> None:
    server = await answering(data)
    target = Attached(None, server.sockets[0].getsockname()[1]).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match="see whether it runs"):
        await dial(target)
    server.close()
    await settled()


async def test_of_a_listener_that_hangs_up_at_once_no_socket_is_left(identities: Identities) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as raw:
        accepted, _ = server.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()  # which resets the connection
        target = Attached(None, server.getsockname()[1]).target(identities.of("a", Role.HOST))
        await until(lambda: bool(select.select([raw], [], [], 0)[0]))
        with pytest.raises(OSError, match="not connected"):
            target.wrap(raw)
        assert raw.fileno() >= 0, "whose it is now, nobody knows"


async def test_nobody_at_all_is_unreachable_with_the_address(identities: Identities) -> None:
    server = await answering(b"")
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        await dial(Attached(None, port).target(identities.of("a", Role.HOST)))


async def test_a_server_that_says_nothing_is_given_up(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "DIAL_TIMEOUT", 0.1)
    silent = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    target = Attached(None, server.sockets[0].getsockname()[1]).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match="does not answer"):
        await dial(target)
    silent.set()
    server.close()
    await settled()


async def test_a_name_that_does_not_resolve_is_unreachable(identities: Identities) -> None:
    target = Attached(None, 7444).target(identities.of("a", Role.HOST))
    with pytest.raises(Unreachable, match=r"nobody\.invalid:7444"):
        await dial(replace(target, address=Address("nobody.invalid", 7444)))


async def test_an_address_on_which_nothing_can_listen_is_a_config_error(identities: Identities) -> None:
    gateway = identities.of("a", Role.GATEWAY)
    async with listening(gateway) as attached:
        with pytest.raises(ConfigError, match=r"nothing can listen on 127.0.0.1:\d+ .*see \[listen\]"):
            await listen(Address("127.0.0.1", attached.port), LivingIdentity(gateway), HOSTS_OF_A, lambda *_: None)
