"""Two sites on loopback: an agent with a fake hypervisor on each host, a gateway at each site, and an operator.

Each site may have a second gateway, gw-2, on the same store: a test starts it, and everybody knows its addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import pwd
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

import agent.main
import gateway.main
from agent.config import AgentSettings, FirewallSettings, GatewaySettings, LibvirtSettings, PathSettings
from agent.config import IdentitySettings as AgentIdentity
from agent.config import ListenSettings as AgentListen
from agent.hypervisor.base import MoveRequest, Presence
from agent.hypervisor.fake import FakeHypervisor
from agent.source import SourceMove
from certs.authority import ISSUED, create, issue, make_issuer
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.store import StoredIdentity, add_trust, load_identity, save_authority, save_identity, save_issuer
from gateway.config import (
    AuditSettings,
    GatewayConfig,
    HostSettings,
    IdentitySettings,
    ListenSettings,
    PagesSettings,
    PatienceSettings,
    PolicySettings,
    SiteSettings,
    StoreSettings,
)
from gateway.migration.states import ENDED, State
from gateway.remote import Remote
from gateway.store import Store
from landbridge.config import Address
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1.agent_pb2 import Stage
from landbridge.v1.audit_pb2 import GetReceiptRequest
from landbridge.v1.authorization_pb2 import ApprovalRequest, PolicyStatus
from landbridge.v1.gateway_pb2_grpc import GatewayStub
from landbridge.v1.types_pb2 import Host, Migration, Policy

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.gateway_pb2_grpc import GatewayAsyncStub

TRUST_DOMAIN = "landbridge.test"
# Site names, and the loopback address on which everything of a site listens.
SITES = {"fra": "127.0.0.2", "ams": "127.0.0.3"}
GATEWAYS = ("gw-1", "gw-2")
# Operators of each site, and what the policy makes of them.
OPERATORS = {
    "alice": "operator",
    "vera": "viewer",
    "carol": "approver",
    "dave": "approver",
    "adam": "auditor",
    "root": "admin",
}
# Somebody whom the CA vouches for, and the policy does not name.
STRANGER = "nobody"
# Seconds in which anything awaited here has to happen.
PATIENCE = 15.0
# Of a VM that takes some seconds to move, at so many bytes per second.
DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
WALK = 400_000

# Below the range from which the kernel takes ports for outgoing connections; each of up to 8 workers of pytest-xdist has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_ports = itertools.cycle(range(20_000 + os.getpid() % 97 * 80 + _WORKER, 32_000, 8))


def free_port(host: str) -> int:
    """A port on which nothing listens."""
    for port in _ports:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((host, port))
            return port
    raise AssertionError("the range has no end")


def make_identities(directory: Path, lifetime: timedelta = ISSUED) -> None:
    """A CA for each site, its gateways with their issuers, a host, an operator, and trust between the gateways."""
    now = datetime.now(UTC)
    for site in SITES:
        authority = create(Site(TRUST_DOMAIN, site), now)
        save_authority(directory / site / "ca", authority)
        for name in (*OPERATORS, STRANGER):
            save_identity(
                directory / site / name, issue(authority, Identity(TRUST_DOMAIN, site, Role.OPERATOR, name), now)
            )
        for name in GATEWAYS:
            issuer = make_issuer(authority, name, now)
            leaf = issue(issuer, Identity(TRUST_DOMAIN, site, Role.GATEWAY, name), now, lifetime=lifetime)
            save_identity(directory / site / name, leaf)
            save_issuer(directory / site / name, issuer)
        host = issue(issuer, Identity(TRUST_DOMAIN, site, Role.HOST, f"{site}-1"), now, lifetime=lifetime)
        save_identity(directory / site / Role.HOST, host)
    for site, other in (("fra", "ams"), ("ams", "fra")):
        for name in GATEWAYS:
            add_trust(directory / site / name, directory / other / "ca" / "ca.pem")


def policy_of(site: str, *, more: str = "", permits: bool = True) -> str:
    """A policy that has alice of each site move everything both ways, unless told otherwise; `more` is further TOML."""
    roles = "\n".join(
        f"{role} = {[name for name in OPERATORS if OPERATORS[name] == role]}" for role in set(OPERATORS.values())
    )
    permit = """
