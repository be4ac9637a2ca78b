"""Regenerate the committed stubs from proto/landbridge/v1/*.proto; `--check` only says whether they are up to date."""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
WELL_KNOWN = Path(protoc.__file__).resolve().parent / "_proto"


def generate(into: Path) -> None:
    """Write the stubs of every .proto file below ROOT into the same places below `into`."""
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("landbridge/v1/*.proto"))
    # protoc finds its plugins through PATH; ours are those of this environment, whether it is activated or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    outputs = [f"--{kind}_out={into}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", *outputs, *sources]) != 0:
        raise SystemExit("proto/generate.py: protoc refused the files above; mend them and run it again")


def main() -> int:
    """Generate in place, or compare a fresh generation with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a stub is out of date")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        made = {p.relative_to(fresh) for p in fresh.rglob("*_pb2*")}
        kept = {p.relative_to(ROOT) for p in ROOT.rglob("*_pb2*") if "__pycache__" not in p.parts}
        stale = sorted(
            str(p) for p in made | kept if p not in made or p not in kept or not filecmp.cmp(fresh / p, ROOT / p, False)
        )
    for path in stale:
        sys.stderr.write(f"proto/{path} is not what its .proto file says; run proto/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
