"""The calls that a migration makes at its destination, and their arguments: one table for libvirt 9.0 to 11.3, which call the same.

    message ── decode ──> Call, arguments        ProtocolError for everything that is not in the table

Sources: real migrations of both versions were recorded (tests/vectors/rpc), and a version that calls something else gets a table of its
own; the arguments are of libvirt's src/remote/remote_protocol.x, the features of src/libvirt_internal.h, the flags of
include/libvirt/libvirt-domain.h. `python -m tests.attack` shows that nothing else passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from types import MappingProxyType

from agent.stream import xdr
from agent.stream.libvirt_rpc import REMOTE_PROGRAM, Message, MessageType, Procedure, Status
from agent.stream.xdr import Parameter, ParameterType
from landbridge.errors import ProtocolError

# A migration's cookie has kilobytes; libvirt allows 4 MiB (REMOTE_MIGRATE_COOKIE_MAX).
COOKIE_MAX = 1 << 20
# What libvirt opens for `qemu+unix:///system`.
OPENED = "qemu:///system"


class Call(Enum):
    """What a migration asks of the destination's libvirtd."""

    AUTH_LIST = "AUTH_LIST"
    FEATURE_OF_PROGRAM = "CONNECT_SUPPORTS_FEATURE, before OPEN"
    OPEN = "CONNECT_OPEN"
    FEATURE = "CONNECT_SUPPORTS_FEATURE"
    REGISTER = "CONNECT_REGISTER_CLOSE_CALLBACK"
    PREPARE = "DOMAIN_MIGRATE_PREPARE3_PARAMS"
    # The call by which the guest arrives, and the same call with `cancelled`.
    FINISH = "DOMAIN_MIGRATE_FINISH3_PARAMS"
    CANCEL = "DOMAIN_MIGRATE_FINISH3_PARAMS, which cancels"
    UNREGISTER = "CONNECT_UNREGISTER_CLOSE_CALLBACK"
    CLOSE = "CONNECT_CLOSE"


class Feature(IntEnum):
    """VIR_DRV_FEATURE_..., as far as a migration asks for them."""

    MIGRATION_P2P = 4
    MIGRATION_V3 = 6
    PROGRAM_KEEPALIVE = 10
    MIGRATION_OFFLINE = 12
    MIGRATION_PARAMS = 13
    REMOTE_EVENT_CALLBACK = 14
    REMOTE_CLOSE_CALLBACK = 15


FEATURES = frozenset(Feature)


class Flag(IntFlag):
    """VIR_MIGRATE_..., as far as our migrations set them."""

    LIVE = 1 << 0
    PEER2PEER = 1 << 1
    PERSIST_DEST = 1 << 3
    PAUSED = 1 << 5
    NON_SHARED_DISK = 1 << 6


# Each of our migrations has these, and one with disks the other one, too. Without PAUSED, the guest would run here before the
# source has released it.
FLAGS = Flag.LIVE | Flag.PEER2PEER | Flag.PERSIST_DEST | Flag.PAUSED
DISK_FLAG = Flag.NON_SHARED_DISK


# Parameters of PREPARE and FINISH, and their types.
PARAMETERS = MappingProxyType(
    {
        "destination_xml": ParameterType.STRING,
        "persistent_xml": ParameterType.STRING,
        "destination_name": ParameterType.STRING,
        "migrate_uri": ParameterType.STRING,
        "disks_uri": ParameterType.STRING,
        "migrate_disks": ParameterType.STRING,
        "bandwidth": ParameterType.ULLONG,
    }
)


@dataclass(frozen=True, slots=True)
class Prepare:
    """Arguments of PREPARE."""

    parameters: tuple[Parameter, ...]
    cookie: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class Finish(Prepare):
    """Arguments of FINISH."""

    cancelled: bool


Arguments = Prepare | None


