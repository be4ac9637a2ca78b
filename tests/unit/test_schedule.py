"""Which frame goes next, who is held back, and what the scheduler takes for the rate of the links."""

from __future__ import annotations

import pytest

from gateway.tunnel.schedule import (
    BURST,
    INTERVAL,
    MAX_QUEUE,
    MIN_QUEUE,
    MIN_SHARE,
    QUANTUM,
    QUEUE_TARGET,
    Scheduler,
)

SEGMENT = 64 << 10
FRAME = SEGMENT + 24
MIB = 1 << 20


def bulk(scheduler: Scheduler[str], channel: int, *items: str, size: int = FRAME, migration: str = "m") -> None:
    for item in items:
        scheduler.put(channel, migration, item, size, urgent=False)


def all_now(scheduler: Scheduler[str], now: float = 0.0) -> list[str]:
    items = []
    while (item := scheduler.next(now)) is not None:
        items.append(item)
    return items


def fill(scheduler: Scheduler[str], channel: int, migration: str = "m") -> int:
    """Put frames until the channel is to be held back; how many bytes of it wait then."""
    while not scheduler.is_full(channel):
        bulk(scheduler, channel, "-", migration=migration)
    return scheduler.queued(channel)


def drain_at(scheduler: Scheduler[str], rate: float, begin: float, end: float, *channels: int) -> None:
    """Senders that are never short of bytes, and links that take frames at a rate."""
    now = begin
    while now < end:
        for channel in channels:
            fill(scheduler, channel)
        assert scheduler.next(now) is not None
        now += FRAME / rate


# Order


def test_nothing_queued_is_nothing_to_send_and_nothing_to_wait_for() -> None:
    scheduler = Scheduler[str]()
    assert scheduler.next(0.0) is None
    assert scheduler.ready_at(0.0) is None


def test_urgent_items_overtake_bulk_and_keep_their_order() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, "bulk")
    scheduler.put(1, "m", "ack", 24, urgent=True)
    scheduler.put(2, "m", "rpc", 400, urgent=True)
    assert all_now(scheduler) == ["ack", "rpc", "bulk"]


def test_channels_take_turns_and_keep_their_own_order() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, "a1", "a2", "a3")
    bulk(scheduler, 2, "b1", "b2")
    assert all_now(scheduler) == ["a1", "b1", "a2", "b2", "a3"]


def test_turns_are_counted_in_bytes_not_in_frames() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, *["small"] * 100, size=QUANTUM // 10)
    bulk(scheduler, 2, *["large"] * 10, size=QUANTUM)
    taken = [scheduler.next(0.0) for _ in range(44)]
    assert taken.count("large") == 4
    assert taken.count("small") == 40


def test_an_item_larger_than_a_turn_goes_when_enough_turns_have_passed() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, "huge", size=4 * QUANTUM)
    bulk(scheduler, 2, *["b"] * 9, size=QUANTUM)
    assert all_now(scheduler).index("huge") == 3


def test_a_newcomer_waits_for_one_turn_of_each_other_and_not_for_what_they_queued() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, *["disk"] * 50)
    bulk(scheduler, 2, *["disk"] * 50)
    scheduler.next(0.0)
    bulk(scheduler, 3, "ram")
    assert [scheduler.next(0.0) for _ in range(4)].count("ram") == 1


def test_a_dropped_channel_is_forgotten_with_its_urgent_items_and_no_other() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, "a", "b", size=1000)
    bulk(scheduler, 2, "c", size=1000)
    scheduler.put(1, "m", "ack 1", 30, urgent=True)
    scheduler.put(2, "m", "ack 2", 40, urgent=True)
    assert scheduler.drop(1) == 2030
    assert scheduler.drop(1) == 0
    assert (scheduler.queued(1), scheduler.queued(2), scheduler.queued_bytes) == (0, 1000, 1000)
    assert scheduler.urgent_bytes == 40
    assert all_now(scheduler) == ["ack 2", "c"]
    bulk(scheduler, 1, "again")
    assert all_now(scheduler) == ["again"]


# Limits


@pytest.mark.parametrize("rate", [1_000, 1_250_000, 125_000_000])
@pytest.mark.parametrize("of", ["tunnel", "migration"])
def test_a_limit_is_kept_to_the_byte_by_a_pump_that_comes_when_it_is_told(rate: int, of: str) -> None:
    scheduler = Scheduler[str]()
    if of == "tunnel":
        scheduler.set_limit(rate)
    else:
        scheduler.set_migration_limit("m", rate)
    bulk(scheduler, 1, *["a"] * 1000)
    now, sent = 0.0, 0
    all_now(scheduler, now)  # what the bucket has kept
    for _ in range(500):
        ready = scheduler.ready_at(now)
        assert ready is not None
        now = ready
        assert scheduler.next(now) == "a"
        sent += FRAME
    assert sent / now == pytest.approx(rate, rel=0.01)


