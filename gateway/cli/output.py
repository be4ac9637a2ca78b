"""Where the command line writes: a terminal, or a pipe without colours and drawings.

Both get the same tables. A terminal's are cut to its width, with a row's note below the row; in a pipe
nothing is cut, an empty cell is "-", and the note is the last column.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

_GAP = "  "
_NARROWEST = 6  # of a column that is cut


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and how its cells stand."""

    heading: str
    right: bool = False
    # May be cut on a narrow terminal.
    cut: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table; the note says in a sentence what is special."""

    cells: tuple[str, ...]
    note: str = ""
    style: str = ""


def terminal() -> Console | None:
    """The terminal behind standard output, if that is one and can move its cursor."""
    if not sys.stdout.isatty():
        return None
    console = Console(highlight=False)
    return None if console.is_dumb_terminal else console


def table(columns: Sequence[Column], rows: Sequence[Row], nothing: str) -> None:
    """Print a table; on a terminal, `nothing` instead of an empty one."""
    console = terminal()
    if console is None:
        _piped(columns, rows)
    elif not rows:
        console.print(nothing)
    else:
        for line in _drawn(columns, rows, console.width):
            console.print(line)


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a pair a line; long values continue below themselves on a terminal."""
    console = terminal()
    margin = max((cell_len(name) for name, _ in pairs), default=0) + len(_GAP)
    for name, value in pairs:
        lines = wrapped(value, margin, console)
        click.echo(f"{name:<{margin}}{lines[0]}".rstrip())
        for line in lines[1:]:
            click.echo(" " * margin + line)


def wrapped(text: str, margin: int, console: Console | None) -> list[str]:
    """The text in lines that fit right of a margin, at least one; just one where there is no terminal."""
    if console is None:
        return [text]
    return textwrap.wrap(text, max(20, console.width - margin), break_on_hyphens=False) or [""]


def say(sentence: str) -> None:
    """Print a sentence; on a terminal in lines that break between words."""
    click.echo("\n".join(folded(sentence, sys.stdout)))


def folded(text: str, stream: TextIO) -> list[str]:
    """The text in lines that fit the terminal behind a stream; in one line if that is none."""
    if not stream.isatty():
        return [text]
    return textwrap.wrap(text, max(20, shutil.get_terminal_size().columns), break_on_hyphens=False)


def _piped(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    headings = [*(column.heading for column in columns), "NOTE"]
    lines = [headings, *([cell or "-" for cell in (*row.cells, row.note)] for row in rows)]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = (_pad(cell, width, column) for cell, width, column in zip(line, widths, columns, strict=False))
        click.echo(_GAP.join((*padded, line[-1])))


def _drawn(columns: Sequence[Column], rows: Sequence[Row], room: int) -> Iterator[Text]:
    widths = [
        max(cell_len(text) for text in (column.heading, *(row.cells[index] for row in rows)))
        for index, column in enumerate(columns)
    ]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        widest = max(
            (index for index, column in enumerate(columns) if column.cut),
            key=widths.__getitem__,
            default=None,
        )
        if widest is None or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    if sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        yield from _stacked(columns, rows, room)
        return
    yield Text(_line([column.heading for column in columns], widths, columns), style="bold")
    for row in rows:
        yield Text(_line(row.cells, widths, columns), style=row.style)
        if row.note:
            yield from _note(row.note, room)


def _stacked(columns: Sequence[Column], rows: Sequence[Row], room: int) -> Iterator[Text]:
    """For a terminal that no table fits: a line for each cell, and an empty one between the rows."""
    margin = max(cell_len(column.heading) for column in columns) + len(_GAP)
    for number, row in enumerate(rows):
        if number:
            yield Text()
        for column, cell in zip(columns, row.cells, strict=True):
            if cell:
                line = Text(f"{column.heading:<{margin}}", style="bold")
                yield line.append(_cut(cell, max(_NARROWEST, room - margin)), style=row.style or "not bold")
        if row.note:
            yield from _note(row.note, room)


def _note(note: str, room: int) -> Iterator[Text]:
    for line in textwrap.wrap(note, max(20, room - 4), break_on_hyphens=False):
        yield Text(f"    {line}", style="yellow")


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = (
        _pad(_cut(cell, width), width, column) for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _cut(cell: str, width: int) -> str:
    return cell if cell_len(cell) <= width else f"{set_cell_size(cell, width - 1)}…"


def _pad(cell: str, width: int, column: Column) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if column.right else cell + space
