"""How a channel that is over on this host takes leave of the other agent, which would else wait for as long as the outage limit.

told      the other agent knows, or has said it itself: the last frames have FAREWELL to leave
opener    it says so on one link after another until it hears that the other end knows, for TELLING or the outage limit at most; one
          that was given up says it once, if the other end was heard within HEARD_LATELY
called    after a good end it stays for LINGER, and answers what the other end repeats
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from landbridge.channel import Channel, ChannelState

log = structlog.get_logger()

# Seconds.
FAREWELL = 0.5
TELLING = 60.0
HEARD_LATELY = 3.0
LINGER = 30.0


class Farewell:
    """Of one channel. Owned by the event loop."""

    def __init__(
        self, channel: Channel, name: str, *, open_again: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        """`open_again` has the link say once more what the channel is for; `leave` closes it."""
        # Set when nothing more is to be said to the other agent.
        self.over = asyncio.Event()
        self._channel = channel
        self._name = name
        self._open_again = open_again
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._leaving: asyncio.TimerHandle | None = None
        # Until when the other agent is told that the channel is over; None until it is.
        self._tells_until: float | None = None
        self._telling: asyncio.TimerHandle | None = None

    def go_on(self, outage_limit: float, *, is_linked: bool) -> None:
        """Leave the link once the last frames had time to leave, and again if another one has come since."""
        if self._goes_on_telling(min(TELLING, outage_limit), is_linked=is_linked):
            return
        self.over.set()
        is_known = self._channel.state is ChannelState.RESET or self._channel.may_be_forgotten
        leave_at = self._loop.time() + (FAREWELL if is_known else LINGER)
        if self._leaving is None or leave_at < self._leaving.when():
            if self._leaving is not None:
                self._leaving.cancel()
            self._leaving = self._loop.call_at(leave_at, self.leave)

    def _goes_on_telling(self, patience: float, *, is_linked: bool) -> bool:
        if not self._channel.may_be_unknown:
            return False
        now = self._loop.time()
        if self._tells_until is None:
            was_given_up = self._channel.state is ChannelState.RESET
            if was_given_up and is_linked and now - self._channel.heard_at < HEARD_LATELY:
                self._tells_until = now
                return False
            self._tells_until = now + patience
            self._telling = self._loop.call_at(self._tells_until, self._give_up)
            if was_given_up and is_linked:
                self._open_again()
        return now < self._tells_until

    def _give_up(self) -> None:
        log.warning("channel.end_not_told", channel=self._name)
        self._tells_until = self._loop.time()
        self.go_on(0.0, is_linked=False)

    def leave(self) -> None:
        """Nothing more is said."""
        self.over.set()
        self._leave()  # first: the link may still ask for frames
        for timer in (self._leaving, self._telling):
            if timer is not None:
                timer.cancel()
        self._leaving = self._telling = None
