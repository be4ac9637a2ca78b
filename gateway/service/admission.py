"""Who may call landbridge.v1.Gateway: operators of this site, and of them those whose roles have the call."""

from __future__ import annotations

from dataclasses import dataclass

from certs.guard import Access
from certs.identity import Identity
from gateway.authorization.authority import Authority


@dataclass(frozen=True, kw_only=True)
class ByRole(Access):
    """`Access`, and the table of `gateway.authorization.roles` besides."""

    authority: Authority

    def check(self, identity: Identity, method: str) -> None:
        """Raises PermissionDenied."""
        super().check(identity, method)
        self.authority.admit(identity, method.rpartition("/")[2])
