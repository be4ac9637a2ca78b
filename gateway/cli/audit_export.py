"""`landbridge audit export`, and how entries are chosen: as `landbridge audit search` does."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import IO, TypeAlias, TypeVar

import click

from gateway.audit import files, reading
from gateway.audit.entry import Recorded, clean
from gateway.audit.export import bundle, ocsf, pdf, plain, report, requirements, standalone
from gateway.audit.export.controls import Framework
from gateway.audit.storage import is_open
from gateway.audit.verify import verify
from gateway.cli import connection, output, words
from landbridge.errors import AlreadyExists, ConfigError, EvidenceFailed, LandbridgeError, UsageError
from landbridge.v1.audit_pb2 import RecordExportRequest

Asked: TypeAlias = str | datetime | None
_Command = TypeVar("_Command", bound=Callable[..., object])

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
_LINES: Mapping[str, Callable[[Iterable[Recorded]], Iterable[str]]] = MappingProxyType(
    {"jsonl": plain.jsonl, "csv": plain.table, "syslog": plain.syslog, "ocsf": ocsf.lines}
)
# What is no text for a terminal.
_FILES = MappingProxyType({"bundle": "A bundle is a folder", "pdf": "A PDF is a file"})
# The list of a bundle's files, as sha256sum writes and checks it.
_SUMS = "SHA256SUMS"
# Bytes of a file that are copied at once.
_PIECE = 1 << 20
# Of when an export was made, what follows the time.
_ON_RECORD = "and on record in the log (log.exported) before it was written"
_OFF_RECORD = "from the files of the log alone: no log has an entry of this export"
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


@dataclass
class _Span:
    """How many entries, from which index to which."""

    count: int = 0
    first: int = 0
    last: int = 0

    def of(self, entries: Iterable[tuple[int, Recorded]]) -> Iterator[Recorded]:
        """The entries, counted while they pass."""
        for index, entry in entries:
            self.first = index if not self.count else self.first
            self.count, self.last = self.count + 1, index
            yield entry


@dataclass(frozen=True)
class _Export:
    """Entries of a log, in one form."""

    form: str
    origin: str
    size: int
    span: _Span
    # By which it is on record: of the file, or of the folder's list of all others.
    sha256: str
    # One file, whose name is the caller's; or the files of a folder, by their paths.
    content: IO[bytes] | Mapping[str, bytes]


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
@click.option(
    "--record",
    is_flag=True,
    help="Have a gateway record the export first, also of a copy; of a log that a gateway has open, it always is.",
)
@questions
@click.pass_context
def export(
    ctx: click.Context,
    /,
    place: str,
    form: str,
    out: Path | None,
    framework: str | None,
    *,
    record: bool,
    **asked: Asked,
) -> None:
    """Write entries for auditors, in a form that others read.

    \b
      bundle  a folder with entries, proofs, a report and a checker: verifies from its README alone
      jsonl   the entries as they were recorded      csv      a table, for a spreadsheet
      syslog  messages of RFC 5424                   ocsf     events of OCSF 1.8.0, for a SIEM
      report  one HTML page that prints well         pdf     the same as a PDF

    While a gateway has the log open, nothing is written before that is on record there (log.exported), which takes --gateway,
    --identity and the role auditor. Of a copy, no log can tell; the export says so.
    """
    by = Framework(framework) if framework else None
    if by and form not in _BY_FRAMEWORK:
        raise UsageError(f"--framework arranges {', '.join(_BY_FRAMEWORK)}: {form} has the entries as they are.")
    if out is None and form in _FILES:
        raise UsageError(f"{_FILES[form]}: name a new one with --out.")
    if out is not None:
        _require_room(out, form)
    chosen = which(asked)
    recorded = record or is_recorded(place)
    if form in _LINES and not by:
        made, pruned = _lines(ctx, place, form, chosen, out), ""
    else:
        made, pruned = _made(place, form, by, chosen, recorded=recorded)
    if recorded:
        _record(ctx, made, chosen.words())
    if not isinstance(made.content, Mapping):
        _write(out, iter(partial(made.content.read, _PIECE), b""))
    else:
        assert out is not None  # noqa: S101 - asked for above
        for path, raw in made.content.items():
            _save_below(out / path, raw)
        if pruned:
            output.say(pruned)
        count = f"{made.span.count} entries with their proofs to {out} ({len(made.content)} files)"
        output.say(f"Wrote {count}: see {out / 'README.md'}.")
    if not recorded:
        click.echo(f"This is from {words.safe(place)} alone: no log has an entry of this export.", err=True)


def is_recorded(place: str) -> bool:
    """Whether the log there is one that a gateway has open, which then records what is exported."""
    return "://" not in place and is_open(Path(place))


def _lines(ctx: click.Context, place: str, form: str, chosen: reading.Filter, out: Path | None) -> _Export:
    """Entries as lines, in a file that has no name yet, where they are to go: a log may be longer than memory. Raises ConfigError."""
    log, span, hashed = files.at(place), _Span(), sha256()
    head = reading.head(log).checkpoint
    try:
        file = ctx.with_resource(tempfile.TemporaryFile(dir=None if out is None else out.parent))  # noqa: SIM115 - it is one
        for line in _LINES[form](span.of(reading.select(log, chosen))):
            raw = line.encode()
            hashed.update(raw)
            file.write(raw)
        file.seek(0)
    except OSError as error:
        where = "Temporary files" if out is None else str(out)
        raise ConfigError(f"{where} cannot be written: {error.strerror}; choose another --out.") from error
    return _Export(form, head.origin, head.size, span, hashed.hexdigest(), file)


def _made(
    place: str, form: str, by: Framework | None, chosen: reading.Filter, *, recorded: bool
) -> tuple[_Export, str]:
    """An export, and what is to be said of it. Raises EvidenceFailed for a bundle of a log that does not verify."""
    log = files.at(place)
    head = reading.head(log).checkpoint
    span = _Span()
    entries = list(span.of(reading.select(log, chosen)))

    def file(raw: bytes) -> tuple[_Export, str]:
        return _Export(form, head.origin, head.size, span, sha256(raw).hexdigest(), io.BytesIO(raw)), ""

    if form in _LINES and by:
        return file("".join(requirements.table(by, entries)).encode())
    verdict = verify(log)
    made = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, {_ON_RECORD if recorded else _OFF_RECORD}"
    page = report.page(entries, verdict, chosen.words(), made, by)
    if form in ("report", "pdf"):
        return file(page.encode() if form == "report" else pdf.made(page))
    if not verdict.is_good:
        raise EvidenceFailed(
            f"{words.safe(place)} does not verify, and so no bundle is made: see `landbridge audit verify`."
        )
    checker = Path(standalone.__file__).read_bytes()
    folder = dict(bundle.files(log, entries, verdict, question=chosen.words(), made=made, page=page, checker=checker))
    folder[_SUMS] = "".join(f"{sha256(raw).hexdigest()}  {path}\n" for path, raw in sorted(folder.items())).encode()
    pruned = (
        f"Entries below {verdict.minimum} were pruned, as entry {verdict.pruned_by} says." if verdict.minimum else ""
    )
    return _Export(form, head.origin, head.size, span, sha256(folder[_SUMS]).hexdigest(), folder), pruned


def _record(ctx: click.Context, made: _Export, question: str) -> None:
    """Have a gateway record it. Raises what it answers: then nothing is written."""
    request = RecordExportRequest(
        log=made.origin,
        size=made.size,
        filter=clean(question),
        format=made.form,
        entries=made.span.count,
        first=made.span.first,
        last=made.span.last,
        sha256=made.sha256,
    )
    try:
        with connection.connect(ctx) as gateway:
            told = gateway.record_export(request)
    except LandbridgeError as error:
        raise type(error)(
            f"Nothing was exported, since the log is to have an entry of it and has none: {error.message}"
        ) from error
    click.echo(f"On record as entry {told.index} of {words.safe(told.log)}: SHA-256 {made.sha256}.", err=True)


def _write(out: Path | None, pieces: Iterable[bytes]) -> None:
    if out is not None:
        save(out, pieces)
        return
    for piece in pieces:
        click.echo(piece, nl=False)


def _require_room(out: Path, form: str) -> None:
    """Before anything is recorded: that it can be written, as far as can be told. Raises AlreadyExists or ConfigError."""
    try:
        (out / "README.md" if form == "bundle" and out.is_dir() else out).lstat()
    except FileNotFoundError:
        there = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
        if not os.access(there, os.W_OK):
            raise ConfigError(f"{out} cannot be written: {there} is not yours; choose another --out.") from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out.") from error
    else:
        raise _is_there(out)


def _is_there(path: Path) -> AlreadyExists:
    return AlreadyExists(f"{path} is there already, and is not overwritten: choose another --out.")


def _save_below(path: Path, raw: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:
        raise _is_there(path.parent) from error
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made: {error.strerror}; choose another --out.") from error
    save(path, [raw])


def save(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file, whole or not at all, readable by its owner alone: it tells who did what. Raises AlreadyExists or ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise _is_there(path) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # else it would be in the way of the next attempt
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out.") from error
