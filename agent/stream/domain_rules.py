"""What a domain definition from another site may say: the vocabulary, and the values that name something of this host.

    check          problems of a definition, before anything is agreed, and of each that comes later
    named_paths    the paths in it, so that whoever may touch files can see where they really lead
    difference     where two definitions differ in more than in how they are written

Why equality with what was approved is not enough: the definition that is approved at preflight comes from the source, too, and a
source host that lies would have another emulator approved. Pure: symbolic links are for the caller.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # for types; input goes through bounded_xml
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from agent.stream import vocabulary
from agent.stream.domain_vocabulary import COOKIE, DOMAIN
from agent.stream.vocabulary import Problem, Rule, Word, shown

CHARDEVS = ("serial", "parallel", "console", "channel")
# What of a path is allowed: the kinds of folders that an agent is told.
FIRMWARE, NVRAM, KERNEL, SERIAL = "firmware", "nvram", "kernel", "serial"
# Where a path may stand, and the folder that it must be below.
PATHS = {
    "domain/os/loader": FIRMWARE,
    "domain/os/nvram/@template": FIRMWARE,
    "domain/os/nvram": NVRAM,
    "domain/os/kernel": KERNEL,
    "domain/os/initrd": KERNEL,
    "domain/os/dtb": KERNEL,
    "domain/os/acpi/table": KERNEL,
    **{f"domain/devices/{device}/source/@path": SERIAL for device in CHARDEVS},
    **{f"domain/devices/{device}/log/@file": SERIAL for device in CHARDEVS},
}
# libvirt chooses where they lie, if nothing is said.
_MAY_BE_EMPTY = frozenset({"domain/os/loader", "domain/os/nvram"})
IMAGE = "domain/devices/disk/source/@file"
# The mark of a VM that has left; no VM comes with it. Labels may come: policies know whose word they are.
_FOREIGN_MARK = re.compile(r"\{urn:landbridge:moved:")
# libvirt makes this path itself for a channel to the guest's agent, from the VM's number and short name and the channel's name, and
# drops it where it reads a definition (qemuDomainChrDefDropDefaultPath): as libvirt 9.0 makes it, and as later ones do.
_OWN_CHANNEL = re.compile(
    r"(?:/var/lib/libvirt/qemu/channel/target/domain-|/run/libvirt/qemu/channel/)[0-9]{1,10}-([^/]+)/([^/]+)"
)
# Characters of a VM's name in its short name (VIR_DOMAIN_SHORT_NAME_MAX).
_SHORT_NAME = 20
_PTY = re.compile(r"/dev/pts/\d{1,6}")
_TOKEN = re.compile(r"[\w.:+-]{1,255}", re.ASCII)
_DEVICE_NAME = re.compile(r"[\w.-]{1,15}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"-?\d{1,20}", re.ASCII)
_PARTITION = re.compile(r"(/[\w.-]*\w[\w.-]*)+", re.ASCII)


@dataclass(frozen=True)
class Allowed:
    """What of this host one VM may use."""

    emulators: frozenset[str]
    # Its images and its networks, as they are called here.
    images: frozenset[str]
    networks: frozenset[str]
    # Folders by what lies in them: FIRMWARE, NVRAM, KERNEL, SERIAL.
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # PCI devices, such as "0000:01:00.0", and shared directories, that it may be given.
    hostdevs: frozenset[str] = frozenset()
    filesystems: tuple[str, ...] = ()
    # Paths of elements and attributes beyond the vocabulary, such as "domain/devices/disk/driver/@new".
    elements: frozenset[str] = frozenset()


def is_below(path: str, folders: Collection[str]) -> bool:
    """Whether a path, as it is written, is absolute, in its simplest form, and below one of some folders."""
    pure = PurePosixPath(path)
    if str(pure) != path or not pure.is_absolute() or ".." in pure.parts or "\0" in path:
        return False
    return any(PurePosixPath(folder) in pure.parents for folder in folders)


def check(root: ET.Element, allowed: Allowed) -> list[Problem]:
    """Every problem of a definition; none if it may come. At most `vocabulary.MOST_PROBLEMS` and a few."""
    problems = vocabulary.check(root, _vocabulary(allowed), _rules(allowed), allowed.elements)
    problems += [
        Problem("domain/metadata", "the mark of a VM that has moved away is not allowed") for _ in _marks(root)
    ]
    problems += _chardevs(root)
    problems += _shared_images(root)
    problems += _granted(root, allowed)
    return problems


def _vocabulary(allowed: Allowed) -> Word:
    """The vocabulary, and what was granted beyond it."""
    grants = ""
    if allowed.hostdevs:
        grants += _HOSTDEV
    if allowed.filesystems:
        grants += _FILESYSTEM
    if not grants:
        return DOMAIN
    granted = vocabulary.read(grants, {}).children
    domain = DOMAIN.children["domain"]
    devices = domain.children["devices"]
    more = Word(devices.attributes, devices.required, {**devices.children, **granted})
    root = Word(domain.attributes, domain.required, {**domain.children, "devices": more})
    return Word(children={"domain": root})


_HOSTDEV = """
hostdev mode! type! managed
  driver name
  source
    address domain! bus! slot! function!
  address type domain bus slot function multifunction
  alias name
  boot order
  rom enabled bar
