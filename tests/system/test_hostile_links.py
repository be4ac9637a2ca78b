"""Whoever should not be there is refused, that is logged, and a migration that is under way notices nothing: TABLE says who.

The agents and gateways are real, and so are sockets, TLS and certificates; only the hypervisors are fakes. Each row happens at
all of its doors at once, while a disk is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.hypervisor.base import Presence
from certs import tls
from certs.authority import Authority, create, issue
from certs.identity import Identity, Role, Site
from certs.links import HANDSHAKES
from certs.store import StoredIdentity, add_trust, load_authority, load_identity, save_identity
from gateway.migration.states import State
from gateway.tunnel.pump import Port, Pump
from landbridge.config import Address
from landbridge.frame import HEADER, Frame, FrameType
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from landbridge.v1.types_pb2 import Migration
from tests.system.sites import TRUST_DOMAIN, TwoSites, eventually

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 4096
MEMORY = bytes(range(255, -1, -1)) * 4096
# Bytes per second: a move of DISK takes longer than any row, until it is hastened.
CRAWL = 50_000
# Seconds within which everybody must have been cut off: longer than the limits of handshakes and of silence.
PATIENCE = 15.0
# No TLS, and no frames.
GARBAGE = b"GET / HTTP/1.1\r\nHost: landbridge\r\n\r\n"


@dataclass(frozen=True)
class Door:
    """Where somebody may call from outside, and who is let in there."""

    name: str
    role: Role
    site: str
    # The site from which callers come, and one of them who is not in use.
    from_site: str
    caller_role: Role
    caller: str
    # What is logged of a link that was let in and misbehaves.
    event: str

    def address(self, two: TwoSites) -> Address:
        """Where it is."""
        if self is HOST:
            return two.ams.addresses["stream"]
        found = two.ams.listens["gw-1"].tunnel if self is TUNNEL else two.fra.listens["gw-1"].agents
        assert isinstance(found, Address)
        return found


TUNNEL = Door("tunnel", Role.GATEWAY, "ams", "fra", Role.GATEWAY, "gw-2", "link.down")
GATEWAY = Door("gateway", Role.GATEWAY, "fra", "fra", Role.HOST, "fra-2", "channel.link_down")
HOST = Door("host", Role.HOST, "ams", "ams", Role.GATEWAY, "gw-2", "link.refused")
ALL = (TUNNEL, GATEWAY, HOST)


class Connection:
    """An open connection to a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def is_cut_off(self) -> None:
        """Return when the other end has ended it."""
        with contextlib.suppress(OSError):  # a reset, or an alert of TLS
            while await self._reader.read(1 << 16):
                pass

    async def trickle(self, data: bytes) -> None:
        """Send one byte a second until the other end has ended it."""
        cut_off = asyncio.ensure_future(self.is_cut_off())
        try:
            for at in range(len(data)):
                self.writer.write(data[at : at + 1])
                if (await asyncio.wait({cut_off}, timeout=1.0))[0]:
                    return
        finally:
            cut_off.cancel()
        raise AssertionError("all bytes were taken")

    async def reset_reason(self) -> str:
        """Why a channel is refused: the reason of the RESET that comes."""
        while True:
            _, kind, _, length, _, _ = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            payload = await self._reader.readexactly(length)
            if kind == FrameType.RESET:
                return payload.decode()


