"""`landbridge hosts`, `landbridge hosts enroll` and `landbridge hosts remove`"""

import click

from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.v1.types_pb2 import Host

# Downtimes are differences of two hosts' clocks: an operator should hear of clocks that are far off.
_CLOCK_OFFSET_MS = 500

_COLUMNS = (
    output.Column("HOST", cut=True),
    output.Column("CPUS", right=True),
    output.Column("MEMORY", right=True),
    output.Column("FREE", right=True),
    output.Column("QEMU"),
    output.Column("LIBVIRT"),
    output.Column("AGENT"),
)


@click.group(invoke_without_command=True)
@arguments.as_json
@click.pass_context
def hosts(ctx: click.Context, *, as_json: bool) -> None:
    """List the hosts of this site and of the sites that it is joined with."""
    if ctx.invoked_subcommand is not None:
        return
    with connection.connect(ctx) as gateway:
        found = gateway.hosts()
    if as_json:
        for host in found:
            json_lines.write("host", host)
    else:
        output.table(_COLUMNS, [_row(host) for host in found], "The gateway knows no host.")


@hosts.command()
@click.argument("name")
@arguments.as_json
@click.pass_context
def enroll(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Print a token for a new host NAME.

    With it, `landbridge-agent enroll` makes a machine this host of the site. It is good once, for an hour, and for this
    name. Whoever has it can become that host: carry it as you would a password.
    """
    with connection.connect(ctx) as gateway:
        made = gateway.create_token(name)
    if as_json:
        json_lines.write("token", made)
        return
    click.echo(f"On {words.safe(name)}, as root, before {words.moment(made.expires_at)}:")
    click.echo(f"landbridge-agent enroll {made.token}")


@hosts.command()
@click.argument("name")
@click.option("--reason", type=arguments.REASON, default=None, help="Why; for the log.")
@click.option(
    "--force",
    is_flag=True,
    help="Although it does not answer, has VMs, or has a part in migrations: VMs that run there run on, where nobody here sees "
    "them, and a migration that still needs the host does not end.",
)
@arguments.as_json
@click.pass_context
def remove(ctx: click.Context, name: str, *, reason: str | None, force: bool, as_json: bool) -> None:
    """Take the host NAME of this site out of service.

    Its certificate is worthless within seconds, at all sites, and it is not listed any more. Refused while it has VMs,
    cannot be asked for them, or has a part in a migration that is under way. With a new token, from `landbridge hosts
    enroll`, it comes back.
    """
    with connection.connect(ctx) as gateway:
        done = gateway.remove_host(name, reason or "", force=force)
    if as_json:
        json_lines.write("removed", done)
        return
    output.say(f"Removed host {words.safe(done.name)}: its certificate is worthless from now on.")
    if done.vms:
        output.say(f"It has VMs, which stay as they are: {', '.join(map(words.safe, done.vms))}.")
    if done.unreachable:
        output.say(f"It could not be asked which VMs it has: {words.sentence(done.unreachable)}")
        output.say("See that it stays off: what runs there runs on, where nobody here sees it.")
    if done.unsettled:
        left = ", ".join(words.safe(each[:8]) for each in done.unsettled)
        output.say(f"Not settled, so that its disks still hold what was moved away: {left}.")


def _row(host: Host) -> output.Row:
    name = words.place(host.site, host.name)
    if host.unreachable:
        return output.Row((name, "", "", "", "", "", ""), f"unreachable: {words.safe(host.unreachable)}", "red")
    note = ""
    if abs(host.clock_offset_ms) >= _CLOCK_OFFSET_MS:
        way = "ahead of" if host.clock_offset_ms > 0 else "behind"
        note = f"its clock is {words.duration(abs(host.clock_offset_ms))} {way} the gateway's"
    cells = (
        name,
        str(host.cpus),
        words.size(host.memory),
        words.size(host.memory_free),
        words.safe(host.hypervisor_version),
        words.safe(host.libvirt_version),
        words.safe(host.agent_version),
    )
    return output.Row(cells, note)
