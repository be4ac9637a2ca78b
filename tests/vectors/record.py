"""Make recordings again: `python -m tests.vectors.record qemu`."""

from __future__ import annotations

import argparse
import asyncio

from tests.vectors import record_nbd, record_qemu

KINDS = {"nbd": record_nbd.record, "qemu": record_qemu.record}


def main() -> None:
    """Record all streams of one kind, over those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    asyncio.run(KINDS[parser.parse_args().kind]())


if __name__ == "__main__":
    main()
