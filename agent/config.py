"""What an agent is told: /etc/landbridge/agent.toml."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from landbridge.config import AddressesField, AddressField, PathField, Settings


class IdentitySettings(Settings):
    """Who this agent is: a directory as `landbridge certs issue` writes it."""

    directory: PathField


class ListenSettings(Settings):
    """Where the gateways of this site reach the agent."""

    # gRPC, landbridge.v1.Agent
    control: AddressField
    # links that carry channels to this host
    stream: AddressField


class GatewaySettings(Settings):
    """This site's gateways, tried in order."""

    # where they take channels to other sites
    stream: AddressesField
    # gRPC, landbridge.v1.Renewal, where they take operators' calls too; without it, nobody renews this agent's certificate
    control: AddressesField = ()


class LibvirtSettings(Settings):
    """The hypervisor of this host."""

    uri: str = "qemu:///system"
    # What a channel of kind rpc is connected to at the destination.
    socket: PathField = Path("/run/libvirt/libvirt-sock")
    # The user as whom QEMU runs, who must reach the migration sockets.
    qemu_user: str = "libvirt-qemu"


class PathSettings(Settings):
    """Where the agent keeps what it makes."""

    # Sockets of migrations under way.
    runtime: PathField = Path("/run/landbridge")
    # The journal of migrations.
    state: PathField = Path("/var/lib/landbridge")


def _folder(value: str) -> str:
    pure = PurePosixPath(value)
    if not pure.is_absolute() or str(pure) != value or ".." in pure.parts or len(pure.parts) < 2:
        raise ValueError(
            f'{value!r} is not the absolute path of a folder, in its simplest form, such as "/srv/kernels"'
        )
    return value


Folders = tuple[Annotated[str, AfterValidator(_folder)], ...]


class FirewallSettings(Settings):
    """What VMs that come from other sites may use of this host (`agent.stream.firewall`)."""

    # "observe" lets pass what breaks the rules, and logs it: for a libvirt that is newer than these rules.
    mode: Literal["enforce", "observe"] = "enforce"
    # Beyond those that libvirt names in its capabilities.
    emulators: tuple[str, ...] = ()
    # Folders below which files may be that a definition names: firmware, its variables, kernels and initramfs, and the sockets
    # and logs of serial ports, consoles and channels.
    firmware: Folders = (
        "/usr/share/OVMF",
        "/usr/share/AAVMF",
        "/usr/share/ovmf",
        "/usr/share/qemu",
        "/usr/share/seabios",
    )
    nvram: Folders = ("/var/lib/libvirt/qemu/nvram",)
    kernel: Folders = ("/var/lib/libvirt/boot",)
    serial: Folders = ()
    # Pools and networks of this host that VMs may be placed in and on, whatever the gateways map theirs to; None: all that are active.
    pools: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    # PCI devices, such as "0000:01:00.0", and directories that VMs may be given.
    hostdevs: tuple[str, ...] = ()
    filesystems: Folders = ()
    # Elements and attributes of definitions beyond those that are known to be harmless: "domain/devices/disk/driver/@new".
    elements: tuple[str, ...] = ()


class ProofSettings(Settings):
    """What the proof of a migration's disks (`landbridge migrate --verify-disks`) may take of this host."""

    # MB/s that it reads, beside the guests; 0: as fast as it goes.
    rate: float = Field(default=200.0, ge=0, le=1e6)


class AgentSettings(Settings):
    """The whole file."""

    site: str
    name: str
    identity: IdentitySettings
    listen: ListenSettings
    gateway: GatewaySettings
    libvirt: LibvirtSettings = LibvirtSettings()
    paths: PathSettings = PathSettings()
    firewall: FirewallSettings = FirewallSettings()
    proof: ProofSettings = ProofSettings()
