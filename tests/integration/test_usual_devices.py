"""A VM with all that virt-install gives it passes the destination's rules as it is, and so does what libvirt makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.story import FAST
from tests.lab import Lab
from tests.lab.hosts import IMAGES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

NAME, SOURCE, DESTINATION = "usual", "east-1", "west-1"
# `virt-install --osinfo debian11 --graphics vnc --print-xml` without its TPM, for TCG and the lab's network; nothing boots in it.
DOMAIN = f"""\
<domain type='qemu'>
  <name>{NAME}</name>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://debian.org/debian/11'/>
    </libosinfo:libosinfo>
  </metadata>
  <title>All that is usual</title>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <iothreads>1</iothreads>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/><bootmenu enable='yes' timeout='100'/></os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/>
  </clock>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap' cache='none' iothread='1'/>
      <source file='{IMAGES}/{NAME}.qcow2'/><target dev='vda' bus='virtio'/><serial>0815</serial>
      <iotune><total_iops_sec>10000</total_iops_sec></iotune>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='usb' model='qemu-xhci' ports='15'/>
    <controller type='scsi' model='virtio-scsi'/>
    <interface type='network'>
      <source network='lan'/><model type='virtio'/><driver name='qemu'/>
      <link state='up'/>
    </interface>
    <serial type='pty'/>
    <console type='pty'/>
    <channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/>
    <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>
    <audio id='1' type='none'/>
    <sound model='ich9'/>
    <video><model type='virtio'/></video>
    <watchdog model='i6300esb' action='reset'/>
    <memballoon model='virtio'><stats period='5'/></memballoon>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <panic model='isa'/>
  </devices>
</domain>
"""


@pytest.fixture
def usual(lab: Lab) -> Iterator[str]:
    """It runs at its source, and is nowhere afterwards."""
    lab.set_wan(FAST)
    source = lab.hosts[SOURCE]
    source.virsh("vol-create-as", "default", f"{NAME}.qcow2", "8M", "--format", "qcow2")
    path = lab.directory / f"{NAME}.xml"
    path.write_text(DOMAIN)
    source.virsh("define", str(path))
    source.virsh("start", NAME)
    yield NAME
    lab.guests.stop(NAME)


def test_a_vm_with_usual_devices_moves_and_comes_back(lab: Lab, usual: str) -> None:
    for here, there in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
        site, other = here.split("-")[0], there.split("-")[0]
        moved = lab.landbridge(site, "migrate", usual, "--to", f"{other}/{there}", "--json")
        assert moved.returncode == 0, moved.stdout + moved.stderr
        assert json.loads(moved.stdout.splitlines()[-1])["state"] == "completed"
        assert lab.guests.where(usual)[there].startswith("running")
