"""Preflight: every reason why a migration would not work, found before anything is touched. Pure: facts in, findings out."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.migration import policy
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Finding, Host, Policy, Severity, Vm, VmState

# Milliseconds that two hosts' clocks may differ: more, and the record of the migration tells a wrong story.
SKEW_WARNING = 2_000
SKEW_ERROR = 60_000
# Bytes that a destination needs beyond the VM's memory, for QEMU itself.
QEMU_OVERHEAD = 128 << 20
# An image's metadata, in bytes, beyond its data.
IMAGE_OVERHEAD = 4 << 20

# What can carry a bitmap; and since when libvirt and QEMU read the disks of a running VM with one (libvirt 7.6's news).
PROVABLE = "qcow2"
PROVING_VERSIONS = ((7, 6), (6, 1))


@dataclass(frozen=True)
class Facts:
    """All that preflight looks at."""

    vm: Vm
    source: Host
    destination: CheckIncomingResponse
    mapping: Mapping
    # Versions of landbridge.v1.Peer: the source's gateway, and the destination's.
    protocol: int
    peer_protocol: int
    # Another migration of this VM that has not ended.
    under_way: str | None
    policy: Policy = field(default_factory=Policy)
    # The disks at both ends are to be compared.
    verify_disks: bool = False


def check(facts: Facts) -> list[Finding]:
    """All findings, errors first."""
    findings = [
        *_vm(facts),
        *_devices(facts),
        *_firewall(facts),
        *_processor(facts),
        *_emulator(facts),
        *_memory(facts),
        *_disks(facts),
        *_proof(facts),
        *_networks(facts),
        *_names(facts),
        *_clocks(facts),
        *_versions(facts),
        *policy.check(facts.policy),
    ]
    return sorted(findings, key=lambda finding: -finding.severity)


def refuses(findings: list[Finding]) -> bool:
    """Whether any finding is an error."""
    return any(finding.severity == Severity.SEVERITY_ERROR for finding in findings)


def is_cold(vm: Vm) -> bool:
    """Whether a VM moves as one that is shut off."""
    return vm.state == VmState.VM_STATE_SHUT_OFF


def _error(code: str, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=Severity.SEVERITY_ERROR, message=message, remedy=remedy)


def _vm(facts: Facts) -> list[Finding]:
    vm, found = facts.vm, []
    if facts.under_way:
        found.append(
            _error(
                "already-migrating",
                f"migration {facts.under_way} of {vm.name} is under way",
                f"wait for it (landbridge watch {facts.under_way[:8]}) or cancel it",
            )
        )
    elif vm.busy:
        found.append(
            _error(
                "vm-busy",
                f"another job of libvirt is under way on {vm.name}",
                "wait for it, or end it with virsh domjobabort",
            )
        )
    if vm.state == VmState.VM_STATE_MOVED:
        found.append(
            _error(
                "vm-moved",
                f"{vm.name} on {vm.host} is what migration {vm.moved_by} left there",
                "ask the gateway of the site where the VM runs now",
            )
        )
    elif is_cold(vm):
        found += _shut_off(vm)
    elif vm.state != VmState.VM_STATE_RUNNING:
        state = VmState.Name(vm.state).removeprefix("VM_STATE_").lower().replace("_", " ")
        found.append(
            _error(
                "vm-not-running",
                f"{vm.name} is {state}, and only a VM that runs, or is shut off, can be moved",
                "resume it, or shut it down",
            )
        )
    if not vm.persistent:
        found.append(
            _error(
                "vm-transient",
                f"{vm.name} has no persistent definition on {vm.host}",
                "define it with virsh define",
            )
        )
    return found


def _shut_off(vm: Vm) -> list[Finding]:
    """What a VM that is shut off has beside its disks, which are all that travels of it."""
    found = [
        _error(
            "kept-aside",
            f"{vm.name} is shut off, and then {what} would not travel with it",
            "start it, and migrate it while it runs",
        )
        for what in vm.kept_aside
    ]
    if vm.managed_save:
        found.append(
            _error(
                "saved-memory",
                f"{vm.name} was shut off with its memory saved, and that would not travel with it",
                "start it, or discard what was saved with virsh managedsave-remove",
            )
        )
    return found


def _devices(facts: Facts) -> list[Finding]:
    return [
        _error(
            "immovable-device",
            f"{facts.vm.name} has a device that cannot move: {device.description}",
            "detach it, and try again",
        )
        for device in facts.vm.immovable_devices
    ]


def _firewall(facts: Facts) -> list[Finding]:
    host = facts.destination.host.name
    return [
        _error(
            "not-allowed",
            f"{host} does not take {facts.vm.name} in: {clause}",
            f"change the VM, or allow it in the table [firewall] of agent.toml on {host}",
        )
        for clause in facts.destination.refused
    ]


def _processor(facts: Facts) -> list[Finding]:
    vm, host, found = facts.vm, facts.destination.host, []
    if vm.cpu_mode in {"host-passthrough", "maximum"}:
        found.append(
            _error(
                "cpu-pinned",
                f"{vm.name} has CPU mode {vm.cpu_mode}, which ties it to {facts.source.name}'s processor",
                f"give it a named CPU model that {host.name} has too, and restart it",
            )
        )
    if facts.destination.cpu_problem:
        found.append(
            _error(
                "cpu-incompatible",
                f"the processor of {host.name} cannot run {vm.name}: {facts.destination.cpu_problem}",
                "choose another host, or give the VM a CPU model that both have, and restart it",
            )
        )
    if vm.arch != host.arch:
        found.append(
            _error(
                "architecture",
                f"{vm.name} is {vm.arch}, and {host.name} is {host.arch}",
                "choose another host",
            )
        )
    return found


def _emulator(facts: Facts) -> list[Finding]:
    vm, host, found = facts.vm, facts.destination.host, []
    if vm.machine not in host.machine_types:
        found.append(
            _error(
                "machine-unknown",
                f"{host.name} does not know the machine type {vm.machine} of {vm.name}",
                "update QEMU there, or give the VM an older machine type and restart it",
            )
        )
    if vm.emulator and vm.emulator not in host.emulators:
        found.append(
            _error(
                "emulator-unknown",
                f"{host.name} has no emulator {vm.emulator}",
                f"install QEMU there at {vm.emulator}",
            )
        )
    return found


def _memory(facts: Facts) -> list[Finding]:
    vm, host = facts.vm, facts.destination.host
    needed = vm.memory + QEMU_OVERHEAD
    if needed <= host.memory_free:
        return []
    message = f"{vm.name} needs {_mib(needed)} of memory, and {host.name} has {_mib(host.memory_free)} free"
    return [_error("memory", message, "choose another host, or free memory there")]


def _disks(facts: Facts) -> list[Finding]:
    vm, host, found = facts.vm, facts.destination.host, []
    pools = {pool.name: pool for pool in host.pools}
    needed: dict[str, int] = {}
    for disk in vm.disks:
        if disk.read_only:
            continue
        there = facts.mapping.pools.get(disk.pool, disk.pool)
        if not disk.pool:
            found.append(
                _error(
                    "disk-outside-pool",
                    f"disk {disk.target} of {vm.name} ({disk.path}) is in no storage pool of {facts.source.name}",
                    "define a pool for its directory with virsh pool-define-as, or move the image into one",
                )
            )
        elif there not in pools:
            found.append(
                _error(
                    "pool-unmapped",
                    f"disk {disk.target} of {vm.name} is in pool {disk.pool}, and {host.name} has no pool {there}",
                    f"define it there, or map {disk.pool} to another in sites.pools of gateway.toml",
                )
            )
        else:
            needed[there] = needed.get(there, 0) + max(disk.allocation, 0) + IMAGE_OVERHEAD
    for name, size in needed.items():
        if size > pools[name].available:
            message = f"the disks of {vm.name} need {_mib(size)} in pool {name} of {host.name}, which has {_mib(pools[name].available)}"
            found.append(_error("disk-space", message, "free space there, or map the pool to a larger one"))
    found += [
        _error("image-exists", f"{host.name} has an image {path} already", "remove or rename it there")
        for path in facts.destination.existing_images
        if path not in _superseded_images(facts)
    ]
    return found


def _proof(facts: Facts) -> list[Finding]:
    """Why the disks could not be compared, where that is wanted."""
    if not facts.verify_disks:
        return []
    vm, source, host = facts.vm, facts.source, facts.destination.host
    if is_cold(vm):
        message = f"{vm.name} is shut off, and the disks of a VM are compared only once it runs at the destination"
        return [_error("proof-unsupported", message, "start it, or move it without the proof")]
    found = [
        _error(
            "disk-unprovable",
            f"disk {disk.target} of {vm.name} is {disk.format or 'of no known format'}, which cannot carry the bitmap that --verify-disks "
            "needs at the destination",
            f"convert it to {PROVABLE} (qemu-img convert -O {PROVABLE}), or move it without the proof",
        )
        for disk in vm.disks
        if not disk.read_only and disk.format != PROVABLE
    ]
    libvirt, qemu = PROVING_VERSIONS
    if _version(host.libvirt_version) < libvirt or _version(host.hypervisor_version) < qemu:
        message = (
            f"{host.name} has libvirt {host.libvirt_version} and QEMU {host.hypervisor_version}: reading the disks of a running VM takes "
            f"libvirt {_dotted(libvirt)} and QEMU {_dotted(qemu)}"
        )
        found.append(_error("proof-unsupported", message, "update them there, or move it without the proof"))
    if not source.reads_images:
        message = f"{source.name} has no qemu-nbd, with which the images are read that the VM leaves there"
        found.append(_error("proof-unsupported", message, "install qemu-utils there, or move it without the proof"))
    return found


def _networks(facts: Facts) -> list[Finding]:
    vm, host = facts.vm, facts.destination.host
    found = []
    for network in sorted(set(vm.networks)):
        there = facts.mapping.networks.get(network, network)
        if there not in host.networks:
            found.append(
                _error(
                    "network-unmapped",
                    f"{vm.name} is on network {network}, and {host.name} has no network {there}",
                    f"define it there, or map {network} to another in sites.networks of gateway.toml",
                )
            )
    found += [
        _error(
            "interface-unmapped",
            f"an interface of {vm.name} is attached to {name} of {facts.source.name} directly",
            "attach it to a libvirt network, which can be mapped",
        )
        for name in vm.unmapped_interfaces
    ]
    return found


def _superseded_images(facts: Facts) -> set[str]:
    """Images of what an earlier migration left of this VM there: they are replaced."""
    return {
        disk.path
        for other in facts.destination.conflicts
        if other.uuid == facts.vm.uuid and other.state == VmState.VM_STATE_MOVED
        for disk in other.disks
    }


def _names(facts: Facts) -> list[Finding]:
    vm, host, found = facts.vm, facts.destination.host, []
    for other in facts.destination.conflicts:
        if other.uuid == vm.uuid and other.state == VmState.VM_STATE_MOVED:
            message = (
                f"what migration {other.moved_by} left of {vm.name} on {host.name} is out of date and will be replaced"
            )
            found.append(
                Finding(
                    code="superseded",
                    severity=Severity.SEVERITY_INFO,
                    message=message,
                    remedy="nothing to do",
                )
            )
        elif other.uuid == vm.uuid:
            message = f"{host.name} has a VM {other.name} with the UUID of {vm.name}, {vm.uuid}"
            found.append(_error("uuid-exists", message, "remove it there, or give one of the two another UUID"))
        else:
            message = f"{host.name} has another VM named {vm.name}, with UUID {other.uuid}"
            found.append(_error("name-exists", message, "rename one of the two with virsh domrename"))
    return found


def _clocks(facts: Facts) -> list[Finding]:
    there, here = facts.destination.host.clock_offset_ms, facts.source.clock_offset_ms
    skew = abs(there - here)
    if skew < SKEW_WARNING:
        return []
    severity = Severity.SEVERITY_ERROR if skew >= SKEW_ERROR else Severity.SEVERITY_WARNING
    message = f"the clocks of {facts.source.name} and {facts.destination.host.name} differ by {skew / 1000:.1f} s"
    return [Finding(code="clock-skew", severity=severity, message=message, remedy="synchronize both with NTP")]


def _versions(facts: Facts) -> list[Finding]:
    source, host, found = facts.source, facts.destination.host, []
    if facts.protocol != facts.peer_protocol:
        message = f"this gateway speaks version {facts.protocol} of the peer protocol, and the other site's {facts.peer_protocol}"
        found.append(_error("protocol-version", message, "update the older gateway"))
    if _version(host.hypervisor_version) < _version(source.hypervisor_version):
        message = (
            f"QEMU {host.hypervisor_version} on {host.name} is older than {source.hypervisor_version} on {source.name}: "
            "moving to an older QEMU works only with a machine type of that age, and is not tested by its makers"
        )
        remedy = f"update QEMU on {host.name}"
        found.append(Finding(code="qemu-older", severity=Severity.SEVERITY_WARNING, message=message, remedy=remedy))
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
