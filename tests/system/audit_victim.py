"""A process that appends to a log while it is traced and struck: `python -m tests.system.audit_victim`.

It reads one line for each victim, the log's directory, and forks. The victim says its pid, waits for a line, appends groups of entries,
says which index each has got, and tries again what was not recorded. Then its parent says how it ended.

What it says is written by writev(2) and never by write(2): so the faults of write strike the log alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gateway.audit.journal import commit
from gateway.audit.storage import Storage
from landbridge.errors import NotRecorded
from tests.unit.audit_logs import BRU, entry

START = 254
# Within a bundle; over its end; and behind it.
GROUPS = ((1000,), (1001, 1002, 1003), (1004,))


def say(**fields: object) -> None:
    os.writev(1, [json.dumps(fields).encode() + b"\n"])


def heard() -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit()
    return line.decode().strip()


def victim(directory: Path) -> None:
    storage = Storage.open(directory, BRU)
    say(pid=os.getpid())
    heard()
    for group in GROUPS:
        while True:
            try:
                first = commit(storage, [entry(number) for number in group])
            except NotRecorded as error:
                say(failed=error.message)
            else:
                say(first=first, numbers=group)
                break


def main() -> None:
    while True:
        directory = Path(heard())
        child = os.fork()
        if not child:
            try:
                victim(directory)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        say(status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
