"""agent/hypervisor/domain_xml.py and placement.py"""

from __future__ import annotations

import pytest

from agent.hypervisor import domain_xml, placement
from landbridge.errors import HypervisorError
from landbridge.v1.agent_pb2 import Mapping
from landbridge.v1.types_pb2 import Disk, Pool, Vm

DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/web.qcow2' index='1'/>"
    "<backingStore type='file'><source file='/srv/base.qcow2'/></backingStore><target dev='vda' bus='virtio'/></disk>"
)


def definition(devices: str = "", beside: str = "") -> str:
    return (
        "<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name>"
        "<uuid>11111111-2222-4333-8444-555555555555</uuid><memory unit='KiB'>2097152</memory><vcpu>2</vcpu>"
        "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
        "<cpu mode='custom' match='exact'><model fallback='forbid'>Westmere</model></cpu>"
        f"{beside}<devices><emulator>/usr/bin/qemu</emulator>{devices}</devices></domain>"
    )


def reasons(devices: str = "", beside: str = "") -> list[tuple[str, str]]:
    vm = domain_xml.facts(definition(devices, beside))
    return [(device.kind, device.description) for device in vm.immovable_devices]


def test_a_definition_becomes_facts() -> None:
    vm = domain_xml.facts(definition(DISK))

    assert (vm.name, vm.uuid, vm.memory, vm.vcpus) == ("web", "11111111-2222-4333-8444-555555555555", 2**31, 2)
    assert (vm.arch, vm.machine, vm.emulator) == ("x86_64", "pc-q35-7.2", "/usr/bin/qemu")
    assert (vm.cpu_mode, vm.cpu_model) == ("custom", "Westmere")
    assert list(vm.disks) == [
        Disk(target="vda", path="/srv/web.qcow2", format="qcow2", volume="web.qcow2", source_type="file")
    ]
    assert not vm.immovable_devices


@pytest.mark.parametrize(
    ("unit", "size"), [("unit='b'", 1), ("", 2**10), ("unit='MiB'", 2**20), ("unit='GB'", 10**9), ("unit='TiB'", 2**40)]
)
def test_memory_is_counted_in_its_unit(unit: str, size: int) -> None:
    xml = definition().replace("<memory unit='KiB'>2097152", f"<memory {unit}>3")

    assert domain_xml.facts(xml).memory == 3 * size


def test_interfaces_are_networks_or_unmapped() -> None:
    vm = domain_xml.facts(
        definition(
            "<interface type='network'><source network='lan'/></interface>"
            "<interface type='bridge'><source bridge='br0'/></interface>"
            "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>"
            "<interface type='user'/>"
        )
    )

    assert list(vm.networks) == ["lan"]
    assert list(vm.unmapped_interfaces) == ["bridge br0", "direct eth0 bridge"]
    assert not vm.immovable_devices


@pytest.mark.parametrize(
    ("devices", "kind", "words"),
    [
        (
            "<hostdev mode='subsystem' type='pci'><source><address domain='0x0' bus='0x3b' slot='0x0'/></source></hostdev>",
            "hostdev",
            "pci device of this host 0x0 0x3b",
        ),
        ("<hostdev mode='subsystem' type='mdev'><source><address uuid='u'/></source></hostdev>", "hostdev", "mdev"),
        ("<filesystem type='mount'><source dir='/data'/><target dir='d'/></filesystem>", "filesystem", "/data"),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "tpm", "TPM of this host"),
        ("<shmem name='ring'/>", "shmem", "ring"),
        ("<interface type='hostdev'><source><address bus='0x1'/></source></interface>", "interface", "hostdev"),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "interface", "vhost-vdpa-0"),
        ("<disk type='block'><source dev='/dev/sdb'/><target dev='vdb'/></disk>", "disk", "/dev/sdb"),
        ("<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>", "disk", "rbd p/i"),
        ("<disk type='dir'><source dir='/d'/><target dev='vdb'/></disk>", "disk", "type dir"),
        ("<disk type='file' device='cdrom'><source file='/iso/d.iso'/><readonly/></disk>", "disk", "/iso/d.iso"),
        ("<disk type='block' device='cdrom'><source dev='/dev/sr0'/><readonly/></disk>", "disk", "/dev/sr0"),
        (DISK.replace("</disk>", "<readonly/></disk>"), "disk", "read-only"),
        (DISK.replace("</disk>", "<shareable/></disk>"), "disk", "shared"),
        (DISK.replace("</disk>", "<encryption format='luks'/></disk>"), "disk", "encrypted"),
        (DISK.replace("'qcow2'", "'vmdk'"), "disk", "vmdk"),
        ("<memory model='nvdimm'><source><path>/n</path></source></memory>", "memory", "nvdimm"),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "serial", "/dev/ttyS0"),
        ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "input", "event1"),
        ("<graphics type='vnc' passwd='hunter2'/>", "graphics", "password"),
        ("<graphics type='vnc'><listen type='address' address='10.0.0.5'/></graphics>", "graphics", "10.0.0.5"),
    ],
)
def test_what_ties_a_vm_to_its_host_is_named(devices: str, kind: str, words: str) -> None:
    ((found, description),) = reasons(devices)

    assert found == kind
    assert words in description
    assert "hunter2" not in description


