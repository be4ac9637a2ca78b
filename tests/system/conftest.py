"""Two sites for each test, certificates for all, and pauses that suit a loopback."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import disk_proof, relay, renewal, service, source
from gateway.audit import changes, cosigning, presence
from gateway.authorization import policy_file
from gateway.identities import trusting
from gateway.migration import proofs, reports, steps, succession
from gateway.tunnel import dial
from tests.system.sites import Operator, TwoSites, make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: nothing in a test changes them."""
    directory = tmp_path_factory.mktemp("identities")
    make_identities(directory)
    return directory


@pytest.fixture(scope="session", autouse=True)
def long_lived_objects() -> Iterator[None]:
    """Keep what was imported out of the collections below, which would take longer than the tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PROGRESS_INTERVAL", 0.02)
    monkeypatch.setattr(service, "RECOVERY_INTERVAL", 0.05)
    monkeypatch.setattr(relay, "LOST_GRACE", 0.05)
    monkeypatch.setattr(steps, "RETRY", 0.05)
    monkeypatch.setattr(proofs, "INTERVAL", 0.02)
    monkeypatch.setattr(disk_proof, "RETRY", 0.05)
    monkeypatch.setattr(reports, "INTERVAL", 0.1)
    monkeypatch.setattr(dial, "BACK_OFF", (0.05, 0.1))
    monkeypatch.setattr(policy_file, "INTERVAL", 0.02)
    monkeypatch.setattr(changes, "LOOK", 0.05)
    monkeypatch.setattr(presence, "LOOK", 0.05)
    monkeypatch.setattr(cosigning, "LOOK", 0.02)
    monkeypatch.setattr(cosigning, "PAUSE", 0.1)
    monkeypatch.setattr(trusting, "ROUND", 0.1)
    monkeypatch.setattr(renewal, "RETRY", 0.1)
    monkeypatch.setattr(renewal, "TICK", 0.05)
    monkeypatch.setattr(succession, "ROUND", 0.05)
    monkeypatch.setattr(succession, "BEAT", 0.1)
    monkeypatch.setattr(succession, "EXPIRED", 0.5)


@pytest.fixture
async def two(identities: Path) -> AsyncIterator[TwoSites]:
    """Both sites, running. Not under tmp_path: the path of a UNIX socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        async with TwoSites(identities, Path(directory)) as sites:
            yield sites
    # A server of gRPC uses its event loop once more when it is collected: better now than when the loop is closed.
    gc.collect()
    await asyncio.sleep(0)


@pytest.fixture
async def carol(two: TwoSites) -> AsyncIterator[Operator]:
    async with two.fra.person("carol") as carol:
        yield carol


@pytest.fixture
async def dave(two: TwoSites) -> AsyncIterator[Operator]:
    async with two.fra.person("dave") as dave:
        yield dave


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """What agents and gateways log."""
    with capture_logs() as entries:
        yield entries  # type: ignore[misc]  # structlog has a type of its own for them
