"""What disk channels brought is on stable storage before the gate opens: by this host, since the source's QEMU was told not to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from agent.relay import Carrier
from agent.storing import Storing
from agent.traffic import Traffic
from landbridge.errors import HypervisorError

SECONDS = 10.0


@dataclass
class Pages:
    has_hidden_flushes: bool = True


@dataclass
class Calls:
    is_held: bool = True


@dataclass
class Channel:
    """As much of a carrier as is looked at."""

    kind: str = "disk"
    pages: Pages | None = field(default_factory=Pages)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Calls | None = None
    has_arrived: bool = True
    is_broken: bool = False
    whole: list[bool] = field(default_factory=list)

    def pass_gate(self, whole: bool) -> None:
        assert self.calls is not None
        self.calls.is_held = False
        self.whole.append(whole)


class Disks:
    """A destination whose flushes the test lets end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *channels: Channel) -> None:
        self.rpc = Channel("rpc", None, calls=Calls())
        self.traffic = Traffic(carriers=cast("list[Carrier]", [self.rpc, *channels]))
        self.storing = Storing(self.traffic, Path("/run/m/disk.sock"), "host east-1")
        self.traffic.is_stored = self.storing.is_done
        self.begun: list[str] = []
        self._ends: asyncio.Queue[HypervisorError | None] = asyncio.Queue()

        async def in_thread(_function: Any, path: str) -> None:
            self.begun.append(path)
            if error := await self._ends.get():
                raise error

        monkeypatch.setattr(asyncio, "to_thread", in_thread)

    async def ends(self, error: HypervisorError | None = None) -> None:
        self._ends.put_nowait(error)
        flushing = self.storing._flushing
        assert flushing is not None
        await asyncio.wait_for(flushing, SECONDS)


async def test_the_gate_opens_only_when_the_flush_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel(), Channel("ram", None))
    disks.traffic.look_at_gate()
    assert disks.rpc.whole == []
    await disks.ends()
    assert disks.rpc.whole == [True]
    assert disks.begun == ["/run/m/disk.sock"]


async def test_a_flush_begins_with_the_end_of_the_last_disk_and_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = Channel(), Channel()
    disks = Disks(monkeypatch, one, other, Channel("ram", None, has_arrived=False))
    one.ended.set()
    disks.storing.look()
    assert disks.storing._flushing is None
    other.ended.set()
    disks.storing.look()
    await disks.ends()
    assert disks.traffic.is_whole() is None  # the memory is still on its way
    disks.storing.look()
    assert disks.storing.is_done()
    assert len(disks.begun) == 1


async def test_a_disk_that_comes_later_is_flushed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel())
    assert disks.storing.is_done() is None
    await disks.ends()
    assert disks.storing.is_done()
    disks.traffic.carriers.append(cast("Carrier", Channel()))
    assert disks.storing.is_done() is None
    await disks.ends()
    assert disks.storing.is_done()
    assert len(disks.begun) == 2


async def test_disks_that_cannot_be_flushed_close_the_gate_and_are_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel(), Channel("ram", None))
    disks.traffic.look_at_gate()
    await disks.ends(HypervisorError("Disk vda cannot be flushed: it answers with error 5."))
    assert disks.rpc.whole == [False]
    assert disks.traffic.failure == (
        "the disks could not be written to stable storage on host east-1: Disk vda cannot be flushed: it answers with error 5."
    )


async def test_a_flush_that_fails_since_the_move_is_given_up_is_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel())
    disks.rpc.calls = Calls(is_held=False)
    disks.storing._begin()
    await disks.ends(HypervisorError("Its QEMU hung up."))
    assert disks.traffic.failure is None


async def test_nothing_is_flushed_where_the_source_may_do_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel(pages=Pages(has_hidden_flushes=False)), Channel("ram", None))
    disks.traffic.look_at_gate()
    assert disks.rpc.whole == [True]
    assert disks.storing._flushing is None
    await disks.storing.close()


async def test_who_stops_waits_for_no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch, Channel())
    assert disks.storing.is_done() is None
    await disks.storing.close()
    assert disks.rpc.whole == []