def decode(call: Message) -> tuple[Call, Arguments]:
    """What a message calls. Raises ProtocolError, whose message is a clause, for what no migration calls."""
    if call.program != REMOTE_PROGRAM or call.version != 1:
        raise ProtocolError(f"program {call.program:#x}, version {call.version}, is not part of a migration")
    if call.type != MessageType.CALL or call.status != Status.OK:
        raise ProtocolError(f"a message of type {call.type} and status {call.status} is not part of a migration")
    read = _READERS.get(call.procedure)
    if read is None:
        raise ProtocolError(f"procedure {call.procedure} is not part of a migration")
    reader = xdr.Reader(call.payload)
    decoded = read(reader)
    reader.end()
    return decoded


def _open(reader: xdr.Reader) -> tuple[Call, Arguments]:
    name = reader.string(len(OPENED)) if reader.optional() else ""
    flags = reader.uint()
    if (name, flags) != (OPENED, 0):
        raise ProtocolError(f"it opens {name!r} with flags {flags:#x} instead of {OPENED} with none")
    return Call.OPEN, None


def _feature(reader: xdr.Reader) -> tuple[Call, Arguments]:
    feature = reader.word()
    if feature not in FEATURES:
        raise ProtocolError(f"feature {feature} is not part of a migration")
    return (Call.FEATURE_OF_PROGRAM if feature == Feature.PROGRAM_KEEPALIVE else Call.FEATURE), None


def _prepare(reader: xdr.Reader) -> tuple[Call, Arguments]:
    return Call.PREPARE, Prepare(reader.parameters(), reader.opaque(COOKIE_MAX), reader.uint())


def _finish(reader: xdr.Reader) -> tuple[Call, Arguments]:
    finish = Finish(reader.parameters(), reader.opaque(COOKIE_MAX), reader.uint(), bool(reader.word()))
    return (Call.CANCEL if finish.cancelled else Call.FINISH), finish


_READERS: dict[int, Callable[[xdr.Reader], tuple[Call, Arguments]]] = {
    Procedure.AUTH_LIST: lambda _reader: (Call.AUTH_LIST, None),
    Procedure.CONNECT_OPEN: _open,
    Procedure.CONNECT_SUPPORTS_FEATURE: _feature,
    Procedure.CONNECT_REGISTER_CLOSE_CALLBACK: lambda _reader: (Call.REGISTER, None),
    Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS: _prepare,
    Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS: _finish,
    Procedure.CONNECT_UNREGISTER_CLOSE_CALLBACK: lambda _reader: (Call.UNREGISTER, None),
    Procedure.CONNECT_CLOSE: lambda _reader: (Call.CLOSE, None),
}

# The calls that end a migration at its destination, the forms of old libvirts too: what would go round the gate.
FINISHES = frozenset(
    {
        Procedure.DOMAIN_MIGRATE_FINISH,
        Procedure.DOMAIN_MIGRATE_FINISH2,
        Procedure.DOMAIN_MIGRATE_FINISH3,
        Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS,
    }
)


def finishes(call: Message) -> bool:
    """Whether a message ends a migration, in any form: libvirtd does not care whether files come along with a call."""
    is_call = call.type in {MessageType.CALL, MessageType.CALL_WITH_FDS}
    return is_call and call.program == REMOTE_PROGRAM and call.procedure in FINISHES


def cancelling(finish: Message) -> bytes:
    """A FINISH call that was decoded, with `cancelled`, its last word, set, and nothing else changed."""
    return finish.raw[: -xdr.WORD] + xdr.word(1)


class FinishWatch:
    """Watches a migration's calls at its source for the moment from which libvirt there will never run the guest again.

    That is when the daemon has been given a reply of success to a FINISH call in which it did not cancel: only on an error,
    or on a connection lost before that reply, does it let the guest run again (libvirt: qemuMigrationSrcPerformPeer2Peer3).
    """

    def __init__(self) -> None:
        self._finish: int | None = None

    def called(self, call: Message) -> None:
        """Take a message that the daemon has written. Raises ProtocolError for a FINISH call that cannot be read."""
        if call.is_call_of(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
            kind, _ = decode(call)
            self._finish = call.serial if kind is Call.FINISH else None

    def replied(self, reply: Message) -> bool:
        """Take a message that the daemon has been given; says whether that moment has come."""
        is_reply = reply.is_reply_to(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS) and reply.serial == self._finish
        return is_reply and reply.status == Status.OK
