"""python -m tests.attack [WORD...]: attacks a real libvirtd through the destination's agent, and prints what becomes of each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import click

from tests.attack.arena import attack
from tests.attack.attacker import Outcome
from tests.lab import Lab, LabError, LabSettings
from tests.lab.lab import name_of


@click.command()
@click.argument("words", nargs=-1)
def main(words: Sequence[str]) -> None:
    """Run the attacks that have one of WORDS in their names, or all."""
    lab = Lab(name_of("a"))
    lab.down()
    try:
        lab.up(LabSettings(pages=False))
        report = attack(lab, words, tell)
    finally:
        lab.down()
    if not report.problems:
        calls = sum(outcome.calls for outcome in report.outcomes)
        click.echo(
            f"{len(report.outcomes) - 1} attacks; {report.events} security events in the agent's log; "
            f"{calls} calls given to libvirtd, all of them honest"
        )
    for problem in report.problems:
        click.echo(f"NOT AS IT SHOULD BE: {problem}")
    sys.exit(1 if report.problems else 0)


def tell(outcome: Outcome) -> None:
    """One line, of the width of the terminal."""
    mark = "FAILED" if outcome.problem else "ok"
    told = (outcome.problem or outcome.told).removeprefix("Landbridge refused ").removeprefix("DOMAIN_MIGRATE_")
    line = f"{mark:<7}{outcome.name:<60}{outcome.end:<26}{told}".rstrip()
    click.echo(line[: max(shutil.get_terminal_size((160, 24)).columns, 100)])


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.stderr.write(f"attack: {error}\n")
        sys.exit(1)
