"""Preflight judges whatever agents tell: it never raises, and every finding can be acted upon."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.migration.preflight import Facts, check, refuses
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Disk, Host, ImmovableDevice, Pool, Severity, Vm, VmState

# A few names that meet each other often, and any other text.
names = st.one_of(st.sampled_from(["", "a", "b", "7.2", "10.0.1", "host-passthrough"]), st.text(max_size=8))
lists = st.lists(names, max_size=3)
sizes = st.one_of(st.integers(0, 1 << 20), st.integers(0, 2**64 - 1))
flags = st.booleans()
maps = st.dictionaries(names, names, max_size=3)

disks = st.builds(
    Disk, target=names, path=names, pool=names, volume=names, virtual_size=sizes, allocation=sizes, read_only=flags
)
vms = st.builds(
    Vm,
    name=names,
    uuid=names,
    state=st.sampled_from(VmState.values()),
    memory=sizes,
    disks=st.lists(disks, max_size=3),
    networks=lists,
    unmapped_interfaces=lists,
    immovable_devices=st.lists(st.builds(ImmovableDevice, kind=names, description=names), max_size=2),
    arch=names,
    machine=names,
    emulator=names,
    cpu_mode=names,
    persistent=flags,
    busy=flags,
    moved_by=names,
    host=names,
)
hosts = st.builds(
    Host,
    name=names,
    arch=names,
    machine_types=lists,
    emulators=lists,
    hypervisor_version=names,
    memory_free=sizes,
    pools=st.lists(st.builds(Pool, name=names, path=names, available=sizes), max_size=3),
    networks=lists,
    clock_offset_ms=st.integers(-(2**63), 2**63 - 1),
)
answers = st.builds(
    CheckIncomingResponse,
    host=hosts,
    cpu_problem=names,
    conflicts=st.lists(vms, max_size=2),
    existing_images=lists,
)
facts = st.builds(
    Facts,
    vm=vms,
    source=hosts,
    destination=answers,
    mapping=st.builds(Mapping, pools=maps, networks=maps),
    protocol=st.integers(0, 3),
    peer_protocol=st.integers(0, 3),
    under_way=st.one_of(st.none(), names),
)


@settings(max_examples=60)
@given(facts)
def test_whatever_the_facts_every_finding_has_a_code_a_severity_and_a_remedy(given_facts: Facts) -> None:
    findings = check(given_facts)
    assert findings == check(given_facts)
    for finding in findings:
        assert finding.code
        assert finding.message
        assert finding.remedy
        assert finding.severity != Severity.SEVERITY_UNSPECIFIED
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, reverse=True)
    assert refuses(findings) is (Severity.SEVERITY_ERROR in severities)


@settings(max_examples=60)
@given(facts)
def test_a_vm_that_does_not_run_or_is_being_moved_is_never_let_through(given_facts: Facts) -> None:
    if given_facts.vm.state != VmState.VM_STATE_RUNNING or given_facts.under_way:
        assert refuses(check(given_facts))
