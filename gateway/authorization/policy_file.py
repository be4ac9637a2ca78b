"""The policy file on this machine: read at the start, and again when it changes or SIGHUP comes.

At the start, a file that is missing or wrong is a reason not to start. Later, the rules that were right stay in force until the file is
right again: the log and `landbridge policy status` say so, and each decision has the hash of the file that it rests on.
"""

from __future__ import annotations

import asyncio
import hashlib
import stat
from datetime import datetime
from pathlib import Path

import structlog

from certs.identity import Site
from gateway.authorization import cases
from gateway.authorization.rules import MOST_CHARACTERS, Rules, parse
from gateway.remote import now
from gateway.rounds import Rounds
from landbridge.errors import ConfigError

log = structlog.get_logger()

# Seconds between two looks at the file.
INTERVAL = 2.0


class PolicyFile(Rounds):
    """The rules that are in force; None where no file is configured. Owned by the event loop."""

    def __init__(self, path: Path | None, here: Site) -> None:
        """Read it. Raises ConfigError."""
        self.path = path
        self.rules: Rules | None = None
        self.sha256 = ""
        self.loaded_at: datetime | None = None
        # Why the file as it is now is not in force; empty if it is.
        self.problem = ""
        self._here = here
        self._seen: object = None
        if path is not None:
            self._seen = self._look(path)
            self._load(path)

    def _load(self, path: Path) -> None:
        data = _read(path)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"the policy {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        rules = parse(text, str(path))
        if rules.here != self._here:
            raise ConfigError(
                f"the policy {path} is for {rules.here}, and this gateway is of {self._here}: see its `site`"
            )
        cases.check(rules, str(path))
        self.rules, self.sha256, self.loaded_at, self.problem = rules, hashlib.sha256(data).hexdigest(), now(), ""
        log.info("policy.loaded", file=str(path), policy=self.sha256, rules=len(rules.rules))

    def reread(self) -> None:
        """Take the file as it is now, if it is right. Never raises."""
        if self.path is None:
            return
        self._seen = self._look(self.path)
        try:
            self._load(self.path)
        except ConfigError as error:
            self.problem = error.message
            log.error("policy.rejected", file=str(self.path), error=error.message, in_force=self.sha256)  # noqa: TRY400 - no defect

    def look(self) -> None:
        """Reread the file if it is another one than last time."""
        if self.path is not None and self._look(self.path) != self._seen:
            self.reread()

    @staticmethod
    def _look(path: Path) -> object:
        try:
            found = path.stat()
        except OSError as error:
            return error.errno
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            self.look()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
                raise ConfigError(f"the policy {path} can be written by everybody on this machine: chmod o-w {path}")
            return file.read(4 * MOST_CHARACTERS + 1)  # as UTF-8 has at most; `parse` counts
    except OSError as error:
        raise ConfigError(
            f"the policy {path} cannot be read: {error.strerror}; see policy.file in the configuration"
        ) from error
