"""Changes of what rules, for the audit log: each is an entry with the hashes before and after, also of what changed while nothing ran.

What was recorded last is in .state/changes.json below the log's directory. It is written after the entry, so that a crash between the
two has the change recorded twice, and never not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from gateway.audit.canonical import Value
from gateway.audit.entry import clean
from gateway.audit.fields import digest
from gateway.audit.journal import Journal
from gateway.audit.storage import STATE
from gateway.rounds import Rounds
from landbridge import durable
from landbridge.errors import NotRecorded

log = structlog.get_logger()

# Seconds between two looks.
LOOK = 1.0
_FILE = "changes.json"

# What there is now, by what it is called: a hash each.
Subjects = Callable[[], Mapping[str, str]]


def sha256(*parts: str | bytes) -> str:
    """The hash of a few parts, each with its length."""
    made = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        made.update(len(raw).to_bytes(8, "big") + raw)
    return made.hexdigest()


class Changes(Rounds):
    """Looks at what is to be recorded, by the name of the event. Owned by the event loop."""

    def __init__(self, journal: Journal, directory: Path, watched: Mapping[str, Subjects]) -> None:
        """`directory` is the log's."""
        self._journal = journal
        self._path = directory / STATE / _FILE
        self._watched = watched
        self._recorded = _load(self._path)

    async def close(self) -> None:
        """Look once more, and then no more."""
        await super().close()
        with contextlib.suppress(NotRecorded):  # then the next start tells
            await self.look()

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self.look()
            except NotRecorded as error:
                log.error("audit.failed", error=error.message)  # noqa: TRY400 - no defect

    async def look(self) -> None:
        """Record what is not as it was. Raises NotRecorded, and takes it up again with the next look then."""
        for event, subjects in self._watched.items():
            now, known = dict(subjects()), self._recorded.setdefault(event, {})
            for subject in sorted({*now, *known}):
                before, after = known.get(subject, ""), now.get(subject, "")
                if before == after:
                    continue
                change: dict[str, Value] = {"subject": clean(subject)}
                change |= {"before_sha256": before} if before else {}
                change |= {"after_sha256": after} if after else {"comment": "it is gone"}
                await self._journal.record(event, seen={"change": change})
                known.pop(subject, None)
                known |= {subject: after} if after else {}
                await asyncio.to_thread(self._save)

    def _save(self) -> None:
        try:
            durable.write(self._path, json.dumps(self._recorded, sort_keys=True).encode())
        except OSError as error:
            raise NotRecorded(f"{self._path} cannot be written: {error.strerror}") from error


def _load(path: Path) -> dict[str, dict[str, str]]:
    """What was recorded last; nothing, if that cannot be read: then it is recorded anew."""
    try:
        found = json.loads(path.read_bytes())
        return {
            event: {subject: value for subject, value in subjects.items() if not digest(value)}
            for event, subjects in found.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}
