"""gateway/authorization/request.py: what approvals are bound to, and what another site may say."""

from __future__ import annotations

import hashlib

import pytest

from gateway.authorization.request import Labels, asked, digest, domain_digest, mapping_digest, operator, request_of
from landbridge.errors import IdentityError, LandbridgeError, UsageError
from landbridge.v1.agent_pb2 import Mapping
from landbridge.v1.decision_pb2 import Approval, Grounds
from landbridge.v1.decision_pb2 import Labels as LabelsMessage
from landbridge.v1.types_pb2 import Finding, Migration, MigrationState, NonConvergence, Policy
from tests.unit.policies import who


def wanted(**changes: object) -> Migration:
    facts: dict[str, object] = {
        "vm": "web-1",
        "vm_uuid": "6c1e5f0a-8b1d-4c3e-9a64-0d9f5a7b2c11",
        "source_site": "fra",
        "source_host": "fra-1",
        "destination_site": "ams",
        "destination_host": "ams-1",
        "requested_by": str(who("alice")),
        "policy": Policy(max_downtime_ms=300, on_no_convergence=NonConvergence.NON_CONVERGENCE_WAIT),
        "labels": LabelsMessage(owner="shop", classification="internal", tags=["a", "b"]),
        "domain_sha256": "d" * 64,
    }
    return Migration(**{**facts, **changes})  # type: ignore[arg-type]  # the caller's keywords


# What is kept of a request is what the hash covers, whatever else was put beside it.
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mapping_sha256": "f" * 64, "break_glass": "why"},
        {"labels": None, "policy": None},
        {"policy": Policy(max_downtime_ms=1, deadline_ms=0)},
        {"purpose": "why", "grounds": Grounds(purpose="so", legal_basis="contract", transfer_mechanism="scc-eu")},
    ],
    ids=str,
)
def test_of_a_request_all_is_kept_that_others_approve_and_nothing_else(change: dict[str, object]) -> None:
    request = wanted(**change)
    beside = wanted(**change, id="m-1", state=MigrationState.MIGRATION_STATE_COMPLETED, reason="x")
    assert asked(beside) == asked(request) == request
    assert digest(asked(beside)) == digest(request)


@pytest.mark.parametrize(
    "change",
    [
        {"vm": "web-2"},
        {"vm_uuid": "0"},
        {"source_site": "lon"},
        {"source_host": "fra-2"},
        {"destination_site": "lon"},
        {"destination_host": "ams-2"},
        {"requested_by": str(who("bob"))},
        {"policy": Policy(max_downtime_ms=301, on_no_convergence=NonConvergence.NON_CONVERGENCE_WAIT)},
        {"policy": Policy(max_downtime_ms=300, on_no_convergence=NonConvergence.NON_CONVERGENCE_THROTTLE)},
        {"policy": Policy(max_downtime_ms=300, on_no_convergence=NonConvergence.NON_CONVERGENCE_WAIT, deadline_ms=0)},
        {"labels": LabelsMessage(owner="it", classification="internal", tags=["a", "b"])},
        {"labels": LabelsMessage(owner="shop", classification="public", tags=["a", "b"])},
        {"labels": LabelsMessage(owner="shop", classification="internal", tags=["a"])},
        {"domain_sha256": "e" * 64},
        {"mapping_sha256": "f" * 64},
        {"break_glass": "why"},
        {"purpose": "why"},
        {"grounds": Grounds(purpose="why")},
        {"grounds": Grounds(legal_basis="contract")},
        {"grounds": Grounds(transfer_mechanism="contract")},
    ],
    ids=str,
)
def test_anything_that_is_asked_for_otherwise_is_another_request(change: dict[str, object]) -> None:
    assert digest(wanted(**change)) != digest(wanted())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "m-1"},
        {"state": MigrationState.MIGRATION_STATE_PREPARING},
        {"approvals": [Approval(approver=str(who("carol")))]},
        {"findings": [Finding(code="clock-offset")]},
        {"reason": "why not"},
        {"limit": 5},
        {"labels": LabelsMessage(owner="shop", classification="internal", tags=["b", "a"])},
    ],
    ids=str,
)
def test_what_becomes_of_a_request_does_not_change_it(change: dict[str, object]) -> None:
    assert digest(wanted(**change)) == digest(wanted())


