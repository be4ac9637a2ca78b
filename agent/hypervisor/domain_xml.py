"""Domain definitions as libvirt writes them: what is in them, and how they read on another host.

`facts` reads a definition into a `Vm`; `localize` rewrites the paths and the network names of a migratable
definition for its destination and keeps everything else. Definitions come from the other site, so they are read
within bounds. Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # for types and output; input goes through bounded_xml
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from agent.stream import bounded_xml
from landbridge.errors import HypervisorError, ProtocolError
from landbridge.v1.decision_pb2 import Labels
from landbridge.v1.types_pb2 import Disk, ImmovableDevice, Vm

# Namespace of the mark that a completed migration leaves on the source's definition; it resolves nowhere by
# intent.
MOVED_NAMESPACE = "urn:landbridge:moved:1"
MOVED_ELEMENT = f"{{{MOVED_NAMESPACE}}}moved"
# What a VM is, to those who write policies; its owner writes it with `virsh metadata` (landbridge/v1/decision.proto).
LABELS_NAMESPACE = "urn:landbridge:labels:1"
LABELS_ELEMENT = f"{{{LABELS_NAMESPACE}}}labels"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

# ElementTree names prefixes anew where it does not know them; the common ones stay readable.
for _prefix, _uri in {
    "landbridge": MOVED_NAMESPACE,
    "labels": LABELS_NAMESPACE,
    "qemu": QEMU_NAMESPACE,
    "libosinfo": "http://libosinfo.org/xmlns/libvirt/domain/1.0",
}.items():
    ET.register_namespace(_prefix, _uri)

_UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20}
_UNITS |= {"GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40}

# Formats whose images the destination can create.
FORMATS = ("qcow2", "raw")
# Interfaces that name something of this host; "user" names nothing.
_HOST_INTERFACES = ("bridge", "direct", "ethernet", "internal", "mcast", "server", "client", "udp", "null")
_WILDCARDS = ("", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost")  # noqa: S104 - compared, not bound


def parse(xml: str) -> ET.Element:
    """The root of a domain definition; HypervisorError if it is none, or has what `bounded_xml` refuses."""
    try:
        root = bounded_xml.parse(xml)
    except ProtocolError as error:
        raise HypervisorError(f"The domain definition {error.message}.") from error
    if root.tag != "domain":
        raise HypervisorError(f"The domain definition begins with <{root.tag}> instead of <domain>.")
    return root


def serialize(root: ET.Element) -> str:
    """The definition as text, without an XML declaration."""
    return ET.tostring(root, encoding="unicode")


def facts(xml: str) -> Vm:
    """What the definition says; sizes of images, pools and the state are left to the hypervisor."""
    root = parse(xml)
    kind = root.find("os/type")
    cpu = root.find("cpu")
    return Vm(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", "").strip(),
        memory=_bytes(root.find("memory")),
        vcpus=int(root.findtext("vcpu", "1")),
        disks=[_disk(element) for element in root.iterfind("devices/disk") if image_path(element)],
        networks=sorted({e.get("network", "") for e in _network_sources(root)}),
        unmapped_interfaces=list(_unmapped_interfaces(root)),
        immovable_devices=list(_immovable(root)),
        arch="" if kind is None else kind.get("arch", ""),
        machine="" if kind is None else kind.get("machine", ""),
        emulator=root.findtext("devices/emulator", ""),
        cpu_mode="" if cpu is None else cpu.get("mode", ""),
        cpu_model="" if cpu is None else cpu.findtext("model", ""),
        moved_by=moved_by(root),
        labels=labels(root),
        kept_aside=list(_kept_aside(root)),
    )


def virt_type(xml: str) -> str:
    """What runs the domain: "kvm" or "qemu" (emulation)."""
    return parse(xml).get("type", "")


def cpu_xml(xml: str) -> str:
    """The <cpu> element; empty if the hypervisor's default is used or the host's CPU is passed through."""
    cpu = parse(xml).find("cpu")
    if cpu is None or cpu.get("mode") in ("host-passthrough", "maximum") or cpu.find("model") is None:
        return ""
    return ET.tostring(cpu, encoding="unicode")


def moved_by(root: ET.Element) -> str:
    """The migration that took this VM away; empty if it is not marked as moved."""
    mark = root.find(f"metadata/{MOVED_ELEMENT}")
    return "" if mark is None else mark.get("by", "")


def labels(root: ET.Element) -> Labels:
    """What the VM's owner says that it is; empty where nothing is said."""
    found = root.find(f"metadata/{LABELS_ELEMENT}")
    if found is None:
        return Labels()
    tags = [(tag.text or "").strip() for tag in found.findall(f"{{{LABELS_NAMESPACE}}}tag")]
    return Labels(
        owner=found.get("owner", ""), classification=found.get("classification", ""), tags=[tag for tag in tags if tag]
    )


