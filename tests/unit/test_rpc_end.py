"""An rpc channel's end: pings that are answered here, the firewall's answers, and the gate."""

from __future__ import annotations

import pytest

from agent.stream.libvirt_rpc import Keepalive, MessageType, Status, keepalive
from agent.stream.rpc_end import RpcEnd
from agent.stream.rpc_error import error_text
from landbridge.errors import ProtocolError
from tests.unit.rpc_made import AUTH_LIST, CLOSE, call, finish, prepare, prepared, read, reply

CALL, CANCELLING_CALL = finish(0), finish(1)
REPLY = reply(CALL, b"domain")
EVENT = call(362, kind=MessageType.MESSAGE, serial=0)
PING, PONG = keepalive(Keepalive.PING), keepalive(Keepalive.PONG)


def at_the_source() -> RpcEnd:
    return RpcEnd(None)


def at_the_destination() -> RpcEnd:
    """QEMU waits for memory."""
    return RpcEnd(prepared())


# Pings.


def given(end: RpcEnd) -> list[bytes]:
    """What libvirtd is given now."""
    taken = []
    while (following := end.next_for_libvirtd()) is not None:
        taken.append(following.raw)
    return taken


def is_held(end: RpcEnd) -> bool:
    """Now: mypy would take the first answer for the last."""
    return end.is_held


def test_a_ping_is_answered_here_and_does_not_go_on() -> None:
    end = at_the_source()
    assert [m.raw for m in end.from_libvirtd(prepare() + PING + REPLY)] == [prepare(), REPLY]
    assert given(end) == [PONG]


def test_a_ping_of_the_daemon_that_is_called_is_answered_here_too() -> None:
    end = at_the_destination()
    assert end.from_libvirtd(PING) == []
    assert given(end) == [PONG]


def test_an_answer_of_libvirtd_goes_nowhere() -> None:
    end = at_the_source()
    assert end.from_libvirtd(PONG) == []
    assert given(end) == []


def test_what_comes_from_afar_is_no_ping_to_us() -> None:
    end = at_the_source()
    end.from_channel(PING + REPLY + PONG)
    assert given(end) == [REPLY]


def test_a_message_is_given_only_when_it_is_whole_so_that_an_answer_never_lands_inside() -> None:
    end = at_the_source()
    end.from_channel(REPLY[:-1])
    end.from_libvirtd(PING)
    assert given(end) == [PONG]
    end.from_channel(REPLY[-1:])
    assert given(end) == [REPLY]


# The firewall.


def test_a_refused_call_is_answered_and_libvirtd_sees_nothing_of_it() -> None:
    end = at_the_destination()
    end.from_channel(call(10, serial=77))
    assert given(end) == []
    (answer,) = map(read, end.take_answers())
    assert (answer.procedure, answer.type, answer.serial, answer.status) == (10, MessageType.REPLY, 77, Status.ERROR)
    assert error_text(bytes(answer.payload)) == end.refusals[0].sentence
    assert end.take_answers() == []


def test_a_message_that_cannot_be_answered_ends_the_channel_and_is_told() -> None:
    end = at_the_destination()
    with pytest.raises(ProtocolError, match=r"Landbridge refused .* type 3 .*; the channel is closed"):
        end.from_channel(call(303, kind=MessageType.STREAM))
    assert end.refusals[0].enforced
    assert given(end) == []


def test_whoever_breaks_the_rules_while_its_guest_waits_at_the_gate_does_not_let_it_arrive() -> None:
    end = at_the_destination()
    end.from_channel(CALL + call(10))
    assert given(end) == [CANCELLING_CALL]
    end.from_libvirtd(reply(CALL, status=Status.ERROR))
    end.from_channel(CLOSE)
    assert given(end) == [CLOSE]


def test_what_libvirtd_says_must_answer_a_call() -> None:
    end = at_the_destination()
    assert [m.raw for m in end.from_libvirtd(EVENT)] == [EVENT]
    with pytest.raises(ProtocolError, match="it answers no call"):
        end.from_libvirtd(reply(AUTH_LIST))


