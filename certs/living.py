"""The identity of a running program: its certificate, whom it trusts and what was revoked, all of which change while it runs.

    renewed or trusting more     for every handshake from now on; what is open stays open
    revoked, or its site is not  what is open with whoever shows it is closed, and nothing of theirs is accepted any more
    trusted any more

Everything that makes or takes connections asks here at each handshake. Owned by the event loop; gRPC's threads only read `stored`.
"""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import structlog

from certs import tls
from certs.identity import Identity
from certs.store import StoredIdentity, load_identity
from certs.trust import Credential, Denial, Denials, TrustBundles

log = structlog.get_logger()

# Credentials that are remembered, by identity, so that the newest of each is known.
MOST_SEEN = 10_000


class Closable(Protocol):
    """What can be open with somebody."""

    def abort(self, reason: str) -> None:
        """Close at once."""
        ...


class LivingIdentity:
    """Who this program is, and whom it believes."""

    def __init__(self, stored: StoredIdentity) -> None:
        # As it is now; replaced as a whole.
        self.stored = stored
        self.denials = Denials(stored.identity.home)
        # Called with each credential of an identity that was not the last one seen of it.
        self.on_seen: Callable[[Credential], None] | None = None
        self._seen: dict[Identity, Credential] = {}
        self._clients: dict[str, ssl.SSLContext] = {}
        self._server: ssl.SSLContext | None = None
        self._open: weakref.WeakKeyDictionary[Closable, Credential] = weakref.WeakKeyDictionary()

    @property
    def identity(self) -> Identity:
        """Who it is, which never changes."""
        return self.stored.identity

    @property
    def trust(self) -> TrustBundles:
        """Whom it believes."""
        return self.stored.trust

    def reload(self) -> None:
        """Take what is in the directory now. Raises ConfigError, and leaves all as it is, if that cannot be used."""
        fresh = load_identity(self.stored.directory, datetime.now(UTC))
        server = tls.server_context(fresh)
        self.stored, self._server, self._clients = fresh, server, {}
        for open_one, credential in list(self._open.items()):
            if credential.identity.home not in fresh.trust.roots:
                self._cut(open_one, credential, f"{credential.identity} is of a site that is not trusted here any more")

    # For handshakes

    def client_context(self, site: str) -> ssl.SSLContext:
        """For dialling a site. Raises NotFound for one that is not trusted."""
        if site not in self._clients:
            self._clients[site] = tls.client_context(self.stored, site)
        return self._clients[site]

    def server_context(self) -> ssl.SSLContext:
        """For accepting."""
        if self._server is None:
            self._server = tls.server_context(self.stored)
        return self._server

    # After handshakes

    def peer(self, connection: ssl.SSLSocket | ssl.SSLObject) -> Credential:
        """Who is at the other end. Raises NotAuthenticated."""
        credential = tls.peer_credential(connection, self.trust, datetime.now(UTC), self.denials)
        return self._note(credential, lambda: tls.group_of(connection))

    def caller(self, context: tls.ServicerContext) -> Credential:
        """Who makes a call. Raises NotAuthenticated."""
        credential = tls.grpc_peer_credential(context, self.trust, datetime.now(UTC), self.denials)
        return self._note(credential, lambda: tls.grpc_group_of(context))

    def _note(self, credential: Credential, group: Callable[[], str]) -> Credential:
        before = self._seen.get(credential.identity)
        if before is None or (before.serial != credential.serial and before.issued_at <= credential.issued_at):
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen[credential.identity] = credential
            log.info("identity.seen", identity=str(credential.identity), serial=f"{credential.serial:x}", group=group())
            if self.on_seen is not None:
                self.on_seen(credential)
        return credential

    def hold(self, open_one: Closable, credential: Credential) -> None:
        """Close it if the credential is revoked."""
        self._open[open_one] = credential

    def release(self, open_one: Closable) -> None:
        """It has ended."""
        self._open.pop(open_one, None)

    # Revocation

    def deny(self, denials: frozenset[Denial]) -> None:
        """Accept nothing of these any more, and close what is open with them."""
        if denials == self.denials.all:
            return
        self.denials = Denials(self.identity.home, denials)
        for open_one, credential in list(self._open.items()):
            if refusal := self.denials.refusal(credential):
                self._cut(open_one, credential, refusal)

    def _cut(self, open_one: Closable, credential: Credential, reason: str) -> None:
        log.warning("identity.cut_off", identity=str(credential.identity), reason=reason)
        self.release(open_one)
        open_one.abort(reason)

    def refusal(self, identity: Identity) -> str:
        """Why an identity is not to be called, by the newest of its certificates that was seen here; "" if it may be.

        gRPC does not tell a client which certificate the server has shown: this is how a revoked one is not called again.
        """
        seen = self._seen.get(identity)
        if seen is not None:
            return self.denials.refusal(seen)
        if any(denial.subject == str(identity) for denial in self.denials.all):
            return f"{identity} was revoked, and has not come back with a newer certificate."
        return ""
