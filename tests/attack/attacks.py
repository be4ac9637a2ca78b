"""The attacks: each is what a compromised source host sends, for a VM that this site was told of, and what it is told.

`before` are honest calls, each of which libvirtd answers well; `sends` are bytes of which libvirtd may see nothing. With
`approves`, it lies earlier: at preflight, in the definition that is to be approved; then it is refused before any channel is open.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from agent.stream import xdr
from agent.stream.libvirt_rpc import REMOTE_PROGRAM, MessageType, Procedure, message
from agent.stream.rpc_calls import FLAGS
from agent.stream.xdr import Parameter, ParameterType
from tests.unit.rpc_made import AUTH_LIST, CLOSE, GREETING, OPEN, REGISTER, UNREGISTER, Vm, call, feature, persistent

QEMU_PROGRAM, LXC_PROGRAM, ADMIN_PROGRAM = 0x20008087, 0x00068000, 0x06900690
QEMU_XMLNS = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
# The highest number of libvirt 11.3 is below.
HIGHEST_PROCEDURE = 460
# What a migration calls; the firewall's own table is not asked here.
OF_A_MIGRATION = frozenset({1, 2, 60, 66, 303, 306, 360, 361})


class End(Enum):
    """How it ends for the attacker."""

    # With an error reply to its last call.
    ANSWERED = "refused, with the reason"
    # With the channel reset, and the reason told.
    CUT_OFF = "cut off, with the reason"
    # Before there was a channel.
    NOT_APPROVED = "not approved"
    # Nothing was refused: it hung up in the middle of a message.
    UNHEARD = "never heard"
    # It was no attack.
    HONEST = "answered by libvirtd"


@dataclass(frozen=True)
class Attack:
    """One row. Whatever depends on the VM is made from it."""

    name: str
    # A pattern of what is told.
    told: str
    end: End = End.ANSWERED
    before: Callable[[Vm], list[bytes]] = field(default=lambda _vm: [])
    sends: Callable[[Vm], bytes] = field(default=lambda _vm: b"")
    approves: Callable[[Vm], str] | None = None
    # The attacker sends all at once, and does not wait for answers to what is honest.
    races: bool = False
    # It opens a channel beyond the first one, and sends on that.
    second_channel: bool = False

    def __str__(self) -> str:
        return self.name


def _with(make: Callable[..., bytes], *values: object) -> Callable[[Vm], bytes]:
    """What is made of the VM and of some values."""
    return lambda vm: make(vm, *values)


def _greeted(_vm: Vm) -> list[bytes]:
    return list(GREETING)


def _prepared(vm: Vm) -> list[bytes]:
    return [*GREETING, vm.prepare()]


def _swap(old: str, new: str) -> Callable[[Vm], str]:
    """The VM's definition, with one part of it another."""

    def swapped(vm: Vm) -> str:
        assert old in vm.domain, old
        return vm.domain.replace(old, new, 1)

    return swapped


def _and_raw(disk: re.Match[str]) -> str:
    """A disk, and its image once more, as it is and for reading."""
    return disk[0] + disk[0].replace("'qcow2'", "'raw'").replace("'vda'", "'vdb'").replace(
        "</disk>", "<readonly/></disk>"
    )


_IMAGE = "/var/lib/libvirt/images/"


