"""The fields of `--json` are a promise: whoever changes these lists changes docs/cli-json.md as well."""

import re
from pathlib import Path

import pytest
from google.protobuf.message import Message

from gateway.cli.json_lines import as_object
from landbridge.v1 import enrolment_pb2 as identities
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1 import types_pb2 as types
from landbridge.v1.authorization_pb2 import ApprovalRequest, PolicyStatus
from landbridge.v1.decision_pb2 import Approval, Decision, DecisionStep, Grounds, Labels
from tests.unit.fake_gateway import ID, completed, copying_memory, outage, requested

_ROOT = Path(__file__).parents[2]

_FIELDS: dict[type[Message], str] = {
    api.Site: "name local unreachable hosts hosts_reachable gateway_version rtt_ms tunnel links_up links limit alarms",
    types.Host: "site name arch cpu_model cpu_features machine_types emulators "
    "libvirt_version hypervisor_version memory memory_free cpus pools networks agent_version clock "
    "unreachable clock_offset_ms",
    types.Pool: "name path capacity available",
    types.Vm: "name uuid state memory vcpus disks networks unmapped_interfaces immovable_devices arch "
    "machine emulator cpu_mode cpu_model autostart persistent busy moved_by site host labels",
    types.Disk: "target path format virtual_size allocation pool volume read_only source_type",
    types.ImmovableDevice: "kind description",
    types.Migration: "id vm vm_uuid source_site source_host destination_site destination_host state reason "
    "requested_by requested_at updated_at ended_at progress summary findings silent_ms limit policy estimate "
    "decisions labels domain_sha256 approvals break_glass mapping_sha256 proof "
    "purpose grounds",
    types.Progress: "disk_total disk_remaining memory_total memory_remaining rate dirty_rate iteration "
    "elapsed_ms eta_ms memory_rate converges throttle paused",
    types.Policy: "max_downtime_ms deadline_ms on_no_convergence",
    types.Estimate: "total_ms bytes_wan downtime_ms converges rate rate_source measurement",
    types.Range: "low high",
    types.Measurement: "dirty_rate pages_sampled pages_zero bytes_sampled bytes_compressed",
    types.Saving: "kind fate bytes_stream bytes_wan",
    types.Summary: "total_ms downtime_ms bytes_hypervisor bytes_wan channels bytes_repeated savings",
    types.ChannelBytes: "kind to_destination to_source unhinted not_understood",
    types.Finding: "code severity message remedy",
    api.PreflightResponse: "vm_uuid source_host destination_host findings passed estimate decisions",
    Decision: "site action verdict rule steps policy_sha256 decided_at requester request_sha256 request break_glass "
    "grounds",
    DecisionStep: "check rule passed sentence",
    Grounds: "purpose legal_basis transfer_mechanism",
    Labels: "owner classification tags",
    Approval: "approver at",
    ApprovalRequest: "id state migration sha256 created_at expires_at approvals waits_for denied_by denied_because "
    "used_by claimed_by wanted_host",
    PolicyStatus: "file sha256 loaded_at problem rules caller roles",
    api.ExplainPolicyResponse: "migration decisions unreachable",
    types.Proof: "outcome reason disks downtime_us duration_ms bytes_done bytes_total",
    types.DiskProof: "target size source_root destination_root blocks_compared blocks_written differing bytes_differing",
    types.ByteRange: "offset length",
    api.SettleMigrationResponse: "migration removed",
    api.SetLimitRequest: "migration site bytes_per_second links as_configured",
    identities.RemoveHostResponse: "name vms unreachable unsettled",
    identities.LeaveSiteResponse: "site untold",
}


@pytest.mark.parametrize("kind", _FIELDS, ids=lambda kind: str(kind.__name__))
def test_an_object_has_all_promised_fields(kind: type[Message]) -> None:
    missing = set(_FIELDS[kind].split()) - set(as_object(kind()))
    assert not missing


@pytest.mark.parametrize("kind", _FIELDS, ids=lambda kind: str(kind.__name__))
def test_every_field_of_an_object_is_documented(kind: type[Message]) -> None:
    documented = set(re.findall("`([a-z0-9_]+)`", (_ROOT / "docs/cli-json.md").read_text(encoding="utf-8")))
    assert set(as_object(kind())) <= documented


def test_a_completed_migration_as_json() -> None:
    assert as_object(completed()) == {
        "id": ID,
        "vm": "web-01",
        "vm_uuid": "6c1e5f0a-8b1d-4c3e-9a64-0d9f5a7b2c11",
        "source_site": "fra",
        "source_host": "host-a",
        "destination_site": "ams",
        "destination_host": "host-b",
        "state": "completed",
        "reason": "",
        "requested_by": "spiffe://example.org/site/fra/operator/kim",
        "requested_at": "2025-11-23T03:53:20Z",
        "updated_at": "2025-11-23T03:53:25Z",
        "ended_at": "2025-11-23T03:56:44Z",
        "progress": None,
        "summary": {
            "total_ms": 204_000,
            "downtime_ms": 87,
            "bytes_hypervisor": 25_769_803_776,
            "bytes_wan": 6_442_450_944,
            "channels": [
                {"kind": "rpc", "to_destination": 40_960, "to_source": 22_528, "unhinted": 0, "not_understood": ""},
                {"kind": "ram", "to_destination": 4_294_967_296, "to_source": 0, "unhinted": 0, "not_understood": ""},
                {
                    "kind": "disk",
                    "to_destination": 21_474_836_480,
                    "to_source": 3_145_728,
                    "unhinted": 0,
                    "not_understood": "",
                },
            ],
            "bytes_repeated": 0,
            "savings": [],
        },
        "findings": [],
        "silent_ms": None,
        "limit": 0,
        "policy": None,
        "estimate": None,
        "decisions": [],
        "labels": None,
        "domain_sha256": "",
        "approvals": [],
        "break_glass": "",
        "mapping_sha256": "",
        "cold": False,
        "proof": None,
        "purpose": "",
        "grounds": None,
    }


def test_what_is_not_set_is_null() -> None:
    assert as_object(requested())["ended_at"] is None
    assert as_object(copying_memory(eta_ms=None).progress)["eta_ms"] is None
    assert as_object(copying_memory(eta_ms=0).progress)["eta_ms"] == 0
    assert as_object(copying_memory())["silent_ms"] is None
    assert as_object(outage(42))["silent_ms"] == 42_300


def test_a_state_of_a_newer_gateway_is_its_number() -> None:
    newer = types.Migration()
    newer.MergeFromString(b"\x40\x63")  # field 8, state: 99
    assert as_object(newer)["state"] == "99"
