"""How far a log has been shipped to one target: a small file in the log's own directory, which others may look at.

    .state/ship/<target>.json   {"target": where to, "next": index of the first entry that is not known to have arrived,
                                 "lost": entries that were pruned before they went, "confirmed": when `next` last grew,
                                 "problem": why it does not go on, "since": since when}

The cursor is written after a target has confirmed what it was sent, never before: a crash in between sends entries again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.audit.storage import STATE
from landbridge import durable
from landbridge.errors import ConfigError


@dataclass(frozen=True)
class Cursor:
    """How far it is; times as entries spell them, "" for never."""

    target: str
    next: int = 0
    lost: int = 0
    confirmed: str = ""
    problem: str = ""
    since: str = ""

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """ValueError if these bytes are no cursor."""
        document = json.loads(raw)
        facts = document if isinstance(document, dict) else {}
        kinds = {field.name: int if field.name in {"next", "lost"} else str for field in dataclasses.fields(cls)}
        for name, kind in kinds.items():
            if type(facts.get(name)) is not kind:
                raise ValueError(f"its {name} is no {kind.__name__}")
        if facts["next"] < 0 or facts["lost"] < 0:
            raise ValueError("it counts less than nothing")
        return cls(**{name: facts[name] for name in kinds})

    def encode(self) -> bytes:
        """Its file."""
        return f"{json.dumps(dataclasses.asdict(self))}\n".encode()


def path_of(log: Path, name: str) -> Path:
    """Where the cursor of a target is kept, of the log in this directory."""
    return log / STATE / "ship" / f"{name}.json"


def load(log: Path, name: str, target: str) -> Cursor:
    """The cursor of a target; one that begins with the first entry where there is none yet.

    ValueError or OSError if there is one that cannot be read: whoever ships begins anew, since twice is better than not at all.
    """
    try:
        found = Cursor.decode(path_of(log, name).read_bytes())
    except FileNotFoundError:
        return Cursor(target)
    return dataclasses.replace(found, target=target)


def save(log: Path, name: str, cursor: Cursor) -> None:
    """Write it durably. OSError if the system refuses."""
    path = path_of(log, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    durable.write(path, cursor.encode())


def all_of(log: Path) -> Iterator[tuple[str, Cursor]]:
    """The cursors of a log, by the names of their targets. ConfigError if one cannot be read."""
    try:
        for path in sorted((log / STATE / "ship").iterdir()):
            if path.suffix == ".json" and not path.name.startswith("."):
                yield path.stem, Cursor.decode(path.read_bytes())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{log / STATE} cannot be read ({error.strerror}): only the gateway's user may.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no cursor, {error}: remove it, and all is shipped again.") from error
