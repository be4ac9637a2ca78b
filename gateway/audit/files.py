"""Where the files of a log are read from, by those who verify it: a directory, or the web. Nothing is written."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.audit.tree import TILE
from gateway.audit.walk import CHECKPOINT, COSIGNED, Log
from landbridge.errors import ConfigError, NotFound, Unreachable, UsageError

# Of any file of a log: a full bundle of the largest entries.
MOST_BYTES = TILE * (2 + 65_535)
_PATIENCE_S = 30.0


class Directory:
    """A log in a directory: of a running gateway, a copy, or an export."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise NotFound(f"{path} is no directory: give one that holds the checkpoint of a log.")
        self._path = path

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if there is none. ConfigError if it cannot be read, or is larger than any file of a log."""
        try:
            with (self._path / path).open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(
                f"{self._path / path} cannot be read ({error.strerror}): check its owner and mode."
            ) from error
        if len(raw) > MOST_BYTES:
            raise ConfigError(f"{self._path / path} has more than {MOST_BYTES} bytes: it is no file of a log.")
        return raw

    def paths(self) -> Iterator[str]:
        """All files, but those whose names begin with a dot: these are the writer's own."""
        for path in sorted(self._path.rglob("*")):
            below = path.relative_to(self._path)
            if not path.is_dir() and not any(part.startswith(".") for part in below.parts):
                yield str(below)


class Web:
    """A log at an https or file URL, with the C2SP names below it."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("https://", "file://")):
            raise UsageError(f"{url[:200]!r} is no place of a log: give a directory, or an https URL.")
        self._url = url.rstrip("/")

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if there is none. Unreachable if the server does not answer as it should."""
        try:
            # Only the two schemes above get here.
            with urllib.request.urlopen(f"{self._url}/{path}", timeout=_PATIENCE_S) as answer:  # noqa: S310
                raw: bytes = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                return None
            raise Unreachable(f"{self._url}/{path} was answered with {error.code}: try again later.") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError):
                return None
            raise Unreachable(f"{self._url}/{path} cannot be read: {error.reason}.") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{self._url}/{path} cannot be read: {error}.") from error
        if len(raw) > MOST_BYTES:
            raise Unreachable(f"{self._url}/{path} has more than {MOST_BYTES} bytes: it is no file of a log.")
        return raw

    def paths(self) -> Iterable[str]:
        """None: the web cannot be listed."""
        return ()


class Still:
    """A log as it is at this moment, though it may grow: its heads are read once, and tiles below them do not change."""

    def __init__(self, log: Log) -> None:
        self._log = log
        # The cosigned one first: it is never newer than the checkpoint that is read after it.
        self._heads = {name: log.read(name) for name in (COSIGNED, CHECKPOINT)}

    def read(self, path: str) -> bytes | None:
        """As the log itself."""
        return self._heads[path] if path in self._heads else self._log.read(path)

    def paths(self) -> Iterable[str]:
        """As the log itself."""
        return self._log.paths()


def at(place: str) -> Still:
    """The log at a path or URL, as it is now."""
    return Still(Web(place) if "://" in place else Directory(Path(place)))
