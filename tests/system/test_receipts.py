"""Receipts of sites with several gateways: what stands in the logs of all of them, or what is missing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.walk import RECEIPTS
from gateway.migration import receipt_keeper
from gateway.migration.states import State
from landbridge.errors import Conflict
from tests.system.sites import DISK, MEMORY, WALK, SiteUnderTest, TwoSites, eventually, take_over

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_keeper, "LOOK", 0.05)
    monkeypatch.setattr(receipt_keeper, "RETRY", 0.1)


def log_of(site: SiteUnderTest, gateway: str) -> Path:
    return site.directory / f"{gateway}-audit"


def about(site: SiteUnderTest, gateway: str, id_: str) -> list[int]:
    """The entries of a log about a migration, but for that of its receipt."""
    log = Still(Directory(log_of(site, gateway)))
    found = [entry for _, entry in last(log, 1000) if entry.text("migration") == id_]
    return [entry.sequence for entry in found if entry.event.name != "migration.receipted"]


async def kept(site: SiteUnderTest, gateway: str, id_: str) -> Receipt:
    """The receipt that a gateway keeps, once it does."""
    file = log_of(site, gateway) / RECEIPTS / f"{id_}.receipt"
    await eventually(file.exists)
    return Receipt.decode(file.read_bytes())


def held(receipt: Receipt) -> dict[str, list[int]]:
    """Which entries of which log it has, by site and gateway."""
    return {part.key.name.split("/", 2)[2]: [each.proof.index for each in part.entries] for part in receipt.parts}


async def taken_over(two: TwoSites, monkeypatch: pytest.MonkeyPatch, how: str) -> str:
    """A migration that the source's first gateway has begun and the second one brings to its end; the first is gone."""
    await two.fra.second_gateway.start()
    id_, _ = await take_over(two, monkeypatch, how)
    assert State((await two.fra.second_operator.ended(id_)).state) is State.COMPLETED
    return id_


async def test_a_receipt_of_a_migration_that_was_taken_over_has_the_logs_of_both_gateways_once_the_first_is_back(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = await taken_over(two, monkeypatch, "stopped")
    # Without it, it can be had on request, and says what it lacks; by itself, none is made yet.
    await eventually(lambda: len(about(two.ams, "gw-1", id_)) > 0)
    first = about(two.fra, "gw-1", id_)

    async def lacks() -> bool:
        try:
            receipt = Receipt.decode(await two.fra.second_operator.receipt(id_))
        except Conflict:  # the other site has not heard of its end yet
            return False
        missing = {each.log.rpartition("/")[2]: list(each.entries) for each in receipt.missing}
        return missing.get("gw-1", []) != [] and set(missing["gw-1"]) <= set(first) and check(receipt) == []

    await eventually(lacks)
    assert not (log_of(two.fra, "gw-2") / RECEIPTS).exists()
    await two.fra.gateway.start()
    receipt = await kept(two.fra, "gw-2", id_)
    assert (check(receipt), receipt.missing) == ([], ())
    assert held(receipt) == {
        "fra/gateway/gw-2": about(two.fra, "gw-2", id_),
        "fra/gateway/gw-1": first,
        "ams/gateway/gw-1": about(two.ams, "gw-1", id_),
    }
    names = [entry.event.name for entry in receipt.entries()]
    assert {"migration.requested", "migration.permitted", "migration.completed", "migration.admitted"} <= set(names)
    # Whichever gateway is asked: it is the same evidence.
    assert held(Receipt.decode(await two.fra.operator.receipt(id_))).keys() == held(receipt).keys()


async def test_a_receipt_names_the_entries_of_a_gateway_that_is_lost(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_keeper, "LATE", timedelta(seconds=0.5))
    monkeypatch.setattr(receipt_keeper, "LOST", timedelta(seconds=2))
    id_ = await taken_over(two, monkeypatch, "killed")
    receipt = await kept(two.fra, "gw-2", id_)
    assert check(receipt) == []
    (missing,) = receipt.missing
    assert missing.log == "landbridge.test/site/fra/gateway/gw-1"
    assert set(missing.entries) <= set(about(two.fra, "gw-1", id_))
    assert min(missing.entries) == about(two.fra, "gw-1", id_)[0]
    assert set(held(receipt)) == {"fra/gateway/gw-2", "ams/gateway/gw-1"}
    log = Still(Directory(log_of(two.fra, "gw-2")))
    (told,) = [each for _, each in last(log, 1000) if each.event.name == "migration.receipted"]
    assert str(missing) in told.text("reason")


async def test_what_came_to_two_gateways_of_the_destination_is_in_one_receipt(two: TwoSites) -> None:
    await two.ams.second_gateway.start()
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = WALK
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    await eventually(lambda: len(about(two.ams, "gw-1", id_)) > 0)
    await two.ams.gateway.stop()
    two.fra.hypervisor.hasten()
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    await eventually(lambda: len(about(two.ams, "gw-2", id_)) > 0)
    await two.ams.gateway.start()
    receipt = await kept(two.fra, "gw-1", id_)
    assert (check(receipt), receipt.missing) == ([], ())
    assert held(receipt) == {
        "fra/gateway/gw-1": about(two.fra, "gw-1", id_),
        "ams/gateway/gw-1": about(two.ams, "gw-1", id_),
        "ams/gateway/gw-2": about(two.ams, "gw-2", id_),
    }
