"""What a VM that wants to come may use of this host, and whether its definition keeps to that: asked at preflight, at prepare, and of
libvirt's calls ever after (`agent.stream.firewall`).

The definition comes from the other site's host, which may lie. So it is held against this host's facts and configuration here, and
against nothing that the other site says. Paths are followed to where they really lead: a symbolic link below an allowed folder may
lead out of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from agent.config import FirewallSettings
from agent.hypervisor import domain_xml as definitions
from agent.hypervisor import placement
from agent.stream import bounded_xml, domain_rules
from agent.stream.domain_rules import FIRMWARE, IMAGE, KERNEL, NVRAM, SERIAL, Allowed, NamedPath
from agent.stream.firewall import Approval
from agent.stream.vocabulary import Problem
from landbridge.errors import HypervisorError, ProtocolError
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Host, Vm, VmState


def refusals(settings: FirewallSettings, vm: Vm, xml: str, mapping: Mapping, check: CheckIncomingResponse) -> list[str]:
    """Why a definition may not come, a clause each; none also if it cannot be placed, for which there are other findings. Blocks."""
    if why := unreadable(xml):
        return [why]
    try:
        placed = placement.localize(xml, vm, mapping, check.host.pools, check.host.networks)
        images = [placement.new_path(pool, disk) for disk, pool in placement.placements(vm, mapping, check.host.pools)]
    except HypervisorError:
        return []
    told = _told_otherwise(definitions.facts(xml), check.host)
    comes_back = any(other.uuid == vm.uuid and other.state == VmState.VM_STATE_MOVED for other in check.conflicts)
    replaced = made_files(placed) if comes_back else ()
    found = problems(placed, vm, allowed(settings, check.host, vm, mapping, images), may_replace=replaced)
    found = [problem for problem in found if not problem.where.startswith(told)]
    return [str(problem) for problem in (*not_granted(settings, vm, mapping), *found)]


def not_granted(settings: FirewallSettings, vm: Vm, mapping: Mapping) -> list[Problem]:
    """Where a VM would go on this host that this host does not give to VMs from other sites."""
    wanted = {("disk", "pool", mapping.pools.get(disk.pool, disk.pool)) for disk in placement.writable(vm)}
    wanted |= {("interface", "network", mapping.networks.get(name, name)) for name in vm.networks}
    granted = {"pool": settings.pools, "network": settings.networks}
    return [
        Problem(f"domain/devices/{device}", f"the {kind} {name} is not among the {kind}s for VMs from other sites")
        for device, kind, name in sorted(wanted)
        if (names := granted[kind]) is not None and name not in names
    ]


def _told_otherwise(vm: Vm, host: Host) -> tuple[str, ...]:
    """Where in a definition stands what has a finding of its own: it cannot move at all, or this host lacks it."""
    where = [f"domain/devices/{device.kind}" for device in vm.immovable_devices if ":" not in device.kind]
    where += [
        f"domain/{device.kind.replace('qemu:', f'{{{definitions.QEMU_NAMESPACE}}}')}" for device in vm.immovable_devices
    ]
    where += ["domain/devices/interface"] if vm.unmapped_interfaces else []
    where += ["domain/devices/emulator"] if vm.emulator not in host.emulators else []
    return tuple(where)


def allowed(settings: FirewallSettings, host: Host, vm: Vm, mapping: Mapping, images: list[str]) -> Allowed:
    """What of this host a VM may use."""
    return Allowed(
        emulators=frozenset({*host.emulators, *settings.emulators}),
        images=frozenset(images),
        networks=frozenset(mapping.networks.get(name, name) for name in vm.networks) & frozenset(host.networks),
        folders={
            FIRMWARE: settings.firmware,
            NVRAM: settings.nvram,
            KERNEL: settings.kernel,
            SERIAL: settings.serial,
        },
        hostdevs=frozenset(settings.hostdevs),
        filesystems=settings.filesystems,
        elements=frozenset(settings.elements),
    )


def unreadable(xml: str) -> str:
    """Why a definition cannot be read, as a clause; empty if it can."""
    try:
        bounded_xml.parse(xml)
    except ProtocolError as error:
        return f"its definition {error.message}"
    return ""


def problems(xml: str, vm: Vm, rules: Allowed, *, may_replace: Collection[str] = ()) -> list[Problem]:
    """Why a definition with this host's names, which can be read, may not come. Looks at the file system, and so blocks.

    Only where the definition keeps to the rules: else whoever asks would learn of any path what is there. `may_replace`: files that
    may be here, for the VM comes back to where it once left from.
    """
    root = bounded_xml.parse(xml)
    found = domain_rules.check(root, rules)
    facts = definitions.facts(xml)
    found += [
        Problem(f"domain/{what.lower()}", f"its {what} is {theirs}, and the source's host says {ours}")
        for what, theirs, ours in (
            ("name", facts.name, vm.name),
            ("UUID", facts.uuid, vm.uuid),
            ("memory", facts.memory, vm.memory),
        )
        if theirs != ours
    ]
    for named in domain_rules.named_paths(root):
        if not _is_allowed(named, rules):
            continue  # refused as it is written
        if not _leads_where_it_says(named, rules):
            there = f"{named.path} leads to {os.path.realpath(named.path)}, where nothing of it may be"
            found.append(Problem(named.where, there))
        elif named.kind == NVRAM and named.path not in may_replace and os.path.lexists(named.path):
            here = f"{named.path} is here already, and may be another VM's; remove or rename it"
            found.append(Problem(named.where, here))
    return found


def _is_allowed(named: NamedPath, rules: Allowed) -> bool:
    """Whether a path, as it is written, keeps to the rules."""
    if named.kind == IMAGE:
        return named.path in rules.images
    return domain_rules.is_below(named.path, rules.folders.get(named.kind, ()))


def _leads_where_it_says(named: NamedPath, rules: Allowed) -> bool:
    """Whether no symbolic link leads a path out of the folders in which it may be; an image is none itself."""
    real = os.path.realpath(named.path)
    if named.kind == IMAGE:
        return real == str(Path(os.path.realpath(Path(named.path).parent)) / Path(named.path).name)
    return domain_rules.is_below(real, [os.path.realpath(folder) for folder in rules.folders.get(named.kind, ())])


def made_files(xml: str) -> list[str]:
    """The files of a definition that libvirt makes where the VM comes to: its variables of the firmware."""
    root = bounded_xml.parse(xml)
    return [named.path for named in domain_rules.named_paths(root) if named.kind == NVRAM]


def approve(xml: str, vm: Vm, rules: Allowed, directory: Path) -> Approval:
    """What the firewall holds libvirt's calls against; `directory` is where QEMU will listen."""
    return Approval(
        name=vm.name,
        uuid=vm.uuid,
        domain_xml=xml,
        disks=frozenset(disk.target for disk in vm.disks if not disk.read_only),
        ram_uri=f"unix://{directory}/ram.sock",
        disk_uri=f"unix://{directory}/disk.sock",
        allowed=rules,
    )