# The gate.


@pytest.mark.parametrize("kind", [MessageType.CALL_WITH_FDS, MessageType.CALL])
@pytest.mark.parametrize("enforces", [True, False])
def test_a_call_that_would_go_round_the_gate_is_refused_even_if_nothing_else_is(
    enforces: bool, kind: MessageType
) -> None:
    calls = [finish(0, kind=MessageType.CALL_WITH_FDS)] if kind is MessageType.CALL_WITH_FDS else []
    calls += [call(old, kind=kind) for old in (63, 109, 217)]
    # libvirt does not look at what follows the arguments.
    calls.append(call(306, bytes(read(CALL).payload) + bytes(4), kind=kind))
    for each in calls:
        end = RpcEnd(prepared(enforces=enforces))
        end.from_channel(each)
        assert given(end) == []
        assert not is_held(end)
        assert len(end.take_answers()) == 1


def test_the_call_by_which_the_guest_arrives_waits() -> None:
    end = at_the_destination()
    end.from_channel(CALL)
    assert is_held(end)
    assert given(end) == []
    end.open_gate()
    assert not is_held(end)
    assert given(end) == [CALL]


def test_what_follows_it_waits_behind_it_where_nothing_is_enforced() -> None:
    end = RpcEnd(prepared(enforces=False))
    end.from_channel(CALL + CLOSE)
    assert given(end) == []
    end.open_gate()
    assert given(end) == [CALL, CLOSE]


def test_a_gate_that_cancels_changes_the_last_word_of_the_call_and_nothing_else() -> None:
    end = at_the_destination()
    end.from_channel(CALL)
    end.cancel_gate()
    assert given(end) == [CANCELLING_CALL]


def test_pings_are_answered_while_a_call_is_held() -> None:
    end = at_the_destination()
    end.from_channel(CALL)
    end.from_libvirtd(PING)
    assert given(end) == [PONG]


def test_what_libvirtd_says_goes_on_while_a_call_is_held() -> None:
    end = at_the_destination()
    end.from_channel(CALL)
    assert [m.raw for m in end.from_libvirtd(EVENT)] == [EVENT]


@pytest.mark.parametrize("cancelled", [1, 2, -1, 1 << 24])
def test_a_call_that_cancels_is_not_held(cancelled: int) -> None:
    end = at_the_destination()
    end.from_channel(finish(cancelled))
    assert not end.is_held
    assert given(end) == [finish(cancelled)]


@pytest.mark.parametrize("enforces", [True, False])
@pytest.mark.parametrize("first", [CALL, CANCELLING_CALL])
def test_a_second_call_to_finish_is_refused(first: bytes, enforces: bool) -> None:
    end = RpcEnd(prepared(enforces=enforces))
    end.from_channel(first)
    end.open_gate()
    assert given(end) == [first]
    end.from_libvirtd(reply(first))
    end.from_channel(CALL)
    assert given(end) == []
    assert not is_held(end)


def test_a_gate_that_is_opened_or_cancelled_with_nothing_held_does_nothing() -> None:
    end = at_the_source()
    end.open_gate()
    end.cancel_gate()
    end.from_channel(EVENT)
    assert given(end) == [EVENT]


def test_at_the_source_nothing_is_held() -> None:
    end = at_the_source()
    end.from_channel(CALL + CALL)
    assert given(end) == [CALL, CALL]


def test_what_waits_for_libvirtd_or_the_gate_is_counted_until_it_is_taken() -> None:
    end = at_the_destination()
    end.from_libvirtd(PING)
    end.from_channel(CALL)
    assert end.waiting_bytes == len(PONG + CALL)
    given(end)
    assert end.waiting_bytes == len(CALL)
    end.cancel_gate()
    given(end)
    assert end.waiting_bytes == 0
