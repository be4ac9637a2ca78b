"""Calls of a migration as libvirt 9.0 makes them, their replies, and the approval that they keep to; for tests of what stands between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.stream import rpc_calls, xdr
from agent.stream.domain_rules import FIRMWARE, KERNEL, NVRAM, SERIAL, Allowed
from agent.stream.firewall import Approval, Firewall, State
from agent.stream.libvirt_rpc import REMOTE_PROGRAM, Message, MessageReader, MessageType, Procedure, Status, message
from agent.stream.xdr import Parameter, ParameterType

NAME, UUID = "web", "6f540105-fed7-59a2-bcd0-3122e146b4df"
HOST_UUID = "f0491317-fb0f-5623-ab85-1b79271ba2f7"
EMULATOR = "/usr/bin/qemu-system-x86_64"
RAM_URI, DISK_URI = (f"unix:///run/landbridge/m-1/{kind}.sock" for kind in ("ram", "disk"))
DOMAIN = f"""\
<domain type='qemu'>
  <name>{NAME}</name>
  <uuid>{UUID}</uuid>
  <metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'/></metadata>
  <memory unit='KiB'>262144</memory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>/srv/boot/vmlinuz</kernel>
    <cmdline>console=ttyS0</cmdline>
  </os>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>{EMULATOR}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/web.qcow2'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:78:38:8a'/>
      <source network='lan'/>
      <model type='virtio'/>
    </interface>
    <serial type='unix'><source mode='connect' path='/srv/console/web.sock'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""
ALLOWED = Allowed(
    emulators=frozenset({EMULATOR}),
    images=frozenset({"/var/lib/libvirt/images/web.qcow2"}),
    networks=frozenset({"lan"}),
    folders={
        KERNEL: ("/srv/boot",),
        SERIAL: ("/srv/console",),
        NVRAM: ("/var/lib/libvirt/qemu/nvram",),
        FIRMWARE: ("/usr/share/OVMF",),
    },
)
FLAGS = int(rpc_calls.FLAGS | rpc_calls.DISK_FLAG)
TEXTS = {
    "destination_xml": DOMAIN,
    "migrate_uri": RAM_URI,
    "migrate_disks": "vda",
    "disks_uri": DISK_URI,
}


def approval(xml: str = DOMAIN, allowed: Allowed = ALLOWED) -> Approval:
    """What was agreed."""
    return Approval(NAME, UUID, xml, frozenset({"vda"}), RAM_URI, DISK_URI, allowed)


def read(raw: bytes) -> Message:
    """The one message in some bytes."""
    (only,) = MessageReader().receive_data(raw)
    return only


def call(procedure: int, payload: bytes = b"", serial: int = 9, kind: int = MessageType.CALL) -> bytes:
    """A call of the remote program."""
    return message(REMOTE_PROGRAM, procedure, kind, serial, Status.OK, payload)


def reply(to: bytes, payload: bytes = b"", status: Status = Status.OK) -> bytes:
    """An answer."""
    called = read(to)
    return message(called.program, called.procedure, MessageType.REPLY, called.serial, status, payload)


def texts(values: Mapping[str, str]) -> list[Parameter]:
    """Parameters that are strings."""
    return [Parameter(field, ParameterType.STRING, value) for field, value in values.items()]


def cookie(name: str = NAME, uuid: str = UUID, more: str = "", host: str = HOST_UUID) -> bytes:
    """A cookie of the source."""
    return (
        f"<qemu-migration>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <hostname>west-1</hostname>\n"
        f"  <hostuuid>{host}</hostuuid>\n  <feature name='lockstate'/>\n"
        f"  <nbd><disk target='vda' capacity='16777216'/></nbd>\n{more}</qemu-migration>\n\0"
    ).encode()


def arguments(parameters: Sequence[Parameter], given_cookie: bytes, flags: int) -> bytes:
    """Those of PREPARE, and the beginning of those of FINISH."""
    return xdr.parameters(parameters) + xdr.opaque(given_cookie) + xdr.uint(flags)


def prepare(
    parameters: Sequence[Parameter] | None = None,
    given_cookie: bytes | None = None,
    flags: int = FLAGS,
    serial: int = 9,
) -> bytes:
    """PREPARE; as it should be, if nothing else is said."""
    given = texts(TEXTS) if parameters is None else parameters
    payload = arguments(given, cookie() if given_cookie is None else given_cookie, flags)
    return call(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, payload, serial)


def finish(
    cancelled: int = 0,
    parameters: Sequence[Parameter] | None = None,
    given_cookie: bytes | None = None,
    flags: int = FLAGS,
    serial: int = 10,
    kind: int = MessageType.CALL,
) -> bytes:
    """FINISH; as it should be, if nothing else is said."""
    given = texts({**TEXTS, "destination_name": NAME}) if parameters is None else parameters
    kept = cookie(more=f"<feature name='persistent'/>{DOMAIN}") if given_cookie is None else given_cookie
    return call(
        Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS, arguments(given, kept, flags) + xdr.word(cancelled), serial, kind
    )


def feature(number: int, serial: int = 1) -> bytes:
    """CONNECT_SUPPORTS_FEATURE."""
    return call(Procedure.CONNECT_SUPPORTS_FEATURE, xdr.word(number), serial)


AUTH_LIST = call(Procedure.AUTH_LIST, serial=0)
OPEN = call(Procedure.CONNECT_OPEN, xdr.optional(b"qemu:///system") + xdr.uint(0), 2)
REGISTER = call(Procedure.CONNECT_REGISTER_CLOSE_CALLBACK, serial=5)
UNREGISTER = call(Procedure.CONNECT_UNREGISTER_CLOSE_CALLBACK, serial=11)
CLOSE = call(Procedure.CONNECT_CLOSE, serial=12)
GREETING = (
    AUTH_LIST,
    feature(10, 1),
    OPEN,
    feature(14, 3),
    feature(15, 4),
    REGISTER,
    feature(4, 6),
    feature(6, 7),
    feature(13, 8),
)
LEAVE = (UNREGISTER, CLOSE)


def said(firewall: Firewall, *calls: bytes) -> Firewall:
    """The firewall after calls that libvirtd has answered well."""
    for raw in calls:
        firewall.call(read(raw))
        firewall.reply(read(reply(raw)))
    return firewall


def opened(*, enforces: bool = True) -> Firewall:
    """The firewall of a migration that may be prepared."""
    firewall = said(Firewall(approval(), enforces=enforces), *GREETING)
    assert firewall.state is State.OPEN
    return firewall


def prepared(*, enforces: bool = True) -> Firewall:
    """The firewall of a migration whose QEMU waits for memory."""
    firewall = said(opened(enforces=enforces), prepare())
    assert firewall.state is State.PREPARED
    return firewall
