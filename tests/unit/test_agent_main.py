"""An agent that cannot start says what is in the way, and leaves nothing behind."""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.config import AgentSettings, GatewaySettings, IdentitySettings, LibvirtSettings, ListenSettings, PathSettings
from agent.hypervisor.fake import FakeHypervisor
from agent.main import running
from certs.identity import Role
from landbridge.config import Address
from landbridge.errors import ConfigError
from tests.unit.identities import Identities


@dataclass
class Machine:
    """A host on loopback, with addresses for its agent."""

    directory: Path
    identities: Identities

    async def start(self, control: Address, stream: Address, **paths: Path) -> None:
        """Start its agent, and end it."""
        settings = AgentSettings(
            site="a",
            name="one",
            identity=IdentitySettings(directory=self.directory),
            listen=ListenSettings(control=control, stream=stream),
            gateway=GatewaySettings(stream=(control,)),
            libvirt=LibvirtSettings(qemu_user=pwd.getpwuid(os.getuid()).pw_name),
            paths=PathSettings(
                runtime=paths.get("runtime", self.directory / "run"), state=paths.get("state", self.directory / "state")
            ),
        )
        hypervisor = FakeHypervisor("one", self.directory / "libvirt.sock")
        async with running(settings, self.identities.of("a", Role.HOST), hypervisor):
            pass


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        yield Machine(Path(directory), Identities.make(Path(directory) / "identities"))


@pytest.fixture
def taken() -> Iterator[Address]:
    """Where somebody listens already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Address(*server.getsockname()[:2])


@pytest.fixture
def free() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address(*server.getsockname()[:2])


async def test_a_port_that_is_taken_is_named_and_the_other_one_is_let_go(
    machine: Machine, taken: Address, free: Address
) -> None:
    with pytest.raises(ConfigError, match=f"nothing can listen on {taken}: .*see listen.control in"):
        await machine.start(taken, free)
    with pytest.raises(ConfigError, match=f"nothing can listen on {taken} "):
        await machine.start(free, taken)
    await machine.start(free, Address("127.0.0.1", 0))


@pytest.mark.parametrize("which", ["state", "runtime"])
async def test_a_directory_that_cannot_be_made_is_named_with_its_key(
    machine: Machine, free: Address, which: str
) -> None:
    (machine.directory / "file").touch()
    with pytest.raises(ConfigError, match=rf"file/.* cannot be made \(Not a directory\): see paths.{which} in"):
        await machine.start(free, Address("127.0.0.1", 0), **{which: machine.directory / "file" / "below"})
