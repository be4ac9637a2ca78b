"""How libvirt and QEMU alone move a guest: the ways that spare time or bytes.

`METHODS` are what `virsh migrate` of libvirt 9.0 offers. `multifd-zstd` is not among it: QEMU 7.2 can, but libvirt has no option
for it before 9.4, so it is set in the guest's definition, on QEMU's command line, behind libvirt's back.
"""

from __future__ import annotations

from collections.abc import Mapping

MULTIFD = ("--parallel", "--parallel-connections", "4")
METHODS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "multifd": MULTIFD,
    "xbzrle": ("--compressed", "--comp-methods", "xbzrle", "--comp-xbzrle-cache", str(256 << 20)),
    "auto-converge": ("--auto-converge",),
    "multifd-zstd": MULTIFD,
}
# What a guest needs on its QEMU's command line for a method.
QEMU: Mapping[str, str] = {"multifd-zstd": "-global migration.multifd-compression=zstd"}
