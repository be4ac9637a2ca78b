"""What gateways of a site record of identities, on every database: each sees what another has written, and a token is used once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from certs.identity import Site
from certs.trust import Denial
from gateway.identities.records import CertificateRecord, Place, Records
from gateway.store import Store, TunnelLimits
from landbridge.config import Address

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A, B = Site("example.org", "a"), Site("example.org", "b")
HOST = "spiffe://example.org/site/a/host/h1"
ISSUER = "spiffe://example.org/site/a/issuer/gw1"


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Records, Records]]:
    """Those of two gateways."""
    stores = [await asyncio.to_thread(Store, url, name) for name in ("gw-1", "gw-2")]
    try:
        yield Records(stores[0]), Records(stores[1])
    finally:
        for store in stores:
            store.close()


def certificate(serial: str, identity: str = HOST, days: int = 0) -> CertificateRecord:
    issued = NOW + timedelta(days=days)
    return CertificateRecord(serial, identity, issued, issued + timedelta(days=1), renews_itself=True)


async def test_of_many_who_use_a_token_at_once_one_succeeds(two: tuple[Records, Records]) -> None:
    one, other = two
    soon = datetime.now(UTC) + timedelta(hours=1)
    await one.add_token("id", b"hash", "h1", "alice", soon)
    assert await other.token("id") == (b"hash", "h1", soon.replace(microsecond=0), False)
    used = await asyncio.gather(*(records.use_token("id") for records in (one, other, one, other)))
    assert sorted(used) == [False, False, False, True]
    found = await one.token("id")
    assert found is not None
    assert found[3]


async def test_a_token_that_has_expired_goes_when_another_is_made(two: tuple[Records, Records]) -> None:
    one, other = two
    await one.add_token("old", b"hash", "h1", "alice", datetime.now(UTC) - timedelta(seconds=2))
    await other.add_token("new", b"hash", "h2", "alice", datetime.now(UTC) + timedelta(hours=1))
    assert await one.token("old") is None
    assert await one.token("nobody's") is None


async def test_the_newest_certificate_of_an_identity_is_kept_whatever_comes_last(two: tuple[Records, Records]) -> None:
    one, other = two
    await one.add_certificate(certificate("1"))
    await other.add_certificate(certificate("2", days=1))
    await one.add_certificate(certificate("1"))  # seen again, by a gateway that has not heard of the newer one
    await one.add_certificate(certificate("2", days=1))
    assert await one.certificates() == [certificate("2", days=1)]


async def test_all_issuers_that_have_not_expired_are_kept(two: tuple[Records, Records]) -> None:
    one, _ = two
    days = (datetime.now(UTC) - NOW).days
    for serial, more in (("a", -9), ("b", 1), ("c", 2)):
        await one.add_certificate(certificate(serial, ISSUER, days + more))
    assert [each.serial for each in await one.certificates()] == ["b", "c"]


async def test_a_denial_is_for_every_gateway_and_the_later_moment_counts(two: tuple[Records, Records]) -> None:
    one, other = two
    later = NOW + timedelta(days=1)
    for since in (NOW, later):
        await one.add_denial(Denial(HOST, A, since))
    await other.add_denial(Denial(HOST, B, NOW))
    assert await other.denials() == {Denial(HOST, A, later), Denial(HOST, B, NOW)}


async def test_roots_hosts_sites_and_addresses_are_those_that_were_written_last(two: tuple[Records, Records]) -> None:
    one, other = two
    here, there = Address("10.1.0.11", 7443), Address("fd00::1", 7444)
    for pem in (b"old", b"new"):
        await one.save_roots(str(A), pem)
    assert await other.roots() == {str(A): b"new"}
    for control in (there, here):
        await one.add_host("h1", control, there)
    assert await other.hosts() == [Place("h1", (here,), (there,))]
    for tunnel in ((), (here, there)):
        await one.join_site(str(B), b"new", "b", [here], tunnel)
    assert await other.sites() == [Place("b", (here,), (here, there))]
    await one.save_endpoints("gw-1", {"peers": here, "enrolment": None})
    await other.save_endpoints("gw-2", {"peers": there, "enrolment": there})
    assert await one.endpoints("peers") == [here, there]
    assert await one.endpoints("enrolment") == [there]


async def test_two_gateways_that_write_the_same_row_at_once_both_succeed(two: tuple[Records, Records]) -> None:
    denials = [Denial(f"{number:x}", A, NOW) for number in range(1, 9)]
    await asyncio.gather(*(records.add_denial(denial) for denial in denials for records in two))
    assert await two[0].denials() == set(denials)


async def test_a_removed_host_is_gone_with_the_tokens_that_it_could_come_back_by(two: tuple[Records, Records]) -> None:
    one, other = two
    here, soon = Address("10.1.0.11", 7443), datetime.now(UTC) + timedelta(hours=1)
    for name in ("h1", "h2"):
        await one.add_host(name, here, here)
        await one.add_token(f"of {name}", b"hash", name, "alice", soon)
    await other.remove_host("h1")
    assert [place.name for place in await one.hosts()] == ["h2"]
    assert await one.token("of h1") is None
    assert not await one.use_token("of h1")
    assert await one.use_token("of h2")
    await one.add_host("h1", here, here)
    assert {place.name for place in await other.hosts()} == {"h1", "h2"}


async def test_a_site_that_was_left_is_brought_back_by_joining_and_by_nothing_else(
    two: tuple[Records, Records],
) -> None:
    one, other = two
    here, there = Address("10.1.0.11", 7443), Address("10.1.0.12", 7443)
    await one.join_site(str(B), b"root", "b", [here], [here])
    await one.save_roots(str(A), b"own")
    await other.move_site("b", [there], [there])
    assert await one.sites() == [Place("b", (there,), (there,))]
    for records in two:  # by both at the same time, say
        await records.leave_site(str(B), "b")
    # Another gateway has not heard of it, and has just followed what the site told.
    await one.save_roots(str(B), b"newer root")
    await one.move_site("b", [here], [here])
    assert await one.roots() == {str(A): b"own"}
    assert await one.sites() == []
    assert await one.departures() == {str(B)}
    await other.join_site(str(B), b"newest root", "b", [here], ())
    assert await one.roots() == {str(A): b"own", str(B): b"newest root"}
    assert (await one.sites(), await one.departures()) == ([Place("b", (here,), ())], frozenset())


async def test_what_was_set_for_the_tunnel_to_a_site_goes_with_the_site(url: str) -> None:
    store = await asyncio.to_thread(Store, url, "gw-1")
    for site in ("b", "c"):
        await store.limit_tunnel(site, TunnelLimits(1000, 2))
    await Records(store).leave_site(str(B), "b")
    assert list(await store.tunnel_limits()) == ["c"]
    store.close()