# What is wrong with a definition: how, and what is said of it.
DEFINITIONS: tuple[tuple[str, Callable[[Vm], str], str], ...] = (
    (
        "another emulator",
        _swap("<emulator>/usr/bin/qemu-system-x86_64<", "<emulator>/tmp/x<"),
        "emulator '/tmp/x' is not allowed",
    ),
    (
        "two emulators",
        _swap("<emulator>", "<emulator>/tmp/x</emulator><emulator>"),
        "emulator '/tmp/x' is not allowed",
    ),
    (
        "options for QEMU (qemu:commandline)",
        lambda vm: vm.domain.replace("<domain ", f"<domain {QEMU_XMLNS} ", 1).replace(
            "</domain>", "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"
        ),
        "commandline> is not allowed",
    ),
    (
        "options for QEMU under another prefix",
        lambda vm: vm.domain.replace(
            "</domain>",
            "<x:commandline xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'><x:arg value='-S'/></x:commandline></domain>",
        ),
        "commandline> is not allowed",
    ),
    ("a DTD", lambda vm: f"<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>{vm.domain}", "has a DTD"),
    (
        "an entity",
        lambda vm: f"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/shadow'>]>{vm.domain}".replace(
            "console", "&x;", 1
        ),
        "has a DTD",
    ),
    (
        "an XML declaration with another encoding",
        lambda vm: f"<?xml version='1.0' encoding='UTF-7'?>{vm.domain}",
        "declaration",
    ),
    ("a disk outside of the pool", _swap(_IMAGE, "/etc/"), "file '/etc/"),
    ("a disk above the pool (../)", _swap(_IMAGE, f"{_IMAGE}../../../../etc/"), r"file '/var/lib/libvirt/images/\.\./"),
    ("another VM's disk", _swap(f"{_IMAGE}", f"{_IMAGE}other-"), "images/other-"),
    (
        "a device of the host as a disk",
        _swap("<disk type='file' device='disk'>", "<disk type='block' device='lun'>"),
        "disk type 'block' is not allowed",
    ),
    (
        "a disk with a file behind it",
        _swap("<backingStore/>", "<backingStore type='file'><source file='/etc/shadow'/></backingStore>"),
        "(backingStore|type='file')",
    ),
    (
        "a kernel outside of its folder",
        lambda vm: re.sub("<kernel>[^<]*/", "<kernel>/etc/", vm.domain, count=1),
        "os kernel '/etc/",
    ),
    (
        "a kernel above its folder (../)",
        lambda vm: re.sub("(<kernel>[^<]*)/", r"\1/../../etc/", vm.domain, count=1),
        "os kernel",
    ),
    (
        "variables of firmware in a file of the host",
        _swap("</os>", "<nvram>/etc/shadow</nvram></os>"),
        "os nvram '/etc/shadow'",
    ),
    (
        "a serial port that writes to a file of the host",
        _swap("<memballoon", "<serial type='file'><source path='/etc/cron.d/x'/></serial><memballoon"),
        "source path '/etc/cron.d/x'",
    ),
    (
        "a serial port on the host's network",
        _swap("<memballoon", "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='9'/></serial><memballoon"),
        "serial type 'tcp' is not allowed",
    ),
    ("another network", _swap("network='lan'", "network='secret'"), "network 'secret' is not allowed"),
    (
        "a bridge of the host",
        _swap("<interface type='network'>", "<interface type='bridge'>"),
        "interface type 'bridge' is not allowed",
    ),
    (
        "a script for an interface",
        _swap("<model type='virtio'/>", "<model type='virtio'/><script path='/tmp/x'/>"),
        "<script> is not allowed",
    ),
    (
        "a device of the host",
        _swap(
            "<memballoon",
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>"
            "<memballoon",
        ),
        "<hostdev> is not allowed",
    ),
    (
        "a directory of the host",
        _swap("<memballoon", "<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem><memballoon"),
        "<filesystem> is not allowed",
    ),
    (
        "another VM's guest agent",
        _swap(
            "<memballoon",
            "<channel type='unix'><source mode='connect' path='/run/libvirt/qemu/channel/3-victim/org.qemu.guest_agent.0'/>"
            "<target type='virtio' name='foo'/></channel><memballoon",
        ),
        "channel source path '/run/libvirt/qemu/channel/3-victim/org.qemu.guest_agent.0' is not allowed",
    ),
    (
        "a terminal of the host",
        _swap("<memballoon", "<serial type='file'><source path='/dev/pts/1'/></serial><memballoon"),
        "serial source path '/dev/pts/1' is not allowed",
    ),
    (
        "an image in two disks",
        lambda vm: re.sub("(?s)<disk .*?</disk>", _and_raw, vm.domain, count=1),
        "is named twice",
    ),
    ("no confinement", _swap("<devices>", "<seclabel type='none'/><devices>"), "seclabel type 'none' is not allowed"),
    ("another type of guest", _swap("<domain type='qemu'", "<domain type='lxc'"), "type 'lxc' is not allowed"),
    ("an attribute that nobody knows", _swap("<memory ", "<memory new='1' "), "attribute new='1' is not allowed"),
    ("100,000 elements", _swap("<devices>", f"{'<x/>' * 100_000}<devices>"), "elements|bytes"),
    ("a thousand levels", _swap("<devices>", f"{'<x>' * 1000}{'</x>' * 1000}<devices>"), "more than 32 levels"),
)
# What would be another VM than the approved one, and is nothing else.
OTHERS: tuple[tuple[str, Callable[[Vm], str], str], ...] = (
    (
        "another UUID",
        lambda vm: vm.domain.replace(vm.uuid, vm.uuid[::-1][:8] + vm.uuid[8:], 1),
        "uuid is .* was approved",
    ),
    ("another name", lambda vm: vm.domain.replace(f"<name>{vm.name}<", "<name>other<"), "name is 'other'"),
    ("more processors", _swap(">1</vcpu>", ">64</vcpu>"), "vcpu is '64', and '1' was approved"),
    ("a device less", _swap("<memballoon model='none'/>", ""), "<memballoon> was approved, and is missing"),
    (
        "a device more",
        _swap("<memballoon", "<sound model='ich9'/><memballoon"),
        "<memballoon> was approved|was not approved",
    ),
)


