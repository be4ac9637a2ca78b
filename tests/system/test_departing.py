"""The way out: a host is taken out of service, a site is left, and both come back; at every gateway, and after restarts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from agent import enroll as enrolling
from agent.hypervisor.base import Presence
from certs import store
from certs.identity import Role
from certs.living import LivingIdentity
from gateway.audit.receipt import Receipt, check
from gateway.audit.storage import Storage
from gateway.config import PatienceSettings
from gateway.identities.departing import Departing
from gateway.identities.records import Records
from gateway.migration import receipt_keeper
from gateway.migration.states import State
from gateway.remote import PeerRemote, Remote
from gateway.store import Store
from landbridge.errors import (
    ConfigError,
    Conflict,
    HostUnreachable,
    LandbridgeError,
    NotAuthenticated,
    NotFound,
    NotRecorded,
    PermissionDenied,
    UsageError,
)
from landbridge.v1 import enrolment_pb2 as pb
from landbridge.v1.peer_pb2 import LeaveRequest, LeaveResponse
from landbridge.v1.peer_pb2_grpc import PeerStub
from tests.system.sites import Operator, SiteUnderTest, TwoSites, eventually
from tests.system.test_audit import place, receipt
from tests.system.test_audit_entries import entries, full
from tests.system.test_identities import Admin, denied_at, enrol, new_token, renewal, tunnel_is_up
from tests.system.test_identity_verbs import run

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.peer_pb2_grpc import PeerAsyncStub

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
CRAWL = 50_000
ROOT = "spiffe://landbridge.test/site/fra/operator/root"


@pytest.fixture
async def two(identities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoSites]:
    """Two sites that have joined, fra with a host that has enrolled: none of that is in a configuration, and all of it in the stores."""
    monkeypatch.setattr(receipt_keeper, "LOOK", 0.05)
    own = shutil.copytree(identities, tmp_path / "identities")
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        sites = TwoSites(own, Path(directory))
        sites.fra.joined = sites.ams.joined = sites.fra.has_host = False
        for use in ("control", "stream"):
            monkeypatch.setattr(enrolling, f"{use.upper()}_PORT", sites.fra.addresses[use].port)
        for site, other in ((sites.fra, sites.ams), (sites.ams, sites.fra)):
            database = Store(site.store_url, "nobody")
            records, listens, ca = Records(database), other.listens["gw-1"], own / other.name / "ca"
            home, pem = str(store.load_authority(ca).site), (ca / "ca.pem").read_bytes()
            await records.join_site(home, pem, other.name, [listens.peers], [listens.tunnel])
            if not site.has_host:
                await records.add_host(site.host, site.addresses["control"], site.addresses["stream"])
            database.close()
        async with sites:
            for site in (sites.fra, sites.ams):
                await eventually(partial(tunnel_is_up, site))
            yield sites


async def come(site: SiteUnderTest) -> None:
    """The site's host enrols, and its agent starts again with what it got."""
    text = await new_token(site, site.host)
    directory = site._identities
    code, said = await enrol(text, directory, "--identity", str(directory / "host"), "--listen", "127.0.0.2", "--force")
    assert code == 0, said
    await site.agent.restart()


async def join(sites: TwoSites) -> None:
    """Operators of both sites join them."""
    for here, there in ((sites.fra, sites.ams), (sites.ams, sites.fra)):
        peers = str(there.listens["gw-1"].peers)
        async with administration(here) as admin:
            found = await admin.ask(admin.stub.LookAtSite, pb.LookAtSiteRequest(address=peers))
            request = pb.JoinSiteRequest(site=found.site, root=found.root, peers=[peers])
            await admin.ask(admin.stub.JoinSite, request)
    for site in (sites.fra, sites.ams):
        await eventually(partial(tunnel_is_up, site))


@contextlib.asynccontextmanager
async def administration(site: SiteUnderTest) -> AsyncIterator[Admin]:
    admin = Admin(site)
    try:
        yield admin
    finally:
        await admin.close()


async def remove(site: SiteUnderTest, name: str = "fra-1", *, force: bool = False) -> pb.RemoveHostResponse:
    async with administration(site) as admin:
        return await admin.ask(admin.stub.RemoveHost, pb.RemoveHostRequest(name=name, reason="sold", force=force))


