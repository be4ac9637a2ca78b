"""How a channel that is over tells the other agent so, and when it leaves."""

from __future__ import annotations

import asyncio

import pytest

from agent import farewell
from agent.farewell import Farewell
from landbridge.channel import Channel
from landbridge.frame import Frame, FrameType
from tests.unit.channels import carry, ends, finish, frames_of, give, pair
from tests.unit.wires import SECONDS

# Seconds: no test lasts as long.
LONG = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FAREWELL", 0.02), ("TELLING", LONG), ("LINGER", LONG)):
        monkeypatch.setattr(farewell, name, seconds)


class Said:
    """A channel's farewell, and what becomes of it."""

    def __init__(self, channel: Channel) -> None:
        self.opened = 0
        self.left = asyncio.Event()
        self.farewell = Farewell(channel, "the ram channel", open_again=self.open_again, leave=self.left.set)

    def open_again(self) -> None:
        self.opened += 1

    def go_on(self, outage_limit: float = LONG, *, is_linked: bool = True) -> None:
        self.farewell.go_on(outage_limit, is_linked=is_linked)

    async def leaves(self) -> float:
        """Seconds until it does."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(SECONDS):
            await self.left.wait()
        assert self.farewell.over.is_set()
        return loop.time() - began


def opened_long_ago() -> Channel:
    """One whose other end was not heard for long."""
    opener, _ = pair()
    assert asyncio.get_running_loop().time() > 10.0
    return opener


async def test_what_the_other_end_has_given_up_is_left_as_soon_as_the_last_frames_have_gone() -> None:
    _, acceptor = pair()
    acceptor.reset("it was given up")
    said = Said(acceptor)
    said.go_on()
    assert said.farewell.over.is_set()
    assert await said.leaves() >= 0.02


async def test_the_end_that_was_called_lingers_until_it_hears_that_the_other_one_knows() -> None:
    opener, acceptor = pair()
    finish(opener, acceptor)
    acknowledgement, close = frames_of(opener)
    give([acknowledgement], acceptor)
    said = Said(acceptor)
    said.go_on()
    assert said.farewell.over.is_set()
    await asyncio.sleep(0.1)
    assert not said.left.is_set()
    give([close], acceptor)
    said.go_on()
    await said.leaves()


async def test_an_opener_that_nobody_has_heard_asks_again_and_stays_until_it_was_told_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "TELLING", 0.2)
    channel = opened_long_ago()
    channel.reset("it was given up")
    said = Said(channel)
    said.go_on()
    said.go_on()
    assert said.opened == 1
    assert not said.farewell.over.is_set()
    assert await said.leaves() >= 0.2


async def test_but_not_for_longer_than_the_other_agent_waits() -> None:
    channel = opened_long_ago()
    channel.reset("it was given up")
    said = Said(channel)
    said.go_on(0.01, is_linked=False)
    assert said.opened == 0  # there is nobody to ask
    await said.leaves()


async def test_an_opener_whose_other_end_was_heard_just_now_has_told_enough_by_its_last_frame() -> None:
    opener, acceptor = ends()
    now = asyncio.get_running_loop().time()
    opener.connect(now)
    carry(opener, acceptor, now)
    carry(acceptor, opener, now)
    opener.reset("it was given up")
    said = Said(opener)
    said.go_on()
    assert said.opened == 0
    await said.leaves()


async def test_an_opener_that_hears_that_the_other_end_knows_leaves() -> None:
    channel = opened_long_ago()
    channel.reset("it was given up")
    said = Said(channel)
    said.go_on()
    channel.receive_frame(Frame(FrameType.RESET, 7), 1.0)
    said.go_on()
    await said.leaves()


async def test_leaving_at_once_sets_no_timer_off_any_more() -> None:
    _, acceptor = pair()
    acceptor.reset("it was given up")
    said = Said(acceptor)
    said.go_on()
    said.farewell.leave()
    assert said.left.is_set()
    said.left.clear()
    await asyncio.sleep(0.1)
    assert not said.left.is_set()
