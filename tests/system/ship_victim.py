"""A process that ships a log to a file until it is killed: `python -m tests.system.ship_victim LOG FILE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.audit import reading, ship, ship_cursor
from gateway.audit.files import Directory
from gateway.audit.ship import Shipper
from gateway.audit.ship_targets import JsonLines


async def main(log: Path, path: Path) -> None:
    """Say when it begins, and when all is confirmed; then wait."""
    ship.BATCH = 16
    size = reading.head(Directory(log)).checkpoint.size
    shipper = Shipper(log, "siem", JsonLines(path), lambda: size)
    shipper.start()
    print("begun", flush=True)
    while not ship_cursor.path_of(log, "siem").exists() or ship_cursor.load(log, "siem", "").next < size:  # noqa: ASYNC110 - a thread does it
        await asyncio.sleep(0.01)
    print("done", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
