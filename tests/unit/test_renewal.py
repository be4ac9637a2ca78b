"""When an agent's certificate is due: half way through its life, and by the certificate that it has now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent import renewal
from agent.renewal import Renewal
from certs import authority, store
from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from certs.trust import judge

HOST = Identity("example.org", "a", Role.HOST, "h1")
HOUR = timedelta(hours=1)


class Host:
    """A host, whose issuer is three hours old, and how often it has judged a certificate."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = authority.create(Site("example.org", "a"), self.ago(3 * HOUR))
        self._issuer = authority.make_issuer(root, "gw1", self.ago(3 * HOUR))
        store.save_identity(directory, self._leaf(HOUR / 10))
        self.identity = LivingIdentity(store.load_identity(directory, None))
        self.renewal = Renewal(self.identity, [])
        self.judged = 0
        monkeypatch.setattr(renewal, "judge", self._judge)

    @staticmethod
    def ago(age: timedelta) -> datetime:
        return datetime.now(UTC) - age

    def has(self, age: timedelta) -> None:
        """It has another certificate now, so old, of a life of one hour."""
        leaf, directory = self._leaf(age), self.identity.stored.directory
        store.renew_identity(directory, leaf.chain_pem, leaf.key)
        self.identity.stored = store.load_identity(directory, None)

    def _leaf(self, age: timedelta) -> authority.Leaf:
        return authority.issue(self._issuer, HOST, self.ago(age), lifetime=HOUR)

    def _judge(self, *what: Any) -> object:
        self.judged += 1
        return judge(*what)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path / "identity", monkeypatch)


async def test_it_is_due_in_the_second_half_of_its_life_and_not_before(host: Host) -> None:
    assert not host.renewal._is_due()
    host.has(HOUR * 0.7)
    assert host.renewal._is_due()


async def test_one_that_has_expired_is_due_for_as_long_as_it_is_there(host: Host) -> None:
    host.has(2 * HOUR)
    assert host.renewal._is_due()
    assert host.renewal._is_due()
    host.has(HOUR / 10)
    assert not host.renewal._is_due()


async def test_its_signatures_are_verified_once_and_those_of_the_next_one_once_more(host: Host) -> None:
    for _ in range(3):
        host.renewal._is_due()
    assert host.judged == 1
    host.has(HOUR * 0.7)
    for _ in range(3):
        assert host.renewal._is_due()
    assert host.judged == 2