async def leave(site: SiteUnderTest, name: str = "ams", *, force: bool = False) -> pb.LeaveSiteResponse:
    async with administration(site) as admin:
        return await admin.ask(admin.stub.LeaveSite, pb.LeaveSiteRequest(site=name, reason="sold", force=force), 30.0)


async def begin(site: SiteUnderTest, vm: str = "web-01") -> str:
    """A migration that is under way for as long as a test wants."""
    assert site.other is not None
    site.hypervisor.add_vm(vm, disk=DISK, memory=MEMORY)
    site.hypervisor.rate = CRAWL
    id_ = await site.operator.migrate(vm, site.other.name)
    await site.operator.until(id_, State.COPYING_DISKS)
    return id_


async def move(site: SiteUnderTest, vm: str = "web-01") -> str:
    """A migration that has completed, with nothing left to do for it."""
    assert site.other is not None
    site.hypervisor.add_vm(vm, disk=DISK, memory=MEMORY)
    id_ = await site.operator.migrate(vm, site.other.name)
    ended = await site.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    await is_over(site, id_)
    return id_


async def is_over(site: SiteUnderTest, id_: str) -> None:
    """Its receipt is kept, and what it left is marked."""
    await eventually((place(site) / "receipts" / f"{id_}.receipt").exists)
    await eventually(lambda: any(vm.moved_by == id_ for vm in site.hypervisor.vms()))


async def lists_only(operator: Operator, *hosts: str) -> bool:
    return set(await operator.hosts()) == {*hosts}


# A host


async def test_a_removed_host_is_worth_nothing_and_listed_nowhere_also_after_a_restart(two: TwoSites) -> None:
    await two.fra.second_gateway.start()
    assert await renewal(two.fra, "gw-2")
    assert "fra-1" in await two.fra.second_operator.hosts()
    with structlog.testing.capture_logs() as logs:
        done = await run(two.fra, "hosts", "remove", "fra-1", "--reason", "sold")
        said = "Removed host fra-1: its certificate is worthless from now on.\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
        for gateway in ("gw-1", "gw-2"):
            with pytest.raises(NotAuthenticated, match="was revoked"):
                await renewal(two.fra, gateway)
        await eventually(lambda: any(log["event"] == "trust.not_followed" for log in logs))
    for operator in (two.fra.operator, two.fra.second_operator):
        await eventually(partial(lists_only, operator, "ams-1"))
    await eventually(lambda: denied_at(two.ams, "host/fra-1"))
    assert set(await two.ams.operator.hosts()) == {"ams-1"}
    await two.fra.gateway.restart()
    assert set(await two.fra.operator.hosts()) == {"ams-1"}
    (entry,) = entries(two.fra, "host.removed")
    assert (entry.event.code, entry.text("actor", "id")) == ("N008I", ROOT)
    assert entry.facts("seen")["change"] == {
        "subject": "spiffe://landbridge.test/site/fra/host/fra-1",
        "comment": "removed: sold",
    }
    with pytest.raises(NotFound, match="has no host 'fra-1'; it has none"):
        await remove(two.fra)


async def test_a_removed_host_comes_back_by_a_new_token_and_not_by_an_older_one(two: TwoSites, tmp_path: Path) -> None:
    await two.fra.second_gateway.start()
    older = await new_token(two.fra, "fra-1")
    await remove(two.fra)
    code, said = await enrol(older, tmp_path / "older")
    assert (code, "the token is not valid here" in said) == (PermissionDenied.exit_code, True)
    await come(two.fra)

    async def answers_at_both() -> bool:
        found = [await operator.hosts() for operator in (two.fra.operator, two.fra.second_operator)]
        return all("fra-1" in hosts and not hosts["fra-1"].unreachable for hosts in found)

    await eventually(answers_at_both)
    await move(two.fra)


