"""Who may do what, over the wire: roles, rules of both sites, and approvals."""

from __future__ import annotations

import pytest

from gateway.migration.states import State
from landbridge.errors import PolicyRefused
from tests.system.sites import TwoSites, policy_of


async def test_a_migration_that_both_sites_permit_names_the_rules(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    assert [(each.site, each.rule) for each in ended.decisions] == [
        ("fra", 'permit "alice"'),
        ("ams", 'permit "alice"'),
    ]


async def test_what_no_rule_of_the_destination_permits_does_not_come(two: TwoSites) -> None:
    await two.ams.gateway.stop()
    two.ams.set_policy(policy_of("ams", permits=False))
    await two.ams.gateway.start()
    two.fra.hypervisor.add_vm("web-01", disk=b"disk")
    with pytest.raises(PolicyRefused, match="policy of site ams"):
        await two.fra.operator.migrate("web-01", "ams")
