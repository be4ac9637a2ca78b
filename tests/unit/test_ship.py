"""Shipping of the log: nothing is missing at a target, whatever fails between it and the cursor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import structlog

from gateway.audit import ship, ship_cursor
from gateway.audit.entry import Recorded
from gateway.audit.export import ocsf
from gateway.audit.journal import commit
from gateway.audit.ship import Shipper, Shipping, target_of
from gateway.audit.ship_cursor import Cursor
from gateway.audit.ship_targets import JsonLines, SyslogTls, Target
from gateway.audit.storage import Storage
from gateway.config import AuditSettings, ShipSettings
from landbridge.errors import ConfigError, Unreachable
from tests.unit.audit_logs import BRU, entry, written

pytestmark = pytest.mark.timeout(20)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK", "FIRST_RETRY", "LAST_RETRY"):
        monkeypatch.setattr(ship, name, 0.002)


class Receiver:
    """A target in memory; `send` and `confirm` fail while they are told to."""

    confirm_after = 0.0

    def __init__(self) -> None:
        self.got: list[int] = []
        self.confirmed = 0
        self.failing: set[str] = set()
        self.failed = 0
        self.sent = 0

    def __str__(self) -> str:
        return "memory"

    def _enter(self, what: str) -> None:
        if what in self.failing:
            self.failed += 1
            raise Unreachable(f"nobody to {what} to")

    def send(self, entries: Sequence[Recorded]) -> None:
        self._enter("send")
        self.got += [each.sequence for each in entries]
        self.sent += 1

    def confirm(self) -> None:
        self._enter("confirm")
        self.confirmed = len(self.got)

    def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def shipping(log: Path, target: Target, size: Callable[[], int] | int) -> AsyncIterator[Shipper]:
    shipper = Shipper(log, "siem", target, size if callable(size) else lambda: size)
    shipper.start()
    try:
        yield shipper
    finally:
        await shipper.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - what happens, happens in other threads
            await asyncio.sleep(0.002)


def cursor(log: Path) -> Cursor:
    return ship_cursor.load(log, "siem", "memory")


async def test_entries_are_shipped_in_order_and_the_cursor_follows(tmp_path: Path) -> None:
    written(tmp_path, 600)
    storage = Storage.open(tmp_path, BRU)
    receiver = Receiver()
    async with shipping(tmp_path, receiver, lambda: storage.size):
        await until(lambda: cursor(tmp_path).next == 600)
        commit(storage, [entry(number) for number in range(600, 603)])
        await until(lambda: cursor(tmp_path).next == 603)
    storage.close()
    assert receiver.got == list(range(603))
    assert cursor(tmp_path).confirmed
    assert (tmp_path / ".state/ship/siem.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["send", "confirm"])
async def test_what_was_not_confirmed_is_sent_again_and_the_trouble_is_told(tmp_path: Path, what: str) -> None:
    written(tmp_path, 10)
    receiver = Receiver()
    receiver.failing = {what}
    with structlog.testing.capture_logs() as logs:
        async with shipping(tmp_path, receiver, 10):
            await until(lambda: receiver.failed > 2)
            await until(lambda: cursor(tmp_path).problem != "")
            assert (cursor(tmp_path).next, cursor(tmp_path).problem) == (0, f"nobody to {what} to")
            receiver.failing = set()
            await until(lambda: cursor(tmp_path).next == 10)
    assert set(receiver.got) == set(range(10))
    assert receiver.got[-10:] == list(range(10))
    assert (cursor(tmp_path).problem, cursor(tmp_path).since) == ("", "")
    told = next(each for each in logs if each["event"] == "audit.ship.failed")
    assert (told["target"], told["behind"], told["error"]) == ("siem", 10, f"nobody to {what} to")
    assert [each["shipped"] for each in logs if each["event"] == "audit.ship.goes_on"] == [10]


async def test_a_gateway_that_starts_again_goes_on_behind_what_was_confirmed(tmp_path: Path) -> None:
    written(tmp_path, 10)
    receiver = Receiver()
    receiver.confirm_after = 3600
    async with shipping(tmp_path, receiver, 4):
        await until(lambda: receiver.got == [0, 1, 2, 3])
        assert cursor(tmp_path).next == 0
    # An orderly end confirms.
    assert cursor(tmp_path).next == 4
    receiver.failing = {"confirm"}
    async with shipping(tmp_path, receiver, 7):
        await until(lambda: receiver.got[4:] == [4, 5, 6])
    assert cursor(tmp_path).next == 4
    receiver.failing = set()
    async with shipping(tmp_path, receiver, 10):
        await until(lambda: receiver.got[7:] == [4, 5, 6, 7, 8, 9])


async def test_a_target_that_does_not_answer_holds_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "FAREWELL", 0.05)
    written(tmp_path, 3)
    blocked, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Stuck(Receiver):
        def send(self, entries: Sequence[Recorded]) -> None:
            loop.call_soon_threadsafe(blocked.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    async with shipping(tmp_path, Stuck(), 3):
        other = Shipper(tmp_path, "other", receiver := Receiver(), lambda: 3)
        other.start()
        await asyncio.wait_for(blocked.wait(), 5)
        await until(lambda: receiver.got == [0, 1, 2])
        await other.close()
    release.set()
    assert cursor(tmp_path).next == 0


async def test_a_long_backlog_is_confirmed_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "MOST_UNCONFIRMED", 512)
    written(tmp_path, 1400)
    receiver = Receiver()
    receiver.confirm_after = 3600
    async with shipping(tmp_path, receiver, 1400):
        await until(lambda: len(receiver.got) == 1400)
        assert cursor(tmp_path).next == 1024
    assert receiver.got == list(range(1400))


async def test_entries_that_were_pruned_before_they_went_are_counted_and_told(tmp_path: Path) -> None:
    written(tmp_path, 600)
    storage = Storage.open(tmp_path, BRU)
    storage.prune(512)
    storage.close()
    receiver = Receiver()
    receiver.failing = {"send"}
    with structlog.testing.capture_logs() as logs:
        async with shipping(tmp_path, receiver, 600):
            await until(lambda: receiver.failed > 2)
            receiver.failing = set()
            await until(lambda: cursor(tmp_path).next == 600)
    assert receiver.got == list(range(512, 600))
    assert cursor(tmp_path).lost == 512
    assert [(each["entries"], each["below"]) for each in logs if each["event"] == "audit.ship.lost"] == [(512, 512)]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"next": -1}', b'{"target": "x", "next": "7"}'])
async def test_a_damaged_cursor_begins_anew(tmp_path: Path, raw: bytes) -> None:
    written(tmp_path, 3)
    path = ship_cursor.path_of(tmp_path, "siem")
    path.parent.mkdir()
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="remove it, and all is shipped again"):
        list(ship_cursor.all_of(tmp_path))
    receiver = Receiver()
    async with shipping(tmp_path, receiver, 3):
        await until(lambda: cursor_is(tmp_path, 3))
    assert receiver.got == [0, 1, 2]


def cursor_is(log: Path, number: int) -> bool:
    with contextlib.suppress(ValueError):
        return cursor(log).next == number
    return False


async def test_a_cursor_beyond_the_log_begins_anew(tmp_path: Path) -> None:
    written(tmp_path, 3)
    ship_cursor.path_of(tmp_path, "siem").parent.mkdir()
    ship_cursor.save(tmp_path, "siem", Cursor("memory", next=99))
    receiver = Receiver()
    async with shipping(tmp_path, receiver, 3):
        await until(lambda: cursor(tmp_path).next == 3)
    assert receiver.got == [0, 1, 2]


async def test_a_damaged_log_is_shipped_up_to_the_damage_and_that_is_told(tmp_path: Path) -> None:
    written(tmp_path, 300)
    (tmp_path / "tile/entries/001.p/44").write_bytes(b"\0\4null" * 44)
    receiver = Receiver()
    async with shipping(tmp_path, receiver, 300):
        await until(lambda: "entry 256 is damaged" in cursor(tmp_path).problem)
    assert set(receiver.got) == set(range(256))


# A file.


def batch(log: Path, start: int, end: int) -> list[Recorded]:
    return [Recorded.decode(raw) for raw in Storage.entries(reader(log), start, end)]


def reader(log: Path) -> Storage:
    storage = Storage.open(log, BRU)
    storage.close()
    return storage


def lines(path: Path) -> list[int]:
    return [json.loads(line)["sequence"] for line in path.read_text().splitlines()]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "log", 4)
    path = tmp_path / "audit.jsonl"
    target = JsonLines(path)
    target.send(batch(tmp_path / "log", 0, 2))
    path.rename(tmp_path / "audit.jsonl.1")
    target.send(batch(tmp_path / "log", 2, 4))
    assert (lines(tmp_path / "audit.jsonl.1"), lines(path)) == ([0, 1], [2, 3])
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "log", 4)
    path = tmp_path / "audit.jsonl"
    target = JsonLines(path)
    target.send(batch(tmp_path / "log", 0, 2))
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:-50])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            target.send(batch(tmp_path / "log", 2, 4))
    assert lines(path) == [0, 1]
    target.send(batch(tmp_path / "log", 2, 4))
    assert lines(path) == [0, 1, 2, 3]


def test_half_a_line_that_a_lost_power_left_spoils_no_other(tmp_path: Path) -> None:
    written(tmp_path / "log", 2)
    path = tmp_path / "audit.jsonl"
    path.write_text('{"half": ')
    JsonLines(path).send(batch(tmp_path / "log", 0, 2))
    assert path.read_text().splitlines()[0] == '{"half": '
    assert [json.loads(line)["sequence"] for line in path.read_text().splitlines()[1:]] == [0, 1]


# The configuration.


def test_a_table_makes_the_target_that_it_says() -> None:
    target = target_of(ShipSettings.model_validate({"syslog": "siem:6514", "ca": "/ca.pem"}))
    assert isinstance(target, SyslogTls)
    assert (str(target), target._server_name) == ("syslog at siem:6514", "siem")
    assert target._ends_without_close_notify is False
    said = {"syslog": "siem:6514", "ca": "/ca.pem", "ends_without_close_notify": True}
    target = target_of(ShipSettings.model_validate(said))
    assert isinstance(target, SyslogTls)
    assert target._ends_without_close_notify is True
    with pytest.raises(ValueError, match="ends_without_close_notify go with syslog only"):
        ShipSettings.model_validate({"file": "/a", "ends_without_close_notify": True})
    target = target_of(ShipSettings.model_validate({"file": "/var/log/a.jsonl", "format": "ocsf"}))
    assert isinstance(target, JsonLines)
    assert (str(target), target._lines) == ("/var/log/a.jsonl", ocsf.lines)


def test_the_configuration_in_the_documentation_is_accepted() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/audit.md").read_text(), re.DOTALL)
    ship = AuditSettings.model_validate(tomllib.loads(block)["audit"]).ship
    assert [str(target_of(each)) for each in ship.values()] == [
        "syslog at siem.example.org:6514",
        "/var/log/landbridge/audit.jsonl",
    ]


async def test_each_target_has_a_cursor_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "log", 3)
    settings = {name: ShipSettings.model_validate({"file": str(tmp_path / name)}) for name in ("one", "two")}
    ships = Shipping(tmp_path / "log", settings, lambda: 3)
    ships.start()
    await until(
        lambda: sorted(name for name, each in ship_cursor.all_of(tmp_path / "log") if each.next == 3) == ["one", "two"]
    )
    await ships.close()
    assert lines(tmp_path / "one") == lines(tmp_path / "two") == [0, 1, 2]