def _of_prepare(change: Callable[[Vm], str]) -> Callable[[Vm], bytes]:
    return lambda vm: vm.prepare(vm.changed("destination_xml", change(vm)))


def _of_cookie(change: Callable[[Vm], str]) -> Callable[[Vm], bytes]:
    return lambda vm: vm.finish(cookie=vm.cookie(more=persistent(change(vm))))


def _definitions() -> Iterator[Attack]:
    for name, change, told in DEFINITIONS:
        # Images and networks that have no place here are told of before the rules are asked; what is said to be behind an image is
        # never approved, for a copy is whole.
        if "file behind it" not in name:
            yield Attack(f"approval: {name}", f"{told}|has no (place|counterpart)", End.NOT_APPROVED, approves=change)
    for name, change, told in (*DEFINITIONS, *OTHERS):
        yield Attack(f"PREPARE: {name}", told, before=_greeted, sends=_of_prepare(change))
    for name, change, told in (DEFINITIONS[0], DEFINITIONS[2], DEFINITIONS[4], DEFINITIONS[7], OTHERS[0]):
        # A DTD may not stand inside of a document, so that one is refused as what cannot be read.
        yield Attack(
            f"FINISH, in the cookie: {name}", f"{told}|cannot be read", before=_prepared, sends=_of_cookie(change)
        )
    yield Attack(
        "PREPARE, persistent_xml: another emulator",
        "emulator '/tmp/x' is not allowed",
        before=_greeted,
        sends=lambda vm: vm.prepare(vm.changed("persistent_xml", DEFINITIONS[0][1](vm))),
    )


