"""Keeps a log while a gateway runs: says when it was opened and closed, and at least every hour that it is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import structlog

from gateway.audit.canonical import Value
from gateway.audit.journal import Journal
from landbridge.errors import NotRecorded

logger = structlog.get_logger()

# Seconds after which a log in which nothing happened says so: whoever looks can tell silence from loss.
IDLE = 3600.0


@contextlib.asynccontextmanager
async def keeping(directory: Path, origin: str, idle: float = IDLE) -> AsyncIterator[Journal]:
    """The log `origin`, open for as long as the context is. Raises as `Storage.open`, and NotRecorded if it cannot be written."""
    journal = await Journal.open(directory, origin)
    try:
        program: Value = {"name": "landbridge-gateway", "version": version("landbridge")}
        await journal.record("log.started", seen={"log": _head(journal), "program": program})
        logger.info("audit.started", log=origin, entries=journal.signed.checkpoint.size, key=str(journal.key))
        beating = asyncio.create_task(_beat(journal, idle), name="audit-idle")
        try:
            yield journal
        finally:
            beating.cancel()
            await asyncio.wait([beating])
            with contextlib.suppress(NotRecorded):  # then the next start says enough
                await journal.record("log.stopped", seen={"log": _head(journal)})
    finally:
        await journal.close()


async def _beat(journal: Journal, idle: float) -> None:
    while True:
        before = journal.signed.checkpoint.size
        await asyncio.sleep(idle)
        if journal.signed.checkpoint.size == before:
            try:
                await journal.record("log.idle", seen={"log": _head(journal)})
            except NotRecorded as error:
                logger.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect


def _head(journal: Journal) -> Value:
    checkpoint = journal.signed.checkpoint
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