"""
_FILESYSTEM = """
filesystem type! accessmode fmode dmode
  driver type
  source dir!
  target dir
  readonly
  address type domain bus slot function multifunction
  alias name
"""


def _rules(allowed: Allowed) -> Mapping[str, Rule]:
    rules: dict[str, Rule] = {
        **_FIXED,
        "domain/devices/emulator": lambda value: value in allowed.emulators,
        IMAGE: lambda value: value in allowed.images,
        "domain/devices/interface/source/@network": lambda value: value in allowed.networks,
        "domain/devices/filesystem/source/@dir": lambda value: (
            value in allowed.filesystems or is_below(value, allowed.filesystems)
        ),
    }
    for where, kind in PATHS.items():
        rules[where] = _path_rule(allowed.folders.get(kind, ()), may_be_empty=where in _MAY_BE_EMPTY)
    for device in CHARDEVS:
        below = rules[f"domain/devices/{device}/source/@path"]
        rules[f"domain/devices/{device}/source/@path"] = _chardev_rule(below, device)
    return rules


def _path_rule(folders: Sequence[str], *, may_be_empty: bool) -> Rule:
    return lambda value: (may_be_empty and not value) or is_below(value, folders)


def _chardev_rule(below: Rule, device: str) -> Rule:
    own = _OWN_CHANNEL if device == "channel" else _PTY
    return lambda value: bool(_PTY.fullmatch(value) or own.fullmatch(value)) or below(value)


def _one_of(*values: str) -> Rule:
    return frozenset(values).__contains__


_WILDCARDS = ("", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost")  # noqa: S104 - compared, not bound
_CHARDEV_TYPES = ("pty", "unix", "file", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent")
_FIXED: dict[str, Rule] = {
    "domain/@type": _one_of("kvm", "qemu"),
    "domain/os/type": _one_of("hvm"),
    "domain/os/@firmware": _one_of("bios", "efi"),
    "domain/memoryBacking/source/@type": _one_of("anonymous", "file", "memfd"),
    "domain/resource/partition": lambda value: bool(_PARTITION.fullmatch(value)) and value.split("/")[1] == "machine",
    "domain/sysinfo/@type": _one_of("smbios"),
    # A label of its own would take the VM out of the confinement that the host gives it.
    "domain/seclabel/@type": _one_of("dynamic"),
    "domain/seclabel/@model": _one_of("apparmor", "selinux", "dac"),
    "domain/seclabel/@relabel": _one_of("yes"),
    "domain/devices/disk/@type": _one_of("file"),
    "domain/devices/disk/@device": _one_of("disk", "cdrom", "floppy"),
    "domain/devices/disk/@rawio": _one_of("no"),
    "domain/devices/disk/driver/@name": _one_of("qemu"),
    # QEMU's "user" network lets a guest reach what listens on the host's loopback.
    "domain/devices/interface/@type": _one_of("network"),
    "domain/devices/interface/target/@dev": lambda value: bool(_DEVICE_NAME.fullmatch(value)),
    "domain/devices/interface/driver/@name": _one_of("qemu", "vhost"),
    "domain/devices/interface/filterref/@filter": lambda value: bool(_TOKEN.fullmatch(value)),
    **{f"domain/devices/{device}/@type": _one_of(*_CHARDEV_TYPES) for device in CHARDEVS},
    "domain/devices/graphics/@type": _one_of("vnc", "spice"),
    "domain/devices/graphics/@listen": _one_of(*_WILDCARDS),
    "domain/devices/graphics/listen/@type": _one_of("address", "none", "socket"),
    "domain/devices/graphics/listen/@address": _one_of(*_WILDCARDS),
    "domain/devices/video/driver/@name": _one_of("qemu"),
    "domain/devices/audio/@type": _one_of("none", "spice"),
    "domain/devices/input/@type": _one_of("mouse", "tablet", "keyboard"),
    "domain/devices/redirdev/@type": _one_of("spicevmc"),
    "domain/devices/smartcard/@mode": _one_of("passthrough"),
    "domain/devices/smartcard/@type": _one_of("spicevmc"),
    "domain/devices/rng/backend/@model": _one_of("random", "builtin"),
    "domain/devices/rng/backend": _one_of("", "/dev/random", "/dev/urandom", "/dev/hwrng"),
    "domain/devices/tpm/backend/@type": _one_of("emulator"),
    "domain/devices/memory/@model": _one_of("dimm", "virtio-mem"),
    "domain/devices/hostdev/@mode": _one_of("subsystem"),
    "domain/devices/hostdev/@type": _one_of("pci"),
    "domain/devices/hostdev/driver/@name": _one_of("vfio"),
    "domain/devices/filesystem/@type": _one_of("mount"),
    "domain/devices/filesystem/@accessmode": _one_of("mapped", "squash", "passthrough"),
    "domain/devices/filesystem/driver/@type": _one_of("path"),
}


def _marks(root: ET.Element) -> Iterator[ET.Element]:
    return (element for element in root.iterfind("metadata//*") if _FOREIGN_MARK.match(element.tag))


def _chardevs(root: ET.Element) -> Iterator[Problem]:
    """What libvirt makes anew only where the rest of a device says so, and what may otherwise be another VM's, or the host's."""
    name = root.findtext("name", "")
    for device in CHARDEVS:
        for chardev in root.iterfind(f"devices/{device}"):
            for source in chardev.iterfind("source"):
                path = source.get("path", "")
                is_terminal = _PTY.fullmatch(path) and chardev.get("type") != "pty"
                is_channel = device == "channel" and _OWN_CHANNEL.fullmatch(path)
                if is_terminal or (is_channel and not _is_own_channel(chardev, source, name)):
                    where = f"domain/devices/{device}/source/@path"
                    yield Problem(where, f"{device} source path {shown(path)!r} is not allowed")


def _is_own_channel(channel: ET.Element, source: ET.Element, name: str) -> bool:
    """Whether a socket is what libvirt makes for this channel of the VM of this name, and for no other one."""
    own = _OWN_CHANNEL.fullmatch(source.get("path", ""))
    targets = [(target.get("type"), target.get("name")) for target in channel.iterfind("target")]
    return (
        own is not None
        and channel.get("type") == "unix"
        and source.get("mode", "bind") == "bind"
        and own[1] == name[:_SHORT_NAME]
        and targets == [("virtio", own[2])]
        and own[2] not in {".", ".."}
    )


def _shared_images(root: ET.Element) -> Iterator[Problem]:
    """Images that two disks name: through one, a guest could write what the host reads as the other's format."""
    seen: set[str] = set()
    for source in root.iterfind("devices/disk/source"):
        path = source.get("file", "")
        if path and path in seen:
            yield Problem(IMAGE, f"disk source file {shown(path)!r} is named twice")
        seen.add(path)


