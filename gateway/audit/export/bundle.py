"""An export that proves itself: a folder with the entries that were asked for, and all that is needed to check them. Pure.

    README.md         what it is, and how to verify it
    verify.py         the checker (`standalone`)
    SHA256SUMS        of all others, by which it is on record (added by whoever writes it)
    entries.jsonl     the entries that were asked for, a line each
    report.html       the same for people
    log/              checkpoint, cosignatures and key; all hashes; and the bundles in which those entries are

A bundle holds 256 entries, and only whole ones can be checked: neighbours of what was asked for come along under log/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.audit.entry import Recorded
from gateway.audit.export import plain
from gateway.audit.findings import Report
from gateway.audit.tree import TILE, TileName, tiles_of
from gateway.audit.walk import CHECKPOINT, COSIGNED, KEY, Log, read_tile
from landbridge.errors import NotFound

_README = """# Export of the audit log {origin}

Made at {made}. Chosen: {question}. {count} of the log's {size} entries are in `entries.jsonl`, and as a page in `report.html`.{pruned}

## Verify it

You need Python 3.9 or newer and its package `cryptography`; no network, and nothing of Landbridge.

```
$ python3 verify.py --key '{key}'
```

It ends with `All checks pass`, or says what is wrong. **Take the key from the site itself, not from this file**: whoever could have
changed the export could have changed this line too. Name each witness that you trust with `--witness`.

`SHA256SUMS` is for `sha256sum --check SHA256SUMS`. If this export is on record, its own SHA-256 is in the entry `log.exported`.

`verify.py` is one file, to be read in ten minutes; its head says what it does, step by step.

## With other tools

`log/` keeps the layout of C2SP [tlog-tiles](https://c2sp.org/tlog-tiles): `checkpoint` is a signed note, `tile/` holds the hashes of
the tree (RFC 6962) and the bundles of entries, `log.vkey` is the key; `cosigned` is the newest checkpoint that witnesses have signed.
Landbridge itself checks more, such as that both ends of each channel name the same digest:

```
$ landbridge audit verify --part log --key '{key}'
```

The bundles under `log/tile/entries` hold 256 entries each, so there are more entries than you have asked for. Bundles without any
that you asked for are left out.
"""
_PRUNED = """

**Entries below {minimum} are not here, and not in the log any more**: they were older than what is kept, and entry {by} says that they were
removed. Their hashes went with them; of 256 at a time, one hash is kept, which is enough to prove all others."""


def files(
    log: Log, entries: Sequence[Recorded], report: Report, *, question: str, made: str, page: str, checker: bytes
) -> Iterator[tuple[str, bytes]]:
    """The files of the folder, by their paths. `checker` is the source of `standalone`. NotFound if the log lacks one of its own.

    Of a log that was pruned, the entry that says so comes along, as the checker asks for it.
    """
    pruned = _PRUNED.format(minimum=report.minimum, by=report.pruned_by) if report.minimum else ""
    readme = _README.format(
        origin=report.origin,
        made=made,
        question=question,
        count=len(entries),
        size=report.size,
        key=report.key,
        pruned=pruned,
    )
    yield "README.md", readme.encode()
    yield "verify.py", checker
    yield "entries.jsonl", "".join(plain.jsonl(entries)).encode()
    yield "report.html", page.encode()
    for name in (CHECKPOINT, KEY):
        yield f"log/{name}", _needed(log, name)
    if (cosigned := log.read(COSIGNED)) is not None:
        yield f"log/{COSIGNED}", cosigned
    wanted = {entry.sequence // TILE for entry in entries}
    if report.pruned_by is not None:
        wanted.add(report.pruned_by // TILE)
    for tile in tiles_of(report.size):
        if tile.level is None and tile.number not in wanted:
            continue
        raw = read_tile(log, tile)
        if raw is None and not _is_pruned(tile, report):
            raise NotFound(f"the log has no {tile.path}: see `landbridge audit verify`.")
        if raw is not None:
            yield f"log/{tile.path}", raw


def _is_pruned(tile: TileName, report: Report) -> bool:
    return not tile.level and (tile.number + 1) * TILE <= report.minimum


def _needed(log: Log, path: str) -> bytes:
    raw = log.read(path)
    if raw is None:
        raise NotFound(f"the log has no {path}: see `landbridge audit verify`.")
    return raw
