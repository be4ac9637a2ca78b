"""From the global options to a Client of a gateway."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from certs.identity import Role
from certs.store import load_identity
from certs.tls import grpc_channel_credentials, grpc_channel_options
from landbridge.client import Client
from landbridge.client import connect as connect_client
from landbridge.errors import UsageError


@dataclass(frozen=True)
class Access:
    """The global options: which gateways of the site, and who asks."""

    gateway: str | None
    identity: Path | None


def connect(ctx: click.Context, gateway: str | None = None, name: str | None = None) -> Client:
    """The Client that a verb uses: the gateway must be one of the site that the identity belongs to.

    `gateway` is one of the addresses that were given, instead of all; `name`, whose certificate must answer there.
    Verbs call it as `connection.connect`, which tests replace.
    """
    access = _access(ctx)
    if access.identity is None:
        raise UsageError("No identity is given: use --identity DIR or set LANDBRIDGE_IDENTITY.")
    local = load_identity(access.identity, datetime.now(UTC))
    site = local.identity.site
    return connect_client(
        gateway or str(access.gateway),
        grpc_channel_credentials(local, site),
        grpc_channel_options(Role.GATEWAY, site, local.identity.trust_domain, name),
    )


def gateways(ctx: click.Context) -> list[str]:
    """The addresses that were given."""
    return str(_access(ctx).gateway).split(",")


def _access(ctx: click.Context) -> Access:
    access = ctx.find_object(Access)
    if access is None or access.gateway is None:
        raise UsageError("No gateway is given: use --gateway HOST:PORT or set LANDBRIDGE_GATEWAY.")
    return access
