"""What is on record beside the steps of migrations: who was refused, who has approved, what was changed, delivered, and come or gone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from agent.hypervisor.base import Presence
from certs.identity import Role
from certs.living import LivingIdentity
from gateway.audit import presence
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.storage import Storage
from gateway.audit.verify import verify
from gateway.migration import receipt_keeper
from gateway.migration.states import State
from gateway.remote import PeerRemote
from landbridge.errors import ApprovalNeeded, LandbridgeError, NotRecorded, PermissionDenied, PolicyRefused
from landbridge.v1.enrolment_pb2 import CreateTokenRequest, RevokeRequest
from landbridge.v1.enrolment_pb2_grpc import IdentitiesStub
from landbridge.v1.peer_pb2 import GetSiteRequest
from tests.system.policies import ALWAYS, GLASS, TWO, give, person
from tests.system.sites import SiteUnderTest, TwoSites, eventually
from tests.system.test_audit import DISK, MEMORY, place, receipt

pytestmark = pytest.mark.timeout(60)

FORBID = '\n[[rules]]\nname = "nothing abroad"\neffect = "forbid"\nwho = ["*/*"]\nvms = ["*"]\nfrom = ["fra"]\nto = ["ams"]\n'

# Where the two sites are is not said, so that they may be in two countries.
SAID = {"purpose": "orders", "legal_basis": "contract", "transfer_mechanism": "scc-eu"}
GROUNDS = '\n[[transfers]]\nname = "shop"\ndemand_purpose = true\n' + "".join(f'{k} = "{v}"\n' for k, v in SAID.items())


def entries(site: SiteUnderTest, *events: str, migration: str = "") -> list[Recorded]:
    """Those of a site's log, oldest first."""
    log = Still(Directory(place(site)))
    assert verify(log).findings == []
    return [
        entry
        for _, entry in last(log, 10_000)
        if entry.event.name in events and (not migration or entry.text("migration") == migration)
    ]


async def one(site: SiteUnderTest, *events: str, migration: str = "") -> Recorded:
    """The first of them, once it is there."""
    await eventually(lambda: bool(entries(site, *events, migration=migration)))
    return entries(site, *events, migration=migration)[0]


def full(*_: object) -> int:
    raise NotRecorded("the audit log cannot be written: No space left on device")


async def test_what_this_sites_policy_denies_is_on_record_with_rule_policy_and_requester(two: TwoSites) -> None:
    sha256 = await give(two.fra, FORBID)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    for _ in range(3):
        with pytest.raises(PolicyRefused):
            await two.fra.operator.migrate("web-01", "ams")
    denied = await one(two.fra, "migration.denied")
    assert denied.text("actor", "id") == person("alice")
    assert denied.text("outcome") == "denied"
    assert denied.facts("seen")["policy"] == {
        "decision": "deny",
        "ids": ['forbid "nothing abroad"'],
        "bundle_sha256": sha256,
    }
    assert denied.text("seen", "vm", "name") == "web-01"
    assert denied.text("seen", "destination", "country") == "NL"
    assert denied.text("seen", "vm", "xml_sha256") != ""
    assert len(entries(two.fra, "migration.denied")) == 1  # the others are counted


async def test_what_the_other_sites_policy_denies_is_on_record_at_both(two: TwoSites) -> None:
    await give(two.ams, FORBID)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(PolicyRefused):
        await two.fra.operator.migrate("web-01", "ams")
    here, there = await one(two.fra, "migration.denied"), await one(two.ams, "migration.denied")
    assert here.text("claimed", "policy", "decision") == "deny"
    assert here.text("seen", "policy") == ""
    assert there.text("seen", "policy", "decision") == "deny"
    assert there.text("actor", "method") == "as site fra says"
    assert there.text("claimed", "vm", "name") == "web-01"


async def test_a_denial_stays_one_while_the_log_is_full_and_a_change_is_not_made(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give(two.fra, FORBID + TWO)
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    async with two.fra.person("root") as root:
        admin = IdentitiesStub(root.remote.channel)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "commit", full)
            with pytest.raises(PolicyRefused):
                await two.fra.operator.migrate("web-01", "ams")
            for call in (
                root.remote.ask(admin.CreateToken, CreateTokenRequest(name="fra-2")),
                root.remote.ask(admin.Revoke, RevokeRequest(subject=person("vera"), reason="left")),
                root.limit(1_000_000, site="ams"),
            ):
                with pytest.raises(NotRecorded, match="No space left on device"):
                    await call
            assert (await two.fra.operator.sites())["ams"].limit == 0
    async with two.fra.person("vera") as vera:
        assert await vera.migrations() == []  # not revoked
    assert two.fra.hypervisor.presence(vm) is Presence.RUNNING


