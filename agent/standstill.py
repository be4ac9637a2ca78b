"""Whether a guest stands still in vain: the destination's host is heard, and nothing goes on.

While the guest stands still at the source, what ends that is at the destination: its QEMU takes in the last of memory, its storage
takes the last blocks, its libvirtd answers. If one of them hangs, and is not gone, nobody there says so. An outage is something else: it
has a limit of its own, which the operator sets (`Traffic.outage_limit`); where that is shorter, it holds here as well.
"""

from __future__ import annotations

from agent.traffic import Traffic

# Seconds. A host with much memory may take a minute and more to write what it holds of a disk.
LIMIT = 120.0


class Standstill:
    """Of one migration, at its source. Looked at now and then."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        # What had gone over the channels at the last look at which it was more than before, and when that was.
        self._moved = -1
        self._moved_at = 0.0

    @property
    def limit(self) -> float:
        """Seconds for which nothing may go on."""
        return min(LIMIT, self._traffic.outage_limit)

    def is_in_vain(self, now: float, *, stands_still: bool) -> bool:
        """Whether nothing has gone on for longer than the limit."""
        moved = self._traffic.moved_bytes
        if not stands_still or moved != self._moved or self._traffic.silent(now) is not None:
            self._moved, self._moved_at = moved, now
        return now - self._moved_at > self.limit
