"""python -m tests.lab: the lab by hand."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields

import click

from tests.lab import kernel, processes, root
from tests.lab.lab import Lab
from tests.lab.network import SITES, node
from tests.lab.settings import TRIXIE, GuestSettings, LabError, LabSettings, WanSettings

pass_lab = click.make_pass_decorator(Lab)


@click.group()
@click.option("--name", envvar="LANDBRIDGE_LAB", default="lab", show_default=True, help="Which lab; several may be up.")
@click.pass_context
def main(context: click.Context, name: str) -> None:
    """Two sites on one machine, with real hosts and guests."""
    context.obj = Lab(name)


@main.command()
def prepare() -> None:
    """Fetch the guest's kernel and compile what the lab needs; needs a network once."""
    for path in kernel.prepare():
        click.echo(path)


@main.command()
def trixie() -> None:
    """Make the Debian 13 that hosts can have as their root; needs a network once."""
    click.echo(root.make())


@main.command()
@click.option("--rate", default=200.0, show_default=True, help="Mbit/s of the WAN per direction.")
@click.option("--rtt", default=40.0, show_default=True, help="ms.")
@click.option("--loss", default=0.0, show_default=True, help="Percent.")
@click.option("--bare", is_flag=True, help="Hosts only, without Landbridge.")
@click.option(
    "--direct-lan",
    is_flag=True,
    help="Route between the sites and open libvirtd's TCP port, for comparisons.",
)
@click.option("--pool-size", default=0, help="MiB of each host's storage pool; 0: no limit.")
@click.option("--standby", is_flag=True, help="A second gateway at each site.")
@click.option("--trixie", multiple=True, default=TRIXIE, type=click.Choice(SITES), help="A site that runs Debian 13.")
@pass_lab
def up(
    lab: Lab,
    rate: float,
    rtt: float,
    loss: float,
    bare: bool,
    direct_lan: bool,
    pool_size: int,
    standby: bool,
    trixie: tuple[str, ...],
) -> None:
    """Build the lab."""
    settings = LabSettings(direct_lan, pool_size, WanSettings(rate, rtt, loss), standby, trixie=trixie)
    click.echo(f"lab {lab.name} is up" if lab.up(settings, product=not bare) else f"lab {lab.name} is up already")


@main.command()
@pass_lab
def down(lab: Lab) -> None:
    """Take the lab down, whatever state it is in."""
    click.echo(f"lab {lab.name} is down" if lab.down() else f"there was no lab {lab.name}")


@main.command()
@pass_lab
def status(lab: Lab) -> None:
    """What is up."""
    if not lab.is_up:
        raise LabError(f"lab {lab.name} is not up: python -m tests.lab up")
    click.echo(f"wan          {_wan_state(lab)}")
    for record in processes.recorded(lab.directory / "processes"):
        click.echo(f"{record.label:<24} {record.pid:>8}  {'running' if record.is_alive() else 'ended'}")
    for name in lab.guests.names():
        places = ", ".join(f"{host}: {state}" for host, state in lab.guests.where(name).items() if state)
        click.echo(f"guest {name:<18} {places or 'nowhere'}")


def _wan_state(lab: Lab) -> str:
    try:
        shown = lab.wan.show()
    except LabError:
        return "does not answer"
    if shown["cut"]:
        return "cut"
    faults = "".join(f", {what} {port}" for what in ("blocked", "stalled") for port in shown[what])
    return f"{shown['rate'] / 1e6:g} Mbit/s, {shown['delay'] / 5e5:g} ms, {shown['loss'] * 100:g} %{faults}"


@main.group()
def wan() -> None:
    """The line between the sites."""


@wan.command("set")
@click.option("--rate", type=float, help="Mbit/s per direction; 0: unlimited.")
@click.option("--rtt", type=float, help="ms.")
@click.option("--loss", type=float, help="Percent.")
@pass_lab
def wan_set(lab: Lab, rate: float | None, rtt: float | None, loss: float | None) -> None:
    """Change it; what is not named stays."""
    now = lab.wan.show()
    lab.set_wan(
        WanSettings(
            rate=now["rate"] / 1e6 if rate is None else rate,
            rtt=now["delay"] / 5e5 if rtt is None else rtt,
            loss=now["loss"] * 100 if loss is None else loss,
        )
    )