async def test_an_approval_that_cannot_be_recorded_is_not_given(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    await give(two.fra, TWO)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(ApprovalNeeded):
        await two.fra.operator.migrate("web-01", "ams")
    async with two.fra.person("carol") as carol:
        (request,) = await carol.requests()
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "commit", full)
            with pytest.raises(NotRecorded):
                await carol.approve(request)
        assert not (await carol.requests())[0].approvals


async def test_approvals_are_on_record_as_they_are_given_and_with_the_migration(two: TwoSites) -> None:
    await give(two.fra, TWO)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(ApprovalNeeded):
        await two.fra.operator.migrate("web-01", "ams")
    waits = await one(two.fra, "migration.requested")
    async with two.fra.person("carol") as carol, two.fra.person("dave") as dave:
        (request,) = await carol.requests()
        assert waits.text("seen", "request", "sha256") == request.sha256
        assert waits.text("seen", "policy", "decision") == "approval"
        await carol.approve(request)
        await dave.approve(request)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    first, second, used = entries(two.fra, "migration.approved")
    assert [each.text("actor", "id") for each in (first, second)] == [person("carol"), person("dave")]
    assert used.text("migration") == id_
    assert [each["id"] for each in used.facts("seen")["approvers"]] == [person("carol"), person("dave")]  # type: ignore[index, union-attr, call-overload]  # a list of records
    assert used.text("seen", "request", "sha256") == request.sha256
    permitted = entries(two.fra, "migration.permitted", migration=id_)
    assert [
        (each.text("seen", "policy", "decision"), each.text("claimed", "policy", "decision")) for each in permitted
    ] == [("permit", ""), ("", "permit")]
    admitted = await one(two.ams, "migration.admitted", migration=id_)
    assert len(admitted.facts("claimed")["approvers"]) == 2  # type: ignore[arg-type]  # a list


async def test_a_no_of_an_approver_is_on_record_with_its_reason(two: TwoSites) -> None:
    await give(two.fra, TWO)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(ApprovalNeeded):
        await two.fra.operator.migrate("web-01", "ams")
    async with two.fra.person("carol") as carol:
        (request,) = await carol.requests()
        await carol.deny(request, "not before the audit")
    denied = await one(two.fra, "migration.denied")
    assert (denied.text("actor", "id"), denied.text("reason")) == (person("carol"), "not before the audit")
    assert denied.text("seen", "request", "id") == request.id


async def test_a_broken_glass_is_on_record_with_its_reason(two: TwoSites) -> None:
    await give(two.fra, ALWAYS + GLASS)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams", break_glass="the cooling has failed")
    await two.fra.operator.ended(id_)
    reasons = [each.text("reason") for each in entries(two.fra, "migration.permitted", migration=id_)]
    assert "the glass was broken: the cooling has failed" in reasons


async def test_why_and_by_what_right_is_demanded_approved_and_on_record_at_both_sites(two: TwoSites) -> None:
    await give(two.fra, TWO.replace("2", "1") + GROUNDS)
    await give(two.ams, '\n[[transfers]]\nname = "here"\nlegal_basis = "controller-instructions"\n')
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    with pytest.raises(PolicyRefused, match="demands a purpose, and none is given: say why with --purpose"):
        await two.fra.operator.migrate("web-01", "ams")
    denied = await one(two.fra, "migration.denied")
    assert (denied.text("seen", "policy", "ids"), denied.text("seen", "legal_basis")) == (
        "['purpose \"shop\"']",
        "contract",
    )
    with pytest.raises(ApprovalNeeded):
        await two.fra.operator.migrate("web-01", "ams", purpose="the cooling has failed")
    async with two.fra.person("carol") as carol:
        (request,) = await carol.requests()
        assert (request.migration.purpose, request.migration.grounds.purpose) == ("the cooling has failed", "orders")
        await carol.approve(request)
    # What was approved is this, and no other purpose.
    with pytest.raises(ApprovalNeeded):
        await two.fra.operator.migrate("web-01", "ams", purpose="I feel like it")
    id_ = await two.fra.operator.migrate("web-01", "ams", purpose="the cooling has failed")
    await two.fra.operator.ended(id_)
    approved = (await one(two.fra, "migration.approved", migration=id_)).facts("claimed")["request"]
    assert approved == {"purpose": "the cooling has failed"}
    for event in ("migration.requested", "migration.completed"):
        told = await one(two.fra, event, migration=id_)
        assert {name: told.text("seen", name) for name in SAID} == SAID
        assert told.text("claimed", "request", "purpose") == "the cooling has failed"
    admitted = await one(two.ams, "migration.admitted", migration=id_)
    assert {name: admitted.text("claimed", name) for name in SAID} == SAID
    permitted = entries(two.ams, "migration.permitted", migration=id_)
    assert [(each.text("seen", "legal_basis"), each.text("claimed", "legal_basis")) for each in permitted] == [
        ("", "contract"),
        ("controller-instructions", ""),
    ]


