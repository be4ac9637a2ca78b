"""A Debian 13 in a folder of the cache: what a host of the lab can have as its root, beside this machine's own Debian.

    debootstrap -> root      `make .venv/.installed`, run inside -> the packages of .ci/debian, and Landbridge for Python 3.13

Inside, this checkout lies where it lies outside, and the root's own environment lies over its .venv: each path that the lab
names leads to the same file, or to the same program for the other Debian. Mounts are made in mount namespaces only, which
end with the processes in them; nothing outside of the cache is written. Needs the network, once.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from tests.lab.settings import CACHE, SOURCE_DIRECTORY, LabError

CHECKOUT = SOURCE_DIRECTORY.parents[1]
DIRECTORY = CACHE.parent / "trixie"
ROOT = DIRECTORY / "root"
SUITE = "trixie"
# What the lab binds a host's own folders over, where no package has made it.
MOUNT_POINTS = ("/etc/landbridge", "/var/lib/landbridge")
# Before apt can fetch the rest: make runs the installation, and a mirror may need the machine's certificates.
FIRST_PACKAGES = ("ca-certificates", "make")
# Of the machine's configuration: what says how to reach a mirror.
NETWORK_FILES = (Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/ssl/certs/ca-certificates.crt"))
PIP_FILES = (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf")
APT_WORDS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")


def is_made() -> bool:
    """Whether the root is there, and Landbridge in it."""
    return (ROOT / "etc/debian_version").exists() and (DIRECTORY / "venv/.installed").exists()


def make() -> Path:
    """Make the root, or what is missing of it; returns where it is. Raises LabError."""
    for tool in ("debootstrap", "unshare", "pivot_root"):
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing: apt-get install debootstrap util-linux")
    if not ROOT.exists():
        _bootstrap()
    _configure()
    # A run that was killed may have left packages unpacked, and neither set up nor complete.
    inside(["dpkg", "--configure", "-a"], writable=True, check=False)
    inside(["apt-get", "-qy", "-o", "DPkg::Lock::Timeout=60", "--fix-broken", "install"], writable=True)
    inside(["make", ".venv/.installed"], writable=True, show=True)
    inside(["apt-get", "clean"], writable=True)
    return ROOT


def steps(*folders: Path, writable: bool = False) -> list[str]:
    """Lines of a shell, in a mount namespace of its own, after which the root is `/`; it shares some folders with this machine."""
    inner = f"{ROOT}{CHECKOUT}"
    lines = [
        "mount --make-rprivate /",
        f"mount --bind {ROOT} {ROOT}",
        *(f"mount --rbind {folder} {ROOT}{folder}" for folder in ("/proc", "/sys", "/dev")),
        *(f"mount -t tmpfs -o mode={mode} lab {ROOT}/{folder}" for folder, mode in (("run", "755"), ("tmp", "1777"))),
        *(f"mkdir -p {ROOT}{folder} && mount --bind {folder} {ROOT}{folder}" for folder in folders),
        f"mount --bind {CHECKOUT} {inner}",
        f"mount --bind {DIRECTORY}/venv {inner}/.venv",
        f"cd {ROOT}",
        "pivot_root . mnt",
        "umount -l /mnt",
        "cd /",
    ]
    if not writable:  # several hosts share it
        lines.insert(-3, f"mount -o remount,bind,ro {ROOT}")
    return lines


def inside(argv: list[str], *, writable: bool = False, show: bool = False, check: bool = True) -> str:
    """Run a command in the root, from this checkout; its output, unless that is shown. Raises LabError if it fails."""
    lines = ["set -e", *steps(writable=writable), f"cd {CHECKOUT}", f"exec {shlex.join(argv)}"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", "\n".join(lines)],
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise LabError(f"`{shlex.join(argv)}` in {ROOT} failed: {(done.stdout or '').strip() or 'see above'}")
    return done.stdout or ""


def _bootstrap() -> None:
    """Debian's first packages; a run that was killed begins anew, with the packages that it had fetched."""
    packages, fresh = DIRECTORY / "packages", DIRECTORY / "root.part"
    packages.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    argv = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(FIRST_PACKAGES)}",
        f"--cache-dir={packages}",
        SUITE,
        str(fresh),
        mirror(),
    ]
    done = subprocess.run(["unshare", "-m", *argv], check=False)
    if done.returncode != 0:
        raise LabError(f"debootstrap failed: see {fresh}/debootstrap/debootstrap.log")
    fresh.rename(ROOT)
    shutil.rmtree(packages)


def mirror(label: str = "Debian") -> str:
    """The archive that this machine's apt takes Debian, or its updates for security, from. Raises LabError."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Label: {label}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise LabError(f"apt knows no archive of {label}: run apt-get update on a Debian machine")
    return done.stdout.split()[0]


def _configure() -> None:
    """What the root takes from this machine: how mirrors are reached. No service starts there."""
    sources = [f"deb {mirror()} {suite} main\n" for suite in (SUITE, f"{SUITE}-updates")]
    sources.append(f"deb {mirror('Debian-Security')} {SUITE}-security main\n")
    (ROOT / "etc/apt/sources.list").write_text("".join(sources))
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = [line for line in said.splitlines() if line.startswith(APT_WORDS)]
    (ROOT / "etc/apt/apt.conf.d/99machine").write_text("\n".join([*kept, 'APT::Sandbox::User "root";', ""]))
    for file in (file for file in (*NETWORK_FILES, *PIP_FILES) if file.exists()):
        (ROOT / str(file).lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, f"{ROOT}{file}")
    never = ROOT / "usr/sbin/policy-rc.d"
    never.write_text("#!/bin/sh\nexit 101\n")
    never.chmod(0o755)
    for folder in (*MOUNT_POINTS, str(CHECKOUT)):
        (ROOT / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (DIRECTORY / "venv").mkdir(exist_ok=True)
    (CHECKOUT / ".venv").mkdir(exist_ok=True)
