"""Identities that live, between two sites on the loopback: renewed, revoked, enrolled and joined while migrations go on."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner
from cryptography import x509

import agent.main
from agent.hypervisor.base import Presence
from certs import authority, store, token, trust
from certs.identity import Role, parse_site
from certs.living import LivingIdentity
from certs.trust import Denial, Denials, TrustBundles, fingerprint, load_certificates, spoken
from gateway.identities import trusting
from gateway.migration.states import ENDED, State
from gateway.remote import Remote
from landbridge.errors import LandbridgeError, NotAuthenticated, PermissionDenied
from landbridge.v1 import enrolment_pb2 as pb
from landbridge.v1.enrolment_pb2_grpc import IdentitiesStub, RenewalStub
from tests.system.sites import Operator, SiteUnderTest, TwoSites, eventually, make_identities

if TYPE_CHECKING:
    from landbridge.v1.enrolment_pb2_grpc import IdentitiesAsyncStub, RenewalAsyncStub

pytestmark = pytest.mark.timeout(60)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
CRAWL = 50_000
SHORT = 4.0


@pytest.fixture
async def fresh(tmp_path: Path) -> AsyncIterator[TwoSites]:
    """Two sites, not running, with identities of their own, which live for a few seconds."""
    make_identities(tmp_path, timedelta(seconds=SHORT))
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        sites = TwoSites(tmp_path, Path(directory))
        sites.fra.lifetime = sites.ams.lifetime = SHORT
        yield sites


class Admin:
    """An operator, who looks after identities."""

    def __init__(self, site: SiteUnderTest) -> None:
        local = LivingIdentity(site.identity("root"))
        self._remote = Remote("the gateway", site.listens["gw-1"].operators, local, Role.GATEWAY, site.name, None)
        self.stub: IdentitiesAsyncStub = IdentitiesStub(self._remote.channel)
        self.ask = self._remote.ask
        self.close = self._remote.close

    async def certificates(self) -> dict[str, pb.CertificateEntry]:
        """The newest of each, by the end of its name."""
        found = await self.ask(self.stub.ListCertificates, pb.ListCertificatesRequest())
        return {each.identity.rpartition("/site/")[2]: each for each in found.certificates}

    async def revoke(self, subject: str) -> None:
        await self.ask(self.stub.Revoke, pb.RevokeRequest(subject=subject, reason="it was stolen"))


def serial(site: SiteUnderTest, who: Role | str) -> int:
    return store.load_identity(site._identities / who, None).certificate.serial_number


async def renewed(before: dict[tuple[SiteUnderTest, Role | str], int]) -> None:
    """Everybody has another certificate than before."""
    await eventually(lambda: all(serial(*end) != old for end, old in before.items()))


# Renewal


async def test_a_migration_outlives_the_certificates_of_all_who_carry_it(fresh: TwoSites) -> None:
    async with fresh as two:
        ends = [(site, who) for site in (two.fra, two.ams) for who in ("gw-1", Role.HOST)]
        before: dict[tuple[SiteUnderTest, Role | str], int] = {end: serial(*end) for end in ends}
        vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        two.fra.hypervisor.rate = CRAWL
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await two.fra.operator.until(id_, State.COPYING_DISKS)
        for _ in range(2):
            await renewed(before)
            before = {end: serial(*end) for end in ends}
        assert not State((await two.fra.operator.migration(id_)).state).name.startswith("COMPLETED")
        two.fra.hypervisor.hasten()
        ended = await two.fra.operator.ended(id_)
        assert State(ended.state) is State.COMPLETED, ended.reason
        assert two.ams.hypervisor.presence(vm) is Presence.RUNNING


async def test_what_the_gateway_signs_is_in_its_list(fresh: TwoSites) -> None:
    async with fresh as two:
        admin = Admin(two.fra)
        found = await admin.certificates()
        await admin.close()
    assert set(found) >= {"fra", "fra/issuer/gw-1", "fra/gateway/gw-1", "fra/operator/root"}
    assert found["fra/gateway/gw-1"].renews_itself
    assert not found["fra"].renews_itself
    assert found["fra"].kind == pb.CertificateKind.CERTIFICATE_KIND_ROOT


# A new root


async def test_a_migration_outlives_a_change_of_its_sites_root(fresh: TwoSites) -> None:
    async with fresh as two:
        admin = Admin(two.fra)
        ca = two.fra._identities / "ca"
        old = store.load_authority(ca)
        two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        two.fra.hypervisor.rate = CRAWL
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await two.fra.operator.until(id_, State.COPYING_DISKS)

        new, handover = authority.hand_over(old, datetime.now(UTC), timedelta(seconds=8))
        roots = store.replace_authority(ca, new, handover, datetime.now(UTC))
        await admin.ask(admin.stub.InstallRoots, pb.InstallRootsRequest(roots=pem(*roots)))
        wanted = await admin.ask(admin.stub.RequestIssuer, pb.RequestIssuerRequest())
        key = authority.requested_key(wanted.request.encode())
        issuer = authority.create_issuer(new, wanted.gateway, key, datetime.now(UTC))
        await admin.ask(admin.stub.InstallIssuer, pb.InstallIssuerRequest(certificate=pem(issuer)))

        def everybody_has_changed() -> bool:
            held = [store.load_identity(two.fra._identities / who, None) for who in ("gw-1", Role.HOST)]
            trusted: list[TrustBundles] = [
                store.load_trust(directory) for directory in (two.ams._identities / "gw-1", held[1].directory)
            ]
            return all(each.root == new.certificate for each in held) and all(
                known.roots[new.site] == (new.certificate,) for known in trusted
            )

        await eventually(everybody_has_changed)
        # Alice's certificate is from the old root, which does not count any more.
        with pytest.raises(LandbridgeError, match="was not issued by a valid root"):
            await admin.certificates()
        await admin.close()
        alice = two.fra.identity("alice", checked=False)
        leaf = authority.issue(new, alice.identity, datetime.now(UTC))
        store.save_identity(alice.directory, leaf, force=True)
        await two.fra.operator.__aexit__()
        two.fra.operator = Operator(two.fra, two.fra.identity("alice"))
        await two.fra.operator.__aenter__()
        assert State((await two.fra.operator.migration(id_)).state) not in ENDED
        two.fra.hypervisor.hasten()
        ended = await two.fra.operator.ended(id_)
        assert State(ended.state) is State.COMPLETED, ended.reason


async def test_a_root_that_the_old_one_has_not_signed_off_is_refused(two: TwoSites) -> None:
    admin = Admin(two.fra)
    stranger = authority.create(two.fra.identity("gw-1").identity.home, datetime.now(UTC))
    with pytest.raises(LandbridgeError, match="none of its known roots has signed off"):
        await admin.ask(admin.stub.InstallRoots, pb.InstallRootsRequest(roots=pem(stranger.certificate)))
    other = store.load_authority(two.ams._identities / "ca").certificate
    with pytest.raises(LandbridgeError, match="and of no other site"):
        await admin.ask(admin.stub.InstallRoots, pb.InstallRootsRequest(roots=pem(other)))
    await admin.close()


def pem(*certificates: x509.Certificate) -> str:
    return trust.pem_of(certificates).decode()


# Revocation


async def test_a_revoked_hosts_links_are_closed_and_it_comes_in_no_more(fresh: TwoSites) -> None:
    async with fresh as two:
        admin = Admin(two.fra)
        two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        two.fra.hypervisor.rate = CRAWL
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await two.fra.operator.until(id_, State.COPYING_DISKS)
        with structlog.testing.capture_logs() as logs:
            asked = asyncio.get_running_loop().time()
            await admin.revoke("host/fra-1")
            await eventually(lambda: any(was_revoked(log, "channel.link_down") for log in logs))
            await eventually(lambda: any(was_revoked(log, "link.refused") for log in logs))
            assert asyncio.get_running_loop().time() - asked < 10
        hosts = await two.fra.operator.hosts()
        assert "was revoked" in hosts["fra-1"].unreachable
        found = await admin.certificates()
        assert found["fra/host/fra-1"].HasField("revoked_at")
        await admin.close()


def was_revoked(log: Mapping[str, object], event: str) -> bool:
    return log["event"] == event and "was revoked" in str(log.get("reason"))


@pytest.fixture
def rare_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways go round once, and learn nothing by themselves then."""
    monkeypatch.setattr(trusting, "ROUND", 3600.0)


