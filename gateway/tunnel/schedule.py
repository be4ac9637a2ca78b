"""Which frame goes next into a tunnel's links: sans-I/O, the clock is an argument.

The pump puts what agents send, each link takes the `next` item when its socket takes bytes, and the pump stops reading
the link of a channel that `is_full` until `released` names it.

    put ──┬── urgent ───────────────────────────────────────────┐
          └── one queue per bulk channel ── round robin ── buckets ──┴── next

Order: urgent items go first, in the order in which they came, and wait for nothing. Bulk channels take turns by bytes
(deficit round robin, Shreedhar and Varghese 1995): a turn adds QUANTUM to what a channel may send, and what its next
item does not fit stays for its next turn. So the bytes of two channels that always have something to send, at any time,
differ by less than QUANTUM and one item. A channel whose bucket is empty is passed over, and keeps what it may send.

Limits: a bucket is the time at which the next item may go. An item goes if that time has come, whatever its size, and
moves it on by size / rate; unused time is kept for BURST seconds. So in any interval the bytes that go are at most
rate * (interval + BURST) and one item, no item is too large for any limit, and the rate is kept exactly if `next` is
called at most BURST after `ready_at`. Urgent items move the tunnel's bucket on but do not wait for it: under a limit
that they alone exceed, bulk stands still.

How much may wait (theory):

QEMU takes the rate at which its local socket accepts bytes for the rate of the WAN, so what waits here is bounded by
time: `limit` is QUEUE_TARGET at the rate at which the links drain the queue. That rate is estimated from the bytes that
went in each INTERVAL. If something was waiting all the while and no link was sent away, the links set the pace, and the
estimate follows the sample up (RISE) or down (FALL). Else the sample is a lower bound, and can only raise it. The fall
is slower, so that a short stall does not starve the links when they go on. Sockets that were empty take what they can
buffer at once: after a pause the estimate is too high by up to that / INTERVAL, and corrects itself within FALL.

A channel may fill `limit` alone; with others it may queue its share, and if all that waits exceeds `limit`, one item. So
a newcomer has room at once, takes over the room that the others must leave, and never waits behind what they queued:
all that waits is at most `limit` and one item for each channel. A limit on a migration bounds its channels alike.

Cost, measured with CPython 3.11: `put`, `is_full`, `next` and `released` of an item take 0.8 to 2.3
microseconds together, 1.6 to 4.5 % of a core at 20,000 items per second. `released` looks at each full channel, and
`next` at each channel whose bucket is empty: 50 of either make it 4 microseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import exp, inf
from typing import Generic, TypeVar

T = TypeVar("T")

# Bytes of a turn: one segment of a channel, its header, and some room for hints.
QUANTUM = 65 << 10
# Seconds of unused time that a bucket keeps: more than a loaded event loop's timers are late.
BURST = 0.02
# Seconds of queue: enough to keep the links busy while a channel's agent is told to go on.
QUEUE_TARGET = 0.02
# Bytes that may wait at least, and the memory ceiling.
MIN_QUEUE = 128 << 10
MAX_QUEUE = 4 << 20
# Bytes of the smallest share: one segment.
MIN_SHARE = 64 << 10
# Bytes by which the mark to go on lies above half of the share, so that the headers of whole segments do not miss it.
HEADERS = 1 << 10
# Seconds of a sample of the rate, and time constants with which the estimate follows.
INTERVAL = 0.1
RISE = 0.1
FALL = 0.5


@dataclass(eq=False, slots=True)
class _Bucket:
    """A limit; see the theory above."""

    # Bytes per second; 0: none.
    rate: int = 0
    # When the next item may go.
    free_at: float = -inf

    def charge(self, size: int, now: float) -> None:
        if self.rate:
            self.free_at = max(self.free_at, now - BURST) + size / self.rate

    def change(self, rate: int, now: float) -> None:
        """Another rate from now on: what is owed is owed in bytes."""
        if not rate:
            self.free_at = -inf
        elif self.free_at > now:
            self.free_at = now + (self.free_at - now) * self.rate / rate
        self.rate = rate


@dataclass(eq=False, slots=True)
class _Migration:
    """A migration that is limited, or has something queued."""

    bucket: _Bucket = field(default_factory=_Bucket)
    # How many of its channels have something queued.
    channels: int = 0


@dataclass(eq=False, slots=True)
class _Queue(Generic[T]):
    """What waits of one bulk channel: never empty."""

    channel: int
    migration: str
    # The migration's bucket and count.
    limited: _Migration
    items: deque[tuple[T, int]] = field(default_factory=deque)
    bytes: int = 0
    # Bytes that it may send in this turn.
    deficit: int = QUANTUM


class Scheduler(Generic[T]):
    """The queue before a tunnel's links. Owned by the event loop; `now` is in seconds and never goes back."""

    def __init__(self) -> None:
        self._urgent: deque[tuple[int, T, int]] = deque()
        self._queues: dict[int, _Queue[T]] = {}
        self._turns: deque[_Queue[T]] = deque()
        self._tunnel = _Bucket()
        self._migrations: dict[str, _Migration] = {}
        # Channels that were told to be full, in that order.
        self._held: dict[int, None] = {}
        # The sample: its begin, its bytes, and whether a link could have taken more than there was to take.
        self._since = -inf
        self._drained = 0
        self._starved = True
        self._now = -inf
        # Bytes per second at which the links drain the queue, as far as is known.
        self.rate = 0.0
        # That rate when it was last seen with more waiting than the links took: what they carry. 0 if that never was.
        self.full_rate = 0.0
        # Bytes of bulk that may wait.
        self.limit = MIN_QUEUE
        # Bytes of bulk that wait, and of urgent items. The latter are not held back here: who puts them bounds them.
        self.queued_bytes = 0
        self.urgent_bytes = 0

    # Limits

    def set_limit(self, bytes_per_second: int) -> None:
        """Limit the tunnel from the next call on; 0: no limit."""
        self._tunnel.change(bytes_per_second, self._now)
        self._bound()

    def set_migration_limit(self, migration: str, bytes_per_second: int) -> None:
        """Limit the bulk of a migration from the next call on; 0: no limit, and to be said of a migration that is over."""
        known = self._migrations.setdefault(migration, _Migration())
        known.bucket.change(bytes_per_second, self._now)
        self._forget_if_idle(migration, known)

    # The way of an item

    def put(self, channel: int, migration: str, item: T, size: int, *, urgent: bool) -> None:
        """Queue an item of `size` bytes on the wire, at least 1. Urgent: control frames and all of rpc channels."""
        if urgent:
            self._urgent.append((channel, item, size))
            self.urgent_bytes += size
            return
        queue = self._queues.get(channel)
        if queue is None:
            queue = self._join(channel, migration)
        queue.items.append((item, size))
        queue.bytes += size
        self.queued_bytes += size

    def is_full(self, channel: int) -> bool:
        """Whether the sender of a channel is to be held back now; `released` then says when it may go on."""
        queue = self._queues.get(channel)
        if queue is None or (queue.bytes < self._share(queue) and self.queued_bytes < self.limit):
            return False
        self._held[channel] = None
        return True

    def next(self, now: float) -> T | None:
        """The item that goes now, which counts as gone; None if there is none, or the limits let none go."""
        self._now = now
        if now - self._since >= INTERVAL:
            self._sample(now)
        if self._urgent:
            _, item, size = self._urgent.popleft()
            self.urgent_bytes -= size
            self._gone(size, now)
            return item
        queue = self._next_queue(now) if self._tunnel.free_at <= now else None
        if queue is None:
            self._starved = True
            return None
        item, size = queue.items.popleft()
        queue.deficit -= size
        queue.bytes -= size
        self.queued_bytes -= size
        queue.limited.bucket.charge(size, now)
        if not queue.items:
            self._turns.popleft()
            self._leave(queue)
        self._gone(size, now)
        return item

    def ready_at(self, now: float) -> float | None:
        """When `next` has an item, if nothing else is put: now, or when the limits allow; None if nothing is queued."""
        self._now = now
        if self._urgent:
            return now
        if not self._queues:
            return None
        return max(now, self._tunnel.free_at, min(queue.limited.bucket.free_at for queue in self._turns))

    def may_resume(self, channel: int) -> bool:
        """Whether a sender that was held back may go on: half of its share is free, or it has nothing queued."""
        queue = self._queues.get(channel)
        if queue is None:
            return True
        return self.queued_bytes < self.limit and queue.bytes <= self._share(queue) // 2 + HEADERS

    def released(self) -> list[int]:
        """Channels that were full and may be read again, each once; to be called whenever items have gone or were dropped."""
        if not self._held:
            return []
        free = [channel for channel in self._held if self.may_resume(channel)]
        for channel in free:
            del self._held[channel]
        return free

    def drop(self, channel: int) -> int:
        """Forget all that is queued for a channel, urgent or not; says how many bytes. If it was full, it is released."""
        dropped = sum(size for of, _, size in self._urgent if of == channel)
        if dropped:
            self._urgent = deque(entry for entry in self._urgent if entry[0] != channel)
            self.urgent_bytes -= dropped
        if queue := self._queues.get(channel):
            dropped += queue.bytes
            self.queued_bytes -= queue.bytes
            self._turns.remove(queue)
            self._leave(queue)
        self._starved = self._starved or self._is_empty()
        return dropped

    def queued(self, channel: int) -> int:
        """Bytes of bulk that wait of a channel."""
        queue = self._queues.get(channel)
        return queue.bytes if queue else 0

    # Within

    def _join(self, channel: int, migration: str) -> _Queue[T]:
        known = self._migrations.get(migration)
        if known is None:
            known = self._migrations[migration] = _Migration()
        known.channels += 1
        queue = self._queues[channel] = _Queue[T](channel, migration, known)
        self._turns.append(queue)
        return queue

    def _leave(self, queue: _Queue[T]) -> None:
        del self._queues[queue.channel]
        queue.limited.channels -= 1
        self._forget_if_idle(queue.migration, queue.limited)

    def _forget_if_idle(self, migration: str, known: _Migration) -> None:
        if not known.channels and not known.bucket.rate:
            del self._migrations[migration]

    def _next_queue(self, now: float) -> _Queue[T] | None:
        """The queue whose turn it is, at the head of the turns."""
        turns = self._turns
        passed = 0
        while passed < len(turns):
            queue = turns[0]
            if queue.limited.bucket.free_at > now:
                passed += 1
            elif queue.items[0][1] <= queue.deficit:
                return queue
            else:
                passed = 0
                queue.deficit += QUANTUM
            turns.rotate(-1)
        return None

    def _share(self, queue: _Queue[T]) -> int:
        share = self.limit // len(self._queues)
        if rate := queue.limited.bucket.rate:
            share = min(share, _queue_at(rate) // queue.limited.channels)
        return max(share, MIN_SHARE)

    def _gone(self, size: int, now: float) -> None:
        self._tunnel.charge(size, now)
        self._drained += size
        self._starved = self._starved or self._is_empty()

    def _is_empty(self) -> bool:
        return not self._queues and not self._urgent

    def _sample(self, now: float) -> None:
        elapsed = now - self._since
        more = self._drained / elapsed - self.rate
        if more > 0 or not self._starved:
            self.rate += more * (1 - exp(-elapsed / (RISE if more > 0 else FALL)))
            self._bound()
        if self._drained and not self._starved:
            self.full_rate = self.rate
        self._since = now
        self._drained = 0
        self._starved = False

    def _bound(self) -> None:
        self.limit = _queue_at(min(self.rate, self._tunnel.rate or inf))


def _queue_at(rate: float) -> int:
    """Bytes that may wait where so many leave in a second."""
    return int(min(max(rate * QUEUE_TARGET, MIN_QUEUE), MAX_QUEUE))
