"""`landbridge vms`"""

import click

from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.v1.types_pb2 import VM_STATE_MOVED, Host, Vm, VmState

_COLUMNS = (
    output.Column("VM", cut=True),
    output.Column("HOST", cut=True),
    output.Column("STATE"),
    output.Column("VCPUS", right=True),
    output.Column("MEMORY", right=True),
    output.Column("DISKS", right=True),
)


@click.command()
@arguments.as_json
@click.pass_context
def vms(ctx: click.Context, *, as_json: bool) -> None:
    """List the VMs of this site.

    DISKS is the virtual size of all disks together. Hosts that do not answer are listed too: they may
    have more VMs.
    """
    with connection.connect(ctx) as gateway:
        found = gateway.vms()
    if as_json:
        for vm in found.vms:
            json_lines.write("vm", vm)
        for host in found.unreachable:
            json_lines.write("host", host)
    else:
        rows = [*map(_row, found.vms), *map(_unreachable, found.unreachable)]
        output.table(_COLUMNS, rows, "This site has no VM.")


def _row(vm: Vm) -> output.Row:
    cells = (
        words.safe(vm.name),
        words.safe(vm.host),
        words.word(VmState.DESCRIPTOR, vm.state).replace("_", " "),
        str(vm.vcpus),
        words.size(vm.memory),
        words.size(sum(disk.virtual_size for disk in vm.disks)),
    )
    if vm.state == VM_STATE_MOVED:
        moved_by = words.safe(vm.moved_by)
        return output.Row(cells, f"moved away; `landbridge settle {moved_by}` removes it here", "dim")
    return output.Row(cells, "its hypervisor is busy with it" if vm.busy else "")


def _unreachable(host: Host) -> output.Row:
    cells = ("", words.safe(host.name), "unreachable", "", "", "")
    return output.Row(cells, words.safe(host.unreachable), "red")
