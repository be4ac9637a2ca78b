"""One stream of bytes from a UNIX socket to another, through whatever is between: fed, swallowed, and counted."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.settings import LabError

PIECE = 1 << 20
# Random, so that nothing on the way could make it smaller.
CONTENT = memoryview(random.Random(1).randbytes(PIECE))
# Seconds until the first byte has come out of the other end.
OPENING = 30.0


class Sink:
    """Where streams come out: listens on a UNIX socket, takes one connection after another, and counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)

    def accept(self, seconds: float) -> socket.socket:
        """The next stream."""
        self._listener.settimeout(seconds)
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            raise LabError(f"no stream came out at {self.path} within {seconds:.0f} s") from None
        connection.settimeout(None)
        return connection

    def forget(self) -> None:
        """Drop what has come already: ends of streams that failed before."""
        self._listener.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()


class Transfer:
    """A stream under way: one thread feeds it, another swallows what comes out."""

    def __init__(self, inlet: Path, sink: Sink, total: int | None = None) -> None:
        """`total`: bytes to send; None sends until `finish`."""
        self._total = total
        self._stop = threading.Event()
        # Written by one thread each.
        self.sent = self.received = 0
        self._first = threading.Event()
        self._began_at = self._ended_at = 0.0
        self._threads: list[threading.Thread] = []
        self._inlet, self._outlet = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        sink.forget()
        try:
            self._open(inlet, sink)
        except BaseException:
            self.abandon()
            raise

    def _open(self, inlet: Path, sink: Sink) -> None:
        try:
            self._inlet.connect(str(inlet))
            self._inlet.sendall(CONTENT[:1])
        except OSError as error:
            raise LabError(f"no stream can enter at {inlet}: {error.strerror}") from error
        self.sent = 1
        self._outlet.close()
        self._outlet = sink.accept(OPENING)
        # Daemons, so that a stream which never ends does not keep the program.
        swallow, feed = (threading.Thread(target=work, daemon=True) for work in (self._swallow, self._feed))
        self._threads.append(swallow)
        swallow.start()
        if not self._first.wait(OPENING):
            raise LabError(f"no byte came out at {sink.path} within {OPENING:.0f} s")
        self._began_at = time.monotonic()
        self._threads.append(feed)
        feed.start()

    def _feed(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.is_set() and (self._total is None or self.sent < self._total):
                left = PIECE if self._total is None else min(PIECE, self._total - self.sent)
                self.sent += self._inlet.send(CONTENT[:left])
            self._inlet.shutdown(socket.SHUT_WR)

    def _swallow(self) -> None:
        buffer = bytearray(PIECE)
        with contextlib.suppress(OSError):
            while count := self._outlet.recv_into(buffer):
                self.received += count
                self._first.set()
        self._ended_at = time.monotonic()
        self._outlet.close()

    def rate(self, seconds: float) -> float:
        """Bytes per second that came out during the next so many seconds."""
        before, at = self.received, time.monotonic()
        self._threads[0].join(seconds)
        if not self._threads[0].is_alive():
            raise LabError(f"the stream was broken on its way, after {self.received} bytes")
        return (self.received - before) / (time.monotonic() - at)

    def rates(self, seconds: float, window: float, step: float) -> list[float]:
        """The same of each window within the next so many seconds, which begin a step apart."""
        seen = [(time.monotonic(), self.received)]
        ends = seen[0][0] + seconds
        while seen[-1][0] < ends:
            self.rate(step)
            seen.append((time.monotonic(), self.received))
        wide = round(window / step)
        return [(b - a) / (later - at) for (at, a), (later, b) in zip(seen, seen[wide:], strict=False)]

    def finish(self, patience: float) -> float:
        """Send no more than was asked for, wait until all has come out; returns the seconds it took. Raises LabError."""
        if self._total is None:
            self._stop.set()
        for thread in self._threads:
            thread.join(patience)
        if any(thread.is_alive() for thread in self._threads):
            raise LabError(
                f"the stream did not end within {patience:.0f} s; {self.received} of {self.sent} bytes came out"
            )
        if self.received != self.sent:
            raise LabError(f"{self.received} of {self.sent} bytes came out: the stream was broken on its way")
        return self._ended_at - self._began_at

    def abandon(self) -> None:
        """Close both ends at once."""
        self._stop.set()
        for sock in (self._inlet, self._outlet):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._inlet.close()
        self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
