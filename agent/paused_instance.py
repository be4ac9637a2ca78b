"""A VM that is shut off, at the source of its move: it leaves as an instance that was started paused, and whose CPUs never run.

    start     the record comes first: what a killed agent has started is ended by the next run
    is_here   after the move, or after a crash: the instance is ended, and the VM is shut off as before

A VM that is found shut off says nothing of itself once its move has begun: the instance may have been ended by libvirt, which released
the VM, while this agent was away. Then the destination is asked, and if nothing of the VM is there, it never left.
"""

from __future__ import annotations

import contextlib

from agent.hypervisor.base import Presence
from agent.journal import Instance, Record
from agent.move import HostContext, call
from landbridge.errors import Conflict, NotRecorded


class PausedInstance:
    """The instance of one move. It belongs to the migration as long as the record says that there may be one."""

    def __init__(self, host: HostContext, record: Record) -> None:
        self._host = host
        self._record = record

    async def start(self) -> None:
        """Start it, to be moved at once. Raises Conflict for a VM that somebody has started in the meantime."""
        self._note(Instance.STARTED)
        try:
            await call(self._host.hypervisor.start_paused, self._record.vm_uuid)
        except Conflict:
            # What is there is another's.
            self._note(Instance.NONE)
            raise
        self._note(Instance.MOVING)

    @property
    def may_stand(self) -> bool:
        """Whether it may stand still here."""
        return self._record.instance in {Instance.STARTED, Instance.MOVING}

    def stays(self) -> None:
        """The hypervisor has said that it did not leave."""
        if self._record.instance is Instance.MOVING:
            with contextlib.suppress(NotRecorded):  # what is on record then is the more careful
                self._note(Instance.STARTED)

    def is_let_run(self) -> bool:
        """Somebody lets it run: it is the owner's VM from now on, and no instance of the migration's. False if it was none."""
        if not self.may_stand:
            return False
        with contextlib.suppress(NotRecorded):  # written later
            self._note(Instance.NONE)
        return True

    async def is_here(self, *, is_not_there: bool = False) -> bool:
        """End what stands still, and say whether the VM is known to be here. `is_not_there`: the destination has nothing of it."""
        hypervisor, uuid = self._host.hypervisor, self._record.vm_uuid
        presence = await call(hypervisor.presence, uuid)
        if presence is Presence.PAUSED and self.may_stand:
            await call(hypervisor.end_paused, uuid)
        may_have_left = self._record.instance in {Instance.MOVING, Instance.ENDED} and not is_not_there
        if may_have_left and presence is Presence.SHUT_OFF:
            self._note(Instance.ENDED)
            return False
        if self._record.instance is not Instance.NONE:
            self._note(Instance.NONE)
        return presence is not Presence.ABSENT

    def _note(self, instance: Instance) -> None:
        self._record.instance = instance
        self._host.journal.save(self._record)
