"""`landbridge audit export`, and how entries are chosen: as `landbridge audit search` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import click

from gateway.audit import files, reading
from gateway.audit.entry import Recorded
from gateway.audit.export import bundle, ocsf, pdf, plain, report, requirements, standalone
from gateway.audit.export.controls import Framework
from gateway.audit.verify import verify
from gateway.cli import output, words
from landbridge.errors import AlreadyExists, ConfigError, EvidenceFailed, UsageError

Asked: TypeAlias = str | datetime | None
_Command = TypeVar("_Command", bound=Callable[..., object])

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
_LINES: Mapping[str, Callable[[Iterable[Recorded]], Iterable[str]]] = MappingProxyType(
    {"jsonl": plain.jsonl, "csv": plain.table, "syslog": plain.syslog, "ocsf": ocsf.lines}
)
# What is no text for a terminal.
_FILES = MappingProxyType({"bundle": "A bundle is a folder", "pdf": "A PDF is a file"})
_BY_FRAMEWORK = ("csv", "report", "pdf", "bundle")
_QUESTIONS = (
    click.option("--from", "start", type=click.DateTime(_TIMES), help="Not before this time, in UTC."),
    click.option("--to", "end", type=click.DateTime(_TIMES), help="Before this time, in UTC."),
    click.option("--event", help="A name such as migration.denied, a code such as M005W, or just migration."),
    click.option("--migration", metavar="ID", help="A migration, by its id or how it begins."),
    click.option("--vm", help="A VM, by its name or UUID."),
    click.option("--site", help="A site that something left or reached."),
    click.option("--actor", help="Who did it: an identity, or its last part."),
    click.option("--outcome", type=click.Choice(["success", "failure", "denied", "unknown"])),
    click.option("--text", help="Text that stands anywhere in the entry."),
)


def questions(command: _Command) -> _Command:
    """The options by which entries are chosen."""
    for option in reversed(_QUESTIONS):
        command = option(command)
    return command


def which(asked: Mapping[str, Asked]) -> reading.Filter:
    """What these options ask for."""
    times = {name: value.replace(tzinfo=UTC) for name, value in asked.items() if isinstance(value, datetime)}
    texts = {name: value for name, value in asked.items() if isinstance(value, str)}
    return reading.Filter(start=times.get("start"), end=times.get("end"), **texts)


@click.command()
@click.argument("place", metavar="PLACE")
@click.option(
    "--format",
    "form",
    type=click.Choice(["bundle", "jsonl", "ocsf", "csv", "syslog", "report", "pdf"]),
    default="bundle",
    show_default=True,
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where to: a new directory for a bundle, else a new file. [else: stdout]",
)
@click.option(
    "--framework",
    type=click.Choice([each.value for each in Framework]),
    help="Arrange the report, or the table, by its requirements: those that are not answered, too.",
)
@questions
def export(place: str, form: str, out: Path | None, framework: str | None, **asked: Asked) -> None:
    """Write entries for auditors, in a form that others read.

    \b
      bundle  a folder with entries, proofs, a report and a checker: verifies from its README alone
      jsonl   the entries as they were recorded      csv      a table, for a spreadsheet
      syslog  messages of RFC 5424                   ocsf     events of OCSF 1.8.0, for a SIEM
      report  one HTML page that prints well         pdf     the same as a PDF
    """
    by = Framework(framework) if framework else None
    if by and form not in _BY_FRAMEWORK:
        raise UsageError(f"--framework arranges {', '.join(_BY_FRAMEWORK)}: {form} has the entries as they are.")
    if out is None and form in _FILES:
        raise UsageError(f"{_FILES[form]}: name a new one with --out.")
    log = files.at(place)
    chosen = which(asked)
    entries = [entry for _, entry in reading.select(log, chosen)]
    made = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if form in _LINES:
        lines = requirements.table(by, entries) if by else _LINES[form](entries)
        _write(out, "".join(lines).encode())
        return
    verdict = verify(log)
    page = report.page(entries, verdict, chosen.words(), made, by)
    if form in ("report", "pdf"):
        _write(out, page.encode() if form == "report" else pdf.made(page))
        return
    if not verdict.is_good:
        raise EvidenceFailed(
            f"{words.safe(place)} does not verify, and so no bundle is made: see `landbridge audit verify`."
        )
    assert out is not None  # noqa: S101 - asked for above
    checker = Path(standalone.__file__).read_bytes()
    made_files = bundle.files(log, entries, verdict, question=chosen.words(), made=made, page=page, checker=checker)
    count = sum(_save_below(out / path, raw) for path, raw in made_files)
    if verdict.minimum:
        output.say(f"Entries below {verdict.minimum} were pruned, as entry {verdict.pruned_by} says.")
    output.say(f"Wrote {len(entries)} entries with their proofs to {out} ({count} files): see {out / 'README.md'}.")


def _write(out: Path | None, raw: bytes) -> None:
    if out is None:
        click.echo(raw, nl=False)
    else:
        save(out, raw)


def _save_below(path: Path, raw: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made: {error.strerror}; choose another --out.") from error
    return save(path, raw)


def save(path: Path, raw: bytes) -> bool:
    """Write a new file, whole or not at all, readable by its owner alone: it tells who did what. Raises AlreadyExists or ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} is there already, and is not overwritten: choose another --out.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # else it would be in the way of the next attempt
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out.") from error
    return True
