"""The firewall of one migration's rpc channel, at its destination: of libvirt's calls, those that a migration makes, in order, once.

    call of the source ── decode (rpc_calls) ── may it come now (TABLE)? ── is it what was approved? ──> PASS, HOLD
                                 │                        │                         │
                                 └──────────── no ────────┴─────────────────────────┴────────────> ANSWER, CLOSE
    reply of libvirtd ── does it answer a call that waits? ──> PASS

libvirtd sees nothing of a refused call: its caller gets an error reply with the reason, and from then on may only leave. What is
checked, in this order, and whom each step stops:

    1  program, type, procedure       QEMU's monitor, libvirt's administration, every other call; files handed over
    2  arguments, to their last byte  lengths that are negative or too long; bytes that libvirt would read in another way
    3  the table of states            a PERFORM or FINISH without a PREPARE, a second PREPARE, calls that race each other
    4  flags and parameters           a guest that runs at once, post-copy, tunnels, limits that are not ours
    5  URIs                           a QEMU that listens on, or connects to, something else than our sockets
    6  definitions                    programs, files and devices of this host; another VM; another one than was approved
    7  the cookie                     the same in its persistent definition; another VM's name, disks or host

FINISH is held (HOLD) until somebody has seen that memory and disks arrived unaltered (`rpc_end`). With `enforces` off, what breaks
the rules passes and is told; but nothing ever goes round the gate.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # for types; input goes through bounded_xml
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from agent.stream import bounded_xml, domain_rules, rpc_calls
from agent.stream.domain_rules import Allowed
from agent.stream.libvirt_rpc import REMOTE_PROGRAM, Message, MessageType, Procedure, Status
from agent.stream.rpc_calls import DISK_FLAG, FLAGS, PARAMETERS, Arguments, Call, Finish, Prepare
from agent.stream.rpc_error import error_reply
from agent.stream.vocabulary import shown
from landbridge.errors import ProtocolError

# Calls of one migration; the longest that was seen has 13.
MOST_CALLS = 64
# Refused calls that are answered before the channel is closed.
MOST_REFUSED = 8


class State(Enum):
    """How far the source's libvirt is."""

    NEW = "nothing was called"
    GREETED = "the ways to authenticate are known"
    OPEN = "the connection is open"
    PREPARING = "libvirtd prepares"
    PREPARED = "QEMU waits for memory"
    FINISHING = "the end was asked for"
    DONE = "nothing is under way, and nothing can be begun"
    # Something was refused: while QEMU waits here, before, and where there is no connection to be closed in good order.
    REFUSED_PREPARED = "refused; QEMU is to be ended"
    REFUSED = "refused; the connection is to be closed"
    CLOSED = "nothing more may come"


class Happening(Enum):
    """What changes a state, beside a call."""

    PREPARED = "libvirtd has prepared"
    NOT_PREPARED = "libvirtd could not prepare"
    FINISHED = "libvirtd has answered FINISH"
    REFUSAL = "a call was refused"


Input = Call | Happening

_ANY_TIME = (Call.FEATURE_OF_PROGRAM, Call.FEATURE, Call.REGISTER, Call.UNREGISTER)
_REFUSALS = {
    State.NEW: State.CLOSED,
    State.GREETED: State.CLOSED,
    State.OPEN: State.REFUSED,
    State.PREPARING: State.REFUSED_PREPARED,
    State.PREPARED: State.REFUSED_PREPARED,
    State.FINISHING: State.REFUSED,
    State.DONE: State.REFUSED,
    State.REFUSED_PREPARED: State.REFUSED_PREPARED,
    State.REFUSED: State.REFUSED,
    State.CLOSED: State.CLOSED,
}
# All transitions; whatever is not here is refused, if it is a call, and changes nothing, if it happens.
TABLE = MappingProxyType(
    {
        (State.NEW, Call.AUTH_LIST): State.GREETED,
        (State.GREETED, Call.FEATURE_OF_PROGRAM): State.GREETED,
        (State.GREETED, Call.OPEN): State.OPEN,
        **{(state, call): state for state in (State.OPEN, State.DONE) for call in _ANY_TIME},
        (State.OPEN, Call.PREPARE): State.PREPARING,
        (State.OPEN, Call.CLOSE): State.CLOSED,
        (State.PREPARING, Happening.PREPARED): State.PREPARED,
        (State.PREPARING, Happening.NOT_PREPARED): State.DONE,
        (State.PREPARED, Call.FINISH): State.FINISHING,
        (State.PREPARED, Call.CANCEL): State.FINISHING,
        (State.PREPARED, Call.UNREGISTER): State.DONE,
        (State.PREPARED, Call.CLOSE): State.CLOSED,
        (State.FINISHING, Happening.FINISHED): State.DONE,
        (State.DONE, Call.CLOSE): State.CLOSED,
        (State.REFUSED_PREPARED, Happening.NOT_PREPARED): State.REFUSED,
        (State.REFUSED_PREPARED, Call.CANCEL): State.REFUSED,
        (State.REFUSED_PREPARED, Call.UNREGISTER): State.REFUSED,
        (State.REFUSED_PREPARED, Call.CLOSE): State.CLOSED,
        (State.REFUSED, Call.UNREGISTER): State.REFUSED,
        (State.REFUSED, Call.CLOSE): State.CLOSED,
        **{(state, Happening.REFUSAL): after for state, after in _REFUSALS.items()},
    }
)


