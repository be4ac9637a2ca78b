"""The console recorder: a switch-over may fall into the middle of a line."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.judge import judge
from tests.lab.processes import wait_until


class Console:
    """A recorder, and its log."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "vm.sock"
        self.log = directory / "vm.log"

    def says(self, qemu: socket.socket, text: str) -> None:
        """One QEMU prints; returns when the recorder has written the lines that this has ended."""
        ends = self.count() + text.count("\n")
        qemu.sendall(text.encode())
        wait_until(lambda: self.count() >= ends, seconds=5, otherwise="the recorder does not write")

    def count(self) -> int:
        """Lines in the log."""
        return self.log.read_text().count("\n")

    def texts(self) -> list[str]:
        """What was said, without stamps."""
        return [line.split(" ", 4)[4] for line in self.log.read_text().splitlines()]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    it = Console(tmp_path)
    with subprocess.Popen([sys.executable, "-m", "tests.lab.console", str(it.address), str(it.log)]) as process:
        wait_until(it.address.exists, seconds=10, otherwise="the recorder does not start")
        wait_until(lambda: _answers(it.address), seconds=5, otherwise="the recorder does not listen")
        yield it
        process.kill()


@pytest.fixture
def connect(console: Console) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as stack:

        def connected() -> socket.socket:
            qemu = stack.enter_context(socket.socket(socket.AF_UNIX))
            qemu.connect(str(console.address))
            return qemu

        yield connected


def _answers(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


@pytest.mark.parametrize("source_closes_first", [True, False])
def test_a_line_begun_at_the_source_and_ended_at_the_destination_is_one_line(
    console: Console, connect: Callable[[], socket.socket], source_closes_first: bool
) -> None:
    source, destination = connect(), connect()
    console.says(source, "B 1 m0 d0 w0 k0 e0\nB 2 m0 d")
    if source_closes_first:
        source.close()
    console.says(destination, "0 w0 k0 e0\n")
    console.says(destination, "B 3 m0 d0 w0 k0 e0\n")
    assert console.texts() == [f"B {n} m0 d0 w0 k0 e0" for n in (1, 2, 3)]
    assert not judge(console.log.read_text().splitlines()).problems


def test_a_guest_that_runs_twice_is_not_mended_into_one(console: Console, connect: Callable[[], socket.socket]) -> None:
    source, destination = connect(), connect()
    console.says(source, "B 1 m0 d0 w0 k0 e0\nB 2 m0 d")
    console.says(destination, "0 w0 k0 e0\n")
    console.says(source, "0 w0 k0 e0\nB 3 m0 d0 w0 k0 e0\n")
    console.says(destination, "B 3 m0 d0 w0 k0 e0\n")
    assert any("ran twice" in problem for problem in judge(console.log.read_text().splitlines()).problems)