async def renewal(site: SiteUnderTest, gateway: str) -> str:
    """A host asks a gateway for its next certificate, as it is shown."""
    local = LivingIdentity(site.identity(Role.HOST))
    remote = Remote("the gateway", site.listens[gateway].operators, local, Role.GATEWAY, site.name, None)
    stub: RenewalAsyncStub = RenewalStub(remote.channel)
    try:
        wanted = authority.request(authority.new_key()).decode()
        return (await remote.ask(stub.Renew, pb.RenewRequest(request=wanted))).chain
    finally:
        await remote.close()


async def test_a_stolen_key_is_renewed_at_no_gateway_once_it_is_revoked_at_one(
    rare_rounds: None, tmp_path: Path
) -> None:
    make_identities(tmp_path)
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        async with TwoSites(tmp_path, Path(directory)) as two:
            await two.fra.second_gateway.start()
            assert await renewal(two.fra, "gw-2")
            admin = Admin(two.fra)
            await admin.revoke("host/fra-1")
            with pytest.raises(NotAuthenticated, match="was revoked"):
                await renewal(two.fra, "gw-2")
            await admin.close()


async def test_what_is_signed_while_a_host_is_revoked_is_denied_and_the_host_comes_back_at_once(
    rare_rounds: None, tmp_path: Path
) -> None:
    make_identities(tmp_path)
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        async with TwoSites(tmp_path, Path(directory)) as two:
            await two.fra.second_gateway.start()
            signed = await renewal(two.fra, "gw-2")
            admin = Admin(two.fra)
            for attempt in ("a", "b"):
                await admin.revoke("host/fra-1")
                assert is_denied(two.fra, await denials(admin), signed)
                # Another gateway of the site signs as it does a moment later, before it knows.
                meanwhile = authority.issue(
                    store.load_authority(two.fra._identities / "ca"),
                    two.fra.identity(Role.HOST).identity,
                    datetime.now(UTC) + timedelta(seconds=60),
                )
                assert is_denied(two.fra, await denials(admin), meanwhile.chain_pem.decode())
                code, said = await enrol(await new_token(two.fra, "fra-1"), tmp_path / attempt)
                assert code == 0, said
                signed = (tmp_path / attempt / "identity" / "cert.pem").read_text()
                assert not is_denied(two.fra, await denials(admin), signed)
            await admin.close()