def test_a_pump_that_comes_late_by_less_than_the_burst_loses_nothing() -> None:
    scheduler = Scheduler[str]()
    scheduler.set_limit(10_000_000)
    bulk(scheduler, 1, *["a"] * 2000)
    all_now(scheduler, 0.0)
    sent = sum(len(all_now(scheduler, step * BURST * 0.9)) for step in range(1, 501)) * FRAME
    assert sent / (500 * BURST * 0.9) == pytest.approx(10_000_000, rel=0.02)


def test_a_limited_migration_does_not_block_another() -> None:
    scheduler = Scheduler[str]()
    scheduler.set_migration_limit("slow", 1000)
    bulk(scheduler, 1, "s1", "s2", migration="slow")
    bulk(scheduler, 2, "f1", "f2", "f3", migration="fast")
    assert all_now(scheduler) == ["s1", "f1", "f2", "f3"]
    ready = scheduler.ready_at(0.0)
    assert ready is not None
    assert ready == pytest.approx(FRAME / 1000 - BURST)
    assert scheduler.next(ready) == "s2"


def test_channels_of_one_migration_share_its_limit() -> None:
    scheduler = Scheduler[str]()
    scheduler.set_migration_limit("m", 1_000_000)
    bulk(scheduler, 1, *["a"] * 100)
    bulk(scheduler, 2, *["b"] * 100)
    taken = [item for step in range(100) for item in all_now(scheduler, step * 0.01)]
    assert len(taken) * FRAME == pytest.approx(1_000_000, rel=0.1)
    assert abs(taken.count("a") - taken.count("b")) <= 1


def test_urgent_items_do_not_wait_for_the_tunnels_bucket_but_bulk_pays_for_them() -> None:
    scheduler = Scheduler[str]()
    scheduler.set_limit(10_000)
    bulk(scheduler, 1, "bulk")
    for _ in range(3):
        scheduler.put(2, "m", "rpc", 10_000, urgent=True)
    assert all_now(scheduler) == ["rpc", "rpc", "rpc"]
    assert scheduler.ready_at(0.0) == pytest.approx(3.0 - BURST)


@pytest.mark.parametrize("new", [0, 1_000_000])
def test_a_raised_limit_takes_effect_at_once_also_on_what_is_owed(new: int) -> None:
    scheduler = Scheduler[str]()
    scheduler.set_limit(100)
    scheduler.set_migration_limit("m", 100)
    bulk(scheduler, 1, "a", "b")
    assert all_now(scheduler) == ["a"]
    assert scheduler.next(10.0) is None
    scheduler.set_limit(new)
    scheduler.set_migration_limit("m", new)
    assert scheduler.next(10.0 + FRAME / 1_000_000) == "b"


def test_a_lowered_limit_takes_effect_at_once() -> None:
    scheduler = Scheduler[str]()
    bulk(scheduler, 1, "a", "b", "c", "d")
    assert scheduler.next(0.0) == "a"
    scheduler.set_limit(FRAME)  # one frame per second
    assert scheduler.next(0.0) == "b"
    assert scheduler.next(0.9) is None
    scheduler.set_limit(FRAME // 10)
    assert scheduler.ready_at(0.9) == pytest.approx(0.9 + 10 * (0.1 - BURST), abs=0.01)


def test_nothing_is_kept_of_a_migration_that_is_over() -> None:
    scheduler = Scheduler[str]()
    scheduler.set_migration_limit("m", 1_000_000)
    bulk(scheduler, 1, "a")
    bulk(scheduler, 2, "b", migration="n")
    scheduler.set_migration_limit("m", 0)
    assert all_now(scheduler) == ["a", "b"]
    assert not scheduler._migrations
    assert not scheduler._queues
    assert not scheduler._turns


# Push-back


def test_one_channel_alone_may_fill_the_limit_and_goes_on_at_half() -> None:
    scheduler = Scheduler[str]()
    assert scheduler.limit == MIN_QUEUE
    assert fill(scheduler, 1) == 2 * FRAME
    assert not scheduler.may_resume(1)
    assert scheduler.released() == []
    scheduler.next(0.0)
    assert scheduler.may_resume(1)
    assert scheduler.released() == [1]
    assert scheduler.released() == []


def test_a_channel_with_nothing_queued_is_never_full() -> None:
    scheduler = Scheduler[str]()
    fill(scheduler, 1)
    assert not scheduler.is_full(2)
    assert scheduler.may_resume(2)
    bulk(scheduler, 2, "-")
    assert scheduler.is_full(2)


def test_a_newcomer_takes_over_half_of_the_room_of_a_channel_that_had_filled_it() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 50_000_000, 0.0, 3.0, 1)
    assert scheduler.queued(1) > 0.9 * scheduler.limit
    drain_at(scheduler, 50_000_000, 3.0, 3.2, 1, 2)
    for channel in (1, 2):
        assert fill(scheduler, channel) == pytest.approx(scheduler.limit / 2, abs=FRAME)


