"""A scheduler under any interleaving of senders, links, limits and time."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.tunnel.schedule import BURST, MAX_QUEUE, MIN_QUEUE, QUANTUM, QUEUE_TARGET, Scheduler

# Channel, number within the channel, size, whether urgent.
Item = tuple[int, int, int, bool]

SEGMENT = 64 << 10
FRAME = SEGMENT + 24
MIGRATIONS = ("m", "n")

channels = st.integers(0, 5)
sizes = st.one_of(st.sampled_from([1, 24, FRAME, 1 << 20]), st.integers(1, FRAME))
rates = st.one_of(st.just(0), st.integers(1, 10_000), st.integers(10_000, 10**9))
pauses = st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 100))


def migration(channel: int) -> str:
    return MIGRATIONS[channel % 2]


class Queueing(RuleBasedStateMachine):
    """Everything may happen in any order; the model is a queue per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler[Item]()
        self.now = 0.0
        self.numbers: Counter[int] = Counter()
        self.urgent: deque[Item] = deque()
        self.bulk: dict[int, deque[Item]] = defaultdict(deque)
        self.held: set[int] = set()

    @initialize(begin=st.sampled_from([0.0, 1e9]))
    def start(self, begin: float) -> None:
        self.now = begin

    @rule(channel=channels, size=sizes, urgent=st.booleans())
    def put(self, channel: int, size: int, urgent: bool) -> None:
        item = (channel, self.numbers[channel], size, urgent)
        self.numbers[channel] += 1
        self.scheduler.put(channel, migration(channel), item, size, urgent=urgent)
        (self.urgent if urgent else self.bulk[channel]).append(item)

    @rule(after=pauses)
    def take(self, after: float) -> None:
        self.now += after
        waiting = bool(self.urgent or any(self.bulk.values()))
        item = self.scheduler.next(self.now)
        ready = self.scheduler.ready_at(self.now)
        if item is not None:
            self.took(item)
        elif not waiting:
            assert ready is None
        else:
            assert ready is not None
            assert ready > self.now

    @rule()
    def take_when_ready(self) -> None:
        waiting = bool(self.urgent or any(self.bulk.values()))
        ready = self.scheduler.ready_at(self.now)
        assert (ready is not None) == waiting
        if ready is not None:
            assert ready >= self.now
            self.now = ready
            item = self.scheduler.next(ready)
            assert item is not None
            self.took(item)

    def took(self, item: Item) -> None:
        """It is the one that came first: of all that are urgent, or else of its channel."""
        queue = self.urgent or self.bulk[item[0]]
        assert item == queue.popleft()

    @rule(channel=channels)
    def drop(self, channel: int) -> None:
        size = sum(item[2] for item in (*self.urgent, *self.bulk[channel]) if item[0] == channel)
        assert self.scheduler.drop(channel) == size
        self.bulk[channel].clear()
        self.urgent = deque(item for item in self.urgent if item[0] != channel)

    @rule(rate=rates)
    def limit(self, rate: int) -> None:
        self.scheduler.set_limit(rate)

    @rule(of=st.sampled_from(MIGRATIONS), rate=rates)
    def limit_migration(self, of: str, rate: int) -> None:
        self.scheduler.set_migration_limit(of, rate)

    @rule(channel=channels)
    def ask(self, channel: int) -> None:
        if self.scheduler.is_full(channel):
            assert not self.scheduler.may_resume(channel)
            self.held.add(channel)

    @rule()
    def release(self) -> None:
        released = self.scheduler.released()
        assert len(set(released)) == len(released)
        assert set(released) == {channel for channel in self.held if self.scheduler.may_resume(channel)}
        self.held -= set(released)

    @invariant()
    def counts_are_right(self) -> None:
        scheduler = self.scheduler
        for channel in range(6):
            assert scheduler.queued(channel) == sum(item[2] for item in self.bulk[channel])
            assert scheduler.queued(channel) or scheduler.may_resume(channel)
        assert scheduler.queued_bytes == sum(item[2] for queue in self.bulk.values() for item in queue)
        assert scheduler.urgent_bytes == sum(item[2] for item in self.urgent)
        assert MIN_QUEUE <= scheduler.limit <= MAX_QUEUE

    def teardown(self) -> None:
        """Nothing is lost: all that waits comes, and then nothing and nobody is left."""
        while any(self.bulk.values()) or self.urgent:
            self.take_when_ready()
        assert self.scheduler.next(self.now) is None
        assert set(self.scheduler.released()) == self.held


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(deadline=None, max_examples=100, stateful_step_count=60)