async def test_whoever_may_not_or_does_not_prove_who_they_are_is_on_record(two: TwoSites) -> None:
    async with two.fra.person("vera") as vera:
        with pytest.raises(PermissionDenied):
            await vera.migrate("web-01", "ams")
    denied = await one(two.fra, "access.denied")
    assert denied.text("actor", "id") == person("vera")
    assert denied.text("actor", "address").startswith("127.")
    assert denied.text("seen", "refused", "what") == "/landbridge.v1.Gateway/Migrate"
    # A host of this site where gateways of others belong.
    agent = PeerRemote("fra", [two.fra.listens["gw-1"].peers], LivingIdentity(two.fra.identity(Role.HOST)))
    with pytest.raises(LandbridgeError):
        await agent.ask(agent.stub.GetSite, GetSiteRequest())
    await agent.close()
    await eventually(
        lambda: any(
            each.text("seen", "refused", "what") == "/landbridge.v1.Peer/GetSite"
            for each in entries(two.fra, "access.denied")
        )
    )
    # And one that speaks no TLS at all where links are accepted.
    address = two.fra.listens["gw-1"].tunnel
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    refused = await one(two.fra, "identity.refused")
    assert refused.text("seen", "refused", "what") == "a stream"
    assert refused.facts("actor") == {"address": "127.0.0.1"}


async def test_tokens_revocations_and_limits_are_on_record_with_who_wanted_them(two: TwoSites) -> None:
    async with two.fra.person("root") as root:
        admin = IdentitiesStub(root.remote.channel)
        await root.remote.ask(admin.Revoke, RevokeRequest(subject=person("vera"), reason="left"))
        await root.limit(1_000_000, site="ams")
    revoked = next(
        each for each in entries(two.fra, "key.changed") if each.text("seen", "change", "subject") == person("vera")
    )
    assert revoked.text("seen", "change", "comment") == "revoked: left"
    assert revoked.text("actor", "id") == person("root")
    limited = next(each for each in entries(two.fra, "configuration.changed") if each.text("actor", "id"))
    assert limited.text("reason") == "1000000 bytes per second"
    # The other site hears of it, and has it on record too.
    await eventually(
        lambda: any("has revoked" in each.text("seen", "change", "subject") for each in entries(two.ams, "key.changed"))
    )


async def test_a_policy_and_its_roles_are_on_record_by_their_hashes_also_after_a_restart(two: TwoSites) -> None:
    first = await one(two.fra, "policy.changed")
    before = first.text("seen", "change", "after_sha256")
    after = await give(two.fra, TWO)
    await eventually(lambda: len(entries(two.fra, "policy.changed")) == 2)
    change = entries(two.fra, "policy.changed")[1].facts("seen")["change"]
    assert change == {"subject": "the policy of site fra", "before_sha256": before, "after_sha256": after}
    roles = len(entries(two.fra, "role.changed"))
    await two.fra.gateway.stop()
    assert two.fra.policy is not None
    two.fra.set_policy(two.fra.policy.read_text().replace("'carol'", "'carol', 'vera'"))
    await two.fra.gateway.start()
    assert len(entries(two.fra, "policy.changed")) == 3
    (role,) = entries(two.fra, "role.changed")[roles:]
    assert role.text("seen", "change", "subject") == "role approver"
    configured = len(entries(two.fra, "configuration.changed"))
    await two.fra.gateway.restart()
    assert len(entries(two.fra, "configuration.changed")) == configured == 1


