"""What an agent is told: /etc/landbridge/agent.toml."""

from __future__ import annotations

from pathlib import Path

from landbridge.config import AddressField, Settings


class IdentitySettings(Settings):
    """Who this agent is: a directory as `landbridge certs issue` writes it."""

    directory: Path


class ListenSettings(Settings):
    """Where the gateways of this site reach the agent."""

    # gRPC, landbridge.v1.Agent
    control: AddressField
    # links that carry channels to this host
    stream: AddressField


class GatewaySettings(Settings):
    """This site's gateways, tried in order."""

    # where they take channels to other sites
    stream: tuple[AddressField, ...]
    # gRPC, landbridge.v1.Renewal, where they take operators' calls too; without it, nobody renews this agent's certificate
    control: tuple[AddressField, ...] = ()


class LibvirtSettings(Settings):
    """The hypervisor of this host."""

    uri: str = "qemu:///system"
    # What a channel of kind rpc is connected to at the destination.
    socket: Path = Path("/run/libvirt/libvirt-sock")
    # The user as whom QEMU runs, who must reach the migration sockets.
    qemu_user: str = "libvirt-qemu"


class PathSettings(Settings):
    """Where the agent keeps what it makes."""

    # Sockets of migrations under way.
    runtime: Path = Path("/run/landbridge")
    # The journal of migrations.
    state: Path = Path("/var/lib/landbridge")


class AgentSettings(Settings):
    """The whole file."""

    site: str
    name: str
    identity: IdentitySettings
    listen: ListenSettings
    gateway: GatewaySettings
    libvirt: LibvirtSettings = LibvirtSettings()
    paths: PathSettings = PathSettings()