def moved_mark(migration: str) -> str:
    """The mark itself; libvirt puts it into our namespace."""
    return ET.tostring(ET.Element("moved", by=migration), encoding="unicode")


def without_mark(xml: str) -> str:
    """The definition without our mark."""
    root = parse(xml)
    metadata = root.find("metadata")
    if metadata is None:
        return xml
    for mark in metadata.findall(MOVED_ELEMENT):
        metadata.remove(mark)
    if len(metadata) == 0:
        root.remove(metadata)
    return serialize(root)


def localize(xml: str, images: Mapping[str, str], networks: Mapping[str, str]) -> str:
    """The definition with other image paths and network names (here: what they are called there).

    Every image needs a new path; a copy is complete in itself, so it has no backing file. What the source's
    daemon noted about its own network ports is left out. HypervisorError names what has no place.
    """
    root = parse(xml)
    for disk in root.iterfind("devices/disk"):
        path = image_path(disk)
        if not path:
            continue
        if path not in images:
            raise HypervisorError(f"The image {path} has no place at the destination: map its pool.")
        _set_image(disk, images[path])
    for source in _network_sources(root):
        name = source.get("network", "")
        if name not in networks:
            raise HypervisorError(f"The network {name} has no counterpart at the destination: map it.")
        source.set("network", networks[name])
        for noted in ("portid", "bridge"):
            source.attrib.pop(noted, None)
    return serialize(root)


def image_path(disk: ET.Element) -> str:
    """Path of a disk's image or device; empty for an empty drive and for sources without a path."""
    source = disk.find("source")
    return "" if source is None else source.get("file", "") or source.get("dev", "") or source.get("dir", "")


def _set_image(disk: ET.Element, path: str) -> None:
    source = disk.find("source")
    assert source is not None  # noqa: S101 - image_path found one
    for attribute in ("file", "dev", "dir", "index"):
        source.attrib.pop(attribute, None)
    source.set("file", path)
    for chain in disk.findall("backingStore"):
        chain.clear()  # an empty element says: no backing file


def _bytes(element: ET.Element | None) -> int:
    """A size with its unit; libvirt's default is KiB."""
    if element is None:
        return 0
    return int(element.text or 0) * _UNITS.get(element.get("unit", "KiB"), 2**10)


def _disk(element: ET.Element) -> Disk:
    driver, target, path = element.find("driver"), element.find("target"), image_path(element)
    return Disk(
        target="" if target is None else target.get("dev", ""),
        path=path,
        format="raw" if driver is None else driver.get("type", "raw"),
        volume=PurePosixPath(path).name,
        read_only=element.find("readonly") is not None or element.get("device") == "cdrom",
        source_type=element.get("type", "file"),
    )


def _network_sources(root: ET.Element) -> Iterator[ET.Element]:
    # Of a running VM, libvirt says "bridge" for an interface whose network is one; the network is named all
    # the same.
    yield from (s for s in root.iterfind("devices/interface/source") if s.get("network"))


def _unmapped_interfaces(root: ET.Element) -> Iterator[str]:
    for interface in root.iterfind("devices/interface"):
        source = interface.find("source")
        if interface.get("type") in _HOST_INTERFACES and (source is None or not source.get("network")):
            yield f"{interface.get('type')} {_attributes(source)}".strip()


def _kept_aside(root: ET.Element) -> Iterator[str]:
    """What is neither in a disk nor written there by a QEMU whose CPUs never run."""
    boot, loader = root.find("os"), root.find("os/loader")
    is_flash = loader is not None and loader.get("type") == "pflash" and loader.get("stateless") != "yes"
    if root.find("os/nvram") is not None or (boot is not None and boot.get("firmware") == "efi") or is_flash:
        yield "the variables of its firmware (NVRAM)"
    if root.find("devices/tpm/backend[@type='emulator']") is not None:
        yield "the state of its TPM"