@dataclass
class Attacker:
    """Who is outside, with what they have found: identities, and a channel's OPEN as it came by."""

    two: TwoSites
    identities: Path
    directory: Path
    opens: list[Frame] = field(default_factory=list)
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, door: Door, who: StoredIdentity | None = None) -> Connection:
        """Connect to a door, in the clear if there is no identity."""
        address = door.address(self.two)
        secure: dict[str, Any] = {}
        if who is not None:
            secure["ssl"] = tls.client_context(who, door.site)
            secure["server_hostname"] = tls.server_name(door.role, door.site, TRUST_DOMAIN)
        reader, writer = await asyncio.open_connection(address.host, address.port, **secure)
        self.connections.append(writer)
        return Connection(reader, writer)

    async def enter(self, door: Door) -> Connection:
        """Connect as one who is let in."""
        return await self.connect(door, self.identity(door, door.caller_role, door.caller))

    def identity(self, door: Door, role: Role, name: str) -> StoredIdentity:
        """An identity of the site from which callers come; it trusts the door's."""
        made = self._issued(load_authority(self.identities / door.from_site / "ca"), door, role, name)
        add_trust(made, self.identities / door.site / "ca" / "ca.pem")
        return load_identity(made, datetime.now(UTC))

    def forged(self, door: Door) -> StoredIdentity:
        """The same of one who may call, as a CA says which nobody trusts."""
        good = self.identity(door, door.caller_role, door.caller)
        forger = create(Site(TRUST_DOMAIN, door.from_site), datetime.now(UTC))
        made = load_identity(self._issued(forger, door, door.caller_role, door.caller), datetime.now(UTC))
        return replace(made, trust=good.trust)

    def _issued(self, authority: Authority, door: Door, role: Role, name: str) -> Path:
        now = datetime.now(UTC)
        directory = self.directory / f"{door.name}-{len(list(self.directory.iterdir()))}"
        save_identity(directory, issue(authority, Identity(TRUST_DOMAIN, door.from_site, role, name), now))
        return directory

    @property
    def stolen(self) -> Frame:
        """The OPEN of the disk channel that is in use."""
        return next(frame for frame in self.opens if _opening(frame).kind == ChannelKind.CHANNEL_KIND_DISK)

    async def close(self) -> None:
        """Let go of all connections."""
        for writer in self.connections:
            writer.transport.abort()
        await asyncio.sleep(0)


def _opening(frame: Frame) -> ChannelOpen:
    return ChannelOpen.FromString(bytes(frame.payload))


# What they do. Each returns when it was refused, with the reason if it is told.

Attack = Callable[[Attacker, Door], Awaitable[str]]


async def sends_garbage(attacker: Attacker, door: Door) -> str:
    """Something else than TLS."""
    connection = await attacker.connect(door)
    connection.writer.write(GARBAGE)
    await connection.is_cut_off()
    return ""


async def sends_a_byte_a_second(attacker: Attacker, door: Door) -> str:
    """The beginning of a handshake, slowly."""
    await (await attacker.connect(door)).trickle(b"\x16\x03\x01\x02\x00\x01" + bytes(64))
    return ""


async def says_nothing(attacker: Attacker, door: Door) -> str:
    """A handshake that never begins."""
    await (await attacker.connect(door)).is_cut_off()
    return ""


async def come_in_hundreds(attacker: Attacker, door: Door) -> str:
    """More handshakes that never begin than are waited for at once."""
    connections = [await attacker.connect(door) for _ in range(HANDSHAKES + 10)]
    await asyncio.gather(*(connection.is_cut_off() for connection in connections))
    return ""


async def is_unknown(attacker: Attacker, door: Door) -> str:
    """A certificate with the right name, of a CA that nobody trusts."""
    await (await attacker.connect(door, attacker.forged(door))).is_cut_off()
    return ""


async def is_somebody_else(attacker: Attacker, door: Door) -> str:
    """A good certificate, of one who has no business there."""
    await (await attacker.connect(door, attacker.identity(door, Role.OPERATOR, "bob"))).is_cut_off()
    return ""


async def sends_garbage_in_tls(attacker: Attacker, door: Door) -> str:
    """One who was let in, and sends no frames."""
    connection = await attacker.enter(door)
    connection.writer.write(GARBAGE)
    await connection.is_cut_off()
    return ""


async def sends_a_byte_a_second_in_tls(attacker: Attacker, door: Door) -> str:
    """One who was let in, and never finishes a frame."""
    await (await attacker.enter(door)).trickle(attacker.stolen.encode())
    return ""


async def uses_a_ticket_again(attacker: Attacker, door: Door) -> str:
    """A ticket that has opened a channel, for another one."""
    stolen = attacker.stolen
    connection = await attacker.enter(door)
    connection.writer.write(Frame(FrameType.OPEN, stolen.channel ^ 1, 0, stolen.payload).encode())
    return await connection.reset_reason()


async def uses_a_ticket_for_something_else(attacker: Attacker, door: Door) -> str:
    """A ticket of a disk channel, for one of libvirt's calls."""
    opening = _opening(attacker.stolen)
    opening.kind, opening.index = ChannelKind.CHANNEL_KIND_RPC, 7
    connection = await attacker.enter(door)
    connection.writer.write(Frame(FrameType.OPEN, 77, 0, opening.SerializeToString()).encode())
    return await connection.reset_reason()


async def takes_part_in_a_channel(attacker: Attacker, door: Door) -> str:
    """Bytes for the channel of another host, whose number it has found out."""
    connection = await attacker.enter(door)
    connection.writer.write(Frame(FrameType.DATA, attacker.stolen.channel, 0, b"mine").encode())
    await connection.is_cut_off()
    return ""


