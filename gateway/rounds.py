"""Parts of a gateway that go round by themselves for as long as it runs."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod


class Rounds(ABC):
    """Owned by the event loop."""

    # From `start` on.
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to go round."""
        self._task = asyncio.create_task(self._go_round(), name=type(self).__name__)

    async def close(self) -> None:
        """Stop; what is under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def _go_round(self) -> None:
        """Until it is cancelled. An error that nobody takes here ends the rounds."""