@pytest.mark.parametrize(
    "devices",
    [
        "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>",
        "<disk type='file' device='cdrom'><source/><target dev='sda'/><readonly/></disk>",
        "<tpm><backend type='emulator'/></tpm>",
        "<graphics type='vnc' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>",
        "<graphics type='spice'><listen type='none'/></graphics>",
        "<serial type='pty'/><channel type='unix'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    ],
)
def test_what_can_leave_is_not_named(devices: str) -> None:
    assert not reasons(devices)


def test_options_past_libvirt_and_sealed_memory_tie_a_vm_too() -> None:
    found = reasons(beside="<launchSecurity type='sev'/><qemu:commandline><qemu:arg value='-x'/></qemu:commandline>")

    assert [kind for kind, _ in found] == ["launchSecurity", "qemu:commandline"]


def test_localize_changes_paths_and_networks_and_nothing_else() -> None:
    interface = "<interface type='network'><source network='lan' portid='p' bridge='b'/><mac address='m'/></interface>"
    beside = "<metadata><x:note xmlns:x='urn:x' a='&quot;1'>hello &amp; bye</x:note></metadata><novelty kind='n'/>"
    xml = definition(DISK + interface, beside)

    there = domain_xml.localize(xml, {"/srv/web.qcow2": "/pool/web.qcow2"}, {"lan": "blue"})

    disk = domain_xml.parse(there).find("devices/disk")
    assert disk is not None
    assert [(e.tag, e.attrib) for e in disk] == [
        ("driver", {"name": "qemu", "type": "qcow2"}),
        ("source", {"file": "/pool/web.qcow2"}),
        ("backingStore", {}),
        ("target", {"dev": "vda", "bus": "virtio"}),
    ]
    source = domain_xml.parse(there).find("devices/interface/source")
    assert source is not None
    assert source.attrib == {"network": "blue"}
    note = domain_xml.parse(there).find("metadata/{urn:x}note")
    assert note is not None
    assert (note.text, note.attrib) == ("hello & bye", {"a": '"1'})
    assert domain_xml.parse(there).find("novelty[@kind='n']") is not None


@pytest.mark.parametrize(("images", "networks", "missing"), [({}, {"lan": "lan"}, "web.qcow2"), (None, {}, "lan")])
def test_localize_says_what_has_no_place(images: dict[str, str] | None, networks: dict[str, str], missing: str) -> None:
    xml = definition(DISK + "<interface type='network'><source network='lan'/></interface>")

    with pytest.raises(HypervisorError, match=missing):
        domain_xml.localize(xml, {"/srv/web.qcow2": "/p"} if images is None else images, networks)


def test_the_mark_is_read_and_left_behind() -> None:
    mark = domain_xml.moved_mark("m-1").replace("<moved", f"<l:moved xmlns:l='{domain_xml.MOVED_NAMESPACE}'")
    xml = definition(beside=f"<metadata>{mark}<o xmlns='urn:o'/></metadata>")

    assert domain_xml.facts(xml).moved_by == "m-1"
    bare = domain_xml.without_mark(xml)
    assert domain_xml.facts(bare).moved_by == ""
    assert domain_xml.parse(bare).find("metadata/{urn:o}o") is not None
    assert (
        domain_xml.parse(domain_xml.without_mark(definition(beside=f"<metadata>{mark}</metadata>"))).find("metadata")
        is None
    )


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<network/>",
        "<!DOCTYPE domain><domain/>",
        "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><name>&e;</name></domain>",
    ],
)
def test_what_is_no_plain_definition_is_refused(xml: str) -> None:
    with pytest.raises(HypervisorError):
        domain_xml.parse(xml)