def _granted(root: ET.Element, allowed: Allowed) -> Iterator[Problem]:
    """PCI devices that were not granted, among those that a grant lets be named at all."""
    for address in root.iterfind("devices/hostdev/source/address"):
        if pci_address(address) not in allowed.hostdevs:
            where = "domain/devices/hostdev/source/address"
            yield Problem(where, f"the host's device {shown(pci_address(address))} is not granted")


def pci_address(address: ET.Element) -> str:
    """A PCI address as it is usually written, such as "0000:01:00.0"; empty if it is none."""
    try:
        domain, bus, slot, function = (int(address.get(part, ""), 0) for part in ("domain", "bus", "slot", "function"))
    except ValueError:
        return ""
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A path in a definition, and the kind of folder that it must be below; IMAGE for a disk's image."""

    where: str
    path: str
    kind: str


def named_paths(root: ET.Element) -> Iterator[NamedPath]:
    """Every path of this host in a definition that QEMU or libvirt will open."""
    for where, kind in {**PATHS, IMAGE: IMAGE}.items():
        route, _, attribute = where.removeprefix("domain/").partition("/@")
        for element in root.iterfind(route):
            path = element.get(attribute, "") if attribute else (element.text or "").strip()
            if path and not (kind == SERIAL and (_PTY.fullmatch(path) or _is_of_channel(where, path))):
                yield NamedPath(where, path, kind)


def _is_of_channel(where: str, path: str) -> bool:
    return where.startswith("domain/devices/channel/") and bool(_OWN_CHANNEL.fullmatch(path))


# Equality


def difference(approved: ET.Element, given: ET.Element) -> Problem | None:
    """Where a definition differs from the approved one, if it does, other than in white space, prefixes and what libvirt drops."""
    return _difference(approved, given, given.tag, approved.findtext("name", ""))


