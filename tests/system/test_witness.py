"""Two sites that cosign each other's audit logs: what one has seen of the other's history, the other cannot take back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from certs.living import LivingIdentity
from gateway.audit import cosigning, witness
from gateway.audit.checkpoint import Signed
from gateway.audit.entry import Recorded
from gateway.audit.files import Directory, Still
from gateway.audit.note import Key
from gateway.audit.reading import last
from gateway.audit.receipt import Receipt, check
from gateway.audit.storage import Storage
from gateway.audit.verify import Trust, verify
from gateway.audit.witness_keeper import Witness
from gateway.audit.witness_records import Record
from gateway.migration.states import State
from gateway.remote import PeerRemote
from landbridge.errors import Conflict, PermissionDenied
from landbridge.v1.audit_pb2 import AddCheckpointRequest
from tests.system.sites import SiteUnderTest, TwoSites, eventually
from tests.system.test_audit import DISK, MEMORY, place

pytestmark = pytest.mark.timeout(30)


def origin(site: SiteUnderTest) -> str:
    return f"landbridge.test/site/{site.name}/gateway/gw-1"


def key(site: SiteUnderTest, name: str = "log") -> Key:
    return Key.parse((place(site) / f"{name}.vkey").read_text().strip())


def cosigned(site: SiteUnderTest, by: SiteUnderTest) -> int:
    """How many entries of a site's log another one has cosigned."""
    path = place(site) / "cosigned"
    if not path.exists():
        return 0
    signed = Signed.decode(path.read_bytes())
    signed.check(key(site))
    return signed.checkpoint.size if signed.cosigned([key(by, "witness")]) else 0


def entries(site: SiteUnderTest, event: str) -> list[Recorded]:
    return [entry for _, entry in last(Still(Directory(place(site))), 1000) if entry.event.name == event]


def size(site: SiteUnderTest) -> int:
    return Signed.decode((place(site) / "checkpoint").read_bytes()).checkpoint.size


async def witnessed(two: TwoSites) -> None:
    """Wait until each site has cosigned all that the other one has, what happens after each start among it."""
    for site in (two.fra, two.ams):
        for event in ("tunnel.opened", "agent.joined"):
            await eventually(lambda site=site, event=event: bool(entries(site, event)))  # type: ignore[misc]  # a lambda with defaults
    await eventually(
        lambda: cosigned(two.fra, two.ams) == size(two.fra) and cosigned(two.ams, two.fra) == size(two.ams)
    )


async def alarms(site: SiteUnderTest, of: SiteUnderTest) -> list[str]:
    return list((await site.operator.sites())[of.name].alarms)


def evidence(entry: Recorded) -> tuple[Signed, Signed]:
    """The two heads in an entry, made again from their lines."""
    log = entry.facts("seen")["log"]
    assert isinstance(log, dict)
    heads = []
    for name in ("note", "other_note"):
        text, signatures = log[name][:3], log[name][3:]
        heads.append(Signed.decode("\n".join([*text, "", *signatures, ""]).encode()))
    return heads[0], heads[1]


async def test_each_site_cosigns_the_others_log_within_seconds_and_the_logs_come_to_rest(two: TwoSites) -> None:
    await witnessed(two)
    for site, other in ((two.fra, two.ams), (two.ams, two.fra)):
        report = verify(Still(Directory(place(site))), Trust(key=key(site), witnesses=(key(other, "witness"),)))
        assert (report.findings, [each.name for each, _ in report.cosigned]) == ([], [origin(other)])
        # One entry for the first contact, and none for any cosignature after it.
        assert [entry.text("seen", "log", "origin") for entry in entries(site, "log.cosigned")] == [origin(other)]
    at_rest = size(two.fra), size(two.ams)
    await asyncio.sleep(10 * cosigning.PAUSE)
    assert (size(two.fra), size(two.ams)) == at_rest
    assert (place(two.fra) / ".state/witness/ed25519.pem").stat().st_mode & 0o777 == 0o600
    assert not await alarms(two.fra, two.fra) + await alarms(two.fra, two.ams)


async def test_a_receipt_holds_heads_that_both_witnesses_have_cosigned(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    made: list[Receipt] = []

    async def receipt() -> bool:
        try:
            made.append(Receipt.decode(await two.fra.operator.receipt(id_)))
        except Conflict:
            return False
        return True

    await eventually(receipt)
    witnesses = [key(site, "witness") for site in (two.fra, two.ams)]
    assert check(made[-1], [key(two.fra), key(two.ams)], witnesses) == []


async def test_a_witness_that_is_away_stops_nothing_and_a_receipt_goes_without_it(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosigning, "ANSWER", 0.5)
    await witnessed(two)
    before = cosigned(two.fra, two.ams)

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Witness, "add_of_peer", silent)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED

    async def receipt() -> bool:
        try:
            made = Receipt.decode(await two.fra.operator.receipt(id_))
        except Conflict:
            return False
        assert check(made, [key(two.fra), key(two.ams)]) == []
        assert check(made, [key(two.fra), key(two.ams)], [key(two.ams, "witness")])
        return True

    await eventually(receipt)
    assert cosigned(two.fra, two.ams) == before