async def denials(admin: Admin) -> frozenset[Denial]:
    """What was revoked, as the gateway tells."""
    found = await admin.ask(admin.stub.ListCertificates, pb.ListCertificatesRequest())
    return frozenset(Denial(each.subject, parse_site(each.site), each.since.ToDatetime(UTC)) for each in found.denials)


def is_denied(site: SiteUnderTest, denials: frozenset[Denial], chain: str) -> bool:
    """Whether a certificate, which is in order otherwise, was revoked."""
    leaf, *issuers = load_certificates(chain.encode())
    roots = store.load_trust(site._identities / "gw-1")
    credential = trust.judge(leaf, roots, datetime.now(UTC), issuers)
    return Denials(credential.identity.home, denials).refusal(credential) != ""


async def test_a_revoked_operators_watch_ends_and_no_call_is_answered(fresh: TwoSites) -> None:
    async with fresh as two:
        two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
        two.fra.hypervisor.rate = CRAWL
        id_ = await two.fra.operator.migrate("web-01", "ams")
        watching = asyncio.create_task(two.fra.operator.ended(id_))
        await two.fra.operator.until(id_, State.COPYING_DISKS)
        admin = Admin(two.fra)
        await admin.revoke("operator/alice")
        with pytest.raises(NotAuthenticated, match="was revoked"):
            await two.fra.operator.sites()
        with pytest.raises(NotAuthenticated, match="was revoked"):
            await asyncio.wait_for(watching, 10)
        await admin.close()


