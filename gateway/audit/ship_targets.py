"""Where entries are shipped to: a receiver of syslog over TLS, and a file of JSON lines. Each runs in a thread of its own.

Theory of delivery. Neither TCP nor syslog has an answer by which a sender knows that a message has been read: bytes that `send` took may
still be in a buffer when the receiver dies. But a receiver that ends a connection in order has read all of it:

    1. send           frames go out at once; until 2, nobody counts on them
    2. confirm        close_notify, which RFC 5425 (4.4) has the receiver answer by ending the connection
                      The receiver's TLS gives it close_notify after all that came before it: so it has read everything.
                      A bare end of the TCP connection is no answer, for it can be anybody's on the way. Receivers that give
                      no other are taken by their setting only (`ends_without_close_notify`).
    3. its end        A system that closes a connection with unread bytes in it, as when the receiver was killed, sends RST
                      and no FIN; and what arrives later is answered by RST, and never acknowledged. So: FIN, and nothing
                      unacknowledged (SIOCOUTQ), means that the receiver has read all. Everything else means: send again.

What a receiver has read is its own to keep.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import termios
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from certs import tls
from gateway.audit.entry import Recorded
from gateway.audit.export import plain
from landbridge.config import Address
from landbridge.errors import Unreachable

# Seconds for each of: connecting, a write that goes on, the receiver's end.
PATIENCE = 10.0
# Seconds for which a connection is kept before it is ended, so that what went over it is known to have arrived. Each end costs a handshake.
CONFIRM_AFTER = 30.0
# For the collectors of other programs: the group may be given to them.
_MODE = 0o640
_CHUNK = 65_536

Lines = Callable[[Iterable[Recorded]], Iterable[str]]


class Target(Protocol):
    """Where to. All methods may block for a while, and raise OSError or an error of the tree."""

    # Seconds after which what was sent is worth a confirmation.
    confirm_after: float

    def send(self, entries: Sequence[Recorded]) -> None:
        """Give entries out; whether they arrive is known after `confirm`."""

    def confirm(self) -> None:
        """Return only if all that was sent since the last time has arrived."""

    def close(self) -> None:
        """Give up what was not confirmed."""


class JsonLines:
    """Appends to a file, which is opened anew for each batch: it may be moved away at any time, as logrotate does."""

    confirm_after = 0.0

    def __init__(self, path: Path, lines: Lines = plain.jsonl) -> None:
        self._path, self._lines = path, lines

    def __str__(self) -> str:
        return str(self._path)

    def send(self, entries: Sequence[Recorded]) -> None:
        """Durably, and whole lines or none."""
        raw = "".join(self._lines(entries)).encode()
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            end = os.fstat(descriptor).st_size
            # A machine that lost its power may have left half a line: it ends here, and its entry comes again.
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                raw = b"\n" + raw
            try:
                view = memoryview(raw)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)

    def confirm(self) -> None:
        """`send` has waited for the disk."""

    def close(self) -> None:
        """Nothing is open."""


class SyslogTls:
    """Sends RFC 5424 messages, framed by octet counting, over TLS (RFC 5425). It connects when there is something to send."""

    def __init__(
        self,
        address: Address,
        server_name: str,
        ca: Path,
        certificate: Path | None = None,
        key: Path | None = None,
        patience: float = PATIENCE,
        *,
        ends_without_close_notify: bool = False,
    ) -> None:
        self.confirm_after = CONFIRM_AFTER
        self._address, self._server_name = address, server_name
        self._ca, self._certificate, self._key = ca, certificate, key
        self._patience = patience
        self._ends_without_close_notify = ends_without_close_notify
        self._open: tls.Connection | None = None

    def __str__(self) -> str:
        return f"syslog at {self._address}"

    def send(self, entries: Sequence[Recorded]) -> None:
        """Write them to the connection, or to a new one if there is none."""
        if self._open is None:
            self._open = self._connected()
        # A message ends where its length says, and not with the line feed that files have.
        messages = [message.rstrip("\n").encode() for message in plain.syslog(entries)]
        self._open.sendall(b"".join(b"%d %b" % (len(message), message) for message in messages))

    def _connected(self) -> tls.Connection:
        # Files are read anew each time: they may have been renewed.
        context = tls.receiver_context(self._ca, self._certificate, self._key)
        plain_socket = socket.create_connection(self._address, self._patience)
        try:
            return tls.wrap(context, plain_socket, server_name=self._server_name, shakes_hands=True)
        except BaseException:
            plain_socket.close()
            raise

    def confirm(self) -> None:
        """End the connection in order. Unreachable, or OSError, if the receiver does not do the same."""
        if self._open is None:
            return
        connection, self._open = self._open, None
        with connection:
            connection.settimeout(self._patience)
            try:
                bare, in_order = tls.end(connection)
            except TimeoutError as error:
                raise Unreachable(
                    f"{self} does not end a connection when it is asked to (RFC 5425, 4.4): nothing is known to have arrived"
                ) from error
            with bare:
                if not in_order and not self._ends_without_close_notify:
                    raise Unreachable(
                        f"{self} has ended the connection without TLS close_notify, as anybody on the way could: nothing is known to "
                        "have arrived; if it never sends one, set ends_without_close_notify = true for it: then whoever can end "
                        "TCP connections on the way can make entries vanish unnoticed"
                    )
                self._await_end(bare)

    def _await_end(self, bare: socket.socket) -> None:
        deadline = time.monotonic() + self._patience
        bare.shutdown(socket.SHUT_WR)
        while bare.recv(_CHUNK):
            pass
        while _unacknowledged(bare):
            if time.monotonic() > deadline:
                raise Unreachable(f"{self} has ended the connection before it has read all")
            time.sleep(0.01)
            bare.recv(_CHUNK)  # raises what has become of it

    def close(self) -> None:
        """Whatever was on its way is sent again."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other end has not acknowledged: SIOCOUTQ, which has the number of TIOCOUTQ."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    return count[0]
