"""Receivers of syslog over TLS: a real rsyslogd, and one that can be told to misbehave."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from certs.authority import create, issue
from certs.identity import Identity, Role, Site
from certs.store import save_authority, save_identity
from certs.tls import server_name
from landbridge.config import Address
from tests.system.sites import free_port

DOMAIN = "siem.test"
# What the certificate of each receiver names.
NAME = server_name(Role.GATEWAY, "siem", DOMAIN, "receiver")
HOST = "127.0.0.4"
SECONDS = 15.0


def make_certificates(directory: Path) -> None:
    """ca/ca.pem; receiver/ and sender/ with cert.pem and key.pem below it; and another CA, other/ca.pem."""
    now = datetime.now(UTC)
    authority = create(Site(DOMAIN, "siem"), now)
    save_authority(directory / "ca", authority)
    save_authority(directory / "other", create(Site(DOMAIN, "siem"), now))
    save_identity(directory / "receiver", issue(authority, Identity(DOMAIN, "siem", Role.GATEWAY, "receiver"), now))
    save_identity(directory / "sender", issue(authority, Identity(DOMAIN, "siem", Role.OPERATOR, "sender"), now))


class Rsyslog:
    """rsyslogd with rsyslog-gnutls; it takes those who show a certificate below the CA. A context manager."""

    def __init__(self, directory: Path, certificates: Path) -> None:
        self._directory = directory
        self.address = Address(HOST, free_port(HOST))
        self.received = directory / "received"
        directory.mkdir()
        (directory / "rsyslog.conf").write_text(f"""\
global(workDirectory="{directory}" maxMessageSize="128k"
       DefaultNetstreamDriverCAFile="{certificates}/ca/ca.pem"
       DefaultNetstreamDriverCertFile="{certificates}/receiver/cert.pem"
       DefaultNetstreamDriverKeyFile="{certificates}/receiver/key.pem")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid")
input(type="imtcp" address="{HOST}" port="{self.address.port}")
template(name="whole" type="string" string="%msg%\\n")
action(type="omfile" file="{self.received}" template="whole" asyncWriting="off" flushOnTXEnd="on")
""")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Return when it listens."""
        argv = ["rsyslogd", "-n", "-f", str(self._directory / "rsyslog.conf"), "-i", str(self._directory / "pid")]
        (self._directory / "pid").unlink(missing_ok=True)
        with (self._directory / "log").open("ab") as said:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
                return
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, "rsyslogd does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """As the kernel would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """It stands still; its connections stay open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def lines(self) -> list[str]:
        """The messages that it has written down, without the mark of UTF-8."""
        if not self.received.exists():
            return []
        return [line.strip().removeprefix("\ufeff") for line in self.received.read_text("utf-8").splitlines()]


class Misbehaving:
    """Takes one connection after the other; what it does with each, `behaviour` says.

    "reads"         all, and ends each connection in order
    "unread"        reads the handshake only, and closes when there is more to read
    "dies"          closes when it has read something
    "stays"         reads all, and never ends a connection
    "hangs up"      reads all, and closes without close_notify, as whoever is on the way could
    """

    def __init__(self, certificates: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "receiver" / "cert.pem", certificates / "receiver" / "key.pem")
        self.behaviour = "reads"
        self.received = b""
        self.connections = 0
        self._listening = socket.create_server((HOST, 0))
        self.address = Address(*self._listening.getsockname())
        self._thread = threading.Thread(target=self._serve)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with accepted, contextlib.suppress(OSError):
                accepted.settimeout(SECONDS)
                with self._context.wrap_socket(accepted, server_side=True) as connection:
                    self._behave(connection)

    def _behave(self, connection: ssl.SSLSocket) -> None:
        if self.behaviour == "unread":
            select.select([connection], [], [], SECONDS)
            return
        while data := connection.recv(65_536):
            self.received += data
            if self.behaviour == "dies":
                return
        if self.behaviour == "stays":
            self._stop.wait(SECONDS)
        elif self.behaviour == "hangs up":
            return
        else:
            connection.unwrap().close()

    def frames(self) -> Iterator[bytes]:
        """The messages, by the counts of their octets."""
        at = 0
        while at < len(self.received):
            space = self.received.index(b" ", at)
            end = space + 1 + int(self.received[at:space])
            assert end <= len(self.received)
            yield self.received[space + 1 : end]
            at = end