[[rules]]
name = "alice"
effect = "permit"
who = ["*/alice"]
vms = ["*"]
from = ["*"]
to = ["*"]
"""
    return f"""\
site = "{site}"
trust_domain = "{TRUST_DOMAIN}"
[roles]
{roles}
[sites.fra]
country = "DE"
zone = "eu"
[sites.ams]
country = "NL"
zone = "eu"
{permit if permits else ""}{more}"""


class HostHypervisor(FakeHypervisor):
    """The fake of a host. It outlives the agent, tells what it was asked, and can also be held at a VM's arrival."""

    # Whether a VM that has arrived crashes at once.
    crashes_on_arrival = False
    # What a compromised host puts in the place of the definition that was approved.
    forge: Callable[[str], str] | None = None

    def _enter(self, method: str) -> None:
        self.asked.add(method)
        super()._enter(method)

    @functools.cached_property
    def asked(self) -> set[str]:
        """Methods that were called, whether or not they are held."""
        return set()

    def move(self, request: MoveRequest) -> None:
        """See `FakeHypervisor`."""
        if self.forge is not None:
            request = replace(request, domain_xml=self.forge(request.domain_xml))
        super().move(request)

    def arrive(self, uuid: str, memory: bytes, disks: bytes) -> None:
        """See `FakeHypervisor`; "arrive" can be held and failed like any other method."""
        self._enter("arrive")
        super().arrive(uuid, memory, disks)
        if self.crashes_on_arrival:
            self.destroy(uuid)

    def hasten(self) -> None:
        """Let the moves that are under way go on as fast as they can."""
        for guest in self._guests.values():
            if guest.move is not None:
                guest.move._rate = 0

    def close(self) -> None:
        """The agent gives up its connections; the hypervisor runs on."""

    def power_off(self) -> None:
        """The host ends."""
        super().close()


