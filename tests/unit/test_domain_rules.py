"""Definitions from another site: what real guests have passes, what names something of this host passes only if it is given."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from agent.stream import bounded_xml, domain_rules
from agent.stream.domain_rules import (
    FIRMWARE,
    IMAGE,
    KERNEL,
    NVRAM,
    SERIAL,
    Allowed,
    NamedPath,
    check,
    check_cookie,
    difference,
    is_below,
    named_paths,
    pci_address,
)
from agent.stream.vocabulary import MOST_PROBLEMS, SHOWN, Problem
from tests.integration.test_usual_devices import DOMAIN as USUAL
from tests.lab.hosts import IMAGES
from tests.unit.rpc_made import ALLOWED, DOMAIN, UUID, WEB

GUEST_AGENT = "/var/lib/libvirt/qemu/channel/target/domain-1-web/org.qemu.guest_agent.0"


def problems(devices: str = "", allowed: Allowed = ALLOWED, domain: str = "") -> list[str]:
    xml = DOMAIN.replace("<memballoon", f"{devices}<memballoon", 1).replace("<devices>", f"{domain}<devices>", 1)
    return [str(problem) for problem in check(bounded_xml.parse(xml), allowed)]


# What passes.

HARMLESS = (
    "<graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>",
    "<graphics type='spice' autoport='yes'><listen type='address'/><image compression='off'/></graphics>",
    "<graphics type='vnc'><listen type='none'/></graphics>",
    "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1' primary='yes'/></video>",
    "<console type='pty' ><source path='/dev/pts/3'/><target type='serial' port='0'/></console>",
    (
        f"<channel type='unix'><source mode='bind' path='{GUEST_AGENT}'/>"
        "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>"
    ),
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<serial type='file'><source path='/srv/console/web.log' append='on'/><log file='/srv/console/x' append='off'/></serial>",
    "<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend></rng>",
    "<rng model='virtio'><backend model='builtin'/></rng>",
    "<input type='tablet' bus='usb'><address type='usb' bus='0' port='1'/></input>",
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
    "<watchdog model='i6300esb' action='reset'/>",
    "<panic model='isa'/>",
    "<vsock model='virtio'><cid auto='yes'/></vsock>",
    "<sound model='ich9'/><audio id='1' type='none'/>",
    "<redirdev bus='usb' type='spicevmc'/>",
    "<memory model='dimm'><target><size unit='KiB'>524288</size><node>0</node></target></memory>",
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/></disk>",
    (
        "<interface type='network'><source network='lan'/><target dev='vnet0'/><bandwidth><inbound average='1000'/></bandwidth>"
        "<filterref filter='clean-traffic'/><mtu size='1500'/><link state='up'/></interface>"
    ),
    "<controller type='scsi' index='0' model='virtio-scsi'><driver queues='4' iothread='1'/></controller>",
)


@pytest.mark.parametrize("devices", HARMLESS)
def test_what_real_guests_have_passes(devices: str) -> None:
    assert problems(devices) == []


@pytest.mark.parametrize(
    "domain",
    [
        (
            "<features><acpi/><apic eoi='on'/><hyperv mode='custom'><relaxed state='on'/><stimer state='on'><direct state='on'/>"
            "</stimer></hyperv><kvm><hidden state='on'/></kvm><smm state='on'><tseg unit='MiB'>48</tseg></smm></features>"
        ),
        "<clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>",
        "<cputune><shares>2048</shares><vcpupin vcpu='0' cpuset='1'/></cputune><iothreads>2</iothreads>",
        "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages><source type='memfd'/></memoryBacking>",
        "<resource><partition>/machine/red</partition></resource>",
        "<resource><partition>/machine</partition></resource>",
        "<sysinfo type='smbios'><system><entry name='serial'>x</entry></system></sysinfo>",
        "<seclabel type='dynamic' model='apparmor' relabel='yes'/>",
        "<pm><suspend-to-mem enabled='no'/></pm><on_crash>destroy</on_crash><title>Web</title><description>a\nb</description>",
        "<metadata><x:y xmlns:x='urn:x' z='1'><x:deep>anything</x:deep></x:y></metadata>",
    ],
)
def test_what_is_said_of_the_machine_itself_passes(domain: str) -> None:
    assert problems(domain=domain) == []


FIRMWARE_FILES = (
    "<loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>"
)


def with_firmware(files: str = FIRMWARE_FILES) -> str:
    return DOMAIN.replace("<cmdline>", f"{files}<cmdline>", 1)


def test_firmware_and_its_variables_pass_where_they_usually_lie() -> None:
    assert check(bounded_xml.parse(with_firmware()), ALLOWED) == []


def test_libvirt_may_choose_firmware_and_where_its_variables_lie() -> None:
    xml = with_firmware("<loader secure='no'/><nvram/>").replace("<os>", "<os firmware='efi'>")
    assert check(bounded_xml.parse(xml), ALLOWED) == []
    assert len(check(bounded_xml.parse(xml.replace("/srv/boot/vmlinuz", "")), ALLOWED)) == 1
    nothing = replace(ALLOWED, folders={})
    assert {problem.where for problem in check(bounded_xml.parse(with_firmware()), nothing)} == {
        "domain/os/kernel",
        "domain/os/loader",
        "domain/os/nvram",
        "domain/os/nvram/@template",
        "domain/devices/serial/source/@path",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/usr/share/OVMF/OVMF_CODE", "/srv/OVMF_CODE"),
        ("/usr/share/OVMF/OVMF_VARS", "/etc/OVMF_VARS"),
        ("/var/lib/libvirt/qemu/nvram/web", "/var/lib/libvirt/images/web"),
        ("<nvram ", "<nvram type='network' "),
    ],
)
def test_firmware_from_elsewhere_does_not(old: str, new: str) -> None:
    assert len(check(bounded_xml.parse(with_firmware(FIRMWARE_FILES.replace(old, new))), ALLOWED)) == 1


# What does not.


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("<graphics type='vnc' passwd='x'/>", "attribute passwd"),
        ("<graphics type='vnc' listen='10.0.0.1'/>", "graphics listen '10.0.0.1'"),
        ("<graphics type='vnc'><listen type='address' address='10.0.0.1'/></graphics>", "listen address '10.0.0.1'"),
        ("<graphics type='vnc'><listen type='network' network='lan'/></graphics>", "listen type 'network'"),
        ("<graphics type='vnc' socket='/etc/x'/>", "attribute socket"),
        (
            "<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>",
            "<gl> is not allowed",
        ),
        ("<graphics type='sdl' display=':0'/>", "graphics type 'sdl'"),
        ("<graphics/>", "<graphics> must have the attribute type"),
        ("<interface><source network='lan'/></interface>", "<interface> must have the attribute type"),
        ("<interface type='user'/>", "interface type 'user'"),
        ("<interface type='network'><source network='lan' portgroup='x'/></interface>", "attribute portgroup"),
        ("<interface type='network'><source network='lan'/><vlan><tag id='1'/></vlan></interface>", "<vlan>"),
        ("<interface type='network'><source network='lan'/><backend tap='/dev/x'/></interface>", "<backend>"),
        ("<interface type='network'><source network='lan'/><target dev='a/b'/></interface>", "target dev 'a/b'"),
        ("<interface type='network'><source network='lan'/><filterref filter='../x'/></interface>", "filter '../x'"),
        ("<interface type='network'><source network='lan'/><driver name='vfio'/></interface>", "driver name 'vfio'"),
        ("<channel type='unix'><source mode='bind' path='/run/x'/></channel>", "path '/run/x'"),
        (
            "<channel type='unix'><source path='/var/lib/libvirt/qemu/channel/target/../../x'/></channel>",
            "target/../../x'",
        ),
        ("<serial type='pty'><source path='/dev/sda'/></serial>", "path '/dev/sda'"),
        ("<serial type='file'><source path='/dev/pts/1'/></serial>", "serial source path '/dev/pts/1'"),
        ("<console type='unix'><source path='/dev/pts/1'/></console>", "console source path '/dev/pts/1'"),
        ("<parallel type='file'><source path='/dev/pts/1'/></parallel>", "parallel source path '/dev/pts/1'"),
        ("<channel type='file'><source path='/dev/pts/1'/></channel>", "channel source path '/dev/pts/1'"),
        ("<serial type='dev'><source path='/dev/pts/1'/></serial>", "serial type 'dev'"),
        (f"<serial type='unix'><source path='{GUEST_AGENT}'/></serial>", "path"),
        ("<serial type='pty'><log file='/etc/x'/></serial>", "log file '/etc/x'"),
        ("<console type='stdio'/>", "console type 'stdio'"),
        ("<parallel type='pipe'/>", "parallel type 'pipe'"),
        ("<rng model='virtio'><backend model='random'>/dev/sda</backend></rng>", "rng backend '/dev/sda'"),
        ("<rng model='virtio'><backend model='egd' type='tcp'/></rng>", "model 'egd'"),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "backend type 'passthrough'"),
        ("<tpm model='tpm-tis'><backend type='emulator'><encryption secret='x'/></backend></tpm>", "<encryption>"),
        ("<memory model='nvdimm'><source><path>/x</path></source></memory>", "memory model 'nvdimm'"),
        ("<memory model='dimm'><source><path>/x</path></source></memory>", "<path> is not allowed"),
        ("<input type='evdev'><source dev='/dev/input/event0'/></input>", "input type 'evdev'"),
        ("<smartcard mode='host'/>", "smartcard mode 'host'"),
        ("<redirdev bus='usb' type='tcp'/>", "redirdev type 'tcp'"),
        ("<audio id='1' type='pulseaudio'/>", "audio type 'pulseaudio'"),
        ("<video><driver name='vhostuser'/></video>", "video driver name 'vhostuser'"),
        ("<shmem name='x'/>", "<shmem> is not allowed"),
        ("<lease/>", "<lease> is not allowed"),
        ("<disk type='network'><source protocol='nbd'/></disk>", "disk type 'network'"),
        ("<disk type='file' device='lun'/>", "disk device 'lun'"),
        ("<disk type='file' rawio='yes'/>", "rawio 'yes'"),
        ("<disk type='file'><mirror/></disk>", "<mirror>"),
        ("<disk type='file'><auth/></disk>", "<auth>"),
        (
            "<disk type='file'><source file='/var/lib/libvirt/images/web.qcow2'><encryption/></source></disk>",
            "<encryption>",
        ),
        (
            f"<channel type='unix'><source path='{GUEST_AGENT}'/><target type='guestfwd' name='x'/></channel>",
            "channel source path",
        ),
        (f"<channel type='unix'><source path='{GUEST_AGENT}'/></channel>", "channel source path"),
        (f"<channel type='file'><source path='{GUEST_AGENT}'/><target type='virtio'/></channel>", "source path"),
        (
            "<disk type='file'><driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/web.qcow2'/></disk>",
            "disk source file '/var/lib/libvirt/images/web.qcow2' is named twice",
        ),
        ("<memballoon>text</memballoon>", "text 'text' is not allowed"),
        ("<sound model='x'/>text", "text 'text' is not allowed"),
        (f"<sound model='{'x' * 1025}'/>", "1,025 characters is longer than 1,024"),
    ],
)
def test_what_names_something_of_this_host_does_not_pass(devices: str, says: str) -> None:
    found = problems(devices)
    assert found
    assert says in found[0]


def channel(path: str, name: str = "org.qemu.guest_agent.0", mode: str = "mode='bind'", more: str = "") -> str:
    return (
        f"<channel type='unix'><source {mode} path='{path}'/><target type='virtio' name='{name}'/>"
        f"<address type='virtio-serial' controller='0' bus='0' port='2'/>{more}</channel>"
    )


LATER = "/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0"
VARIABLE = "/var/lib/libvirt/qemu/channel/target"
OTHERS_CHANNELS = [
    channel("/run/libvirt/qemu/channel/3-victim/org.qemu.guest_agent.0", "foo", "mode='connect'"),
    channel("/run/libvirt/qemu/channel/3-victim/org.qemu.guest_agent.0"),
    channel(f"{VARIABLE}/domain-3-victim/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/3-webs/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/3-we/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/3-x-web/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/web/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/target/domain-1-web/org.qemu.guest_agent.0"),
    channel(f"{VARIABLE}/1-web/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel/../victim.xml", "victim.xml"),
    channel("/run/libvirt/qemu/channel/1-web/..", ".."),
    channel("/run/libvirt/qemu/channel/1-web/.", "."),
    channel("/run/libvirt/qemu/channel/1-web/../3-victim/org.qemu.guest_agent.0"),
    channel("/run/libvirt/qemu/channel//1-web/org.qemu.guest_agent.0"),
    channel(LATER, "foo"),
    channel(LATER, mode="mode='connect'"),
    channel(GUEST_AGENT, mode="mode='connect'"),
    channel(LATER, "foo", more="<target type='virtio' name='org.qemu.guest_agent.0'/>"),
    channel(LATER, more="<target type='virtio' name='foo'/>"),
]


@pytest.mark.parametrize("devices", OTHERS_CHANNELS)
def test_the_socket_of_a_channel_is_none_that_may_be_another_vms(devices: str) -> None:
    found = problems(devices)
    assert found
    assert "channel source path" in found[0]


@pytest.mark.parametrize("devices", OTHERS_CHANNELS)
def test_such_a_socket_does_not_first_appear_after_the_approval(devices: str) -> None:
    approved = re.sub("<source [^>]*>", "", devices)
    before, after = (DOMAIN.replace("<memballoon", f"{given}<memballoon") for given in (approved, devices))
    assert difference(bounded_xml.parse(before), bounded_xml.parse(after)) is not None


@pytest.mark.parametrize("path", [GUEST_AGENT, LATER])
@pytest.mark.parametrize("mode", ["", "mode='bind'"])
@pytest.mark.parametrize(
    ("name", "short"),
    [("web", "web"), ("a" * 20, "a" * 20), ("a" * 21, "a" * 20), ("ä" * 30, "ä" * 20), ("a-b.c 1", "a-b.c 1")],
)
def test_the_socket_that_libvirt_makes_for_a_channel_passes(path: str, mode: str, name: str, short: str) -> None:
    approved, given = (
        bounded_xml.parse(
            DOMAIN.replace("<name>web<", f"<name>{name}<").replace(
                "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>", device
            )
        )
        for device in (
            re.sub("<source [^>]*>", "", channel(path, mode=mode)),
            channel(path.replace("-web/", f"-{short}/"), mode=mode),
        )
    )
    assert check(given, ALLOWED) == []
    assert difference(approved, given) is None


@pytest.mark.parametrize("what", [" name='org.qemu.guest_agent.0'", " port='2'"])
def test_of_a_channel_nothing_but_its_socket_is_made_anew(what: str) -> None:
    xml = DOMAIN.replace("<memballoon", f"{channel(GUEST_AGENT)}<memballoon", 1)
    last = xml.rindex(what)
    assert difference(bounded_xml.parse(xml), bounded_xml.parse(xml[:last] + xml[last + len(what) :])) is not None


def test_a_name_is_no_shorter_in_a_socket_than_libvirt_makes_it() -> None:
    xml = DOMAIN.replace("<name>web<", f"<name>{'a' * 21}<").replace("<memballoon", "{}<memballoon")
    for short in ("a" * 19, "a" * 21):
        given = xml.replace("{}", channel(LATER.replace("-web/", f"-{short}/")))
        assert len(check(bounded_xml.parse(given), ALLOWED)) == 1


# What libvirt 9.0 and later ones add to the usual VM while it runs.
@pytest.mark.parametrize(
    "path",
    [
        f"{VARIABLE}/domain-7-usual/org.qemu.guest_agent.0",
        "/run/libvirt/qemu/channel/7-usual/org.qemu.guest_agent.0",
    ],
)
def test_a_vm_with_usual_devices_passes_as_it_is_and_as_it_runs(path: str) -> None:
    usual = replace(ALLOWED, images=frozenset({f"{IMAGES}/usual.qcow2"}))
    runs = USUAL.replace("<source mode='bind'/>", f"<source mode='bind' path='{path}'/>")
    assert runs != USUAL
    assert check(bounded_xml.parse(USUAL), usual) == []
    assert check(bounded_xml.parse(runs), usual) == []
    assert difference(bounded_xml.parse(USUAL), bounded_xml.parse(runs)) is None
    for device in ("serial", "console"):
        runs = runs.replace(f"<{device} type='pty'/>", f"<{device} type='pty'><source path='/dev/pts/3'/></{device}>")
    assert check(bounded_xml.parse(runs), usual) == []


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        ("<resource><partition>/system</partition></resource>", "partition '/system'"),
        ("<resource><partition>/machine/../system</partition></resource>", "partition"),
        ("<resource><partition>machine</partition></resource>", "partition"),
        ("<sysinfo type='fwcfg'><entry name='x' file='/etc/x'/></sysinfo>", "sysinfo type 'fwcfg'"),
        ("<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>", "seclabel type 'static'"),
        ("<seclabel type='dynamic' model='dac' relabel='no'/>", "relabel 'no'"),
        ("<launchSecurity type='sev'/>", "<launchSecurity>"),
        ("<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/></cputune>", "<vcpusched>"),
        ("<blkiotune><device><path>/dev/sda</path></device></blkiotune>", "<device>"),
        ("<bootloader>/tmp/x</bootloader>", "<bootloader>"),
        ("<metadata><moved/></metadata>", "<moved> is not allowed"),
        ("<metadata><m:moved xmlns:m='urn:landbridge:moved:1' by='x'/></metadata>", "the mark of a VM that has moved"),
        ("<metadata><a:b xmlns:a='a'><m:moved xmlns:m='urn:landbridge:moved:1'/></a:b></metadata>", "the mark of a VM"),
        ("<memoryBacking><source type='x'/></memoryBacking>", "memoryBacking source type 'x'"),
    ],
)
def test_what_is_said_of_the_host_does_not_pass(domain: str, says: str) -> None:
    found = problems(domain=domain)
    assert found
    assert says in found[0]


def test_a_problem_says_where_it_is_and_shows_no_more_than_a_line() -> None:
    found = problems(f"<serial type='file'><source path='{'/x' * 200}'/></serial>")
    assert found[0].endswith("is not allowed (domain/devices/serial/source/@path)")
    assert len(found[0]) < SHOWN + 120
    assert "\n" not in problems("<serial type='a&#10;b'/>")[0]


def test_no_more_problems_are_told_than_anybody_reads() -> None:
    assert len(problems("<shmem name='x'/>" * 100)) == MOST_PROBLEMS


def test_a_document_of_another_kind_is_one_problem() -> None:
    assert [str(p) for p in check(bounded_xml.parse("<network/>"), ALLOWED)] == [
        "the element <network> is not allowed here (network)"
    ]


# Grants.

HOSTDEV = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio'/><source>"
    "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source></hostdev>"
)
FILESYSTEM = "<filesystem type='mount' accessmode='mapped'><source dir='/srv/share/web'/><target dir='x'/></filesystem>"


def test_a_device_of_the_host_passes_if_it_was_granted_and_no_other_one_with_it() -> None:
    granted = replace(ALLOWED, hostdevs=frozenset({"0000:01:00.0"}))
    assert problems(HOSTDEV, granted) == []
    assert "0000:02:00.0 is not granted" in problems(HOSTDEV.replace("bus='0x01'", "bus='0x02'"), granted)[0]
    assert "hostdev type 'usb'" in problems(HOSTDEV.replace("'pci'", "'usb'"), granted)[0]
    assert "device  is not granted" in problems(HOSTDEV.replace("'0x01'", "'x'"), granted)[0]
    assert "<filesystem> is not allowed" in problems(FILESYSTEM, granted)[0]


def test_a_directory_passes_if_it_is_below_a_granted_one() -> None:
    granted = replace(ALLOWED, filesystems=("/srv/share",))
    assert problems(FILESYSTEM, granted) == []
    assert problems(FILESYSTEM.replace("/srv/share/web", "/srv/share"), granted) == []
    for outside in ("/srv", "/srv/share/../x", "/srv/shared", "srv/share"):
        assert "filesystem source dir" in problems(FILESYSTEM.replace("/srv/share/web", outside), granted)[0]
    assert "<hostdev> is not allowed" in problems(HOSTDEV, granted)[0]


def test_elements_and_attributes_that_somebody_allows_pass_with_nothing_in_them() -> None:
    new = "<sound model='x' new='1'/><newdevice>text</newdevice>"
    assert len(problems(new)) == 2
    allowed = replace(ALLOWED, elements=frozenset({"domain/devices/sound/@new", "domain/devices/newdevice"}))
    assert problems(new, allowed) == []
    assert "<inner> is not allowed" in problems("<newdevice><inner/></newdevice>", allowed)[0]


def test_pci_addresses_are_read_in_any_base_and_otherwise_not() -> None:
    address = bounded_xml.parse("<address domain='0' bus='0xAf' slot='31' function='0x7'/>")
    assert pci_address(address) == "0000:af:1f.7"
    assert pci_address(bounded_xml.parse("<address/>")) == ""


def test_a_device_and_a_directory_may_be_granted_together() -> None:
    granted = replace(ALLOWED, hostdevs=frozenset({"0000:01:00.0"}), filesystems=("/srv/share",))
    assert problems(HOSTDEV + FILESYSTEM, granted) == []
    assert problems(HARMLESS[0], granted) == []


# Paths.


@pytest.mark.parametrize("path", ["/a/b", "/a/b/c", "/a/...", "/c/x"])
def test_a_path_below_a_folder_is(path: str) -> None:
    assert is_below(path, ["/a", "/c"])


@pytest.mark.parametrize(
    "path",
    [
        "/a",
        "/a/",
        "/a/.",
        "/a/./b",
        "/a//b",
        "//a/b",
        "/a/..",
        "/a/../a/b",
        "a/b",
        "/ab/c",
        "/",
        "",
        " /a/b",
        "/a/b/",
        "/a/\0b",
    ],
)
def test_a_path_that_is_not_below_it_or_not_simple_is_not(path: str) -> None:
    assert not is_below(path, ["/a"])


def test_below_no_folder_there_is_nothing() -> None:
    assert not is_below("/a/b", [])


def test_every_path_that_is_opened_is_named() -> None:
    more = "<serial type='file'><source path='/srv/console/a'/><log file='/srv/console/b'/></serial>"
    xml = with_firmware().replace("<memballoon", f"{HARMLESS[4]}{HARMLESS[5]}{more}<memballoon", 1)
    assert set(named_paths(bounded_xml.parse(xml))) == {
        NamedPath("domain/os/loader", "/usr/share/OVMF/OVMF_CODE_4M.fd", FIRMWARE),
        NamedPath("domain/os/nvram/@template", "/usr/share/OVMF/OVMF_VARS_4M.fd", FIRMWARE),
        NamedPath("domain/os/nvram", "/var/lib/libvirt/qemu/nvram/web_VARS.fd", NVRAM),
        NamedPath("domain/os/kernel", "/srv/boot/vmlinuz", KERNEL),
        NamedPath("domain/devices/serial/source/@path", "/srv/console/web.sock", SERIAL),
        NamedPath("domain/devices/serial/source/@path", "/srv/console/a", SERIAL),
        NamedPath("domain/devices/serial/log/@file", "/srv/console/b", SERIAL),
        NamedPath(IMAGE, "/var/lib/libvirt/images/web.qcow2", IMAGE),
    }


@pytest.mark.parametrize(
    ("device", "path", "is_named"),
    [("channel", GUEST_AGENT, False), ("channel", "/srv/console/x", True), ("serial", GUEST_AGENT, True)],
)
def test_of_sockets_only_those_that_libvirt_makes_for_channels_need_no_folder(
    device: str, path: str, is_named: bool
) -> None:
    xml = DOMAIN.replace("<memballoon", f"<{device} type='unix'><source path='{path}'/></{device}><memballoon", 1)
    named = {each.path for each in named_paths(bounded_xml.parse(xml)) if each.kind == SERIAL}
    assert (path in named) is is_named


# Equality.


def differs(old: str, new: str) -> Problem | None:
    assert old in DOMAIN
    return difference(bounded_xml.parse(DOMAIN), bounded_xml.parse(DOMAIN.replace(old, new, 1)))


def test_white_space_quotes_prefixes_and_order_of_attributes_are_no_difference() -> None:
    assert differs("<devices>", "<devices>\n\n  ") is None
    assert differs("<backingStore/>", "<backingStore>\n</backingStore>") is None
    assert differs("<driver name='qemu' type='qcow2'/>", '<driver type="qcow2" name="qemu"></driver>') is None
    other = DOMAIN.replace("libosinfo:", "lib:").replace("xmlns:libosinfo=", "xmlns:lib=")
    assert difference(bounded_xml.parse(DOMAIN), bounded_xml.parse(other)) is None


def test_what_libvirt_makes_anew_on_each_host_is_no_difference() -> None:
    source = f"<channel type='unix'><source mode='bind' path='{GUEST_AGENT}'/>"
    assert differs("<channel type='unix'>", source) is None
    assert differs("<channel type='unix'>", "<channel type='unix'><source mode='bind'/>") is None
    assert differs("<channel type='unix'>", "<channel type='unix'><source path='/srv/console/x'/>")
    assert differs("<channel type='unix'>", "<channel type='unix'><source mode='connect'/>")
    assert differs("<channel type='unix'>", f"{source}<source path='/srv/console/x'/>")
    assert differs("<serial type='unix'>", f"<serial type='unix'><source path='{GUEST_AGENT}'/>")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (">qemu64<", ">qemu32<", "model is 'qemu32', and 'qemu64' was approved (domain/cpu/model)"),
        (">qemu64<", "><", "model is '', and 'qemu64' was approved"),
        (">qemu64<", "> qemu64<", "model is ' qemu64'"),
        ("check='none'", "check='full'", "check is 'full', and 'none' was approved (domain/cpu/@check)"),
        (" check='none'", "", "check is missing, and 'none' was approved"),
        ("<cpu ", "<cpu new='1' ", "new is '1', and nothing was approved"),
        ("<memballoon model='none'/>", "", "<memballoon> was approved, and is missing (domain/devices/memballoon)"),
        ("</devices>", "<panic/></devices>", "<panic> was not approved (domain/devices/panic)"),
        ("<memballoon model='none'/>", "<panic/>", "<panic> stands where <memballoon> was approved"),
    ],
)
def test_every_other_difference_is_found_and_told(old: str, new: str, says: str) -> None:
    assert says in str(differs(old, new))


def test_the_order_of_elements_is_a_difference() -> None:
    swapped = re.sub(r"(<name>.*</name>)\s*(<uuid>.*</uuid>)", r"\2\1", DOMAIN)
    assert difference(bounded_xml.parse(DOMAIN), bounded_xml.parse(swapped))


# Cookies.


def cookie_problems(more: str) -> list[str]:
    text = WEB.cookie(more=more).decode().rstrip("\0")
    root = bounded_xml.parse(text)
    return [str(p) for p in check_cookie(root, name="web", uuid=UUID, disks=frozenset({"vda"}))]


@pytest.mark.parametrize(
    "more",
    [
        "<capabilities><cap name='xbzrle' auto='no'/></capabilities>",
        (
            "<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>qemu64</model>"
            "<feature policy='require' name='hypervisor'/></cpu>"
        ),
        "<statistics><started>1</started><delta>-10</delta><memory_bps>45324741</memory_bps></statistics>",
        "<blockDirtyBitmaps><disk target='vda'><bitmap name='b' alias='c'/></disk></blockDirtyBitmaps>",
        "<network><interface index='0' vporttype='none'/></network>",
        "<allowReboot value='yes'/>",
        "<feature name='persistent'/><feature name='network'/><feature name='nbd'/><feature name='memory-hotplug'/>",
        "<domain><anything/></domain>",
    ],
)
def test_what_libvirt_says_beside_a_definition_passes(more: str) -> None:
    assert cookie_problems(more) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("<statistics><started>x</started></statistics>", "statistics started 'x'"),
        ("<statistics><started></started></statistics>", "statistics started ''"),
        ("<statistics><new>1</new></statistics>", "<new>"),
        ("<feature name='new'/>", "feature name 'new'"),
        ("<nbd><disk target='vda' capacity='x'/></nbd>", "capacity 'x'"),
        ("<hostname>a b</hostname>", "hostname 'a b'"),
        (
            "<blockDirtyBitmaps><disk target='vda'><bitmap name='b' alias='c d'/></disk></blockDirtyBitmaps>",
            "alias 'c d'",
        ),
        ("<blockDirtyBitmaps><disk target='vdb'/></blockDirtyBitmaps>", "disk target 'vdb'"),
        ("<blockDirtyBitmaps><disk target='vda'><bitmap name='a b'/></disk></blockDirtyBitmaps>", "bitmap name 'a b'"),
        ("<network><interface index='x'/></network>", "index 'x'"),
        ("<network><interface><portdata>x</portdata></interface></network>", "<portdata>"),
        ("<capabilities><cap name='a b' auto='no'/></capabilities>", "cap name 'a b'"),
        ("<graphics type='spice' port='1' listen='0.0.0.0'/>", "<graphics>"),
        ("<hostuuid>x</hostuuid>", "hostuuid 'x'"),
        ("<domain/><domain/>", "more than one definition"),
    ],
)
def test_anything_else_does_not(more: str, says: str) -> None:
    assert says in cookie_problems(more)[0]


def test_a_cookie_names_its_vm_and_its_host_once() -> None:
    text = "<qemu-migration><name>web</name></qemu-migration>"
    found = [str(p) for p in check_cookie(bounded_xml.parse(text), name="web", uuid=UUID, disks=frozenset())]
    assert [f"0 of <{tag}>" in p for tag, p in zip(("uuid", "hostname", "hostuuid"), found, strict=True)] == [True] * 3


def test_the_image_of_a_disk_is_one_that_was_made_for_it() -> None:
    assert IMAGE in domain_rules._rules(ALLOWED)
    assert (
        "disk source file '/var/lib/libvirt/images/other.qcow2' is not allowed"
        in problems("<disk type='file'><source file='/var/lib/libvirt/images/other.qcow2'/></disk>")[0]
    )
