"""No secret comes into a log: neither of a migration that goes well, nor of one that a defect ends."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.text_encoding import CEscape
from structlog.testing import capture_logs

from agent.hypervisor.base import MoveRequest
from gateway.migration.states import State
from landbridge import log, ticket
from landbridge.v1.channel_pb2 import ChannelOpen
from tests.system.sites import TwoSites


@pytest.fixture
def written() -> Iterator[Callable[[], str]]:
    """The log so far, as the programs write it."""
    with capture_logs() as entries:
        yield lambda: "\n".join(as_written(dict(entry)) for entry in entries)


def as_written(event: MutableMapping[str, Any]) -> str:
    """A line of the log."""
    line: Any = event
    for processor in log.PROCESSORS:
        line = processor(None, str(event["log_level"]), line)
    return str(line)


@pytest.fixture
def handed_out(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Secrets of channels, and tickets, as they are made."""
    made: list[bytes] = []
    draw, sign = secrets.token_bytes, ticket.ticket

    def drawn(size: int) -> bytes:
        made.append(draw(size))
        return made[-1]

    def signed(secret: bytes, opening: ChannelOpen) -> bytes:
        made.append(sign(secret, opening))
        return made[-1]

    monkeypatch.setattr(secrets, "token_bytes", drawn)
    monkeypatch.setattr("agent.channels.ticket", signed)
    return made


def keys(directory: Path) -> list[bytes]:
    """The private keys of all identities, without their PEM lines."""
    found = []
    for path in (*directory.rglob("*.key"), *directory.rglob("key.pem")):
        found += [line for line in path.read_bytes().splitlines() if not line.startswith(b"-----")]
    assert found
    return found


def ways_to_write(secret: bytes) -> set[str]:
    """How a secret may stand in a log."""
    return {
        secret.hex(),
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
        json.dumps(secret.decode("latin-1"))[1:-1],
        repr(secret)[2:-1],
        json.dumps(repr(secret)[2:-1])[1:-1],
        # In a message of protobuf that is printed; and that again as a string of JSON.
        CEscape(secret, as_utf8=False),
        json.dumps(CEscape(secret, as_utf8=False))[1:-1],
    }


def assert_no_secrets(written: str, handed_out: list[bytes], directory: Path) -> None:
    for secret in handed_out:
        for way in ways_to_write(secret):
            assert way not in written
    for line in keys(directory):
        assert line.decode() not in written


async def test_a_migration_logs_no_secret(
    written: Callable[[], str], two: TwoSites, handed_out: list[bytes], identities: Path
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=bytes(100_000), memory=bytes(100_000))
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED

    said = written()
    assert "channel.open" in said
    assert len(handed_out) > 2
    assert_no_secrets(said, handed_out, identities)


async def test_a_defect_logs_no_secret(
    written: Callable[[], str],
    two: TwoSites,
    handed_out: list[bytes],
    identities: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=bytes(1000), memory=bytes(1000))

    def defect(*_: object) -> MoveRequest:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("agent.source.LocalSockets", defect)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.FAILED

    said = written()
    assert "call.defect" in said
    assert handed_out
    assert_no_secrets(said, handed_out, identities)
