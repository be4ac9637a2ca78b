"""The witness over HTTP/1.1, for logs and monitors that are no peers (C2SP tlog-witness):

    POST /add-checkpoint                     200, or 400, 403, 404, 409 with the recorded size, 422; 503 if nothing can be kept
    GET  /<hex sha256 of an origin>/checkpoint

In the clear: what goes by is public and signed. Whoever connects is a stranger, so that all that he may do is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

import h11
import structlog

from gateway.audit.witness import MOST_BYTES, Status, Submission
from gateway.audit.witness_keeper import Witness
from landbridge.config import Address
from landbridge.errors import ConfigError, EvidenceFailed, NotRecorded

logger = structlog.get_logger()

MOST_CONNECTIONS = 64
MOST_HEADERS = 8 * 1024
# Seconds for a request to arrive, for its answer to leave, and between two requests.
PATIENCE = 10.0

_CHECKPOINT = re.compile(r"/([0-9a-f]{64})/checkpoint")
_PLAIN, _SIZE = "text/plain; charset=utf-8", "text/x.tlog.size"


@dataclass(frozen=True, slots=True)
class _Page:
    """What is answered."""

    status: int
    body: str = ""
    kind: str = _PLAIN


class WitnessServer:
    """Listens until `close`. Owned by the event loop."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, address: Address) -> None:
        """Begin. Raises ConfigError if nothing can listen there."""
        try:
            self._server = await asyncio.start_server(self._accept, address.host, address.port, limit=MOST_BYTES)
        except OSError as error:
            raise ConfigError(f"nothing can listen on {address}: see witness.listen in the configuration") from error

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None  # noqa: S101 - it was started
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop, and give up all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in one
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, h11.RemoteProtocolError, h11.LocalProtocolError):
            pass  # a stranger who went away, was too slow, or speaks no HTTP
        except asyncio.CancelledError:
            pass  # `close`; asyncio would log it
        except Exception:  # a defect here must not end the server
            logger.exception("witness.defect")
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADERS)
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    asked = await self._request(connection, reader, writer)
            except h11.RemoteProtocolError as error:
                if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._send(
                        connection, writer, _Page(error.error_status_hint, "this is no request of HTTP/1.1\n")
                    )
                return
            if asked is None:
                return
            await self._send(connection, writer, await self._answer(*asked))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    @staticmethod
    async def _request(
        connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[h11.Request, bytes] | None:
        """The next request and its body, which may be one byte longer than is taken; None at the end of the connection."""
        request, body = None, b""
        while len(body) <= MOST_BYTES:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                connection.receive_data(await reader.read(MOST_BYTES))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
        return (request, body) if request is not None else None

    @staticmethod
    async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, page: _Page) -> None:
        body = page.body.encode()
        headers = [("Content-Type", page.kind), ("Content-Length", str(len(body)))]
        for event in (
            h11.Response(status_code=page.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        async with asyncio.timeout(PATIENCE):
            await writer.drain()

    async def _answer(self, request: h11.Request, body: bytes) -> _Page:
        method, path = request.method, request.target.decode("ascii", "replace")
        try:
            if method == b"POST" and path == "/add-checkpoint":
                return await self._add(body)
            if method == b"GET" and (monitored := _CHECKPOINT.fullmatch(path)):
                return await self._latest(monitored[1])
        except NotRecorded as error:
            logger.error("witness.failed", error=error.message)  # noqa: TRY400 - no defect
            return _Page(503, "the witness cannot keep what it cosigns: try again later\n")
        return _Page(404, "POST /add-checkpoint, or GET /<hex sha256 of the origin>/checkpoint\n")

    async def _add(self, body: bytes) -> _Page:
        if len(body) > MOST_BYTES:
            return _Page(413, f"a request has at most {MOST_BYTES} bytes\n")
        try:
            asked = Submission.decode(body)
        except EvidenceFailed as error:
            return _Page(Status.MALFORMED, f"{error.message}\n")
        answer = await self._witness.add(asked)
        if answer.status is Status.CONFLICT:
            size = answer.recorded.checkpoint.size if answer.recorded else 0
            return _Page(answer.status, f"{size}\n", _SIZE)
        return _Page(answer.status, answer.lines or f"{answer.reason}\n")

    async def _latest(self, digest: str) -> _Page:
        signed = await self._witness.latest(digest)
        if signed is None:
            return _Page(404, "no head of this log was cosigned here\n")
        return _Page(200, signed.encode().decode())