def _order() -> Iterator[Attack]:
    late = "it may not come now"
    for name, before, sends in (
        ("PREPARE before the connection is open", lambda _: [AUTH_LIST], lambda vm: vm.prepare()),
        ("OPEN before AUTH_LIST", lambda _: [], lambda _: OPEN),
        ("a second OPEN", _greeted, lambda _: OPEN),
        ("FINISH without a PREPARE", _greeted, lambda vm: vm.finish()),
        ("a second PREPARE", _prepared, lambda vm: vm.prepare(serial=10)),
        ("a second FINISH", lambda vm: [*_prepared(vm), vm.finish(1)], lambda vm: vm.finish(serial=11)),
        ("PREPARE after leaving", lambda vm: [*_prepared(vm), UNREGISTER], lambda vm: vm.prepare(serial=12)),
        ("REGISTER when QEMU waits", _prepared, lambda _: REGISTER),
    ):
        yield Attack(name, late, before=before, sends=sends)
    yield Attack(
        "two calls at once",
        "before the call before it was answered",
        before=_greeted,
        sends=lambda vm: vm.prepare(serial=21),
        races=True,
    )
    yield Attack("a second rpc channel", "one rpc channel", End.CUT_OFF, before=_greeted, second_channel=True)


def _frames() -> Iterator[Attack]:
    for length in (0, 27, (16 << 20) + 1, (32 << 20) + 5, 0xFFFFFFFF):
        yield Attack(
            f"a frame of {length:,} bytes",
            "none of libvirt's",
            End.CUT_OFF,
            before=_greeted,
            sends=_with(lambda _vm, length: struct.pack("!I", length) + bytes(64), length),
        )
    yield Attack("a frame that is cut short", "", End.UNHEARD, before=_greeted, sends=lambda vm: vm.prepare()[:-1])
    yield Attack(
        "arguments that are cut short",
        "cut short",
        before=_greeted,
        sends=lambda vm: call(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, vm.prepare()[28:-4]),
    )
    yield Attack(
        "arguments with bytes behind them",
        "4 bytes follow",
        before=_greeted,
        sends=lambda vm: call(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, vm.prepare()[28:] + bytes(4)),
    )
    for what, payload in (
        ("parameters", struct.pack("!i", -1) + bytes(64)),
        ("bytes of a name", struct.pack("!ii", 1, -1) + bytes(64)),
        ("bytes of a cookie", struct.pack("!Ii", 0, -1) + bytes(64)),
    ):
        yield Attack(
            f"-1 {what}",
            "4294967295",
            before=_greeted,
            sends=_with(lambda _vm, payload: call(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, payload), payload),
        )
    yield Attack(
        "files handed over with a call",
        "type 4",
        before=_greeted,
        sends=lambda vm: call(
            Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS,
            struct.pack("!I", 1) + vm.prepare()[28:],
            kind=MessageType.CALL_WITH_FDS,
        ),
    )
    for kind in (MessageType.REPLY, MessageType.MESSAGE, MessageType.STREAM, MessageType.STREAM_HOLE):
        yield Attack(
            f"a message of type {kind.name}",
            f"type {int(kind)}",
            End.CUT_OFF,
            before=_greeted,
            sends=_with(lambda _vm, kind: call(303, bytes(8), kind=kind), kind),
        )
    yield Attack(
        "a call with the status of a reply",
        "status 2",
        before=_greeted,
        sends=lambda _vm: message(REMOTE_PROGRAM, 60, MessageType.CALL, 20, 2, xdr.word(4)),
    )


def _programs() -> Iterator[Attack]:
    for name, program, procedure, version in (
        ("QEMU's monitor (QEMU_DOMAIN_MONITOR_COMMAND)", QEMU_PROGRAM, 1, 1),
        ("attaching to a QEMU (QEMU_DOMAIN_ATTACH)", QEMU_PROGRAM, 2, 1),
        ("libvirt's administration (ADMIN_CONNECT_OPEN)", ADMIN_PROGRAM, 1, 1),
        ("containers (LXC_DOMAIN_OPEN_NAMESPACE)", LXC_PROGRAM, 1, 1),
        ("another version of the program", REMOTE_PROGRAM, 303, 2),
    ):
        yield Attack(
            name,
            f"program {program:#x}, version {version}",
            before=_greeted,
            sends=_with(
                lambda _vm, p, n, v: message(p, n, MessageType.CALL, 20, 0, bytes(16), version=v),
                program,
                procedure,
                version,
            ),
        )