async def test_agents_that_come_and_go_are_on_record(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LOOK", 0.05)
    monkeypatch.setattr(presence, "GRACE", 0.3)
    joined = await one(two.fra, "agent.joined")
    assert joined.text("actor", "id") == "spiffe://landbridge.test/site/fra/host/fra-1"
    await two.fra.agent.stop()
    await one(two.fra, "agent.left")
    await two.fra.agent.start()
    await eventually(lambda: len(entries(two.fra, "agent.joined")) == 2)


async def test_a_tunnel_is_on_record_with_its_tls_and_when_it_is_closed(two: TwoSites) -> None:
    opened = await one(two.fra, "tunnel.opened")
    tls = opened.facts("seen")["tls"]
    assert isinstance(tls, dict)
    assert (tls["version"], tls["peer"]) == ("TLSv1.3", "spiffe://landbridge.test/site/ams/gateway/gw-1")
    assert set(tls) == {"version", "suite", "group", "peer", "peer_cert_sha256", "issuer", "serial", "not_after"}
    await two.fra.gateway.stop()
    assert len(entries(two.fra, "tunnel.closed")) == 1
    await two.fra.gateway.start()


async def test_both_ends_of_each_channel_are_on_record_and_the_receipt_holds_all_of_it(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    made = await receipt(two.fra, id_)
    by_site = {part.key.name.split("/")[2]: [Recorded.decode(each.raw) for each in part.entries] for part in made.parts}
    said = {site: channels(found) for site, found in by_site.items()}
    assert ("ram", "0 to the destination") in said["fra"]
    assert ("disk", "0 to the destination") in said["fra"]
    # Of libvirt's calls, an end may have let go before it heard the other say goodbye.
    streams = {name for name in said["fra"] if name[0] != "rpc"}
    assert streams == {name for name in said["ams"] if name[0] != "rpc"}
    assert any(name[0] == "rpc" for name in said["ams"])
    for name in said["fra"].keys() & said["ams"].keys():
        here, there = ({key.split("_")[1]: value for key, value in said[site][name].items()} for site in said)
        assert here == there
    assert said["fra"]["ram", "0 to the destination"].keys() == {"sent_bytes", "sent_blake3"}
    events = {site: [each.event.name for each in found] for site, found in by_site.items()}
    assert "migration.finished" in events["ams"]
    ended = next(each for each in by_site["fra"] if each.event.name == "migration.completed")
    assert ended.text("seen", "tls", "version") == "TLSv1.3"
    heard = next(each for each in by_site["ams"] if each.event.name == "migration.completed")
    assert heard.text("seen", "tls", "peer") == "spiffe://landbridge.test/site/fra/gateway/gw-1"
    assert ended.text("claimed", "location", "country") == "NL"


def channels(found: list[Recorded]) -> dict[tuple[str, str], dict[str, object]]:
    said: dict[tuple[str, str], dict[str, object]] = {}
    for entry in found:
        listed = entry.facts("claimed").get("channels", ())
        assert isinstance(listed, list | tuple)
        for each in listed:
            assert isinstance(each, dict)
            name = (each.pop("kind"), each.pop("label"))
            said[name] = dict(each)
    return said


async def test_receipts_are_made_and_recorded_by_themselves_and_are_what_is_handed_out(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_keeper, "LOOK", 0.05)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    file = place(two.fra) / "receipts" / f"{id_}.receipt"
    await eventually(file.exists)
    raw = file.read_bytes()
    receipted = await one(two.fra, "migration.receipted", migration=id_)
    assert receipted.text("seen", "query", "sha256") == hashlib.sha256(raw).hexdigest()
    assert check(Receipt.decode(raw)) == []
    assert await two.fra.operator.receipt(id_[:8]) == raw
    read = await one(two.fra, "log.read")
    assert (read.text("actor", "id"), read.text("outcome")) == (person("alice"), "success")
    assert read.text("seen", "query", "filter") == f"migration={id_}"
    # The other site's gateway has read here what is in the receipt that it makes, and its own log says that ours has read there.
    assert (await one(two.ams, "log.read")).text("actor", "id") == "spiffe://landbridge.test/site/fra/gateway/gw-1"
    assert len(entries(two.fra, "migration.receipted")) == 1


async def test_what_the_firewall_refuses_is_on_record_at_the_destination(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.forge = lambda xml: xml.replace("<name>web-01</name>", "<name>web-99</name>")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.FAILED
    refused = await one(two.ams, "call.refused", migration=id_)
    assert refused.text("outcome") == "denied"
    assert refused.text("claimed", "destination", "host") == "ams-1"
    assert "PREPARE" in refused.text("seen", "refused", "what").upper()
