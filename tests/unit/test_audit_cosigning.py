"""How a log has itself cosigned: by witnesses that answer, are silent, or lie."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from certs.identity import Identity, Role
from gateway.audit import checkpoint as heads
from gateway.audit import cosigning
from gateway.audit.checkpoint import Checkpoint, Signed
from gateway.audit.cosigning import Cosigning
from gateway.audit.files import Directory, Still
from gateway.audit.journal import Journal
from gateway.audit.note import KeyType, Signer
from gateway.audit.reading import last
from gateway.audit.verify import Trust, verify
from gateway.audit.witness import Status
from gateway.audit.witness_keeper import Witness
from gateway.audit.witness_records import Records
from gateway.remote import PeerRemote
from landbridge.errors import Unreachable
from landbridge.v1.audit_pb2 import AddCheckpointRequest, AddCheckpointResponse
from tests.unit.audit_logs import WITNESS
from tests.unit.test_audit_witness import MALLORY

BRU = "example.org/site/bru/gateway/gw-1"
AMS = "example.org/site/ams/gateway/gw-1"


class Peer:
    """The gateways of another site, each a witness in this process; `lie` changes what they answer."""

    def __init__(self, *witnesses: Witness) -> None:
        self.each = {f"192.0.2.{number}:7443": _Stub(witness) for number, witness in enumerate(witnesses)}
        self.asked = 0
        self.lie: Callable[[AddCheckpointResponse], AddCheckpointResponse] | None = None
        # By the numbers of those who are silent.
        self.silent: set[int] = set()

    async def ask(self, method: _Stub, request: AddCheckpointRequest, timeout: float) -> AddCheckpointResponse:
        self.asked += 1
        if [*self.each.values()].index(method) in self.silent:
            raise Unreachable("site ams does not answer")
        caller = Identity("example.org", "bru", Role.GATEWAY, "gw-1")
        answer = await method.witness.add_of_peer(request, caller)
        return self.lie(answer) if self.lie else answer


class _Stub:
    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.AddCheckpoint = self


class World:
    """A log of bru, and the witnesses of ams."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def __aenter__(self) -> World:
        self.theirs = [await self._opened(f"ams-{number}", f"{AMS[:-1]}{number}") for number in (1, 2)]
        self.peer = Peer(*(witness for _, witness in self.theirs))
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        for journal, witness in self.theirs:
            witness.close()
            await journal.close()

    async def open(self) -> None:
        self.journal, self.own = await self._opened("bru", BRU)
        self.cosigning = Cosigning(self.journal, lambda: {"ams": cast("PeerRemote", self.peer)}, self.own)

    async def close(self) -> None:
        self.own.close()
        await self.journal.close()

    async def _opened(self, name: str, origin: str) -> tuple[Journal, Witness]:
        journal = await Journal.open(self.directory / name, origin)
        records = Records(self.directory / name)
        return journal, Witness(journal, records, records.signers(origin, ml_dsa=False), {}, time.time)

    @property
    def keys(self) -> list[object]:
        return [key for _, witness in self.theirs for key in witness.keys]

    def kept(self) -> Signed:
        return Signed.decode((self.directory / "bru/cosigned").read_bytes())

    def events(self, name: str = "bru") -> list[str]:
        return [entry.event.name for _, entry in last(Still(Directory(self.directory / name)), 99)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as made:
        yield made


async def test_every_gateway_of_the_other_site_cosigns_and_it_is_kept_beside_the_log(world: World) -> None:
    await world.journal.record("log.idle")
    signed = await world.cosigning.head()
    keys = tuple(key for _, witness in world.theirs for key in witness.keys)
    assert [each.name for each in signed.cosigned(keys)] == [key.name for key in keys]
    assert world.kept() == signed
    report = verify(Still(Directory(world.directory / "bru")), Trust(witnesses=keys))
    assert (report.findings, len(report.cosigned)) == ([], 2)
    # What has not changed is not asked for again, and what has is proved to go on.
    asked = world.peer.asked
    assert await world.cosigning.head() == signed
    assert world.peer.asked == asked
    await world.journal.record("log.idle")
    assert (await world.cosigning.head()).checkpoint.size == 2
    assert world.peer.asked == asked + 2
    # No cosignature makes an entry.
    assert world.events() == ["log.idle", "log.idle"]
    assert world.events("ams-1") == ["log.cosigned"]


async def test_rounds_begin_when_the_log_has_changed_and_at_least_every_so_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosigning, "LOOK", 0.01)
    monkeypatch.setattr(cosigning, "PAUSE", 0.05)
    world.cosigning.start()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.01)

    path = world.directory / "bru/cosigned"
    await until(path.exists)
    await world.journal.record("log.idle")
    await until(lambda: world.kept().checkpoint.size == 1)
    asked = world.peer.asked
    await asyncio.sleep(0.2)
    assert world.peer.asked == asked
    monkeypatch.setattr(cosigning, "EVERY", 0.05)
    await until(lambda: world.peer.asked > asked)
    await world.cosigning.close()


