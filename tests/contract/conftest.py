"""The worlds of the hypervisor contract, and the databases of the store's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.hypervisor_worlds import FakeWorld, LibvirtWorld, World
from tests.contract.postgresql import PostgreSQL
from tests.lab.hosts import HostNode
from tests.lab.lab import Lab, name_of


@pytest.fixture(scope="session")
def libvirt_hosts() -> Iterator[tuple[HostNode, HostNode]]:
    """Two hosts of a bare lab, for the whole session: QEMU's first start on a host takes seconds."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")  # what else it misses is an error
    lab = Lab(name_of("c"))
    lab.down()  # what a killed run has left
    try:
        lab.up(product=False)
        yield lab.hosts["east-1"], lab.hosts["west-1"]
    finally:
        lab.down()


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.lab)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Two hosts, and nothing on them."""
    is_fake = request.param == "fake"
    made = FakeWorld(tmp_path) if is_fake else LibvirtWorld(*request.getfixturevalue("libvirt_hosts"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One server for the whole session; it takes seconds to start."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lab)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.database()
