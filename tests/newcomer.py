"""Somebody who has an exported folder, its README, and Python with `cryptography`: they run what the README says, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

# What `pip install cryptography` installs.
_PACKAGES = ("cryptography", "cryptography-*", "cffi", "cffi-*", "_cffi_backend*", "pycparser", "pycparser-*")


def environment(directory: Path) -> dict[str, str]:
    """A Python of their own, in a new directory; what a shell needs to find it, and nothing of ours."""
    venv.create(directory, with_pip=False, symlinks=True)
    site = next(directory.glob("lib/python*/site-packages"))
    ours = Path(sysconfig.get_path("platlib"))
    for pattern in _PACKAGES:
        for found in ours.glob(pattern):
            if found.is_dir():
                shutil.copytree(found, site / found.name)
            else:
                shutil.copy(found, site)
    return {"PATH": f"{directory / 'bin'}:/usr/bin:/bin", "HOME": str(directory), "LANG": "C.UTF-8"}


def has_nothing_of_ours(alone: Mapping[str, str]) -> bool:
    """Whether Landbridge cannot be imported there, and cryptography can."""
    ask = "import importlib.util as u; print([n for n in ('landbridge', 'gateway', 'cryptography') if u.find_spec(n)])"
    done = subprocess.run(["python3", "-c", ask], env=alone, cwd="/", capture_output=True, text=True, check=True)
    return done.stdout.strip() == "['cryptography']"


def commands(folder: Path) -> list[str]:
    """The commands in the folder's README, in their order."""
    return re.findall(r"^\$ (.*)$", (folder / "README.md").read_text(), re.MULTILINE)


def verify(folder: Path, alone: Mapping[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """Run exactly these commands in the folder: those of Landbridge with ours, all others in an environment of their own."""
    with_ours = {**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return [
        subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=with_ours if command.startswith("landbridge ") else alone,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        for command in commands(folder)
    ]
