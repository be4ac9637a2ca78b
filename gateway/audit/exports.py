"""That somebody exports entries of an audit log of this site: an entry of its own, before they have the file.

The file is made by whoever exports, from the directory of the log, so that what it holds is a claim; who claims it is not. Any gateway of
a site takes it, also of a log that another one of them keeps: the entry names the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from certs.attempts import Attempts
from certs.identity import Identity, Role, Site
from gateway.audit.canonical import MOST, Value
from gateway.audit.fields import TEXT_CHARACTERS, certified, digest
from gateway.audit.journal import Journal
from landbridge.errors import Conflict, UsageError
from landbridge.v1.audit_pb2 import RecordExportRequest, RecordExportResponse

# Each is written to the log at once, and auditors only read: so many may one of them cause in one go, and as many again in each minute.
ALLOWANCE = 30


class Exports:
    """Of one gateway, of site `here`."""

    def __init__(self, journal: Journal, here: Site, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._journal = journal
        self._here = here
        self._clock = clock
        self._attempts = Attempts(ALLOWANCE, ALLOWANCE / 60.0)

    async def record(self, request: RecordExportRequest, who: Identity) -> RecordExportResponse:
        """Record an export that `who` is about to have.

        Raises UsageError for one that cannot be told of, Conflict for one too many, and NotRecorded.
        """
        ours = str(Identity(self._here.trust_domain, self._here.site, Role.GATEWAY, "x")).removeprefix("spiffe://")[:-1]
        if not request.log.startswith(ours):
            raise UsageError(
                f"{request.log[:200]!r} is no log of site {self._here.site}: ask a gateway of the site whose log it is"
            )
        texts = (request.log, request.filter, request.format)
        numbers = (request.size, request.entries, request.first, request.last)
        if not all(0 < len(text) <= TEXT_CHARACTERS for text in texts) or max(numbers) > MOST or digest(request.sha256):
            raise UsageError("an export is recorded with its log, filter, format and SHA-256: one of them is none")
        if not self._attempts.take(str(who), self._clock()):
            raise Conflict(f"{who} has exported {ALLOWANCE} times: again in a minute")
        query: dict[str, Value] = {
            "filter": request.filter,
            "format": request.format,
            "entries": request.entries,
            "sha256": request.sha256,
        }
        if request.entries:
            query |= {"first": request.first, "last": request.last}
        claimed: dict[str, Value] = {"log": {"origin": request.log, "size": request.size}, "query": query}
        index = await self._journal.record("log.exported", actor=certified(who), claimed=claimed)
        return RecordExportResponse(log=self._journal.key.name, index=index)
