"""One domain of libvirt: what it is, whether and how it is here, what job it has.

Given libvirt's module, like its siblings; libvirt's errors pass through.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from random import Random
from typing import Any

from agent.hypervisor import domain_xml as definitions
from agent.hypervisor import placement, sampling
from agent.hypervisor.base import Presence
from landbridge.v1.types_pb2 import Host, ImmovableDevice, Measurement, Pool, Vm, VmState

# Seconds for which the hypervisor looks at what the guest writes; for how long its answer is waited for, and how often it is asked.
_DIRTY_RATE_S = 1
_DIRTY_RATE_PATIENCE_S = 5.0
_DIRTY_RATE_INTERVAL_S = 0.1


def state(api: Any, domain: Any) -> VmState.ValueType:
    """The domain's state, as far as it is libvirt's to say."""
    states = {
        api.VIR_DOMAIN_RUNNING: VmState.VM_STATE_RUNNING,
        api.VIR_DOMAIN_BLOCKED: VmState.VM_STATE_RUNNING,
        api.VIR_DOMAIN_PAUSED: VmState.VM_STATE_PAUSED,
        api.VIR_DOMAIN_SHUTDOWN: VmState.VM_STATE_RUNNING,
        api.VIR_DOMAIN_SHUTOFF: VmState.VM_STATE_SHUT_OFF,
        api.VIR_DOMAIN_CRASHED: VmState.VM_STATE_CRASHED,
        api.VIR_DOMAIN_PMSUSPENDED: VmState.VM_STATE_PAUSED,
    }
    return states.get(domain.state()[0], VmState.VM_STATE_UNSPECIFIED)


def find(link: Any, name_or_uuid: str) -> Any:
    """The domain by its UUID, or else by its name."""
    try:
        text = str(uuid.UUID(name_or_uuid))
    except ValueError:
        return link.lookupByName(name_or_uuid)
    return link.lookupByUUIDString(text)


def outgoing(api: Any, domain: Any) -> dict[str, Any] | None:
    """Statistics of a move away that is under way."""
    try:
        stats: dict[str, Any] = domain.jobStats()
    except api.libvirtError as error:
        if error.get_error_code() in (
            api.VIR_ERR_OPERATION_UNSUPPORTED,
            api.VIR_ERR_OPERATION_INVALID,
        ):
            return None  # incoming, or shut off
        raise
    leaving = stats.get(api.VIR_DOMAIN_JOB_OPERATION) == api.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    return stats if leaving and stats["type"] != api.VIR_DOMAIN_JOB_NONE else None


def presence(api: Any, domain: Any) -> Presence:
    """How a domain that was found is here; see the table in `libvirt_driver`."""
    now = state(api, domain)
    if now in (VmState.VM_STATE_SHUT_OFF, VmState.VM_STATE_CRASHED):
        return Presence.SHUT_OFF
    if now != VmState.VM_STATE_PAUSED:
        return Presence.RUNNING
    completed = api.VIR_DOMAIN_JOB_STATS_COMPLETED | api.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
    try:
        domain.jobStats()
        last = domain.jobStats(completed).get(api.VIR_DOMAIN_JOB_OPERATION)
    except api.libvirtError as error:
        if error.get_error_code() == api.VIR_ERR_OPERATION_UNSUPPORTED:
            return Presence.INCOMING  # "available only on the source host"
        raise
    return Presence.ARRIVED if last == api.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN else Presence.PAUSED


def describe(api: Any, domain: Any, pools: Iterable[Pool]) -> Vm:
    """The facts of a domain."""
    # With its secrets, so that they are seen; none of them goes into the Vm.
    vm = definitions.facts(domain.XMLDesc(api.VIR_DOMAIN_XML_SECURE))
    vm.state = state(api, domain)
    vm.autostart, vm.persistent = bool(domain.autostart()), bool(domain.isPersistent())
    vm.managed_save = vm.persistent and bool(domain.hasManagedSaveImage())
    if vm.state == VmState.VM_STATE_SHUT_OFF and vm.moved_by:
        vm.state = VmState.VM_STATE_MOVED
    elif vm.state == VmState.VM_STATE_PAUSED and presence(api, domain) is Presence.INCOMING:
        vm.state = VmState.VM_STATE_INCOMING
    incoming = vm.state == VmState.VM_STATE_INCOMING
    vm.busy = incoming or (domain.isActive() and domain.jobInfo()[0] != api.VIR_DOMAIN_JOB_NONE)
    for disk in vm.disks:
        disk.pool = placement.pool_of(disk.path, pools)
        if not incoming:  # its monitor answers only the job that brings it
            disk.virtual_size, disk.allocation = _sizes(api, domain, disk.target)
    if snapshots := domain.snapshotNum():
        vm.immovable_devices.append(
            ImmovableDevice(kind="snapshot", description=f"{snapshots} snapshots, which libvirt does not move")
        )
    return vm


def _sizes(api: Any, domain: Any, target: str) -> tuple[int, int]:
    """Virtual size and allocation of a disk; zeros if its image cannot be read."""
    try:
        capacity, allocation, _physical = domain.blockInfo(target)
    except api.libvirtError:
        return 0, 0
    return capacity, allocation


def measure(api: Any, link: Any, domain: Any) -> Measurement:
    """How a running domain's memory behaves. Takes a second and a little; what libvirt cannot do is left out."""
    is_measuring = True
    try:
        # By sampled pages, and never by the dirty bitmap: QEMU 7.2 crashes on that under emulation, and the guest with it.
        domain.startDirtyRateCalc(_DIRTY_RATE_S, api.VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING)
    except api.libvirtError:
        is_measuring = False
    found = sampling.summarize(_sample(api, domain))
    deadline = time.monotonic() + _DIRTY_RATE_PATIENCE_S
    while is_measuring and time.monotonic() < deadline:
        ((_, stats),) = link.domainListGetStats([domain], api.VIR_DOMAIN_STATS_DIRTYRATE)
        if stats.get("dirtyrate.calc_status") == api.VIR_DOMAIN_DIRTYRATE_MEASURED:
            found.dirty_rate = stats["dirtyrate.megabytes_per_second"] << 20
            break
        time.sleep(_DIRTY_RATE_INTERVAL_S)
    return found


