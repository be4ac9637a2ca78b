"""What every step of a migration has in common. The steps themselves: `moving`, `resolving`, `arriving`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.migration.states import Input

# Seconds between two attempts to reach somebody who must answer.
RETRY = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    event: Input
    # The sentence to show from now on; None keeps the present one.
    reason: str | None = None


async def pause() -> None:
    """Wait, before somebody who must answer is asked again."""
    await asyncio.sleep(RETRY)
