"""Identities of two sites that trust each other, and of one that nobody trusts, for tests with real handshakes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from certs import authority, store
from certs.identity import Identity, Role, Site
from certs.links import Target
from certs.living import LivingIdentity
from certs.store import StoredIdentity
from certs.trust import TrustBundles
from landbridge.config import Address

DOMAIN = "example.org"


@dataclass(frozen=True)
class Identities:
    """Issued as they are asked for."""

    directory: Path
    authorities: dict[str, authority.Authority]

    @classmethod
    def make(cls, directory: Path) -> Identities:
        """Sites "a" and "b", and the "stranger"."""
        now = datetime.now(UTC)
        return cls(directory, {s: authority.create(Site(DOMAIN, s), now) for s in ("a", "b", "stranger")})

    def of(self, site: str, role: Role, name: str = "x1") -> StoredIdentity:
        """An identity of a site, which trusts sites "a" and "b"."""
        directory = self.directory / f"{site}-{role}-{name}"
        if not directory.exists():
            leaf = authority.issue(self.authorities[site], Identity(DOMAIN, site, role, name), datetime.now(UTC))
            store.save_identity(directory, leaf)
        loaded = store.load_identity(directory, datetime.now(UTC))
        trust = TrustBundles.of([self.authorities[s].certificate for s in ("a", "b")])
        return StoredIdentity(
            directory, loaded.identity, loaded.certificate, loaded.certificate_pem, loaded.key_pem, trust
        )


def nowhere(name: str) -> Target:
    """A target that nobody dials."""
    return Target(name, Address("127.0.0.1", 1), cast("LivingIdentity", None), Role.HOST, "a")