async def test_a_host_with_vms_is_not_removed_unless_by_force_which_leaves_them(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(Conflict, match=r"host fra-1 has the VM web-01: move them away with `landbridge migrate`"):
        await remove(two.fra)
    assert not (await two.fra.operator.hosts())["fra-1"].unreachable
    assert entries(two.fra, "host.removed") == []
    removed = await remove(two.fra, force=True)
    assert (list(removed.vms), removed.unreachable) == (["web-01"], "")
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING
    assert "fra-1" not in await two.fra.operator.hosts()


async def test_a_host_that_does_not_answer_is_removed_by_force_only(two: TwoSites) -> None:
    await two.fra.agent.stop()
    with pytest.raises(HostUnreachable, match="nobody else knows which VMs run on host fra-1: if it is dead"):
        await remove(two.fra)
    assert "fra-1" in await two.fra.operator.hosts()
    assert "does not answer" in (await remove(two.fra, force=True)).unreachable
    assert "fra-1" not in await two.fra.operator.hosts()
    assert await denied_at(two.fra, "host/fra-1")


async def test_a_host_is_not_removed_while_a_migration_leaves_it_and_what_that_left_is_told_afterwards(
    two: TwoSites,
) -> None:
    id_ = await begin(two.fra)
    said = f"migration {id_[:8]} of web-01 from fra to ams is under way, and host fra-1 has a part in it: wait for it, or cancel"
    with pytest.raises(Conflict, match=said):
        await remove(two.fra)
    two.fra.hypervisor.hasten()
    await two.fra.operator.ended(id_)
    await is_over(two.fra, id_)
    assert list((await remove(two.fra)).unsettled) == [id_]


async def test_a_host_is_not_removed_while_a_migration_comes_to_it(two: TwoSites) -> None:
    await begin(two.ams)
    with pytest.raises(Conflict, match="web-01 from ams to fra is under way, and host fra-1 has a part in it"):
        await remove(two.fra)


async def test_a_host_of_the_configuration_is_not_removed_and_what_to_delete_is_said(two: TwoSites) -> None:
    with pytest.raises(
        Conflict, match=r'stands in gateway.toml: delete its \[\[hosts\]\], the one with name = "ams-1"'
    ):
        await remove(two.ams, "ams-1", force=True)
    for name in ("", "ams-1", "../x"):
        with pytest.raises(NotFound, match="has no host"):
            await remove(two.fra, name, force=True)


async def test_a_removal_that_the_store_did_not_take_leaves_a_host_that_is_worth_nothing_and_is_removed_again(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_full(*_: object) -> None:
        raise ConfigError("the store cannot be written: database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "remove_host", is_full)
        with pytest.raises(ConfigError, match="disk is full"):
            await remove(two.fra)
    assert "was revoked" in (await two.fra.operator.hosts())["fra-1"].unreachable
    await remove(two.fra, force=True)
    assert "fra-1" not in await two.fra.operator.hosts()


async def test_what_cannot_be_recorded_is_not_done(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded):
            await remove(two.fra)
        with pytest.raises(NotRecorded):
            await leave(two.fra)
    assert await renewal(two.fra, "gw-1")
    assert "fra-1" in await two.fra.operator.hosts()
    assert await tunnel_is_up(two.fra)
    assert believes(two.ams)


# A site


def believes(site: SiteUnderTest, gateway: str = "gw-1") -> bool:
    """Whether a gateway has the other site's roots among its files."""
    assert site.other is not None
    return (site._identities / gateway / "trust" / f"{site.other.name}.pem").exists()


def pages(site: SiteUnderTest) -> list[Path]:
    """The page logs of a site's first gateway."""
    return list((site.directory / "gw-1-pages").glob("*"))


async def is_alone(site: SiteUnderTest, gateway: str = "gw-1") -> bool:
    """Whether a gateway knows no other site, and believes none."""
    operator = site.operator if gateway == "gw-1" else site.second_operator
    return set(await operator.sites()) == {site.name} and not believes(site, gateway)


@contextlib.asynccontextmanager
async def peer(site: SiteUnderTest, who: Role | str = "gw-1") -> AsyncIterator[PeerRemote]:
    """A way to the first gateway of the other site, as somebody of this site."""
    assert site.other is not None
    local = LivingIdentity(site.identity(who))
    remote = PeerRemote(site.other.name, [site.other.listens["gw-1"].peers], local)
    try:
        yield remote
    finally:
        await remote.close()


async def test_a_site_that_is_left_leaves_too_and_nobody_believes_the_other_any_more_at_any_gateway(
    two: TwoSites,
) -> None:
    await two.fra.second_gateway.start()
    assert believes(two.fra, "gw-2")
    await eventually(lambda: bool(entries(two.fra, "tunnel.opened")))
    with structlog.testing.capture_logs() as logs:
        done = await run(two.fra, "sites", "leave", "ams", "--reason", "sold")
        said = "Left ams: nobody there is believed here any more.\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
        for site, gateway in ((two.fra, "gw-1"), (two.fra, "gw-2"), (two.ams, "gw-1")):
            await eventually(partial(is_alone, site, gateway))
    assert any(log["event"] == "link.down" for log in logs)
    assert not any(log["event"] in {"trusting.defect", "migration.defect", "call.defect"} for log in logs)
    for site in (two.fra, two.ams):
        async with peer(site) as remote:
            with pytest.raises(LandbridgeError):
                await remote.ask(remote.stub.Leave, LeaveRequest())
    (entry,) = entries(two.fra, "site.left")
    assert (entry.event.code, entry.text("actor", "id")) == ("N009I", ROOT)
    assert entry.facts("seen")["change"] == {"subject": "spiffe://landbridge.test/site/ams", "comment": "left: sold"}
    (entry,) = entries(two.ams, "site.left")
    assert entry.text("actor", "id") == "spiffe://landbridge.test/site/fra/gateway/gw-1"
    assert entry.text("seen", "change", "subject") == "spiffe://landbridge.test/site/fra"
    await eventually(lambda: bool(entries(two.fra, "tunnel.closed")))
    await two.fra.gateway.restart()
    await two.ams.gateway.restart()
    assert await is_alone(two.fra)
    assert await is_alone(two.ams)
    with pytest.raises(NotFound, match="is not joined with a site 'ams'; it is joined with none"):
        await leave(two.fra)


async def test_a_gateway_that_did_not_run_when_its_site_left_another_one_does_not_bring_it_back(two: TwoSites) -> None:
    assert believes(two.fra, "gw-2")
    await leave(two.fra)
    await two.fra.second_gateway.start()
    assert await is_alone(two.fra, "gw-2")
    assert await is_alone(two.fra)


async def test_sites_that_were_left_join_again_and_what_was_recorded_before_stays_verifiable(two: TwoSites) -> None:
    await two.fra.second_gateway.start()
    moved = await move(two.fra, "web-01")
    assert pages(two.fra) == [two.fra.directory / "gw-1-pages" / "ams.gw-1.pages"]
    before = await receipt(two.fra, moved)
    await leave(two.fra)
    assert await receipt(two.fra, moved) == before
    assert pages(two.fra) == pages(two.ams) == []
    await join(two)
    assert believes(two.fra)
    await eventually(lambda: believes(two.fra, "gw-2"))
    after = await receipt(two.fra, await move(two.fra, "web-02"))
    for each in (before, after):
        assert check(each) == []


async def test_a_site_is_not_left_before_there_is_a_receipt_of_what_was_moved_there(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Receipt, "encode", full)
        two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await two.fra.operator.ended(id_)
        said = f"migration {id_[:8]} of web-01 from fra to ams has ended, and its receipt, in which site [a-z]+ has a part, is not"
        for here, there in ((two.fra, "ams"), (two.ams, "fra")):
            with pytest.raises(Conflict, match=said):
                await leave(here, there)
    assert believes(two.fra)
    assert believes(two.ams)


@pytest.mark.parametrize("by", ["source", "destination"])
async def test_a_site_is_not_left_while_a_migration_is_under_way(two: TwoSites, by: str) -> None:
    id_ = await begin(two.fra)
    here, there = (two.fra, "ams") if by == "source" else (two.ams, "fra")
    with pytest.raises(
        Conflict, match=f"migration {id_[:8]} of web-01 from fra to ams is under way, and site {there} has"
    ):
        await leave(here, there)
    assert entries(here, "site.left") == []
    two.fra.hypervisor.hasten()
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    await is_over(two.fra, id_)
    await leave(here, there)


async def test_a_forced_leave_ends_a_migration_with_the_vm_at_its_source(two: TwoSites) -> None:
    two.fra.patience = PatienceSettings(cleanup=0.5)
    await two.fra.gateway.restart()
    await eventually(lambda: tunnel_is_up(two.fra))
    id_ = await begin(two.fra)
    left = await leave(two.fra, force=True)
    assert "web-01 from fra to ams is under way" in left.untold
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED, ended.reason
    (vm,) = [each for each in two.fra.hypervisor.vms() if each.name == "web-01"]
    assert two.fra.hypervisor.presence(vm.uuid) is Presence.RUNNING
    assert two.ams.hypervisor.presence(vm.uuid) is not Presence.RUNNING


async def test_a_site_that_knows_of_a_migration_asks_the_other_one_to_wait(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def knows_of_one(*_: object) -> LeaveResponse:
        raise Conflict("migration 1234 is under way")

    monkeypatch.setattr(Departing, "left_by", knows_of_one)
    with pytest.raises(Conflict, match="site ams asks to wait: migration 1234 is under way; --force does not wait"):
        await leave(two.fra)
    assert await tunnel_is_up(two.fra)
    assert "migration 1234" in (await leave(two.fra, force=True)).untold
    assert await is_alone(two.fra)


async def test_a_site_does_not_leave_at_the_word_of_another_while_a_migration_is_under_way(two: TwoSites) -> None:
    await begin(two.ams)
    async with peer(two.fra) as remote:
        with pytest.raises(Conflict, match="web-01 from ams to fra is under way, and site fra has a part in it"):
            await remote.ask(remote.stub.Leave, LeaveRequest())
    assert await tunnel_is_up(two.ams)


async def test_only_a_gateway_says_that_its_site_leaves_and_it_can_say_so_of_no_other(two: TwoSites) -> None:
    assert not LeaveRequest.DESCRIPTOR.fields
    for who in (Role.HOST, "root"):
        async with peer(two.fra, who) as remote:
            with pytest.raises(LandbridgeError):
                await remote.ask(remote.stub.Leave, LeaveRequest())
    own = LivingIdentity(two.ams.identity("gw-2"))
    itself = Remote("itself", two.ams.listens["gw-1"].peers, own, Role.GATEWAY, "ams", None)
    stub: PeerAsyncStub = PeerStub(itself.channel)
    with pytest.raises(PermissionDenied, match="takes a certificate of a gateway of another site"):
        await itself.ask(stub.Leave, LeaveRequest())
    await itself.close()
    assert believes(two.ams)
    assert entries(two.ams, "site.left") == []


async def test_a_site_that_does_not_answer_is_left_all_the_same_and_ends_its_trust_by_itself(two: TwoSites) -> None:
    await two.ams.gateway.stop()
    assert "site ams does not answer" in (await leave(two.fra)).untold
    await two.ams.gateway.start()
    assert (await two.ams.operator.sites())["fra"].unreachable
    assert believes(two.ams)
    assert (await leave(two.ams, "fra")).untold
    assert await is_alone(two.ams)
    await join(two)


async def test_a_leave_of_which_one_end_was_done_is_done_again(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Records.leave_site

    async def is_full_at_fra(self: Records, site: str, name: str) -> None:
        if name == "ams":
            raise ConfigError("the store cannot be written: database or disk is full")
        await take(self, site, name)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "leave_site", is_full_at_fra)
        with pytest.raises(ConfigError, match="disk is full"):
            await leave(two.fra)
    assert await is_alone(two.ams)
    assert believes(two.fra)
    assert (await leave(two.fra)).untold
    assert await is_alone(two.fra)
    await join(two)


async def test_a_site_of_the_configuration_is_told_to_its_operators_once_and_stays(two: TwoSites) -> None:
    two.ams.joined = True
    await two.ams.gateway.restart()
    async with peer(two.fra) as remote:
        for _ in range(3):
            answer = await remote.ask(remote.stub.Leave, LeaveRequest())
            assert answer.remains == "it stands in gateway.toml of site ams, whose operators have to delete it there"
    (entry,) = entries(two.ams, "site.left")
    assert entry.text("seen", "change", "comment").startswith("it has left this site, and it stands in gateway.toml")
    assert believes(two.ams)
    with pytest.raises(Conflict, match=r"site fra stands in gateway.toml: delete its \[\[sites\]\], the one with name"):
        await leave(two.ams, "fra", force=True)
    two.ams.joined = False
    await two.ams.gateway.restart()
    await leave(two.ams, "fra")
    assert await is_alone(two.ams)


async def test_what_is_no_other_site_cannot_be_left(two: TwoSites) -> None:
    with pytest.raises(UsageError, match="fra is this site itself"):
        await leave(two.fra, "fra")
    for name in ("", "lon", "spiffe://landbridge.test/site/ams"):
        with pytest.raises(NotFound, match="it is joined with ams"):
            await leave(two.fra, name)
    assert await tunnel_is_up(two.fra)