class Program:
    """An agent or a gateway, in a task of its own; it can be stopped and started again."""

    def __init__(self, name: str, make: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        self.name = name
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def start(self) -> None:
        """Return when it serves."""
        self._stop.clear()
        serving = asyncio.Event()

        async def run() -> None:
            async with self._make():
                serving.set()
                await self._stop.wait()

        self._task = asyncio.create_task(run(), name=self.name)
        ready = asyncio.create_task(serving.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            failed, self._task = self._task, None
            await failed

    async def stop(self) -> None:
        """Return when nothing of it is left."""
        task, self._task = self._task, None
        if task is not None:
            self._stop.set()
            await task

    async def restart(self) -> None:
        """Stop it, and start it as a new process would."""
        await self.stop()
        await self.start()


class SiteUnderTest:
    """One site with one host."""

    def __init__(self, name: str, identities: Path, directory: Path) -> None:
        self.name = name
        self.host = f"{name}-1"
        self.directory = directory / name
        self.runtime = self.directory / "run"
        self.runtime.mkdir(parents=True)
        self._identities = identities / name
        self._address = SITES[name]
        self.addresses = self._free_addresses("control", "stream")
        # Where each gateway listens.
        self.listens = {
            name: ListenSettings.model_validate(
                self._free_addresses("operators", "agents", "peers", "tunnel", "enrolment")
            )
            for name in GATEWAYS
        }
        self.hypervisor = HostHypervisor(self.host, self.directory / "libvirt.sock")
        self.patience = PatienceSettings()
        self.firewall = FirewallSettings()
        # Seconds for which its gateways sign.
        self.lifetime = 86_400.0
        self.store_url = f"sqlite:///{self.directory}/gateway.db"
        self.other: SiteUnderTest | None = None
        # Whether the gateway's configuration names the other site, and the host.
        self.joined = True
        self.has_host = True
        self.agent = Program(f"agent {self.host}", self._agent)
        self.gateway = Program(f"gateway {name}", functools.partial(self._gateway, "gw-1"))
        self.second_gateway = Program(f"second gateway {name}", functools.partial(self._gateway, "gw-2"))
        # None: the gateways have no policy.
        self.policy: Path | None = self.directory / "policy.toml"
        self.set_policy(policy_of(name))
        # None: as each gateway has it.
        self.audit: AuditSettings | None = None
        self.operator = self.person("alice")
        self.second_operator = self.person("alice", "gw-2")

    def _free_addresses(self, *uses: str) -> dict[str, Address]:
        return {use: Address(self._address, free_port(self._address)) for use in uses}

    def identity(self, who: Role | str, *, checked: bool = True) -> StoredIdentity:
        """The identity of the site's host, or of a gateway or an operator by name."""
        return load_identity(self._identities / who, datetime.now(UTC) if checked else None)

    def person(self, name: str, gateway: str = "gw-1") -> Operator:
        """One of the site's operators."""
        return Operator(self, self.identity(name), gateway)

    def set_policy(self, text: str) -> None:
        """Write the policy file; gateways that run take it within a moment."""
        assert self.policy is not None
        self.policy.write_text(text)

    def _agent(self) -> contextlib.AbstractAsyncContextManager[None]:
        settings = AgentSettings(
            site=self.name,
            name=self.host,
            identity=AgentIdentity(directory=self._identities / "host"),
            listen=AgentListen(control=self.addresses["control"], stream=self.addresses["stream"]),
            gateway=GatewaySettings(
                stream=tuple(listen.agents for listen in self.listens.values()),
                control=tuple(listen.operators for listen in self.listens.values()),
            ),
            libvirt=LibvirtSettings(
                socket=self.directory / "libvirt.sock", qemu_user=pwd.getpwuid(os.getuid()).pw_name
            ),
            paths=PathSettings(runtime=self.runtime, state=self.directory / "state"),
            firewall=self.firewall,
        )
        return agent.main.running(settings, self.identity(Role.HOST), self.hypervisor)

    def _gateway(self, name: str) -> contextlib.AbstractAsyncContextManager[None]:
        other = self.other
        assert other is not None
        listens = other.listens.values()
        joined = SiteSettings(
            name=other.name,
            peers=tuple(listen.peers for listen in listens),
            tunnel=tuple(listen.tunnel for listen in listens),
        )
        settings = GatewayConfig(
            site=self.name,
            name=name,
            identity=IdentitySettings(directory=self._identities / name, lifetime=self.lifetime),
            listen=self.listens[name],
            store=StoreSettings(url=self.store_url),
            pages=PagesSettings(directory=self.directory / f"{name}-pages", size=1 / 16),
            audit=self.audit or AuditSettings(directory=self.directory / f"{name}-audit"),
            hosts=(
                (HostSettings(name=self.host, control=self.addresses["control"], stream=self.addresses["stream"]),)
                if self.has_host
                else ()
            ),
            sites=(joined,) if self.joined else (),
            patience=self.patience,
            policy=PolicySettings(file=self.policy),
        )
        return gateway.main.running(settings, self.identity(name))

    def is_clean(self, uuid: str) -> bool:
        """Whether nothing of a VM, nor of any migration, is here."""
        return (
            self.hypervisor.presence(uuid) is Presence.ABSENT
            and not self.hypervisor.images
            and not list(self.runtime.iterdir())
        )


class Operator:
    """Somebody with a certificate, at one of the site's gateways."""

    def __init__(self, site: SiteUnderTest, identity: StoredIdentity, gateway: str = "gw-1") -> None:
        self._site = site
        self._gateway = gateway
        self._identity = identity
        self._remote: Remote | None = None

    async def __aenter__(self) -> Self:
        address = self._site.listens[self._gateway].operators
        self._remote = Remote(
            "the gateway", address, LivingIdentity(self._identity), Role.GATEWAY, self._site.name, None
        )
        self._stub: GatewayAsyncStub = GatewayStub(self._remote.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._remote is not None
        await self._remote.close()

    @property
    def remote(self) -> Remote:
        """The connection."""
        assert self._remote is not None
        return self._remote

    async def sites(self) -> dict[str, api.Site]:
        """By name."""
        answer = await self.remote.ask(self._stub.ListSites, api.ListSitesRequest())
        return {site.name: site for site in answer.sites}

    @property
    def stub(self) -> GatewayAsyncStub:
        """All that can be called."""
        return self._stub

    async def hosts(self) -> dict[str, Host]:
        """Of all sites, by name."""
        answer = await self.remote.ask(self._stub.ListHosts, api.ListHostsRequest())
        return {host.name: host for host in answer.hosts}

    async def preflight(self, vm: str, site: str, policy: Policy | None = None) -> api.PreflightResponse:
        """Findings."""
        request = api.PreflightRequest(vm=vm, destination_site=site, policy=policy)
        return await self.remote.ask(self._stub.Preflight, request)

    async def migrate(
        self,
        vm: str,
        site: str,
        policy: Policy | None = None,
        *,
        request: str = "",
        break_glass: str = "",
        purpose: str = "",
    ) -> str:
        """Begin; the id."""
        wanted = api.MigrateRequest(
            vm=vm, destination_site=site, policy=policy, request=request, break_glass=break_glass, purpose=purpose
        )
        return (await self.remote.ask(self._stub.Migrate, wanted)).migration.id

    async def requests(self) -> list[ApprovalRequest]:
        """Those of this site."""
        return list((await self.remote.ask(self._stub.ListRequests, api.ListRequestsRequest())).requests)

    async def approve(self, request: ApprovalRequest) -> ApprovalRequest:
        """Say yes."""
        approval = api.ApproveRequestRequest(id=request.id, sha256=request.sha256)
        return (await self.remote.ask(self._stub.ApproveRequest, approval)).request

    async def deny(self, request: ApprovalRequest, reason: str) -> ApprovalRequest:
        """Say no."""
        denial = api.DenyRequestRequest(id=request.id, reason=reason)
        return (await self.remote.ask(self._stub.DenyRequest, denial)).request

    async def policy(self) -> PolicyStatus:
        """What the gateway goes by."""
        return (await self.remote.ask(self._stub.GetPolicy, api.GetPolicyRequest())).policy

    async def explain(
        self, vm: str, site: str, requester: str = "", break_glass: str = ""
    ) -> api.ExplainPolicyResponse:
        """What the policies say."""
        asked = api.ExplainPolicyRequest(vm=vm, destination_site=site, requester=requester, break_glass=break_glass)
        return await self.remote.ask(self._stub.ExplainPolicy, asked)

    async def migrations(self) -> list[Migration]:
        """All of them."""
        answer = await self.remote.ask(self._stub.ListMigrations, api.ListMigrationsRequest())
        return list(answer.migrations)

    async def migration(self, id_: str) -> Migration:
        """As it is now."""
        return (await self.remote.ask(self._stub.GetMigration, api.GetMigrationRequest(id=id_))).migration

    async def cancel(self, id_: str) -> Migration:
        """Wish it to stop."""
        request = api.CancelMigrationRequest(id=id_)
        return (await self.remote.ask(self._stub.CancelMigration, request)).migration

    async def settle(self, id_: str, without_proof: str = "") -> api.SettleMigrationResponse:
        """Remove what is left."""
        request = api.SettleMigrationRequest(id=id_, without_proof=without_proof)
        return await self.remote.ask(self._stub.SettleMigration, request)

    async def receipt(self, id_: str) -> bytes:
        """What both logs say."""
        return (await self.remote.ask(self._stub.GetReceipt, GetReceiptRequest(id=id_))).receipt

    async def limit(
        self,
        bytes_per_second: int | None = None,
        *,
        migration: str | None = None,
        site: str | None = None,
        links: int | None = None,
        as_configured: bool = False,
    ) -> None:
        """Limit a migration, or the tunnel to a site."""
        request = api.SetLimitRequest(bytes_per_second=bytes_per_second, links=links, as_configured=as_configured)
        if migration is not None:
            request.migration = migration
        if site is not None:
            request.site = site
        await self.remote.ask(self._stub.SetLimit, request)

    async def watch(self, id_: str) -> AsyncIterator[Migration]:
        """Each change, to the end."""
        request = api.WatchMigrationRequest(id=id_)
        async with contextlib.aclosing(self.remote.follow(self._stub.WatchMigration, request)) as answers:  # type: ignore[type-var]  # an async generator
            async for answer in answers:
                yield answer.migration

    async def until(self, id_: str, *wanted: State) -> Migration:
        """The migration once it is in one of these states; it must come to one before it ends."""
        async with asyncio.timeout(PATIENCE):
            async with contextlib.aclosing(self.watch(id_)) as changes:  # type: ignore[type-var]  # see above
                async for migration in changes:
                    if State(migration.state) in wanted:
                        return migration
        raise AssertionError(f"it ended {State(migration.state).name} ({migration.reason}), not {wanted}")

    async def hears(self, id_: str, words: str) -> Migration:
        """The migration once these words are in its reason, before it has ended."""
        async with asyncio.timeout(PATIENCE), contextlib.aclosing(self.watch(id_)) as changes:  # type: ignore[type-var]  # see above
            async for migration in changes:
                if words in migration.reason:
                    return migration
        raise AssertionError(f"it ended without saying {words!r}")

    async def ended(self, id_: str) -> Migration:
        """The migration once it has ended."""
        return await self.until(id_, *ENDED)


class TwoSites:
    """Both sites, running."""

    def __init__(self, identities: Path, directory: Path) -> None:
        self.fra = SiteUnderTest("fra", identities, directory)
        self.ams = SiteUnderTest("ams", identities, directory)
        self.fra.other, self.ams.other = self.ams, self.fra
        self.fra.hypervisor.far_runtime, self.ams.hypervisor.far_runtime = self.ams.runtime, self.fra.runtime

    async def __aenter__(self) -> Self:
        for site in (self.fra, self.ams):
            await site.agent.start()
            await site.operator.__aenter__()
            await site.second_operator.__aenter__()
        await asyncio.gather(self.fra.gateway.start(), self.ams.gateway.start())
        return self

    async def __aexit__(self, *_: object) -> None:
        for site in (self.fra, self.ams):
            await site.operator.__aexit__()
            await site.second_operator.__aexit__()
            site.hypervisor.power_off()
        gateways = [gateway for site in (self.fra, self.ams) for gateway in (site.gateway, site.second_gateway)]
        await asyncio.gather(*(gateway.stop() for gateway in gateways))
        await asyncio.gather(self.fra.agent.stop(), self.ams.agent.stop())


@contextlib.contextmanager
def losing_power_at_the_release(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """The source's agent notes nothing from the moment in which it would note that it has released the VM; the event is that moment."""
    advance, went_down = SourceMove.advance, asyncio.Event()

    def until_released(self: SourceMove, stage: Stage.ValueType, error: str = "") -> None:
        if stage == Stage.STAGE_RELEASED:
            went_down.set()
        elif not went_down.is_set():
            advance(self, stage, error)

    with monkeypatch.context() as patched:
        patched.setattr(SourceMove, "advance", until_released)
        yield went_down


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.01)


async def has_gone(site: SiteUnderTest, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The first gateway of a site ends, and does not come back."""
    if how == "killed":

        async def say_nothing(_: Store) -> None:
            pass

        monkeypatch.setattr(Store, "leave", say_nothing)
    await site.gateway.stop()


async def coordinated_by(site: SiteUnderTest, id_: str, gateway: str) -> None:
    """The store names this gateway, soon."""
    store = Store(site.store_url, "test")

    async def is_named() -> bool:
        return [row.coordinator for row, _ in await store.load([id_])] == [gateway]

    with contextlib.closing(store):
        await eventually(is_named)


async def take_over(two: TwoSites, monkeypatch: pytest.MonkeyPatch, how: str) -> tuple[str, str]:
    """A move of which the other gateway at the source takes over while disks are copied; its id, and the VM's UUID."""
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = WALK
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.INCOMING)
    await has_gone(two.fra, monkeypatch, how)
    await coordinated_by(two.fra, id_, "gw-2")
    return id_, vm
