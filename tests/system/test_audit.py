"""What the audit logs of two sites hold of what happens between them, and that nothing happens without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.hypervisor.base import Presence
from certs.living import LivingIdentity
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.note import Key
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.storage import Storage
from gateway.audit.verify import Trust, verify
from gateway.migration import ledger, outages
from gateway.migration.states import State
from gateway.remote import PeerRemote
from landbridge.errors import Conflict, NotFound, NotRecorded
from landbridge.v1.audit_pb2 import GetProofsRequest
from tests.system.sites import SiteUnderTest, TwoSites, eventually

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096


def place(site: SiteUnderTest) -> Path:
    return site.directory / "gw-1-audit"


def recorded(site: SiteUnderTest, migration: str) -> list[Recorded]:
    log = Still(Directory(place(site)))
    assert verify(log).findings == []
    return [entry for _, entry in last(log, 1000) if entry.text("migration") == migration]


async def test_both_sites_record_every_step_of_a_migration(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    await eventually(lambda: "migration.completed" in [each.event.name for each in recorded(two.ams, id_)])
    here, there = recorded(two.fra, id_), recorded(two.ams, id_)
    completed = next(each for each in here if each.event.name == "migration.completed")
    assert here[0].event.name == "migration.requested"
    assert there[0].event.name == "migration.admitted"
    assert {each.origin for each in here} == {"landbridge.test/site/fra/gateway/gw-1"}
    assert here[0].text("actor", "id") == "spiffe://landbridge.test/site/fra/operator/alice"
    assert completed.text("seen", "vm", "name") == "web-01"
    assert int(completed.text("claimed", "bytes_ram")) > len(MEMORY)


async def test_a_gateway_that_is_started_again_goes_on_with_its_log(two: TwoSites) -> None:
    await two.fra.gateway.restart()
    names = [entry.event.name for _, entry in last(Still(Directory(place(two.fra))), 99)]
    kept = [name for name in names if name in {"log.started", "log.stopped"}]
    assert kept == ["log.started", "log.stopped", "log.started"]


async def test_a_tunnel_that_goes_and_comes_back_is_on_record(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "LOOK", 0.02)

    def names() -> list[str]:
        log = Still(Directory(place(two.fra)))
        return [entry.event.name for _, entry in last(log, 99) if entry.event.name.startswith(("tunnel.", "outage."))]

    await eventually(lambda: names() == ["tunnel.opened"])
    await two.ams.gateway.stop()
    await eventually(lambda: names() == ["tunnel.opened", "outage.began"])
    await two.ams.gateway.start()
    await eventually(lambda: names() == ["tunnel.opened", "outage.began", "outage.ended"])


async def test_while_the_log_cannot_be_written_nothing_begins_and_what_runs_is_held(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "STORE_RETRY", 0.05)
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.add_vm("web-02", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = 1_000_000
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_MEMORY)
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def full(*_: object) -> int:
        loop.call_soon_threadsafe(refused.set)
        raise NotRecorded("the audit log cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "commit", full)
        with pytest.raises(NotRecorded, match="No space left on device"):
            await two.fra.operator.migrate("web-02", "ams")
        refused.clear()
        two.fra.hypervisor.hasten()
        await asyncio.wait_for(refused.wait(), 10)
        # The guest runs where it was, or stands still; at the destination, nobody has let it run.
        assert two.ams.hypervisor.presence(vm) is not Presence.RUNNING
    ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED
    await eventually(lambda: two.ams.hypervisor.presence(vm) is Presence.RUNNING)
    assert "migration.completed" in [each.event.name for each in recorded(two.fra, id_)]


async def receipt(site: SiteUnderTest, id_: str) -> Receipt:
    """The receipt, once the other site has heard how it ended."""
    async with asyncio.timeout(10):
        while True:
            try:
                answer = await site.operator.receipt(id_)
            except Conflict:
                await asyncio.sleep(0.02)
            else:
                return Receipt.decode(answer)


async def test_a_receipt_holds_what_both_sites_say_and_verifies_alone(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    keys = [Key.parse((place(site) / "log.vkey").read_text().strip()) for site in (two.fra, two.ams)]
    for site in (two.fra, two.ams):
        made = await receipt(site, id_[:8])
        assert check(made, keys) == []
        assert {part.key for part in made.parts} == set(keys)
        for part in made.parts:
            entries = [Recorded.decode(each.raw) for each in part.entries]
            assert {each.text("migration") for each in entries} == {id_}
            assert "migration.completed" in [each.event.name for each in entries]
    assert verify(Still(Directory(place(two.fra))), Trust(others=tuple(keys)), [made.encode()]).findings == []


async def test_a_migration_that_goes_on_or_is_not_known_has_no_receipt(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.rate = 1_000_000
    id_ = await two.fra.operator.migrate("web-01", "ams")
    with pytest.raises(Conflict, match="has not ended yet"):
        await two.fra.operator.receipt(id_)
    two.fra.hypervisor.hasten()
    await two.fra.operator.ended(id_)
    with pytest.raises(NotFound):
        await two.fra.operator.receipt("ffffffff")


async def test_another_sites_gateway_gets_no_proofs_of_what_is_not_its_own(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.ended(id_)
    await receipt(two.fra, id_)
    peer = PeerRemote("fra", [two.fra.listens["gw-1"].peers], LivingIdentity(two.ams.identity("gw-1")))
    answer = await peer.ask(peer.stub.GetProofs, GetProofsRequest(migration=id_))
    assert len(answer.entries) > 5
    with pytest.raises(NotFound):
        await peer.ask(peer.stub.GetProofs, GetProofsRequest(migration="ffffffff"))
    await peer.close()
