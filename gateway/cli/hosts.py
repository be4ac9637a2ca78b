"""`landbridge hosts`, and `landbridge hosts enroll`"""

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
