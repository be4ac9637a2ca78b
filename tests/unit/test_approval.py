"""What is approved of a definition where it meets the file system: links that lead away, and files that are another VM's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.approval import allowed, approve, made_files, not_granted, problems, refusals, unreadable
from agent.config import FirewallSettings
from agent.hypervisor import domain_xml as definitions
from agent.stream.domain_rules import KERNEL, NVRAM, SERIAL, Allowed
from landbridge.v1.agent_pb2 import CheckIncomingResponse, Mapping
from landbridge.v1.types_pb2 import Host, Pool, Vm, VmState
from tests.unit.rpc_made import ALLOWED, DOMAIN, EMULATOR, NAME, RAM_URI, UUID

HOST = Host(
    emulators=[EMULATOR],
    networks=["lan", "secret"],
    pools=[Pool(name="default", path="/var/lib/libvirt/images")],
)
SETTINGS = FirewallSettings(kernel=("/srv/boot",), serial=("/srv/console",))


def facts(xml: str = DOMAIN) -> Vm:
    vm = definitions.facts(xml)
    for disk in vm.disks:
        disk.pool = "default"
    return vm


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Folders of a host, with a kernel."""
    for name in ("boot", "images", "nvram", "console", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "boot/vmlinuz").touch()
    (tmp_path / "images/web.qcow2").touch()
    return tmp_path


def placed(files: Path, xml: str = DOMAIN) -> tuple[str, Allowed]:
    """A definition, and what it may use, below these folders."""
    xml = xml.replace("/srv/", f"{files}/").replace("/var/lib/libvirt/images", f"{files}/images")
    folders = {KERNEL: (f"{files}/boot",), SERIAL: (f"{files}/console",), NVRAM: (f"{files}/nvram",)}
    return xml, replace(ALLOWED, images=frozenset({f"{files}/images/web.qcow2"}), folders=folders)


def found(files: Path, xml: str = DOMAIN, *, may_replace: bool = False) -> list[str]:
    xml, rules = placed(files, xml)
    replaced = made_files(xml) if may_replace else ()
    return [str(problem) for problem in problems(xml, facts(xml), rules, may_replace=replaced)]


def test_files_where_they_say_that_they_are_have_no_problem(files: Path) -> None:
    assert found(files) == []


def test_a_link_within_its_folder_is_none(files: Path) -> None:
    (files / "boot/vmlinuz").unlink()
    (files / "boot/vmlinuz-6").touch()
    (files / "boot/vmlinuz").symlink_to("vmlinuz-6")
    assert found(files) == []


def test_a_folder_that_is_a_link_itself_is_what_it_leads_to(files: Path) -> None:
    (files / "boot").rename(files / "real")
    (files / "boot").symlink_to(files / "real")
    assert found(files) == []


def test_a_link_out_of_its_folder_leads_where_nothing_may_be(files: Path) -> None:
    (files / "boot/vmlinuz").unlink()
    (files / "boot/vmlinuz").symlink_to(files / "elsewhere/x")
    (problem,) = found(files)
    assert f"boot/vmlinuz leads to {files}/elsewhere/x, where nothing of it may be (domain/os/kernel)" in problem


def test_a_folder_below_that_is_a_link_leads_out_too(files: Path) -> None:
    (files / "boot/sub").symlink_to(files / "elsewhere")
    (problem,) = found(files, DOMAIN.replace("boot/vmlinuz", "boot/sub/vmlinuz"))
    assert "leads to" in problem


def test_an_image_is_no_link_wherever_it_leads(files: Path) -> None:
    (files / "images/web.qcow2").unlink()
    (files / "images/web.qcow2").symlink_to(files / "images/other.qcow2")
    (problem,) = found(files)
    assert "images/web.qcow2 leads to" in problem


def with_variables(files: Path) -> str:
    return DOMAIN.replace("</os>", f"<nvram>{files}/nvram/web_VARS.fd</nvram></os>")


def test_variables_of_firmware_that_are_here_may_be_another_vms_unless_this_one_comes_back(files: Path) -> None:
    assert found(files, with_variables(files)) == []
    (files / "nvram/web_VARS.fd").touch()
    (problem,) = found(files, with_variables(files))
    assert "web_VARS.fd is here already, and may be another VM's; remove or rename it" in problem
    assert found(files, with_variables(files), may_replace=True) == []


def test_a_vm_that_comes_back_does_not_get_the_variables_of_another(files: Path) -> None:
    (files / "nvram/web_VARS.fd").touch()
    xml, rules = placed(files, with_variables(files))
    (problem,) = problems(xml, facts(xml), rules, may_replace=[f"{files}/nvram/other_VARS.fd"])
    assert "is here already" in str(problem)


@pytest.mark.parametrize("name", ["link", "file", "missing"])
def test_a_path_that_is_refused_is_not_looked_at(files: Path, name: str) -> None:
    (files / "elsewhere/file").touch()
    (files / "elsewhere/link").symlink_to("/etc/passwd")
    kernel = f"{files}/elsewhere/{name}"
    for xml in (
        DOMAIN.replace("/srv/boot/vmlinuz", kernel),
        DOMAIN.replace("</os>", f"<nvram>{kernel}</nvram></os>"),
        DOMAIN.replace("/var/lib/libvirt/images/web.qcow2", kernel),
    ):
        (problem,) = found(files, xml)
        assert problem.partition("'")[2].startswith(kernel[:20])
        assert "is not allowed" in problem


