"""The firewall against bytes that were made to hurt it: the documented errors, bounded answers, and nothing that gets through.

Targets: frames of RPC, XDR, XML and its rules, and whole calls that were honest before a few of their bytes were changed.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from agent.stream import bounded_xml, domain_rules, rpc_calls, xdr
from agent.stream.firewall import Action, Firewall, State
from agent.stream.libvirt_rpc import HEADER_SIZE, Message, MessageReader
from agent.stream.rpc_end import RpcEnd
from agent.stream.rpc_error import MOST_BYTES, error_text
from landbridge.errors import ProtocolError
from tests.unit.rpc_made import (
    ALLOWED,
    DOMAIN,
    GREETING,
    LEAVE,
    UUID,
    WEB,
    approval,
    opened,
    persistent,
    prepared,
    read,
)

# Rounds of each target; LANDBRIDGE_FUZZ makes it more, for a night.
ROUNDS = 400 * int(os.environ.get("LANDBRIDGE_FUZZ", "1"))
# Seconds that one message of any kind may take: a conversation has 64 of them at most.
MOST_SECONDS = 1.0
HONEST = [*GREETING, WEB.prepare(), WEB.finish(), *LEAVE]
WORDS = (0, 1, 7, 8, 64, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 20, 16 << 20)
XML_PIECES = (
    "\n",
    "  ",
    "<!-- said by the way -->",
    "<!DOCTYPE domain>",
    "<!ENTITY x 'y'>",
    "&x;",
    "&#0;",
    "<?xml version='1.1'?>",
    "<![CDATA[</domain>]]>",
    "<qemu:arg xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/>",
    "<emulator>/tmp/x</emulator>",
    "../",
    "'",
    '"',
    "<",
    ">",
    "/>",
    "\0",
    "\ud7ff",
    "<a>" * 40,
    "x" * 9000,
)


@pytest.fixture(params=range(4))
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Some bytes, with a few changes."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del data[at : at + chance.randint(1, 9)]
            case 3:
                at -= at % 4
                data[at : at + 4] = struct.pack("!I", chance.choice(WORDS))
            case 4:
                data[at:at] = data[at : at + chance.randint(1, 200)]
            case _:
                data[at:at] = chance.choice(XML_PIECES).encode()
    return bytes(data)


def framed(raw: bytes) -> bytes:
    """A message whose length is right again."""
    body = raw[4:].ljust(HEADER_SIZE - 4, b"\0")
    return struct.pack("!I", len(body) + 4) + body


def timed(act: Callable[[], object]) -> None:
    began = time.process_time()
    act()
    assert time.process_time() - began < MOST_SECONDS


def test_frames_are_messages_or_a_protocol_error(chance: random.Random) -> None:
    whole = b"".join(HONEST)
    for _ in range(ROUNDS):
        end = RpcEnd(Firewall(approval()))
        try:
            end.from_channel(mutated(whole, chance))
        except ProtocolError:
            continue


def payload_readers() -> Iterator[Callable[[xdr.Reader], object]]:
    yield lambda reader: reader.parameters()
    yield lambda reader: reader.string()
    yield lambda reader: reader.opaque(1 << 20)
    yield lambda reader: (reader.optional(), reader.uint(), reader.word())
    yield xdr.Reader.end


def test_xdr_is_read_or_a_protocol_error(chance: random.Random) -> None:
    payload = bytes(read(WEB.prepare()).payload)
    for _ in range(ROUNDS):
        for use in payload_readers():
            try:
                use(xdr.Reader(mutated(payload[: chance.randrange(len(payload))], chance)))
            except ProtocolError:
                continue


def test_a_call_that_was_changed_passes_only_if_it_decodes_to_what_is_approved(chance: random.Random) -> None:
    passed = 0
    for _ in range(ROUNDS):
        # A definition that was changed, in a call that is as it should be.
        definition = mutated(DOMAIN.encode(), chance).decode("utf-8", "replace")
        for raw, made in (
            (framed(mutated(WEB.prepare(), chance)), opened),
            (framed(mutated(WEB.finish(), chance)), prepared),
            (WEB.prepare(WEB.changed("destination_xml", definition)), opened),
            (WEB.finish(cookie=WEB.cookie(more=persistent(definition))), prepared),
        ):
            firewall = made()
            verdict = firewall.call(read(raw))
            if verdict.action in {Action.PASS, Action.HOLD}:
                passed += 1
                assert_is_approved(read(raw))
            else:
                assert verdict.refusal
                assert firewall.state in {State.REFUSED, State.REFUSED_PREPARED}
                if verdict.action is Action.ANSWER:
                    assert error_text(bytes(read(verdict.reply).payload)).startswith("Landbridge refused ")
                    assert len(verdict.reply) < 3 * MOST_BYTES
    # Else the test shows nothing: white space and comments pass.
    assert passed


def assert_is_approved(call: Message) -> None:
    """By other means than the firewall's own."""
    kind, arguments = rpc_calls.decode(call)
    if arguments is None:
        return
    given = {parameter.field: parameter.value for parameter in arguments.parameters}
    assert arguments.flags == WEB.flags
    if kind is rpc_calls.Call.CANCEL and not arguments.cookie:
        return
    definitions = [str(given["destination_xml"])]
    cookie = arguments.cookie.decode()
    if "<domain" in cookie:
        definitions.append(cookie[cookie.index("<domain") : cookie.index("</domain>") + len("</domain>")])
    for definition in definitions:
        assert canonical(definition) == canonical(DOMAIN)
    assert given["migrate_uri"] == WEB.ram_uri
    assert given["disks_uri"] == WEB.disk_uri
    assert UUID in cookie


