"""The command line, `landbridge`: one file for each verb, and below them what they share.

    sites hosts vms migrations show settle limit receipt  ask once and print
    activate                                              likewise
    policy requests approve deny                          likewise: who may do what
    migrate watch cancel                                  and then follow a migration to its end
    audit, policy test                                    work on files, ask no gateway
    certs                                                 likewise; status, revoke, renew and rotate ask one

    arguments -> connection -> verb -> output | json_lines | follow -> views | live -> summary
    checked      a Client              tables   for programs           while it goes    at its end

Standard output has the result, standard error one sentence about what went wrong. Exit codes are those of
`landbridge.errors`, 130 when Ctrl-C ended the command, and 74 when standard output could not be written.
"""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click

from gateway.cli import arguments, output, quiet, words  # noqa: F401 - quiet acts by being imported
from gateway.cli.connection import Access
from landbridge.errors import InternalError, LandbridgeError, UsageError

_NAME = "landbridge"
# sysexits.h has it beside 70: a disk is full, say. Of whoever has read enough, it is 141.
_NOT_WRITTEN = 74
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_GLOBAL_OPTIONS = frozenset({"--gateway", "--identity"})
# Each a file here, with a command of its name.
_VERBS = frozenset(
    (
        *("sites", "hosts", "vms", "migrate", "migrations", "show", "settle", "limit", "receipt", "watch", "cancel"),
        *("activate", "policy", "requests", "approve", "deny", "audit", "certs"),
    )
)


class _Verbs(click.Group):
    """A verb is imported when it is called or shown: nobody waits for what only others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        """See `click.Group`."""
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See `click.Group`."""
        if cmd_name in _VERBS and cmd_name not in self.commands:
            self.add_command(getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--gateway",
    type=arguments.ADDRESSES,
    envvar="LANDBRIDGE_GATEWAY",
    show_envvar=True,
    help="Addresses of your site's gateways: the first that answers is asked.",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path, readable=False),  # whoever needs it reads it: many commands do not
    metavar="DIR",
    envvar="LANDBRIDGE_IDENTITY",
    show_envvar=True,
    help="Who you are: a directory with cert.pem, key.pem and trust/.",
)
@click.version_option(metadata.version(_NAME), prog_name=_NAME, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, gateway: str | None, identity: Path | None) -> None:
    """Move running VMs between datacenters."""
    ctx.obj = Access(gateway, identity)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is one sentence on standard error."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" instead of failing
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except LandbridgeError as error:
        _complain(words.sentence(error.message))
        return error.exit_code
    except BrokenPipeError:
        _give_up_output()  # its reader has enough
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001 - a defect of ours: the report needs the traceback
        # Whoever opens files answers for them: what has no name is standard output.
        if isinstance(error, OSError) and error.filename is None and error.errno in _DISK_ERRORS:
            _give_up_output()
            _complain(
                f"Standard output cannot be written ({error.strerror}): what was asked for may have been done all the same."
            )
            return _NOT_WRITTEN
        traceback.print_exc()
        _complain("This is a defect of Landbridge: please report it with the lines above.")
        return InternalError.exit_code
    return code


def _open_closed_streams() -> None:
    """Whoever closes standard streams gets nothing there: the next file or connection must not take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends


def _give_up_output() -> None:
    """Nothing may be written to standard output any more, not even by the interpreter when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with cli.make_context(_NAME, list(sys.argv[1:] if arguments is None else arguments)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        _complain(_usage_sentence(error))
        return UsageError.exit_code
    return 0


def _usage_sentence(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption) and error.option_name in _GLOBAL_OPTIONS:
        return f"{error.option_name} stands before the command: landbridge {error.option_name} ... COMMAND."
    said = words.sentence(error.format_message())
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    # The reasons that `arguments` gives say what is right: there, a pointer to the help would be noise.
    if ctx is None or (isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)):
        return said
    return f"{said.removesuffix('.')} (see `{ctx.command_path} --help`)."


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening on standard error either
        click.echo("\n".join(output.folded(f"{_NAME}: {sentence}", sys.stderr)), err=True)