async def test_a_gateway_that_is_started_again_learns_what_was_recorded(world: World) -> None:
    await world.journal.record("log.idle")
    await world.cosigning.head()
    await world.close()
    await world.open()
    await world.journal.record("log.idle")
    signed = await world.cosigning.head()
    assert len(signed.note.signatures) == 3


async def test_who_is_silent_holds_nothing_up_and_what_it_has_cosigned_is_kept_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.journal.record("log.idle")
    both = await world.cosigning.head()
    world.peer.silent = {1}
    await world.journal.record("log.idle")
    with capture_logs() as logged:
        one = await world.cosigning.head()
        await world.cosigning.head()
    assert (one.checkpoint.size, len(one.note.signatures)) == (2, 2)
    # Said once.
    assert [each["reason"] for each in logged if each["event"] == "cosigning.refused"] == [
        "the gateway of site ams at 192.0.2.1:7443 does not answer: it cosigns nothing until it does"
    ]
    assert world.kept() == both
    monkeypatch.setattr(cosigning, "SILENCE", 0)
    monkeypatch.setattr(cosigning, "PAUSE", 0)
    await world.cosigning.head()
    assert (world.kept().checkpoint.size, len(world.kept().note.signatures)) == (2, 2)
    world.peer.silent = {0, 1}
    await world.journal.record("log.idle")
    nobody = await world.cosigning.head()
    assert (nobody.checkpoint.size, len(nobody.note.signatures)) == (3, 1)
    assert world.kept().checkpoint.size == 2


async def test_those_who_wait_while_one_is_silent_share_a_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.peer.silent = {1}
    await world.journal.record("log.idle")
    got = await asyncio.gather(*(world.cosigning.head() for _ in range(20)))
    assert world.peer.asked == 2
    assert {len(each.note.signatures) for each in got} == {2}
    # What is newer is asked for at once, and the silent one again after a while.
    await world.journal.record("log.idle")
    assert (await world.cosigning.head()).checkpoint.size == 2
    assert world.peer.asked == 4
    world.peer.silent = set()
    monkeypatch.setattr(cosigning, "PAUSE", 0)
    assert len((await world.cosigning.head()).note.signatures) == 3


FORGED = heads.cosign(Checkpoint(AMS, 1, bytes(32)), WITNESS, 1)


# Of the site itself, and good; more than a note has room for.
_SIGNERS = [Signer(AMS, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(40)]
MANY = [str(each.cosigning) for each in _SIGNERS]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cosignatures": "nonsense"}, "gave a cosignature that is none"),
        ({"cosignatures": ""}, "gave a cosignature that is none"),
        ({"cosignatures": FORGED.encode()}, "gave no cosignature of its own"),
        ({"keys": ["nonsense"]}, "gave a cosignature that is none"),
        ({"keys": []}, "gave no cosignature of its own"),
        ({"keys": MANY, "cosignatures": "of all of them"}, "gave no cosignature of its own"),
        # Signed well, by somebody who is no gateway of that site.
        ({"keys": [str(WITNESS.key(KeyType.COSIGNATURE))]}, "gave no cosignature of its own"),
        ({"status": 409, "recorded": b""}, "shows no head that this log has signed"),
        ({"status": 422, "recorded": b"nonsense"}, "shows no head that this log has signed"),
        ({"status": 403, "reason": "not this one"}, "does not cosign: not this one"),
        ({"status": 999}, "does not cosign: 999"),
    ],
)
async def test_what_a_witness_answers_is_checked_and_raises_no_alarm(
    world: World, changes: dict[str, object], said: str
) -> None:
    def lie(answer: AddCheckpointResponse) -> AddCheckpointResponse:
        if changes.get("keys") == MANY:
            head = world.journal.signed.checkpoint
            changes["cosignatures"] = "".join(heads.cosign(head, each, 1).encode() for each in _SIGNERS)
        changed = AddCheckpointResponse()
        changed.CopyFrom(answer)
        for name in changes:
            changed.ClearField(name)  # type: ignore[arg-type]  # names of its fields
        changed.MergeFrom(AddCheckpointResponse(**changes))  # type: ignore[arg-type]  # as above
        return changed

    world.peer.lie = lie
    await world.journal.record("log.idle")
    with capture_logs() as logged:
        signed = await world.cosigning.head()
    assert len(signed.note.signatures) == 1
    reasons = [each["reason"] for each in logged if each["event"] == "cosigning.refused"]
    assert [said in reason for reason in reasons] == [True, True]
    assert not (world.directory / "bru/cosigned").exists()
    assert world.events() == ["log.idle"]


