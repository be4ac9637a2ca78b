"""Before a VM may arrive: what its disk channels have brought is on stable storage at the destination.

The source's QEMU would see to that, by flushes over the WAN for which the guest waits. It is told that it need not
(`stream.nbd_export`), and this host flushes instead, through the same server of NBD, and before libvirt's FINISH call may pass, which
ends that server. It begins as soon as the last disk channel is over, while the rest of the memory is still on its way. If the disks
cannot be flushed, the VM does not arrive, and goes on at the source.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from agent.hypervisor import nbd_client
from agent.traffic import Traffic
from landbridge.errors import HypervisorError

log = structlog.get_logger()


class Storing:
    """The disks of one migration. Owned by the event loop."""

    def __init__(self, traffic: Traffic, socket: Path, name: str) -> None:
        """`socket` is where QEMU serves the disks; `name` is this host's, for messages."""
        self._traffic = traffic
        self._socket = socket
        self._name = name
        # Of how many channels the flush is that is under way or done, and what came of it; None while that is not known.
        self._channels = 0
        self._result: bool | None = True
        self._problem = ""
        self._flushing: asyncio.Task[None] | None = None

    def look(self) -> None:
        """A channel is over: begin, if it was the last one of a disk."""
        if all(carrier.ended.is_set() for carrier in self._traffic.carriers if carrier.kind == "disk"):
            self._begin()

    def is_done(self) -> bool | None:
        """Whether all is stored; None while that is not known, and then it is under way. Channels must have brought all they had."""
        self._begin()
        # A move that is given up ends its QEMU, and then a flush fails that nobody wants: no cause of anything.
        if self._result is False and any(each.calls and each.calls.is_held for each in self._traffic.carriers):
            log.warning("disks.not_flushed", error=self._problem)
            self._traffic.fail(f"the disks could not be written to stable storage on {self._name}: {self._problem}")
        return self._result

    def _begin(self) -> None:
        hidden = [each for each in self._traffic.carriers if each.pages and each.pages.has_hidden_flushes]
        if len(hidden) != self._channels:
            self._channels, self._result = len(hidden), None
            self._flushing = asyncio.create_task(self._flush(len(hidden)), name=f"flush of {self._socket}")

    async def _flush(self, channels: int) -> None:
        problem = ""
        try:
            await asyncio.to_thread(nbd_client.flush, str(self._socket))
        except HypervisorError as error:
            problem = error.message
        if channels == self._channels:
            self._result, self._problem = not problem, problem
            self._traffic.look_at_gate()

    async def close(self) -> None:
        """Nobody waits for it any more."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