def canonical(text: str) -> object:
    """A definition as nested tuples, by the standard library's parser."""
    import xml.etree.ElementTree as ET  # noqa: PLC0415 - a second opinion

    def shape(element: ET.Element) -> object:
        text = (element.text or "").strip() and element.text
        return element.tag, sorted(element.attrib.items()), text or "", [shape(child) for child in element]

    return shape(ET.fromstring(text))  # noqa: S314 - it is our own, or was read by the bounded one before


def test_definitions_are_read_within_bounds_and_judged(chance: random.Random) -> None:
    judged = 0
    for _ in range(ROUNDS):
        text = mutated(DOMAIN.encode(), chance).decode("utf-8", "replace")
        try:
            root = bounded_xml.parse(text)
        except ProtocolError:
            continue
        judged += 1
        for problem in domain_rules.check(root, ALLOWED):
            assert len(str(problem)) < 600
            assert str(problem).isprintable()
        list(domain_rules.named_paths(root))
        domain_rules.check_cookie(root, name="web", uuid=UUID, disks=frozenset())
    assert judged


HUGE = (
    "<domain>" + "<a b='c'/>" * 19_000 + "</domain>",
    "<domain>" + "<devices>" * 30 + "</devices>" * 30 + "</domain>",
    "<domain a='" + "x" * 1_000_000 + "'/>",
    "<domain>" + "x" * 1_000_000 + "</domain>",
    "<domain>" + "&amp;" * 200_000 + "</domain>",
    "<domain " + " ".join(f"a{n}='1'" for n in range(90_000)) + "/>",
    "<domain " + " ".join(f"xmlns:a{n}='u{n}'" for n in range(50_000)) + "/>",
    "<" * 1_000_000,
    "<!--" + "-" * 1_000_000 + "-->",
)


@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:20])
def test_what_is_as_large_as_it_may_be_takes_no_longer_than_it_may(text: str) -> None:
    firewall = opened()
    raw = WEB.prepare(WEB.changed("destination_xml", text))
    timed(lambda: firewall.call(read(raw)))
    assert firewall.state is State.REFUSED


def test_many_small_messages_and_one_byte_at_a_time_take_no_longer_than_they_may() -> None:
    end = RpcEnd(Firewall(approval()))

    def trickle() -> None:
        for byte in WEB.prepare() * 3:
            end.from_channel(bytes([byte]))

    timed(trickle)
    reader = MessageReader()
    timed(lambda: list(reader.receive_data(HONEST[0] * 20_000)))
