"""Preflight: one test for each thing that can be in the way, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.migration.preflight import Facts, check, refuses
from landbridge.v1.agent_pb2 import CheckIncomingResponse
from landbridge.v1.types_pb2 import Disk, Finding, ImmovableDevice, Pool, Severity, Vm, VmState
from tests.unit.facts import GIB, UUID, disk, good, host, vm

ERROR, WARNING, INFO = Severity.SEVERITY_ERROR, Severity.SEVERITY_WARNING, Severity.SEVERITY_INFO


def vm_where(change: Callable[[Vm], object]) -> Facts:
    facts = good()
    change(facts.vm)
    return facts


def destination_where(change: Callable[[CheckIncomingResponse], object]) -> Facts:
    facts = good()
    change(facts.destination)
    return facts


def in_no_pool(facts: Vm) -> None:
    facts.disks[0].pool = ""


def saved(vm: Vm) -> None:
    vm.state, vm.managed_save = VmState.VM_STATE_SHUT_OFF, True


def with_nvram(vm: Vm) -> None:
    vm.state = VmState.VM_STATE_SHUT_OFF
    vm.kept_aside.append("the variables of its firmware (NVRAM)")


def moved(facts: Vm) -> None:
    facts.state, facts.moved_by = VmState.VM_STATE_MOVED, "0b5e"


def namesake(name: str, uuid: str, state: VmState.ValueType = VmState.VM_STATE_RUNNING) -> Facts:
    conflict = Vm(name=name, uuid=uuid, state=state, moved_by="0b5e")
    return destination_where(lambda answer: answer.conflicts.append(conflict))


def test_a_good_pair_has_no_findings() -> None:
    assert check(good()) == []
    assert not refuses([])


CASES: dict[str, tuple[Facts, Severity.ValueType, str]] = {
    "already-migrating": (replace(good(), under_way="0123456789"), ERROR, "migration 0123456789 of web-01"),
    "vm-busy": (vm_where(lambda v: setattr(v, "busy", True)), ERROR, "another job of libvirt"),
    "vm-moved": (vm_where(moved), ERROR, "what migration 0b5e left"),
    "vm-not-running": (
        vm_where(lambda v: setattr(v, "state", VmState.VM_STATE_PAUSED)),
        ERROR,
        "web-01 is paused",
    ),
    "saved-memory": (vm_where(saved), ERROR, "web-01 was shut off with its memory saved"),
    "kept-aside": (vm_where(with_nvram), ERROR, "then the variables of its firmware"),
    "not-allowed": (
        destination_where(
            lambda answer: answer.refused.append("emulator '/tmp/x' is not allowed (domain/devices/emulator)")
        ),
        ERROR,
        "ams-1 does not take web-01 in: emulator '/tmp/x' is not allowed",
    ),
    "vm-transient": (vm_where(lambda v: setattr(v, "persistent", False)), ERROR, "no persistent definition"),
    "disk-unprovable": (
        replace(vm_where(lambda v: setattr(v.disks[0], "format", "raw")), verify_disks=True),
        ERROR,
        "disk vda of web-01 is raw, which cannot carry the bitmap that --verify-disks needs",
    ),
    "proof-unsupported": (
        replace(destination_where(lambda d: setattr(d.host, "libvirt_version", "7.5.0")), verify_disks=True),
        ERROR,
        "ams-1 has libvirt 7.5.0 and QEMU 7.2.22: reading the disks of a running VM takes libvirt 7.6 and QEMU 6.1",
    ),
    "immovable-device": (
        vm_where(lambda v: v.immovable_devices.append(ImmovableDevice(kind="hostdev", description="a PCI card"))),
        ERROR,
        "a PCI card",
    ),
    "cpu-pinned": (
        vm_where(lambda v: setattr(v, "cpu_mode", "host-passthrough")),
        ERROR,
        "host-passthrough, which ties it to fra-1",
    ),
    "cpu-incompatible": (
        destination_where(lambda d: setattr(d, "cpu_problem", "it lacks avx512f")),
        ERROR,
        "it lacks avx512f",
    ),
    "architecture": (
        vm_where(lambda v: setattr(v, "arch", "aarch64")),
        ERROR,
        "web-01 is aarch64, and ams-1 is x86_64",
    ),
    "machine-unknown": (vm_where(lambda v: setattr(v, "machine", "pc-q35-9.1")), ERROR, "pc-q35-9.1"),
    "emulator-unknown": (vm_where(lambda v: setattr(v, "emulator", "/opt/qemu")), ERROR, "/opt/qemu"),
    "memory": (
        destination_where(lambda d: setattr(d.host, "memory_free", 2 * GIB)),
        ERROR,
        "needs 2,176 MiB of memory, and ams-1 has 2,048 MiB free",
    ),
    "disk-outside-pool": (
        vm_where(in_no_pool),
        ERROR,
        "vda of web-01 (/images/vda.qcow2) is in no storage pool",
    ),
    "pool-unmapped": (
        destination_where(lambda d: d.host.ClearField("pools")),
        ERROR,
        "is in pool images, and ams-1 has no pool images",
    ),
    "disk-space": (
        destination_where(lambda d: setattr(d.host.pools[0], "available", 5 * GIB)),
        ERROR,
        "need 5,124 MiB in pool images of ams-1, which has 5,120 MiB",
    ),
    "image-exists": (
        destination_where(lambda d: d.existing_images.append("/pool/vda.qcow2")),
        ERROR,
        "an image /pool/vda.qcow2",
    ),
    "network-unmapped": (
        destination_where(lambda d: d.host.ClearField("networks")),
        ERROR,
        "on network lan, and ams-1 has no network lan",
    ),
    "interface-unmapped": (
        vm_where(lambda v: v.unmapped_interfaces.append("br0")),
        ERROR,
        "attached to br0 of fra-1 directly",
    ),
    "uuid-exists": (namesake("other", UUID), ERROR, f"a VM other with the UUID of web-01, {UUID}"),
    "name-exists": (namesake("web-01", "another"), ERROR, "another VM named web-01, with UUID another"),
    "superseded": (
        namesake("web-01", UUID, VmState.VM_STATE_MOVED),
        INFO,
        "what migration 0b5e left of web-01 on ams-1",
    ),
    "clock-skew": (
        destination_where(lambda d: setattr(d.host, "clock_offset_ms", -2_000)),
        WARNING,
        "fra-1 and ams-1 differ by 2.0 s",
    ),
    "protocol-version": (
        replace(good(), peer_protocol=2),
        ERROR,
        "version 1 of the peer protocol, and the other site's 2",
    ),
    "qemu-older": (
        destination_where(lambda d: setattr(d.host, "hypervisor_version", "7.1.0")),
        WARNING,
        "QEMU 7.1.0 on ams-1 is older than 7.2.22 on fra-1",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_one_thing_in_the_way_is_one_finding_that_names_it_and_says_what_to_do(code: str) -> None:
    facts, severity, said = CASES[code]
    findings = check(facts)
    assert [(finding.code, finding.severity) for finding in findings] == [(code, severity)]
    assert said in findings[0].message
    assert findings[0].remedy
    assert "\n" not in findings[0].message + findings[0].remedy
    assert refuses(findings) is (severity == ERROR)


def test_everything_in_the_way_is_found_at_once_errors_first() -> None:
    facts = replace(
        good(),
        under_way="0123456789",
        peer_protocol=2,
        source=host("fra-1", hypervisor_version="8.0.0"),
        vm=vm(
            state=VmState.VM_STATE_PAUSED,
            immovable_devices=[ImmovableDevice(kind="hostdev", description="a PCI card")],
            cpu_mode="maximum",
            arch="aarch64",
            machine="virt",
            emulator="/opt/qemu",
            memory=1 << 40,
            disks=[disk("vdb", pool="nvme"), disk("vdc", allocation=1 << 40)],
            networks=["dmz"],
            unmapped_interfaces=["br0"],
        ),
        destination=CheckIncomingResponse(
            host=host("ams-1", clock_offset_ms=-2_500),
            cpu_problem="it lacks avx512f",
            conflicts=[Vm(name="web-01", uuid="another")],
            existing_images=["/pool/vda.qcow2"],
            refused=["its definition has a DTD"],
        ),
        verify_disks=True,
    )
    facts.source.reads_images, facts.vm.disks[0].format = False, "raw"
    facts.vm.persistent = False
    in_no_pool(facts.vm)
    findings = check(facts)
    expected = set(CASES) - {"vm-busy", "vm-moved", "saved-memory", "kept-aside", "uuid-exists", "superseded"}
    assert {finding.code for finding in findings} == expected
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, reverse=True)
    assert severities[0] == ERROR
    assert severities[-1] == WARNING


def codes(facts: Facts) -> list[str]:
    return [finding.code for finding in check(facts)]


STILL = {VmState.VM_STATE_RUNNING, VmState.VM_STATE_SHUT_OFF, VmState.VM_STATE_MOVED}


@pytest.mark.parametrize("state", set(VmState.values()) - STILL)
def test_only_a_vm_that_runs_or_is_shut_off_moves(state: VmState.ValueType) -> None:
    assert codes(vm_where(lambda v: setattr(v, "state", state))) == ["vm-not-running"]


def test_a_vm_that_is_shut_off_moves() -> None:
    assert codes(vm_where(lambda v: setattr(v, "state", VmState.VM_STATE_SHUT_OFF))) == []


def test_what_is_kept_aside_travels_with_a_vm_that_runs() -> None:
    assert codes(vm_where(lambda v: v.kept_aside.append("the state of its TPM"))) == []


def test_a_job_that_is_our_own_migration_is_told_as_the_migration_it_is() -> None:
    facts = replace(good(), under_way="0123456789")
    facts.vm.busy = True
    assert codes(facts) == ["already-migrating"]


@pytest.mark.parametrize("mode", ["host-model", "custom", ""])
def test_a_cpu_that_libvirt_can_expand_is_not_pinned(mode: str) -> None:
    assert codes(vm_where(lambda v: setattr(v, "cpu_mode", mode))) == []


def test_names_are_translated_before_they_are_looked_for() -> None:
    facts = good()
    facts.mapping.pools["images"] = "fast"
    facts.mapping.networks["lan"] = "office"
    assert sorted(codes(facts)) == ["network-unmapped", "pool-unmapped"]
    facts.destination.host.pools.append(Pool(name="fast", path="/fast", available=50 * GIB))
    facts.destination.host.networks.append("office")
    assert codes(facts) == []


def test_a_read_only_disk_is_not_copied_and_so_needs_neither_pool_nor_space() -> None:
    cdrom = Disk(target="sda", path="/iso/install.iso", read_only=True, allocation=1 << 40)
    assert codes(vm_where(lambda v: v.disks.append(cdrom))) == []


def test_disks_that_go_to_one_pool_need_its_space_together() -> None:
    facts = vm_where(lambda v: v.disks.append(disk("vdb", volume="vdb.qcow2")))
    facts.destination.host.pools[0].available = 10 * GIB
    assert codes(facts) == ["disk-space"]
    facts.destination.host.pools[0].available = 10 * GIB + (8 << 20)
    assert codes(facts) == []


def test_the_images_of_a_superseded_copy_are_not_in_the_way() -> None:
    facts = namesake("web-01", UUID, VmState.VM_STATE_MOVED)
    facts.destination.conflicts[0].disks.add(target="vda", path="/pool/vda.qcow2")
    facts.destination.existing_images.append("/pool/vda.qcow2")
    assert codes(facts) == ["superseded"]


def test_an_image_beside_a_superseded_copy_that_is_not_its_own_is_in_the_way() -> None:
    facts = namesake("web-01", UUID, VmState.VM_STATE_MOVED)
    facts.destination.conflicts[0].disks.add(target="vda", path="/pool/vda.qcow2")
    facts.destination.existing_images.append("/pool/other.qcow2")
    assert codes(facts) == ["image-exists", "superseded"]


@pytest.mark.parametrize(
    ("offset", "found"),
    [(0, []), (1_999, []), (-1_999, []), (2_000, [WARNING]), (59_999, [WARNING]), (-60_000, [ERROR])],
)
def test_clocks_may_differ_a_little_are_warned_of_and_then_refused(
    offset: int, found: list[Severity.ValueType]
) -> None:
    facts = destination_where(lambda d: setattr(d.host, "clock_offset_ms", offset))
    assert [finding.severity for finding in check(facts)] == found


@pytest.mark.parametrize(
    ("here", "there", "warned"),
    [
        ("7.2.22", "7.2.0", False),
        ("7.2.22", "8.0.0", False),
        ("9.0.1", "10.0.0", False),
        ("10.0.0", "9.2.0", True),
    ],
)
def test_versions_of_qemu_are_compared_as_numbers_without_their_patch_level(
    here: str, there: str, warned: bool
) -> None:
    facts = replace(good(), source=host("fra-1", hypervisor_version=here))
    facts.destination.host.hypervisor_version = there
    assert codes(facts) == (["qemu-older"] if warned else [])


def test_warnings_alone_do_not_refuse() -> None:
    assert not refuses([Finding(severity=WARNING), Finding(severity=INFO)])
    assert refuses([Finding(severity=WARNING), Finding(severity=ERROR)])


def test_a_proof_needs_a_source_that_can_read_what_it_keeps() -> None:
    facts = replace(good(), verify_disks=True)
    assert check(facts) == []
    facts.source.reads_images = False
    assert [(found.code, found.severity) for found in check(facts)] == [("proof-unsupported", ERROR)]
    assert check(replace(facts, verify_disks=False)) == []


def test_a_disk_that_is_not_copied_needs_no_bitmap() -> None:
    facts = replace(good(), verify_disks=True)
    facts.vm.disks.append(disk("sda", format="raw", read_only=True))
    assert check(facts) == []


def test_the_disks_of_a_vm_that_is_shut_off_cannot_be_compared() -> None:
    off = replace(vm_where(lambda v: setattr(v, "state", VmState.VM_STATE_SHUT_OFF)), verify_disks=True)
    found = [each for each in check(off) if each.severity == ERROR]
    assert [each.code for each in found] == ["proof-unsupported"]
    assert "web-01 is shut off, and the disks of a VM are compared only once it runs" in found[0].message
