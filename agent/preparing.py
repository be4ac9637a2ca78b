"""Whether a VM may come to this host, and what of it would be made here, before anything is."""

from __future__ import annotations

import structlog

from agent import approval
from agent.hypervisor import domain_xml as definitions
from agent.journal import BitmapState, Record
from agent.move import HostContext, call
from agent.refusals import tell
from agent.source import remove_moved
from agent.stream.domain_rules import Allowed
from agent.stream.firewall import Refusal
from landbridge.errors import AlreadyExists, PermissionDenied
from landbridge.v1.agent_pb2 import PrepareRequest, Role
from landbridge.v1.types_pb2 import Vm, VmState

log = structlog.get_logger()


async def examine(host: HostContext, request: PrepareRequest) -> tuple[Record, Allowed]:
    """The record of a VM that may come, and what of this host it may use. What it once left here is removed then.

    Raises PermissionDenied or AlreadyExists for one that may not.
    """
    vm, hypervisor = request.vm, host.hypervisor
    if unreadable := approval.unreadable(request.domain_xml):
        _refuse(host, request, unreadable, enforces=True)
    left = await _left_here(host, vm)
    record = Record(
        migration=request.migration,
        role=Role.ROLE_DESTINATION,
        vm=vm.name,
        vm_uuid=vm.uuid,
        cold=request.cold,
        domain_xml=await call(hypervisor.localize, request.domain_xml, request.mapping, vm),
        bitmap=BitmapState.WANTED if request.verify_disks else BitmapState.NONE,
    )
    record.images = await call(hypervisor.image_paths, vm, request.mapping)
    check = await call(hypervisor.check_incoming, vm, request.domain_xml, request.mapping)
    replaced = set() if left is None else {disk.path for disk in left.disks if not disk.read_only}
    if taken := [image for image in check.existing_images if image not in replaced]:
        raise AlreadyExists(f"{host.name} already has the image {taken[0]}; remove or rename it")
    rules = approval.allowed(host.firewall, check.host, vm, request.mapping, record.images)
    files = [] if left is None else approval.made_files(await call(hypervisor.migratable_xml, left.uuid))
    found = await call(approval.problems, record.domain_xml, vm, rules, may_replace=files)
    for problem in (*approval.not_granted(host.firewall, vm, request.mapping), *found):
        # Whoever it is said to be is not for the host's settings: all that is done here goes by it.
        is_another = problem.where in {"domain/name", "domain/uuid"}
        _refuse(host, request, str(problem), enforces=host.firewall.mode == "enforce" or is_another)
    if left is not None:
        # Only now that all is well: one that may not come must not take away what may be the VM's last copy.
        log.info("move.superseded", vm=vm.name, migration=left.moved_by)
        await remove_moved(host, left)
    record.keep_disks(definitions.facts(record.domain_xml))
    record.files = approval.made_files(record.domain_xml)
    return record, rules


def _refuse(host: HostContext, request: PrepareRequest, clause: str, *, enforces: bool) -> None:
    """Raises PermissionDenied, if the rules are enforced."""
    reason = f"{host.name} does not take {request.vm.name} in: {clause}"
    source = f"{request.source_site}/{request.source_host}"
    tell(Refusal(reason, "Prepare", clause, enforces), migration=request.migration, vm=request.vm.name, source=source)
    if enforces:
        raise PermissionDenied(reason)


async def _left_here(host: HostContext, vm: Vm) -> Vm | None:
    """What a VM that comes back once left here. Raises AlreadyExists for any other VM with its name or UUID."""
    left = None
    for other in await call(host.hypervisor.vms):
        if other.uuid == vm.uuid and other.state == VmState.VM_STATE_MOVED:
            left = other
        elif other.uuid == vm.uuid or other.name == vm.name:
            raise AlreadyExists(
                f"{host.name} has a VM {other.name} with UUID {other.uuid}; rename or remove one of the two"
            )
    return left
