"""A program's identity, while it changes: over real gRPC connections and real links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from certs import authority, store, tls
from certs.channels import LivingChannel
from certs.guard import Access, Guard, caller
from certs.guard import server as guarded_server
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.trust import Credential, Denial, TrustBundles
from landbridge.errors import ConfigError, NotAuthenticated
from landbridge.v1 import gateway_pb2 as pb
from landbridge.v1 import gateway_pb2_grpc

DOMAIN = "example.org"
A = Site(DOMAIN, "a")
ALICE = Identity(DOMAIN, "a", Role.OPERATOR, "alice")
HOST = Identity(DOMAIN, "a", Role.HOST, "h1")
GATEWAY = Identity(DOMAIN, "a", Role.GATEWAY, "gw1")


class World:
    """A site, its gateway's issuer, and directories that are renewed."""

    def __init__(self, directory: Path, site: Site = A) -> None:
        self.directory = directory
        self.root = authority.create(site, datetime.now(UTC))
        self.issuer = authority.make_issuer(self.root, "gw1" if site is A else "gw2", datetime.now(UTC))

    def make(self, identity: Identity) -> LivingIdentity:
        """Issued by the issuer, or by the root where that may not."""
        directory = self.directory / identity.name
        store.save_identity(directory, self._leaf(identity))
        return LivingIdentity(store.load_identity(directory, datetime.now(UTC)))

    def renew(self, living: LivingIdentity) -> None:
        leaf = self._leaf(living.identity)
        store.renew_identity(living.stored.directory, leaf.chain_pem, leaf.key)
        living.reload()

    def _leaf(self, identity: Identity) -> authority.Leaf:
        signer = self.root if identity.role is Role.OPERATOR else self.issuer
        return authority.issue(signer, identity, datetime.now(UTC))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Service(gateway_pb2_grpc.GatewayServicer):
    """Answers with the caller, and goes on watching until it is told."""

    def __init__(self) -> None:
        self.more = asyncio.Event()

    async def GetMigration(self, request: Any, context: Any) -> pb.GetMigrationResponse:  # noqa: N802 - gRPC's name
        answer = pb.GetMigrationResponse()
        answer.migration.requested_by = str(caller.get())
        return answer

    async def WatchMigration(self, request: Any, context: Any) -> AsyncIterator[pb.WatchMigrationResponse]:  # noqa: N802 - see above
        yield pb.WatchMigrationResponse()
        await self.more.wait()
        yield pb.WatchMigrationResponse()


@asynccontextmanager
async def served(gateway: LivingIdentity, role: Role, *, local: bool = True) -> AsyncIterator[tuple[int, Service]]:
    guard = Guard(gateway, {"landbridge.v1.Gateway": Access(role, Site("example.org", "a"), local=local)})
    server = guarded_server(guard)
    service = Service()  # type: ignore[abstract]  # what is not called is not there
    gateway_pb2_grpc.add_GatewayServicer_to_server(service, server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(lambda: gateway.stored))
    await server.start()
    try:
        yield port, service
    finally:
        await server.stop(None)
        del server
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(port: int, local: LivingIdentity) -> AsyncIterator[Any]:
    channel = LivingChannel(f"127.0.0.1:{port}", local, Role.GATEWAY, "a", "gw1", ())
    try:
        yield gateway_pb2_grpc.GatewayStub(channel.for_stub())
    finally:
        await channel.close()


async def test_a_chain_over_an_issuer_is_accepted_from_both_sides_and_the_newest_is_seen(world: World) -> None:
    gateway, host = world.make(GATEWAY), world.make(HOST)
    seen: list[Credential] = []
    gateway.on_seen = seen.append
    async with served(gateway, Role.HOST) as (port, _), connected(port, host) as stub:
        for _ in range(2):
            answer = await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)
            assert answer.migration.requested_by == str(HOST)
            first = host.stored.certificate.serial_number
            world.renew(host)
        assert [each.identity for each in seen] == [HOST, HOST]
        assert seen[1].serial == first != seen[0].serial


async def test_an_answer_in_parts_goes_on_while_everybody_changes_certificates(world: World) -> None:
    gateway, host = world.make(GATEWAY), world.make(HOST)
    async with served(gateway, Role.HOST) as (port, service), connected(port, host) as stub:
        watching = stub.WatchMigration(pb.WatchMigrationRequest())
        await watching.read()
        world.renew(gateway)
        world.renew(host)
        await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)
        service.more.set()
        assert await watching.read() is not aio.EOF
        assert await watching.read() is aio.EOF


