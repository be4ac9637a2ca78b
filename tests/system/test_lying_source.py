"""A source that lies: it is fra's gateway by its certificate, and says what it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from certs.living import LivingIdentity
from gateway.authorization.request import domain_digest
from gateway.migration.states import State
from gateway.remote import PeerRemote
from landbridge.errors import (
    ApprovalNeeded,
    Conflict,
    LandbridgeError,
    PermissionDenied,
    PolicyRefused,
    UsageError,
)
from landbridge.v1 import agent_pb2
from landbridge.v1.decision_pb2 import Approval, Decision, Verdict
from landbridge.v1.peer_pb2 import PeerAuthorizeRequest, PeerCheckIncomingRequest, PeerPrepareRequest, PeerReportRequest
from landbridge.v1.types_pb2 import Migration, Policy
from tests.system.policies import DEFINITION, ONE, brought, give, person
from tests.system.sites import TwoSites


@pytest.fixture
async def liar(two: TwoSites) -> AsyncIterator[PeerRemote]:
    await two.fra.gateway.stop()
    remote = PeerRemote("ams", [two.ams.listens["gw-1"].peers], LivingIdentity(two.fra.identity("gw-1")))
    yield remote
    await remote.close()


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
