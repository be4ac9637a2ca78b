"""What migrations have sent over the WAN: this gateway's pump counts from when it began to run one, and goes on where another has ended."""

from __future__ import annotations

from gateway.migration import savings
from gateway.store import Row
from gateway.tunnel.pump import Pump
from landbridge.v1.types_pb2 import Saving


class WanCounts:
    """Of the migrations that this gateway runs."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        # What each had sent over the WAN before this gateway counted, and what of it this had saved.
        self._before: dict[str, tuple[int, list[Saving]]] = {}

    def begin(self, row: Row) -> None:
        """Count on from what the row says."""
        summary = row.migration.summary
        self._before[row.migration.id] = summary.bytes_wan, list(summary.savings)

    def count(self, row: Row) -> None:
        """Have the row say what was sent until now."""
        if (before := self._before.get(row.migration.id)) is None:
            return
        id_, summary = row.migration.id, row.migration.summary
        bytes_wan, saved = before
        summary.bytes_wan = bytes_wan + self._pump.wan_bytes.get(id_, 0)
        total = savings.added(saved, self._pump.savings(id_))
        del summary.savings[:]
        summary.savings.extend(total)

    def end(self, row: Row) -> None:
        """Forget it; the row keeps what was counted last."""
        self._before.pop(row.migration.id, None)
        self._pump.forget_counts(row.migration.id)