async def test_a_revoked_gateway_is_cut_off_at_the_other_site_and_its_site_told_so(fresh: TwoSites) -> None:
    async with fresh as two:
        await eventually(lambda: tunnel_is_up(two.ams))
        # Another gateway of the site says so, while the revoked one runs on.
        await two.fra.second_gateway.start()
        admin = Admin(two.fra)
        asked = asyncio.get_running_loop().time()
        await admin.revoke("gateway/gw-2")
        await eventually(lambda: denied_at(two.ams, "gateway/gw-2"))
        assert asyncio.get_running_loop().time() - asked < 10
        await admin.close()
        other = Admin(two.ams)
        found = await other.ask(other.stub.ListCertificates, pb.ListCertificatesRequest())
        assert [(each.subject, each.site) for each in found.denials] == [
            (
                "spiffe://landbridge.test/site/fra/gateway/gw-2",
                "spiffe://landbridge.test/site/fra",
            )
        ]
        await other.close()


async def tunnel_is_up(site: SiteUnderTest) -> bool:
    assert site.other is not None
    return (await site.operator.sites())[site.other.name].tunnel == "up"


async def denied_at(site: SiteUnderTest, subject: str) -> bool:
    admin = Admin(site)
    try:
        found = await admin.ask(admin.stub.ListCertificates, pb.ListCertificatesRequest())
        return any(each.subject.endswith(subject) for each in found.denials)
    finally:
        await admin.close()


@pytest.mark.parametrize("subject", ["", "host", "nobody/x", "spiffe://landbridge.test", "host/A", "xyz"])
async def test_what_names_nobody_cannot_be_revoked(two: TwoSites, subject: str) -> None:
    admin = Admin(two.fra)
    with pytest.raises(LandbridgeError, match="cannot be revoked: give ROLE/NAME"):
        await admin.revoke(subject)
    await admin.close()


# Enrolment


async def new_token(site: SiteUnderTest, name: str) -> str:
    admin = Admin(site)
    made = await admin.ask(admin.stub.CreateToken, pb.CreateTokenRequest(name=name))
    await admin.close()
    return made.token


async def enrol(text: str, directory: Path, *more: str) -> tuple[int, str]:
    """What `landbridge-agent enroll` says, in a thread, since it has an event loop of its own."""
    arguments = [
        "enroll",
        text,
        "--identity",
        str(directory / "identity"),
        "--config",
        str(directory / "agent.toml"),
        *more,
    ]
    ran = await asyncio.to_thread(CliRunner().invoke, agent.main.main, arguments)
    return ran.exit_code, ran.output


async def test_a_new_host_enrols_and_is_known_without_a_restart(two: TwoSites, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        text = await new_token(two.fra, "fra-2")
        code, said = await enrol(text, tmp_path, "--listen", "127.0.0.2")
    assert code == 0, said
    assert "agent.enrolled" in {log["event"] for log in logs}
    assert token.parse(text).secret not in str(logs)
    assert "Enrolled spiffe://landbridge.test/site/fra/host/fra-2" in said
    assert f'control = ["{two.fra.listens["gw-1"].operators}"]' in (tmp_path / "agent.toml").read_text()
    local = store.load_identity(tmp_path / "identity", datetime.now(UTC))
    assert (local.directory / "key.pem").stat().st_mode & 0o777 == 0o600
    assert local.certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)
    hosts = await two.fra.operator.hosts()
    assert set(hosts) == {"fra-1", "fra-2", "ams-1"}
    assert "does not answer at 127.0.0.2:7443" in hosts["fra-2"].unreachable


async def test_a_token_is_good_once(two: TwoSites, tmp_path: Path) -> None:
    text = await new_token(two.fra, "fra-2")
    assert (await enrol(text, tmp_path / "a"))[0] == 0
    code, said = await enrol(text, tmp_path / "b")
    assert (code, "the token is not valid here" in said) == (PermissionDenied.exit_code, True)
    assert not (tmp_path / "b" / "identity").exists()


async def test_a_token_with_another_secret_is_refused_and_stays_good(two: TwoSites, tmp_path: Path) -> None:
    made = token.parse(await new_token(two.fra, "fra-2"))
    forged = replace(made, secret=("A" if made.secret[0] != "A" else "B") + made.secret[1:])
    code, said = await enrol(str(forged), tmp_path / "a")
    assert (code, "the token is not valid here" in said) == (PermissionDenied.exit_code, True)
    assert (await enrol(str(made), tmp_path / "b"))[0] == 0


