"""`landbridge audit`: verifies a log, and looks into it; on files or at a URL, without asking a gateway.

With --json, each command writes one object on one line, or one for each entry:

    verify              {"type": "verification", "log": origin, "key": vkey, "key_is_given": bool, "size": n, "root": hex,
                         "minimum": n, "entries": n, "first_time": t, "last_time": t, "receipts": n, "migration": id|"",
                         "missing": [what a receipt lacks, as it says, ...],
                         "cosigned": [{"witness": name, "size": n, "time": t}, ...], "good": bool, "more_findings": n,
                         "findings": [{"check": 1-8, "name": n, "entry": index|null, "message": s, "meaning": s}, ...]}
    tail, show, search  {"type": "entry", "index": n, "entry": the entry as it was recorded}
    status              see `audit_status`
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import sleep

import click

from gateway.audit import files, reading
from gateway.audit.checkpoint import Signed
from gateway.audit.entry import Recorded
from gateway.audit.findings import Check, Report
from gateway.audit.note import Key
from gateway.audit.receipt import MOST_BYTES as MOST_RECEIPT_BYTES
from gateway.audit.verify import Trust, verify, verify_receipt
from gateway.cli import arguments, output, receipt_text, words
from gateway.cli.audit_export import Asked, export, questions, which
from gateway.cli.audit_status import status
from landbridge.errors import ConfigError, EvidenceFailed, NotFound, UsageError

# Seconds between two looks at a log that is followed.
FOLLOW_S = 1.0

_COLUMNS = (
    output.Column("INDEX", right=True),
    output.Column("TIME"),
    output.Column("CODE"),
    output.Column("EVENT"),
    output.Column("WHO", cut=True),
    output.Column("MIGRATION", cut=True),
    output.Column("OUTCOME"),
    output.Column("WHAT", cut=True),
)
_PLACE = click.argument("place", metavar="PLACE")


@click.group()
def audit() -> None:
    """Verify the audit log of a site, and look into it.

    PLACE is the directory of a log, of a copy, or of an export; or the https URL where it is served. No gateway is asked, but by
    export, which has it on record.
    """


@audit.command("verify")
@_PLACE
@click.option("--key", metavar="VKEY", help="The log's public key, or a file with it, as you know it from elsewhere.")
@click.option(
    "--witness", "witnesses", metavar="VKEY", multiple=True, help="A witness that must have cosigned; repeatable."
)
@click.option("--other", "others", metavar="VKEY", multiple=True, help="Another site's key, for receipts; repeatable.")
@click.option("--known", metavar="FILE", multiple=True, help="A checkpoint that you have kept from before; repeatable.")
@click.option(
    "--receipt", "receipts", metavar="FILE", multiple=True, help="A receipt to check against the log; repeatable."
)
@click.option("--part", is_flag=True, help="PLACE is an export, and holds a part of the entries.")
@arguments.as_json
def verify_log(
    place: str,
    key: str | None,
    witnesses: tuple[str, ...],
    others: tuple[str, ...],
    known: tuple[str, ...],
    receipts: tuple[str, ...],
    *,
    part: bool,
    as_json: bool,
) -> None:
    """Check a log by the numbered recipe, and say what is wrong; or, if PLACE is a file, a receipt alone.

    \b
      1 key          2 checkpoint   3 entries     4 tree
      5 history      6 witnesses    7 receipts    8 delivery

    Without --key, the key beside the log is believed: then compare it with the one that the site has published. The exit
    code is 0 if all is well, 14 if not.
    """
    trust = Trust(
        _key(key) if key else None,
        tuple(_key(each) for each in witnesses),
        tuple(_checkpoint(each) for each in known),
        tuple(_key(each) for each in others),
        part,
    )
    if Path(place).is_file():
        report = verify_receipt(_content(place), trust)
    else:
        report = verify(files.at(place), trust, [_content(each) for each in receipts])
    if as_json:
        click.echo(json.dumps(as_object(report)))
    else:
        _show(report)
    if not report.is_good:
        count = len(report.findings) + report.more
        raise EvidenceFailed(
            f"{words.safe(place)} is not to be trusted: {count} {'check fails' if count == 1 else 'checks fail'}, "
            f"first {report.findings[0].check} ({report.findings[0].check.name.lower()})."
        )


@audit.command()
@_PLACE
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many entries.")
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come, until Ctrl-C.")
@arguments.as_json
def tail(place: str, count: int, *, follow: bool, as_json: bool) -> None:
    """Print the newest entries."""
    log = files.at(place)
    _print(list(reading.last(log, count)), as_json=as_json)
    if not follow:
        return
    size = reading.head(log).checkpoint.size
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            sleep(FOLLOW_S)
            log = files.at(place)
            if (grown := reading.head(log).checkpoint.size) > size:
                _print_more(list(reading.entries(log, size, grown)), as_json=as_json)
                size = grown


@audit.command()
@_PLACE
@click.argument("index", type=click.IntRange(0), required=False)
@arguments.as_json
def show(place: str, index: int | None, *, as_json: bool) -> None:
    """Print one entry with all that it holds; or, if PLACE is a file, what the receipt in it says."""
    if Path(place).is_file():
        receipt_text.show(_content(place), as_json=as_json)
        return
    if index is None:
        raise UsageError("Say which entry: landbridge audit show PLACE INDEX, the first being 0.")
    log = files.at(place)
    size = reading.head(log).checkpoint.size
    found = list(reading.entries(log, index, index + 1)) if index < size else []
    if not found:
        raise NotFound(
            f"There is no entry {index} in {words.safe(place)}: it has {size}, the first of them being 0; old ones may be pruned."
        )
    if as_json:
        _print(found, as_json=True)
    else:
        output.facts([("index", str(index)), *_pairs(dict(found[0][1].document))])


@audit.command()
@_PLACE
@questions
@arguments.as_json
def search(place: str, *, as_json: bool, **asked: Asked) -> None:
    """Print the entries that fit all that is given."""
    _print(list(reading.select(files.at(place), which(asked))), as_json=as_json)


audit.add_command(export)
audit.add_command(status)


# What is given.


def _key(text: str) -> Key:
    """A vkey, or the first line of a file that holds one."""
    if "+" not in text or _is_file(text):
        text = _content(text).decode("ascii", "replace").strip()
    return Key.parse(text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # the key of ML-DSA-44 is longer than any name
        return False


def _checkpoint(path: str) -> Signed:
    try:
        return Signed.decode(_content(path))
    except EvidenceFailed as error:
        raise UsageError(f"{words.safe(path)} is no checkpoint: {error.message}.") from error


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MOST_RECEIPT_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{words.safe(path)} does not exist: give a file.") from error
    except OSError as error:
        raise ConfigError(f"{words.safe(path)} cannot be read ({error.strerror}): check its owner and mode.") from error


# What is printed.


def as_object(report: Report) -> dict[str, object]:
    """A report for programs."""
    return {
        "type": "verification",
        "log": report.origin,
        "key": report.key,
        "key_is_given": report.key_is_given,
        "size": report.size,
        "root": report.root.hex(),
        "minimum": report.minimum,
        "entries": report.entries,
        "first_time": report.first_time,
        "last_time": report.last_time,
        "receipts": report.receipts,
        "migration": report.migration,
        "missing": report.missing,
        "cosigned": [
            {"witness": each.name, "size": size, "time": _moment(each.time)} for each, size in report.cosigned
        ],
        "good": report.is_good,
        "more_findings": report.more,
        "findings": [
            {
                "check": int(each.check),
                "name": each.check.name.lower(),
                "entry": each.entry,
                "message": each.message,
                "meaning": each.meaning,
            }
            for each in report.findings
        ],
    }


def _show(report: Report) -> None:
    pairs = [("log", words.safe(report.origin) or "unknown")]
    pairs += [("migration", words.safe(report.migration))] if report.migration else [("size", f"{report.size} entries")]
    if report.first_time:
        pairs += [("read", f"{report.entries} entries, from {report.first_time} to {report.last_time}")]
    if report.minimum:
        pairs += [("pruned", f"entries below {report.minimum}, as the log says")]
    pairs += [("root", report.root.hex())] if report.root else []
    if report.key:
        hint = (
            "as given" if report.key_is_given else "found with it: compare it with the one that the site has published"
        )
        pairs += [("key", f"{words.safe(report.key)} ({hint})")]
    for each, size in report.cosigned:
        pairs += [("cosigned", f"the first {size} entries, by {words.safe(each.name)} at {_moment(each.time)}")]
    pairs += [
        ("MISSING", f"{words.safe(each)}: whoever made the receipt could not have them") for each in report.missing
    ]
    if report.receipts:
        pairs += [("receipts", str(report.receipts))]
    output.facts(pairs)
    _show_findings(report)


def _show_findings(report: Report) -> None:
    for check in Check:
        of_check = [each for each in report.findings if each.check == check]
        for finding in of_check:
            click.echo(f"{check} {check.name.lower():<11} {words.safe(finding.message)}")
        if of_check:
            click.echo(f"{'':<13} {of_check[0].meaning}")
    if report.more:
        click.echo(f"and {report.more} more")
    if report.is_good:
        click.echo("All checks pass: this is what the site has signed.")


def _print(found: list[tuple[int, Recorded]], *, as_json: bool) -> None:
    if as_json:
        for index, entry in found:
            click.echo(json.dumps({"type": "entry", "index": index, "entry": json.loads(entry.raw)}))
        return
    output.table(_COLUMNS, [_row(index, entry) for index, entry in found], "No entry fits.")


def _print_more(found: list[tuple[int, Recorded]], *, as_json: bool) -> None:
    """Entries that have come since: without headings, and at once."""
    if as_json:
        _print(found, as_json=True)
    else:
        for index, entry in found:
            click.echo("  ".join(cell or "-" for cell in _row(index, entry).cells))
    sys.stdout.flush()


def _row(index: int, entry: Recorded) -> output.Row:
    cells = (
        str(index),
        entry.text("time")[:19] + "Z",
        entry.event.code,
        entry.event.name,
        words.safe(entry.text("actor", "id").rpartition("/")[2]),
        words.safe(entry.text("migration")[:8]),
        entry.text("outcome"),
        words.safe(reading.summary(entry)),
    )
    return output.Row(cells, style={"I": "", "W": "yellow", "E": "red"}[entry.event.severity])


def _pairs(value: object, path: str = "") -> list[tuple[str, str]]:
    """A nested value as names and texts, such as ("seen.vm.name", "web-01")."""
    if isinstance(value, dict):
        return [pair for name, below in value.items() for pair in _pairs(below, f"{path}.{name}" if path else name)]
    if isinstance(value, list):
        return [pair for at, below in enumerate(value) for pair in _pairs(below, f"{path}.{at}")]
    return [(path, words.safe(str(value)))]


def _moment(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return str(seconds)
