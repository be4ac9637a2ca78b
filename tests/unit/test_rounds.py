"""What goes round by itself ends when it is closed, whatever it is at."""

from __future__ import annotations

import asyncio

from gateway.rounds import Rounds


class Counting(Rounds):
    def __init__(self) -> None:
        self.rounds = 0
        self.went = asyncio.Event()
        self.was_given_up = False

    async def _go_round(self) -> None:
        self.rounds += 1
        self.went.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_given_up = True
            raise


async def test_it_goes_round_from_start_to_close() -> None:
    counting = Counting()
    counting.start()
    await counting.went.wait()
    assert not counting.was_given_up
    await counting.close()
    assert (counting.rounds, counting.was_given_up) == (1, True)


async def test_what_was_never_begun_can_be_closed() -> None:
    counting = Counting()
    await counting.close()
    assert counting.rounds == 0
