"""What a local socket says, with its hints: at the source and at the destination, of memory and of disks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.stream.hinter import Hinter
from agent.stream.qemu import QemuStream
from landbridge import hints
from landbridge.hints import PAGE, SIZES, Run
from tests.unit.nbd_made import READ, SIMPLE, STRUCTURED, WRITE, beginning, reply, request
from tests.unit.nbd_reading import blocks_of, joined
from tests.vectors import load as load_stream
from tests.vectors import names as streams
from tests.vectors.nbd_sessions import Session, load

MOST = 256 << 10


def pages_of(run: Run, at: int = 0) -> Iterator[tuple[int, int]]:
    """Where each of its records begins, if its frame begins at `at`, and which number it has."""
    number = run.key & ((1 << hints.NUMBER_BITS) - 1)
    return ((at + run.offset + i * SIZES[run.kind], number + i) for i in range(run.count))


class End:
    """A local socket and a channel, and between them what an agent does."""

    def __init__(self, kind: str, *, is_client: bool) -> None:
        self.hinter = Hinter(kind, is_client=is_client)
        # What has gone into the channel: the payloads of frames, with their hints.
        self.frames: list[tuple[bytes, bytes]] = []
        self._is_client = is_client
        self._held = b""

    def say(self, data: bytes) -> None:
        piece = self._held + data
        section, tail = self.hinter.hold(memoryview(piece))
        assert tail < 8192
        self.frames.append((piece[: len(piece) - tail], section))
        self._held = piece[len(piece) - tail :]

    def let_go(self) -> None:
        self.hinter.give_up_tail()
        self.frames.append((self._held, b""))
        self._held = b""

    def follow(self, session: Session) -> None:
        for client, data in session:
            if client is self._is_client:
                self.say(data)
            else:
                self.hinter.pass_by(memoryview(data))
        self.let_go()

    @property
    def wire(self) -> bytes:
        return b"".join(payload for payload, _ in self.frames)

    def pages(self) -> Iterator[tuple[int, int]]:
        """Where each record begins in all that went, and its number."""
        at = 0
        for payload, section in self.frames:
            for run in hints.decode(section, len(payload)):
                yield from pages_of(run, at)
            at += len(payload)


@pytest.mark.parametrize("is_client", [True, False])
@pytest.mark.parametrize("name", ["mirror", "copy_here", "odd", "simple", "export_name"])
def test_blocks_of_a_disk_get_hints_at_the_end_that_sends_them(name: str, is_client: bool) -> None:
    session = load(name)
    end = End("disk", is_client=is_client)
    end.follow(session)
    assert end.wire == joined(session, client=is_client)
    expected = {(at, number) for client, at, number in blocks_of(session) if client is is_client}
    assert set(end.pages()) == expected
    assert end.hinter.hinted_bytes == len(expected) * PAGE
    assert end.hinter.hinted_bytes + end.hinter.unhinted_bytes == len(end.wire)
    assert (end.hinter.understood, end.hinter.lost_at, end.hinter.why) == (True, None, "")


def test_a_block_whose_beginning_was_let_go_has_no_hint_and_the_next_one_does() -> None:
    end = End("disk", is_client=True)
    end.follow(beginning(STRUCTURED))
    wire = request(STRUCTURED, WRITE, 1, 0, 3 * PAGE, bytes(3 * PAGE))
    end.say(wire[: 28 + PAGE + 10])
    end.let_go()
    end.say(wire[28 + PAGE + 10 :])
    assert [number for _, number in end.pages()] == [0, 2]
    assert end.hinter.hinted_bytes == 2 * PAGE
    assert end.hinter.hinted_bytes + end.hinter.unhinted_bytes == len(end.wire)


def test_what_the_far_end_says_in_parts_of_blocks_is_followed() -> None:
    end = End("disk", is_client=True)
    end.follow(beginning(SIMPLE))
    end.say(request(SIMPLE, READ, 1, 0, 2 * PAGE))
    wire = reply(1, 0, bytes(2 * PAGE)) + reply(2)
    for at in range(0, len(wire), 1000):
        end.hinter.pass_by(wire[at : at + 1000])
    end.say(request(SIMPLE, WRITE, 2, 0, PAGE, bytes(PAGE)))
    assert end.hinter.understood
    assert [number for _, number in end.pages()] == [0]


def test_a_session_that_is_not_understood_goes_on_without_hints_and_says_why() -> None:
    end = End("disk", is_client=False)
    session = load("old_style")
    end.follow(session)
    assert end.wire == joined(session, client=False)
    assert not list(end.pages())
    assert (end.hinter.understood, end.hinter.lost_at) == (False, 18)
    assert "takes options" in end.hinter.why
    assert (end.hinter.hinted_bytes, end.hinter.unhinted_bytes) == (0, len(end.wire))


@pytest.mark.parametrize("name", streams("qemu"))
def test_pages_of_memory_get_hints_at_the_source(name: str) -> None:
    stream = load_stream("qemu", name)
    end = End("ram", is_client=True)
    for at in range(0, len(stream), MOST):
        end.say(stream[at : at + MOST])
    end.let_go()
    assert end.wire == stream
    runs, _ = QemuStream().feed(stream)
    assert list(end.pages()) == [page for run in runs for page in pages_of(run)]
    assert end.hinter.hinted_bytes == sum(run.end - run.offset for run in runs)
    assert end.hinter.hinted_bytes + end.hinter.unhinted_bytes == len(stream)


def test_what_goes_back_to_the_source_of_memory_has_no_hints_and_is_no_mistake() -> None:
    end = End("ram", is_client=False)
    end.hinter.pass_by(load_stream("qemu", streams("qemu")[0])[:1000])
    end.say(bytes.fromhex("00020004000000010001000400000000"))
    assert end.frames == [(bytes.fromhex("00020004000000010001000400000000"), b"")]
    assert end.hinter.understood
    assert (end.hinter.hinted_bytes, end.hinter.unhinted_bytes) == (0, 16)


def test_calls_of_libvirt_have_no_pages() -> None:
    with pytest.raises(ValueError, match="'rpc' has no pages"):
        Hinter("rpc", is_client=True)