async def test_a_secret_is_not_sent_to_whoever_poses_as_the_gateway(two: TwoSites, tmp_path: Path) -> None:
    made = token.parse(await new_token(two.fra, "fra-2"))
    posing = replace(made, addresses=(two.ams.listens["gw-1"].enrolment or made.addresses[0],))
    code, said = await enrol(str(posing), tmp_path)
    assert code == NotAuthenticated.exit_code
    assert "is not the gateway that the token was made by: nothing was sent" in said


async def test_an_identity_is_not_replaced_unless_that_is_wanted(two: TwoSites, tmp_path: Path) -> None:
    assert (await enrol(await new_token(two.fra, "fra-2"), tmp_path))[0] == 0
    text = await new_token(two.fra, "fra-2")
    code, said = await enrol(text, tmp_path)
    assert (code, "--force" in said) == (4, True)
    code, said = await enrol(text, tmp_path, "--force")
    assert code == 0, said
    assert "is as it was" in said


async def test_who_tries_too_often_is_slowed_down(two: TwoSites, tmp_path: Path) -> None:
    made = token.parse(await new_token(two.fra, "fra-2"))
    forged = str(replace(made, id=made.id[::-1]))
    answers = [await enrol(forged, tmp_path) for _ in range(11)]
    assert all("the token is not valid here" in said for _, said in answers[:10])
    assert "try again in a minute" in answers[10][1]


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 64])
async def test_a_token_is_for_a_name_that_a_host_can_have(two: TwoSites, name: str) -> None:
    with pytest.raises(LandbridgeError, match="is no valid name"):
        await new_token(two.fra, name)


# Joining


async def test_two_sites_that_do_not_know_each_other_join(tmp_path: Path) -> None:
    make_identities(tmp_path)
    for site, other in (("fra", "ams"), ("ams", "fra")):
        (tmp_path / site / "gw-1" / "trust" / f"{other}.pem").unlink()
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        sites = TwoSites(tmp_path, Path(directory))
        sites.fra.joined = sites.ams.joined = False
        async with sites as two:
            for here, there in ((two.fra, two.ams), (two.ams, two.fra)):
                admin, peers = Admin(here), str(there.listens["gw-1"].peers)
                found = await admin.ask(admin.stub.LookAtSite, pb.LookAtSiteRequest(address=peers))
                assert found.site == f"spiffe://landbridge.test/site/{there.name}"
                ca = store.load_authority(there._identities / "ca").certificate
                assert load_certificates(found.root.encode()) == [ca]
                assert len(spoken(fingerprint(ca)).split()) == 8
                request = pb.JoinSiteRequest(site=found.site, root=found.root, peers=[peers])
                await admin.ask(admin.stub.JoinSite, request)
                await admin.close()
            await eventually(lambda: tunnel_is_up(two.fra))
            await eventually(lambda: tunnel_is_up(two.ams))
            vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
            ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams"))
            assert State(ended.state) is State.COMPLETED, ended.reason
            assert two.ams.hypervisor.presence(vm) is Presence.RUNNING
            # And it is so after a restart, by the store alone.
            await two.fra.gateway.restart()
            await eventually(lambda: tunnel_is_up(two.fra))


async def test_a_site_with_another_root_than_the_known_one_is_not_joined(two: TwoSites) -> None:
    admin = Admin(two.fra)
    home = two.ams.identity("gw-1").identity.home
    stranger = authority.create(home, datetime.now(UTC)).certificate
    request = pb.JoinSiteRequest(site=str(home), root=pem(stranger), peers=["127.0.0.3:1"])
    with pytest.raises(LandbridgeError, match="is joined already, with another root"):
        await admin.ask(admin.stub.JoinSite, request)
    own = str(two.fra.listens["gw-1"].peers)
    with pytest.raises(LandbridgeError, match="is one of this site"):
        await admin.ask(admin.stub.LookAtSite, pb.LookAtSiteRequest(address=own))
    await admin.close()