def test_urgent_items_are_not_counted_for_push_back() -> None:
    scheduler = Scheduler[str]()
    for _ in range(100):
        scheduler.put(1, "m", "rpc", FRAME, urgent=True)
    assert not scheduler.is_full(1)
    assert (scheduler.queued(1), scheduler.queued_bytes, scheduler.urgent_bytes) == (0, 0, 100 * FRAME)


def test_a_channel_that_was_full_is_released_when_it_is_dropped() -> None:
    scheduler = Scheduler[str]()
    fill(scheduler, 1)
    scheduler.drop(1)
    assert scheduler.released() == [1]


def test_a_channel_that_was_full_is_released_when_another_makes_room() -> None:
    scheduler = Scheduler[str]()
    fill(scheduler, 1)
    bulk(scheduler, 2, "-", size=1000)
    assert scheduler.is_full(2)
    scheduler.drop(1)
    assert scheduler.released() == [1, 2]


def test_channels_of_a_limited_migration_queue_by_its_rate_and_not_by_the_tunnels() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 100_000_000, 0.0, 3.0, 1)
    scheduler.drop(1)
    scheduler.set_migration_limit("slow", 1_000_000)
    assert fill(scheduler, 2, "slow") <= MIN_QUEUE + FRAME
    assert fill(scheduler, 3, "slow") <= MIN_SHARE + FRAME


# The rate of the links


@pytest.mark.parametrize("rate", [10_000_000, 25_000_000, 75_000_000])
def test_the_limit_is_the_target_at_the_rate_at_which_links_drain(rate: int) -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, rate, 0.0, 1.0, 1, 2)
    assert scheduler.rate == pytest.approx(rate, rel=0.05)
    assert scheduler.full_rate == pytest.approx(rate, rel=0.05)
    assert scheduler.limit == pytest.approx(rate * QUEUE_TARGET, rel=0.05)


def test_the_limit_has_a_floor_and_a_ceiling() -> None:
    slow, fast = Scheduler[str](), Scheduler[str]()
    drain_at(slow, 100_000, 0.0, 5.0, 1)
    drain_at(fast, 1_000_000_000, 0.0, 1.0, 1)
    assert slow.limit == MIN_QUEUE
    assert fast.limit == MAX_QUEUE


def test_the_estimate_rises_within_intervals_and_falls_within_seconds() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 5_000_000, 0.0, 2.0, 1)
    drain_at(scheduler, 50_000_000, 2.0, 2.0 + 4 * INTERVAL, 1)
    assert scheduler.rate > 40_000_000
    drain_at(scheduler, 5_000_000, 2.4, 2.4 + 2 * INTERVAL, 1)
    assert scheduler.rate > 25_000_000
    drain_at(scheduler, 5_000_000, 2.6, 5.0, 1)
    assert scheduler.rate < 6_000_000


def test_a_sender_that_has_little_to_send_says_nothing_about_the_links() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 50_000_000, 0.0, 1.0, 1)
    scheduler.drop(1)
    known = scheduler.rate
    for step in range(1000):
        bulk(scheduler, 1, "-")
        assert all_now(scheduler, 1.1 + step * 0.1) == ["-"]
    assert scheduler.rate == known


def test_a_link_that_is_sent_away_by_a_limit_says_nothing_about_the_links() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 50_000_000, 0.0, 1.0, 1)
    known = scheduler.rate
    scheduler.set_migration_limit("m", 1_000_000)
    for step in range(1000):
        fill(scheduler, 1)
        all_now(scheduler, 1.0 + step * 0.01)
    assert scheduler.rate == known


def test_what_the_links_carry_is_known_only_once_more_waited_than_they_took() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for tick in range(20):
        bulk(scheduler, 1, "x")
        all_now(scheduler, tick * 0.1)
    assert scheduler.rate > 0
    assert scheduler.full_rate == 0
    drain_at(scheduler, 25_000_000, 2.0, 4.0, 1)
    assert scheduler.full_rate == pytest.approx(25_000_000, rel=0.05)
    all_now(scheduler, 4.0)
    for tick in range(45, 65):
        bulk(scheduler, 1, "x")
        all_now(scheduler, tick * 0.1)
    assert scheduler.full_rate == pytest.approx(25_000_000, rel=0.05)


def test_links_that_stood_still_are_given_little_until_they_prove_their_rate_again() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 50_000_000, 0.0, 1.0, 1)
    fill(scheduler, 1)
    scheduler.next(61.0)
    assert scheduler.limit == MIN_QUEUE
    drain_at(scheduler, 50_000_000, 61.0, 61.5, 1)
    assert scheduler.rate > 40_000_000


def test_a_limit_of_the_tunnel_bounds_what_waits_at_once() -> None:
    scheduler = Scheduler[str]()
    drain_at(scheduler, 50_000_000, 0.0, 1.0, 1)
    scheduler.set_limit(10_000_000)
    assert scheduler.limit == int(10_000_000 * QUEUE_TARGET)
    scheduler.set_limit(0)
    assert scheduler.limit == pytest.approx(50_000_000 * QUEUE_TARGET, rel=0.1)