def _immovable(root: ET.Element) -> Iterator[ImmovableDevice]:
    devices = root.find("devices")
    for device in () if devices is None else devices:
        reason = _reason(device)
        if reason:
            yield ImmovableDevice(kind=device.tag, description=reason)
    if root.find("launchSecurity") is not None:
        yield ImmovableDevice(kind="launchSecurity", description="memory encrypted with a key of this host's CPU")
    for name in ("commandline", "override"):
        if root.find(f"{{{QEMU_NAMESPACE}}}{name}") is not None:
            yield ImmovableDevice(kind=f"qemu:{name}", description="options handed to QEMU past libvirt")


def _reason(device: ET.Element) -> str:  # noqa: C901, PLR0911, PLR0912 - a table in the shape of a function
    """Why a device cannot leave this host; empty if it can."""
    source, model, kind = device.find("source"), device.get("model", ""), device.get("type", "")
    match device.tag:
        case "disk":
            return _disk_reason(device)
        case "hostdev":
            return f"{kind or device.get('mode', '')} device of this host {_address(source)}".strip()
        case "filesystem":
            return f"directory of this host {_attributes(source)} shared as {_attributes(device.find('target'))}"
        case "interface" if kind in ("hostdev", "vdpa", "vhostuser"):
            return f"{kind} interface {_address(source) or _attributes(source)}".strip()
        case "tpm" if (backend := device.find("backend")) is not None and backend.get("type") == "passthrough":
            return "TPM of this host"
        case "shmem":
            return f"memory shared with other programs of this host ({device.get('name', '')})"
        case "memory" if model in ("nvdimm", "virtio-pmem", "sgx-epc"):
            return f"{model} memory backed by this host"
        case "serial" | "parallel" | "console" | "channel" if kind in ("dev", "pipe"):
            return f"{kind} {_attributes(source)} of this host"
        case "input" if kind in ("passthrough", "evdev"):
            return f"input device of this host {_attributes(source)}"
        case "smartcard" if device.get("mode") in ("host", "host-certificates"):
            return "smartcard of this host"
        case "video" if device.find("model/acceleration[@accel3d='yes']") is not None:
            return "3D acceleration by this host"
        case "graphics":
            return _graphics_reason(device)
        case _:
            return ""


def _disk_reason(disk: ET.Element) -> str:
    target = disk.find("target")
    name = "" if target is None else target.get("dev", "")
    source, kind, path = disk.find("source"), disk.get("type", "file"), image_path(disk)
    driver = disk.find("driver")
    image_format = "raw" if driver is None else driver.get("type", "raw")
    if source is None or not (source.attrib or len(source)):
        return ""  # an empty drive
    checks = (
        (disk.get("device") in ("cdrom", "floppy"), f"medium {path} in {disk.get('device')} drive {name}"),
        (kind != "file", f"{name} is of type {kind} ({path or _attributes(source)}), not an image in a pool"),
        (
            disk.find("readonly") is not None,
            f"{name} ({path}) is read-only, and only writable disks are copied",
        ),
        (disk.find("shareable") is not None, f"{name} ({path}) is shared with other VMs"),
        (disk.find("transient") is not None, f"{name} ({path}) is discarded when the VM stops"),
        (
            next(disk.iter("encryption"), None) is not None,
            f"{name} ({path}) is encrypted with a secret of this host",
        ),
        (source.find("slices") is not None, f"{name} is a slice of {path}"),
        (image_format not in FORMATS, f"{name} ({path}) has the format {image_format}"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _graphics_reason(graphics: ET.Element) -> str:
    """A password would be lost on the way, and with it the lock; an address of this host is not elsewhere."""
    kind = graphics.get("type", "")
    if graphics.get("passwd"):
        return f"{kind} console with a password, which does not travel"
    listens = [e for e in graphics.iterfind("listen") if e.get("type", "address") == "address"]
    for address in [graphics.get("listen", ""), *(e.get("address", "") for e in listens)]:
        if address not in _WILDCARDS:
            return f"{kind} console on {address}, an address of this host"
    return ""


def _address(source: ET.Element | None) -> str:
    if source is None:
        return ""
    parts = (_attributes(e) for e in source.iter() if e is not source and e.attrib)
    return " ".join(filter(None, parts))


def _attributes(element: ET.Element | None) -> str:
    return "" if element is None else " ".join(element.attrib.values())