@wan.command()
@pass_lab
def cut(lab: Lab) -> None:
    """Drop everything."""
    lab.wan.cut()


@wan.command()
@pass_lab
def heal(lab: Lab) -> None:
    """Undo cut."""
    lab.wan.heal()


@wan.command()
@click.argument("ports", nargs=-1, required=True, type=click.IntRange(1, 65535))
@pass_lab
def block(lab: Lab, ports: tuple[int, ...]) -> None:
    """Drop all packets of the TCP connections with such a port."""
    lab.wan.block(*ports)


@wan.command()
@click.argument("ports", nargs=-1, required=True, type=click.IntRange(1, 65535))
@pass_lab
def stall(lab: Lab, ports: tuple[int, ...]) -> None:
    """Let through a trickle of the TCP connections with such a port."""
    lab.wan.stall(*ports)


@wan.command()
@click.argument("ports", nargs=-1, type=click.IntRange(1, 65535))
@pass_lab
def unblock(lab: Lab, ports: tuple[int, ...]) -> None:
    """Undo block and stall: of these ports, or of all."""
    lab.wan.unblock(*ports)


@wan.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Only those with this port at either end.")
@pass_lab
def flows(lab: Lab, port: int | None) -> None:
    """The TCP connections of the last ten seconds, busiest first, as JSON lines."""
    for flow in lab.wan.flows(port):
        click.echo(json.dumps(asdict(flow)))


@wan.command()
@pass_lab
def show(lab: Lab) -> None:
    """Settings and counters, as JSON."""
    click.echo(json.dumps(lab.wan.show()))


@main.group()
def vm() -> None:
    """Guests."""


def _guest_options(command: click.Command) -> click.Command:
    for field in reversed(fields(GuestSettings)):
        flag = f"--{field.name.replace('_', '-')}"
        kind = click.INT if field.type == "int" else click.STRING
        if field.type == "bool":
            option = click.Option([flag], is_flag=True)
        else:
            option = click.Option([flag], type=kind, default=field.default, show_default=True)
        command.params.insert(0, option)
    return command


@vm.command()
@click.argument("name")
@click.option("--host", default="east-1", show_default=True)
@pass_lab
def start(lab: Lab, /, name: str, host: str, **settings: object) -> None:
    """Start a guest and wait until it beats."""
    lab.guests.start(name, host, GuestSettings(**settings))  # type: ignore[arg-type]  # click has read each as its type
    click.echo(f"guest {name} beats on {host}")


_guest_options(start)


@vm.command()
@click.argument("name")
@pass_lab
def stop(lab: Lab, name: str) -> None:
    """Remove a guest, wherever it is."""
    lab.guests.stop(name)


@vm.command("list")
@pass_lab
def list_guests(lab: Lab) -> None:
    """All guests, and where they are."""
    for name in lab.guests.names():
        click.echo(f"{name}: " + ", ".join(f"{h} {s}" for h, s in lab.guests.where(name).items() if s))


@vm.command()
@click.argument("name")
@pass_lab
def where(lab: Lab, name: str) -> None:
    """What each host's libvirtd says of a guest."""
    for host, state in lab.guests.where(name).items():
        click.echo(f"{host}  {state or '-'}")


@vm.command()
@click.argument("name")
@click.option("--wait", default=30.0, show_default=True, help="Seconds for a full pass over memory and disk.")
@click.option("--json", "as_json", is_flag=True)
@pass_lab
def check(lab: Lab, name: str, wait: float, as_json: bool) -> None:
    """The guest's own verdict; exits 0 only if all is well."""
    verdict = lab.guests.check(name, wait=wait)
    click.echo(json.dumps({**asdict(verdict), "good": verdict.good}) if as_json else verdict.sentence())
    sys.exit(0 if verdict.good else 1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_lab
def exec(lab: Lab, name: str, argv: tuple[str, ...]) -> None:  # noqa: A001 - the command's name
    """Run a command on a node; `landbridge` there is its site's operator."""
    words = [*lab.enter(name), *argv]
    os.execvpe(words[0], words, lab.product.operator_environment(node(name).site))  # noqa: S606 - takes this process's place


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        sys.exit(1)