def _arguments() -> Iterator[Attack]:
    for name, field_, value, told in (
        ("memory over TCP", "migrate_uri", "tcp://203.0.113.1:9", "migrate_uri is 'tcp://203.0.113.1:9' instead of"),
        ("memory by a program", "migrate_uri", "exec:/tmp/x", "migrate_uri is 'exec:/tmp/x' instead of"),
        ("memory on a socket of the host", "migrate_uri", "unix:///run/libvirt/libvirt-sock", "migrate_uri is"),
        ("disks over TCP", "disks_uri", "tcp://0.0.0.0:10809", "disks_uri is"),
        ("another name", "destination_name", "other", "destination_name is 'other' instead of"),
        ("a disk that is not copied", "migrate_disks", "vdz", "the disk 'vdz' is not copied"),
        ("an address to listen on", "listen_address", "0.0.0.0", "parameter listen_address is not part of"),  # noqa: S104 - refused
        ("graphics of somebody else", "graphics_uri", "spice://203.0.113.1", "parameter graphics_uri"),
        ("a name for TLS", "tls.destination", "x", "parameter tls.destination"),
    ):
        yield Attack(
            f"PREPARE: {name}",
            told,
            before=_greeted,
            sends=_with(lambda vm, f, v: vm.prepare([*vm.changed(f, v)]), field_, value),
        )
    for name, change, told in (
        ("no definition", lambda vm: vm.parameters[1:], "destination_xml is missing"),
        ("no socket for memory", lambda vm: vm.parameters[:1] + vm.parameters[2:], "migrate_uri is missing"),
        ("two definitions", lambda vm: [*vm.parameters, vm.parameters[0]], "destination_xml comes twice"),
        (
            "a port as a parameter",
            lambda vm: [*vm.parameters, Parameter("disks_port", ParameterType.INT, 9)],
            "disks_port",
        ),
        (
            "a number as definition",
            lambda vm: [Parameter("destination_xml", ParameterType.INT, 1), *vm.parameters[1:]],
            "destination_xml",
        ),
    ):
        yield Attack(
            f"PREPARE: {name}", told, before=_greeted, sends=_with(lambda vm, change: vm.prepare(change(vm)), change)
        )
    for name, more, less in (
        ("a guest that runs at once", 0, 1 << 5),
        ("a tunnelled migration", 1 << 2, 0),
        ("post-copy", 1 << 15, 0),
        ("an unsafe migration", 1 << 9, 0),
        ("an offline migration", 1 << 10, 0),
        ("TLS of libvirt's own", 1 << 16, 0),
        ("no disks", 0, 1 << 6),
        ("a flag that nobody knows", 1 << 31, 0),
    ):
        yield Attack(
            f"PREPARE, flags: {name}",
            "its flags are",
            before=_greeted,
            sends=_with(lambda vm, more, less: vm.prepare(flags=(vm.flags | more) & ~less), more, less),
        )
    yield Attack(
        "FINISH, flags: a guest that runs at once",
        "its flags are",
        before=_prepared,
        sends=lambda vm: vm.finish(flags=vm.flags & ~int(FLAGS & 1 << 5)),
    )
    yield Attack("a feature of something else", "feature 2 is not", before=_greeted, sends=lambda _: feature(2, 20))
    yield Attack(
        "another hypervisor is opened",
        "it opens 'lxc:///system'",
        before=lambda _: [AUTH_LIST],
        sends=lambda _: call(Procedure.CONNECT_OPEN, xdr.optional(b"lxc:///system") + xdr.uint(0)),
    )