async def test_an_answer_in_parts_ends_when_its_caller_is_revoked_and_no_call_is_answered(world: World) -> None:
    gateway, alice = world.make(GATEWAY), world.make(ALICE)
    async with served(gateway, Role.OPERATOR) as (port, _), connected(port, alice) as stub:
        watching = stub.WatchMigration(pb.WatchMigrationRequest())
        await watching.read()
        gateway.deny(frozenset({Denial(str(ALICE), A, datetime.now(UTC))}))
        with pytest.raises(aio.AioRpcError, match="was revoked by site a"):
            await asyncio.wait_for(watching.read(), 5)
        with pytest.raises(aio.AioRpcError, match="was revoked by site a"):
            await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)


async def test_somebody_else_is_not_disturbed_by_a_revocation(world: World) -> None:
    gateway, alice = world.make(GATEWAY), world.make(ALICE)
    async with served(gateway, Role.OPERATOR) as (port, service), connected(port, alice) as stub:
        watching = stub.WatchMigration(pb.WatchMigrationRequest())
        await watching.read()
        gateway.deny(frozenset({Denial(str(replace(ALICE, name="bob")), A, datetime.now(UTC))}))
        service.more.set()
        assert await watching.read() is not aio.EOF


async def test_a_revoked_server_is_not_called_until_it_has_come_with_a_newer_certificate(world: World) -> None:
    gateway, host = world.make(GATEWAY), world.make(HOST)
    async with served(gateway, Role.HOST) as (port, _), connected(port, host) as stub:
        await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)
        host.deny(frozenset({Denial(str(GATEWAY), A, datetime.now(UTC))}))
        with pytest.raises(NotAuthenticated, match="was revoked, and has not come back"):
            stub.GetMigration(pb.GetMigrationRequest(), timeout=5)
        later = datetime.now(UTC) + timedelta(seconds=5)
        host._note(Credential(GATEWAY, 1, later, later + timedelta(days=1)), lambda: "unknown")
        await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)


async def test_an_answer_in_parts_ends_when_its_callers_site_is_not_trusted_any_more(world: World) -> None:
    gateway, other = world.make(GATEWAY), World(world.directory / "other", Site(DOMAIN, "b"))
    caller_there = other.make(replace(GATEWAY, site="b", name="gw2"))
    for one, trusted in ((gateway, other), (caller_there, world)):
        store.save_trust(one.stored.directory, TrustBundles.of([trusted.root.certificate]))
        one.reload()
    async with served(gateway, Role.GATEWAY, local=False) as (port, _), connected(port, caller_there) as stub:
        watching = stub.WatchMigration(pb.WatchMigrationRequest())
        await watching.read()
        for _ in range(2):  # a file that is gone already is no trouble
            store.remove_trust(gateway.stored.directory, other.root.site)
        gateway.reload()
        assert set(gateway.trust.roots) == {A}
        with pytest.raises(aio.AioRpcError, match="is of a site that is not trusted here any more"):
            await asyncio.wait_for(watching.read(), 5)
        with pytest.raises(aio.AioRpcError):
            await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)


def test_what_cannot_be_used_leaves_the_identity_as_it_was(world: World) -> None:
    host = world.make(HOST)
    before = host.stored
    (before.directory / "cert.pem").write_text("garbage")
    with pytest.raises(ConfigError, match="is no identity"):
        host.reload()
    assert host.stored is before


async def test_whoever_knows_only_the_root_before_is_answered_during_the_overlap(world: World) -> None:
    gateway, alice = world.make(GATEWAY), world.make(ALICE)
    now = datetime.now(UTC)
    new, handover = authority.hand_over(world.root, now, timedelta(hours=1))
    trust = gateway.trust.follow([new.certificate, handover], now)
    store.save_trust(gateway.stored.directory, trust)
    world.issuer = authority.make_issuer(new, "gw1", now)
    world.renew(gateway)
    assert gateway.stored.root == new.certificate
    assert len(alice.trust.roots[A]) == 1
    async with served(gateway, Role.OPERATOR) as (port, _), connected(port, alice) as stub:
        answer = await stub.GetMigration(pb.GetMigrationRequest(), timeout=5)
        assert answer.migration.requested_by == str(ALICE)
