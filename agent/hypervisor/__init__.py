"""What runs the VMs of this host, behind one interface.

base              Hypervisor (Protocol), MoveRequest, Presence, VmEvent
domain_xml        a definition -> Vm; a definition for another host           pure
placement         which pool, path and network a VM gets on this host         pure
libvirt_driver    the real one, and the only door to libvirt; beside it, given its module:
    libvirt_connection   staying connected, events     libvirt_storage   images in pools
    libvirt_domain       one domain's facts            libvirt_facts     XML and statistics -> messages, pure
    libvirt_bitmap       what a VM writes, and its disks at one moment
images            the disks of a VM that is shut off      nbd_client   reads either kind
fake              in memory, same contract; its moves use real sockets:
    fake_outgoing  ── rpc, ram, disk ──>  fake_incoming        fake_wire   libvirt's frames
"""
