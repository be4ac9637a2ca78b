"""The score of `make mutation`: how many changes of the code that decides its tests notice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

STATS = Path("mutants/mutmut-cicd-stats.json")


def main() -> None:
    """Print it; what mutmut gave up waiting for was noticed, too."""
    stats = json.loads(STATS.read_text())
    noticed, total = stats["killed"] + stats["timeout"], stats["total"]
    sys.stdout.write(f"noticed: {noticed} of {total} mutants, {100 * noticed / total:.1f} %\n")


if __name__ == "__main__":
    main()
