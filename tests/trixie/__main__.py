"""python -m tests.trixie [PART...]: all parts, or some; what they are is in the package's own words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tests.lab import LabError, root
from tests.lab.lab import Lab, name_of
from tests.trixie.parts import PARTS
from tests.trixie.table import Table


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
def main(parts: Sequence[str]) -> None:
    """Run PARTS, or all of them, and print what came of each."""
    click.echo(f"Debian 13 is in {root.make()}")
    table, lab = Table(), Lab(name_of("t"))
    for name in parts or PARTS:
        lab.down()  # what a killed run has left
        try:
            PARTS[name](lab, table)
        except LabError as error:
            table.add(name, problem=str(error))
        finally:
            lab.down()
    table.show()
    sys.exit(1 if table.misses else 0)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.stderr.write(f"trixie: {error}\n")
        sys.exit(1)
