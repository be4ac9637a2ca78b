"""Calls of a migration as libvirt 9.0 makes them, their replies, and the approval that they keep to; for tests of what stands between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Vm:
    """A VM that migrates, and what it was approved as."""

    name: str = NAME
    uuid: str = UUID
    domain: str = DOMAIN
    ram_uri: str = RAM_URI
    disk_uri: str = DISK_URI
    disks: tuple[str, ...] = ("vda",)
    host_uuid: str = HOST_UUID

    @property
    def flags(self) -> int:
        """What libvirt sends."""
        return int(rpc_calls.FLAGS | (rpc_calls.DISK_FLAG if self.disks else 0))

    def approval(self, allowed: Allowed = ALLOWED) -> Approval:
        """What was agreed."""
        return Approval(self.name, self.uuid, self.domain, frozenset(self.disks), self.ram_uri, self.disk_uri, allowed)

    def cookie(self, name: str = "", uuid: str = "", more: str = "", host: str = "", nbd: str | None = None) -> bytes:
        """A cookie of the source; as it should be, if nothing else is said."""
        disks = "".join(f"<disk target='{disk}' capacity='16777216'/>" for disk in self.disks)
        return (
            f"<qemu-migration>\n  <name>{name or self.name}</name>\n  <uuid>{uuid or self.uuid}</uuid>\n"
            f"  <hostname>west-1</hostname>\n  <hostuuid>{host or self.host_uuid}</hostuuid>\n"
            f"  <feature name='lockstate'/>\n  {f'<nbd>{disks}</nbd>' if nbd is None else nbd}\n{more}"
            "</qemu-migration>\n\0"
        ).encode()

    @property
    def parameters(self) -> list[Parameter]:
        """Those of PREPARE."""
        given = [("destination_xml", self.domain), ("migrate_uri", self.ram_uri)]
        given += [("migrate_disks", disk) for disk in self.disks]
        given += [("disks_uri", self.disk_uri)] if self.disks else []
        return [text(field, value) for field, value in given]

    def changed(self, field: str, value: str) -> list[Parameter]:
        """Those of PREPARE, of which one is another, or one more."""
        others = [parameter for parameter in self.parameters if parameter.field != field]
        return [*others, text(field, value)]

    def prepare(
        self,
        parameters: Sequence[Parameter] | None = None,
        cookie: bytes | None = None,
        flags: int | None = None,
        serial: int = 9,
    ) -> bytes:
        """PREPARE; as it should be, if nothing else is said."""
        payload = self._arguments(parameters, self.cookie() if cookie is None else cookie, flags)
        return call(Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS, payload, serial)

    def finish(
        self,
        cancelled: int = 0,
        parameters: Sequence[Parameter] | None = None,
        cookie: bytes | None = None,
        flags: int | None = None,
        serial: int = 10,
        kind: int = MessageType.CALL,
    ) -> bytes:
        """FINISH; as it should be, if nothing else is said."""
        given = [*self.parameters, text("destination_name", self.name)] if parameters is None else parameters
        kept = self.cookie(more=persistent(self.domain)) if cookie is None else cookie
        payload = self._arguments(given, kept, flags) + xdr.word(cancelled)
        return call(Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS, payload, serial, kind)

    def _arguments(self, parameters: Sequence[Parameter] | None, cookie: bytes, flags: int | None) -> bytes:
        given = self.parameters if parameters is None else parameters
        return xdr.parameters(given) + xdr.opaque(cookie) + xdr.uint(self.flags if flags is None else flags)


def persistent(domain: str) -> str:
    """What a cookie has in FINISH."""
    return f"<feature name='persistent'/>{domain}"


def text(field: str, value: str) -> Parameter:
    """A parameter that is a string."""
    return Parameter(field, ParameterType.STRING, value)


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


WEB = Vm()
approval, prepare, finish, cookie = WEB.approval, WEB.prepare, WEB.finish, WEB.cookie


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
