"""Who may do what, over the wire: rules of both sites, approvals at both, and a source that lies."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from certs.living import LivingIdentity
from gateway.authorization import policy_file
from gateway.authorization.request import domain_digest, mapping_digest
from gateway.migration.inventory import RemoteSite
from gateway.migration.moving import hold_definition
from gateway.migration.states import State
from gateway.remote import PeerRemote
from landbridge.errors import (
    AlreadyExists,
    ApprovalNeeded,
    Conflict,
    LandbridgeError,
    NotFound,
    PermissionDenied,
    PolicyRefused,
    UsageError,
)
from landbridge.v1 import agent_pb2
from landbridge.v1.authorization_pb2 import ApprovalRequest, RequestState
from landbridge.v1.decision_pb2 import Approval, Decision, Verdict
from landbridge.v1.peer_pb2 import PeerAuthorizeRequest, PeerCheckIncomingRequest, PeerPrepareRequest, PeerReportRequest
from landbridge.v1.types_pb2 import Migration, Policy
from tests.system.sites import TRUST_DOMAIN, Operator, SiteUnderTest, TwoSites, eventually, policy_of

TWO = '\n[[four_eyes]]\nname = "two"\napprovals = 2\n'
ONE = '\n[[four_eyes]]\nname = "one"\napprovals = 1\n'
ALWAYS = """
[[freezes]]
name = "always"
timezone = "Europe/Berlin"
begins = 2000-01-01T00:00:00
ends = 2199-01-01T00:00:00
"""
GLASS = '\n[break_glass]\nwho = ["*/alice"]\n'


def person(name: str, site: str = "fra") -> str:
    return f"spiffe://{TRUST_DOMAIN}/site/{site}/operator/{name}"


async def give(site: SiteUnderTest, more: str = "", *, permits: bool = True) -> str:
    """Write a site's policy, and wait until its gateway goes by it; the hash."""
    text = policy_of(site.name, more=more, permits=permits)
    site.set_policy(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()

    async def is_taken() -> bool:
        return (await site.operator.policy()).sha256 == sha256

    await eventually(is_taken)
    return sha256


@pytest.fixture
async def carol(two: TwoSites) -> AsyncIterator[Operator]:
    async with two.fra.person("carol") as carol:
        yield carol


@pytest.fixture
async def dave(two: TwoSites) -> AsyncIterator[Operator]:
    async with two.fra.person("dave") as dave:
        yield dave


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    with capture_logs() as entries:
        yield entries  # type: ignore[misc]  # structlog has a type of its own for them


def decided(entries: list[dict[str, Any]], **facts: str) -> list[dict[str, Any]]:
    """The decisions in the log that have these facts."""
    return [
        entry
        for entry in entries
        if entry["event"] == "policy.decided" and all(entry[name] == value for name, value in facts.items())
    ]


async def asked(operator: Operator, vm: str = "web-01", site: str = "ams", **options: Any) -> str:
    """Ask for a migration that waits for approvals; the id of its request."""
    with pytest.raises(ApprovalNeeded) as error:
        await operator.migrate(vm, site, **options)
    return error.value.details["request"]


async def found(operator: Operator, id_: str) -> ApprovalRequest:
    return next(each for each in await operator.requests() if each.id == id_)


# Rules


async def test_a_migration_keeps_what_both_policies_decided_at_both_sites(
    two: TwoSites, logged: list[dict[str, Any]]
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    hashes = {
        site.name: hashlib.sha256(site.policy.read_bytes()).hexdigest() for site in (two.fra, two.ams) if site.policy
    }
    said = [("fra", 'permit "alice"', hashes["fra"]), ("ams", 'permit "alice"', hashes["ams"])]
    assert [(each.site, each.rule, each.policy_sha256) for each in ended.decisions] == said
    there = await two.ams.operator.ended(id_)
    assert [(each.site, each.rule, each.policy_sha256) for each in there.decisions] == said
    assert decided(logged, action="migrate", verdict="allowed", policy=hashes["fra"], requester=person("alice"))
    assert decided(logged, action="migrate", verdict="allowed", policy=hashes["ams"], migration=id_)


async def test_what_no_rule_of_the_source_permits_is_not_even_told_to_the_other_site(
    two: TwoSites, logged: list[dict[str, Any]]
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, permits=False)
    with pytest.raises(PolicyRefused, match="the policy of site fra refuses it by default deny: no rule permits"):
        await two.fra.operator.migrate("web-01", "ams")
    answer = await two.fra.operator.preflight("web-01", "ams")
    assert [(finding.code, answer.passed) for finding in answer.findings] == [("policy-refused", False)]
    assert [decision.site for decision in answer.decisions] == ["fra"]
    assert "check_incoming" not in two.ams.hypervisor.asked
    (refused,) = decided(logged, action="migrate", verdict="refused")
    assert (refused["site"], refused["rule"], refused["vm"]) == ("fra", "default deny", "web-01")
    assert (refused["log_level"], refused["requester"]) == ("warning", person("alice"))
    assert await two.fra.operator.migrations() == []


async def test_what_no_rule_of_the_destination_permits_does_not_come(
    two: TwoSites, logged: list[dict[str, Any]]
) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    sha256 = await give(two.ams, permits=False)
    with pytest.raises(PolicyRefused, match="the policy of site ams refuses it by default deny") as error:
        await two.fra.operator.migrate("web-01", "ams")
    assert error.value.details["site"] == "ams"
    assert two.ams.is_clean(uuid)
    assert await two.ams.operator.migrations() == []
    # Both gateways have it in their logs.
    assert len(decided(logged, site="ams", verdict="refused", policy=sha256, requester=person("alice"))) == 2
    answer = await two.fra.operator.preflight("web-01", "ams")
    assert [(d.site, d.verdict, d.policy_sha256) for d in answer.decisions][1:] == [
        ("ams", Verdict.VERDICT_REFUSED, sha256)
    ]


async def test_a_site_without_a_policy_takes_nothing(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await two.ams.gateway.stop()
    two.ams.policy = None
    await two.ams.gateway.start()

    async def is_heard() -> bool:
        return not (await two.fra.operator.sites())["ams"].unreachable

    await eventually(is_heard)
    with pytest.raises(PolicyRefused, match="site ams refuses it by no policy: this gateway has no policy"):
        await two.fra.operator.migrate("web-01", "ams")


LABELS = (
    "<metadata><l:labels xmlns:l='urn:landbridge:labels:1' owner='shop' classification='internal'>"
    "<l:tag>prod</l:tag></l:labels></metadata>"
)
FORBID = '\n[[rules]]\nname = "no production"\neffect = "forbid"\ntags = ["prod"]\n'


async def test_what_a_definition_says_of_its_vm_counts_unless_the_file_says_otherwise(two: TwoSites) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    guest = two.fra.hypervisor._guests[uuid]
    guest.xml = guest.xml.replace("<devices>", f"{LABELS}<devices>")
    await give(two.ams, FORBID)
    with pytest.raises(PolicyRefused, match='site ams refuses it by forbid "no production"'):
        await two.fra.operator.migrate("web-01", "ams")
    await give(two.ams, FORBID + '[[vms]]\nnames = ["web-*"]\ntags = ["harmless"]\n')
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams"))
    assert State(ended.state) is State.COMPLETED
    assert (ended.labels.owner, ended.labels.classification, list(ended.labels.tags)) == ("shop", "internal", ["prod"])


async def test_explaining_touches_nothing_and_says_what_both_sites_say(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, TWO)
    await give(two.ams, ALWAYS)
    answer = await two.fra.operator.explain("web-01", "ams")
    assert [(d.site, d.verdict, d.rule) for d in answer.decisions] == [
        ("fra", Verdict.VERDICT_APPROVAL, 'four-eyes "two"'),
        ("ams", Verdict.VERDICT_REFUSED, 'freeze "always"'),
    ]
    assert answer.migration.destination_host == "ams-1"
    assert not answer.unreachable
    vera = await two.fra.operator.explain("web-01", "ams", requester="vera")
    assert [(d.site, d.rule) for d in vera.decisions] == [("fra", 'role "operator"')]
    assert await two.fra.operator.requests() == []
    assert await two.ams.operator.requests() == []


async def test_explaining_says_what_this_site_says_while_the_other_cannot_be_reached(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await two.ams.gateway.stop()
    answer = await two.fra.operator.explain("web-01", "ams")
    assert [(d.site, d.verdict) for d in answer.decisions] == [("fra", Verdict.VERDICT_ALLOWED)]
    assert "site ams cannot be reached" in answer.unreachable


# Approvals


async def test_with_two_approvals_it_moves_once(
    two: TwoSites, carol: Operator, dave: Operator, logged: list[dict[str, Any]]
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    sha256 = await give(two.fra, TWO)
    id_ = await asked(two.fra.operator)
    assert await asked(two.fra.operator) == id_  # the same again is the same request
    request = await found(carol, id_)
    assert request.waits_for == '"two" takes 2 approvals, and has 0'
    once = await carol.approve(request)
    assert once.state == RequestState.REQUEST_STATE_WAITING
    assert once.waits_for == '"two" takes 2 approvals, and has 1 (by carol)'
    assert await asked(two.fra.operator) == id_
    with pytest.raises(AlreadyExists, match="has approved request"):
        await carol.approve(request)
    assert (await dave.approve(request)).state == RequestState.REQUEST_STATE_APPROVED
    migration = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(migration)
    assert State(ended.state) is State.COMPLETED
    assert [each.approver for each in ended.approvals] == [person("carol"), person("dave")]
    assert ended.decisions[0].request == id_
    used = await found(carol, id_)
    assert (used.state, used.used_by) == (RequestState.REQUEST_STATE_USED, migration)
    with pytest.raises(Conflict, match="is over"):
        await carol.deny(used, "too late")
    events = [(entry["event"], entry.get("policy")) for entry in logged if entry["event"].startswith("request.")]
    assert events == [
        ("request.opened", sha256),
        ("request.approved", sha256),
        ("request.approved", sha256),
        ("request.used", None),
    ]


async def test_an_approval_is_for_exactly_what_was_asked_for(two: TwoSites, carol: Operator) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    id_ = await asked(two.fra.operator)
    await carol.approve(await found(carol, id_))
    # Another option, and another definition, are other requests.
    other = await asked(two.fra.operator, policy=Policy(max_downtime_ms=500))
    assert other != id_
    with pytest.raises(Conflict, match=f"this is not what request {id_} is for"):
        await two.fra.operator.migrate("web-01", "ams", Policy(max_downtime_ms=500), request=id_)
    guest = two.fra.hypervisor._guests[uuid]
    plain = guest.xml
    guest.xml = plain.replace("<vcpu>1</vcpu>", "<vcpu>2</vcpu>")
    assert await asked(two.fra.operator) not in {id_, other}
    guest.xml = plain
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams", request=id_[:8]))
    assert State(ended.state) is State.COMPLETED


async def test_what_is_approved_cannot_be_swapped_before_it_is_prepared(two: TwoSites, carol: Operator) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    await carol.approve(await found(carol, await asked(two.fra.operator)))
    guest = two.fra.hypervisor._guests[uuid]
    seen = 0

    inspect = two.fra.hypervisor.migratable_xml

    def swap(uuid: str, *, cold: bool = False) -> str:
        del cold
        nonlocal seen
        seen += 1
        return inspect(uuid).replace("<vcpu>1</vcpu>", "<vcpu>2</vcpu>") if seen > 1 else inspect(uuid)

    two.fra.hypervisor.migratable_xml = swap  # type: ignore[method-assign]  # a host that says now this, now that
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams"))
    assert State(ended.state) is State.FAILED
    assert "has changed since it was approved" in ended.reason
    assert two.ams.is_clean(uuid)
    assert guest.presence.value == "running"


async def test_what_is_approved_is_for_the_pools_and_networks_of_then(
    two: TwoSites, carol: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    id_ = await asked(two.fra.operator)
    await carol.approve(await found(carol, id_))
    elsewhere = agent_pb2.Mapping(networks={"lan": "management"})
    monkeypatch.setattr(RemoteSite, "mapping", lambda _: elsewhere)
    assert await asked(two.fra.operator) != id_
    # Also where it is another one only by the time that the migration is prepared.
    approved = brought(approvals=[Approval(approver=person("carol"))])
    with pytest.raises(Conflict, match="the mapping of pools and networks of web-01 has changed since it was approved"):
        hold_definition(approved, DEFINITION, elsewhere)
    approved.ClearField("approvals")
    hold_definition(approved, DEFINITION, elsewhere)
    assert approved.mapping_sha256 == mapping_digest(elsewhere)


async def test_a_denied_request_is_over_and_the_next_one_is_another(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    id_ = await asked(two.fra.operator)
    request = await found(carol, id_)
    with pytest.raises(UsageError, match="say why it is denied"):
        await carol.deny(request, "  ")
    denied = await carol.deny(request, "not this week")
    assert (denied.denied_by, denied.denied_because) == (person("carol"), "not this week")
    assert await asked(two.fra.operator) != id_
    with pytest.raises(Conflict, match=f"request {id_} is over"):
        await two.fra.operator.migrate("web-01", "ams", request=id_)


async def test_nobody_approves_their_own_request_or_what_waits_for_others(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    both = policy_of("fra", more=ONE + 'by = ["dave", "alice"]\n').replace("approver = [", "approver = ['alice', ")
    assert "'alice', " in both
    two.fra.set_policy(both)
    await eventually(lambda: _has_role(two.fra.operator, "approver"))
    id_ = await asked(two.fra.operator)
    with pytest.raises(PolicyRefused, match="nobody approves what they have asked for themselves"):
        await two.fra.operator.approve(await found(two.fra.operator, id_))
    with pytest.raises(PolicyRefused, match="waits for the approval of"):
        await carol.approve(await found(carol, id_))
    wrong = await found(carol, id_)
    wrong.sha256 = "0" * 64
    with pytest.raises(Conflict, match="is not what was read"):
        await carol.approve(wrong)


async def _has_role(operator: Operator, role: str) -> bool:
    return role in (await operator.policy()).roles


async def test_a_request_is_used_by_who_made_it_alone(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    roles = policy_of("fra", more=ONE).replace("operator = ['alice']", "operator = ['alice', 'nobody']")
    two.fra.set_policy(roles.replace('["*/alice"]', '["alice", "nobody"]'))
    two.ams.set_policy(policy_of("ams").replace('["*/alice"]', '["*/*"]'))
    async with two.fra.person("nobody") as other:
        await eventually(lambda: _has_role(other, "operator"))
        id_ = await asked(two.fra.operator)
        await carol.approve(await found(carol, id_))
        with pytest.raises(PermissionDenied, match=f"request {id_} is of {person('alice')}, who alone can use it"):
            await other.migrate("web-01", "ams", request=id_)
        with pytest.raises(NotFound):
            await two.fra.operator.migrate("web-01", "ams", request="ffffffff")
        assert await asked(other) != id_


async def test_an_approval_ends_with_the_role_of_who_gave_it(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    id_ = await asked(two.fra.operator)
    await carol.approve(await found(carol, id_))
    text = policy_of("fra", more=ONE).replace("'carol', ", "")
    two.fra.set_policy(text)
    async with two.fra.person("dave") as dave:

        async def waits_again() -> bool:
            return (await found(dave, id_)).state == RequestState.REQUEST_STATE_WAITING

        await eventually(waits_again)
    assert await asked(two.fra.operator) == id_


async def test_the_destination_asks_its_own_approvers(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    await give(two.ams, TWO)
    with pytest.raises(ApprovalNeeded, match=r"site fra waits for approvals.*; site ams waits for approvals") as error:
        await two.fra.operator.migrate("web-01", "ams")
    await carol.approve(await found(carol, error.value.details["request"]))
    with pytest.raises(ApprovalNeeded, match=r"^site ams waits for approvals"):
        await two.fra.operator.migrate("web-01", "ams")
    async with two.ams.person("carol") as hers, two.ams.person("dave") as his:
        (there,) = await hers.requests()
        assert (there.claimed_by, there.migration.requested_by) == ("fra", person("alice"))
        await hers.approve(there)
        await his.approve(there)
        id_ = await two.fra.operator.migrate("web-01", "ams")
        ended = await two.fra.operator.ended(id_)
        assert State(ended.state) is State.COMPLETED
        assert [(d.site, d.request) for d in ended.decisions][1] == ("ams", there.id)
        assert (await found(hers, there.id)).used_by == id_
    assert [each.approver for each in ended.approvals] == [person("carol")]


async def test_a_destination_may_count_the_sources_approvers_by_name(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ONE)
    await give(two.ams, ONE + 'by = ["fra/carol"]\n')
    await carol.approve(await found(carol, await asked(two.fra.operator)))
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams"))
    assert State(ended.state) is State.COMPLETED
    assert "fra/carol" in ended.decisions[1].steps[-1].sentence


# Breaking the glass


async def test_who_may_break_the_glass_moves_at_once_and_that_is_recorded_loudly(
    two: TwoSites, logged: list[dict[str, Any]]
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ALWAYS + TWO + GLASS)
    with pytest.raises(PolicyRefused, match='freeze "always"'):
        await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams", break_glass="the roof leaks"))
    assert State(ended.state) is State.COMPLETED
    assert ended.break_glass == "the roof leaks"
    assert [(d.site, d.break_glass) for d in ended.decisions] == [("fra", "the roof leaks"), ("ams", "")]
    assert [finding.code for finding in ended.findings] == ["glass-broken"]
    (loud,) = (entry for entry in logged if entry["event"] == "policy.glass_broken")
    assert (loud["log_level"], loud["why"], loud["requester"]) == ("warning", "the roof leaks", person("alice"))


async def test_the_glass_of_one_site_is_not_that_of_another(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    await give(two.fra, ALWAYS + GLASS)
    await give(two.ams, ALWAYS)
    with pytest.raises(PolicyRefused, match='site ams refuses it by freeze "always"'):
        await two.fra.operator.migrate("web-01", "ams", break_glass="the roof leaks")
    await give(two.ams, ALWAYS + GLASS)
    ended = await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams", break_glass="the roof leaks"))
    assert [d.break_glass for d in ended.decisions] == ["the roof leaks", "the roof leaks"]


# Scope


async def test_cancel_limit_and_settle_are_for_those_who_may_move_the_vm(
    two: TwoSites, logged: list[dict[str, Any]]
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    two.fra.hypervisor.rate = 1 << 10
    roles = policy_of("fra").replace("operator = ['alice']", "operator = ['alice', 'nobody']")
    two.fra.set_policy(roles)
    async with two.fra.person("nobody") as other:
        await eventually(lambda: _has_role(other, "operator"))
        id_ = await two.fra.operator.migrate("web-01", "ams")
        await two.fra.operator.until(id_, State.COPYING_DISKS, State.COPYING_MEMORY)
        for call in (other.cancel(id_), other.limit(1000, migration=id_), other.settle(id_)):
            with pytest.raises(PolicyRefused, match=r"default deny: no rule permits nobody to move web-01"):
                await call
        two.fra.hypervisor.hasten()
        assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
        with pytest.raises(PolicyRefused):
            await other.settle(id_)
    await two.fra.operator.settle(id_)
    kept = [(d.site, d.action, d.requester) for d in (await two.fra.operator.migration(id_)).decisions]
    assert kept == [(site, "migrate", person("alice")) for site in ("fra", "ams")] + [
        ("fra", "settle", person("alice"))
    ]
    for action in ("cancel", "limit", "settle"):
        assert decided(logged, action=action, verdict="refused", requester=person("nobody"))
    assert decided(logged, action="settle", verdict="allowed", requester=person("alice"))


# The file


async def test_a_file_that_breaks_leaves_the_old_one_in_force_and_that_is_shown(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    before = (await two.fra.operator.policy()).sha256
    two.fra.set_policy(policy_of("fra") + "colour = 1\n")

    async def is_noticed() -> bool:
        return bool((await two.fra.operator.policy()).problem)

    await eventually(is_noticed)
    status = await two.fra.operator.policy()
    assert status.sha256 == before
    assert "Extra inputs are not permitted" in status.problem
    assert (await two.fra.operator.preflight("web-01", "ams")).passed


async def test_a_new_file_is_taken_at_once_on_sighup(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_file, "INTERVAL", 3600.0)
    await two.fra.gateway.restart()
    text = policy_of("fra", more=TWO)
    two.fra.set_policy(text)
    os.kill(os.getpid(), signal.SIGHUP)

    async def is_taken() -> bool:
        return (await two.fra.operator.policy()).sha256 == hashlib.sha256(text.encode()).hexdigest()

    await eventually(is_taken)


async def test_a_gateway_does_not_start_with_a_policy_of_another_site(two: TwoSites) -> None:
    await two.fra.gateway.stop()
    two.fra.set_policy(policy_of("ams"))
    with pytest.raises(LandbridgeError, match=r"is for spiffe://landbridge.test/site/ams, and this gateway is of"):
        await two.fra.gateway.start()


# A source that lies. It is fra's gateway by its certificate, and says what it likes.


@pytest.fixture
async def liar(two: TwoSites) -> AsyncIterator[PeerRemote]:
    await two.fra.gateway.stop()
    remote = PeerRemote("ams", [two.ams.listens["gw-1"].peers], LivingIdentity(two.fra.identity("gw-1")))
    yield remote
    await remote.close()


DEFINITION = "<domain type='qemu'><name>web-01</name></domain>"


def brought(**changes: object) -> Migration:
    facts: dict[str, object] = {
        "id": "6f0c4a52-3d1c-4c0e-9f64-1f1b4a3c9e01",
        "vm": "web-01",
        "vm_uuid": "11111111-2222-4333-8444-555555555555",
        "source_site": "fra",
        "source_host": "fra-1",
        "destination_site": "ams",
        "destination_host": "ams-1",
        "requested_by": person("alice"),
        "state": State.PREPARING.value,
        "domain_sha256": domain_digest(DEFINITION),
        "mapping_sha256": mapping_digest(agent_pb2.Mapping()),
    }
    return Migration(**{**facts, **changes})  # type: ignore[arg-type]  # the caller's keywords


def prepare(migration: Migration, /, **changes: object) -> PeerPrepareRequest:
    request = agent_pb2.PrepareRequest(
        migration=migration.id,
        role=agent_pb2.Role.ROLE_DESTINATION,
        domain_xml=DEFINITION,
        source_site=migration.source_site,
        source_host=migration.source_host,
        destination_site=migration.destination_site,
        destination_host=migration.destination_host,
    )
    request.vm.name, request.vm.uuid = migration.vm, migration.vm_uuid
    request.MergeFrom(agent_pb2.PrepareRequest(**changes))  # type: ignore[arg-type]  # see `brought`
    return PeerPrepareRequest(migration=migration, prepare=request)


def looks(migration: Migration) -> PeerCheckIncomingRequest:
    check = agent_pb2.CheckIncomingRequest(domain_xml=DEFINITION)
    check.vm.name, check.vm.uuid = migration.vm, migration.vm_uuid
    return PeerCheckIncomingRequest(host="ams-1", check=check, migration=migration)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"requested_by": person("alice", "ams")}, PermissionDenied, "site fra cannot speak for"),
        ({"requested_by": "spiffe://else.where/site/fra/operator/alice"}, PermissionDenied, "cannot speak for"),
        ({"requested_by": person("alice").replace("operator", "host")}, LandbridgeError, "is no operator"),
        ({"requested_by": "alice"}, LandbridgeError, "is no identity"),
        ({"approvals": [Approval(approver=person("carol", "ams"))]}, PermissionDenied, "site fra cannot speak for"),
        ({"approvals": [Approval(approver=person("carol"))] * 65}, UsageError, "at most 64 approvals"),
        ({"source_site": "lon"}, PermissionDenied, "may only bring its own migrations"),
        ({"destination_site": "fra"}, PermissionDenied, "may only bring its own migrations"),
        ({"requested_by": person("mallory")}, PolicyRefused, "default deny"),
        ({"vm": ""}, UsageError, "names its VM"),
        ({"break_glass": "x" * 501}, UsageError, "at most 500 characters"),
        ({"vm_uuid": ""}, UsageError, "is no UUID of a VM"),
        ({"vm_uuid": "../../etc/passwd"}, UsageError, "is no UUID of a VM"),
        ({"vm_uuid": "11111111222243338444555555555555"}, UsageError, "is no UUID of a VM"),
        ({"vm_uuid": "ABCDEFAB-2222-4333-8444-555555555555"}, UsageError, "is no UUID of a VM"),
    ],
)
async def test_what_a_source_claims_is_held_to_what_it_may_claim(
    two: TwoSites, liar: PeerRemote, changes: dict[str, object], kind: type[LandbridgeError], said: str
) -> None:
    migration = brought(**changes)
    with pytest.raises(kind, match=said):
        await liar.ask(liar.stub.Prepare, prepare(migration))
    if kind is not PolicyRefused:  # which is an answer to Authorize, and no error
        with pytest.raises(kind, match=said):
            await liar.ask(liar.stub.Authorize, PeerAuthorizeRequest(migration=migration, open=True))
    # Nor does it learn by such claims what is on a host.
    with pytest.raises(kind, match=said):
        await liar.ask(liar.stub.CheckIncoming, looks(migration))
    assert "check_incoming" not in two.ams.hypervisor.asked
    assert await two.ams.operator.migrations() == []


async def test_a_source_learns_of_no_other_vm_than_the_one_that_was_judged(two: TwoSites, liar: PeerRemote) -> None:
    migration = brought()
    two.ams.hypervisor.add_vm("db-01", disk=b"disk")
    for vm, xml in (("db-01", DEFINITION), ("web-01", "<domain/>")):
        request = looks(migration)
        request.check.vm.name, request.check.domain_xml = vm, xml
        with pytest.raises(UsageError, match="contradicts itself"):
            await liar.ask(liar.stub.CheckIncoming, request)
    assert "check_incoming" not in two.ams.hypervisor.asked
    assert not (await liar.ask(liar.stub.CheckIncoming, looks(migration))).check.conflicts
    assert await two.ams.operator.requests() == []
    assert "create_disks" not in two.ams.hypervisor.asked


@pytest.mark.parametrize(
    "changes",
    [
        {"vm": {"name": "web-02"}},
        {"vm": {"uuid": "99999999-2222-4333-8444-555555555555"}},
        {"domain_xml": "<domain type='qemu'><name>hr-01</name></domain>"},
        {"source_host": "fra-2"},
        {"destination_host": "ams-2"},
        {"destination_site": "fra"},
        {"source_site": "lon"},
        {"mapping": agent_pb2.Mapping(pools={"default": "secret"})},
        {"mapping": agent_pb2.Mapping(networks={"lan": "management"})},
        {"role": agent_pb2.Role.ROLE_SOURCE},
        {"migration": "6f0c4a52-3d1c-4c0e-9f64-000000000000"},
    ],
    ids=str,
)
async def test_what_is_brought_is_what_was_judged(two: TwoSites, liar: PeerRemote, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="contradicts itself"):
        await liar.ask(liar.stub.Prepare, prepare(brought(), **changes))
    assert await two.ams.operator.migrations() == []
    assert "create_disks" not in two.ams.hypervisor.asked


async def test_a_migration_without_the_approvals_that_the_destination_wants_is_not_let_in(
    two: TwoSites, liar: PeerRemote
) -> None:
    await give(two.ams, ONE + 'by = ["fra/carol"]\n')
    with pytest.raises(ApprovalNeeded, match="site ams waits for approvals"):
        await liar.ask(liar.stub.Prepare, prepare(brought()))
    # Not even a request comes of it: only who asks beforehand has one made.
    assert await two.ams.operator.requests() == []
    with pytest.raises(ApprovalNeeded):
        await liar.ask(liar.stub.Prepare, prepare(brought(approvals=[Approval(approver=person("alice"))])))


async def test_what_was_let_in_is_not_swapped_for_another(two: TwoSites, liar: PeerRemote) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    xml = two.fra.hypervisor.migratable_xml(uuid)
    vm = two.fra.hypervisor.vm(uuid)
    # What the destination has decided is not for the source to say.
    forged = Decision(site="ams", rule="forged", verdict=Verdict.VERDICT_ALLOWED)
    one = brought(vm_uuid=uuid, domain_sha256=domain_digest(xml), decisions=[forged])
    let_in = prepare(one, vm=vm, domain_xml=xml, channel_secret=b"s" * 32, outage_limit_ms=60_000)
    answer = await liar.ask(liar.stub.Prepare, let_in)
    assert answer.decision.rule == 'permit "alice"'
    for change in ({"vm": "hr-01"}, {"requested_by": person("mallory")}, {"break_glass": "x"}):
        other = Migration()
        other.CopyFrom(one)
        other.MergeFrom(Migration(**change))  # type: ignore[arg-type]  # see `brought`
        swapped = PeerPrepareRequest()
        swapped.CopyFrom(let_in)
        swapped.migration.CopyFrom(other)
        swapped.prepare.vm.name = other.vm
        with pytest.raises(Conflict, match="this is not what was let in"):
            await liar.ask(liar.stub.Prepare, swapped)
        await liar.ask(liar.stub.Report, PeerReportRequest(migration=other))
    (known,) = await two.ams.operator.migrations()
    assert (known.vm, known.requested_by, known.break_glass) == ("web-01", person("alice"), "")
    assert [(d.site, d.rule) for d in known.decisions] == [("ams", 'permit "alice"')]
    await liar.ask(liar.stub.Prepare, let_in)  # the same again is the same


async def test_a_report_says_how_a_migration_stands_and_not_what_it_is(two: TwoSites, liar: PeerRemote) -> None:
    uuid = two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    xml = two.fra.hypervisor.migratable_xml(uuid)
    one = brought(vm_uuid=uuid, domain_sha256=domain_digest(xml))
    vm = two.fra.hypervisor.vm(uuid)
    await liar.ask(
        liar.stub.Prepare, prepare(one, vm=vm, domain_xml=xml, channel_secret=b"s" * 32, outage_limit_ms=60_000)
    )
    told = Migration()
    told.CopyFrom(one)
    told.MergeFrom(
        Migration(
            source_site="lon",
            destination_site="nyc",
            policy=Policy(max_downtime_ms=1),
            state=State.RESOLVING.value,
            reason="it hangs",
            silent_ms=7,
            limit=5,
            decisions=[Decision(site=site, action="cancel") for site in ("fra", "lon", "ams")],
        )
    )
    told.requested_at.FromSeconds(1)
    await liar.ask(liar.stub.Report, PeerReportRequest(migration=told))
    (known,) = await two.ams.operator.migrations()
    assert (known.source_site, known.destination_site, known.policy) == ("fra", "ams", one.policy)
    assert not known.HasField("requested_at")
    assert [(each.site, each.action) for each in known.decisions] == [("fra", "cancel"), ("ams", "migrate")]
    assert (State(known.state), known.reason, known.silent_ms, known.limit) == (State.RESOLVING, "it hangs", 7, 5)
    # What is there no more is told so too; it does not go back for that.
    one.state = State.RESOLVING.value
    await liar.ask(liar.stub.Report, PeerReportRequest(migration=one))
    (known,) = await two.ams.operator.migrations()
    assert (known.reason, known.HasField("silent_ms")) == ("", False)


async def test_a_state_that_does_not_exist_is_not_recorded(two: TwoSites, liar: PeerRemote) -> None:
    for state in (0, 99):
        with pytest.raises(UsageError, match=f"is in state {state}, which site ams does not know"):
            await liar.ask(liar.stub.Prepare, prepare(brought(state=state)))
    assert await two.ams.operator.migrations() == []
