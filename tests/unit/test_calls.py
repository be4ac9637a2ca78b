"""What stands between libvirtd's socket and its channel: who is told of messages, and how many may wait."""

from __future__ import annotations

import pytest

from agent import calls
from agent.calls import Calls
from agent.stream.libvirt_rpc import Keepalive, MessageType, keepalive
from agent.traffic import Traffic
from landbridge.channel import Channel
from landbridge.errors import PermissionDenied, ProtocolError
from landbridge.estimator import SMALLEST_SEGMENT
from landbridge.frame import FrameType
from landbridge.link import POOL
from tests.unit.channels import bytes_of, frames_of, pair
from tests.unit.rpc_made import prepared
from tests.unit.test_libvirt_rpc import EVENT, PREPARE, message
from tests.unit.test_rpc_end import CALL, CANCELLING_CALL

PING, PONG = keepalive(Keepalive.PING), keepalive(Keepalive.PONG)


def read(end: Calls, said: bytes) -> None:
    """Have libvirtd say something."""
    room = POOL.take(max(len(said), 1))
    room[:] = said
    assert end.from_local(room, len(said), 0.0) is True


def taken(end: Calls, most: int = 1 << 30) -> bytes:
    """What libvirtd takes now, in pieces of so many bytes."""
    found = b""
    while (data := end.next_for_local()) is not None:
        piece = bytes(data[:most])
        found += piece
        end.written(len(piece))
    return found


def at_the_source(traffic: Traffic | None = None) -> tuple[Calls, Channel]:
    opener, _ = pair()
    frames_of(opener)
    return Calls(opener, traffic or Traffic()), opener


def test_a_ping_is_answered_and_what_else_libvirtd_says_goes_on() -> None:
    end, channel = at_the_source()
    read(end, PING + EVENT + PING)
    assert taken(end) == PONG * 2
    assert bytes_of(frames_of(channel)) == [(0, EVENT)]


def test_a_message_is_told_of_before_it_goes_on_and_after_all_of_it_was_taken() -> None:
    traffic, told = Traffic(), list[str]()
    end, channel = at_the_source(traffic)
    traffic.on_message_from_libvirtd = lambda each: told.append(f"from {each.procedure} {bytes_of(frames_of(channel))}")
    traffic.on_message_to_libvirtd = lambda each: told.append(f"to {each.procedure}")
    read(end, PREPARE)
    assert len(told) == 1
    assert told[0].endswith("[]")
    assert bytes_of(frames_of(channel)) == [(0, PREPARE)]
    end.from_channel(EVENT + EVENT[:5], 0.0)
    end.next_for_local()
    end.written(len(EVENT) - 1)
    assert bytes(end.next_for_local() or b"") == EVENT[-1:]
    assert len(told) == 1
    end.written(1)
    assert told[1:] == ["to 400"]
    assert end.next_for_local() is None  # of the next one, the end is missing


def test_more_messages_than_may_wait_for_libvirtd_hold_the_other_agent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_WAITING", 1 << 20)
    end, channel = at_the_source()
    each = message(1, MessageType.REPLY, 1, payload=bytes((1 << 16) - 28))
    for _ in range(64):
        end.from_channel(each, 0.0)
    assert channel.incoming.delivered == 1 << 20
    assert taken(end, 5000) == each * 64
    assert channel.incoming.delivered == 64 * len(each)


def test_libvirtd_is_heard_while_there_is_no_way_and_not_before_the_channel_was_open_nor_after_its_end() -> None:
    end, channel = at_the_source()
    assert end.room == SMALLEST_SEGMENT
    channel.disconnect()
    assert (channel.room, end.room) == (0, SMALLEST_SEGMENT)
    channel.reset("it was given up")
    assert end.room == 0
    assert Calls(Channel(7, 0.0, opening=b"who"), Traffic()).room == 0


def test_what_libvirtd_says_and_nobody_can_follow_is_refused() -> None:
    end, channel = at_the_source()
    with pytest.raises(ProtocolError, match="none of libvirt's"):
        read(end, bytes(28))
    assert bytes_of(frames_of(channel)) == []


def test_without_a_firewall_the_other_host_calls_nothing() -> None:
    with pytest.raises(PermissionDenied, match="no calls of libvirt's are expected here"):
        Calls(Channel(7, 0.0), Traffic())


@pytest.mark.parametrize(("whole", "passes"), [(True, CALL), (False, CANCELLING_CALL)])
def test_a_finish_call_waits_at_the_gate_and_passes_as_what_is_known_then(whole: bool, passes: bytes) -> None:
    _, acceptor = pair()
    end = Calls(acceptor, Traffic(firewall=prepared()))
    end.from_channel(CALL, 0.0)
    before = end.is_held
    assert taken(end) == b""
    end.pass_gate(whole)
    assert (before, end.is_held) == (True, False)
    assert taken(end) == passes


def test_a_call_that_is_refused_is_answered_and_told_of() -> None:
    _, acceptor = pair()
    frames_of(acceptor)
    refused = list[str]()
    traffic = Traffic(firewall=prepared(), on_refused=lambda refusal: refused.append(refusal.call))
    end = Calls(acceptor, traffic)
    end.from_channel(PREPARE, 0.0)
    assert end.next_for_local() is None
    (answer,) = (frame for frame in frames_of(acceptor) if frame.type is FrameType.DATA)
    assert b"Landbridge refused" in bytes(answer.payload)
    assert len(refused) == 1
