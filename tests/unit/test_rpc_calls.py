"""The table of calls: what is read of each."""

from __future__ import annotations

import pytest

from agent.stream import rpc_calls, xdr
from agent.stream.libvirt_rpc import MessageType
from agent.stream.rpc_calls import Call, Finish, Prepare, cancelling, decode, finishes
from landbridge.errors import ProtocolError
from tests.unit.rpc_made import AUTH_LIST, CLOSE, OPEN, REGISTER, UNREGISTER, WEB, call, feature, read


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (AUTH_LIST, Call.AUTH_LIST),
        (feature(10), Call.FEATURE_OF_PROGRAM),
        (OPEN, Call.OPEN),
        (feature(14), Call.FEATURE),
        (REGISTER, Call.REGISTER),
        (WEB.prepare(), Call.PREPARE),
        (WEB.finish(), Call.FINISH),
        (WEB.finish(1), Call.CANCEL),
        (UNREGISTER, Call.UNREGISTER),
        (CLOSE, Call.CLOSE),
    ],
)
def test_each_call_of_a_migration_is_read(raw: bytes, kind: Call) -> None:
    assert decode(read(raw))[0] is kind


def test_arguments_are_read_to_the_last() -> None:
    _, prepare = decode(read(WEB.prepare()))
    assert prepare == Prepare(tuple(WEB.parameters), WEB.cookie(), WEB.flags)
    _, finish = decode(read(WEB.finish(-7)))
    assert isinstance(finish, Finish)
    assert finish.cancelled
    assert decode(read(cancelling(read(WEB.finish()))))[0] is Call.CANCEL


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (call(1, xdr.optional(None) + xdr.uint(0)), "it opens '' with flags 0x0 instead of qemu:///system with none"),
        (call(1, xdr.optional(b"qemu:///system") + xdr.uint(1)), "it opens 'qemu:///system' with flags 0x1"),
        (call(1, xdr.optional(b"qemu:///system/x") + xdr.uint(0)), "16 bytes where at most 14"),
        (call(66, bytes(4)), "4 bytes follow"),
        (feature(11), "feature 11 is not part of a migration"),
        (call(303, xdr.parameters([]) + xdr.uint(rpc_calls.COOKIE_MAX + 1)), "bytes where at most 1048576"),
    ],
)
def test_what_is_no_call_of_a_migration_says_why(raw: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode(read(raw))


def test_every_form_of_the_end_is_known_with_files_and_without() -> None:
    for number in (63, 109, 217, 306):
        assert finishes(read(call(number)))
        assert finishes(read(call(number, kind=MessageType.CALL_WITH_FDS)))
        assert not finishes(read(call(number, kind=MessageType.REPLY)))
    assert not finishes(read(call(303)))
