"""Who must approve a migration, at either site, and what exactly they have approved then."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.authorization.request import mapping_digest
from gateway.migration.inventory import RemoteSite
from gateway.migration.moving import hold_definition
from gateway.migration.states import State
from landbridge.errors import (
    AlreadyExists,
    ApprovalNeeded,
    Conflict,
    NotFound,
    PermissionDenied,
    PolicyRefused,
    UsageError,
)
from landbridge.v1 import agent_pb2
from landbridge.v1.authorization_pb2 import RequestState
from landbridge.v1.decision_pb2 import Approval
from landbridge.v1.types_pb2 import Policy
from tests.system.policies import DEFINITION, ONE, TWO, asked, brought, found, give, has_role, person
from tests.system.sites import Operator, TwoSites, eventually, policy_of


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
    await eventually(lambda: has_role(two.fra.operator, "approver"))
    id_ = await asked(two.fra.operator)
    with pytest.raises(PolicyRefused, match="nobody approves what they have asked for themselves"):
        await two.fra.operator.approve(await found(two.fra.operator, id_))
    with pytest.raises(PolicyRefused, match="waits for the approval of"):
        await carol.approve(await found(carol, id_))
    wrong = await found(carol, id_)
    wrong.sha256 = "0" * 64
    with pytest.raises(Conflict, match="is not what was read"):
        await carol.approve(wrong)


async def test_a_request_is_used_by_who_made_it_alone(two: TwoSites, carol: Operator) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    roles = policy_of("fra", more=ONE).replace("operator = ['alice']", "operator = ['alice', 'nobody']")
    two.fra.set_policy(roles.replace('["*/alice"]', '["alice", "nobody"]'))
    two.ams.set_policy(policy_of("ams").replace('["*/alice"]', '["*/*"]'))
    async with two.fra.person("nobody") as other:
        await eventually(lambda: has_role(other, "operator"))
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
