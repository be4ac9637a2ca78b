"""A real PostgreSQL for the tests: on a temporary directory, reached by a UNIX socket only, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import sqlalchemy as sa

# The server refuses root; this user comes with Debian's package.
USER = "postgres"
SECONDS = 30.0


class PostgreSQL:
    """A server; a context manager that stops it and removes all that it wrote."""

    def __init__(self) -> None:
        self._user = USER if os.geteuid() == 0 else None
        # Not under pytest's directory, which the server's user may not enter.
        self._directory = Path(tempfile.mkdtemp(prefix="lb-pg-"))
        self._server: subprocess.Popen[bytes] | None = None
        self._made = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._directory)

    def restart(self) -> None:
        """End all connections, and serve again."""
        self._stop()
        self._start()

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"test_{self._made}"
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://landbridge@/{database}?host={self._directory}"

    def _make(self) -> None:
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        initdb = [str(_binaries() / "initdb"), "--pgdata", str(self._directory / "data"), "--no-sync"]
        initdb += ["--username=landbridge", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        subprocess.run(initdb, check=True, capture_output=True, user=self._user, cwd="/")

    def _start(self) -> None:
        directory, log = str(self._directory), self._directory / "log"
        serve = [str(_binaries() / "postgres"), "-D", str(self._directory / "data"), "-k", directory]
        serve += ["-c", "listen_addresses=", "-c", "fsync=off"]
        with log.open("wb") as said:
            self._server = subprocess.Popen(
                serve, user=self._user, cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        deadline = time.monotonic() + SECONDS
        while subprocess.run([str(_binaries() / "pg_isready"), "-q", "-h", directory], check=False).returncode:
            assert self._server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not get ready"
            time.sleep(0.05)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)  # "fast shutdown"
            self._server.wait(SECONDS)
            self._server = None


def _binaries() -> Path:
    """Where Debian has them, of the newest release that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    assert found, "PostgreSQL is missing: see .ci/debian"
    return found[-1].parent
