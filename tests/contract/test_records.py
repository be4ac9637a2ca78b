"""What gateways of a site record of identities, on every database: each sees what another has written, and a token is used once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from certs.identity import Site
from certs.trust import Denial
from gateway.identities.records import CertificateRecord, Place, Records
from gateway.store import Store
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
        await one.save_site("b", [here], tunnel)
    assert await other.sites() == [Place("b", (here,), (here, there))]
    await one.save_endpoints("gw-1", {"peers": here, "enrolment": None})
    await other.save_endpoints("gw-2", {"peers": there, "enrolment": there})
    assert await one.endpoints("peers") == [here, there]
    assert await one.endpoints("enrolment") == [there]


async def test_two_gateways_that_write_the_same_row_at_once_both_succeed(two: tuple[Records, Records]) -> None:
    denials = [Denial(f"{number:x}", A, NOW) for number in range(1, 9)]
    await asyncio.gather(*(records.add_denial(denial) for denial in denials for records in two))
    assert await two[0].denials() == set(denials)