def test_the_hash_is_that_of_canonical_json_which_others_can_make() -> None:
    text = (
        '{"break_glass":"","deadline_ms":null,"destination":["ams","ams-1"],"domain":"landbridge request 2",'
        f'"domain_sha256":"{"d" * 64}","labels":["shop","internal",["a","b"]],"mapping_sha256":"","max_downtime_ms":300,'
        '"on_no_convergence":1,"requester":"spiffe://example.org/site/fra/operator/alice","source":["fra","fra-1"],"vm":"web-1",'
        '"vm_uuid":"6c1e5f0a-8b1d-4c3e-9a64-0d9f5a7b2c11"}'
    )
    assert digest(wanted()) == hashlib.sha256(text.encode()).hexdigest()
    assert domain_digest("<domain>é</domain>") == hashlib.sha256("<domain>é</domain>".encode()).hexdigest()


def test_a_mapping_has_a_hash_of_its_own_whatever_its_order() -> None:
    one = Mapping(pools={"a": "1", "b": "2"}, networks={"lan": "x"})
    text = '{"networks":{"lan":"x"},"pools":{"a":"1","b":"2"}}'
    assert mapping_digest(one) == hashlib.sha256(text.encode()).hexdigest()
    assert mapping_digest(Mapping(pools={"b": "2", "a": "1"}, networks={"lan": "x"})) == mapping_digest(one)
    assert mapping_digest(Mapping(networks=one.pools, pools=one.networks)) != mapping_digest(one)


def test_a_migration_says_what_is_judged() -> None:
    carol = Approval(approver=str(who("carol")))
    request = request_of(wanted(approvals=[carol], break_glass="why", purpose="so"), [who("dave")])
    assert request.requester == who("alice")
    assert (request.vm, request.source_site, request.source_host) == ("web-1", "fra", "fra-1")
    assert (request.destination_site, request.destination_host) == ("ams", "ams-1")
    assert request.labels == Labels("shop", "internal", frozenset("ab"))
    assert request.approvals == {who("carol"), who("dave")}
    assert (request.break_glass, request.purpose) == ("why", "so")
    assert Labels.of(request.labels.message()) == request.labels
    assert list(request.labels.message().tags) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"vm": ""}, UsageError, "names its VM and both sites"),
        ({"source_site": ""}, UsageError, "names its VM and both sites"),
        ({"destination_site": ""}, UsageError, "names its VM and both sites"),
        ({"vm": "x" * 256}, UsageError, "at most 255 characters"),
        ({"destination_host": "x" * 256}, UsageError, "at most 255 characters"),
        ({"break_glass": "x" * 501}, UsageError, "at most 500 characters"),
        ({"purpose": "x" * 501}, UsageError, "a purpose has at most 500 characters"),
        ({"grounds": Grounds(purpose="x" * 256)}, UsageError, "at most 255 characters"),
        ({"grounds": Grounds(legal_basis="x" * 256)}, UsageError, "at most 255 characters"),
        ({"grounds": Grounds(transfer_mechanism="x" * 256)}, UsageError, "at most 255 characters"),
        ({"labels": LabelsMessage(owner="x" * 256)}, UsageError, "a label at most 255"),
        ({"labels": LabelsMessage(tags=["x"] * 65)}, UsageError, "at most 64 tags"),
        ({"approvals": [Approval(approver=str(who("carol")))] * 65}, UsageError, "at most 64 approvals"),
        ({"approvals": [Approval(approver="carol")]}, IdentityError, "is no identity"),
        ({"requested_by": "spiffe://example.org/site/fra/gateway/gw-1"}, IdentityError, "is no operator"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    change: dict[str, object], kind: type[LandbridgeError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        request_of(wanted(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"source_host": ""},
        {"destination_host": ""},
        {"vm": "x" * 255},
        {"break_glass": "x" * 500},
        {"purpose": "x" * 500},
        {"grounds": Grounds(purpose="x" * 255, legal_basis="x" * 255, transfer_mechanism="x" * 255)},
        {"labels": LabelsMessage(owner="x" * 255, tags=["x"] * 64)},
        {"approvals": [Approval(approver=str(who("carol")))] * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_just_within_its_bounds_is_judged(change: dict[str, object]) -> None:
    assert request_of(wanted(**change)).requester == who("alice")


def test_only_operators_ask_and_approve() -> None:
    assert operator(str(who("alice"))) == who("alice")
    with pytest.raises(IdentityError, match="only people ask"):
        operator("spiffe://example.org/site/fra/host/fra-1")
