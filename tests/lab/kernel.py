"""What a guest boots: Debian's cloud kernel, and an initramfs that holds guest.c and the modules it needs.

Flow: package name -> .deb -> unpacked tree -> vmlinuz; modules + compiled guest.c -> cpio. All of it is kept in the
cache, so that only the first `prepare` needs a network.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.lab.settings import CACHE, SOURCE_DIRECTORY, LabError

META_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")


def prepare() -> tuple[Path, Path]:
    """Fill the cache; returns the paths of the kernel and of the initramfs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    compile_c("wan")
    kernel, tree = _kernel()
    return kernel, _initramfs(tree, compile_c("guest", "-static", "-pthread"))


def compile_c(name: str, *flags: str) -> Path:
    """Compile <name>.c of this directory, once per version of its text."""
    source = SOURCE_DIRECTORY / f"{name}.c"
    program = CACHE / f"{name}-{_digest(source.read_bytes())}"
    if program.exists():
        return program
    if shutil.which("gcc") is None:
        raise LabError("gcc is missing: apt-get install gcc libc6-dev")
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = _beside(program)
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", *flags, "-o", str(fresh), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise LabError(f"gcc cannot compile {source}:\n{done.stderr}")
    return fresh.replace(program)


def _kernel() -> tuple[Path, Path]:
    found = sorted(CACHE.glob("kernel/*/boot/vmlinuz-*"))
    if not found:
        _download_kernel()
        found = sorted(CACHE.glob("kernel/*/boot/vmlinuz-*"))
    return found[-1], found[-1].parents[1]


def _download_kernel() -> None:
    depends = _tool("apt-cache", "depends", META_PACKAGE)
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        raise LabError(f"apt does not know {META_PACKAGE}: run apt-get update on a Debian machine")
    (CACHE / "kernel").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        _tool("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", match[1], cwd=work)
        package = next(Path(work).glob("*.deb"))
        _tool("dpkg-deb", "-x", str(package), f"{work}/tree")
        target = CACHE / "kernel" / match[1]
        shutil.rmtree(target, ignore_errors=True)
        (Path(work) / "tree").replace(target)


def _initramfs(tree: Path, init: Path) -> Path:
    target = CACHE / f"initramfs-{_digest(init.name.encode() + tree.name.encode())}.cpio"
    if target.exists():
        return target
    modules = _in_load_order(tree)
    order = "".join(f"/modules/{name}.ko\n" for name in modules)
    entries: list[tuple[str, int, bytes]] = [
        ("modules", 0o040755, b""),
        ("modules/order", 0o100644, order.encode()),
        *((f"modules/{name}.ko", 0o100644, content) for name, content in modules.items()),
        ("init", 0o100755, init.read_bytes()),
    ]
    fresh = _beside(target)
    fresh.write_bytes(b"".join(archive(entries)))
    return fresh.replace(target)


def archive(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """A cpio archive of (name, mode, content), folders first; the kernel unpacks several that follow each other."""
    for entry in entries:
        yield _cpio(*entry)
    yield _cpio("TRAILER!!!", 0, b"")


def _in_load_order(tree: Path) -> dict[str, bytes]:
    """The wanted modules and what they depend on, dependencies first; the modules themselves name them."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:  # not a file: built into the kernel
            return
        raw = files[name].read_bytes()
        content = lzma.decompress(raw) if files[name].suffix == ".xz" else raw
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in (depends[1].decode() if depends else "").split(","):
            add(needed)
        ordered[name] = content

    for name in MODULES:
        add(name)
    return ordered


def _cpio(name: str, mode: int, content: bytes) -> bytes:
    """One entry of the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _beside(path: Path) -> Path:
    """A name to write to before renaming: two labs may prepare at once."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _tool(*argv: str, cwd: str | None = None) -> str:
    if shutil.which(argv[0]) is None:
        raise LabError(f"{argv[0]} is missing: the lab runs on Debian")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed; the guest's kernel needs a network once: {done.stderr.strip()}")
    return done.stdout
