"""What the gateways of a site know of identities, in their store: tokens, certificates, denials, roots, hosts, sites and addresses.

Whoever can write there is believed: a site's root comes from here when an operator has joined it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from certs.identity import parse_site
from certs.trust import Denial
from gateway.store import Store, metadata, tunnels
from landbridge.config import Address, parse_address
from landbridge.errors import ConfigError

# All times are seconds since the epoch.

tokens = sa.Table(
    "enrolment_tokens",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret_hash", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("is_used", sa.Boolean, nullable=False),
)

# The newest that was issued to, or seen of, each identity; of issuers, all that are in use.
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("identity", sa.String(512), nullable=False, index=True),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("renews_itself", sa.Boolean, nullable=False),
)

denials = sa.Table(
    "denials",
    metadata,
    sa.Column("subject", sa.String(512), primary_key=True),
    # A SPIFFE ID: who says so.
    sa.Column("site", sa.String(512), primary_key=True),
    sa.Column("since", sa.BigInteger, nullable=False),
)

# Roots and handovers, by the site's SPIFFE ID, PEM.
roots = sa.Table(
    "roots",
    metadata,
    sa.Column("site", sa.String(512), primary_key=True),
    sa.Column("pem", sa.LargeBinary, nullable=False),
)

# Hosts that have enrolled; those of the configuration are not here.
hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("control", sa.Text, nullable=False),
    sa.Column("stream", sa.Text, nullable=False),
)

# Sites that operators have joined, and where they are reached; those of the configuration are not here. JSON lists of addresses.
sites = sa.Table(
    "sites",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("peers", sa.Text, nullable=False),
    sa.Column("tunnel", sa.Text, nullable=False),
)

# Sites that operators have left, by their SPIFFE IDs. They are not believed, whatever the files of a gateway say that did not run then,
# until an operator joins them again.
departures = sa.Table(
    "departures",
    metadata,
    sa.Column("site", sa.String(512), primary_key=True),
)

# Where each gateway of this site is reached, for others to be told. JSON objects of lists.
endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("gateway", sa.String(255), primary_key=True),
    sa.Column("addresses", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class CertificateRecord:
    """One certificate that exists."""

    serial: str
    identity: str
    issued_at: datetime
    expires_at: datetime
    renews_itself: bool


@dataclass(frozen=True)
class Place:
    """Where a host or a site is reached: by calls, and by links."""

    name: str
    control: tuple[Address, ...]
    stream: tuple[Address, ...]


class Records:
    """Durable when a method returns; ConfigError if the database does not do it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Tokens

    async def add_token(self, id_: str, secret_hash: bytes, name: str, made_by: str, expires_at: datetime) -> None:
        """A new token; those that have expired go."""
        insert = tokens.insert().values(
            id=id_, secret_hash=secret_hash, name=name, made_by=made_by, expires_at=_seconds(expires_at), is_used=False
        )
        old = tokens.delete().where(tokens.c.expires_at < _seconds(datetime.now(UTC)))

        def write(connection: sa.Connection) -> None:
            connection.execute(old)
            connection.execute(insert)

        await self._store.write(write)

    async def token(self, id_: str) -> tuple[bytes, str, datetime, bool] | None:
        """The hash of a token's secret, the host that it is for, its end, and whether it was used; None if there is none."""
        query = sa.select(tokens).where(tokens.c.id == id_)

        def read() -> tuple[bytes, str, datetime, bool] | None:
            with self._store.connect() as connection:
                found = connection.execute(query).one_or_none()
                return found and (found.secret_hash, found.name, _moment(found.expires_at), found.is_used)

        return await self._store.read(read)

    async def use_token(self, id_: str) -> bool:
        """Whether this is the first use, in one atomic step."""
        claim = tokens.update().where(tokens.c.id == id_, ~tokens.c.is_used).values(is_used=True)
        return await self._store.write(lambda connection: connection.execute(claim).rowcount) == 1

    # Certificates

    async def add_certificate(self, record: CertificateRecord) -> None:
        """Record one that exists; an older one of the same identity is forgotten, unless it is an issuer's."""
        values = {
            "serial": record.serial,
            "identity": record.identity,
            "issued_at": _seconds(record.issued_at),
            "expires_at": _seconds(record.expires_at),
            "renews_itself": record.renews_itself,
        }
        is_issuer = "/issuer/" in record.identity
        others = (certificates.c.identity == record.identity) & (certificates.c.serial != record.serial)
        has_expired = certificates.c.expires_at < _seconds(datetime.now(UTC))
        older = certificates.delete().where(
            others, has_expired if is_issuer else certificates.c.issued_at <= values["issued_at"]
        )
        newer = None if is_issuer else sa.select(certificates.c.serial).where(others)
        await self._put(certificates, {"serial": record.serial}, values, before=older, unless=newer)

    async def certificates(self) -> list[CertificateRecord]:
        """All, by identity."""
        query = sa.select(certificates).order_by(certificates.c.identity, certificates.c.issued_at)

        def read() -> list[CertificateRecord]:
            with self._store.connect() as connection:
                return [
                    CertificateRecord(
                        found.serial,
                        found.identity,
                        _moment(found.issued_at),
                        _moment(found.expires_at),
                        found.renews_itself,
                    )
                    for found in connection.execute(query)
                ]

        return await self._store.read(read)

    # Denials

    async def add_denial(self, denial: Denial) -> None:
        """Revoke; a later moment takes the place of an earlier one."""
        key = {"subject": denial.subject, "site": str(denial.site)}
        await self._put(denials, key, {**key, "since": _seconds(denial.since)})

    async def denials(self) -> frozenset[Denial]:
        """All that was revoked."""

        def read() -> frozenset[Denial]:
            with self._store.connect() as connection:
                return frozenset(
                    Denial(found.subject, parse_site(found.site), _moment(found.since))
                    for found in connection.execute(sa.select(denials))
                )

        return await self._store.read(read)

    # Roots

    async def save_roots(self, site: str, pem: bytes) -> None:
        """What is believed of a site; nothing of one that was left, of which another gateway may not have heard yet."""
        left = sa.select(departures.c.site).where(departures.c.site == site)
        await self._put(roots, {"site": site}, {"site": site, "pem": pem}, unless=left)

    async def roots(self) -> dict[str, bytes]:
        """By site."""

        def read() -> dict[str, bytes]:
            with self._store.connect() as connection:
                return {found.site: found.pem for found in connection.execute(sa.select(roots))}

        return await self._store.read(read)

    # Hosts, sites, addresses

    async def add_host(self, name: str, control: Address, stream: Address) -> None:
        """A host has enrolled."""
        values = {"name": name, "control": str(control), "stream": str(stream)}
        await self._put(hosts, {"name": name}, values)

    async def hosts(self) -> list[Place]:
        """Those that have enrolled."""

        def read() -> list[Place]:
            with self._store.connect() as connection:
                return [
                    Place(found.name, (parse_address(found.control),), (parse_address(found.stream),))
                    for found in connection.execute(sa.select(hosts))
                ]

        return await self._store.read(read)

    async def remove_host(self, name: str) -> None:
        """A host is gone; nor can it come back by a token that was made before."""
        unused = tokens.delete().where(tokens.c.name == name, ~tokens.c.is_used)
        gone = hosts.delete().where(hosts.c.name == name)

        def write(connection: sa.Connection) -> None:
            connection.execute(unused)
            connection.execute(gone)

        await self._store.write(write)

    async def join_site(
        self, site: str, pem: bytes, name: str, peers: Sequence[Address], tunnel: Sequence[Address]
    ) -> None:
        """Believe a site, known by its SPIFFE ID and by its name, and reach it there, in one step; also if it was left before."""
        anew = departures.delete().where(departures.c.site == site)
        place = {"name": name, "peers": _json(peers), "tunnel": _json(tunnel)}

        def write(connection: sa.Connection) -> None:
            connection.execute(anew)
            _put(connection, roots, {"site": site}, {"site": site, "pem": pem})
            _put(connection, sites, {"name": name}, place)

        await self._write(write)

    async def move_site(self, name: str, peers: Sequence[Address], tunnel: Sequence[Address]) -> None:
        """A site that is joined is reached elsewhere than before."""
        values = {"peers": _json(peers), "tunnel": _json(tunnel)}
        update = sites.update().where(sites.c.name == name).values(**values)
        await self._store.write(lambda connection: connection.execute(update))

    async def leave_site(self, site: str, name: str) -> None:
        """Believe a site no more, and forget where it is and what was set for its tunnel, in one step."""
        gone = [
            roots.delete().where(roots.c.site == site),
            sites.delete().where(sites.c.name == name),
            tunnels.delete().where(tunnels.c.site == name),
        ]

        def write(connection: sa.Connection) -> None:
            _put(connection, departures, {"site": site}, {"site": site})
            for each in gone:
                connection.execute(each)

        await self._write(write)

    async def departures(self) -> frozenset[str]:
        """The SPIFFE IDs of the sites that were left."""

        def read() -> frozenset[str]:
            with self._store.connect() as connection:
                return frozenset(connection.execute(sa.select(departures.c.site)).scalars())

        return await self._store.read(read)

    async def sites(self) -> list[Place]:
        """Those that were joined."""

        def read() -> list[Place]:
            with self._store.connect() as connection:
                return [
                    Place(found.name, _addresses(found.peers), _addresses(found.tunnel))
                    for found in connection.execute(sa.select(sites))
                ]

        return await self._store.read(read)

    async def save_endpoints(self, gateway: str, addresses: dict[str, Address | None]) -> None:
        """Where a gateway is reached, by what for."""
        written = json.dumps({use: str(address) for use, address in addresses.items() if address is not None})
        await self._put(endpoints, {"gateway": gateway}, {"gateway": gateway, "addresses": written})

    async def endpoints(self, use: str) -> list[Address]:
        """Where the gateways of this site are reached for something."""

        def read() -> list[Address]:
            with self._store.connect() as connection:
                found = connection.execute(sa.select(endpoints).order_by(endpoints.c.gateway)).all()
                return [
                    parse_address(known[use]) for known in (json.loads(row.addresses) for row in found) if use in known
                ]

        return await self._store.read(read)

    async def _put(
        self,
        table: sa.Table,
        key: dict[str, str],
        values: Mapping[str, object],
        *,
        before: sa.Delete | None = None,
        unless: sa.Select[tuple[str]] | None = None,
    ) -> None:
        """Insert or replace a row, after `before`; with `unless`, insert it only where that finds nothing."""

        def write(connection: sa.Connection) -> None:
            if before is not None:
                connection.execute(before)
            _put(connection, table, key, values, unless)

        await self._write(write)

    async def _write(self, write: Callable[[sa.Connection], None]) -> None:
        try:
            await self._store.write(write)
        except ConfigError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            await self._store.write(write)  # another gateway has inserted the same row at the same time


def _put(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, str],
    values: Mapping[str, object],
    unless: sa.Select[tuple[str]] | None = None,
) -> None:
    update = table.update().where(*(table.c[name] == value for name, value in key.items())).values(**values)
    if connection.execute(update).rowcount:
        return
    if unless is None or connection.execute(unless).first() is None:
        connection.execute(table.insert().values(**values))


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _json(addresses: Sequence[Address]) -> str:
    return json.dumps([str(each) for each in addresses])


def _addresses(text: str) -> tuple[Address, ...]:
    return tuple(parse_address(each) for each in json.loads(text))
