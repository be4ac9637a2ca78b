"""Two sites on one machine: real libvirtd, real QEMU guests, and a WAN that can be slowed, thinned and cut.

    east-1 ─┐                  WAN 10.71.0.0/30                  ┌─ west-1      each host: network, mount and UTS
            ├─ LAN ─ east-gw ═════ wan (TUN, C) ═════ west-gw ─ LAN ─┤          namespaces, its own libvirtd, folders,
    east-2 ─┘    10.71.1.0/24                     10.71.2.0/24   └─ west-2      pool `default`, network `lan`

    lab         up, down; the handles on all of it          network    namespaces, LANs, the WAN (wan.c)
    hosts       a host's namespaces, folders and libvirtd   product    certificates, agents, gateways
    guests      a guest's life; guest.c is inside it        kernel     what a guest boots
    files       real files for it                           root       a Debian 13, which hosts can have as their root
    console     records what a guest prints, with the time  judge      the verdict on it (pure)
    processes   records, so that `down` ends what is the lab's and nothing else
    hostile_gateway     a gateway that flips a byte

A guest is the judge of its own memory and disk; `python -m tests.lab vm check` adds what only the outside can tell.
"""

from tests.lab.judge import Verdict
from tests.lab.lab import Lab
from tests.lab.settings import GuestSettings, LabError, LabSettings, WanSettings

__all__ = ["GuestSettings", "Lab", "LabError", "LabSettings", "Verdict", "WanSettings"]
