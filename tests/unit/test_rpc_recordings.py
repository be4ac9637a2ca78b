"""Real migrations pass: what two libvirts said to each other, recorded by a relay, of a VM with usual devices and a disk.

tests/vectors/rpc: libvirt 9.0.0 with QEMU 7.2.22 (Debian 12), and libvirt 11.3.0 with QEMU 10.0.13 (Debian 13), each to its like; one
migration that completed and one that was aborted, with the parameters and flags of agent/hypervisor/libvirt_driver.py. Each message stands
behind one byte: C if the source's daemon wrote it, L if the destination's did.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.stream import rpc_calls
from agent.stream.domain_rules import Allowed
from agent.stream.firewall import Action, Approval, Firewall, State
from agent.stream.libvirt_rpc import KEEPALIVE_PROGRAM, LENGTH, Message, MessageReader
from agent.stream.rpc_calls import Call
from tests.unit.rpc_made import EMULATOR, UUID

RECORDINGS = sorted((Path(__file__).parents[1] / "vectors/rpc").glob("*.bin"))
CALLS = [
    Call.AUTH_LIST,
    Call.FEATURE_OF_PROGRAM,
    Call.OPEN,
    *[Call.FEATURE] * 2,
    Call.REGISTER,
    *[Call.FEATURE] * 3,
    Call.PREPARE,
]


def messages(recording: bytes) -> Iterator[tuple[bool, Message]]:
    """Each message, and whether the source's daemon wrote it."""
    at = 0
    while at < len(recording):
        is_source = recording[at : at + 1] == b"C"
        (length,) = LENGTH.unpack_from(recording, at + 1)
        (message,) = MessageReader().receive_data(recording[at + 1 : at + 1 + length])
        at += 1 + length
        if message.program != KEEPALIVE_PROGRAM:
            yield is_source, message


def firewall(said: list[tuple[bool, Message]]) -> Firewall:
    """One that has approved what the recorded PREPARE says."""
    prepare = next(arguments for _, (_, arguments) in decoded(said) if arguments is not None)
    given = {parameter.field: str(parameter.value) for parameter in prepare.parameters}
    allowed = Allowed(
        emulators=frozenset({EMULATOR}),
        images=frozenset({"/var/lib/libvirt/images/usual.qcow2"}),
        networks=frozenset({"lan"}),
    )
    xml, disks = given["destination_xml"], frozenset({"vda"})
    return Firewall(Approval("usual", UUID, xml, disks, given["migrate_uri"], given["disks_uri"], allowed))


def decoded(said: list[tuple[bool, Message]]) -> list[tuple[Message, tuple[Call, rpc_calls.Arguments]]]:
    """The calls of the source."""
    return [(message, rpc_calls.decode(message)) for is_source, message in said if is_source]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_real_migration_passes_and_calls_what_the_table_says(recording: Path) -> None:
    said = list(messages(recording.read_bytes()))
    rules = firewall(said)
    held = []
    for is_source, message in said:
        verdict = rules.call(message) if is_source else rules.reply(message)
        assert verdict.refusal is None
        if verdict.action is Action.HOLD:
            held.append(message)
    assert rules.state is State.CLOSED
    end = Call.CANCEL if "aborted" in recording.stem else Call.FINISH
    assert [kind for _, (kind, _) in decoded(said)] == [*CALLS, end, Call.UNREGISTER, Call.CLOSE]
    assert len(held) == (end is Call.FINISH)


def test_both_versions_are_recorded_with_both_ends() -> None:
    assert [path.stem for path in RECORDINGS] == [
        f"libvirt-{version}-{end}" for version in ("11.3.0", "9.0.0") for end in ("aborted", "completed")
    ]
