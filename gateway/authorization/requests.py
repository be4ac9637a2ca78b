"""Requests that wait for approvals, in the store: opened by who asks, approved or denied by others, used once.

A request is bound to the hash of exactly what was asked for (`request.digest`). Each change is one atomic step that finds the request
as it must be, so that two gateways, or two people, cannot both win.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from certs.identity import Identity
from gateway.authorization.request import asked, digest, operator
from gateway.store import Store, approvals, requests
from landbridge.errors import AlreadyExists, Conflict, NotFound, UsageError
from landbridge.v1.authorization_pb2 import ApprovalRequest, RequestState
from landbridge.v1.decision_pb2 import Approval
from landbridge.v1.types_pb2 import Migration

SHORTEST_PREFIX = 4
# That wait at a time, of one site: more is somebody who wants to fill the store.
MOST_WAITING = 500
# Of one request, with what another site says in it.
MOST_BYTES = 64 * 1024
# What is over is forgotten after this.
KEPT = timedelta(days=90)

OPEN = frozenset({RequestState.REQUEST_STATE_WAITING, RequestState.REQUEST_STATE_APPROVED})


class Requests:
    """All requests of this site's gateways. `clock` is aware. Every method raises ConfigError if the store fails."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def open(
        self,
        migration: Migration,
        lifetime: timedelta,
        wanted_host: str,
        claimed_by: str,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> ApprovalRequest:
        """The request for exactly this that is not over, or a new one; `before` is awaited before that is made.

        Raises Conflict if too many wait already, UsageError for one that is too large, and what `before` raises.
        """
        sha256 = digest(migration)
        if known := await self.bound_to(sha256):
            return known
        now = self._clock()
        waiting = [each for each in await self.all() if each.state in OPEN and each.claimed_by == claimed_by]
        if len(waiting) >= MOST_WAITING:
            raise Conflict(
                f"{MOST_WAITING} requests wait for approval already: approve or deny some, see `landbridge requests`"
            )
        made = ApprovalRequest(id=str(uuid.uuid4()), wanted_host=wanted_host, claimed_by=claimed_by, sha256=sha256)
        made.migration.CopyFrom(asked(migration))
        if (size := made.ByteSize()) > MOST_BYTES:
            raise UsageError(
                f"a request of {size} bytes is refused: at most {MOST_BYTES}; shorten its names and labels"
            )
        if before is not None:
            await before()
        values = {
            "id": made.id,
            "sha256": sha256,
            "created_at": _ns(now),
            "expires_at": _ns(now + lifetime),
            "message": made.SerializeToString(),
        }
        forget = requests.delete().where(requests.c.expires_at < _ns(now - KEPT))
        orphans = approvals.delete().where(approvals.c.request.not_in(sa.select(requests.c.id)))

        def write(connection: sa.Connection) -> None:
            connection.execute(requests.insert().values(**values))
            connection.execute(forget)
            connection.execute(orphans)

        await self._store.write(write)
        return await self.find(made.id)

    async def all(self, ids: Collection[str] | None = None) -> list[ApprovalRequest]:
        """Newest first: every one, or those with these ids."""
        query = sa.select(requests).order_by(requests.c.created_at.desc(), requests.c.id)
        given = sa.select(approvals).order_by(approvals.c.at, approvals.c.approver)
        if ids is not None:
            query = query.where(requests.c.id.in_(ids))
            given = given.where(approvals.c.request.in_(ids))

        def read() -> list[ApprovalRequest]:
            by_request: dict[str, list[Approval]] = {}
            with self._store.connect() as connection:
                for found in connection.execute(given):
                    approval = Approval(approver=found.approver)
                    approval.at.FromNanoseconds(found.at)
                    by_request.setdefault(found.request, []).append(approval)
                return [self._told(found, by_request.get(found.id, [])) for found in connection.execute(query)]

        return await self._store.read(read)

    def _told(self, found: sa.Row[tuple[object, ...]], given: list[Approval]) -> ApprovalRequest:
        told = ApprovalRequest.FromString(found.message)
        told.created_at.FromNanoseconds(found.created_at)
        told.expires_at.FromNanoseconds(found.expires_at)
        told.approvals.extend(given)
        told.denied_by, told.denied_because, told.used_by = found.denied_by, found.denied_because, found.used_by
        if told.used_by:
            told.state = RequestState.REQUEST_STATE_USED
        elif told.denied_by:
            told.state = RequestState.REQUEST_STATE_DENIED
        elif found.expires_at <= _ns(self._clock()):
            told.state = RequestState.REQUEST_STATE_EXPIRED
        else:
            told.state = RequestState.REQUEST_STATE_WAITING
        return told

    async def find(self, prefix: str) -> ApprovalRequest:
        """By its id or the beginning of it. Raises NotFound, or UsageError for a prefix that is short or fits several."""
        found = [each for each in await self.all() if each.id.startswith(prefix)]
        if len(found) == 1 and (len(prefix) >= SHORTEST_PREFIX or found[0].id == prefix):
            return found[0]
        if found:
            raise UsageError(
                f"{prefix!r} is not enough of an id: give at least {SHORTEST_PREFIX} characters that fit one request"
            )
        raise NotFound(f"there is no request {prefix}; see `landbridge requests`")

    async def bound_to(self, sha256: str) -> ApprovalRequest | None:
        """The request for exactly this that is not over, if there is one."""
        query = sa.select(requests.c.id).where(requests.c.sha256 == sha256)

        def read() -> list[str]:
            with self._store.connect() as connection:
                return list(connection.execute(query).scalars())

        ids = await self._store.read(read)
        return next((each for each in await self.all(ids) if each.state in OPEN), None) if ids else None

    async def approve(self, request: ApprovalRequest, who: Identity) -> ApprovalRequest:
        """Record somebody's yes. Raises AlreadyExists for a second one, and Conflict if the request is over."""
        now = self._clock()
        touch = self._if_open(request.id, now).values(revision=requests.c.revision + 1)
        known = sa.select(approvals.c.at).where(approvals.c.request == request.id, approvals.c.approver == str(who))
        add = approvals.insert().values(request=request.id, approver=str(who), at=_ns(now))

        def write(connection: sa.Connection) -> None:
            # The row is locked from here on: nobody else comes between.
            if not connection.execute(touch).rowcount:
                raise _over(request.id)
            if connection.execute(known).scalar() is not None:
                raise AlreadyExists(f"{who} has approved request {request.id} already")
            connection.execute(add)

        await self._store.write(write)
        return await self.find(request.id)

    async def deny(self, request: ApprovalRequest, who: Identity, reason: str) -> ApprovalRequest:
        """Record somebody's no, which ends the request. Raises Conflict if it is over."""
        deny = self._if_open(request.id, self._clock()).values(denied_by=str(who), denied_because=reason)
        if not await self._store.write(lambda connection: connection.execute(deny).rowcount):
            raise _over(request.id)
        return await self.find(request.id)

    async def take(self, id_: str, migration: str) -> None:
        """Use a request up for a migration, or find that it was for this very one. Raises Conflict if it is over."""
        unused = requests.c.used_by.in_(("", migration))
        take = (
            requests.update()
            .where(requests.c.id == id_, unused, requests.c.denied_by == "", requests.c.expires_at > _ns(self._clock()))
            .values(used_by=migration)
        )
        if not await self._store.write(lambda connection: connection.execute(take).rowcount):
            raise _over(id_)

    async def give_back(self, id_: str, migration: str) -> None:
        """Undo `take`: the migration did not begin."""
        undo = requests.update().where(requests.c.id == id_, requests.c.used_by == migration).values(used_by="")
        await self._store.write(lambda connection: connection.execute(undo))

    @staticmethod
    def _if_open(id_: str, now: datetime) -> sa.Update:
        return requests.update().where(
            requests.c.id == id_, requests.c.used_by == "", requests.c.denied_by == "", requests.c.expires_at > _ns(now)
        )


def approvers(request: ApprovalRequest | None) -> frozenset[Identity]:
    """Who has approved a request, if there is one."""
    return frozenset() if request is None else frozenset(operator(each.approver) for each in request.approvals)


def _over(id_: str) -> Conflict:
    return Conflict(f"request {id_} is over: it was used or denied, or has expired; see `landbridge requests`")


def _ns(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1_000_000) * 1000
