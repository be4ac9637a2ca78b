"""Ships the log to where others collect logs, while a gateway runs: one task and one thread for each target, beside everything else.

    log on the disk --cursor--> read a batch -> send ... send -> confirm -> cursor, durably

At least once: the cursor is moved only behind what a target has confirmed, so that a crash or a broken connection sends entries again, and
loses none. Receivers tell them apart by origin and sequence. Nothing here is asked or waited for by those who record: a target
that is slow, away or full costs no migration anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.audit import reading, ship_cursor
from gateway.audit.entry import Recorded
from gateway.audit.export import ocsf, plain
from gateway.audit.fields import stamp
from gateway.audit.files import Directory
from gateway.audit.ship_cursor import Cursor
from gateway.audit.ship_targets import JsonLines, SyslogTls, Target
from gateway.config import ShipSettings
from landbridge.errors import LandbridgeError, NotFound

logger = structlog.get_logger()

# Seconds between two looks for new entries.
LOOK = 1.0
# Entries that are read at once, and that may have been sent without being confirmed.
BATCH = 256
MOST_UNCONFIRMED = 4096
# Seconds before a target that has failed is tried again: at first, and at most; up to as much again by chance.
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
# Seconds that a target has for what was sent when the gateway stops.
FAREWELL = 2.0

_Result = TypeVar("_Result")


class Shipper:
    """One target, and how far it is. All of one event loop, but for what `_thread` does meanwhile."""

    def __init__(self, log: Path, name: str, target: Target, size: Callable[[], int]) -> None:
        self._log, self._name, self._target, self._size = log, name, target, size
        self._thread = ThreadPoolExecutor(1, f"audit-ship-{name}")
        self._cursor = Cursor(str(target))
        # Up to where entries were sent, and when the first of those was that are not confirmed.
        self._sent = 0
        self._unconfirmed_since: float | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=f"audit-ship-{self._name}")

    async def close(self) -> None:
        """Stop; what was sent has a moment to be confirmed, and is sent again at the next start if it was not."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FAREWELL)
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        retry = FIRST_RETRY
        await self._load()
        while not self._stopping.is_set():
            try:
                busy = await self._advance()
            except (OSError, LandbridgeError, ValueError) as error:
                await self._failed(error)
                await self._pause(retry * (1 + random.random()))  # noqa: S311 - no secret
                retry = min(LAST_RETRY, retry * 2)
            else:
                retry = FIRST_RETRY
                if not busy:
                    await self._pause(LOOK)
        with contextlib.suppress(OSError, LandbridgeError):
            await self._confirm()
        await self._in_thread(self._target.close)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _load(self) -> None:
        try:
            self._cursor = await self._in_thread(ship_cursor.load, self._log, self._name, str(self._target))
        except (OSError, ValueError) as error:
            logger.warning("audit.ship.began_anew", target=self._name, error=f"its cursor is damaged: {error}")
        if self._cursor.next > self._size():
            logger.warning("audit.ship.began_anew", target=self._name, error="the log is shorter than what was shipped")
            self._cursor = dataclasses.replace(self._cursor, next=0)
        self._sent = self._cursor.next

    async def _advance(self) -> bool:
        """One step; False if there is nothing to do now."""
        size = self._size()
        if self._sent == size or self._sent - self._cursor.next >= MOST_UNCONFIRMED:
            return await self._confirm_if_due()
        batch = await self._in_thread(_read, self._log, self._sent, size)
        first = batch[0].sequence
        if first > self._sent:
            await self._skip(first)
        await self._in_thread(self._target.send, batch)
        self._sent = first + len(batch)
        if self._unconfirmed_since is None:
            self._unconfirmed_since = asyncio.get_running_loop().time()
        return True

    async def _confirm_if_due(self) -> bool:
        if self._unconfirmed_since is None:
            return False
        full = self._sent - self._cursor.next >= MOST_UNCONFIRMED
        waited = asyncio.get_running_loop().time() - self._unconfirmed_since
        if not full and waited < self._target.confirm_after:
            return False
        await self._confirm()
        return True

    async def _confirm(self) -> None:
        if self._unconfirmed_since is None:
            return
        await self._in_thread(self._target.confirm)
        self._unconfirmed_since = None
        if self._cursor.problem:
            logger.info("audit.ship.goes_on", target=self._name, shipped=self._sent, since=self._cursor.since)
        await self._save(next=self._sent, confirmed=stamp(datetime.now(UTC)), problem="", since="")

    async def _skip(self, first: int) -> None:
        """Entries before `first` are gone: that is said, and the rest goes on."""
        await self._confirm()
        lost = first - self._cursor.next
        logger.error("audit.ship.lost", target=self._name, entries=lost, below=first, error="pruned before they went")
        await self._save(next=first, lost=self._cursor.lost + lost)

    async def _failed(self, error: Exception) -> None:
        """Everything since the last confirmation is sent again."""
        said = error.message if isinstance(error, LandbridgeError) else getattr(error, "strerror", "") or str(error)
        self._sent, self._unconfirmed_since = self._cursor.next, None
        await self._in_thread(self._target.close)
        behind = self._size() - self._sent
        since = self._cursor.since or stamp(datetime.now(UTC))
        logger.warning("audit.ship.failed", target=self._name, error=said, behind=behind, since=since)
        with contextlib.suppress(OSError):  # then only the program's log says it
            await self._save(problem=said, since=since)

    async def _save(self, **changed: int | str) -> None:
        made = dataclasses.replace(self._cursor, **changed)  # type: ignore[arg-type]  # its own fields
        await self._in_thread(ship_cursor.save, self._log, self._name, made)
        self._cursor = made

    async def _in_thread(self, do: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)


def _read(log: Path, start: int, size: int) -> list[Recorded]:
    """Entries from `start` on, or from the first that is not pruned; without a gap between them, at least one."""
    found: list[Recorded] = []
    for index, entry in itertools.islice(reading.entries(Directory(log), start, size), BATCH):
        if found and index != found[-1].sequence + 1:
            break
        found.append(entry)
    if not found:
        raise NotFound(f"the entries from {start} on are missing: see `landbridge audit verify`")
    return found


class Shipping:
    """All targets of one gateway. `size` says how many entries of the log are durable."""

    def __init__(self, log: Path, targets: Mapping[str, ShipSettings], size: Callable[[], int]) -> None:
        self._shippers = [Shipper(log, name, target_of(settings), size) for name, settings in targets.items()]

    def start(self) -> None:
        """Begin to ship."""
        for shipper in self._shippers:
            shipper.start()

    async def close(self) -> None:
        """Stop."""
        await asyncio.gather(*(shipper.close() for shipper in self._shippers))


def target_of(settings: ShipSettings) -> Target:
    """Where a table of the configuration says that the log goes."""
    if settings.file is not None:
        return JsonLines(settings.file, ocsf.lines if settings.format == "ocsf" else plain.jsonl)
    assert settings.syslog is not None  # noqa: S101 - the settings are checked
    assert settings.ca is not None  # noqa: S101 - likewise
    name = settings.server_name or settings.syslog.host
    return SyslogTls(
        settings.syslog,
        name,
        settings.ca,
        settings.certificate,
        settings.key,
        ends_without_close_notify=settings.ends_without_close_notify,
    )