def test_a_cpu_is_compared_only_if_it_promises_something() -> None:
    assert "Westmere" in domain_xml.cpu_xml(definition())
    for cpu in ("<cpu mode='host-passthrough'><model>x</model></cpu>", "<cpu mode='maximum'/>", ""):
        xml = definition().replace(
            "<cpu mode='custom' match='exact'><model fallback='forbid'>Westmere</model></cpu>", cpu
        )
        assert domain_xml.cpu_xml(xml) == ""


POOLS = [Pool(name="fast", path="/fast"), Pool(name="slow", path="/slow")]


def vm_with(*disks: tuple[str, str]) -> Vm:
    return Vm(
        name="web", disks=[Disk(target=f"vd{i}", pool=pool, volume=volume) for i, (pool, volume) in enumerate(disks)]
    )


def test_disks_go_to_the_mapped_pool_or_to_its_namesake() -> None:
    placed = placement.placements(vm_with(("gold", "a"), ("slow", "b")), Mapping(pools={"gold": "fast"}), POOLS)

    assert [placement.new_path(pool, disk) for disk, pool in placed] == ["/fast/a", "/slow/b"]


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        (vm_with(("gold", "a")), "no active pool"),
        (vm_with(("", "a")), "no place"),
        (vm_with(("fast", "../a")), "no usable image name"),
        (vm_with(("fast", "")), "no usable image name"),
        (vm_with(("fast", "a"), ("silver", "a")), "Two disks"),
    ],
)
def test_disks_without_a_place_of_their_own_are_refused(vm: Vm, words: str) -> None:
    with pytest.raises(HypervisorError, match=words):
        placement.placements(vm, Mapping(pools={"silver": "fast"}), POOLS)


def test_an_image_belongs_to_the_pool_whose_directory_holds_it() -> None:
    assert placement.pool_of("/fast/a", POOLS) == "fast"
    assert placement.pool_of("/fast/sub/a", POOLS) == ""
    assert placement.pool_of("/fastest/a", POOLS) == ""


LABELS = (
    "<metadata><x:labels xmlns:x='urn:landbridge:labels:1' owner='shop' classification='internal'>"
    "<x:tag>prod</x:tag><x:tag> web </x:tag><x:tag/><tag>of nobody</tag></x:labels></metadata>"
)


def test_what_the_owner_says_that_a_vm_is_is_read_and_goes_with_it() -> None:
    xml = definition(beside=LABELS)
    for each in (xml, domain_xml.localize(xml, {}, {}), domain_xml.without_mark(xml)):
        labels = domain_xml.facts(each).labels
        assert (labels.owner, labels.classification, list(labels.tags)) == ("shop", "internal", ["prod", "web"])


@pytest.mark.parametrize(
    "beside", ["", "<metadata/>", "<metadata><labels owner='shop'/></metadata>", LABELS.replace("labels:1", "labels:2")]
)
def test_a_vm_of_which_nothing_is_said_has_no_labels(beside: str) -> None:
    labels = domain_xml.facts(definition(beside=beside)).labels
    assert (labels.owner, labels.classification, list(labels.tags)) == ("", "", [])


@pytest.mark.parametrize(
    ("os", "devices", "words"),
    [
        ("<nvram>/var/lib/nvram/web.fd</nvram>", "", ["the variables of its firmware (NVRAM)"]),
        ("<loader type='pflash'>/usr/share/OVMF.fd</loader>", "", ["the variables of its firmware (NVRAM)"]),
        ("<loader type='pflash' stateless='yes'>/usr/share/OVMF.fd</loader>", "", []),
        ("<loader type='rom'>/usr/share/bios.bin</loader>", "", []),
        ("", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", ["the state of its TPM"]),
        ("", DISK, []),
    ],
)
def test_what_is_kept_outside_of_the_disks_is_named(os: str, devices: str, words: list[str]) -> None:
    xml = definition(devices).replace("</os>", f"{os}</os>")
    assert list(domain_xml.facts(xml).kept_aside) == words
    assert list(domain_xml.facts(xml.replace("<os>", "<os firmware='efi'>")).kept_aside)[:1] == [
        "the variables of its firmware (NVRAM)"
    ]
