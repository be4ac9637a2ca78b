"""`landbridge sites`"""

import click

from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.v1.gateway_pb2 import Site

_COLUMNS = (
    output.Column("SITE", cut=True),
    output.Column("TUNNEL"),
    output.Column("RTT", right=True),
    output.Column("HOSTS", right=True),
    output.Column("VERSION", cut=True),
    output.Column("LIMIT", right=True),
)


@click.command()
@arguments.as_json
@click.pass_context
def sites(ctx: click.Context, *, as_json: bool) -> None:
    """List this site and the sites that it is joined with.

    TUNNEL is whether the tunnel to a site is up, and how many of its links are, of how many there should
    be. HOSTS is how many of a site's hosts answer, of how many it has. LIMIT is what may be sent to it.
    """
    with connection.connect(ctx) as gateway:
        found = gateway.sites()
    if as_json:
        for site in found:
            json_lines.write("site", site)
    else:
        output.table(_COLUMNS, [_row(site) for site in found], "The gateway knows no site.")


def _row(site: Site) -> output.Row:
    name, tunnel = words.safe(site.name), words.safe(site.tunnel)
    if site.links:
        tunnel = f"{tunnel} {site.links_up}/{site.links}"
    limit = words.limit(site.limit) if site.limit else ""
    if site.unreachable:
        note = f"unreachable: {words.safe(site.unreachable)}"
        return output.Row((name, tunnel, "", "", "", limit), note, "red")
    rtt = "" if site.local else words.duration(site.rtt_ms)
    answering = f"{site.hosts_reachable}/{site.hosts}"
    cells = (name, tunnel, rtt, answering, words.safe(site.gateway_version), limit)
    return output.Row(cells, style="yellow" if site.links_up < site.links else "")
