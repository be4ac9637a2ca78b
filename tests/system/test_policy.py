"""Who may do what, over the wire: rules of both sites, their freezes, and their files."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Any

import pytest

from gateway.authorization import policy_file
from gateway.migration.states import State
from landbridge.errors import LandbridgeError, PolicyRefused
from landbridge.v1.decision_pb2 import Verdict
from tests.system.policies import ALWAYS, GLASS, TWO, decided, give, has_role, person
from tests.system.sites import TwoSites, eventually, policy_of

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
        await eventually(lambda: has_role(other, "operator"))
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
    assert "is no key that is known here" in status.problem
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
