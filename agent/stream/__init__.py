"""What the bytes of a channel mean: pure readers of streams that libvirt and QEMU speak.

libvirt_rpc   calls and replies between two libvirt daemons: what passes, what is answered here, what waits
"""