def _sample(api: Any, domain: Any) -> list[bytes]:
    """Some pages of memory; none where it cannot be read, or is laid out in a way that is not known here."""
    if definitions.facts(domain.XMLDesc()).arch not in ("x86_64", "i686"):
        return []
    chosen = sampling.addresses(domain.maxMemory() * 1024, Random())  # noqa: S311 - a sample, no secret
    try:
        return [domain.memoryPeek(at, sampling.PAGE, api.VIR_MEMORY_PHYSICAL) for at in chosen]
    except api.libvirtError:
        return []


def networks(api: Any, link: Any) -> list[str]:
    """Names of the active networks."""
    try:
        return sorted(network.name() for network in link.listAllNetworks(api.VIR_CONNECT_LIST_NETWORKS_ACTIVE))
    except api.libvirtError as error:
        if error.get_error_code() == api.VIR_ERR_NO_SUPPORT:
            return []  # a libvirtd without its network driver
        raise


def cpu_problem(api: Any, link: Any, vm: Vm, xml: str, host: Host) -> str:
    """Why this host cannot run the VM\'s CPU; empty if it can, or is not asked to promise one."""
    cpu = definitions.cpu_xml(xml)
    if not cpu:
        return ""
    emulator = vm.emulator if vm.emulator in host.emulators else None
    flags = api.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    # Features are missing; the accelerator is; the model is unknown.
    refusals = (api.VIR_ERR_CPU_INCOMPATIBLE, api.VIR_ERR_INVALID_ARG, api.VIR_ERR_INTERNAL_ERROR)
    try:
        link.compareHypervisorCPU(emulator, vm.arch, vm.machine, definitions.virt_type(xml), cpu, flags)
    except api.libvirtError as error:
        if error.get_error_code() not in refusals:
            raise
        return f"This host's CPU cannot run {vm.name}: {(error.get_error_message() or '').rstrip('.')}."
    return ""
