"""The witness over HTTP, as tlog-witness has it, for strangers who may send anything."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.audit import witness_http
from gateway.audit.checkpoint import Signed
from gateway.audit.journal import Journal
from gateway.audit.note import Note
from gateway.audit.witness import MOST_BYTES
from gateway.audit.witness_http import WitnessServer
from gateway.audit.witness_keeper import Witness
from landbridge import durable
from landbridge.config import Address
from landbridge.errors import ConfigError
from tests.unit.audit_logs import AMS, BRU
from tests.unit.test_audit_witness import LOG, MALLORY, asked, head
from tests.unit.test_audit_witness_keeper import Clock, opened

DIGEST = hashlib.sha256(BRU.encode()).hexdigest()


@pytest.fixture
async def witness(tmp_path: Path) -> AsyncIterator[Witness]:
    journal = await Journal.open(tmp_path, AMS)
    made = opened(journal, tmp_path, Clock(), LOG.key())
    yield made
    made.close()
    await journal.close()


@pytest.fixture
async def server(witness: Witness) -> AsyncIterator[WitnessServer]:
    made = WitnessServer(witness)
    await made.start(Address("127.0.0.1", 0))
    yield made
    await made.close()


class Stranger:
    """Somebody with a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, server: WitnessServer) -> Stranger:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    async def ask(self, raw: bytes) -> tuple[int, str, str]:
        """Status, content type and body."""
        self.writer.write(raw)
        line = (await self.reader.readline()).decode()
        headers: dict[str, str] = {}
        while (header := (await self.reader.readline()).decode().strip()) != "":
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers.get("content-type", ""), body.decode()

    async def is_left(self) -> bool:
        """Whether the server closes the connection."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True
        finally:
            self.writer.close()


def post(body: bytes, more: str = "") -> bytes:
    return f"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(digest: str = DIGEST) -> bytes:
    return f"GET /{digest}/checkpoint HTTP/1.1\r\nHost: w\r\n\r\n".encode()


async def test_each_answer_has_the_status_of_the_protocol_on_one_connection(
    server: WitnessServer, witness: Witness
) -> None:
    stranger = await Stranger.of(server)
    assert (await stranger.ask(get()))[0] == 404
    status, kind, body = await stranger.ask(post(asked(0, 5).encode()))
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    note = Note.decode(f"{head(5).note.text}\n{body}".encode())
    assert len(Signed(head(5).checkpoint, note).cosigned(witness.keys)) == 1
    assert await stranger.ask(post(asked(0, 5).encode())) == (409, "text/x.tlog.size", "5\n")
    for submission, expected in (
        (asked(6, 5), 400),
        (asked(5, 6, by=MALLORY), 403),
        (asked(5, 9, "b"), 422),
        (asked(5, 5, "b"), 422),
        (asked(5, 9), 200),
    ):
        assert (await stranger.ask(post(submission.encode())))[0] == expected
    # What monitors see: the newest head, with the log's signature and ours.
    status, _, body = await stranger.ask(get())
    latest = Signed.decode(body.encode())
    latest.check(LOG.key())
    assert (status, latest.checkpoint.size, len(latest.cosigned(witness.keys))) == (200, 9, 1)
    assert (await stranger.ask(post(b"old 5\n\nno head")))[0] == 400
    assert (await stranger.ask(b"GET /add-checkpoint HTTP/1.1\r\nHost: w\r\n\r\n"))[0] == 404
    assert (await stranger.ask(get("0" * 64)))[0] == 404
    stranger.writer.close()


async def test_a_log_that_is_not_known_is_404(server: WitnessServer) -> None:
    stranger = await Stranger.of(server)
    unknown = asked(0, 5).encode().replace(BRU.encode(), b"example.org/unknown")
    assert (await stranger.ask(post(unknown)))[0] == 404
    stranger.writer.close()


async def test_who_waits_to_be_told_to_continue_is_told(server: WitnessServer) -> None:
    stranger = await Stranger.of(server)
    body = asked(0, 5).encode()
    whole = post(body, "Expect: 100-continue\r\n")
    assert (await stranger.ask(whole[: -len(body)]))[0] == 100
    assert (await stranger.ask(body))[0] == 200
    stranger.writer.close()


async def test_a_stranger_with_a_wrong_proof_raises_no_alarm_and_one_with_two_roots_does(
    server: WitnessServer, witness: Witness
) -> None:
    stranger = await Stranger.of(server)
    await stranger.ask(post(asked(0, 5).encode()))
    await stranger.ask(post(asked(5, 9, "b").encode()))
    assert await witness.alarms() == {BRU: []}
    await stranger.ask(post(asked(5, 5, "b").encode()))
    assert "was rewritten" in (await witness.alarms())[BRU][0]
    stranger.writer.close()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nHost: w\r\nX: " + b"x" * 100_000, 431),
        (post(b"x" * (MOST_BYTES + 1)), 413),
        (b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_is_told_so_and_left(server: WitnessServer, raw: bytes, status: int) -> None:
    stranger = await Stranger.of(server)
    assert (await stranger.ask(raw))[0] == status
    assert await stranger.is_left()


async def test_who_is_slow_and_who_is_one_too_many_are_left(
    server: WitnessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness_http, "MOST_CONNECTIONS", 1)
    patient = await Stranger.of(server)
    assert (await patient.ask(get()))[0] == 404
    assert await (await Stranger.of(server)).is_left()
    monkeypatch.setattr(witness_http, "PATIENCE", 0.05)
    assert (await patient.ask(get()))[0] == 404
    patient.writer.write(get()[:20])
    assert await patient.is_left()
    again = await Stranger.of(server)
    assert (await again.ask(get()))[0] == 404
    again.writer.close()


async def test_while_nothing_can_be_kept_nothing_is_cosigned(
    server: WitnessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stranger = await Stranger.of(server)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        assert (await stranger.ask(post(asked(0, 5).encode())))[0] == 503
    assert (await stranger.ask(post(asked(0, 5).encode())))[0] == 200
    stranger.writer.close()


async def test_an_address_that_is_taken_is_said(server: WitnessServer, witness: Witness) -> None:
    with pytest.raises(ConfigError, match=r"see witness\.listen in the configuration"):
        await WitnessServer(witness).start(Address("127.0.0.1", server.port))
