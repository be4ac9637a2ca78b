"""What the bytes of a channel mean: pure readers of streams that libvirt and QEMU speak.

libvirt_rpc   calls and replies between two libvirt daemons: what passes, what is answered here, what waits
qemu          QEMU's migration stream: where pages of memory stand in it, and which ones they are
  savevm      the main channel: sections, commands, and memory
  multifd     the other ones: packets of pages
  description where the main channel ends
  piece       what the readers of these look at: a piece of the stream that may end anywhere
return_path   what the destination's QEMU answers to it
nbd           a disk's copy, both directions: where blocks of the disk stand
hinter        what an agent asks: the hints for what one local socket says
"""
