"""What every command says to `--help`: `python -m tests.architecture.help_texts` prints it, `--write` keeps it.

It has a process of its own, since click remembers in a command how it was first called, and tests call in many ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

import agent.main
import gateway.main
from gateway.cli import cli

FILES = Path(__file__).parent / "help"
PROGRAMS = {"landbridge": cli, "landbridge-gateway": gateway.main.main, "landbridge-agent": agent.main.main}


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """A command and all below it, by the words that call them."""
    yield words
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                below = command.get_command(ctx, name)
                assert below is not None
                yield from commands(below, *words, name)


def said(program: str, *words: str) -> str:
    """The help of one command, 100 columns wide at most."""
    runner = CliRunner(env={"COLUMNS": "100"})
    return runner.invoke(PROGRAMS[program], [*words, "--help"], prog_name=program, catch_exceptions=False).output


def texts() -> dict[str, str]:
    """All of them."""
    return {"-".join(words): said(*words) for name, root in PROGRAMS.items() for words in commands(root, name)}


if __name__ == "__main__":
    if "--write" in sys.argv:
        for old in FILES.glob("*.txt"):
            old.unlink()
        for name, text in texts().items():
            (FILES / f"{name}.txt").write_text(text)
    else:
        sys.stdout.write(json.dumps(texts()))
