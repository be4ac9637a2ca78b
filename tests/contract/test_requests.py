"""Requests that wait for approvals, on every database: bound to exactly what was asked for, answered once by each, used once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.authorization import requests as module
from gateway.authorization.request import digest
from gateway.authorization.requests import Requests, approvers
from gateway.store import Store
from landbridge.errors import AlreadyExists, Conflict, LandbridgeError, NotFound, UsageError
from landbridge.v1.authorization_pb2 import ApprovalRequest, RequestState
from landbridge.v1.types_pb2 import Finding, Migration
from tests.unit.policies import who

DAY = timedelta(days=1)


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def wanted(vm: str = "web-1", host: str = "ams-1") -> Migration:
    return Migration(
        vm=vm,
        vm_uuid=f"uuid of {vm}",
        source_site="fra",
        source_host="fra-1",
        destination_site="ams",
        destination_host=host,
        requested_by=str(who("alice")),
        domain_sha256="d" * 64,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def two(url: str, clock: Clock) -> AsyncIterator[tuple[Requests, Requests]]:
    """Those of two gateways that share a store."""
    stores = [await asyncio.to_thread(Store, url, name) for name in ("gw-1", "gw-2")]
    yield Requests(stores[0], clock), Requests(stores[1], clock)
    for store in stores:
        store.close()


@pytest.fixture
def requests(two: tuple[Requests, Requests]) -> Requests:
    return two[0]


async def opened(requests: Requests, migration: Migration | None = None, claimed_by: str = "") -> ApprovalRequest:
    return await requests.open(migration or wanted(), DAY, "", claimed_by)


async def test_a_request_has_what_was_asked_for_and_is_bound_to_it(
    two: tuple[Requests, Requests], clock: Clock
) -> None:
    asked = wanted()
    asked.findings.append(Finding(code="clock-offset"))
    made = await two[0].open(asked, DAY, "ams-1", "lon")
    assert await two[1].find(made.id) == made
    assert made.sha256 == digest(asked)
    assert (made.wanted_host, made.claimed_by, made.state) == ("ams-1", "lon", RequestState.REQUEST_STATE_WAITING)
    assert made.migration == wanted()
    assert made.created_at.ToDatetime(UTC) == clock.now
    assert made.expires_at.ToDatetime(UTC) == clock.now + DAY


async def test_a_request_keeps_what_approvals_are_bound_to_and_nothing_that_is_put_beside_it(
    requests: Requests,
) -> None:
    told = wanted()
    told.labels.tags.append("b")
    told.policy.deadline_ms = 0
    asked = Migration.FromString(told.SerializeToString())
    asked.reason, asked.id, asked.limit = "x" * 100_000, "m-1", 5
    asked.summary.total_ms = 1
    unknown = b"\xfa\x7f\x05extra"  # field 2047, which no version has
    kept = await opened(requests, Migration.FromString(asked.SerializeToString() + unknown))
    assert kept.migration == told
    assert kept.migration.SerializeToString(deterministic=True) == told.SerializeToString(deterministic=True)
    assert digest(kept.migration) == digest(asked) == kept.sha256


async def test_a_request_that_is_too_large_is_not_kept(requests: Requests) -> None:
    large = wanted()
    large.vm_uuid = "x" * module.MOST_BYTES
    with pytest.raises(UsageError, match="is refused: at most 65536"):
        await opened(requests, large)
    assert await requests.all() == []


async def test_exactly_the_same_is_one_request_and_anything_else_another(requests: Requests) -> None:
    first = await opened(requests)
    assert (await opened(requests)).id == first.id
    assert (await opened(requests, wanted(host="ams-2"))).id != first.id
    assert len(await requests.all()) == 2


async def test_the_newest_comes_first(requests: Requests, clock: Clock) -> None:
    for vm in ("a", "b", "c"):
        await opened(requests, wanted(vm))
        clock.now += timedelta(seconds=1)
    assert [each.migration.vm for each in await requests.all()] == ["c", "b", "a"]


async def test_approvals_are_kept_in_their_order_and_counted_once_each(
    two: tuple[Requests, Requests], clock: Clock
) -> None:
    request = await opened(two[0])
    await two[0].approve(request, who("dave"))
    clock.now += timedelta(seconds=1)
    approved = await two[1].approve(request, who("carol"))
    assert [each.approver for each in approved.approvals] == [str(who("dave")), str(who("carol"))]
    assert approvers(approved) == {who("carol"), who("dave")}
    with pytest.raises(AlreadyExists, match=f"{who('carol')} has approved request {request.id} already"):
        await two[0].approve(request, who("carol"))
    assert len((await two[0].find(request.id)).approvals) == 2
    assert approvers(None) == frozenset()


async def test_two_that_approve_at_the_same_time_both_count(two: tuple[Requests, Requests]) -> None:
    request = await opened(two[0])
    await asyncio.gather(two[0].approve(request, who("carol")), two[1].approve(request, who("dave")))
    assert approvers(await two[0].find(request.id)) == {who("carol"), who("dave")}


async def test_a_denial_ends_a_request_and_says_why(requests: Requests) -> None:
    request = await opened(requests)
    denied = await requests.deny(request, who("carol"), "not today")
    assert denied.state == RequestState.REQUEST_STATE_DENIED
    assert (denied.denied_by, denied.denied_because) == (str(who("carol")), "not today")
    for answer in (
        requests.approve(request, who("dave")),
        requests.deny(request, who("dave"), "nor tomorrow"),
        requests.take(request.id, "m-1"),
    ):
        with pytest.raises(Conflict, match=f"request {request.id} is over"):
            await answer
    assert await requests.bound_to(request.sha256) is None
    assert (await opened(requests)).id != request.id


async def test_a_request_is_used_once_and_again_only_by_the_same_migration(two: tuple[Requests, Requests]) -> None:
    request = await opened(two[0])
    await two[0].take(request.id, "m-1")
    await two[1].take(request.id, "m-1")
    with pytest.raises(Conflict, match="is over"):
        await two[1].take(request.id, "m-2")
    used = await two[1].find(request.id)
    assert (used.state, used.used_by) == (RequestState.REQUEST_STATE_USED, "m-1")
    assert await two[1].bound_to(request.sha256) is None
    for answer in (two[0].approve(request, who("dave")), two[0].deny(request, who("dave"), "no")):
        with pytest.raises(Conflict, match="is over"):
            await answer


async def test_of_two_migrations_that_take_it_at_the_same_time_one_gets_it(two: tuple[Requests, Requests]) -> None:
    request = await opened(two[0])
    answers = await asyncio.gather(
        two[0].take(request.id, "m-1"), two[1].take(request.id, "m-2"), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in answers) == ["Conflict", "NoneType"]


async def test_what_is_given_back_can_be_used_by_another(requests: Requests) -> None:
    request = await opened(requests)
    await requests.take(request.id, "m-1")
    await requests.give_back(request.id, "m-2")
    assert (await requests.find(request.id)).used_by == "m-1"
    await requests.give_back(request.id, "m-1")
    await requests.take(request.id, "m-2")


async def test_a_request_expires(requests: Requests, clock: Clock) -> None:
    request = await opened(requests)
    await requests.approve(request, who("carol"))
    clock.now += DAY - timedelta(microseconds=1)
    assert (await requests.find(request.id)).state == RequestState.REQUEST_STATE_WAITING
    clock.now += timedelta(microseconds=1)
    assert (await requests.find(request.id)).state == RequestState.REQUEST_STATE_EXPIRED
    assert await requests.bound_to(request.sha256) is None
    for answer in (
        requests.approve(request, who("dave")),
        requests.deny(request, who("dave"), "no"),
        requests.take(request.id, "m-1"),
    ):
        with pytest.raises(Conflict, match="has expired"):
            await answer


async def test_what_is_long_over_is_forgotten_with_its_approvals(requests: Requests, clock: Clock) -> None:
    old = await opened(requests)
    await requests.approve(old, who("carol"))
    clock.now += DAY + module.KEPT
    await opened(requests, wanted("b"))
    assert len(await requests.all()) == 2
    clock.now += timedelta(microseconds=1)
    await opened(requests, wanted("c"))
    assert [each.migration.vm for each in await requests.all()] == ["c", "b"]
    with pytest.raises(NotFound):
        await requests.find(old.id)


async def test_one_site_cannot_fill_the_store(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    for vm in ("a", "b"):
        await opened(requests, wanted(vm), "lon")
    with pytest.raises(Conflict, match="2 requests wait for approval already"):
        await opened(requests, wanted("c"), "lon")
    await opened(requests, wanted("c"))
    first = next(each for each in await requests.all() if each.claimed_by == "lon")
    await requests.deny(first, who("carol"), "no")
    await opened(requests, wanted("d"), "lon")


async def test_a_request_is_found_by_the_beginning_of_its_id(requests: Requests) -> None:
    request = await opened(requests)
    assert (await requests.find(request.id[:4])).id == request.id
    kinds: tuple[tuple[str, type[LandbridgeError]], ...] = (
        (request.id[:3], UsageError),
        ("", UsageError),
        ("x", NotFound),
    )
    for prefix, kind in kinds:
        with pytest.raises(kind):
            await requests.find(prefix)