def _difference(approved: ET.Element, given: ET.Element, path: str, name: str) -> Problem | None:
    if approved.tag != given.tag:
        return Problem(path, f"<{shown(given.tag)}> stands where <{shown(approved.tag)}> was approved")
    if problem := _other_values(approved, given, path):
        return problem
    ours, theirs = list(_children(approved, name)), list(_children(given, name))
    for mine, other in zip(ours, theirs, strict=False):
        if problem := _difference(mine, other, f"{path}/{other.tag}", name):
            return problem
    if len(ours) < len(theirs):
        return Problem(f"{path}/{theirs[len(ours)].tag}", f"<{shown(theirs[len(ours)].tag)}> was not approved")
    if len(ours) > len(theirs):
        return Problem(f"{path}/{ours[len(theirs)].tag}", f"<{ours[len(theirs)].tag}> was approved, and is missing")
    return None


def _other_values(approved: ET.Element, given: ET.Element, path: str) -> Problem | None:
    for name in sorted(approved.attrib.keys() | given.attrib.keys()):
        ours, theirs = approved.get(name), given.get(name)
        if ours != theirs:
            was = "is missing" if theirs is None else f"is {shown(theirs)!r}"
            return Problem(f"{path}/@{name}", f"{name} {was}, and {_approved(ours)} was approved")
    ours_text, theirs_text = _text(approved), _text(given)
    if ours_text != theirs_text:
        return Problem(path, f"{given.tag} is {shown(theirs_text)!r}, and {_approved(ours_text)} was approved")
    return None


def _approved(value: str | None) -> str:
    return "nothing" if value is None else repr(shown(value))


def _text(element: ET.Element) -> str:
    text = element.text or ""
    return text if text.strip() else ""


def _children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    """The children, without what libvirt makes anew on each host for the VM of this name."""
    return (child for child in element if not _is_made_anew(element, child, name))


def _is_made_anew(parent: ET.Element, child: ET.Element, name: str) -> bool:
    if parent.tag != "channel" or child.tag != "source" or parent.get("type") != "unix":
        return False
    if child.get("path"):
        return _is_own_channel(parent, child, name)
    return child.get("mode", "bind") == "bind"


# The cookie


def check_cookie(root: ET.Element, *, name: str, uuid: str, disks: frozenset[str]) -> list[Problem]:
    """Problems of a cookie of libvirt's source, but for the definition in it, which is the caller's: that of VM `name`, `uuid`."""
    rules: dict[str, Rule] = {
        "qemu-migration/name": lambda value: value == name,
        "qemu-migration/uuid": lambda value: value == uuid,
        "qemu-migration/hostname": lambda value: bool(_TOKEN.fullmatch(value)),
        "qemu-migration/hostuuid": lambda value: bool(_UUID.fullmatch(value)),
        "qemu-migration/feature/@name": _one_of("persistent", "lockstate", "network", "nbd", "memory-hotplug"),
        "qemu-migration/nbd/disk/@target": disks.__contains__,
        "qemu-migration/nbd/disk/@capacity": lambda value: bool(_NUMBER.fullmatch(value)),
        "qemu-migration/blockDirtyBitmaps/disk/@target": disks.__contains__,
        "qemu-migration/blockDirtyBitmaps/disk/bitmap/@name": lambda value: bool(_TOKEN.fullmatch(value)),
        "qemu-migration/blockDirtyBitmaps/disk/bitmap/@alias": lambda value: bool(_TOKEN.fullmatch(value)),
        "qemu-migration/network/interface/@index": lambda value: bool(_NUMBER.fullmatch(value)),
        "qemu-migration/network/interface/@vporttype": _one_of("none"),
        "qemu-migration/capabilities/cap/@name": lambda value: bool(_TOKEN.fullmatch(value)),
    }
    for statistic in COOKIE.children["qemu-migration"].children["statistics"].children:
        rules[f"qemu-migration/statistics/{statistic}"] = lambda value: bool(_NUMBER.fullmatch(value))
    problems = vocabulary.check(root, COOKIE, rules, skip="qemu-migration/domain")
    counts = {tag: len(root.findall(tag)) for tag in ("name", "uuid", "hostname", "hostuuid")}
    problems += [
        Problem(f"qemu-migration/{tag}", f"the cookie has {count} of <{tag}> instead of one")
        for tag, count in counts.items()
        if count != 1
    ]
    if len(root.findall("domain")) > 1:
        problems.append(Problem("qemu-migration/domain", "the cookie has more than one definition"))
    return problems
