"""The lab's Debian 13, as far as it can be told without making one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Lab, LabError, LabSettings, root


def say(monkeypatch: pytest.MonkeyPatch, folder: Path, words: str) -> None:
    """Have `apt-get` print words."""
    program = folder / "apt-get"
    program.write_text(f"#!/bin/sh\nprintf '{words}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_mirror_is_the_one_that_the_machines_apt_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    say(monkeypatch, tmp_path, "http://mirror.test/debian/\\nhttp://other.test/debian/\\n")
    assert root.mirror() == "http://mirror.test/debian/"


def test_a_machine_whose_apt_knows_no_debian_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    say(monkeypatch, tmp_path, "")
    with pytest.raises(LabError, match="apt knows no archive of Debian-Security: run apt-get update"):
        root.mirror("Debian-Security")


def test_hosts_that_share_the_root_cannot_write_to_it_and_its_installation_can() -> None:
    read_only = f"mount -o remount,bind,ro {root.ROOT}"
    assert read_only in root.steps()
    assert read_only not in root.steps(writable=True)


@pytest.mark.parametrize("writable", [True, False])
def test_this_machines_own_files_are_gone_before_anything_runs_in_the_root(writable: bool) -> None:
    assert root.steps(writable=writable)[-3:] == ["pivot_root . mnt", "umount -l /mnt", "cd /"]


def test_a_lab_on_debian_13_says_how_to_make_it_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(root, "ROOT", tmp_path / "root")
    with pytest.raises(LabError, match=r"no Debian 13 to run hosts in: python -m tests\.lab trixie makes it"):
        Lab("unit").up(LabSettings(trixie=("east",)))
