"""What a host says of a VM of whose migration it has no record: none was begun here, or the host was installed anew since.

Nobody may take silence for an answer then. That the VM runs here is seen, and that it does not as well; and what else there is of it, the
destination knows.
"""

from __future__ import annotations

from agent.hypervisor.base import Hypervisor
from agent.move import call
from landbridge.errors import NotFound
from landbridge.v1.agent_pb2 import CancelRequest, CancelResponse, Possession
from landbridge.v1.types_pb2 import VmState

OFF = frozenset({VmState.VM_STATE_SHUT_OFF, VmState.VM_STATE_MOVED})


async def cancel(hypervisor: Hypervisor, request: CancelRequest) -> CancelResponse:
    """Answer as the source of a migration that is known by its VM alone, and so nothing was done of it here.

    Without a VM's UUID, as a destination is asked, there is nothing to look for. Raises HypervisorError.
    """
    if not request.vm_uuid:
        return CancelResponse(possession=Possession.POSSESSION_UNSPECIFIED)
    try:
        vm = await call(hypervisor.vm, request.vm_uuid)
    except NotFound:
        return CancelResponse(possession=Possession.POSSESSION_ABSENT, left=request.has_left)
    if vm.state not in OFF or (request.discard_arrived and not vm.moved_by):
        return CancelResponse(possession=Possession.POSSESSION_HERE)
    if request.has_left:
        await call(hypervisor.set_autostart, request.vm_uuid, False)
        await call(hypervisor.mark_moved, request.vm_uuid, request.migration)
    return CancelResponse(possession=Possession.POSSESSION_ABSENT, left=request.has_left)
