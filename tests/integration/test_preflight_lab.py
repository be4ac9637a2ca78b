"""What would not work is found before anything is touched: each obstacle built on real hosts with real domains."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Lab
from tests.lab.hosts import IMAGES
from tests.lab.network import node

pytestmark = pytest.mark.lab

SOURCE, DESTINATION = "east-2", "west-2"
# No kernel, no disk to boot from: its BIOS is all that could run, and it never does.
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  {cpu}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
PLAIN_CPU = "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>"


def disk(path: str) -> str:
    return f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='vda' bus='virtio'/></disk>"


@contextmanager
def domain(
    lab: Lab,
    name: str,
    host: str = SOURCE,
    *,
    identity: str = "",
    cpu: str = PLAIN_CPU,
    devices: str = "",
    run: bool = True,
) -> Iterator[str]:
    """A domain on a host, running if wanted; yields its UUID."""
    there, identity = lab.hosts[host], identity or str(uuid.uuid4())
    definition = lab.directory / f"{name}-{host}.xml"
    definition.write_text(DOMAIN.format(name=name, uuid=identity, cpu=cpu, devices=devices))
    there.virsh("define", str(definition))
    try:
        if run:
            there.virsh("start", name)
        yield identity
    finally:
        there.virsh("destroy", name, check=False)
        there.virsh("undefine", name)


def findings(lab: Lab, name: str) -> set[str]:
    """The codes of what preflight has against a move; the command agrees with itself, and touches nothing."""
    to = f"{node(DESTINATION).site}/{DESTINATION}"
    done = lab.landbridge(node(SOURCE).site, "migrate", f"{SOURCE}/{name}", "--to", to, "--dry-run", "--json")
    assert "Traceback" not in done.stderr
    preflight = json.loads(done.stdout)
    errors = {f["code"] for f in preflight["findings"] if f["severity"] == "error"}
    assert preflight["passed"] is (not errors)
    assert done.returncode == (5 if errors else 0), done.stderr
    assert all(f["message"] and f["remedy"] for f in preflight["findings"])
    return errors


def test_a_vm_with_nothing_against_it_passes(lab: Lab) -> None:
    with domain(lab, "plain"):
        assert findings(lab, "plain") == set()


def test_a_vm_that_is_shut_off_passes_as_well(lab: Lab) -> None:
    with domain(lab, "off", run=False):
        assert findings(lab, "off") == set()


def test_a_paused_vm_is_found(lab: Lab) -> None:
    with domain(lab, "still"):
        lab.hosts[SOURCE].virsh("suspend", "still")
        assert findings(lab, "still") == {"vm-not-running"}


def test_another_vm_of_the_same_name_at_the_destination_is_found(lab: Lab) -> None:
    with domain(lab, "twin"), domain(lab, "twin", DESTINATION, run=False):
        assert findings(lab, "twin") == {"name-exists"}


def test_another_vm_of_the_same_uuid_at_the_destination_is_found(lab: Lab) -> None:
    with domain(lab, "one") as identity, domain(lab, "two", DESTINATION, identity=identity, run=False):
        assert findings(lab, "one") == {"uuid-exists"}


def test_a_disk_outside_every_pool_is_found(lab: Lab) -> None:
    host = lab.hosts[SOURCE]
    path = "/var/lib/libvirt/qemu/outside.raw"
    host.run(["truncate", "-s", "1M", path])
    host.run(["chmod", "666", path])
    try:
        with domain(lab, "outside", devices=disk(path)):
            assert findings(lab, "outside") == {"disk-outside-pool"}
    finally:
        host.run(["rm", "-f", path])


def test_a_network_that_the_destination_does_not_have_is_found(lab: Lab) -> None:
    host = lab.hosts[SOURCE]
    definition = lab.directory / "dmz.xml"
    definition.write_text("<network><name>dmz</name><forward mode='bridge'/><bridge name='guests'/></network>")
    host.virsh("net-define", str(definition))
    host.virsh("net-start", "dmz")
    interface = "<interface type='network'><source network='dmz'/><model type='virtio'/><rom enabled='no'/></interface>"
    try:
        with domain(lab, "onlan", devices=interface):
            assert findings(lab, "onlan") == {"network-unmapped"}
    finally:
        host.virsh("net-destroy", "dmz")
        host.virsh("net-undefine", "dmz")


def test_a_cpu_that_is_tied_to_its_host_is_found(lab: Lab) -> None:
    # `maximum` is what TCG has of host-passthrough: all that this host's QEMU can do.
    with domain(lab, "tied", cpu="<cpu mode='maximum'/>"):
        assert "cpu-pinned" in findings(lab, "tied")


def test_a_cpu_passed_through_from_its_host_is_found(lab: Lab) -> None:
    # It cannot be started without KVM, which the lab's hosts do not have; preflight reads the definition all the same.
    with domain(lab, "passed", cpu="<cpu mode='host-passthrough'/>", run=False):
        assert findings(lab, "passed") == {"cpu-pinned"}


def test_too_little_space_at_the_destination_is_found_as_it_is_now(lab: Lab) -> None:
    host, there, filler = lab.hosts[SOURCE], lab.hosts[DESTINATION], f"{IMAGES}/filler"
    host.virsh("vol-create-as", "default", "large.raw", "24M", "--format", "raw")
    there.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M", "count=80"])
    try:
        with domain(lab, "large", devices=disk(f"{IMAGES}/large.raw")):
            assert findings(lab, "large") == {"disk-space"}
            there.run(["rm", filler])
            assert findings(lab, "large") == set()
    finally:
        there.run(["rm", "-f", filler])
        host.virsh("vol-delete", "--pool", "default", "large.raw")


def test_an_image_of_the_same_name_at_the_destination_is_found(lab: Lab) -> None:
    for name in (SOURCE, DESTINATION):
        lab.hosts[name].virsh("vol-create-as", "default", "same.raw", "1M", "--format", "raw")
    try:
        with domain(lab, "same", devices=disk(f"{IMAGES}/same.raw")):
            assert findings(lab, "same") == {"image-exists"}
    finally:
        for name in (SOURCE, DESTINATION):
            lab.hosts[name].virsh("vol-delete", "--pool", "default", "same.raw")
