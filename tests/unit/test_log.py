"""The log: one JSON object per line, and no secrets in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from landbridge import log


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """What was written to standard error; nothing else was."""
    written = capsys.readouterr()
    assert written.out == ""
    return [json.loads(line) for line in written.err.splitlines()]


@pytest.mark.parametrize("name", ["password", "ca_key_pem", "ticket", "join_token", "client_secret", "secrets"])
def test_a_field_whose_name_says_secret_is_never_written(name: str) -> None:
    event = log.redact(None, "info", {"event": "host.joined", "host": "fra-1", name: "hunter2"})
    assert event == {"event": "host.joined", "host": "fra-1", name: "(redacted)"}


def test_an_event_is_one_line_of_json_with_its_facts_time_level_and_program(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("agent")
    structlog.get_logger().info("vm.moved", vm="web-01", ticket="t-1", path=sys)
    (line,) = lines(capsys)
    assert line["event"] == "vm.moved"
    assert (line["vm"], line["program"], line["level"]) == ("web-01", "agent", "info")
    assert line["ticket"] == "(redacted)"
    assert str(line["timestamp"]).endswith("Z")


def test_a_trace_says_where_and_not_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    def unlock(passphrase: str) -> None:
        secret = passphrase.upper()
        raise ZeroDivisionError(len(secret))

    log.configure("gateway")
    try:
        unlock("hunter2")
    except ZeroDivisionError:
        structlog.get_logger().exception("call.defect")
    written = capsys.readouterr().err
    assert "unlock" in written
    assert "hunter2" not in written.lower()


def test_a_defect_is_written_with_its_trace_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("gateway")
    structlog.get_logger().error("call.defect", exc_info=ZeroDivisionError("a\nb"))
    (line,) = lines(capsys)
    assert "ZeroDivisionError" in json.dumps(line["exception"])


def test_debug_is_written_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("agent")
    structlog.get_logger().debug("quiet")
    log.configure("agent", verbose=True)
    structlog.get_logger().debug("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]