@settings(deadline=None)
@given(st.lists(st.lists(sizes, min_size=1, max_size=10), min_size=2, max_size=4), st.integers(20, 200))
def test_channels_that_always_have_something_differ_by_a_turn_and_a_frame_at_most(
    senders: list[list[int]], steps: int
) -> None:
    scheduler = Scheduler[Item]()
    sent = [0] * len(senders)
    numbers = [0] * len(senders)
    largest = max(max(of) for of in senders)

    def put(channel: int) -> None:
        number = numbers[channel]
        size = senders[channel][number % len(senders[channel])]
        scheduler.put(channel, "m", (channel, number, size, False), size, urgent=False)
        numbers[channel] += 1

    for channel in range(len(senders)):
        put(channel)
        put(channel)
    for step in range(steps):
        item = scheduler.next(step * 0.001)
        assert item is not None
        sent[item[0]] += item[2]
        put(item[0])
        assert max(sent) - min(sent) <= QUANTUM + largest


@settings(deadline=None)
@given(
    st.integers(100, 10**8),
    st.integers(100, 10**8),
    st.lists(st.tuples(channels, sizes, st.booleans(), st.integers(0, 3), pauses), min_size=1, max_size=100),
)
def test_in_any_interval_goes_what_the_limit_allows_the_burst_and_a_frame(
    tunnel: int, one: int, happens: list[tuple[int, int, bool, int, float]]
) -> None:
    scheduler = Scheduler[Item]()
    scheduler.set_limit(tunnel)
    scheduler.set_migration_limit("m", one)
    went: list[tuple[float, Item]] = []
    now = 0.0
    for number, (channel, size, urgent, takes, passes) in enumerate(happens):
        scheduler.put(channel, migration(channel), (channel, number, size, urgent), size, urgent=urgent)
        now += passes
        for _ in range(takes):
            if (item := scheduler.next(now)) is not None:
                went.append((now, item))
            elif (ready := scheduler.ready_at(now)) is not None and ready < now + 10:
                now = ready
    bulk = [(at, item[2], migration(item[0])) for at, item in went if not item[3]]
    for begin, (since, _, _) in enumerate(bulk):
        of = Counter[str]()
        for until, size, name in bulk[begin:]:
            for limited, rate in (("tunnel", tunnel), *[("m", one)] * (name == "m")):
                # All before the last one, which may be of any size.
                assert of[limited] <= rate * (until - since + BURST) * (1 + 1e-6) + 1
                of[limited] += size


# A channel that offers so many frames of a size, how many the links take after that, and the time until then.
bursts = st.lists(
    st.tuples(channels, st.sampled_from([100, SEGMENT // 2, FRAME]), st.integers(1, 80), st.integers(0, 40), pauses),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(st.sampled_from([0, 10_000_000, 60_000_000]), rates, bursts)
def test_senders_that_stop_when_they_are_told_keep_what_waits_within_the_limit(
    drained_at: int, rate: int, happens: list[tuple[int, int, int, int, float]]
) -> None:
    scheduler = Scheduler[Item]()
    scheduler.set_migration_limit("n", rate)
    for step in range(drained_at // FRAME // 2):  # half a second, so that the limit is large
        for number in range(1 + (step == 0)):
            scheduler.put(0, "m", (0, number, FRAME, False), FRAME, urgent=False)
        scheduler.next(step * FRAME / drained_at)
    scheduler.drop(0)
    assert scheduler.limit >= 0.9 * drained_at * QUEUE_TARGET
    now = 1.0
    stopped: set[int] = set()
    seen: set[int] = set()
    ceiling = scheduler.limit
    for channel, size, offered, taken, passes in happens:
        seen.add(channel)
        for number in range(offered):
            if channel in stopped:
                break
            scheduler.put(channel, migration(channel), (channel, number, size, False), size, urgent=False)
            if scheduler.is_full(channel):
                stopped.add(channel)
            assert scheduler.queued_bytes <= ceiling + len(seen) * FRAME
        now += passes
        for _ in range(taken):
            scheduler.next(now)
        ceiling = max(ceiling, scheduler.limit)
        stopped -= set(scheduler.released())
        for waiting in stopped:
            assert scheduler.queued(waiting)  # nobody waits for nothing