def rewrite(directory: Path, log: str, keep: int, more: int) -> None:
    """What somebody does who has the gateway: the same key, the first entries, and then another history."""
    old = Storage.open(directory, log)
    kept = list(old.entries(0, keep))
    old.close()
    shutil.rmtree(directory / "tile")
    for name in ("checkpoint", "cosigned"):
        (directory / name).unlink()
    new = Storage.open(directory, log)
    new.commit(kept)
    filler = kept[-1]
    for number in range(more):
        new.commit([filler.replace(f'"sequence":{keep - 1}'.encode(), f'"sequence":{keep + number}'.encode())])
    new.close()


async def test_a_site_that_rewrites_its_log_is_caught_by_the_other_with_both_heads(two: TwoSites) -> None:
    await witnessed(two)
    length = cosigned(two.fra, two.ams)
    await two.fra.gateway.stop()
    rewrite(place(two.fra), origin(two.fra), 2, 40)
    assert verify(Still(Directory(place(two.fra)))).findings == []
    with capture_logs() as logged:
        await two.fra.gateway.start()
        await eventually(lambda: bool(entries(two.ams, "log.forked")))
    (entry,) = entries(two.ams, "log.forked")
    recorded, shown = evidence(entry)
    # Evidence: the log itself has signed both, and they cannot be of one history.
    recorded.check(key(two.fra))
    shown.check(key(two.fra))
    assert recorded.checkpoint.size == length
    assert shown.checkpoint.size >= 42
    assert entry.text("outcome") == "failure"
    (alarm,) = await alarms(two.ams, two.fra)
    assert alarm.startswith(f"site fra has shown two histories: its log {origin(two.fra)} was rewritten")
    assert recorded.checkpoint.root.hex() in alarm
    assert shown.checkpoint.root.hex() in alarm
    assert any(each["event"] == "log.forked" and each["security"] for each in logged)
    # The rewritten log learns it too, from a head that it has signed itself.
    await eventually(lambda: bool(entries(two.fra, "log.forked")))
    assert (await alarms(two.fra, two.fra))[0].startswith("this site has shown two histories")
    # No second head is cosigned, and the alarm outlives the gateway.
    assert cosigned(two.fra, two.ams) == 0
    await two.ams.gateway.restart()
    assert await alarms(two.ams, two.fra) == [alarm]
    assert len(entries(two.ams, "log.forked")) == 1


async def test_a_log_that_was_restored_from_an_old_backup_is_caught_on_both_sides(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "LATE", 1)
    backup = two.fra.directory / "backup"
    await two.fra.gateway.stop()
    shutil.copytree(place(two.fra), backup)
    await two.fra.gateway.start()
    await witnessed(two)
    two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    await two.fra.operator.ended(await two.fra.operator.migrate("web-01", "ams"))
    await witnessed(two)
    await two.fra.gateway.stop()
    shutil.rmtree(place(two.fra))
    shutil.copytree(backup, place(two.fra))
    await two.fra.gateway.start()
    await eventually(lambda: bool(entries(two.ams, "log.forked")) and bool(entries(two.fra, "log.forked")))
    (own,) = await alarms(two.fra, two.fra)
    (theirs,) = await alarms(two.ams, two.fra)
    assert "was rolled back to an older state" in own
    assert "was rolled back to an older state" in theirs
    for site in (two.fra, two.ams):
        recorded, shown = evidence(entries(site, "log.forked")[0])
        assert recorded.checkpoint.size > shown.checkpoint.size
        recorded.check(key(two.fra))
        shown.check(key(two.fra))


async def test_a_log_with_another_key_is_refused_and_raises_the_alarm(two: TwoSites) -> None:
    await witnessed(two)
    before = key(two.fra)
    await two.fra.gateway.stop()
    shutil.rmtree(place(two.fra))
    await two.fra.gateway.start()
    await eventually(lambda: bool(entries(two.ams, "log.forked")))
    assert key(two.fra) != before
    (alarm,) = await alarms(two.ams, two.fra)
    assert "is signed by another key than before" in alarm
    assert cosigned(two.fra, two.ams) == 0
    # Once the operators of both sites have agreed that the log is new, its record is moved away.
    for path in (place(two.ams) / ".state/witness").glob("*.json"):
        if Record.decode(path.read_bytes()).key == before:
            path.rename(path.with_suffix(".old"))
    await eventually(lambda: cosigned(two.fra, two.ams) > 0)
    assert await alarms(two.ams, two.fra) == []


async def test_a_peer_that_brings_the_log_of_another_gateway_or_site_is_refused(two: TwoSites) -> None:
    await witnessed(two)
    signed = Signed.decode((place(two.fra) / "checkpoint").read_bytes())
    request = AddCheckpointRequest(
        key=str(key(two.fra)), old_size=signed.checkpoint.size, checkpoint=signed.encode(), proof=[]
    )
    # The other gateway of fra, and ams itself, bring the log of fra's first one.
    for site, name, to in ((two.fra, "gw-2", two.ams), (two.ams, "gw-1", two.fra)):
        peer = PeerRemote(to.name, [to.listens["gw-1"].peers], LivingIdentity(site.identity(name)))
        with pytest.raises(PermissionDenied, match="may bring the log"):
            await peer.ask(peer.stub.AddCheckpoint, request)
        await peer.close()
