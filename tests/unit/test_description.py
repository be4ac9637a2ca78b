"""Where QEMU's stream ends: in a recorded one, and in what only looks like it."""

from __future__ import annotations

import json

import pytest

from agent.stream import description
from agent.stream.description import Description
from agent.stream.qemu import QemuStream
from tests.vectors import load

PLAIN = load("qemu", "plain")
TOLD = json.dumps({"page_size": 4096, "devices": [{"name": "timer", "version": 2}]}).encode()


def end(text: bytes = TOLD, length: int | None = None) -> bytes:
    return b"\0\6" + (len(text) if length is None else length).to_bytes(4, "big") + text


def over_at(stream: bytes, step: int) -> list[int]:
    """After how many bytes it is said to be over, if it is read in steps, and what is held back is given again."""
    reader, rest, found = QemuStream(), b"", []
    for at in range(0, len(stream), step):
        piece = rest + stream[at : at + step]
        _, tail = reader.feed(piece)
        rest = piece[len(piece) - tail :]
        if reader.is_over:
            found.append(min(at + step, len(stream)))
    return found


@pytest.mark.parametrize("step", [97, 4099, 1 << 20])
def test_a_recorded_stream_is_over_with_its_last_byte(step: int) -> None:
    assert over_at(PLAIN, step) == [len(PLAIN)]


def test_it_is_not_over_at_any_byte_before() -> None:
    begun = PLAIN.rindex(b"\0\6", 0, PLAIN.rindex(b'{"configuration"') if b'{"configuration"' in PLAIN else None)
    reader = QemuStream()
    _, tail = reader.feed(PLAIN[:begun])
    assert (tail, reader.is_over) == (0, False)
    for at in range(begun, len(PLAIN)):
        assert not reader.is_over
        reader.feed(PLAIN[at : at + 1])
    assert reader.is_over


def test_it_is_over_no_more_if_it_goes_on() -> None:
    reader = QemuStream()
    reader.feed(PLAIN)
    reader.feed(b"more")
    assert not reader.is_over


@pytest.mark.parametrize("name", ["rounds", "postcopy", "multifd-0", "multifd-1"])
def test_a_stream_without_a_description_is_never_known_to_be_over(name: str) -> None:
    assert over_at(load("qemu", name), 1 << 20) == []


def test_a_stream_that_is_not_understood_is_never_known_to_be_over() -> None:
    reader = QemuStream()
    reader.feed(b"QEVN" + PLAIN[4:])
    assert (reader.understood, reader.is_over) == (False, False)


@pytest.mark.parametrize(
    "data",
    [
        end(length=len(TOLD) - 1),
        end(length=len(TOLD) + 1),
        end(b'["devices"]}'),
        end(b"{" + bytes(9) + b"}"),
        end(b"{" * 100_000 + b"}"),
        TOLD,
        b"\0\7" + end()[2:],
    ],
    ids=["too short", "too long", "no object", "no JSON", "too deep", "alone", "another record"],
)
def test_what_only_looks_like_it_is_none(data: bytes) -> None:
    assert not Description().is_whole(b"state" + data)


def test_it_may_stand_behind_what_only_looks_like_it() -> None:
    looked = Description()
    assert not looked.is_whole(end(length=7) + b"}")
    assert looked.is_whole(end())


def test_no_more_is_kept_than_a_description_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "MOST", 1000)
    looked = Description()
    for _ in range(100):
        looked.is_whole(bytes(999))
        assert len(looked._kept) <= 2000
    assert looked.is_whole(end())
    assert not looked.is_whole(end(json.dumps({"a": "b" * 3000}).encode()))