@dataclass(frozen=True)
class Approval:
    """What was agreed at this host: nothing else may come."""

    name: str
    uuid: str
    # The definition with its names and paths here, as it was approved.
    domain_xml: str
    # Targets of the disks that are copied, such as "vda".
    disks: frozenset[str]
    # What QEMU listens on here: "unix:///run/landbridge/<migration>/ram.sock", and the same for disks.
    ram_uri: str
    disk_uri: str
    allowed: Allowed


class Action(Enum):
    """What becomes of a message."""

    PASS = "pass"  # noqa: S105 - no secret
    # Pass once memory and disks are seen to have arrived.
    HOLD = "hold"
    # It goes no further; the caller gets `reply`.
    ANSWER = "answer"
    # It goes no further, and cannot be answered: the channel is closed.
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that breaks the rules: one sentence, and the part of it that does."""

    sentence: str
    call: str
    part: str
    # False: it was let through all the same, and only told.
    enforced: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a message, and why if it broke the rules."""

    action: Action
    reply: bytes = b""
    refusal: Refusal | None = None


_PASS = Verdict(Action.PASS)


class _BrokenError(Exception):
    """A rule is broken; `message` is a clause, and `part` says where. It never leaves this file."""

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.part = part


class Firewall:
    """The rules of one migration's only rpc channel. Owned by whoever reads the channel."""

    def __init__(self, approval: Approval, *, enforces: bool = True) -> None:
        self.state = State.NEW
        self._approval = approval
        self._approved = bounded_xml.parse(approval.domain_xml)
        self._enforces = enforces
        # Calls that libvirtd has not answered, by their serials.
        self._waiting: dict[int, Message] = {}
        self._calls = self._refused = 0
        # The source's host, by its first cookie.
        self._host_uuid = ""

    # What the source's libvirt says

    def call(self, call: Message) -> Verdict:
        """What becomes of a message of the source."""
        refusal = None
        try:
            kind, arguments = self._decoded(call)
            self._in_order(kind)
        except _BrokenError as broken:
            return self._break(call, broken, always=rpc_calls.finishes(call))
        try:
            self._approved_arguments(arguments)
        except _BrokenError as broken:
            if self._enforces:
                return self._break(call, broken)
            refusal = _refusal(call, broken, enforced=False)
        self.state = TABLE[self.state, kind]
        self._waiting[call.serial] = call
        return Verdict(Action.HOLD if kind is Call.FINISH else Action.PASS, refusal=refusal)

    def _decoded(self, call: Message) -> tuple[Call, Arguments]:
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise _BrokenError(f"more than {MOST_CALLS} calls are not part of a migration")
        try:
            return rpc_calls.decode(call)
        except ProtocolError as error:
            raise _BrokenError(error.message) from None

    def _in_order(self, kind: Call) -> None:
        if self._waiting:
            raise _BrokenError("it came before the call before it was answered")
        if (self.state, kind) not in TABLE:
            raise _BrokenError(f"it may not come now ({self.state.value})")

    # What is approved

    def _approved_arguments(self, arguments: Arguments) -> None:
        if arguments is None:
            return
        self._flags(arguments)
        self._parameters(arguments)
        if arguments.cookie:
            self._cookie(arguments.cookie)
        elif not (isinstance(arguments, Finish) and arguments.cancelled):
            raise _BrokenError("it has no cookie", "cookie")

    def _flags(self, arguments: Prepare) -> None:
        wanted = FLAGS | (DISK_FLAG if self._approval.disks else 0)
        if arguments.flags != wanted:
            raise _BrokenError(f"its flags are {arguments.flags:#x} instead of {wanted:#x}", "flags")

    def _parameters(self, arguments: Prepare) -> None:
        approval, seen = self._approval, set()
        texts = {"destination_name": approval.name, "migrate_uri": approval.ram_uri, "disks_uri": approval.disk_uri}
        for parameter in arguments.parameters:
            field, value = parameter.field, parameter.value
            if PARAMETERS.get(field) is not parameter.type:
                raise _BrokenError(f"its parameter {shown(field)} is not part of a migration", shown(field))
            if field in seen and field != "migrate_disks":
                raise _BrokenError(f"its parameter {field} comes twice", field)
            seen.add(field)
            if field in texts and value != texts[field]:
                raise _BrokenError(f"{field} is {shown(str(value))!r} instead of {texts[field]!r}", field)
            if field == "migrate_disks" and value not in approval.disks:
                raise _BrokenError(f"the disk {shown(str(value))!r} is not copied by this migration", field)
            if field in {"destination_xml", "persistent_xml"}:
                self._definition(_parsed(str(value), field), field)
        if missing := self._required() - seen:
            raise _BrokenError(f"its parameter {min(missing)} is missing", min(missing))

    def _required(self) -> set[str]:
        return {"destination_xml", "migrate_uri"} | ({"disks_uri", "migrate_disks"} if self._approval.disks else set())

    def _definition(self, root: ET.Element, where: str) -> None:
        problems = domain_rules.check(root, self._approval.allowed)
        problem = problems[0] if problems else domain_rules.difference(self._approved, root)
        if problem is not None:
            raise _BrokenError(str(problem), f"{where}: {problem.where}")

    def _cookie(self, cookie: bytes) -> None:
        try:
            text = cookie.removesuffix(b"\0").decode()
        except UnicodeDecodeError:
            raise _BrokenError("its cookie is not UTF-8", "cookie") from None
        root = _parsed(text, "cookie")
        approval = self._approval
        problems = domain_rules.check_cookie(root, name=approval.name, uuid=approval.uuid, disks=approval.disks)
        if problems:
            raise _BrokenError(f"in its cookie, {problems[0]}", f"cookie: {problems[0].where}")
        for definition in root.iterfind("domain"):
            self._definition(definition, "cookie")
        host = root.findtext("hostuuid", "")
        if self._host_uuid not in {"", host}:
            raise _BrokenError(f"its cookie is of another host, {host}", "cookie: qemu-migration/hostuuid")
        self._host_uuid = host

    # What is refused

    def _break(self, call: Message, broken: _BrokenError, *, always: bool = False) -> Verdict:
        """A call is refused; one that only may not come now passes, if nothing is enforced and it does not go round the gate."""
        refusal = _refusal(call, broken, enforced=self._enforces or always)
        if not refusal.enforced:
            self._observe(call)
            return Verdict(Action.PASS, refusal=refusal)
        self.state = TABLE[self.state, Happening.REFUSAL]
        self._refused += 1
        if call.type not in {MessageType.CALL, MessageType.CALL_WITH_FDS} or self._refused > MOST_REFUSED:
            return Verdict(Action.CLOSE, refusal=refusal)
        return Verdict(Action.ANSWER, error_reply(call, refusal.sentence), refusal)

    def _observe(self, call: Message) -> None:
        """It passes all the same: follow it as far as it can be."""
        if call.type in {MessageType.CALL, MessageType.CALL_WITH_FDS}:
            self._waiting[call.serial] = call
        if call.is_call_of(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS) and self.state is State.OPEN:
            self.state = State.PREPARING

    # What libvirtd says

    def reply(self, reply: Message) -> Verdict:
        """What becomes of a message of libvirtd."""
        if self._is_event(reply):
            return _PASS
        call = self._waiting.get(reply.serial) if reply.type == MessageType.REPLY else None
        if call is None or (call.program, call.procedure) != (reply.program, reply.procedure):
            name = f"what libvirtd says, procedure {reply.procedure}, type {reply.type}"
            refusal = Refusal(f"Landbridge refused {name}: it answers no call", name, name, self._enforces)
            return Verdict(Action.CLOSE if self._enforces else Action.PASS, refusal=refusal)
        del self._waiting[reply.serial]
        for happening in _happenings(reply):
            self.state = TABLE.get((self.state, happening), self.state)
        return _PASS

    @staticmethod
    def _is_event(reply: Message) -> bool:
        closed = (REMOTE_PROGRAM, MessageType.MESSAGE, Procedure.CONNECT_EVENT_CONNECTION_CLOSED)
        return (reply.program, reply.type, reply.procedure) == closed


def _refusal(call: Message, broken: _BrokenError, *, enforced: bool) -> Refusal:
    name = _named(call)
    return Refusal(f"Landbridge refused {name}: {broken.message}", name, broken.part or name, enforced)


def _happenings(reply: Message) -> Iterator[Happening]:
    if reply.is_reply_to(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS):
        yield Happening.PREPARED if reply.status == Status.OK else Happening.NOT_PREPARED
    elif reply.is_reply_to(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS):
        yield Happening.FINISHED


def _parsed(text: str, where: str) -> ET.Element:
    try:
        return bounded_xml.parse(text)
    except ProtocolError as error:
        raise _BrokenError(f"its {where} {error.message}", where) from None


def _named(call: Message) -> str:
    """What a message is called in a sentence."""
    if call.program == REMOTE_PROGRAM and call.procedure in set(Procedure):
        return Procedure(call.procedure).name
    return f"a message of program {call.program:#x}, procedure {call.procedure}"