@dataclass(frozen=True)
class Row:
    """Who does what at which doors; what is logged, of each, by a pattern; and what they are told."""

    who: str
    attack: Attack
    reason: str
    doors: tuple[Door, ...] = ALL
    # None: as the door has it.
    event: str | None = "link.refused"
    is_told: str = ""

    def __str__(self) -> str:
        return self.who

    def is_logged(self, entry: dict[str, Any], door: Door) -> bool:
        """Whether this is what is to be logged."""
        return entry["event"] == (self.event or door.event) and bool(re.search(self.reason, entry.get("reason", "")))


UNFINISHED = "did not finish its handshake in time"
REFUSED = "channel.refused"
TWICE = "ticket of migration [0-9a-f-]+ was used a second time"
NO_TICKET = "without a ticket for it"
AS_ANOTHER = "host fra-2 of site fra opened a channel as host fra-1"

TABLE = (
    Row("garbage instead of a handshake", sends_garbage, "no TLS handshake"),
    Row("one byte a second instead of a handshake", sends_a_byte_a_second, UNFINISHED),
    Row("a handshake that never begins", says_nothing, UNFINISHED),
    Row("hundreds of handshakes that never begin", come_in_hundreds, f"too many callers|{UNFINISHED}"),
    Row("an unknown peer", is_unknown, "no TLS handshake: .*certificate"),
    Row("a peer of another role", is_somebody_else, "operator/bob may not call a stream"),
    Row("garbage from a known peer", sends_garbage_in_tls, "version", event=None),
    Row("one byte a second from a known peer", sends_a_byte_a_second_in_tls, "silent for", event=None),
    Row("a replayed ticket", uses_a_ticket_again, TWICE, (TUNNEL, HOST), REFUSED, TWICE),
    Row("a stolen ticket", uses_a_ticket_for_something_else, NO_TICKET, (TUNNEL, HOST), REFUSED, NO_TICKET),
    Row("a ticket stolen by another host", uses_a_ticket_again, AS_ANOTHER, (GATEWAY,), REFUSED, AS_ANOTHER),
    Row("bytes for another host's channel", takes_part_in_a_channel, "another channel", (GATEWAY,), None),
)


@pytest.fixture
async def attacker(
    two: TwoSites, identities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Attacker]:
    """One who has read what the source's gateway carries."""
    made = Attacker(two, identities, tmp_path)
    open_channel = Pump._open_from_agent

    def listen_in(self: Pump, port: Port, frame: Frame) -> None:
        made.opens.append(Frame(frame.type, frame.channel, frame.position, bytes(frame.payload)))
        open_channel(self, port, frame)

    monkeypatch.setattr(Pump, "_open_from_agent", listen_in)
    yield made
    await made.close()


async def told(two: TwoSites, id_: str, lines: list[Migration]) -> None:
    """Take down all that the operator sees of a migration."""
    async for migration in two.fra.operator.watch(id_):
        lines.append(migration)  # noqa: PERF401 - they are looked at while they come


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_it_is_refused_and_logged_and_the_migration_notices_nothing(
    two: TwoSites, attacker: Attacker, logged: list[dict[str, Any]], row: Row
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = CRAWL
    id_ = await two.fra.operator.migrate("web-01", "ams")
    lines: list[Migration] = []
    watching = asyncio.create_task(told(two, id_, lines))
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: any(line.progress.disk_remaining for line in lines))
    logged.clear()
    before = lines[-1].progress.disk_remaining

    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*(row.attack(attacker, door) for door in row.doors))
    for answer in answers:
        assert re.search(row.is_told, answer)
    for door in row.doors:
        await eventually(lambda door=door: any(row.is_logged(entry, door) for entry in logged))  # type: ignore[misc]  # a default that mypy cannot type
    others = [
        entry
        for entry in logged
        if entry["log_level"] in {"warning", "error", "critical"}
        and not any(row.is_logged(entry, door) for door in row.doors)
    ]
    assert others == []
    await eventually(lambda: lines[-1].progress.disk_remaining < before)

    two.fra.hypervisor.hasten()
    ended = await two.fra.operator.ended(id_)
    await watching
    assert State(ended.state) is State.COMPLETED, ended.reason
    assert [line.reason for line in lines if line.reason or line.HasField("silent_ms")] == []
    assert ended.summary.bytes_repeated == 0
    assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
    assert two.ams.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}
    assert two.ams.hypervisor.memory(vm) == MEMORY
