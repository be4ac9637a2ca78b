"""`landbridge sites`, `landbridge sites join` and `landbridge sites leave`"""

import json
import sys

import click

from certs import trust
from certs.identity import parse_site
from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.errors import PermissionDenied, UsageError
from landbridge.v1.gateway_pb2 import Site

_COLUMNS = (
    output.Column("SITE", cut=True),
    output.Column("TUNNEL"),
    output.Column("RTT", right=True),
    output.Column("HOSTS", right=True),
    output.Column("VERSION", cut=True),
    output.Column("LIMIT", right=True),
)


@click.group(invoke_without_command=True)
@arguments.as_json
@click.pass_context
def sites(ctx: click.Context, *, as_json: bool) -> None:
    """List this site and the sites that it is joined with.

    TUNNEL is whether the tunnel to a site is up, and how many of its links are, of how many there should
    be. HOSTS is how many of a site's hosts answer, of how many it has. LIMIT is what may be sent to it.
    ALARM says that a site's audit log has shown two histories.
    """
    if ctx.invoked_subcommand is not None:
        return
    with connection.connect(ctx) as gateway:
        found = gateway.sites()
    if as_json:
        for site in found:
            json_lines.write("site", site)
    else:
        output.table(_COLUMNS, [_row(site) for site in found], "The gateway knows no site.")


@sites.command()
@click.argument("site", type=arguments.SITE)
@click.option("--at", "addresses", type=arguments.ADDRESSES, required=True, help="Where its gateways listen for peers.")
@click.option("--fingerprint", help="What the other site's operator has read out; without it, you are asked.")
@arguments.as_json
@click.pass_context
def join(ctx: click.Context, site: str, addresses: str, fingerprint: str | None, *, as_json: bool) -> None:
    """Join SITE, to move VMs there and from there.

    What its CA says is believed from now on. Its operator does the same with this site. Both see both fingerprints, and
    read them to each other: only if they are
    the same on both sides has nobody come in between. From then on each site tells the other its addresses, its new roots
    and what it has revoked.
    """
    peers = addresses.split(",")
    with connection.connect(ctx) as gateway:
        found = gateway.look_at_site(peers[0])
        theirs, ours = (trust.spoken(_fingerprint(pem)) for pem in (found.root, found.own_root))
        name = parse_site(found.site).site
        if name != site:
            raise UsageError(f"The gateway at {peers[0]} is of site {name}, and not of {site}: check the address.")
        if fingerprint is None and not as_json:
            output.facts(((words.safe(parse_site(found.own_site).site), ours), (words.safe(name), theirs)))
        if fingerprint is None:
            _ask(name)
        elif "".join(fingerprint.split()).lower() != theirs.replace(" ", ""):
            raise PermissionDenied(
                f"The fingerprint of {name} is {theirs}, and not the one that you gave: nothing was changed. If its operator sees "
                "another one, somebody is in between."
            )
        gateway.join_site(found.site, found.root, peers)
    if as_json:
        click.echo(json.dumps({"type": "joined", "site": found.site, "fingerprint": theirs, "own_fingerprint": ours}))
    else:
        output.say(f"Joined {name}. Its tunnel comes up when {name} has joined this site too: see `landbridge sites`.")


@sites.command()
@click.argument("site", type=arguments.SITE)
@click.option("--reason", type=arguments.REASON, default=None, help="Why; for the log.")
@click.option(
    "--force",
    is_flag=True,
    help="Although migrations are under way between the sites: those that are being copied fail, and their VMs go on at the "
    "source; one that is beyond that does not end before the sites are joined again.",
)
@arguments.as_json
@click.pass_context
def leave(ctx: click.Context, site: str, *, reason: str | None, force: bool, as_json: bool) -> None:
    """End the trust in SITE, to which no VM moves then, nor from there.

    All gateways of this site close their links with it, and believe nobody there any more. SITE is told, and ends its trust in
    this one, if it answers. Refused while migrations are under way between the two. Receipts and audit logs stay as they are, and
    can be verified. `landbridge sites join`, at both, undoes it.
    """
    with connection.connect(ctx) as gateway:
        done = gateway.leave_site(site, reason or "", force=force)
    if as_json:
        json_lines.write("left", done)
        return
    output.say(f"Left {site}: nobody there is believed here any more.")
    if done.untold:
        output.say(f"{site} may still believe this site: {words.sentence(done.untold)}")
        output.say(f"Have its operators run `landbridge sites leave` at {site}, with the name of this site.")


def _fingerprint(pem: str) -> str:
    return trust.fingerprint(trust.load_certificates(pem.encode())[0])


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"Nobody can be asked here: give what the operator of {name} has read out with --fingerprint.")
    if not click.confirm(f"Does the operator of {name} see the same two lines?"):
        raise PermissionDenied("Not joined: nothing was changed.")


def _row(site: Site) -> output.Row:
    name, tunnel = words.safe(site.name), words.safe(site.tunnel)
    if site.links:
        tunnel = f"{tunnel} {site.links_up}/{site.links}"
    limit = words.limit(site.limit) if site.limit else ""
    notes = [f"ALARM: {words.safe(alarm)}; see docs/audit.md" for alarm in site.alarms]
    if site.unreachable:
        notes.insert(0, f"unreachable: {words.safe(site.unreachable)}")
        return output.Row((name, tunnel, "", "", "", limit), "; ".join(notes), "red")
    rtt = "" if site.local else words.duration(site.rtt_ms)
    answering = f"{site.hosts_reachable}/{site.hosts}"
    cells = (name, tunnel, rtt, answering, words.safe(site.gateway_version), limit)
    if notes:
        return output.Row(cells, "; ".join(notes), "red")
    return output.Row(cells, style="yellow" if site.links_up < site.links else "")