async def test_one_witness_takes_no_room_of_the_others(world: World) -> None:
    """It signs the same head again and again, each at another time; the last one that is asked has its place still."""

    def lie(answer: AddCheckpointResponse) -> AddCheckpointResponse:
        if answer.keys[0] != str(world.theirs[0][1].keys[0]):
            return answer
        head = world.journal.signed.checkpoint
        lines = "".join(heads.cosign(head, _SIGNERS[0], at).encode() for at in range(1, 65))
        return AddCheckpointResponse(status=Status.COSIGNED, keys=MANY[:1], cosignatures=lines)

    world.peer.lie = lie
    await world.journal.record("log.idle")
    signed = await world.cosigning.head()
    assert len(signed.note.signatures) == 3


async def test_no_witness_makes_the_gateway_remember_keys_without_end(world: World) -> None:
    def lie(_: AddCheckpointResponse) -> AddCheckpointResponse:
        signer = Signer(AMS, Ed25519PrivateKey.generate())
        line = heads.cosign(world.journal.signed.checkpoint, signer, 1).encode()
        return AddCheckpointResponse(status=Status.COSIGNED, keys=[str(signer.cosigning)], cosignatures=line)

    world.peer.lie = lie
    for _ in range(cosigning.KNOWN_KEYS + 3):
        await world.journal.record("log.idle")
        await world.cosigning.head()
    assert [len(each) for each in world.cosigning._keys.values()] == [cosigning.KNOWN_KEYS] * 2


async def test_a_cosignature_of_a_time_to_come_is_refused_and_freezes_nothing(world: World) -> None:
    ahead = cosigning.SILENCE + 60

    def lie(_: AddCheckpointResponse) -> AddCheckpointResponse:
        line = heads.cosign(world.journal.signed.checkpoint, _SIGNERS[0], int(time.time() + ahead)).encode()
        return AddCheckpointResponse(status=Status.COSIGNED, keys=MANY[:1], cosignatures=line)

    world.peer.lie = lie
    await world.journal.record("log.idle")
    with capture_logs() as logged:
        assert len((await world.cosigning.head()).note.signatures) == 1
    assert "gave a cosignature of a time to come" in str(logged)
    assert not (world.directory / "bru/cosigned").exists()
    ahead = cosigning.SILENCE - 60
    await world.journal.record("log.idle")
    assert len((await world.cosigning.head()).note.signatures) == 2


async def test_no_witness_can_make_up_a_history_that_this_log_has_shown(world: World) -> None:
    """It has to show a head that this log has signed; another's, or one that was signed by another key, is none."""
    made_up = heads.sign(Checkpoint(BRU, 99, bytes(32)), Signer(BRU, MALLORY.private))
    world.peer.lie = lambda _: AddCheckpointResponse(status=Status.CONFLICT, recorded=made_up.encode())
    await world.journal.record("log.idle")
    await world.cosigning.head()
    assert await world.own.alarms() == {}
    assert world.events() == ["log.idle"]


async def test_a_log_that_was_rolled_back_learns_it_from_a_head_that_it_has_signed(world: World) -> None:
    await world.journal.record("log.idle")
    await world.close()
    shutil.copytree(world.directory / "bru", world.directory / "backup")
    await world.open()
    for _ in range(3):
        await world.journal.record("log.idle")
    before = (await world.cosigning.head()).checkpoint
    await world.close()
    shutil.rmtree(world.directory / "bru")
    shutil.move(world.directory / "backup", world.directory / "bru")
    await world.open()
    for _ in range(2):
        await world.cosigning.head()
    (alarm,) = (await world.own.alarms())[""]
    assert alarm.startswith(f"this site has shown two histories: its log {BRU} was rolled back to an older state")
    assert f"recorded were {before.size} entries with the root {before.root.hex()}" in alarm
    assert world.events() == ["log.idle", "log.forked"]
    # It goes on from there, past what was recorded, and so has rewritten what it had shown: the witnesses see it too.
    for _ in range(5):
        await world.journal.record("log.idle")
    assert len((await world.cosigning.head()).note.signatures) == 1
    assert len((await world.own.alarms())[""]) == 2
    assert "was rewritten" in (await world.theirs[0][1].alarms())["bru"][0]