def _cookies() -> Iterator[Attack]:
    rows: tuple[tuple[str, Callable[[Vm], bytes], str], ...] = (
        ("no cookie", lambda _vm: b"", "it has no cookie"),
        ("of another VM, by name", lambda vm: vm.cookie(name="other"), "name 'other' is not allowed"),
        ("of another VM, by UUID", lambda vm: vm.cookie(uuid=vm.uuid[:-1] + "x"), "uuid"),
        ("of a host without a UUID", lambda vm: vm.cookie(host="x"), "hostuuid 'x'"),
        ("a DTD", lambda vm: b"<!DOCTYPE x>" + vm.cookie(), "has a DTD"),
        ("a port to listen on", lambda vm: vm.cookie(nbd="<nbd port='10809'/>"), "attribute port='10809'"),
        (
            "another VM's disk",
            lambda vm: vm.cookie(nbd="<nbd><disk target='vdz' capacity='1'/></nbd>"),
            "nbd disk target 'vdz'",
        ),
        ("locks", lambda vm: vm.cookie(more="<lockstate driver='x'><leases>x</leases></lockstate>"), "<lockstate>"),
        (
            "data for a switch",
            lambda vm: vm.cookie(more="<network><interface index='0' vporttype='openvswitch'/></network>"),
            "vporttype 'openvswitch'",
        ),
        ("two names", lambda vm: vm.cookie(more=f"<name>{vm.name}</name>"), "2 of <name>"),
        ("two definitions", lambda vm: vm.cookie(more=persistent(vm.domain) + vm.domain), "more than one definition"),
        ("bytes that are no text", lambda vm: vm.cookie(more="ÿ").replace("ÿ".encode(), b"\xff"), "not UTF-8"),
        ("another kind of document", lambda vm: vm.domain.encode(), "<domain> is not allowed here"),
    )
    for name, made, told in rows:
        yield Attack(
            f"PREPARE, cookie: {name}",
            told,
            before=_greeted,
            sends=_with(lambda vm, made: vm.prepare(cookie=made(vm)), made),
        )
    yield Attack(
        "FINISH, cookie: of another host than PREPARE's",
        "its cookie is of another host",
        before=_prepared,
        sends=lambda vm: vm.finish(cookie=vm.cookie(host=vm.host_uuid[::-1][:8] + vm.host_uuid[8:])),
    )


# What is honest reaches libvirtd, which starts a QEMU: else all that follows would show nothing.
CONTROL = Attack(
    "no attack: a migration that is cancelled",
    "",
    End.HONEST,
    before=lambda vm: [*_prepared(vm), vm.finish(1), UNREGISTER, CLOSE],
)


def procedures() -> Iterator[Attack]:
    """Every procedure of the remote program that is not a migration's, and some that are none at all."""
    for number in (-1, 0, *range(1, HIGHEST_PROCEDURE + 1), 2**31 - 1):
        if number not in OF_A_MIGRATION:
            yield Attack(
                f"procedure {number}",
                rf"procedure {number} is not part of a migration",
                before=_greeted,
                sends=_with(lambda _vm, number: call(number, bytes(16), 20), number),
            )


# As many as one conversation has refused before it is cut off.
TOGETHER = 8


def procedures_together() -> Iterator[Attack]:
    """The same in fewer conversations."""
    rows = list(procedures())
    for at in range(0, len(rows), TOGETHER):
        some = rows[at : at + TOGETHER]
        yield Attack(
            f"{some[0].name} to {some[-1].name.removeprefix('procedure ')}",
            "procedure .* is not part of a migration",
            before=_greeted,
            sends=_with(lambda vm, some: b"".join(attack.sends(vm) for attack in some), some),
        )


def linked(link: str) -> Attack:
    """A symbolic link at this path leads out of the folder of kernels."""
    return Attack(
        "approval: a symbolic link out of the folder of kernels",
        "leads to /etc/shadow, where nothing of it may be",
        End.NOT_APPROVED,
        approves=lambda vm: re.sub("<kernel>[^<]*</", f"<kernel>{link}</", vm.domain, count=1),
    )


ATTACKS = (*_programs(), *_order(), *_definitions(), *_arguments(), *_cookies(), *_frames())
