"""`landbridge limit`"""

import click

from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.client import Client
from landbridge.v1.gateway_pb2 import SetLimitRequest

# As in `gateway.config`, which the command line does not know.
_MOST_LINKS = 64

# What errors call the words of `given`.
_ID = click.Argument(["id"])
_RATE = click.Argument(["rate"])


@click.command()
@click.argument("given", nargs=-1, metavar="[ID] [RATE]")
@click.option("--site", type=arguments.SITE, help="Limit the tunnel to this site instead of a migration.")
@click.option("--links", type=click.IntRange(1, _MOST_LINKS), help="With --site: how many links its tunnel is to have.")
@click.option("--reset", is_flag=True, help="With --site: have its tunnel as gateway.toml has it.")
@arguments.as_json
@click.pass_context
def limit(
    ctx: click.Context, given: tuple[str, ...], site: str | None, links: int | None, *, reset: bool, as_json: bool
) -> None:
    """Limit what a migration, or the tunnel to a site, may send over the WAN.

    \b
      landbridge limit ID RATE
      landbridge limit --site SITE RATE
      landbridge limit --site SITE --links N
      landbridge limit --site SITE --reset

    RATE is a number with its unit: 50Mbit/s or 1.5Gbit/s; in bytes 12.5MB/s or 6MiB/s; none for no limit.

    It holds at once, also while a migration runs, and at every gateway of this site within a few seconds;
    each of them bounds what goes through it. It outlives their restarts: a migration's limit lasts until the
    migration ends. What is set for a tunnel comes before what gateway.toml says, until --reset.
    """
    request = _request(ctx, given, site, links, reset=reset)
    with connection.connect(ctx) as gateway:
        what = _set(gateway, request)
    if as_json:
        json_lines.write("limit", request)
        return
    if request.HasField("bytes_per_second"):
        rate = request.bytes_per_second
        output.say(f"{what} {f'may use {words.limit(rate)}' if rate else 'has no limit now'}.")
    if request.HasField("links"):
        output.say(f"{what} is to have {request.links} {'link' if request.links == 1 else 'links'}.")
    if request.as_configured:
        output.say(f"{what} is as gateway.toml has it.")


def _request(
    ctx: click.Context, given: tuple[str, ...], site: str | None, links: int | None, *, reset: bool
) -> SetLimitRequest:
    if site is None:
        return _of_migration(ctx, given, links, reset=reset)
    return _of_site(ctx, given, site, links, reset=reset)


def _of_migration(ctx: click.Context, given: tuple[str, ...], links: int | None, *, reset: bool) -> SetLimitRequest:
    if reset:
        raise click.UsageError("--reset is for the tunnel to a site: name it with --site.", ctx)
    if links is not None:
        raise click.UsageError("--links is for the tunnel to a site: name it with --site.", ctx)
    if len(given) < 2:
        raise click.UsageError("Give a migration's ID and a RATE, or --site SITE and a RATE.", ctx)
    migration_id = arguments.ID.convert(given[0], _ID, ctx)
    return SetLimitRequest(migration=migration_id, bytes_per_second=_rate(given[1:], ctx))


def _of_site(
    ctx: click.Context, given: tuple[str, ...], site: str, links: int | None, *, reset: bool
) -> SetLimitRequest:
    if reset and (given or links is not None):
        raise click.UsageError("--reset undoes a RATE and --links: give it alone.", ctx)
    if reset:
        return SetLimitRequest(site=site, as_configured=True)
    if not given and links is None:
        raise click.UsageError("Give a RATE for the tunnel, or --links N, or both; or --reset.", ctx)
    return SetLimitRequest(site=site, bytes_per_second=_rate(given, ctx) if given else None, links=links)


def _rate(given: tuple[str, ...], ctx: click.Context) -> int:
    """Of "200 Mbit" a shell makes two words."""
    return arguments.RATE.convert(" ".join(given), _RATE, ctx)


def _set(gateway: Client, request: SetLimitRequest) -> str:
    """Do it, and say what it was done to; the request has the migration's whole id then."""
    rate = request.bytes_per_second if request.HasField("bytes_per_second") else None
    if request.WhichOneof("target") == "site":
        links = request.links if request.HasField("links") else None
        gateway.set_limit(rate, site=request.site, links=links, reset=request.as_configured)
        return f"The tunnel to {words.safe(request.site)}"
    migration = gateway.migration(request.migration)
    request.migration = migration.id
    gateway.set_limit(rate, migration=migration.id)
    destination = words.place(migration.destination_site, migration.destination_host)
    return f"The migration of {words.safe(migration.vm)} to {destination}"