def test_libvirt_makes_the_variables_and_whoever_gives_up_removes_them(files: Path) -> None:
    assert made_files(with_variables(files)) == [f"{files}/nvram/web_VARS.fd"]
    assert made_files(DOMAIN) == []


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (Vm(name="x", uuid=UUID, memory=268435456), "its name is web, and the source's host says x"),
        (Vm(name=NAME, uuid="x", memory=268435456), f"its UUID is {UUID}, and the source's host says x"),
        (Vm(name=NAME, uuid=UUID, memory=1), "its memory is 268435456, and the source's host says 1"),
    ],
)
def test_a_definition_of_another_vm_than_was_said_is_a_problem(files: Path, said: Vm, says: str) -> None:
    xml, rules = placed(files)
    (problem,) = problems(xml, said, rules)
    assert problem.what == says


def test_what_cannot_be_read_says_why() -> None:
    assert unreadable(DOMAIN) == ""
    assert unreadable("<!DOCTYPE x><x/>") == "its definition has a DTD"


# At preflight.


def refused(xml: str = DOMAIN, check: CheckIncomingResponse | None = None, mapping: Mapping | None = None) -> list[str]:
    vm = definitions.facts(DOMAIN)
    vm.disks[0].pool = "default"
    return refusals(SETTINGS, vm, xml, mapping or Mapping(), check or CheckIncomingResponse(host=HOST))


def test_a_good_definition_is_not_refused() -> None:
    assert refused() == []


def test_what_is_refused_is_told_with_this_hosts_names() -> None:
    assert refused(DOMAIN.replace("<memballoon", "<shmem2/><memballoon")) == [
        "the element <shmem2> is not allowed (domain/devices/shmem2)"
    ]
    assert refused("<!DOCTYPE x><x/>") == ["its definition has a DTD"]


def test_what_has_a_finding_of_its_own_is_not_told_twice() -> None:
    assert refused(DOMAIN.replace(EMULATOR, "/opt/qemu")) == []
    for device in (
        "<hostdev mode='subsystem' type='usb'/>",
        "<interface type='bridge'><source bridge='br0'/></interface>",
    ):
        assert refused(DOMAIN.replace("<memballoon", f"{device}<memballoon")) == []
    xml = DOMAIN.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ")
    assert refused(xml.replace("</domain>", "<qemu:commandline/></domain>")) == []


def test_what_has_no_place_here_is_for_other_findings() -> None:
    assert refused(mapping=Mapping(pools={"default": "none"})) == []
    assert refused(mapping=Mapping(networks={"lan": "none"})) == []


def test_a_host_says_which_of_its_pools_and_networks_vms_from_other_sites_get() -> None:
    def told(mapping: Mapping, **granted: tuple[str, ...]) -> list[str]:
        settings = SETTINGS.model_copy(update=granted)
        assert [str(each) for each in not_granted(settings, facts(), mapping)] == refusals(
            settings, facts(), DOMAIN, mapping, CheckIncomingResponse(host=HOST)
        )
        return refusals(settings, facts(), DOMAIN, mapping, CheckIncomingResponse(host=HOST))

    assert told(Mapping(), pools=("default",), networks=("lan",)) == []
    assert told(Mapping(networks={"lan": "secret"}), networks=("lan",)) == [
        "the network secret is not among the networks for VMs from other sites (domain/devices/interface)"
    ]
    assert told(Mapping(), pools=(), networks=("lan", "secret")) == [
        "the pool default is not among the pools for VMs from other sites (domain/devices/disk)"
    ]


def test_a_vm_that_comes_back_may_replace_what_it_left(tmp_path: Path) -> None:
    variables = tmp_path / "web_VARS.fd"
    variables.touch()
    xml = DOMAIN.replace("</os>", f"<nvram>{variables}</nvram></os>")
    vm = facts()
    settings = FirewallSettings(kernel=("/srv/boot",), serial=("/srv/console",), nvram=(str(tmp_path),))
    check = CheckIncomingResponse(host=HOST)
    assert len(refusals(settings, vm, xml, Mapping(), check)) == 1
    check.conflicts.add(uuid=UUID, state=VmState.VM_STATE_RUNNING)
    assert len(refusals(settings, vm, xml, Mapping(), check)) == 1
    check.conflicts.add(uuid=UUID, state=VmState.VM_STATE_MOVED)
    assert refusals(settings, vm, xml, Mapping(), check) == []


def test_a_vm_may_use_the_networks_that_its_own_are_mapped_to_and_the_images_that_are_made_for_it() -> None:
    vm = facts()
    rules = allowed(SETTINGS, HOST, vm, Mapping(networks={"lan": "secret", "x": "lan"}), ["/a"])
    assert rules.networks == {"secret"}
    assert rules.images == {"/a"}
    assert allowed(SETTINGS, HOST, vm, Mapping(networks={"lan": "none"}), []).networks == set()
    more = FirewallSettings(emulators=("/opt/qemu",), elements=("domain/x",), hostdevs=("0000:01:00.0",))
    rules = allowed(more, HOST, vm, Mapping(), [])
    assert rules.emulators == {EMULATOR, "/opt/qemu"}
    assert rules.elements == {"domain/x"}
    assert rules.hostdevs == {"0000:01:00.0"}


def test_an_approval_names_the_sockets_on_which_qemu_listens_and_the_disks_that_are_copied() -> None:
    vm = facts(DOMAIN.replace("<memballoon", "<disk type='file' device='cdrom'><source file='/x'/></disk><memballoon"))
    made = approve(DOMAIN, vm, ALLOWED, Path("/run/landbridge/m-1"))
    assert made.ram_uri == RAM_URI
    assert made.disks == {"vda"}
    assert (made.name, made.uuid) == (NAME, UUID)


# Configuration.


@pytest.mark.parametrize("folder", ["boot", "/srv/../etc", "/srv/", "/", "/srv//x"])
def test_a_folder_is_an_absolute_path_in_its_simplest_form(folder: str) -> None:
    with pytest.raises(ValueError, match="is not the absolute path of a folder"):
        FirewallSettings(kernel=(folder,))
