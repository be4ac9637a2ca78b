"""Real files for a guest: a part of a Debian root file system, taken from what is installed on this machine.

Packages of priority required, important and standard first, then those of SECTIONS by name, until the size is reached. What
tells one guest from another (host name, keys) is put to it. The tree becomes a cpio archive behind the initramfs, or ext4.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab import kernel
from tests.lab.settings import LabError

PAGE = 4096
PRIORITIES = ("required", "important", "standard")
SECTIONS = ("libs", "perl", "python")
# Where the guest looks for them.
ROOT = "files"


@dataclass(frozen=True)
class Tree:
    """Regular files by their names, without a leading slash: paths on this machine, and contents of the guest's own."""

    shared: dict[str, Path]
    own: dict[str, bytes]

    @classmethod
    def of_this_machine(cls, size: int, guest: str) -> Tree:
        """So many MiB, and a guest's own. Raises LabError where this machine has less."""
        own = own_files(guest)
        return cls({name: path for name, path in installed(size).items() if name not in own}, own)

    def archive(self) -> Iterator[bytes]:
        """As a cpio archive."""
        names = {f"{ROOT}/{name}": name for name in sorted([*self.shared, *self.own])}
        folders = {str(parent): None for name in names for parent in reversed(Path(name).parents[:-1])}

        def entries() -> Iterator[tuple[str, int, bytes]]:
            for folder in folders:
                yield folder, 0o040755, b""
            for full, name in names.items():
                yield full, 0o100644, self.own[name] if name in self.own else self.shared[name].read_bytes()

        return kernel.archive(entries())

    def write_ext4(self, image: Path, size: int) -> None:
        """As a raw image of so many MiB, written only where there is something."""
        with tempfile.TemporaryDirectory(dir=image.parent.parent) as staged:
            for name, path in self.shared.items():
                target = Path(staged, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            for name, content in self.own.items():
                target = Path(staged, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            _tool("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", staged, str(image), f"{size}M")
        image.chmod(0o666)  # QEMU's user writes it


def own_files(guest: str) -> dict[str, bytes]:
    """What no two guests have in common; it follows from the name."""

    def random(what: str, size: int) -> bytes:
        return hashlib.shake_256(f"{what} of {guest}".encode()).digest(size)

    return {
        "etc/hostname": f"{guest}\n".encode(),
        "etc/machine-id": f"{random('machine', 16).hex()}\n".encode(),
        "etc/ssh/ssh_host_rsa_key": base64.encodebytes(random("key", 1800)),
        "etc/ssh/ssh_host_ed25519_key": base64.encodebytes(random("other key", 280)),
        "var/lib/systemd/random-seed": random("seed", 512),
    }


@cache
def installed(size: int) -> dict[str, Path]:
    """Files of this machine's packages, so many MiB in whole pages or up to 5 % less, in the order of the packages."""
    found: dict[str, Path] = {}
    left = size << 20
    for package in _packages():
        files = {name: path for name, path in _files_of(package) if name not in found}
        pages = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files.values())
        if pages <= left:  # one that is too large leaves room for smaller ones
            found |= files
            left -= pages
        if left <= (size << 20) // 20:
            return found
    raise LabError(f"this machine has not got {size} MiB of packages of {', '.join(PRIORITIES + SECTIONS)}")


def _packages() -> list[str]:
    form = "${db:Status-Status} ${Priority} ${Section} ${binary:Package}\n"
    ranked = []
    for line in _tool("dpkg-query", "-W", "-f", form).splitlines():
        status, priority, section, package = line.split()
        if status == "installed" and (priority in PRIORITIES or section in SECTIONS):
            ranked.append(([*PRIORITIES, priority].index(priority), package))
    return [package for _, package in sorted(ranked)]


def _files_of(package: str) -> Iterator[tuple[str, Path]]:
    for line in _tool("dpkg-query", "-L", package).splitlines():
        path = Path(line)
        path = path.parent.resolve() / path.name  # /lib is /usr/lib, whichever of them a package names
        if path.is_file() and not path.is_symlink():
            yield str(path).lstrip("/"), path


def _tool(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        raise LabError(f"{argv[0]} is missing: make install, on Debian")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout
