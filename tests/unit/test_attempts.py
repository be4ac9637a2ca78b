"""An address may try so often, and no more; nobody else is disturbed by it."""

from __future__ import annotations

import pytest

from certs.attempts import MOST_ADDRESSES, Attempts, address_of, network_of


def test_a_burst_is_admitted_and_then_as_many_as_the_rate_gives() -> None:
    attempts = Attempts(3, 0.5)
    assert [attempts.take("192.0.2.1", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert attempts.is_spent("192.0.2.1", 11.0)
    assert not attempts.is_spent("192.0.2.1", 12.0)
    assert [attempts.take("192.0.2.1", 12.0) for _ in range(2)] == [True, False]
    # It never saves up more than the burst.
    assert [attempts.take("192.0.2.1", 9999.0) for _ in range(4)] == [True, True, True, False]


def test_one_address_that_tries_too_often_costs_others_nothing() -> None:
    attempts = Attempts(1, 1.0)
    for _ in range(100):
        attempts.take("192.0.2.1", 0.0)
    assert attempts.take("192.0.2.2", 0.0)
    assert not attempts.is_spent("192.0.2.3", 0.0)


def test_a_flood_is_news_once_until_it_has_let_up() -> None:
    attempts = Attempts(1, 1.0)
    assert attempts.take("192.0.2.1", 0.0)
    assert not attempts.take("192.0.2.1", 0.0)
    assert [attempts.is_news("192.0.2.1", 0.0) for _ in range(3)] == [True, False, False]
    assert attempts.take("192.0.2.1", 5.0)
    assert attempts.is_news("192.0.2.1", 5.0)


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    attempts = Attempts(2, 1.0)
    assert attempts.take("192.0.2.1", 100.0)
    assert attempts.take("192.0.2.1", 50.0)
    assert not attempts.take("192.0.2.1", 50.0)


def test_memory_is_bounded_and_whoever_is_quiet_for_longest_is_forgotten() -> None:
    attempts = Attempts(1, 0.0)
    assert attempts.take("192.0.2.1", 0.0)
    for number in range(MOST_ADDRESSES):
        attempts.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
    assert len(attempts._buckets) == MOST_ADDRESSES
    assert attempts.take("192.0.2.1", 2.0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("/run/socket", "/run/socket"),
    ],
)
def test_whoever_has_one_address_of_a_network_of_ipv6_has_all(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:[2001:db8::7]:5000", "2001:db8::7"),
        ("ipv6:%5B2001:db8::7%5D:5000", "2001:db8::7"),
        ("unix:/run/x", "unix:/run/x"),
        ("", ""),
    ],
)
def test_the_address_in_what_grpc_calls_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
