"""Facts of a VM and of a host that fit each other, for tests of preflight: change one, and one finding comes."""

from __future__ import annotations

from gateway.migration.preflight import Facts
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Disk, Host, Pool, Vm, VmState

GIB = 1 << 30
UUID = "6f0c4a52-3d1c-4c0e-9f64-1f1b4a3c9e01"


def disk(target: str = "vda", **changes: object) -> Disk:
    facts = Disk(
        target=target,
        path=f"/images/{target}.qcow2",
        format="qcow2",
        virtual_size=20 * GIB,
        allocation=5 * GIB,
        pool="images",
        volume=f"{target}.qcow2",
        source_type="file",
    )
    facts.MergeFrom(Disk(**changes))  # type: ignore[arg-type]  # the caller's keywords, checked by protobuf
    return facts


def vm(**changes: object) -> Vm:
    facts = Vm(
        name="web-01",
        uuid=UUID,
        state=VmState.VM_STATE_RUNNING,
        memory=2 * GIB,
        vcpus=2,
        disks=[disk()],
        networks=["lan"],
        arch="x86_64",
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu-system-x86_64",
        cpu_mode="custom",
        cpu_model="qemu64",
        persistent=True,
        site="fra",
        host="fra-1",
    )
    facts.MergeFrom(Vm(**changes))  # type: ignore[arg-type]  # see disk
    return facts


def host(name: str, **changes: object) -> Host:
    facts = Host(
        name=name,
        arch="x86_64",
        machine_types=["q35", "pc-q35-7.2"],
        emulators=["/usr/bin/qemu-system-x86_64"],
        libvirt_version="9.0.0",
        hypervisor_version="7.2.22",
        memory=64 * GIB,
        memory_free=32 * GIB,
        pools=[Pool(name="images", path="/pool", capacity=100 * GIB, available=50 * GIB)],
        networks=["lan"],
        reads_images=True,
    )
    facts.MergeFrom(Host(**changes))  # type: ignore[arg-type]  # see disk
    return facts


def good() -> Facts:
    """Nothing is in the way."""
    destination = CheckIncomingResponse(host=host("ams-1"))
    return Facts(vm(), host("fra-1"), destination, Mapping(), 1, 1, None)
